//! P5: leases are kept for as long as a job runs; who has lost one cancels the job and settles nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::{
    CancelReason, Context, Dispatcher, ErrorKind, Intake, Registry, Renewal, Report, Settlement, Worker,
    WorkerBuilder,
};
use tokio::time::Instant;

use crate::support::{
    Answer, Feed, Flaky, Gate, Leftovers, Recording, Renewer, during, job, jobs, registry_of, until,
};

const TTL: Duration = Duration::from_secs(30);
/// A tenth is taken off, at most two seconds.
const TRUSTED: Duration = Duration::from_secs(28);

/// A feed with leases, what it was told, and what renews.
struct Leased {
    feed: Arc<Feed>,
    recording: Arc<Recording>,
    renewer: Arc<Renewer>,
}

impl Leased {
    fn new(feed: Feed, script: impl IntoIterator<Item = Answer>, then: Answer) -> Self {
        let feed = feed.leased(TTL).shared();
        let recording = Recording::around(feed.clone());
        let renewer = Renewer::scripted(feed.clone(), script, then);
        Self { feed, recording, renewer }
    }

    fn worker(&self, registry: Registry) -> WorkerBuilder {
        let intake = Intake::fixed(self.recording.clone()).renewed_by_fixed(self.renewer.clone());
        Worker::builder(intake, registry).dispatcher(Dispatcher::Shared).job_timeout(None)
    }
}

/// Why each attempt was told to stop, and when.
#[derive(Clone, Default)]
struct Stops(Arc<Mutex<Vec<(CancelReason, Instant)>>>);

impl Stops {
    fn of(&self) -> Vec<(CancelReason, Instant)> {
        self.0.lock().expect("no test thread panicked").clone()
    }

    async fn wait(&self, context: &Context) {
        context.cancelled().await;
        let reason = context.cancel_reason().expect("it was told to stop");
        self.0.lock().expect("no test thread panicked").push((reason, Instant::now()));
    }
}

/// Each first attempt runs until it is told to stop and then returns what is given; later ones are done.
fn stopped_once(
    stops: &Stops,
    then: impl Fn() -> Result<(), &'static str> + Clone + Send + Sync + 'static,
) -> Registry {
    let stops = stops.clone();
    registry_of(move |context: Context| {
        let (stops, then) = (stops.clone(), then.clone());
        async move {
            if context.attempt() > 1 {
                return Ok(());
            }
            stops.wait(&context).await;
            then()
        }
    })
}

