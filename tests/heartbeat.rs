//! P9: leases are renewed from a thread that the workload can't stall, and who has lost one is told.
//!
//! Where the promise is about threads that are blocked, they are blocked, under the real clock; the rest runs
//! under the paused one, to the millisecond.

mod faults;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use faults::jobs::{Gate, KIND, Tally, finish_elsewhere, push};
use faults::left;
use faults::log::Log;
use faults::running::{Ended, Running, balanced, patiently};
use faults::server::{Fault, Server, Verb};
use tidegate::{
    CancelReason, Context, Dispatcher, Error, ErrorKind, Inspect as _, Intake, JobQuery, JobState,
    Manage as _, Memory, NewJob, Outcome, Registry, Renew, Renewal, Shutdown, Tag, Worker, WorkerBuilder,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};
use tracing::Level;

fn store(lease: Duration) -> Memory {
    Memory::builder().lease_ttl(lease).build().expect("the settings are good")
}

fn worker(server: &Server, registry: Registry) -> WorkerBuilder {
    Worker::builder(server.intake(), registry).dispatcher(Dispatcher::Shared).seed(7)
}

fn start(builder: WorkerBuilder) -> Running {
    Running::start(builder.build().expect("the settings are good"))
}

/// Each job lasts as many seconds as its payload says.
fn lasting(tally: &Tally) -> Registry {
    let tally = tally.clone();
    Registry::new().handle_raw(KIND, move |context: Context| {
        tally.begins(&context);
        let seconds = String::from_utf8_lossy(context.payload()).parse().expect("payloads are seconds");
        sleep(Duration::from_secs(seconds))
    })
}

fn push_lasting(memory: &Memory, count: usize, seconds: u64) {
    for _ in 0..count {
        memory.push(NewJob::new(KIND, seconds.to_string())).expect("there is room");
    }
}

/// When each job was told to stop, and why.
type Told = Arc<std::sync::Mutex<Vec<(Instant, CancelReason)>>>;

/// A handler that waits until it is told to stop, notes it, and claims to be done.
fn until_told(tally: &Tally) -> (Registry, Told) {
    let (begun, told) = (tally.clone(), Told::default());
    let notes = told.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        let notes = notes.clone();
        async move {
            context.cancelled().await;
            let reason = context.cancel_reason().expect("it was cancelled");
            notes.lock().expect("nothing panics under this lock").push((Instant::now(), reason));
        }
    });
    (registry, told)
}

// ---- threads that are blocked ----

/// Three leases' lives.
const BLOCK: Duration = Duration::from_millis(3100);

/// Runs five jobs on `runtime`, each of which blocks its thread with a sleep; as many as there are threads
/// block them all, and the first blocks for [`BLOCK`].
fn blocked_throughout(runtime: &Runtime, place: Dispatcher) -> (Ended, Server, Tally) {
    let (server, tally) = (Server::new(store(Duration::from_secs(1))), Tally::default());
    let begun = tally.clone();
    let threads = runtime.metrics().num_workers();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        let long = begun.len() <= threads;
        async move { std::thread::sleep(if long { BLOCK } else { Duration::from_millis(1) }) }
    });
    let builder = worker(&server, registry).dispatcher(place).name("deep");
    let worker = builder.build().expect("the settings are good");
    let shutdown = Shutdown::new();
    push(server.memory(), 5);
    let (report, asked) = runtime.block_on(async {
        tokio::join!(worker.run(shutdown.clone()), async {
            server.memory().drained().await;
            shutdown.stop();
            Instant::now()
        })
    });
    balanced(&report.stats);
    (Ended { report, took: asked.elapsed() }, server, tally)
}

fn loses_no_lease_to_blocked_threads(runtime: &Runtime) {
    let (ended, server, tally) = blocked_throughout(runtime, Dispatcher::OwnThread);
    let (stats, report) = (ended.report.stats, &ended.report);
    assert_eq!((stats.done, stats.lost, stats.stale), (5, 0, 0), "{report}");
    assert_eq!(tally.len(), 5, "each ran once: {:?}", tally.begun());
    let renewals = server.calls(Verb::Renew);
    assert!(renewals.len() >= 6, "{} renewals in three leases' lives", renewals.len());
    for pair in renewals.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap < Duration::from_millis(900), "the heartbeat paused for {gap:?}");
    }
}

#[test]
fn no_lease_is_lost_while_the_only_runtime_thread_is_blocked() {
    loses_no_lease_to_blocked_threads(
        &Builder::new_current_thread().enable_all().build().expect("a runtime"),
    );
}

