//! P4 and P5 from outside: worker processes on one file are killed, and stopped and woken, at random moments.
//!
//! The workers are this very test program, run again with [`FILE`] set.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{Context, Enqueue, Inspect, NewJob, Registry, Shutdown, Worker};
use tokio::time::Instant;

use crate::folder::Folder;

/// The file of a worker process; beside it, `log` gets a line for each run of a job.
const FILE: &str = "TIDEGATE_TEST_FILE";
const SLOTS: usize = 20;
const TTL: Duration = Duration::from_secs(1);

fn open(file: &Path) -> Sqlite {
    // A process that is killed loses nothing either way, and this is not about the disk.
    Sqlite::builder(file).lease_ttl(TTL).durability(Durability::Normal).open().expect("the file")
}

/// Not a test but the worker process, unless [`FILE`] is not set.
#[test]
fn worker_process() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let file = Path::new(&file);
    let log = OpenOptions::new().append(true).create(true).open(file.with_extension("log")).expect("a log");
    let log = std::sync::Arc::new(log);
    let registry = Registry::new().handle_raw("kind", move |context: Context| {
        let log = log.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let line = format!("{} {}\n", context.job().id, context.attempt());
            (&*log).write_all(line.as_bytes()).expect("written, whole: it is short");
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let worker = Worker::builder(open(file).intake(), registry).max_concurrent_jobs(SLOTS).build();
        let report = worker.expect("good settings").run(Shutdown::new()).await;
        panic!("nobody told it to stop: {report:?}");
    });
}

/// One worker process; killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(file: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
        command.args(["--exact", "fleet::worker_process", "--nocapture"]).env(FILE, file);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.expect("there is a `kill`").success(), "its process is there to be sent {name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Some moment, different each time.
fn random(from: u64, to: u64) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    Duration::from_millis(from + RandomState::new().hash_one(0) % (to - from))
}

/// How often each job was run, by its id.
fn runs(file: &Path) -> HashMap<String, usize> {
    let log = std::fs::read_to_string(file.with_extension("log")).expect("a log");
    let mut runs = HashMap::new();
    for line in log.lines() {
        let id = line.split(' ').next().expect("an id");
        *runs.entry(id.to_owned()).or_default() += 1;
    }
    runs
}

async fn enqueue(jobs: &Sqlite, count: usize) {
    for batch in (0..count).collect::<Vec<_>>().chunks(1_000) {
        let batch = batch.iter().map(|number| NewJob::new("kind", format!("{number}")));
        jobs.enqueue(batch.collect()).await.expect("enqueued");
    }
}

async fn unfinished(jobs: &Sqlite) -> u64 {
    jobs.counts().await.expect("counted").unfinished()
}

async fn drained(jobs: &Sqlite, within: Duration) {
    let start = Instant::now();
    while unfinished(jobs).await > 0 {
        assert!(start.elapsed() < within, "left over: {:?}", jobs.counts().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_when_workers_are_killed_and_only_what_was_in_flight_runs_twice() {
    const JOBS: usize = 20_000;
    const KILLS: usize = 10;
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = open(&file);
    enqueue(&jobs, JOBS).await;
    let mut workers = [Process::start(&file), Process::start(&file)];
    for kill in 0..2 * KILLS {
        tokio::time::sleep(random(50, 300)).await;
        let worker = &mut workers[kill % 2];
        worker.signal("KILL");
        *worker = Process::start(&file);
    }
    assert!(unfinished(&jobs).await > 0, "all was done before the last kill: this shows nothing");
    drained(&jobs, Duration::from_secs(60)).await;
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.done, counts.dead), (JOBS as u64, 0), "each job is settled once");
    let runs = runs(&file);
    assert_eq!(runs.len(), JOBS, "each was run");
    let again: usize = runs.values().map(|runs| runs - 1).sum();
    assert!(
        again <= 2 * KILLS * SLOTS,
        "{again} runs too many: more than were in flight at {KILLS} kills each"
    );
}

#[tokio::test]
async fn what_a_killed_worker_had_runs_again_when_its_leases_end() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = open(&file);
    enqueue(&jobs, 2_000).await;
    let worker = Process::start(&file);
    while jobs.counts().await.expect("counted").leased == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(worker);
    let killed = Instant::now();
    let _other = Process::start(&file);
    drained(&jobs, TTL + Duration::from_secs(5) + Duration::from_secs(5)).await;
    assert!(killed.elapsed() < TTL + Duration::from_secs(10));
}

/// A worker that sleeps for longer than its leases run has lost them: what it settles when it wakes changes nothing.
#[tokio::test]
async fn a_worker_that_wakes_after_its_leases_have_ended_settles_nothing() {
    const JOBS: usize = 4_000;
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = open(&file);
    enqueue(&jobs, JOBS).await;
    let (sleeper, _other) = (Process::start(&file), Process::start(&file));
    for _ in 0..2 {
        tokio::time::sleep(random(100, 300)).await;
        sleeper.signal("STOP");
        tokio::time::sleep(TTL * 2).await;
        sleeper.signal("CONT");
    }
    drained(&jobs, Duration::from_secs(60)).await;
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.done, counts.dead), (JOBS as u64, 0), "each job is settled once");
    let runs = runs(&file);
    assert_eq!(runs.len(), JOBS);
    let again: usize = runs.values().map(|runs| runs - 1).sum();
    // Who is put to sleep in the middle of a transaction keeps the file locked, so the other loses its leases too.
    assert!(again <= 2 * 2 * SLOTS, "{again} ran twice: more than both had, each time");
}
