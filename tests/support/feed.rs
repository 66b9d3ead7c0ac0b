//! The least that a queue can be: [`Feed`].

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate::{
    Delivery, Error, ErrorKind, FetchRequest, Intake, Job, JobId, Lease, Renew, Renewal, Settled, Settlement,
    Source, Stale, Tag,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A queue that a test fills and looks into. Counts attempts, brings back what is retried or released, keeps
/// what is rejected, and answers what is no longer ours as stale.
///
/// Made by [`Feed::new`] or [`Feed::generated`], then [`shared`](Feed::shared).
pub(crate) struct Feed {
    state: Mutex<State>,
    bell: Notify,
    ttl: Option<Duration>,
    at_most: usize,
    filters: bool,
    ends: bool,
}

/// A job that was rejected.
#[derive(Clone, Debug)]
pub(crate) struct Dead {
    pub(crate) job: Arc<Job>,
    pub(crate) attempt: u32,
    pub(crate) reason: Option<Arc<str>>,
}

type Generator = Box<dyn FnMut(usize) -> Job + Send>;

#[derive(Default)]
struct State {
    generator: Option<(Generator, std::ops::Range<usize>)>,
    ready: VecDeque<Waiting>,
    delayed: Vec<(Instant, Waiting)>,
    out: HashMap<u64, Out>,
    done: Vec<JobId>,
    dead: Vec<Dead>,
    next_key: u64,
    expired: usize,
}

struct Waiting {
    job: Arc<Job>,
    key: u64,
    token: u64,
    /// Attempts that were begun and not handed back.
    attempts: u32,
}

struct Out {
    job: Waiting,
    until: Option<Instant>,
}

impl Feed {
    /// An empty queue without leases.
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            bell: Notify::new(),
            ttl: None,
            at_most: usize::MAX,
            filters: true,
            ends: false,
        }
    }

    /// A queue of `count` jobs, each made by `make` when it is fetched.
    pub(crate) fn generated(count: usize, make: impl FnMut(usize) -> Job + Send + 'static) -> Self {
        let feed = Self::new();
        feed.state().generator = Some((Box::new(make), 0..count));
        feed
    }

    /// Each delivery has a lease; a job whose lease has run out is handed out again.
    pub(crate) fn leased(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// A fetch brings at most so many, however many are there.
    pub(crate) fn at_most(mut self, deliveries: usize) -> Self {
        self.at_most = deliveries;
        self
    }

    /// Ignores queues and quotas, as a source that can't filter does.
    pub(crate) fn without_filters(mut self) -> Self {
        self.filters = false;
        self
    }

    /// Says that it is closed once nothing is ready.
    pub(crate) fn ending(mut self) -> Self {
        self.ends = true;
        self
    }

    /// Filled with `jobs`.
    pub(crate) fn with(self, jobs: impl IntoIterator<Item = Job>) -> Self {
        jobs.into_iter().for_each(|job| self.push(job));
        self
    }

    pub(crate) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    pub(crate) fn intake(self: &Arc<Self>) -> Intake {
        let intake = Intake::fixed(self.clone());
        if self.ttl.is_some() { intake.renewed_by_fixed(self.clone()) } else { intake }
    }

    pub(crate) fn push(&self, job: Job) {
        {
            let mut state = self.state();
            let key = state.next_key;
            state.next_key += 1;
            state.ready.push_back(Waiting { job: Arc::new(job), key, token: 0, attempts: 0 });
        }
        self.bell.notify_waiters();
    }

    /// Waits until nothing is ready, delayed or out.
    pub(crate) async fn drained(&self) {
        self.when(|state| state.unfinished() == 0).await;
    }

    /// Waits until so many jobs are done or dead.
    pub(crate) async fn finished(&self, jobs: usize) {
        self.when(|state| state.done.len() + state.dead.len() >= jobs).await;
    }

    /// Jobs that were acknowledged, in that order.
    pub(crate) fn done(&self) -> Vec<JobId> {
        self.state().done.clone()
    }

    /// Jobs that were rejected, in that order.
    pub(crate) fn dead(&self) -> Vec<Dead> {
        self.state().dead.clone()
    }

    /// Jobs that are ready or wait for their time, with the attempts that count.
    pub(crate) fn waiting(&self) -> Vec<(JobId, u32)> {
        let state = self.state();
        let delayed = state.delayed.iter().map(|(_, job)| job);
        state.ready.iter().chain(delayed).map(|waiting| (waiting.job.id.clone(), waiting.attempts)).collect()
    }

    /// How many deliveries are out.
    pub(crate) fn out(&self) -> usize {
        self.state().out.len()
    }

    /// How many leases have run out.
    pub(crate) fn expired(&self) -> usize {
        self.state().expired
    }

    /// Takes all that is out away from whoever has it: the leases are lost, the jobs available again.
    pub(crate) fn take_back_all(&self) {
        {
            let mut state = self.state();
            let out: Vec<u64> = state.out.keys().copied().collect();
            out.into_iter().for_each(|key| state.take_back(key));
        }
        self.bell.notify_waiters();
    }

    async fn when(&self, mut condition: impl FnMut(&State) -> bool) {
        loop {
            let mut bell = pin!(self.bell.notified());
            bell.as_mut().enable();
            if condition(&self.state()) {
                return;
            }
            bell.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a fetch finds now, or until when it would have to wait.
    fn take(&self, wanted: &FetchRequest) -> Result<Vec<Delivery>, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        state.advance(now);
        let max = wanted.max.get().min(self.at_most);
        let mut taken = Vec::new();
        let mut quotas = if self.filters { wanted.quotas.clone() } else { Vec::new() };
        let queues: Vec<_> = if self.filters { wanted.queues.iter().map(Some).collect() } else { Vec::new() };
        let queues = if queues.is_empty() { vec![None] } else { queues };
        for queue in queues {
            while taken.len() < max {
                let Some(job) = state.next(|job| {
                    queue.is_none_or(|queue| job.queue == *queue)
                        && quotas.iter().all(|(kind, left)| *kind != job.kind || *left > 0)
                }) else {
                    break;
                };
                if let Some((_, left)) = quotas.iter_mut().find(|(kind, _)| *kind == job.job.kind) {
                    *left -= 1;
                }
                taken.push(state.hand_out(job, self.ttl, now));
            }
        }
        if taken.is_empty() { Err(state.next_event()) } else { Ok(taken) }
    }
}

impl State {
    fn unfinished(&self) -> usize {
        let left = self.generator.as_ref().map_or(0, |(_, left)| left.len());
        left + self.ready.len() + self.delayed.len() + self.out.len()
    }

    /// The first that `fits`; generated jobs come after the others.
    fn next(&mut self, fits: impl Fn(&Job) -> bool) -> Option<Waiting> {
        if let Some(at) = self.ready.iter().position(|waiting| fits(&waiting.job)) {
            return self.ready.remove(at);
        }
        let (make, left) = self.generator.as_mut()?;
        for number in left.by_ref() {
            let job = make(number);
            let key = self.next_key;
            self.next_key += 1;
            let waiting = Waiting { job: Arc::new(job), key, token: 0, attempts: 0 };
            if fits(&waiting.job) {
                return Some(waiting);
            }
            self.ready.push_back(waiting);
        }
        None
    }

    fn hand_out(&mut self, mut job: Waiting, ttl: Option<Duration>, now: Instant) -> Delivery {
        job.attempts += 1;
        job.token += 1;
        let tag = Tag { session: 0, key: job.key, token: job.token };
        let lease = ttl.map(|ttl| Lease::new(now, ttl));
        let delivery = Delivery { job: job.job.clone(), attempt: job.attempts, tag, lease };
        self.out.insert(job.key, Out { job, until: ttl.and_then(|ttl| now.checked_add(ttl)) });
        delivery
    }

    /// Brings back what has waited long enough, and whose lease has run out.
    fn advance(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.delayed.len() {
            if self.delayed[at].0 <= now {
                let (_, waiting) = self.delayed.remove(at);
                self.ready.push_back(waiting);
            } else {
                at += 1;
            }
        }
        let over = self.out.iter().filter(|(_, out)| out.until.is_some_and(|until| until <= now));
        let over: Vec<u64> = over.map(|(key, _)| *key).collect();
        for key in over {
            self.expired += 1;
            self.take_back(key);
        }
    }

    fn take_back(&mut self, key: u64) {
        if let Some(out) = self.out.remove(&key) {
            self.ready.push_front(out.job);
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let delayed = self.delayed.iter().map(|(at, _)| *at);
        delayed.chain(self.out.values().filter_map(|out| out.until)).min()
    }

    /// Whether it is still ours.
    fn settle(&mut self, settled: &Settled, now: Instant) -> bool {
        if self.out.get(&settled.tag.key).is_none_or(|out| out.job.token != settled.tag.token) {
            return false;
        }
        let Some(Out { mut job, .. }) = self.out.remove(&settled.tag.key) else { return false };
        match settled.settlement {
            Settlement::Ack => self.done.push(job.job.id.clone()),
            Settlement::Reject => {
                let Waiting { job, attempts: attempt, .. } = job;
                self.dead.push(Dead { job, attempt, reason: settled.reason.clone() });
            }
            Settlement::Retry { after } => self.delayed.push((now + after, job)),
            Settlement::Release { after } => {
                job.attempts -= 1;
                if after.is_zero() {
                    self.ready.push_front(job);
                } else {
                    self.delayed.push((now + after, job));
                }
            }
        }
        true
    }
}

#[async_trait]
impl Source for Feed {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let deadline = Instant::now() + wanted.wait;
        loop {
            let mut bell = pin!(self.bell.notified());
            bell.as_mut().enable();
            if stop.is_cancelled() {
                return Ok(Vec::new());
            }
            let until = match self.take(wanted) {
                Ok(taken) => return Ok(taken),
                Err(_) if self.ends => return Err(Error::new(ErrorKind::Closed, "nothing more will come")),
                Err(until) => until.map_or(deadline, |until| until.min(deadline)),
            };
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = bell => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let now = Instant::now();
        let stale = {
            let mut state = self.state();
            state.advance(now);
            settled.iter().filter(|settled| !state.settle(settled, now)).map(|settled| settled.tag).collect()
        };
        self.bell.notify_waiters();
        Ok(Stale(stale))
    }
}

#[async_trait]
impl Renew for Feed {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let now = Instant::now();
        let mut state = self.state();
        state.advance(now);
        let ttl = self.ttl.unwrap_or_default();
        let renew = |tag: &Tag| match state.out.get_mut(&tag.key) {
            Some(out) if out.job.token == tag.token => {
                out.until = Some(now + ttl);
                Renewal::Kept
            }
            _ => Renewal::Lost,
        };
        Ok(tags.iter().map(renew).collect())
    }
}
