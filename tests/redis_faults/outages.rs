//! P8: the server goes away and comes back, often; the worker stays, does next to nothing meanwhile, and goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{
    ConnectionState, Context, Enqueue as _, Inspect as _, NewJob, ReconnectPolicy, Registry, StopCause,
    Worker, WorkerBuilder,
};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::alone::{Sample, is_alone, judge, time_on_cpu};
use crate::books::{Books, KIND, size};
use crate::crew::{PATIENCE, registry, start, until, until_ran};
use crate::faults::running::Running;
use crate::redis::{Folder, Options, RedisServer};

/// A job of this kind runs until it is told to end.
const LONG: &str = "long";

fn store(server: &RedisServer) -> Redis {
    Redis::open(&server.url()).expect("a good URL")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A worker, its server, and what a test does with both.
struct Scene {
    running: Running,
    store: Redis,
    books: Books,
    /// How many long jobs may have ended.
    may_end: watch::Sender<u64>,
    server: RedisServer,
}

impl Scene {
    fn start(server: RedisServer, set: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let (books, may_end) = (Books::default(), watch::Sender::new(0));
        let gate = may_end.clone();
        let registry = registry(&books).handle_raw(LONG, move |context: Context| {
            let mut gate = gate.subscribe();
            async move {
                let number = crate::books::number(context.payload());
                let _ = gate.wait_for(|ended| *ended > number).await;
            }
        });
        let store = store(&server);
        // A handle of its own, as in another process.
        let intake = crate::outages::store(&server).intake();
        let running = start(set(Worker::builder(intake, registry).name("scene")));
        Self { running, store, books, may_end, server }
    }

    /// A job that runs until it is told to, and a few that don't.
    async fn begin(&self, number: u64) {
        let long = NewJob::new(LONG, format!("[{number}]"));
        self.store.enqueue(vec![long]).await.expect("enqueued");
        self.books.enqueue(&self.store, number * 10..number * 10 + 5).await;
        until("the long one runs alone", async || {
            self.books.runs() as u64 >= number * 6 + 5
                && self.running.handle.stats().in_flight == 1
                && self.store.counts().await.is_ok_and(|counts| counts.leased == 1 && counts.ready == 0)
        })
        .await;
    }

    /// The server goes, or falls silent, which is noticed by a settlement.
    fn goes(&mut self, number: u64) {
        if is_silent(number) {
            self.server.pause();
        } else {
            self.server.kill();
        }
        self.may_end.send_replace(number + 1);
    }

    /// The server is there again. How long it then took until a job ran.
    async fn comes_back(&mut self, number: u64) -> Duration {
        tokio::task::block_in_place(|| {
            if is_silent(number) {
                self.server.resume();
            } else {
                self.server.restart();
            }
        });
        let back = Instant::now();
        let (before, accepted) = (self.books.runs(), self.books.balance().accepted);
        // The first call may find the connection of before.
        until("it is accepted", async || {
            self.books.enqueue(&self.store, number * 10 + 5..number * 10 + 6).await;
            self.books.balance().accepted > accepted
        })
        .await;
        until_ran(&self.books, before + 1).await;
        let took = back.elapsed();
        until("all is settled", async || self.store.counts().await.is_ok_and(|left| left.unfinished() == 0))
            .await;
        took
    }

    /// What there is once the worker waits for work with all its connections.
    async fn sample(&self, clients: usize) -> Sample {
        until("its connections are there", async || self.server.clients().len() == clients).await;
        Sample::take(self.server.clients().len(), 0)
    }
}

/// One outage in five: the server is stopped and continued, and nobody tells its clients.
fn is_silent(number: u64) -> bool {
    number % 5 == 4
}

/// After that silence is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// A log file for the whole process.
fn log(folder: &Folder) -> PathBuf {
    let path = folder.file("log");
    let file = Mutex::new(File::create(&path).expect("the folder is there"));
    tracing_subscriber::fmt().with_ansi(false).with_writer(file).init();
    path
}

fn lines(log: &Path, part: &str) -> usize {
    std::fs::read_to_string(log).expect("a log").lines().filter(|line| line.contains(part)).count()
}

/// Of the worker: one that takes and settles, one that waits for its only queue, one that renews leases (once it has
/// renewed any). And the test's own.
const CONNECTIONS: usize = 4;

#[test]
fn outages_heal_and_leave_nothing_behind() {
    if !is_alone("outages::outages_heal_and_leave_nothing_behind") {
        return;
    }
    let (outages, long_one) = size((20, 3), (200, 60));
    let Some(server) = Options::new().append_only().start() else { return };
    let folder = Folder::new();
    let log = log(&folder);
    let runtime = runtime();
    runtime.block_on(async {
        let mut policy = ReconnectPolicy::default();
        policy.call_timeout = CALL_TIMEOUT;
        let queues = tidegate::Queues::strict(["default"]);
        let mut scene = Scene::start(server, |worker| worker.queues(queues).reconnect(policy));
        let (mut samples, mut slowest) = (Vec::new(), Duration::ZERO);
        for number in 0..outages {
            scene.begin(number).await;
            scene.goes(number);
            if number == 0 {
                // What it does when it has just lost the connection is done by then.
                tokio::time::sleep(Duration::from_millis(200)).await;
                let before = time_on_cpu();
                tokio::time::sleep(Duration::from_secs(long_one)).await;
                let spent = time_on_cpu() - before;
                println!("an outage of {long_one} s took {spent:?} on a CPU");
                assert!(spent < Duration::from_secs(long_one) / 100, "more than 1 %: {spent:?}");
            }
            let mut state = scene.running.handle.connection();
            let down = |state: &ConnectionState| matches!(state, ConnectionState::Down { .. });
            tokio::time::timeout(PATIENCE, state.wait_for(down)).await.expect("in time").expect("it runs");
            slowest = slowest.max(scene.comes_back(number).await);
            let renewed = scene.server.clients().len();
            samples.push(scene.sample(renewed.min(CONNECTIONS)).await);
            let (down, back) = (lines(&log, "connection is down"), lines(&log, "connection is back"));
            let most = 2 * (number as usize + 1);
            assert!(down <= most && back <= down, "{down} lines of loss, {back} of return after {number}");
        }
        println!("{outages} outages; after the server's return a job ran within {slowest:?}");
        assert!(slowest < Duration::from_secs(2), "after {slowest:?}");
        let down = lines(&log, "connection is down");
        assert!(down >= outages as usize, "each loss is told once: {down}");
        let of_connections = down + lines(&log, "connection is back");
        let all = std::fs::read_to_string(&log).expect("a log");
        let others: Vec<_> = all.lines().filter(|line| !line.contains("connection is ")).collect();
        assert!(of_connections > 0 && others.is_empty(), "and nothing else is: {others:#?}");
        println!("{:?} ... {:?}", samples[2], samples[samples.len() - 1]);
        judge(&samples[2..]).expect("nothing is left of an outage");
        let ended = scene.running.stop().await;
        let stats = &ended.report.stats;
        let counts = (stats.done, stats.stale, stats.lost);
        assert_eq!(counts, (outages * 7, 0, 0), "{}", ended.report);
    });
}

/// Leases that are renewed meanwhile are renewed again afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_keeps_its_lease_over_an_outage_that_is_shorter() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    let jobs = Redis::builder(&server.url()).lease_ttl(Duration::from_secs(6)).open().expect("good settings");
    let (ended, gate) = (Books::default(), watch::Sender::new(false));
    let (books, may_end) = (ended.clone(), gate.clone());
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        let (books, mut may_end) = (books.clone(), may_end.subscribe());
        async move {
            let _ = may_end.wait_for(|open| *open).await;
            books.ran(crate::books::number(context.payload()), context.attempt());
        }
    });
    let running = start(Worker::builder(jobs.intake(), registry));
    ended.enqueue(&jobs, 0..5).await;
    until("they run", async || running.handle.stats().in_flight == 5).await;
    let lease_of = |server: &RedisServer| {
        let first = server.command(&["ZRANGE", "tidegate:leases", "0", "0", "WITHSCORES"]).texts();
        first[1].parse::<u64>().expect("when it runs out")
    };
    let begun = lease_of(&server);
    for _ in 0..2 {
        let before = lease_of(&server);
        tokio::task::block_in_place(|| {
            server.kill();
            server.restart();
        });
        until("they are renewed", async || lease_of(&server) > before).await;
    }
    assert!(lease_of(&server) >= begun + 2_000, "two renewals, each after a third of the time");
    gate.send_replace(true);
    until("all are settled", async || jobs.counts().await.is_ok_and(|left| left.unfinished() == 0)).await;
    let report = running.stop().await.report;
    assert_eq!((report.stats.done, report.stats.stale), (5, 0), "{report}");
    assert_eq!((ended.balance().lost, ended.balance().again), (0, 0), "{ended:?}");
}

