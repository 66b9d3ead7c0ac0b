//! Every metric, span and event name, each once. The list is closed: `docs/operations.md` shows it, and
//! dashboards may rely on it.
//!
//! Handles are registered when a worker is built, with the recorder that is installed then; without one
//! they cost about a nanosecond a call. Times are in seconds, as Prometheus asks for.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::job::{Kind, Queue};
use crate::source::Delivery;

/// Names of metrics.
pub mod name {
    /// Counter, labels `worker`, `kind`, `outcome` (done, retried, rejected, snoozed, released, lost): attempts
    /// that ended.
    pub const JOBS: &str = "tidegate_jobs_total";
    /// Counter, labels `worker`, `kind`: attempts that panicked (they are among the failed ones too).
    pub const PANICS: &str = "tidegate_job_panics_total";
    /// Counter, labels `worker`, `kind`: attempts that ran into their timeout.
    pub const TIMEOUTS: &str = "tidegate_job_timeouts_total";
    /// Histogram, seconds, labels `worker`, `kind`: from a handler's start to its end.
    pub const RUN_SECONDS: &str = "tidegate_job_run_seconds";
    /// Histogram, seconds, labels `worker`, `kind`: from enqueueing to the start of the first attempt.
    pub const LATENCY_SECONDS: &str = "tidegate_job_latency_seconds";
    /// Gauge, label `worker`: deliveries past fetch and not yet settled.
    pub const IN_FLIGHT: &str = "tidegate_jobs_in_flight";
    /// Gauge, label `worker`: slots that no job occupies.
    pub const FREE_SLOTS: &str = "tidegate_slots_free";
    /// Counter, label `worker`: fetches that were answered, empty or not.
    pub const FETCHES: &str = "tidegate_fetches_total";
    /// Counter, label `worker`: deliveries that fetches brought.
    pub const DELIVERIES: &str = "tidegate_deliveries_total";
    /// Counter, label `worker`: fetches that failed.
    pub const FETCH_FAILURES: &str = "tidegate_fetch_failures_total";
    /// Counter, label `worker`: settlements that the source confirmed.
    pub const SETTLEMENTS: &str = "tidegate_settlements_total";
    /// Counter, label `worker`: batches of settlements that failed and were kept.
    pub const SETTLE_FAILURES: &str = "tidegate_settle_failures_total";
    /// Counter, label `worker`: deliveries that were no longer ours when they were to be settled.
    pub const STALE: &str = "tidegate_stale_deliveries_total";
    /// Counter, labels `worker`, `connection` (`source` or `heartbeat`): sessions made after the first.
    pub const RECONNECTS: &str = "tidegate_reconnects_total";
    /// Gauge, labels `worker`, `connection`: 1 while there is a session, else 0.
    pub const CONNECTED: &str = "tidegate_connected";
    /// Counter, label `worker`: leases renewed.
    pub const RENEWALS: &str = "tidegate_lease_renewals_total";
    /// Counter, label `worker`: batches of renewals that failed.
    pub const RENEWAL_FAILURES: &str = "tidegate_lease_renewal_failures_total";
    /// Counter, label `worker`: leases that were lost.
    pub const LEASES_LOST: &str = "tidegate_leases_lost_total";
    /// Histogram, seconds, label `worker`: how long after it was due a renewal was sent.
    pub const RENEWAL_LATENESS: &str = "tidegate_lease_renewal_lateness_seconds";
}

/// The handles of one worker.
#[derive(Clone)]
pub(crate) struct Telemetry {
    pub(crate) in_flight: Gauge,
    pub(crate) free_slots: Gauge,
    pub(crate) fetches: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) fetch_failures: Counter,
    pub(crate) settlements: Counter,
    pub(crate) settle_failures: Counter,
    pub(crate) stale: Counter,
    pub(crate) renewals: Counter,
    pub(crate) renewal_failures: Counter,
    pub(crate) leases_lost: Counter,
    pub(crate) renewal_lateness: Histogram,
}

impl Telemetry {
    pub(crate) fn register(worker: &str) -> Self {
        let counter = |name: &'static str| metrics::counter!(name, "worker" => worker.to_owned());
        let gauge = |name: &'static str| metrics::gauge!(name, "worker" => worker.to_owned());
        Self {
            in_flight: gauge(name::IN_FLIGHT),
            free_slots: gauge(name::FREE_SLOTS),
            fetches: counter(name::FETCHES),
            deliveries: counter(name::DELIVERIES),
            fetch_failures: counter(name::FETCH_FAILURES),
            settlements: counter(name::SETTLEMENTS),
            settle_failures: counter(name::SETTLE_FAILURES),
            stale: counter(name::STALE),
            renewals: counter(name::RENEWALS),
            renewal_failures: counter(name::RENEWAL_FAILURES),
            leases_lost: counter(name::LEASES_LOST),
            renewal_lateness: metrics::histogram!(name::RENEWAL_LATENESS, "worker" => worker.to_owned()),
        }
    }
}