#[test]
fn no_lease_is_lost_while_all_of_several_runtime_threads_are_blocked() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    loses_no_lease_to_blocked_threads(&runtime);
}

/// What the two tests above are worth: the same jobs under a heartbeat on the threads that they block.
#[test]
fn a_heartbeat_that_shares_the_jobs_thread_loses_leases_to_a_block() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (ended, _, tally) = blocked_throughout(&runtime, Dispatcher::Shared);
    assert!(ended.report.stats.lost + ended.report.stats.stale > 0, "{}", ended.report);
    assert!(tally.len() > 5, "what was lost ran again: {:?}", tally.begun());
}

#[test]
fn the_heartbeat_makes_and_uses_its_connection_on_its_own_thread() {
    let (server, tally, gate) =
        (Server::new(store(Duration::from_millis(300))), Tally::default(), Gate::default());
    let _opener = gate.opener();
    push(server.memory(), 1);
    let (begun, blocked) = (tally.clone(), gate.clone());
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        blocked.block();
        async {}
    });
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let worker = worker(&server, registry).dispatcher(Dispatcher::OwnThread).name("mine");
    let worker = worker.build().expect("the settings are good");
    let shutdown = Shutdown::new();
    let (report, ()) = runtime.block_on(async {
        tokio::join!(worker.run(shutdown.clone()), async {
            server.called(Verb::Renew, 2).await; // and that although the only thread is blocked
            server.cut();
            server.called(Verb::ConnectHeartbeat, 2).await;
            gate.open();
            server.memory().drained().await;
            shutdown.stop();
        })
    });
    assert_eq!(report.stats.done, 1, "{report}");
    for verb in [Verb::ConnectHeartbeat, Verb::Renew] {
        for call in server.calls(verb) {
            assert_eq!(call.thread, "tidegate-hb-mine", "{verb:?}");
        }
    }
}

#[test]
fn both_threads_are_gone_when_run_returns() {
    let server = Server::new(store(Duration::from_millis(300)));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let threads = || left::threads_named("tidegate-brief") + left::threads_named("tidegate-hb-bri");
    for _ in 0..20 {
        push_lasting(server.memory(), 3, 0);
        let running = {
            let _there = runtime.enter();
            start(worker(&server, lasting(&Tally::default())).dispatcher(Dispatcher::OwnThread).name("brief"))
        };
        runtime.block_on(server.memory().drained());
        left::soon("both threads have their names", || threads() == 2);
        runtime.block_on(running.stop());
        // They were joined; the kernel may list them for a moment yet.
        left::soon("both threads are gone", || threads() == 0);
    }
}

/// Neither thread does anything while there is nothing to do: before the first job, or after.
#[test]
fn an_idle_worker_costs_nothing() {
    let server = Server::new(Memory::new());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let builder =
            worker(&server, lasting(&Tally::default())).dispatcher(Dispatcher::OwnThread).name("idle");
        let running = start(builder);
        server.called(Verb::Fetch, 1).await;
        for when in ["before the first job", "after it"] {
            sleep(Duration::from_millis(100)).await;
            let look = || ["tidegate-idle", "tidegate-hb-idl"].map(|thread| (thread, left::effort(thread)));
            let before = look();
            sleep(Duration::from_millis(500)).await;
            for ((thread, before), (_, after)) in before.into_iter().zip(look()) {
                let (woke, ran) = (after.0 - before.0, after.1 - before.1);
                // A long timer is waited for in a few steps.
                assert!(woke <= 3, "{when} {thread} woke {woke} times in half a second");
                assert!(ran < Duration::from_millis(5), "{when} {thread} ran for {ran:?} of half a second");
            }
            push_lasting(server.memory(), 1, 0);
            server.memory().drained().await;
        }
        running.stop().await;
    });
}

// ---- time ----