/// A server that was silent for a while still has the connections that were given up meanwhile, unless they are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_given_up_are_closed() {
    let Some(mut server) = Options::new().start() else { return };
    let ttl = Duration::from_millis(1_500);
    let open =
        || Redis::builder(&server.url()).lease_ttl(ttl).crash_limit(1_000).open().expect("good settings");
    let (store, books, mut policy) = (open(), Books::default(), ReconnectPolicy::default());
    policy.call_timeout = Duration::from_millis(300);
    // One job that never ends, so that a lease is renewed all the time.
    let registry = registry(&books).handle_raw(LONG, |_: Context| std::future::pending::<()>());
    let worker = Worker::builder(open().intake(), registry).reconnect(policy);
    let worker = worker.fetch_wait(Duration::from_millis(100)).shutdown_deadline(Duration::from_secs(1));
    let running = start(worker.queues(tidegate::Queues::strict(["default"])));
    store.enqueue(vec![NewJob::new(LONG, "[0]")]).await.expect("enqueued");
    let mut state = running.handle.connection();
    for number in 0..size(8, 50) {
        let before = books.runs();
        until("a job runs", async || {
            books.enqueue(&store, number..number + 1).await;
            books.runs() > before
        })
        .await;
        server.pause();
        let down = |state: &ConnectionState| matches!(state, ConnectionState::Down { .. });
        tokio::time::timeout(PATIENCE, state.wait_for(down)).await.expect("in time").expect("it runs");
        // Long enough for a renewal to be tried, too.
        tokio::time::sleep(ttl / 3).await;
        server.resume();
        until("its connections are as many as before", async || server.clients().len() <= CONNECTIONS).await;
    }
    drop(store);
    running.stop().await;
    until("none is left", async || server.clients().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_during_an_outage_ends_in_time() {
    for frozen in [false, true] {
        let Some(mut server) = RedisServer::start() else { return };
        let url = server.url();
        let books = Books::default();
        let jobs = Redis::open(&url).expect("a good URL");
        let slow =
            Registry::new().handle_raw(KIND, |_: Context| tokio::time::sleep(Duration::from_millis(50)));
        let deadline = Duration::from_secs(2);
        let running = start(Worker::builder(jobs.intake(), slow).shutdown_deadline(deadline));
        books.enqueue(&Redis::open(&url).expect("a good URL"), 0..200).await;
        until("some run", async || running.handle.stats().in_flight > 0).await;
        // Gone, or there and silent.
        if frozen {
            server.pause()
        } else {
            server.kill()
        }
        let ended = running.stop().await;
        assert!(matches!(ended.report.cause, StopCause::Shutdown), "{}", ended.report);
        assert!(ended.took < deadline + Duration::from_secs(1), "{:?}", ended.took);
        if frozen {
            server.resume();
        }
    }
}
