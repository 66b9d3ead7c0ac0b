//! Remembers what passes between a worker and its source: [`Recording`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tidegate::{Delivery, Error, FetchRequest, JobId, Settled, Settlement, Source, Stale, Tag};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One settlement that the source has answered.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) id: JobId,
    pub(crate) attempt: u32,
    pub(crate) settlement: Settlement,
    pub(crate) reason: Option<Arc<str>>,
    pub(crate) output: Option<Arc<[u8]>>,
    pub(crate) stale: bool,
    pub(crate) at: Instant,
}

/// A source that remembers: what it handed over and was told, and how many deliveries were past fetch and
/// not yet settled, at every instant.
pub(crate) struct Recording {
    inner: Arc<dyn Source>,
    log: Mutex<Log>,
    bell: Notify,
}

#[derive(Default)]
struct Log {
    /// Past fetch, and not yet settled.
    held: HashMap<Tag, (JobId, u32)>,
    most_held: usize,
    /// What was held, and what might have been on top of it, when a fetch began.
    most_promised: usize,
    fetching: usize,
    most_fetching: usize,
    requests: Vec<FetchRequest>,
    delivered: Vec<(JobId, u32)>,
    told: Vec<Told>,
    batches: Vec<usize>,
    /// Jobs that were settled in each try, answered or not.
    tries: Vec<Vec<JobId>>,
}

impl Recording {
    pub(crate) fn around(inner: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { inner, log: Mutex::default(), bell: Notify::new() })
    }

    /// Past fetch and not yet settled, now.
    pub(crate) fn held(&self) -> usize {
        self.log().held.len()
    }

    /// The most that were ever held at once.
    pub(crate) fn most_held(&self) -> usize {
        self.log().most_held
    }

    /// The most that were held and asked for when a fetch began: what could have been held.
    pub(crate) fn most_promised(&self) -> usize {
        self.log().most_promised
    }

    /// Begins to look for the greatest numbers anew.
    pub(crate) fn forget_the_most(&self) {
        let mut log = self.log();
        log.most_held = log.held.len();
        log.most_promised = 0;
    }

    /// The most fetches that were under way at once.
    pub(crate) fn most_fetching(&self) -> usize {
        self.log().most_fetching
    }

    pub(crate) fn requests(&self) -> Vec<FetchRequest> {
        self.log().requests.clone()
    }

    /// What was handed over: the job and its attempt.
    pub(crate) fn delivered(&self) -> Vec<(JobId, u32)> {
        self.log().delivered.clone()
    }

    /// What it was told and has answered.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.log().told.clone()
    }

    /// What it was told of one job.
    pub(crate) fn told_of(&self, id: &str) -> Vec<Told> {
        self.log().told.iter().filter(|told| told.id.as_str() == id).cloned().collect()
    }

    /// The sizes of the batches that were answered.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.log().batches.clone()
    }

    /// The jobs of each call to settle, answered or not.
    pub(crate) fn tries(&self) -> Vec<Vec<JobId>> {
        self.log().tries.clone()
    }

    /// Waits until it has been told so much.
    pub(crate) async fn has_been_told(&self, settlements: usize) {
        self.when(|log| log.told.len() >= settlements).await;
    }

    /// Waits until so many deliveries have been handed over.
    pub(crate) async fn has_delivered(&self, deliveries: usize) {
        self.when(|log| log.delivered.len() >= deliveries).await;
    }

    /// Waits until so many fetches have begun.
    pub(crate) async fn has_been_asked(&self, fetches: usize) {
        self.when(|log| log.requests.len() >= fetches).await;
    }

    async fn when(&self, condition: impl Fn(&Log) -> bool) {
        loop {
            let mut bell = std::pin::pin!(self.bell.notified());
            bell.as_mut().enable();
            if condition(&self.log()) {
                return;
            }
            bell.await;
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Source for Recording {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        {
            let mut log = self.log();
            log.requests.push(wanted.clone());
            log.most_promised = log.most_promised.max(log.held.len() + wanted.max.get());
            log.fetching += 1;
            log.most_fetching = log.most_fetching.max(log.fetching);
        }
        self.bell.notify_waiters();
        let answer = self.inner.fetch(wanted, stop).await;
        {
            let mut log = self.log();
            log.fetching -= 1;
            for delivery in answer.iter().flatten() {
                let (id, attempt) = (delivery.job.id.clone(), delivery.attempt);
                log.delivered.push((id.clone(), attempt));
                log.held.insert(delivery.tag, (id, attempt));
            }
            log.most_held = log.most_held.max(log.held.len());
        }
        self.bell.notify_waiters();
        answer
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        {
            let mut log = self.log();
            let ids =
                settled.iter().filter_map(|settled| Some(log.held.get(&settled.tag)?.0.clone())).collect();
            log.tries.push(ids);
        }
        let answer = self.inner.settle(settled).await;
        if let Ok(Stale(stale)) = &answer {
            let mut log = self.log();
            log.batches.push(settled.len());
            for settled in settled {
                let Some((id, attempt)) = log.held.remove(&settled.tag) else {
                    panic!("{settled:?} settles what was never handed over, or was settled before");
                };
                let stale = stale.contains(&settled.tag);
                let Settled { settlement, reason, output, .. } = settled.clone();
                log.told.push(Told { id, attempt, settlement, reason, output, stale, at: Instant::now() });
            }
        }
        self.bell.notify_waiters();
        answer
    }
}
