//! A queue without leases, whose pop destroys.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tidegate::{
    Delivery, Error, FetchRequest, Intake, Job, JobId, Kind, Settled, Settlement, Source, Stale, Tag,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::jobs::KIND;

/// What is popped stands nowhere until the answer has arrived, `reply` later, whether or not anybody still waits
/// for it. Each fetch pops one job.
#[derive(Clone)]
pub(crate) struct Pops {
    queue: Arc<Mutex<VecDeque<u64>>>,
    popped: watch::Sender<usize>,
    reply: Duration,
}

impl Pops {
    pub(crate) fn new(jobs: u64, reply: Duration) -> Self {
        Self { queue: Arc::new(Mutex::new((0..jobs).collect())), popped: watch::Sender::new(0), reply }
    }

    pub(crate) fn intake(&self) -> Intake {
        Intake::fixed(Arc::new(self.clone()))
    }

    /// How many jobs stand in the queue.
    pub(crate) fn len(&self) -> usize {
        self.queue().len()
    }

    /// Waits until a job has been popped.
    pub(crate) async fn popped(&self) {
        self.popped.subscribe().wait_for(|count| *count > 0).await.expect("the sender is held");
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.queue.lock().expect("nothing panics under this lock")
    }
}

#[async_trait]
impl Source for Pops {
    async fn fetch(&self, _: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let popped = self.queue().pop_front();
        let Some(key) = popped else {
            stop.cancelled().await;
            return Ok(Vec::new());
        };
        self.popped.send_modify(|count| *count += 1);
        sleep(self.reply).await;
        let text = key.to_string();
        let job = Job::new(JobId::new(&text), Kind::new(KIND), text.into(), SystemTime::UNIX_EPOCH);
        Ok(vec![Delivery {
            job: Arc::new(job),
            attempt: 1,
            tag: Tag { session: 0, key, token: 0 },
            lease: None,
        }])
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let back = settled.iter().filter(|settled| matches!(settled.settlement, Settlement::Release { .. }));
        self.queue().extend(back.map(|settled| settled.tag.key));
        Ok(Stale::default())
    }
}
