//! One worker process: this very test program, run again with [`FILE`] set.
//!
//! It leaves a line in the log beside the file before each run of a job and after it ([`Line`]); a gate, a stop and a
//! report are files too, with its generation in their names.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tidegate::backend::sqlite::Sqlite;
use tidegate::{
    Context, Delivery, Error, FetchRequest, Intake, ReconnectPolicy, Registry, Settled, Shutdown, Source,
    Stale, Tag, Worker,
};
use tokio_util::sync::CancellationToken;

use super::{until, wall_clock};

/// The file of a worker process, and the rest of what it must know.
const FILE: &str = "TIDEGATE_TEST_FILE";
const MANNER: &str = "TIDEGATE_TEST_MANNER";

/// How many jobs a worker process runs at once.
pub(super) const SLOTS: usize = 20;

/// How a worker process goes about its work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// The how many-th worker process on the file it is.
    pub(super) generation: u32,
    pub(super) ttl: Duration,
    /// How long a job takes.
    pub(super) job: Duration,
    pub(super) waits: Waits,
}

/// Where a worker process waits for [`Process::go_on`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    Nowhere,
    /// In the middle of each job.
    InJobs,
    /// With the settlements that it has sent, before they have come to the file.
    InSettling,
}

impl Manner {
    fn encode(self) -> String {
        let Self { generation, ttl, job, waits } = self;
        format!("{generation} {} {} {waits:?}", ttl.as_millis(), job.as_millis())
    }

    fn decode(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok()).expect("a number of ours");
        let (generation, ttl, job) = (number(), number(), number());
        let waits = match words.next() {
            Some("InJobs") => Waits::InJobs,
            Some("InSettling") => Waits::InSettling,
            _ => Waits::Nowhere,
        };
        let millis = |number: u32| Duration::from_millis(number.into());
        Self { generation, ttl: millis(ttl), job: millis(job), waits }
    }

    /// Longer than those of others by its number in nanoseconds, so that the file shows whose a lease is.
    fn lease(self) -> Duration {
        self.ttl + Duration::from_nanos(self.generation.into())
    }
}

// ---- what it leaves behind ----

/// What a worker process was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A handler begins.
    Start,
    /// A handler is about to return.
    End,
    /// A settlement was sent, and waits on its way.
    Sent,
}

/// One line of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) what: What,
    pub(super) generation: u32,
    pub(super) job: i64,
    pub(super) token: i64,
    pub(super) at: u64,
}

/// All lines so far.
pub(super) fn log(file: &Path) -> Vec<Line> {
    let log = std::fs::read_to_string(beside(file, "log")).unwrap_or_default();
    // What is being written may be there in part.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        let mut words = line.split(' ');
        let what = match words.next() {
            Some("Start") => What::Start,
            Some("End") => What::End,
            Some("Sent") => What::Sent,
            _ => panic!("no line of ours: {line:?}"),
        };
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok()).expect("a number of ours");
        let (generation, job, token, at) = (number(), number(), number(), number());
        let generation = u32::try_from(generation).expect("a number of ours");
        Line { what, generation, job, token, at: at.unsigned_abs() }
    };
    whole.lines().map(line).collect()
}

/// What a worker process said at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) done: u64,
    pub(super) lost: u64,
    pub(super) stale: u64,
}

fn beside(file: &Path, name: &str) -> PathBuf {
    file.with_extension(name)
}

// ---- in the process ----

/// The worker process itself, as its parts see it.
struct Myself {
    file: PathBuf,
    manner: Manner,
    log: std::fs::File,
}

impl Myself {
    fn note(&self, what: What, tag: Tag) {
        let (job, token) = (tag.key, tag.token);
        let line = format!("{what:?} {} {job} {token} {}\n", self.manner.generation, wall_clock());
        (&self.log).write_all(line.as_bytes()).expect("written, whole: it is short");
    }

    fn beside(&self, name: &str) -> PathBuf {
        beside(&self.file, &format!("{name}-{}", self.manner.generation))
    }