#[tokio::test(start_paused = true)]
async fn nothing_is_renewed_while_nothing_is_leased() {
    let server = Server::new(store(Duration::from_secs(3)));
    let running = start(worker(&server, lasting(&Tally::default())));
    patiently(sleep(Duration::from_secs(3600))).await;
    assert!(server.calls(Verb::Renew).is_empty() && server.calls(Verb::ConnectHeartbeat).is_empty());
    push_lasting(server.memory(), 10, 30);
    patiently(server.memory().drained()).await;
    let (while_leased, last) = (server.calls(Verb::Renew).len(), Instant::now());
    assert!(while_leased >= 25, "{while_leased} renewals in 30 s of leases of 3 s");
    patiently(sleep(Duration::from_secs(3600))).await;
    assert_eq!(server.calls(Verb::Renew).len(), while_leased);
    // An hour of waiting for work costs one fetch every ten seconds, and no more.
    let fetches = server.calls(Verb::Fetch).iter().filter(|call| call.at > last).count();
    assert!((355..=362).contains(&fetches), "{fetches} fetches in an hour");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn renewals_are_made_at_a_third_of_the_lease_and_for_all_at_once() {
    let server = Server::new(store(Duration::from_secs(9)));
    push_lasting(server.memory(), 100, 90);
    let tally = Tally::default();
    let running = start(worker(&server, lasting(&tally)).max_concurrent_jobs(100));
    patiently(server.memory().drained()).await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.lost), (100, 0), "{}", ended.report);
    let renewals = server.calls(Verb::Renew);
    assert!((29..=30).contains(&renewals.len()), "{} calls in 90 s", renewals.len());
    for call in &renewals {
        assert_eq!(call.tags.len(), 100, "all at once");
    }
    for pair in renewals.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!((Duration::from_secs(3)..=Duration::from_millis(3002)).contains(&gap), "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn leases_of_different_ages_are_renewed_in_few_batches() {
    let (server, tally) = (Server::new(store(Duration::from_secs(9))), Tally::default());
    let running = start(worker(&server, lasting(&tally)).max_concurrent_jobs(200));
    patiently(async {
        for number in 0..100 {
            push_lasting(server.memory(), 1, 60);
            tally.reaches(number + 1).await;
            sleep(Duration::from_millis(90)).await; // one lease every 90 ms, over a whole life of one
        }
        server.memory().drained().await;
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.lost), (100, 0), "{}", ended.report);
    // A batch holds all that are half-way to being due, so there are two in each third of a lease's life: in
    // the 69 s of this, some 46, and not the 2,000 that one by one would be.
    let renewals = server.calls(Verb::Renew).len();
    assert!(renewals <= 50, "{renewals} calls");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_is_noticed_when_trust_ends() {
    let (server, tally) = (Server::new(store(Duration::from_secs(6))), Tally::default());
    server.breaks(Verb::Renew, Fault::Hang);
    push(server.memory(), 4);
    let (registry, told) = until_told(&tally);
    // The second attempt is not to begin: the renewal of the first would hang still.
    let running = start(worker(&server, registry).max_concurrent_jobs(4));
    let leased = Instant::now();
    patiently(async {
        tally.reaches(4).await;
        running.handle.quiet();
        while running.handle.stats().in_flight > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let told = told.lock().expect("nothing panics under this lock").clone();
    assert_eq!(told.len(), 4);
    for (at, reason) in told {
        assert_eq!(reason, CancelReason::LeaseLost);
        // A tenth before the lease's end.
        let after = at - leased;
        assert!(
            (Duration::from_millis(5400)..=Duration::from_millis(5403)).contains(&after),
            "told after {after:?}"
        );
    }
    assert!(server.calls(Verb::Settle).is_empty(), "what is lost is not settled, whatever the job says");
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.lost, ended.report.stats.done), (4, 0), "{}", ended.report);
    assert_eq!(finish_elsewhere(server.memory()).await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_once_costs_no_lease() {
    let (server, tally) = (Server::new(store(Duration::from_secs(60))), Tally::default());
    server.next(Verb::Renew, [Some(Fault::Hang)]);
    push_lasting(server.memory(), 4, 300);
    let running = start(worker(&server, lasting(&tally)));
    patiently(server.memory().drained()).await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.lost), (4, 0), "{}", ended.report);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_lost_and_healed_in_time_costs_no_lease() {
    let (server, tally) = (Server::new(store(Duration::from_secs(9))), Tally::default());
    push_lasting(server.memory(), 4, 60);
    let running = start(worker(&server, lasting(&tally)));
    patiently(async {
        for round in 1..=5 {
            server.called(Verb::Renew, 2 * round).await;
            server.goes_down();
            // It is renewed every three seconds, and trusted for eight.
            sleep(Duration::from_millis(5500)).await;
            server.comes_back();
        }
        server.memory().drained().await;
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.lost), (4, 0), "{}", ended.report);
    assert_eq!(tally.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_has_is_noticed_with_the_next_renewal() {
    let (memory, tally) = (store(Duration::from_secs(9)), Tally::default());
    push(&memory, 2);
    let (renewer, intake) = Answers::beside(&memory);
    let (registry, told) = until_told(&tally);
    let running = start(Worker::builder(intake, registry).dispatcher(Dispatcher::Shared));
    patiently(async {
        tally.reaches(2).await;
        running.handle.quiet();
        renewer.says(SECOND, Renewal::Lost);
        let asked = Instant::now();
        while running.handle.stats().lost == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(asked.elapsed() <= Duration::from_millis(3005), "it took {:?}", asked.elapsed());
    })
    .await;
    let told = told.lock().expect("nothing panics under this lock").clone();
    assert_eq!(told.iter().map(|(_, reason)| *reason).collect::<Vec<_>>(), [CancelReason::LeaseLost]);
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.lost, ended.report.stats.done), (1, 1), "{}", ended.report);
    assert_eq!(memory.counts().await.expect("memory counts").done, 1, "the lost one was not settled");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_request_comes_with_the_next_renewal() {
    let (server, tally) = (Server::new(store(Duration::from_secs(9))), Tally::default());
    push(server.memory(), 3);
    let begun = tally.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        async move {
            tokio::select! {
                () = context.cancelled() => {
                    assert_eq!(context.cancel_reason(), Some(CancelReason::Requested));
                    Outcome::fail("told to stop")
                }
                () = sleep(Duration::from_secs(30)) => Outcome::Done,
            }
        }
    });
    let running = start(worker(&server, registry));
    patiently(async {
        tally.reaches(3).await;
        let leased = server.memory().list(&JobQuery::new(JobState::Leased, 3)).await.expect("memory lists");
        assert!(server.memory().cancel(&leased[1].job.id).await.expect("memory manages"));
        let asked = Instant::now();
        while running.handle.stats().rejected == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(asked.elapsed() <= Duration::from_millis(3005), "it took {:?}", asked.elapsed());
        server.memory().drained().await;
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.rejected, ended.report.stats.done), (1, 2), "{}", ended.report);
    assert_eq!(server.memory().counts().await.expect("memory counts").dead, 1, "not tried again");
}

// ---- what was fetched ahead ----

/// A renewer that answers as it is told for the tags that it is told of.
struct Answers {
    memory: Memory,
    told: std::sync::Mutex<Vec<(Tag, Renewal)>>,
}

/// The tag of a store's second delivery: it counts from one, in the order of its deliveries.
const SECOND: Tag = Tag { session: 0, key: 1, token: 2 };

impl Answers {
    /// One that keeps the leases of `memory`, and the intake of both.
    fn beside(memory: &Memory) -> (Arc<Self>, Intake) {
        let this = Arc::new(Self { memory: memory.clone(), told: Default::default() });
        let intake = Intake::fixed(Arc::new(memory.clone())).renewed_by_fixed(this.clone());
        (this, intake)
    }

    fn says(&self, tag: Tag, answer: Renewal) {
        self.told.lock().expect("nothing panics under this lock").push((tag, answer));
    }
}

#[async_trait]
impl Renew for Answers {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let mut answers = self.memory.renew(tags).await?;
        for (tag, told) in self.told.lock().expect("nothing panics under this lock").iter() {
            if let Some(at) = tags.iter().position(|asked| asked == tag) {
                answers[at] = *told;
            }
        }
        Ok(answers)
    }
}

