//! What a test gets: a fresh store, what it can do, and short words for what tests do with it.

use std::cell::Cell;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{
    Backend, Counts, Delivery, Enqueue, Enqueued, FetchRequest, Inspect, JobId, JobQuery, JobState, Manage,
    NewJob, Queue, Reclaim, Renew, Renewal, Settled, Settlement, Source, StoredJob, Tag,
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// What a row can do. What is `false` must be refused, and is tested in `refusals`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Hands out leases, has them renewed, and gives the job to another when they run out.
    pub(crate) leases: bool,
    /// Jobs and retries may wait for a time.
    pub(crate) delayed: bool,
    /// A greater priority goes first.
    pub(crate) priorities: bool,
    /// Jobs may have unique keys.
    pub(crate) unique: bool,
    /// Quotas of kinds are kept. A source that can't ignores them, and the worker hands back what is too much.
    pub(crate) quotas: bool,
    /// Jobs of one queue come in the order in which they went in, and one that was handed back is the next.
    pub(crate) order: bool,
    /// A job has its place by when it became available, not by when it was put there.
    pub(crate) places: bool,
    /// Jobs may have a number of attempts and a timeout of their own, and know when they were enqueued.
    pub(crate) attributes: bool,
    /// Attempts that have ended can be looked at.
    pub(crate) history: bool,
    /// Settles and takes in one exchange. A source that can't does one after the other.
    pub(crate) exchange: bool,
}

impl Features {
    pub(crate) const ALL: Self = Self {
        leases: true,
        delayed: true,
        priorities: true,
        unique: true,
        quotas: true,
        order: true,
        places: true,
        attributes: true,
        history: true,
        exchange: true,
    };
}

/// One fresh store.
pub(crate) struct Fixture {
    pub(crate) backend: Backend,
    pub(crate) has: Features,
    /// Where the tests' jobs go in. Some backends only take out; their rows bring a producer.
    pub(crate) producer: Arc<dyn Enqueue>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) renewer: Option<Arc<dyn Renew>>,
    /// For how long a lease is granted.
    pub(crate) ttl: Duration,
    in_company: bool,
    /// By how much something may come late.
    pub(crate) slack: Duration,
    /// What must stay for as long as the store is used: the folder that it is in, say.
    _kept: Option<Box<dyn Send + Sync>>,
}

/// Ends the test, on one visible line, if the row has not the feature.
macro_rules! needs {
    ($fixture:ident, $feature:ident) => {
        if !$fixture.has.$feature {
            return $fixture.skip(stringify!($feature));
        }
    };
    ($fixture:ident, verb $verb:ident) => {
        if $fixture.backend.$verb.is_none() {
            return $fixture.skip(stringify!($verb));
        }
    };
}
pub(crate) use needs;

/// A job of no importance.
pub(crate) fn job(payload: &str) -> NewJob {
    NewJob::new("kind", payload.to_owned())
}

std::thread_local! {
    /// What a test calls a second is a real one on a paused clock, and a part of one where time really has to pass.
    static SCALE: Cell<u32> = const { Cell::new(1) };
}

/// From now on, in this test, a second is the `part`-th part of one.
#[cfg(feature = "redis")]
pub(crate) fn shorten_seconds(part: u32) {
    SCALE.set(part);
}

/// Each test has a thread of its own, on which all its tasks run.
pub(crate) fn secs(count: u64) -> Duration {
    Duration::from_secs(count) / SCALE.get()
}

/// A request for at most `max` that does not wait.
pub(crate) fn at_once(max: usize) -> FetchRequest {
    FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), Duration::ZERO)
}

/// A request for at most `max` that waits for a minute.
pub(crate) fn waiting(max: usize) -> FetchRequest {
    FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), secs(60))
}

pub(crate) fn of_queues(mut wanted: FetchRequest, queues: &[&str]) -> FetchRequest {
    wanted.queues = queues.iter().map(Queue::new).collect();
    wanted
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.job.payload).into_owned()
}

pub(crate) fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(text).collect()
}

/// Polls once, and wants to find it waiting.
pub(crate) fn assert_waits<T: Debug>(future: std::pin::Pin<&mut impl Future<Output = T>>) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Pending => {}
        std::task::Poll::Ready(answer) => panic!("it did not wait: {answer:?}"),
    }
}

impl Fixture {
    /// A store of which everything goes through one backend.
    pub(crate) async fn of(backend: Backend, has: Features, ttl: Duration, slack: Duration) -> Self {
        let source = backend.intake.source.connect().await.expect("a source");
        let renewer = match &backend.intake.renew {
            Some(maker) => Some(maker.connect().await.expect("a renewer")),
            None => None,
        };
        let producer = backend.enqueue().expect("a producer").clone();
        Self { backend, has, producer, source, renewer, ttl, slack, in_company: false, _kept: None }
    }

    /// While time passes, others look for work, so that a silence is not taken for an outage.
    #[cfg(feature = "redis")]
    pub(crate) fn in_company(self) -> Self {
        Self { in_company: true, ..self }
    }

