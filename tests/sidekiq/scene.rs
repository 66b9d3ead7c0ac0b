//! A server, a worker on it with its presence, and handlers that remember what they were given.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tidegate::backend::redis::Redis;
use tidegate::service::Presence;
use tidegate::{
    Context, IntoOutcome, Registry, Report, RetryPolicy, Shutdown, Worker, WorkerBuilder, WorkerHandle,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::peers::Ruby;
use crate::redis::RedisServer;

/// The time between two beats: soon enough that nobody waits for one.
pub(crate) const BEAT: Duration = Duration::from_millis(50);

/// How times are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Seconds,
    Millis,
}

/// A server.
pub(crate) struct Scene {
    pub(crate) server: RedisServer,
    pub(crate) url: String,
}

impl Scene {
    /// A server, where there is Sidekiq too; `None` where there is not, which has been said then.
    pub(crate) fn with_sidekiq() -> Option<Self> {
        if Ruby::is_there() { Self::alone() } else { None }
    }

    pub(crate) fn alone() -> Option<Self> {
        let server = RedisServer::start()?;
        let url = server.url();
        Some(Self { server, url })
    }

    pub(crate) fn redis(&self, style: Style) -> Redis {
        let builder = Redis::builder(&self.url);
        let builder = if style == Style::Seconds { builder.times_in_seconds() } else { builder };
        builder.open().expect("good settings")
    }

    /// A handle of which all keys begin so.
    pub(crate) fn behind(&self, prefix: &str) -> Redis {
        Redis::builder(&self.url).prefix(prefix).open().expect("good settings")
    }

    /// The answer to a command, as text.
    pub(crate) fn ask(&self, parts: &[&str]) -> String {
        self.server.command(parts).text()
    }

    pub(crate) fn count(&self, parts: &[&str]) -> i64 {
        self.server.command(parts).number()
    }

    /// The server's clock, in seconds since 1970.
    pub(crate) fn now(&self) -> f64 {
        let time = self.server.command(&["TIME"]).texts();
        format!("{}.{:0>6}", time[0], time[1]).parse().expect("a number")
    }

    /// What jobs of the peer have told in a list: `peer:began` or `peer:ran`.
    pub(crate) fn told(&self, list: &str) -> Vec<Value> {
        let entries = self.server.command(&["LRANGE", list, "0", "-1"]).texts();
        entries.iter().map(|entry| serde_json::from_str(entry).expect("JSON")).collect()
    }

    /// Makes all that waits in this set due, as if its time had come.
    pub(crate) fn make_due(&self, set: &str) {
        for job in self.server.command(&["ZRANGE", set, "0", "-1"]).texts() {
            self.server.command(&["ZADD", set, "XX", "1", &job]);
        }
    }
}

/// A worker that runs on threads of its own, with its presence. Stopped at once when it is dropped.
pub(crate) struct Running {
    pub(crate) handle: WorkerHandle,
    /// As what it is known.
    pub(crate) id: String,
    shutdown: Shutdown,
    thread: Option<thread::JoinHandle<Report>>,
}

impl Running {
    pub(crate) fn start(redis: &Redis, registry: Registry) -> Self {
        Self::start_with(redis, registry, patient, |presence| presence)
    }

    pub(crate) fn start_with(
        redis: &Redis,
        registry: Registry,
        change: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
        dress: impl FnOnce(Presence) -> Presence,
    ) -> Self {
        let builder = Worker::builder(redis.intake(), registry).max_concurrent_jobs(4);
        let worker = change(builder).build().expect("good settings");
        let handle = worker.handle();
        let presence = Presence::new(Arc::new(redis.clone()), worker.handle());
        let presence = dress(presence.every(BEAT).expect("a good time"));
        let (id, shutdown) = (presence.id().to_owned(), Shutdown::new());
        let switch = shutdown.clone();
        let body = move || {
            let runtime = runtime();
            let both = async { tokio::join!(worker.run(switch.clone()), presence.run(switch.clone())) };
            runtime.block_on(both).0
        };
        let thread = thread::Builder::new().name("scene".to_owned()).spawn(body).expect("a thread");
        Self { handle, id, shutdown, thread: Some(thread) }
    }

    /// Drains it.
    pub(crate) fn stop(self) -> Report {
        self.shutdown.stop();
        self.end()
    }

    /// Waits until it has ended; whoever calls this has seen to it that it does.
    pub(crate) fn end(mut self) -> Report {
        let thread = self.thread.take().expect("it has not been waited for");
        thread.join().expect("it does not panic")
    }
}

/// What fails waits until somebody makes it due.
fn patient(worker: WorkerBuilder) -> WorkerBuilder {
    worker.retry(RetryPolicy::default().initial(Duration::from_secs(3600)).cap(Duration::from_secs(3600)))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.escalate(tidegate::Phase::Abort);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// What handlers were given: the class, the arguments and the id of each job, in the order in which they ended.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<(String, Value, String)>>>);

impl Seen {
    pub(crate) fn note(&self, context: &Context) {
        let job = context.job();
        let args = serde_json::from_slice(&job.payload).expect("arguments in JSON");
        let noted = (job.kind.to_string(), args, job.id.to_string());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The arguments of all, in an order of their own.
    pub(crate) fn args(&self) -> Vec<Value> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut args: Vec<Value> = seen.iter().map(|(_, args, _)| args.clone()).collect();
        args.sort_by_key(Value::to_string);
        args
    }

    /// The ids of all, in an order of their own.
    pub(crate) fn ids(&self) -> Vec<String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids: Vec<String> = seen.iter().map(|(_, _, id)| id.clone()).collect();
        ids.sort();
        ids
    }

    /// A handler that remembers its job, and then does this.
    pub(crate) fn then<F, Fut, R>(&self, next: F) -> impl Fn(Context) -> Fut + Send + Sync + 'static
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome + 'static,
    {
        let seen = self.clone();
        move |context| {
            seen.note(&context);
            next(context)
        }
    }
}

/// A door that jobs wait at until it is opened.
#[derive(Clone)]
pub(crate) struct Door(Arc<Semaphore>);

impl Door {
    pub(crate) fn shut() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(crate) async fn pass(&self) {
        let _ = self.0.acquire().await;
    }

    pub(crate) fn open(&self) {
        self.0.close();
    }
}

pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}