/// One slot and one delivery ahead. While the first job runs, the renewal of the second is answered with
/// `answer`; then the first one ends. Returns what began, and the worker's end.
async fn while_it_waited(answer: Renewal) -> (Vec<(String, u32)>, Ended, Memory) {
    let (memory, tally) = (store(Duration::from_secs(9)), Tally::default());
    push(&memory, 2);
    let (renewer, intake) = Answers::beside(&memory);
    let begun = tally.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        sleep(Duration::from_secs(20))
    });
    let builder =
        Worker::builder(intake, registry).dispatcher(Dispatcher::Shared).max_concurrent_jobs(1).prefetch(1);
    let running = start(builder);
    patiently(async {
        tally.reaches(1).await;
        while running.handle.stats().fetched < 2 {
            sleep(Duration::from_millis(1)).await;
        }
        running.handle.quiet();
        renewer.says(SECOND, answer);
        while running.handle.stats().in_flight > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let ended = running.stop().await;
    (tally.begun(), ended, memory)
}

/// P5: by then it may be running elsewhere.
#[tokio::test(start_paused = true)]
async fn a_job_whose_lease_was_lost_while_it_waited_for_a_slot_never_begins() {
    let (begun, ended, _) = while_it_waited(Renewal::Lost).await;
    assert_eq!(begun, [("0".to_owned(), 1)], "{}", ended.report);
    assert_eq!((ended.report.stats.done, ended.report.stats.lost), (1, 1), "{}", ended.report);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_cancelled_while_it_waited_for_a_slot_never_begins() {
    let (begun, ended, memory) = while_it_waited(Renewal::CancelRequested).await;
    assert_eq!(begun, [("0".to_owned(), 1)], "{}", ended.report);
    assert_eq!((ended.report.stats.done, ended.report.stats.rejected), (1, 1), "{}", ended.report);
    assert_eq!(memory.counts().await.expect("memory counts").dead, 1);
}

// ---- a heartbeat that fails ----

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_is_refused_for_good_backs_off_and_says_so_once() {
    let log = Log::record();
    let (server, tally) = (Server::new(store(Duration::from_secs(30))), Tally::default());
    server.breaks(Verb::ConnectHeartbeat, Fault::Fail(ErrorKind::Denied));
    push_lasting(server.memory(), 1, 26); // ends while its lease is trusted
    let running = start(worker(&server, lasting(&tally)));
    patiently(server.memory().drained()).await;
    assert_eq!(running.stop().await.report.stats.done, 1);
    // From the tenth second to the twenty-sixth, at a pace that grows to two seconds: about fourteen.
    let attempts = server.calls(Verb::ConnectHeartbeat).len();
    assert!(attempts <= 30, "{attempts} attempts in 16 s");
    let told = log.with(Level::WARN, "");
    assert!(told.len() <= 2, "{} lines: {told:#?}", told.len());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_can_not_renew_for_long_is_one_line_in_the_log() {
    let log = Log::record();
    let (server, tally) = (Server::new(store(Duration::from_secs(30))), Tally::default());
    server.breaks(Verb::Renew, Fault::Fail(ErrorKind::Unavailable));
    push_lasting(server.memory(), 1, 26);
    let running = start(worker(&server, lasting(&tally)));
    patiently(server.memory().drained()).await;
    assert_eq!(running.stop().await.report.stats.done, 1);
    let told = log.with(Level::WARN, "");
    assert!((1..=2).contains(&told.len()), "{} lines: {told:#?}", told.len());
}

/// A driver that panics or answers nonsense.
struct Broken {
    memory: Memory,
    calls: std::sync::atomic::AtomicUsize,
    panics: bool,
}

#[async_trait]
impl Renew for Broken {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let calls = 1 + self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(!self.panics || calls > 1, "a bug in a driver");
        assert!(calls < 10_000, "the heartbeat calls it without end");
        let mut answers = self.memory.renew(tags).await?;
        if !self.panics {
            answers.clear();
        }
        Ok(answers)
    }
}

fn broken(panics: bool, ttl: Duration) -> (Memory, Arc<Broken>, Intake) {
    let memory = store(ttl);
    let broken = Arc::new(Broken { memory: memory.clone(), calls: Default::default(), panics });
    let intake = Intake::fixed(Arc::new(memory.clone())).renewed_by_fixed(broken.clone());
    (memory, broken, intake)
}

/// A bug in a driver must not end the renewing without a word: it goes on, or the worker ends.
#[tokio::test(start_paused = true)]
async fn a_renewer_that_panics_once_does_not_end_the_heartbeat() {
    let (memory, _broken, intake) = broken(true, Duration::from_secs(9));
    let tally = Tally::default();
    push_lasting(&memory, 3, 30);
    let running = start(Worker::builder(intake, lasting(&tally)).dispatcher(Dispatcher::Shared));
    let handle = running.handle.clone();
    patiently(async {
        tokio::select! {
            () = memory.drained() => {
                let ended = running.stop().await;
                assert_eq!((ended.report.stats.done, ended.report.stats.lost), (3, 0), "{}", ended.report);
            }
            () = sleep(Duration::from_secs(300)) => panic!("still at it, and not renewing: {:?}", handle.stats()),
        }
    })
    .await;
    assert_eq!(tally.len(), 3, "no lease was lost: {:?}", tally.begun());
}

#[tokio::test(start_paused = true)]
async fn a_renewer_that_answers_too_little_is_not_called_without_end() {
    let (memory, broken, intake) = broken(false, Duration::from_secs(9));
    let tally = Tally::default();
    push_lasting(&memory, 3, 8); // they end while their leases are trusted
    let running = start(Worker::builder(intake, lasting(&tally)).dispatcher(Dispatcher::Shared));
    patiently(memory.drained()).await;
    assert_eq!(running.stop().await.report.stats.done, 3);
    let calls = broken.calls.load(std::sync::atomic::Ordering::Relaxed);
    assert!(calls < 100, "{calls} calls in five seconds");
}
