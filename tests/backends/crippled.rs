//! A store that can do little: memory, with most verbs and options taken away.
//!
//! It stands for the queues that others made: no leases, no delays, nothing to look at.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate::{
    Backend, Delivery, Enqueue, Enqueued, Error, ErrorKind, FetchRequest, Intake, Memory, NewJob, Settled,
    Settlement, Source, Stale, Start,
};
use tokio_util::sync::CancellationToken;

const NAME: &str = "crippled";

pub(crate) fn cripple(memory: &Memory) -> Backend {
    let crippled = Arc::new(Crippled(memory.clone()));
    let mut backend = Backend::new(NAME, Intake::fixed(crippled.clone()));
    backend.enqueue = Some(crippled);
    backend
}

struct Crippled(Memory);

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the backend {NAME} has no {what}"))
}

#[async_trait]
impl Source for Crippled {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let mut wanted = wanted.clone();
        wanted.quotas.clear();
        let mut taken = self.0.fetch(&wanted, stop).await?;
        taken.iter_mut().for_each(|delivery| delivery.lease = None);
        Ok(taken)
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        for one in settled {
            match one.settlement {
                Settlement::Retry { after } | Settlement::Release { after } if !after.is_zero() => {
                    return Err(unsupported("delayed jobs"));
                }
                _ => {}
            }
        }
        self.0.settle(settled).await
    }
}

#[async_trait]
impl Enqueue for Crippled {
    async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        for job in &jobs {
            if job.start != Start::Now {
                return Err(unsupported("delayed jobs"));
            }
            if job.priority != 0 {
                return Err(unsupported("priorities"));
            }
            if job.unique.is_some() {
                return Err(unsupported("unique keys"));
            }
        }
        self.0.enqueue(jobs).await
    }
}