    async fn told(&self, name: &str) {
        let path = self.beside(name);
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn run(&self, context: &Context) {
        self.note(What::Start, context.tag());
        match self.manner.waits {
            Waits::InJobs => self.told("go").await,
            _ if self.beside("hurry").exists() => tokio::task::yield_now().await,
            _ => tokio::time::sleep(self.manner.job).await,
        }
        self.note(What::End, context.tag());
    }
}

/// Not a test but the worker process, unless [`FILE`] is not set.
#[test]
fn worker_process() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let file = PathBuf::from(file);
    let manner = Manner::decode(&std::env::var(MANNER).expect("it was started by us"));
    let log = OpenOptions::new().append(true).create(true).open(beside(&file, "log")).expect("a log");
    let myself = Arc::new(Myself { file, manner, log });
    let runner = myself.clone();
    let registry = Registry::new().handle_raw("kind", move |context: Context| {
        let runner = runner.clone();
        async move { runner.run(&context).await }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        // All but the lease's time as it is by default.
        let jobs = Sqlite::builder(&myself.file).lease_ttl(manner.lease()).open().expect("the file");
        let mut builder = match manner.waits {
            Waits::InSettling => {
                let slow = SlowOnItsWay { jobs: jobs.clone(), myself: myself.clone() };
                Worker::builder(Intake::fixed(Arc::new(slow)).renewed_by_fixed(Arc::new(jobs)), registry)
            }
            _ => Worker::builder(jobs.intake(), registry),
        };
        if manner.waits == Waits::InSettling {
            // It is to wait for us and not to give up.
            let mut patient = ReconnectPolicy::default();
            patient.call_timeout = super::LIMIT * 2;
            builder = builder.reconnect(patient);
        }
        let worker = builder.max_concurrent_jobs(SLOTS).build().expect("good settings");
        let shutdown = Shutdown::new();
        let stop = async {
            myself.told("stop").await;
            shutdown.stop();
        };
        let (report, ()) = tokio::join!(worker.run(shutdown.clone()), stop);
        let stats = report.stats;
        let text = format!("{} {} {}", stats.done, stats.lost, stats.stale);
        std::fs::write(myself.beside("report"), text).expect("written");
    });
}

/// Settlements that are a while on their way to the file: what a worker sends while it has the lease can come after that.
struct SlowOnItsWay {
    jobs: Sqlite,
    myself: Arc<Myself>,
}

impl SlowOnItsWay {
    async fn carry(&self, settled: &[Settled]) {
        settled.iter().for_each(|settled| self.myself.note(What::Sent, settled.tag));
        self.myself.told("go").await;
    }
}

#[async_trait]
impl Source for SlowOnItsWay {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.jobs.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.carry(settled).await;
        self.jobs.settle(settled).await
    }

    fn fuses(&self) -> bool {
        self.jobs.fuses()
    }

    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        self.carry(settled).await;
        self.jobs.exchange(settled, wanted).await
    }
}

// ---- from outside ----

/// A worker process; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    file: PathBuf,
    pub(super) generation: u32,
}

impl Process {
    pub(super) fn start(file: &Path, manner: Manner) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
        command.args(["--exact", "fleet::process::worker_process", "--nocapture"]);
        command.env(FILE, file).env(MANNER, manner.encode());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        Self { child, file: file.to_owned(), generation: manner.generation }
    }

    /// When this returns nothing that it could have done is left to come.
    pub(super) fn kill(&mut self) {
        assert!(self.child.try_wait().expect("it is ours").is_none(), "it has ended by itself");
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// When this returns each of its threads stands still.
    pub(super) async fn stop(&mut self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let stat =
                std::fs::read_to_string(task.expect("a thread").path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        until("it stands still", || std::fs::read_dir(&tasks).expect("a Linux").all(stands)).await;
    }

    pub(super) fn wake(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        assert!(self.child.try_wait().expect("it is ours").is_none(), "it has ended by itself");
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        kill_process(id, signal).expect("it is ours");
    }

    /// What it waits for ([`Waits`]) has come.
    pub(super) fn go_on(&self) {
        self.tell("go");
    }

    /// Its jobs are to take no time from now on.
    pub(super) fn hurry(&self) {
        self.tell("hurry");
    }

    /// Tells it to stop, and waits until it has.
    pub(super) async fn end(mut self) -> Ended {
        self.tell("stop");
        until("it ends", || self.child.try_wait().expect("it is ours").is_some()).await;
        let report = beside(&self.file, &format!("report-{}", self.generation));
        let report = std::fs::read_to_string(report).expect("its report");
        let numbers: Vec<u64> = report.split(' ').map(|word| word.parse().expect("a number")).collect();
        Ended { done: numbers[0], lost: numbers[1], stale: numbers[2] }
    }

    fn tell(&self, word: &str) {
        let path = beside(&self.file, &format!("{word}-{}", self.generation));
        std::fs::write(path, "").expect("a file of our own");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