fn assert_books(report: &Report) {
    let stats = report.stats;
    let ended = stats.done
        + stats.retried
        + stats.rejected
        + stats.snoozed
        + stats.released
        + stats.lost
        + stats.stale;
    assert_eq!(stats.fetched, ended, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_for_ten_lifetimes() {
    let leased = Leased::new(Feed::new().with(jobs(3)), [], Answer::Pass);
    let registry = registry_of(|_| tokio::time::sleep(TTL * 10));
    let worker = leased.worker(registry).build().expect("the settings make sense");
    let left = Leftovers::before();
    let began = Instant::now();
    let (report, ()) = during(worker, leased.feed.drained()).await;
    assert_eq!((report.stats.done, report.stats.lost, leased.feed.expired()), (3, 0, 0));
    assert_eq!(leased.recording.delivered().len(), 3, "no job was handed out twice");
    // At a third of the lifetime, so that two renewals may fail.
    let mut before = began;
    for (at, tags) in leased.renewer.asked() {
        assert!(at - before <= TTL / 3 + Duration::from_millis(5), "no renewal for {:?}", at - before);
        assert_eq!(tags.len(), 3, "leases of one age are renewed together");
        before = at;
    }
    assert!(leased.renewer.asked().len() <= 31, "{} renewals", leased.renewer.asked().len());
    left.none().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_renewed_when_nothing_is_leased() {
    let leased = Leased::new(Feed::new().with(jobs(5)), [], Answer::Pass);
    let worker = leased.worker(registry_of(|_| async {})).build().expect("the settings make sense");
    during(worker, tokio::time::sleep(TTL * 10)).await;
    assert_eq!(leased.feed.done().len(), 5);
    assert_eq!(leased.renewer.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_entered_while_the_heartbeat_sleeps_is_renewed_in_time() {
    let leased = Leased::new(Feed::new(), [], Answer::Pass);
    let registry = registry_of(|_| tokio::time::sleep(TTL * 2));
    let worker = leased.worker(registry).build().expect("the settings make sense");
    let (report, ()) = during(worker, async {
        for number in 0..5 {
            tokio::time::sleep(TTL * 3).await;
            leased.feed.push(job(number));
        }
        leased.feed.drained().await;
    })
    .await;
    assert_eq!((report.stats.done, leased.feed.expired()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_the_job_which_is_never_settled() {
    // The first answer takes the lease away; whatever the handler says then, the source is not told.
    for says in [Ok(()), Err("too late")] {
        let stops = Stops::default();
        let leased = Leased::new(Feed::new().with([job("a")]), [Answer::All(Renewal::Lost)], Answer::Pass);
        let worker =
            leased.worker(stopped_once(&stops, move || says)).build().expect("the settings make sense");
        let handle = worker.handle();
        let began = Instant::now();
        let (report, ()) = during(worker, until("it was given up", || handle.stats().lost == 1)).await;
        let reasons = stops.of();
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].0, CancelReason::LeaseLost);
        assert!(
            reasons[0].1 - began <= TTL / 3 + Duration::from_millis(5),
            "it is told with the first renewal"
        );
        assert_eq!(leased.recording.tries(), Vec::<Vec<_>>::new(), "nothing was settled");
        assert_eq!((report.stats.done, report.stats.retried, report.stats.failed), (0, 0, 0));
        assert_books(&report);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_can_not_be_renewed_is_lost_before_another_may_have_the_job() {
    for then in [Answer::Error(ErrorKind::Unavailable), Answer::Error(ErrorKind::Connection), Answer::Never] {
        let stops = Stops::default();
        let leased = Leased::new(Feed::new().with([job("a")]), [], then);
        let worker = leased.worker(stopped_once(&stops, || Ok(()))).build().expect("the settings make sense");
        let began = Instant::now();
        let (report, ()) = during(worker, leased.feed.drained()).await;
        let reasons = stops.of();
        assert_eq!(reasons.len(), 1, "{then:?}");
        assert_eq!(reasons[0].0, CancelReason::LeaseLost);
        let after = reasons[0].1 - began;
        assert!(after >= TRUSTED && after < TRUSTED + Duration::from_millis(5), "{then:?}: after {after:?}");
        // The source hands the job out again when the lease has run out: here, to the same worker.
        assert_eq!((report.stats.lost, report.stats.done, leased.feed.expired()), (1, 1, 1), "{then:?}");
        assert_eq!(leased.recording.told_of("a").len(), 1);
        assert_eq!(leased.recording.told_of("a")[0].attempt, 2);
        assert_books(&report);
    }
}

#[tokio::test(start_paused = true)]
async fn two_renewals_may_fail_before_a_lease_is_lost() {
    let script = [Answer::Error(ErrorKind::Timeout), Answer::Error(ErrorKind::Unavailable)];
    let leased = Leased::new(Feed::new().with([job("a")]), script, Answer::Pass);
    let registry = registry_of(|_| tokio::time::sleep(TTL * 2));
    let worker = leased.worker(registry).build().expect("the settings make sense");
    let (report, ()) = during(worker, leased.feed.drained()).await;
    assert_eq!((report.stats.done, report.stats.lost, leased.feed.expired()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn leases_without_anybody_to_renew_them_are_watched_all_the_same() {
    let stops = Stops::default();
    let leased = Leased::new(Feed::new().with([job("a")]), [], Answer::Pass);
    let worker = Worker::builder(Intake::fixed(leased.recording.clone()), stopped_once(&stops, || Ok(())))
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = Instant::now();
    let (report, ()) = during(worker, leased.feed.drained()).await;
    assert_eq!(stops.of()[0].0, CancelReason::LeaseLost);
    assert!(stops.of()[0].1 - began < TRUSTED + Duration::from_millis(5));
    assert_eq!((report.stats.lost, report.stats.done), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ignores_its_lost_lease_is_aborted_after_the_grace() {
    let leased = Leased::new(Feed::new().with([job("a")]), [Answer::All(Renewal::Lost)], Answer::Pass);
    let registry = registry_of(|_| std::future::pending::<()>());
    let worker = leased
        .worker(registry)
        .cancel_grace(Duration::from_secs(4))
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let began = Instant::now();
    let (report, took) = during(worker, async {
        until("it was given up", || handle.stats().lost == 1).await;
        began.elapsed()
    })
    .await;
    assert!(took >= Duration::from_secs(14) && took < Duration::from_secs(15), "after {took:?}");
    assert_eq!((report.stats.aborted, report.stats.lost), (1, 1));
    assert_eq!(leased.recording.tries(), Vec::<Vec<_>>::new());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_somebody_cancels_at_the_source_is_told_and_rejected() {
    let stops = Stops::default();
    let script = [Answer::All(Renewal::Kept), Answer::All(Renewal::CancelRequested)];
    let leased = Leased::new(Feed::new().with([job("a")]), script, Answer::Pass);
    let worker =
        leased.worker(stopped_once(&stops, || Err("stopped"))).build().expect("the settings make sense");
    let (report, ()) = during(worker, leased.feed.drained()).await;
    assert_eq!(stops.of()[0].0, CancelReason::Requested);
    let told = leased.recording.told_of("a");
    assert_eq!((told.len(), told[0].settlement), (1, Settlement::Reject));
    assert_eq!(told[0].reason.as_deref(), Some("cancelled on request"));
    assert_eq!((report.stats.rejected, report.stats.lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_can_not_be_sent_before_trust_ends_is_dropped_and_counted() {
    let feed = Feed::new().with([job("a")]).leased(TTL).shared();
    let recording = Recording::around(feed.clone());
    let began = Instant::now();
    let outage = move |_: usize, _: &[_]| (began.elapsed() < TTL + TTL / 2).then_some(ErrorKind::Unavailable);
    let flaky = Flaky::around(recording.clone()).on_settle(outage).shared();
    let renewer = Renewer::scripted(feed.clone(), [], Answer::Error(ErrorKind::Unavailable));
    let intake = Intake::fixed(flaky.clone()).renewed_by_fixed(renewer);
    let worker = Worker::builder(intake, registry_of(|_| async {}))
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let (report, ()) = during(worker, feed.drained()).await;
    // The first delivery's settlement failed until its lease was lost; the second one's went through.
    assert_eq!((report.stats.done, report.stats.lost, report.stats.stale), (1, 1, 0));
    assert_eq!(recording.told_of("a").len(), 1);
    assert_eq!(recording.told_of("a")[0].attempt, 2);
    assert!(report.stats.settle_failures > 2);
    assert_books(&report);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_lease_was_lost_while_it_waited_for_a_slot_is_never_started() {
    let gate = Gate::shut();
    let started = Arc::new(Mutex::new(Vec::new()));
    let leased = Leased::new(Feed::new().with(jobs(2)), [], Answer::Pass);
    let registry = registry_of({
        let (gate, started) = (gate.clone(), started.clone());
        move |context: Context| {
            let (gate, started) = (gate.clone(), started.clone());
            async move {
                let id = context.job().id.to_string();
                started.lock().expect("no test thread panicked").push((
                    id,
                    context.attempt(),
                    context.is_cancelled(),
                ));
                gate.pass().await;
            }
        }
    });
    let worker =
        leased.worker(registry).max_concurrent_jobs(1).prefetch(1).build().expect("the settings make sense");
    let handle = worker.handle();
    during(worker, async {
        until("both are held", || handle.stats().in_flight == 2).await;
        handle.quiet();
        leased.feed.take_back_all();
        tokio::time::sleep(TTL).await; // both are told with the next renewal
        gate.open();
        until("both are given up", || handle.stats().lost == 2).await;
    })
    .await;
    let started = started.lock().expect("no test thread panicked").clone();
    assert_eq!(started, [("0".to_owned(), 1, false)], "what was known to be lost was started");
}

/// P9: with every thread of the runtime blocked for several lifetimes, no lease is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_kept_while_jobs_block_every_thread() {
    let ttl = Duration::from_millis(600);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let released = Arc::new(Mutex::new(released));
    let feed = Feed::new().with(jobs(4)).leased(ttl).shared();
    let registry = registry_of(move |_: Context| {
        let released = released.clone();
        async move {
            let _ = released.lock().expect("no test thread panicked").recv();
        }
    });
    let worker = Worker::builder(feed.intake(), registry).build().expect("the settings make sense");
    // The test itself must not need the blocked threads: a thread of its own watches.
    let watched = feed.clone();
    let handle = worker.handle();
    let watcher = std::thread::Builder::new().name("watcher".to_owned()).spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("there is a runtime");
        runtime.block_on(async {
            until("jobs hold both threads", || handle.stats().running == 4).await;
            tokio::time::sleep(ttl * 3).await;
        });
        let expired = watched.expired();
        drop(release);
        expired
    });
    let watcher = watcher.expect("there is a thread");
    let (report, ()) = during(worker, feed.drained()).await;
    assert_eq!(watcher.join().expect("the watcher does not panic"), 0, "leases ran out");
    assert_eq!((report.stats.done, report.stats.lost, feed.expired()), (4, 0, 0));
}
