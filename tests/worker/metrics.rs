//! The metrics: a closed list of names, whose numbers are those of the books.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{AtomicStorage, Registry as Handles};
use tidegate::telemetry::{describe, name};
use tidegate::{Context, Dispatcher, ErrorKind, Intake, Outcome, Registry, Renewal, RetryPolicy, Worker};

use crate::support::{
    Answer, Feed, Flaky, Forgetful, Gate, KIND, Recording, Renewer, during, job, job_with, jobs, number,
    panics, registry_of, until,
};

/// Keeps every metric, and what it was described as.
struct Kept {
    handles: Handles<Key, AtomicStorage>,
    described: Mutex<Vec<(String, &'static str)>>,
}

impl Kept {
    fn new() -> Self {
        Self { handles: Handles::new(AtomicStorage), described: Mutex::default() }
    }

    /// What kind of metric each name is.
    fn names(&self) -> BTreeSet<(String, &'static str)> {
        let mut names = BTreeSet::new();
        self.handles.visit_counters(|key, _| names.extend([(key.name().to_owned(), "counter")]));
        self.handles.visit_gauges(|key, _| names.extend([(key.name().to_owned(), "gauge")]));
        self.handles.visit_histograms(|key, _| names.extend([(key.name().to_owned(), "histogram")]));
        names
    }

    /// The sum of the counters of this name that carry all of these labels.
    fn counted(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut sum = 0;
        self.handles.visit_counters(|key, counter| {
            if key.name() == name && has(key, labels) {
                sum += counter.load(Ordering::SeqCst);
            }
        });
        sum
    }

    fn gauge(&self, name: &str) -> f64 {
        let mut value = f64::NAN;
        self.handles.visit_gauges(|key, gauge| {
            if key.name() == name {
                value = f64::from_bits(gauge.load(Ordering::SeqCst));
            }
        });
        value
    }

    /// What a histogram has recorded.
    fn recorded(&self, name: &str) -> Vec<f64> {
        let mut all = Vec::new();
        self.handles.visit_histograms(|key, histogram| {
            if key.name() == name {
                histogram.data_with(|values| all.extend_from_slice(values));
            }
        });
        all
    }

    fn labels(&self, name: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        self.handles.visit_counters(|key, _| {
            for label in key.labels().filter(|_| key.name() == name) {
                labels.entry(label.key().to_owned()).or_default().insert(label.value().to_owned());
            }
        });
        labels
    }

    fn describe(&self, name: KeyName, what: &'static str) {
        self.described.lock().expect("no test thread panicked").push((name.as_str().to_owned(), what));
    }
}

fn has(key: &Key, labels: &[(&str, &str)]) -> bool {
    labels
        .iter()
        .all(|(wanted, value)| key.labels().any(|label| label.key() == *wanted && label.value() == *value))
}

impl Recorder for Kept {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(name, "counter");
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(name, "gauge");
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(name, "histogram");
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.handles.get_or_create_counter(key, |counter| Counter::from_arc(counter.clone()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.handles.get_or_create_gauge(key, |gauge| Gauge::from_arc(gauge.clone()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.handles.get_or_create_histogram(key, |histogram| Histogram::from_arc(histogram.clone()))
    }
}

/// Every name in `telemetry::name`, read from its source.
fn the_list() -> BTreeSet<String> {
    let source = include_str!("../../src/telemetry.rs");
    let constants = source.lines().filter(|line| line.trim_start().starts_with("pub const "));
    let names: BTreeSet<String> =
        constants.filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect();
    assert!(names.contains(name::JOBS) && names.contains(name::RENEWAL_LATENESS), "{names:?}");
    names
}

/// Runs `scenario` on a paused clock with `kept` as the recorder of this thread.
fn recorded<T>(kept: &Kept, scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    ::metrics::with_local_recorder(kept, || runtime.block_on(scenario))
}

#[test]
fn a_worker_registers_every_name_of_the_list_when_it_is_built_and_no_other() {
    let kept = Kept::new();
    let worker = ::metrics::with_local_recorder(&kept, || {
        let feed = Feed::new().leased(Duration::from_secs(30)).shared();
        Worker::builder(feed.intake(), registry_of(|_| async {}))
            .name("w")
            .build()
            .expect("the settings make sense")
    });
    let names: BTreeSet<String> = kept.names().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, the_list());
    drop(worker);
}

#[test]
fn a_worker_that_runs_uses_the_list_and_no_other_name() {
    let kept = Kept::new();
    recorded(&kept, async {
        let feed = Feed::new().leased(Duration::from_secs(30)).with(jobs(3)).shared();
        let registry = registry_of(|_| tokio::time::sleep(Duration::from_secs(100)));
        let worker = Worker::builder(feed.intake(), registry).dispatcher(Dispatcher::Shared).build();
        during(worker.expect("the settings make sense"), feed.drained()).await;
    });
    let names: BTreeSet<String> = kept.names().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, the_list());
}

#[test]
fn every_name_is_described_once_as_what_it_is() {
    let kept = Kept::new();
    ::metrics::with_local_recorder(&kept, describe);
    let mut described = kept.described.lock().expect("no test thread panicked").clone();
    described.sort();
    let names: Vec<String> = described.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, the_list().into_iter().collect::<Vec<_>>());

