//! What becomes of a job: what the source is told, why, and what that costs the job.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tidegate::{
    Context, Dispatcher, Intake, Job, KindOptions, Outcome, Registry, Report, RetryPolicy, Settlement,
    UnknownKind, Worker, WorkerBuilder,
};

use crate::support::{
    Feed, KIND, Leftovers, Recording, Told, during, job, job_with, panics, registry_of, under_both,
    wall_clock,
};

const SEED: u64 = 7;

/// What the source was told of the only job, by the time that it was told so often.
struct Trial {
    report: Report,
    told: Vec<Told>,
    feed: Arc<Feed>,
}

impl Trial {
    async fn of(dispatcher: Dispatcher, registry: Registry, job: Job, settlements: usize) -> Self {
        Self::with(dispatcher, registry, job, settlements, |builder| builder).await
    }

    async fn with(
        dispatcher: Dispatcher,
        registry: Registry,
        job: Job,
        settlements: usize,
        configure: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    ) -> Self {
        let feed = Feed::new().with([job]).shared();
        let recording = Recording::around(feed.clone());
        let builder =
            Worker::builder(Intake::fixed(recording.clone()), registry).dispatcher(dispatcher).seed(SEED);
        let worker = configure(builder).build().expect("the settings make sense");
        let left = Leftovers::before();
        let (report, ()) = during(worker, recording.has_been_told(settlements)).await;
        left.none().await;
        Self { report, told: recording.told(), feed }
    }

    fn only(&self) -> &Told {
        assert_eq!(self.told.len(), 1, "{:?}", self.told);
        &self.told[0]
    }

    fn reason(&self) -> &str {
        self.told.last().and_then(|told| told.reason.as_deref()).unwrap_or_default()
    }
}

/// Waits that a real clock can stand.
fn brisk() -> RetryPolicy {
    RetryPolicy::default().initial(Duration::from_millis(2)).cap(Duration::from_millis(10))
}

#[derive(Debug)]
struct Layered(std::io::Error);

impl std::fmt::Display for Layered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the mail could not be sent")
    }
}

