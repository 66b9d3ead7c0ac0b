//! Small things that most tests begin with.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tidegate::{
    Context, IntoOutcome, Job, JobId, JobPhase, Kind, Registry, Report, Shutdown, State, Stats, Worker,
    WorkerHandle,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;

use super::leftovers::Leftovers;
use super::signals::{Gate, Inside};

/// The kind of jobs of which a test needs only one.
pub(crate) const KIND: &str = "work";

/// A job of kind `work` whose payload is `null`.
pub(crate) fn job(id: impl std::fmt::Display) -> Job {
    Job::new(JobId::new(id.to_string()), Kind::new(KIND), Bytes::from_static(b"null"), wall_clock())
}

/// The same, with a payload.
pub(crate) fn job_with(id: impl std::fmt::Display, payload: impl std::fmt::Display) -> Job {
    let mut job = job(id);
    job.payload = Bytes::from(payload.to_string());
    job
}

/// The payload as a number.
pub(crate) fn number(context: &Context) -> u64 {
    std::str::from_utf8(context.payload())
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("the payload is a number")
}

/// `count` jobs of kind `work`, whose ids are `0`, `1` and so on.
pub(crate) fn jobs(count: usize) -> impl Iterator<Item = Job> {
    (0..count).map(job)
}

/// A registry with one raw handler, of kind `work`.
pub(crate) fn registry_of<F, Fut, R>(handler: F) -> Registry
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoOutcome + 'static,
{
    Registry::new().handle_raw(KIND, handler)
}

/// Jobs that wait at a gate, and who is inside.
pub(crate) fn gated(gate: &Arc<Gate>, inside: &Inside) -> Registry {
    let (gate, inside) = (gate.clone(), inside.clone());
    registry_of(move |_: Context| {
        let (gate, stay) = (gate.clone(), inside.enter());
        async move {
            gate.pass().await;
            drop(stay);
        }
    })
}

/// Jobs that let others go first once, and who is inside.
pub(crate) fn brief(inside: &Inside) -> Registry {
    let inside = inside.clone();
    registry_of(move |_: Context| {
        let stay = inside.enter();
        async move {
            tokio::task::yield_now().await;
            drop(stay);
        }
    })
}

/// Panics, as a handler whose type is still `()`.
pub(crate) fn panics(why: impl std::fmt::Display) {
    panic!("{why}");
}

#[expect(clippy::disallowed_methods, reason = "what a producer would write into the job")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A name that no other worker of this process has, short enough that both of its threads carry it whole:
/// Linux keeps 15 bytes of `tidegate-hb-` and the name.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{:03x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How long a test waits for what must happen: on real threads half a minute; tests on one thread run under
/// a paused clock, where a year costs nothing.
pub(crate) fn patience() -> Duration {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Duration::from_secs(365 * 24 * 3600),
        _ => Duration::from_secs(30),
    }
}

/// Runs `worker` while `scenario` happens, then stops it. Fails when it takes too long, and when the worker
/// leaves a task or a delivery behind.
pub(crate) async fn during<T>(worker: Worker, scenario: impl Future<Output = T>) -> (Report, T) {
    let (left, handle) = (Leftovers::before(), worker.handle());
    let shutdown = Shutdown::new();
    let both = async {
        tokio::join!(worker.run(shutdown.clone()), async {
            let answer = scenario.await;
            shutdown.stop();
            answer
        })
    };
    let (report, answer) =
        tokio::time::timeout(patience(), both).await.expect("the worker and the test end in time");
    let Stats { state, in_flight, running, .. } = handle.stats();
    assert_eq!((state, in_flight, running), (State::Ended, 0, 0));
    assert!(report.held.is_empty(), "{report}");
    left.none().await;
    (report, answer)
}

/// How far the job has got, if it is in flight.
pub(crate) async fn phase_of(handle: &WorkerHandle, id: &str) -> Option<JobPhase> {
    handle.jobs().await.iter().find(|view| view.id.as_str() == id).map(|view| view.phase)
}

/// Waits until the job has got so far; fails if it never does.
pub(crate) async fn until_phase(handle: &WorkerHandle, id: &str, phase: JobPhase) {
    let limit = Instant::now() + Duration::from_secs(30);
    while phase_of(handle, id).await != Some(phase) {
        assert!(Instant::now() < limit, "{id} never came into {phase:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
