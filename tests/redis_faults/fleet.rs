//! Worker processes are killed, and put to sleep and woken. They are this very test program, run again with [`URL`] set.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tidegate::backend::redis::Redis;
use tidegate::{Context, Registry, Shutdown, Worker};
use tokio::time::Instant;

use crate::books::{Books, KIND, number, size};
use crate::crew::{JOB, TTL, drained, open, processed, settled_once, until};
use crate::redis::{Options, Process, RedisServer};

/// The server of a worker process.
const URL: &str = "TIDEGATE_TEST_URL";
/// Its file, which gets a line for each run of a job.
const LOG: &str = "TIDEGATE_TEST_LOG";
/// Set if it is to have all defaults.
const DEFAULTS: &str = "TIDEGATE_TEST_DEFAULTS";

const SLOTS: usize = 20;

/// The server of this process if it is a worker process, and handlers that note each run in its file. With `hang` first
/// attempts never end.
pub(crate) fn told_to_work(hang: bool) -> Option<(String, Registry)> {
    let url = std::env::var(URL).ok()?;
    let log = std::env::var_os(LOG).expect("both are set");
    let log = Arc::new(OpenOptions::new().append(true).create(true).open(log).expect("a log"));
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        let log = log.clone();
        async move {
            let first = hang && context.attempt() == 1;
            tokio::time::sleep(if first { Duration::from_secs(3600) } else { JOB }).await;
            let line = format!("{} {}\n", number(context.payload()), context.attempt());
            (&*log).write_all(line.as_bytes()).expect("written, whole: it is short");
        }
    });
    Some((url, registry))
}

/// This very test program, to run the one test that is named and does what a worker process does.
pub(crate) fn works(test: &str, server: &RedisServer, log: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", test, "--nocapture"]);
    command.env(URL, server.url()).env(LOG, log);
    command
}

/// Not a test but the worker process, unless [`URL`] is not set.
#[test]
fn worker_process() {
    let defaults = std::env::var_os(DEFAULTS).is_some();
    // Those of a worker that is to be killed never end.
    let Some((url, registry)) = told_to_work(defaults) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let jobs = if defaults { Redis::open(&url).expect("a good URL") } else { open(&url) };
        let worker = Worker::builder(jobs.intake(), registry).max_concurrent_jobs(SLOTS).build();
        let report = worker.expect("good settings").run(Shutdown::new()).await;
        panic!("nobody told it to stop: {report:?}");
    });
}

/// Three worker processes on a server, and where they note what they run.
struct Fleet {
    // Dropped in this order: the workers end before their server.
    workers: Vec<Process>,
    log: PathBuf,
    server: RedisServer,
}

impl Fleet {
    fn start(server: RedisServer) -> Self {
        let log = server.folder().file("runs");
        let workers = (0..3).map(|_| worker(&server, &log, false)).collect();
        Self { workers, log, server }
    }

    fn replace(&mut self, place: usize) {
        self.workers[place].kill();
        self.workers[place] = worker(&self.server, &self.log, false);
    }

    /// Waits until so many jobs were settled.
    async fn until_settled(&self, jobs: u64) {
        until("jobs are settled", async || processed(&self.server) >= jobs as i64).await;
    }
}

fn worker(server: &RedisServer, log: &Path, defaults: bool) -> Process {
    let mut command = works("fleet::worker_process", server, log);
    if defaults {
        command.env(DEFAULTS, "1");
    }
    Process::start(&mut command, &server.folder().file("worker"))
}

#[tokio::test]
async fn nothing_is_lost_when_workers_are_killed_and_only_what_was_in_flight_runs_twice() {
    let (jobs, kills) = size((20_000, 8), (100_000, 20));
    let Some(server) = Options::new().start() else { return };
    let (store, books) = (open(&server.url()), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let mut fleet = Fleet::start(server);
    for kill in 1..=kills {
        fleet.until_settled(jobs * kill / (kills + 1)).await;
        fleet.replace(kill as usize % 3);
    }
    assert!(processed(&fleet.server) < jobs as i64, "all was done before the last kill: this shows nothing");
    drained(&store).await;
    books.take_in(&fleet.log);
    let balance = settled_once(&fleet.server, &books, "workers killed");
    assert_eq!(processed(&fleet.server), jobs as i64, "each job is settled once");
    assert!(balance.lapsed > 0, "no worker had a job when it was killed: this shows nothing");
    let most = kills as usize * SLOTS;
    assert!(balance.again <= most, "{} ran twice, more than were in flight: {most}", balance.again);
    assert_eq!(balance.unexplained, 0, "each because of a lease that had run out");
}

/// A worker that sleeps for longer than its leases run has lost them: what it settles when it wakes changes nothing.
#[tokio::test]
async fn workers_that_wake_after_their_leases_have_ended_settle_nothing() {
    let (jobs, naps) = size((20_000, 2), (100_000, 5));
    let Some(server) = Options::new().start() else { return };
    let (store, books) = (open(&server.url()), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let mut fleet = Fleet::start(server);
    for nap in 1..=naps {
        fleet.until_settled(jobs * nap / (naps + 1)).await;
        let sleeper = &mut fleet.workers[nap as usize % 3];
        sleeper.signal(Signal::STOP);
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
        sleeper.signal(Signal::CONT);
        books.enqueue(&store, jobs + nap * 1_000..jobs + (nap + 1) * 1_000).await;
    }
    drained(&store).await;
    books.take_in(&fleet.log);
    let balance = settled_once(&fleet.server, &books, "workers asleep");
    assert_eq!(processed(&fleet.server), (jobs + naps * 1_000) as i64, "each job is settled once");
    assert!(balance.again <= naps as usize * SLOTS, "{balance:?}");
    assert_eq!(balance.unexplained, 0, "{balance:?}");
}

#[tokio::test]
async fn jobs_of_a_killed_worker_run_again_within_35_seconds_with_default_settings() {
    let Some(server) = Options::new().start() else { return };
    let (store, books) = (Redis::open(&server.url()).expect("a good URL"), Books::default());
    books.enqueue(&store, 0..SLOTS as u64).await;
    let log = server.folder().file("runs");
    let mut doomed = worker(&server, &log, true);
    until("all of them run", async || server.command(&["ZCARD", "tidegate:leases"]).number() == SLOTS as i64)
        .await;
    // A lease that was renewed a moment ago runs longest; these are fresh.
    doomed.kill();
    let killed = Instant::now();
    let _other = worker(&server, &log, true);
    drained(&store).await;
    let took = killed.elapsed();
    println!("jobs of a killed worker ran again after {took:?}");
    books.take_in(&log);
    let balance = settled_once(&server, &books, "a worker with default settings killed");
    assert_eq!(balance.unexplained, 0);
    assert!(took < Duration::from_secs(35), "{took:?}");
}