impl std::error::Error for Layered {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

under_both! {
    async fn what_is_done_is_acknowledged(dispatcher) {
        let trial = Trial::of(dispatcher, registry_of(|_| async {}), job("a"), 1).await;
        assert_eq!(trial.only().settlement, Settlement::Ack);
        assert_eq!(trial.only().reason, None);
        assert_eq!((trial.report.stats.done, trial.report.stats.failed), (1, 0));
        assert_eq!(trial.feed.done().len(), 1);
    }

    async fn a_failure_is_retried_after_the_policys_wait_with_its_causes_as_the_reason(dispatcher) {
        let policy = RetryPolicy::default().initial(Duration::from_secs(40)).jitter(0.5);
        let registry = registry_of(|_| async { Err::<(), _>(Layered(std::io::Error::other("no route to host"))) });
        let trial = Trial::with(dispatcher, registry, job("a"), 1, |builder| builder.retry(policy.clone())).await;
        let after = policy.wait(&job("a"), 1, SEED);
        assert!(Duration::from_secs(20) <= after && after <= Duration::from_secs(40));
        assert_eq!(trial.only().settlement, Settlement::Retry { after });
        assert_eq!(trial.reason(), "the mail could not be sent: no route to host");
        assert_eq!((trial.report.stats.retried, trial.report.stats.failed), (1, 1));
        assert_eq!(trial.feed.waiting(), [(job("a").id, 1)], "the attempt counts");
    }

    async fn a_job_whose_attempts_are_used_up_is_rejected_with_the_last_reason(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            Err::<(), _>(format!("failure {}", context.attempt()))
        });
        let trial = Trial::with(dispatcher, registry, job("a"), 4, |builder| {
            builder.retry(brisk().max_attempts(4))
        })
        .await;
        let attempts: Vec<u32> = trial.told.iter().map(|told| told.attempt).collect();
        assert_eq!(attempts, [1, 2, 3, 4]);
        assert!(trial.told[..3].iter().all(|told| matches!(told.settlement, Settlement::Retry { .. })));
        assert_eq!(trial.told[3].settlement, Settlement::Reject);
        assert_eq!(trial.reason(), "failure 4");
        let stats = trial.report.stats;
        assert_eq!((stats.retried, stats.rejected, stats.failed, stats.started), (3, 1, 4, 4));
        assert_eq!(trial.feed.dead()[0].attempt, 4);
    }

    async fn a_job_that_brings_its_own_number_of_attempts_keeps_it(dispatcher) {
        let mut twice = job("a");
        twice.max_attempts = Some(2);
        let registry = registry_of(|_| async { Err::<(), _>("no") });
        let trial = Trial::with(dispatcher, registry, twice, 2, |builder| builder.retry(brisk().max_attempts(9))).await;
        assert_eq!(trial.told[1].settlement, Settlement::Reject);
    }

    async fn a_kind_with_a_policy_of_its_own_is_retried_by_that(dispatcher) {
        let registry = registry_of(|_| async { Err::<(), _>("no") })
            .options(KIND, KindOptions::new().retry(RetryPolicy::never()));
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
    }

    async fn a_job_that_is_too_old_is_rejected_at_its_next_failure(dispatcher) {
        let mut old = job("a");
        old.enqueued_at = wall_clock() - Duration::from_secs(3601);
        let policy = RetryPolicy::default().max_age(Duration::from_secs(3600));
        let registry = registry_of(|_| async { Err::<(), _>("no") });
        let trial = Trial::with(dispatcher, registry, old, 1, |builder| builder.retry(policy)).await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
    }

    async fn a_handler_that_names_a_wait_is_retried_after_that(dispatcher) {
        let registry = registry_of(|_| async { Outcome::fail_for("too many requests", Duration::from_secs(77)) });
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        assert_eq!(trial.only().settlement, Settlement::Retry { after: Duration::from_secs(77) });
        assert_eq!(trial.reason(), "too many requests");
    }

    async fn a_rejection_goes_to_the_dead_letters_at_once_with_its_reason(dispatcher) {
        let registry = registry_of(|_| async { Outcome::reject("no such customer") });
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
        assert_eq!(trial.reason(), "no such customer");
        assert_eq!((trial.report.stats.rejected, trial.report.stats.retried), (1, 0));
    }

    async fn a_snooze_is_handed_back_for_its_time_and_counts_no_attempt(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            assert_eq!(context.attempt(), 1);
            Outcome::Snooze(Duration::from_millis(3))
        });
        let trial = Trial::of(dispatcher, registry, job("a"), 3).await;
        assert!(trial.told.iter().all(|told| told.attempt == 1 && told.reason.is_none()), "{:?}", trial.told);
        let after = Duration::from_millis(3);
        assert!(trial.told.iter().all(|told| told.settlement == Settlement::Release { after }));
        let stats = trial.report.stats;
        assert!(stats.snoozed >= 3 && stats.failed == 0 && stats.retried == 0);
    }

    async fn a_panic_counts_as_a_failed_attempt_with_its_message(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            tokio::task::yield_now().await;
            panics(format!("no {} left", context.job().id));
        });
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        assert!(matches!(trial.only().settlement, Settlement::Retry { .. }));
        assert_eq!(trial.reason(), "panicked: no a left");
        let stats = trial.report.stats;
        assert_eq!((stats.panicked, stats.failed, stats.retried), (1, 1, 1));
    }

    async fn a_payload_that_can_not_be_decoded_is_rejected_unchanged_naming_the_place(dispatcher) {
        #[derive(Deserialize)]
        struct Mail {
            #[serde(rename = "to")]
            _to: Vec<u32>,
        }
        let registry = Registry::new().handle(KIND, |_: Mail, _: Context| async {});
        let payload = r#"{"to":[1,"two"],  "x":1}"#;
        let trial = Trial::of(dispatcher, registry, job_with("a", payload), 1).await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
        let reason = trial.reason();
        assert!(reason.contains(KIND) && reason.contains("to[1]") && reason.contains("\"two\""), "{reason}");
        assert_eq!(trial.feed.dead()[0].job.payload, Bytes::from(payload));
        assert_eq!(trial.report.stats.failed, 1);
    }

    async fn bytes_that_are_no_text_reach_the_dead_letters_unchanged(dispatcher) {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        let mut hostile = job("a");
        hostile.payload = Bytes::from(bytes.clone());
        let registry = Registry::new().handle(KIND, |_: String, _: Context| async {});
        let trial = Trial::of(dispatcher, registry, hostile, 1).await;
        assert_eq!(trial.feed.dead()[0].job.payload, Bytes::from(bytes));
        assert!(!trial.reason().is_empty());
    }

    async fn a_payload_that_is_too_large_is_rejected_unread(dispatcher) {
        let registry = registry_of(|_| async { panics("it was read") });
        let trial = Trial::with(dispatcher, registry, job_with("a", "12345"), 1, |builder| {
            builder.max_payload_bytes(4)
        })
        .await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
        assert!(trial.reason().contains('5') && trial.reason().contains("max_payload_bytes"), "{}", trial.reason());
        assert_eq!((trial.report.stats.started, trial.report.stats.rejected), (0, 1));
    }

    async fn a_payload_that_just_fits_is_run(dispatcher) {
        let registry = registry_of(|_| async {});
        let trial = Trial::with(dispatcher, registry, job_with("a", "1234"), 1, |builder| {
            builder.max_payload_bytes(4)
        })
        .await;
        assert_eq!(trial.only().settlement, Settlement::Ack);
    }

    async fn a_job_of_an_unknown_kind_is_retried_by_default(dispatcher) {
        let registry = Registry::new().handle_raw("other", |_| async {});
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        let after = RetryPolicy::default().wait(&job("a"), 1, SEED);
        assert_eq!(trial.only().settlement, Settlement::Retry { after });
        assert!(trial.reason().contains(KIND), "{}", trial.reason());
        assert_eq!((trial.report.stats.started, trial.report.stats.retried), (0, 1));
    }

    async fn a_job_of_an_unknown_kind_is_given_up_when_its_attempts_are_used_up(dispatcher) {
        let registry = Registry::new().handle_raw("other", |_| async {});
        let trial = Trial::with(dispatcher, registry, job("a"), 2, |builder| builder.retry(brisk().max_attempts(2))).await;
        assert_eq!(trial.told[1].settlement, Settlement::Reject);
        assert!(trial.reason().contains(KIND));
    }

    async fn a_job_of_an_unknown_kind_is_rejected_where_that_is_asked_for(dispatcher) {
        let registry = Registry::new().handle_raw("other", |_| async {});
        let trial = Trial::with(dispatcher, registry, job("a"), 1, |builder| {
            builder.unknown_kind(UnknownKind::Reject)
        })
        .await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
        assert!(trial.reason().contains(KIND));
    }

    async fn a_job_of_an_unknown_kind_is_handed_back_for_others_where_that_is_asked_for(dispatcher) {
        let registry = Registry::new().handle_raw("other", |_| async {});
        let trial = Trial::with(dispatcher, registry, job("a"), 1, |builder| {
            builder.unknown_kind(UnknownKind::Release)
        })
        .await;
        assert_eq!(trial.only().settlement, Settlement::Release { after: Duration::from_secs(60) });
        assert_eq!(trial.feed.waiting(), [(job("a").id, 0)], "no attempt is counted");
        assert_eq!((trial.report.stats.released, trial.report.stats.snoozed), (1, 0), "for another worker");
    }

    async fn a_job_whose_attempts_were_used_up_by_crashes_is_rejected_and_not_run(dispatcher) {
        let mut crashed = job("a");
        crashed.max_attempts = Some(0);
        let registry = registry_of(|_| async { panics("it was run") });
        let trial = Trial::of(dispatcher, registry, crashed, 1).await;
        assert_eq!(trial.only().settlement, Settlement::Reject);
        assert!(trial.reason().contains("attempts"), "{}", trial.reason());
        assert_eq!(trial.report.stats.started, 0);
    }

    async fn a_very_long_reason_is_cut(dispatcher) {
        let registry = registry_of(|_| async { Outcome::reject("ü".repeat(1 << 20)) });
        let trial = Trial::of(dispatcher, registry, job("a"), 1).await;
        let kept = trial.reason().len();
        assert!((4090..=4096).contains(&kept), "{kept} bytes are kept");
    }
}

/// A poison job that fails for ever ends in the dead letters under the waits of the policy, and not sooner.
#[tokio::test(start_paused = true)]
async fn a_job_that_always_fails_is_tried_at_the_policys_times() {
    let policy = RetryPolicy::default();
    let mut times = Vec::new();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(32);
    let registry = registry_of(move |_: Context| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(tokio::time::Instant::now()).await;
            Err::<(), _>("no")
        }
    });
    let trial = Trial::of(Dispatcher::Shared, registry, job("a"), 20).await;
    while let Some(at) = receiver.recv().await {
        times.push(at);
    }
    assert_eq!(times.len(), 20);
    let poison = job("a");
    for (attempt, pair) in (1..).zip(times.windows(2)) {
        let (waited, due) = (pair[1] - pair[0], policy.wait(&poison, attempt, SEED));
        // The timer has a resolution of a millisecond.
        assert!(waited >= due && waited < due + Duration::from_millis(2), "{waited:?} instead of {due:?}");
    }
    assert_eq!(trial.told[19].settlement, Settlement::Reject);
}