/// The handles of one connection.
#[derive(Clone)]
pub(crate) struct ConnectionTelemetry {
    pub(crate) reconnects: Counter,
    pub(crate) connected: Gauge,
}

impl ConnectionTelemetry {
    pub(crate) fn register(worker: &str, connection: &'static str) -> Self {
        Self {
            reconnects: metrics::counter!(name::RECONNECTS, "worker" => worker.to_owned(), "connection" => connection),
            connected: metrics::gauge!(name::CONNECTED, "worker" => worker.to_owned(), "connection" => connection),
        }
    }
}

/// The values of the label `outcome` of [`name::JOBS`], one counter each.
#[derive(Clone)]
pub(crate) struct Outcomes {
    /// `done`: acknowledged.
    pub(crate) done: Counter,
    /// `retried`: failed, and will be tried again.
    pub(crate) retried: Counter,
    /// `rejected`: to the dead letters.
    pub(crate) rejected: Counter,
    /// `snoozed`: the handler asked for later.
    pub(crate) snoozed: Counter,
    /// `released`: handed back, at shutdown or because its kind was at its cap.
    pub(crate) released: Counter,
    /// `lost`: its lease was lost, nothing was settled.
    pub(crate) lost: Counter,
}

/// The handles of one kind in one worker.
#[derive(Clone)]
pub(crate) struct KindTelemetry {
    pub(crate) outcomes: Outcomes,
    pub(crate) panics: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) run_seconds: Histogram,
    pub(crate) latency_seconds: Histogram,
}

impl KindTelemetry {
    /// `kind` must come from the registry, not from a payload: labels are for ever.
    pub(crate) fn register(worker: &str, kind: &Kind) -> Self {
        let labels = || [("worker", worker.to_owned()), ("kind", kind.as_str().to_owned())];
        let outcome = |outcome: &'static str| {
            let [worker, kind] = labels();
            metrics::counter!(name::JOBS, &[worker, kind, ("outcome", outcome.to_owned())])
        };
        Self {
            outcomes: Outcomes {
                done: outcome("done"),
                retried: outcome("retried"),
                rejected: outcome("rejected"),
                snoozed: outcome("snoozed"),
                released: outcome("released"),
                lost: outcome("lost"),
            },
            panics: metrics::counter!(name::PANICS, &labels()),
            timeouts: metrics::counter!(name::TIMEOUTS, &labels()),
            run_seconds: metrics::histogram!(name::RUN_SECONDS, &labels()),
            latency_seconds: metrics::histogram!(name::LATENCY_SECONDS, &labels()),
        }
    }
}

/// Says in words what each metric is, to the recorder that is installed now. Call it once, after installing.
pub fn describe() {
    metrics::describe_counter!(name::JOBS, "Attempts that ended, by kind and outcome");
    metrics::describe_counter!(name::PANICS, "Attempts that panicked");
    metrics::describe_counter!(name::TIMEOUTS, "Attempts that ran into their timeout");
    let seconds = metrics::Unit::Seconds;
    metrics::describe_histogram!(name::RUN_SECONDS, seconds, "From a handler's start to its end");
    metrics::describe_histogram!(
        name::LATENCY_SECONDS,
        seconds,
        "From enqueueing to the start of the first attempt"
    );
    metrics::describe_gauge!(name::IN_FLIGHT, "Deliveries past fetch and not yet settled");
    metrics::describe_gauge!(name::FREE_SLOTS, "Slots that no job occupies");
    metrics::describe_counter!(name::FETCHES, "Fetches that were answered, empty or not");
    metrics::describe_counter!(name::DELIVERIES, "Deliveries that fetches brought");
    metrics::describe_counter!(name::FETCH_FAILURES, "Fetches that failed");
    metrics::describe_counter!(name::SETTLEMENTS, "Settlements that the source confirmed");
    metrics::describe_counter!(name::SETTLE_FAILURES, "Batches of settlements that failed and were kept");
    metrics::describe_counter!(
        name::STALE,
        "Deliveries that were no longer ours when they were to be settled"
    );
    metrics::describe_counter!(name::RECONNECTS, "Sessions made after the first");
    metrics::describe_gauge!(name::CONNECTED, "1 while there is a session, else 0");
    metrics::describe_counter!(name::RENEWALS, "Leases renewed");
    metrics::describe_counter!(name::RENEWAL_FAILURES, "Batches of renewals that failed");
    metrics::describe_counter!(name::LEASES_LOST, "Leases that were lost");
    metrics::describe_histogram!(
        name::RENEWAL_LATENESS,
        seconds,
        "How long after it was due a renewal was sent"
    );
}

/// The span of one attempt: `job` with `id`, `kind`, `queue` and `attempt`, at level `INFO`.
pub(crate) fn job_span(delivery: &Delivery) -> tracing::Span {
    let job = &delivery.job;
    let queue: &Queue = &job.queue;
    tracing::info_span!("job", id = %job.id, kind = %job.kind, queue = %queue, attempt = delivery.attempt)
}

/// A duration as a histogram takes it.
pub(crate) fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
