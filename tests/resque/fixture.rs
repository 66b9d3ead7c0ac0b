//! A server, a handle in Resque's layout, and a session of a worker.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tidegate::backend::redis::{Layout, Redis, RedisBuilder};
use tidegate::{Delivery, Enqueue, FetchRequest, NewJob, Queue, Settled, Settlement, Source};
use tokio_util::sync::CancellationToken;

use crate::redis::RedisServer;

pub(crate) struct Scene {
    pub(crate) server: RedisServer,
    pub(crate) redis: Redis,
    pub(crate) source: Arc<dyn Source>,
}

impl Scene {
    pub(crate) async fn start() -> Option<Self> {
        Self::with(|builder| builder).await
    }

    pub(crate) async fn with(set: impl FnOnce(RedisBuilder) -> RedisBuilder) -> Option<Self> {
        let server = RedisServer::start()?;
        let redis = set(Redis::builder(&server.url()).layout(Layout::Resque)).open().expect("good settings");
        let source = redis.intake().source.connect().await.expect("a source");
        Some(Self { server, redis, source })
    }

    pub(crate) async fn push(&self, job: NewJob) {
        self.redis.enqueue(vec![job]).await.expect("enqueued");
    }

    /// Takes at most `max` from these queues; waits until there is one.
    pub(crate) async fn take(&self, max: usize, queues: &[&str]) -> Vec<Delivery> {
        self.fetch(max, queues, Duration::from_secs(20)).await
    }

    pub(crate) async fn fetch(&self, max: usize, queues: &[&str], wait: Duration) -> Vec<Delivery> {
        self.source.fetch(&wanted(max, queues, wait), &CancellationToken::new()).await.expect("fetched")
    }

    pub(crate) async fn settle(&self, delivery: &Delivery, settlement: Settlement, why: &str) {
        let settled = Settled::new(delivery.tag, settlement).because(why);
        let stale = self.source.settle(&[settled]).await.expect("settled");
        assert!(stale.0.is_empty(), "stale: {delivery:?}");
    }

    /// What a command answers, as text.
    pub(crate) fn ask(&self, parts: &[&str]) -> String {
        self.server.command(parts).text()
    }

    /// The names of all keys, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys = self.server.command(&["KEYS", "*"]).texts();
        keys.sort();
        keys
    }

    /// How this handle is called in the list of workers.
    pub(crate) fn worker(&self) -> String {
        let workers = self.server.command(&["SMEMBERS", "resque:workers"]).texts();
        assert_eq!(workers.len(), 1, "{workers:?}");
        workers[0].clone()
    }
}

pub(crate) fn wanted(max: usize, queues: &[&str], wait: Duration) -> FetchRequest {
    let mut wanted = FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), wait);
    wanted.queues = queues.iter().map(Queue::new).collect();
    wanted
}

/// Waits until it is so, while other tasks go on.
pub(crate) async fn until_async(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Takes from all queues, and wants apisonator's before others.
pub(crate) async fn queues_of_apisonator_first(scene: &Scene) {
    for queue in ["zeta", "stats", "default", "priority", "alpha", "main"] {
        scene.push(NewJob::new("A", "[]").queue(queue)).await;
    }
    for (most, expected) in [(1, &["priority"][..]), (9, &["main", "stats", "alpha", "default", "zeta"])] {
        let taken = scene.take(most, &[]).await;
        let queues: Vec<&str> = taken.iter().map(|it| it.job.queue.as_str()).collect();
        assert_eq!(queues, expected);
    }
}
