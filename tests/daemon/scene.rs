//! A daemon with its configuration and its file of jobs, and what a test does with them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate::backend::sqlite::Sqlite;
use tidegate::{Enqueue as _, Inspect as _, JobId, JobState, NewJob, StoredJob};
use tokio::runtime::Runtime;

use crate::support::{LIMIT, Place, Ran, Running, thread_named};

/// `tidegate run` in the place of a test, with these arguments after `--config`.
pub(crate) fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["run", "--config", "tidegate.toml"]).args(args).current_dir(place.path(""));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    place.marked(command)
}

/// What `tidegate run --check` says of this configuration.
pub(crate) fn check(place: &Place, config: &str) -> Ran {
    place.write("tidegate.toml", config);
    run(place, command(place, &["--check"]))
}

/// Runs it to its end.
pub(crate) fn run(place: &Place, command: Command) -> Ran {
    place.start_command(command).end(place)
}

/// Jobs in the place's file, as any other program would see them.
pub(crate) struct Jobs {
    runtime: Runtime,
    store: Sqlite,
}

impl Jobs {
    /// The jobs in `jobs.sqlite`.
    pub(crate) fn new(place: &Place) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = Sqlite::open(place.path("jobs.sqlite")).expect("a file of our own");
        Self { runtime, store }
    }

    /// Puts a job there.
    pub(crate) fn put(&self, job: NewJob) -> JobId {
        self.put_many(vec![job]).swap_remove(0)
    }

    pub(crate) fn put_many(&self, jobs: Vec<NewJob>) -> Vec<JobId> {
        let put = self.runtime.block_on(self.store.enqueue(jobs)).expect("the file takes them");
        put.iter().map(|job| job.id().clone()).collect()
    }

    /// Waits until a job is in this state.
    pub(crate) fn until(&self, id: &JobId, state: JobState) {
        let seen = async {
            loop {
                let job = self.store.find(id).await.expect("the file can be read");
                match (job, state) {
                    (None, JobState::Done) => return,
                    (Some(job), _) if job.state == state => return,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let seen = async { tokio::time::timeout(LIMIT, seen).await };
        self.runtime.block_on(seen).unwrap_or_else(|_| panic!("job {id} is never {state:?}"));
    }

    fn find(&self, id: &JobId) -> StoredJob {
        self.runtime.block_on(self.store.find(id)).expect("the file can be read").expect("it is there")
    }

    /// Why a job has failed.
    pub(crate) fn error(&self, id: &JobId) -> String {
        self.find(id).last_error.as_deref().unwrap_or_default().to_owned()
    }

    /// How many attempts at a job have been counted.
    pub(crate) fn attempts(&self, id: &JobId) -> u32 {
        self.find(id).attempts
    }

    /// How many there are that are not done.
    pub(crate) fn unfinished(&self) -> u64 {
        let counts = self.runtime.block_on(self.store.counts()).expect("the file can be read");
        counts.unfinished()
    }
}

/// A daemon that runs.
pub(crate) struct Daemon<'p> {
    place: &'p Place,
    /// `None` once its end is waited for.
    running: Option<Running>,
    _watched: SyncSender<()>,
}

impl<'p> Daemon<'p> {
    /// Starts it with this configuration, and waits until it has begun.
    pub(crate) fn start(place: &'p Place, config: &str) -> Self {
        Self::start_with(place, config, |_| {})
    }

    /// The same, with its command changed.
    pub(crate) fn start_with(place: &'p Place, config: &str, change: impl FnOnce(&mut Command)) -> Self {
        place.write("tidegate.toml", config);
        let mut command = command(place, &[]);
        change(&mut command);
        let mut daemon = Self::begin(place, command);
        daemon.hear("started");
        daemon
    }

    /// Starts it, and does not wait.
    pub(crate) fn begin(place: &'p Place, command: Command) -> Self {
        let running = place.start_command(command);
        Self { place, _watched: watch(running.id()), running: Some(running) }
    }

    /// Waits for a line of the log with this message.
    pub(crate) fn hear(&mut self, message: &str) -> Value {
        let line = self.running().hear(&format!("\"message\":\"{message}"));
        serde_json::from_str(&line).expect("each line is JSON")
    }

    /// Waits for a line with this text.
    pub(crate) fn hear_text(&mut self, text: &str) -> String {
        self.running().hear(text)
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("its end is not waited for")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.running.as_ref().expect("its end is not waited for").signal(signal);
    }

    /// Has it read this configuration.
    pub(crate) fn reload(&mut self, config: &str) {
        self.place.write("tidegate.toml", config);
        self.signal(Signal::HUP);
    }

    /// Stops it, and returns what it has left, with its whole log.
    pub(crate) fn stop(self) -> Ran {
        self.signal(Signal::TERM);
        self.end()
    }

    pub(crate) fn end(mut self) -> Ran {
        self.running.take().expect("its end is waited for once").end(self.place)
    }

    /// Waits for its end, after a signal that nobody can obey.
    pub(crate) fn killed(mut self) {
        let mut running = self.running.take().expect("its end is waited for once");
        running.child.wait().expect("it ends");
    }
}

/// A test that fails leaves nobody behind.
impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill().and_then(|()| running.child.wait());
        }
    }
}

/// Kills this process when it takes too long, unless what is returned is dropped before: so nobody waits for ever for
/// what it does not say.
fn watch(id: u32) -> SyncSender<()> {
    let (watched, over) = sync_channel(0);
    let watch = move || {
        if over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            // It is there: who waits for its end drops the other side first.
            let _ = Pid::from_raw(id.cast_signed()).map(|id| kill_process(id, Signal::KILL));
        }
    };
    thread_named("watch", watch);
    watched
}

/// Waits for somebody to write to a FIFO, but not for ever.
pub(crate) fn hear(fifo: PathBuf) -> String {
    let (heard, answer) = sync_channel(1);
    let name = fifo.display().to_string();
    // If nobody ever does it waits for ever, as long as the tests run.
    thread_named("hear", move || heard.send(std::fs::read_to_string(fifo)));
    answer.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("nobody writes to {name}")).expect("it is there")
}

/// The lines of a log.
pub(crate) fn lines(ran: &Ran) -> Vec<Value> {
    ran.stderr().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// The only line with this message.
pub(crate) fn line(ran: &Ran, message: &str) -> Value {
    let mut found = lines(ran).into_iter().filter(|line| line["message"] == message);
    match (found.next(), found.next()) {
        (Some(line), None) => line,
        (first, second) => panic!("{message}: {first:?} {second:?} in {}", ran.stderr()),
    }
}