    /// The same with something that goes when it goes.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(crate) fn keeping(mut self, what: impl Send + Sync + 'static) -> Self {
        self._kept = Some(Box::new(what));
        self
    }

    pub(crate) fn skip(&self, what: &str) {
        eprintln!("skipped: {} has no such thing as: {what}", self.backend.name);
    }

    // ---- producers ----

    /// The job with this priority, where there are any.
    pub(crate) fn rated(&self, job: NewJob, priority: i16) -> NewJob {
        if self.has.priorities { job.priority(priority) } else { job }
    }

    pub(crate) async fn answer(&self, job: NewJob) -> Enqueued {
        self.producer.enqueue(vec![job]).await.expect("enqueued").remove(0)
    }

    /// Enqueues a job that is to be a new one.
    pub(crate) async fn push(&self, job: NewJob) -> JobId {
        match self.answer(job).await {
            Enqueued::Created(id) => id,
            other => panic!("no new job: {other:?}"),
        }
    }

    /// Enqueues jobs with these payloads, one after the other.
    pub(crate) async fn push_all(&self, payloads: &[&str]) -> Vec<JobId> {
        let mut ids = Vec::new();
        for payload in payloads {
            ids.push(self.push(job(payload)).await);
        }
        ids
    }

    /// The job with a number of attempts, if there is such a thing.
    pub(crate) fn with_attempts(&self, job: NewJob, most: u32) -> NewJob {
        if self.has.attributes { job.max_attempts(most) } else { job }
    }

    // ---- workers ----

    pub(crate) async fn fetch(&self, wanted: &FetchRequest) -> Vec<Delivery> {
        self.source.fetch(wanted, &CancellationToken::new()).await.expect("fetched")
    }

    /// Takes at most `max` of what is there.
    pub(crate) async fn take(&self, max: usize) -> Vec<Delivery> {
        self.fetch(&at_once(max)).await
    }

    /// Takes what must be the only job there.
    pub(crate) async fn one(&self) -> Delivery {
        let mut taken = self.take(2).await;
        assert_eq!(taken.len(), 1, "one job was expected: {taken:?}");
        taken.remove(0)
    }

    /// Says whether it counted.
    pub(crate) async fn settle(&self, tag: Tag, settlement: Settlement) -> bool {
        let stale = self.source.settle(&[Settled::new(tag, settlement)]).await.expect("settled").0;
        assert!(stale.is_empty() || stale == [tag], "{stale:?}");
        stale.is_empty()
    }

    pub(crate) async fn ack(&self, delivery: &Delivery) {
        assert!(self.settle(delivery.tag, Settlement::Ack).await, "stale: {delivery:?}");
    }

    pub(crate) async fn retry(&self, delivery: &Delivery, after: Duration) {
        assert!(self.settle(delivery.tag, Settlement::Retry { after }).await, "stale: {delivery:?}");
    }

    pub(crate) async fn release(&self, delivery: &Delivery, after: Duration) {
        assert!(self.settle(delivery.tag, Settlement::Release { after }).await, "stale: {delivery:?}");
    }

    pub(crate) async fn reject(&self, delivery: &Delivery) {
        assert!(self.settle(delivery.tag, Settlement::Reject).await, "stale: {delivery:?}");
    }

    pub(crate) async fn renew(&self, tags: &[Tag]) -> Vec<Renewal> {
        self.renewer.as_ref().expect("a row with leases has a renewer").renew(tags).await.expect("renewed")
    }

    // ---- people ----

    pub(crate) fn inspect(&self) -> &Arc<dyn Inspect> {
        self.backend.inspect().expect("asked for before")
    }

    pub(crate) fn manage(&self) -> &Arc<dyn Manage> {
        self.backend.manage().expect("asked for before")
    }

    pub(crate) fn reclaim(&self) -> &Arc<dyn Reclaim> {
        self.backend.reclaim().expect("asked for before")
    }

    /// Ready, delayed, leased, dead, done.
    pub(crate) async fn counts(&self) -> [u64; 5] {
        let Counts { ready, delayed, leased, dead, done, .. } =
            self.inspect().counts().await.expect("counted");
        [ready, delayed, leased, dead, done]
    }

    pub(crate) async fn find(&self, id: &JobId) -> Option<StoredJob> {
        self.inspect().find(id).await.expect("asked")
    }

    pub(crate) async fn list(&self, state: JobState, max: usize) -> Vec<StoredJob> {
        self.inspect().list(&JobQuery::new(state, max)).await.expect("listed")
    }

    // ---- time ----

    /// Lets time pass; everything that can go on meanwhile does.
    pub(crate) async fn pass(&self, time: Duration) {
        let Some(others) = self.backend.reclaim.as_ref().filter(|_| self.in_company) else {
            return sleep(time).await;
        };
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
            others.reclaim(0).await.expect("asked");
        }
    }

    /// Lets everything go on until it waits for something.
    pub(crate) async fn calm(&self) {
        sleep(Duration::from_millis(1).max(self.slack / 2)).await;
    }

    /// Wants `time` to have passed since `start`, and hardly more.
    pub(crate) fn assert_passed(&self, start: Instant, time: Duration) {
        let passed = start.elapsed();
        assert!(time <= passed && passed <= time + self.slack, "{passed:?} passed instead of {time:?}");
    }

    // ---- the end ----

    /// Nothing is left to do, and nothing is with anybody.
    pub(crate) async fn finish(self) {
        let left = self.take(1).await;
        assert!(left.is_empty(), "left over: {left:?}");
        if self.backend.inspect.is_some() {
            let [ready, delayed, leased, ..] = self.counts().await;
            assert_eq!([ready, delayed, leased], [0; 3], "left over: ready, delayed, leased");
        }
    }
}