    recorded(&kept, async {
        let feed = Feed::new().leased(Duration::from_secs(30)).shared();
        let worker =
            Worker::builder(feed.intake(), registry_of(|_| async {})).dispatcher(Dispatcher::Shared).build();
        during(worker.expect("the settings make sense"), async {}).await;
    });
    assert_eq!(kept.names(), described.into_iter().collect());
}

#[test]
fn the_counters_are_those_of_the_books() {
    let kept = Kept::new();
    let (report, recording) = recorded(&kept, async {
        let mut foreign = job("foreign");
        foreign.kind = tidegate::Kind::new("nobody knows this one");
        let feed = Feed::new().with((0..60).map(|id| job_with(id, id % 6))).with([foreign]).shared();
        let forgetful = Forgetful::of(feed.clone(), |settled| settled.tag.key % 10 == 9);
        let recording = Recording::around(forgetful);
        let script = |call: usize, _: &[_]| (call % 4 == 1).then_some(ErrorKind::Unavailable);
        let flaky = Flaky::around(recording.clone()).on_settle(script).shared();
        let registry = registry_of(|context: Context| async move {
            match number(&context) {
                0 => Outcome::fail("no"),
                1 => Outcome::reject("never"),
                2 if context.attempt() == 1 => Outcome::fail("once"),
                3 => {
                    panics("oh");
                    Outcome::Done
                }
                4 => {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    Outcome::Done
                }
                _ => Outcome::Done,
            }
        });
        let worker = Worker::builder(Intake::fixed(flaky), registry)
            .name("booked")
            .max_concurrent_jobs(4)
            .job_timeout(Duration::from_secs(60))
            .retry(RetryPolicy::default().max_attempts(2))
            .unknown_kind(tidegate::UnknownKind::Reject)
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        // All but the six that are forgotten.
        let (report, ()) = during(worker, feed.finished(55)).await;
        (report, recording)
    });
    let stats = report.stats;
    let outcome = |outcome| kept.counted(name::JOBS, &[("worker", "booked"), ("outcome", outcome)]);
    assert_eq!(outcome("done"), stats.done);
    assert_eq!(outcome("retried"), stats.retried);
    assert_eq!(outcome("rejected"), stats.rejected);
    assert_eq!(outcome("snoozed"), stats.snoozed);
    assert_eq!(outcome("released"), stats.released);
    assert_eq!(outcome("lost"), stats.lost);
    assert_eq!(kept.counted(name::PANICS, &[("kind", KIND)]), stats.panicked);
    assert_eq!(kept.counted(name::TIMEOUTS, &[("kind", KIND)]), stats.timed_out);
    assert_eq!(kept.counted(name::DELIVERIES, &[]), stats.fetched);
    assert_eq!(kept.counted(name::FETCHES, &[]), recording.requests().len() as u64);
    assert_eq!(kept.counted(name::FETCH_FAILURES, &[]), 0);
    assert_eq!(kept.counted(name::SETTLE_FAILURES, &[]), stats.settle_failures);
    assert_eq!(kept.counted(name::STALE, &[]), stats.stale);
    let confirmed = recording.told().iter().filter(|told| !told.stale).count() as u64;
    assert_eq!(kept.counted(name::SETTLEMENTS, &[]), confirmed);
    assert_eq!(kept.recorded(name::RUN_SECONDS).len() as u64, stats.started);
    assert_eq!(kept.recorded(name::LATENCY_SECONDS).len(), 60, "once a job that was started");
    assert!(
        stats.stale > 0 && stats.timed_out > 0 && stats.panicked > 0 && stats.settle_failures > 0,
        "{stats:?}"
    );
    assert_eq!(kept.gauge(name::IN_FLIGHT), 0.0);
    // What a payload says never becomes a label: labels are for ever.
    let kinds = kept.labels(name::JOBS)["kind"].clone();
    assert_eq!(kinds, BTreeSet::from(["(unknown)".to_owned(), KIND.to_owned()]));
}

#[test]
fn an_attempt_that_stops_by_itself_after_its_timeout_counts_as_timed_out() {
    let kept = Kept::new();
    let report = recorded(&kept, async {
        let feed = Feed::new().with([job("a")]).shared();
        let registry = registry_of(|context: Context| async move { context.cancelled().await });
        let worker = Worker::builder(feed.intake(), registry)
            .job_timeout(Duration::from_secs(1))
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await.0
    });
    assert_eq!((report.stats.timed_out, kept.counted(name::TIMEOUTS, &[])), (1, 1));
}

#[test]
fn the_gauges_tell_of_free_slots_and_of_what_is_in_flight() {
    let kept = Kept::new();
    recorded(&kept, async {
        let gate = Gate::shut();
        let feed = Feed::new().shared();
        let registry = registry_of({
            let gate = gate.clone();
            move |_| {
                let gate = gate.clone();
                async move { gate.pass().await }
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(5)
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            handle.jobs().await;
            assert_eq!(kept.gauge(name::FREE_SLOTS), 5.0, "before the first job all are free");
            assert_eq!(kept.gauge(name::IN_FLIGHT), 0.0);
            jobs(2).for_each(|job| feed.push(job));
            until("two run", || handle.stats().running == 2).await;
            assert_eq!((kept.gauge(name::FREE_SLOTS), kept.gauge(name::IN_FLIGHT)), (3.0, 2.0));
            handle.set_max_concurrent_jobs(9).expect("it is in the range");
            handle.jobs().await;
            handle.jobs().await;
            assert_eq!(kept.gauge(name::FREE_SLOTS), 7.0, "the bound was raised");
            assert_eq!(kept.gauge(name::CONNECTED), 1.0);
            gate.open();
            feed.drained().await;
            until("none is in flight", || handle.stats().in_flight == 0).await;
            assert_eq!((kept.gauge(name::FREE_SLOTS), kept.gauge(name::IN_FLIGHT)), (9.0, 0.0));
        })
        .await;
        assert_eq!(kept.gauge(name::IN_FLIGHT), 0.0);
    });
}

#[test]
fn renewals_and_losses_are_counted() {
    let kept = Kept::new();
    let ttl = Duration::from_secs(30);
    let report = recorded(&kept, async {
        let feed = Feed::new().leased(ttl).with(jobs(2)).shared();
        let script = [
            Answer::All(Renewal::Kept),
            Answer::Error(ErrorKind::Unavailable),
            Answer::All(Renewal::Kept),
            Answer::All(Renewal::Lost),
        ];
        let renewer = Renewer::scripted(feed.clone(), script, Answer::Pass);
        let registry = registry_of(|context: Context| async move { context.cancelled().await });
        let worker = Worker::builder(Intake::fixed(feed.clone()).renewed_by_fixed(renewer), registry)
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let scenario = async {
            until("both run", || handle.stats().running == 2).await;
            handle.quiet(); // so that neither is handed out again
            tokio::time::sleep(ttl * 2).await;
        };
        during(worker, scenario).await.0
    });
    assert_eq!(report.stats.lost, 2);
    assert_eq!(kept.counted(name::LEASES_LOST, &[]), 2);
    assert_eq!(kept.counted(name::JOBS, &[("outcome", "lost")]), 2);
    assert_eq!(kept.counted(name::RENEWAL_FAILURES, &[]), 1);
    assert_eq!(kept.counted(name::RENEWALS, &[]), 4, "those that were kept, two at a time");
    assert_eq!(kept.recorded(name::RENEWAL_LATENESS).len(), 4);
}

#[test]
fn reconnects_are_counted_for_each_connection() {
    let kept = Kept::new();
    let maker = recorded(&kept, async {
        let feed = Feed::new().with(jobs(20)).shared();
        let script = |call: usize| (call % 5 == 2 && call < 20).then_some(ErrorKind::Connection);
        let flaky: Arc<dyn tidegate::Source> = Flaky::around(feed.clone()).on_fetch(script).shared();
        let maker = crate::support::Maker::of(flaky);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .max_concurrent_jobs(1)
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await;
        maker
    });
    let source = [("connection", "source")];
    assert_eq!(kept.counted(name::RECONNECTS, &source), maker.made() as u64 - 1);
    assert_eq!(kept.counted(name::FETCH_FAILURES, &[]), maker.made() as u64 - 1);
    assert!(maker.made() > 3);
}

/// Nothing here keeps a [`Registry`] from being used with a recorder that is installed for good.
#[test]
fn a_worker_without_a_recorder_runs_all_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let report = runtime.block_on(async {
        let feed = Feed::new().with(jobs(3)).shared();
        let registry = Registry::new().handle_raw(KIND, |_| async {});
        let worker = Worker::builder(feed.intake(), registry).dispatcher(Dispatcher::Shared).build();
        during(worker.expect("the settings make sense"), feed.drained()).await.0
    });
    assert_eq!(report.stats.done, 3);
}
