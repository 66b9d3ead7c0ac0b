//! The user's code: [`Handler`], and the service that it becomes, [`HandlerService`].
//!
//! Every handler (raw, typed, blocking, layered) ends up as a function from a [`Context`] to a future of an
//! [`Outcome`], whose type is forgotten.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::attempt::Attempt;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind};
use crate::outcome::{IntoOutcome, Outcome};

/// A boxed future, as a [`HandlerService`] returns.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Code that runs one attempt at a job.
///
/// Implemented for every `Fn(Context) -> impl Future<Output = impl IntoOutcome>`; implement it yourself for
/// a type with state of its own. It must be prepared to run the same job again (at least once, P4), and to
/// be dropped at an await point after it was [told to stop](Context::cancelled).
pub trait Handler: Send + Sync + 'static {
    /// What it returns.
    type Output: IntoOutcome;

    /// Runs one attempt. A panic counts as a failure.
    fn call(&self, context: Context) -> impl Future<Output = Self::Output> + Send + 'static;
}

impl<F, Fut, R> Handler for F
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoOutcome,
{
    type Output = R;

    fn call(&self, context: Context) -> impl Future<Output = R> + Send + 'static {
        self(context)
    }
}

/// A registered handler as a [`tower_service::Service`], for layers to wrap.
///
/// Cheap to clone, always ready. An error from a layer counts as a failed attempt.
#[derive(Clone)]
pub struct HandlerService {
    erased: Arc<dyn Erased>,
}

/// A handler whose type is forgotten.
trait Erased: Send + Sync {
    /// Starts an attempt as a task of its own: with the handler's future inside the task, not in a box.
    fn spawn(&self, attempt: Attempt, tasks: &mut JoinSet<()>, on: &Handle);

    /// Makes the future of an attempt, for a layer to await.
    fn call(&self, context: Context) -> BoxFuture<Outcome>;
}

impl<M, Fut> Erased for M
where
    M: Fn(Context) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    fn spawn(&self, attempt: Attempt, tasks: &mut JoinSet<()>, on: &Handle) {
        tasks.spawn_on(attempt.drive(self.clone()), on);
    }

    fn call(&self, context: Context) -> BoxFuture<Outcome> {
        Box::pin(self(context))
    }
}

impl HandlerService {
    fn new(erased: impl Erased + 'static) -> Self {
        Self { erased: Arc::new(erased) }
    }

    /// From an async handler.
    pub(crate) fn raw(handler: impl Handler) -> Self {
        let handler = Arc::new(handler);
        Self::new(move |context| {
            let handler = handler.clone();
            async move { handler.call(context).await.into_outcome() }
        })
    }

    /// From an async handler of decoded arguments.
    pub(crate) fn typed<A, F, Fut, R>(handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        F: Fn(A, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        let handler = Arc::new(handler);
        Self::new(move |context: Context| {
            let handler = handler.clone();
            async move {
                match decode(&context) {
                    Ok(args) => handler(args, context).await.into_outcome(),
                    Err(error) => Outcome::reject(error),
                }
            }
        })
    }

    /// From a function that blocks its thread.
    pub(crate) fn blocking<F, R>(handler: F) -> Self
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let handler = Arc::new(handler);
        Self::new(move |context| {
            let handler = handler.clone();
            run_blocking(context, move |context| handler(context).into_outcome())
        })
    }

    /// From a function of decoded arguments that blocks its thread.
    pub(crate) fn blocking_typed<A, F, R>(handler: F) -> Self
    where
        A: DeserializeOwned + 'static,
        F: Fn(A, Context) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        Self::blocking(move |context: Context| match decode(&context) {
            Ok(args) => handler(args, context).into_outcome(),
            Err(error) => Outcome::reject(error),
        })
    }

    /// From a handler that layers have been put around.
    pub(crate) fn layered<S>(service: S) -> Self
    where
        S: tower_service::Service<Context, Response = Outcome> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError> + Send,
        S::Future: Send + 'static,
    {
        Self::new(move |context| {
            let mut service = service.clone();
            async move {
                let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
                let answer = match ready {
                    Ok(()) => service.call(context).await,
                    Err(error) => Err(error),
                };
                answer.unwrap_or_else(Outcome::fail)
            }
        })
    }

    /// Starts `attempt` as a task of `tasks`.
    pub(crate) fn spawn(&self, attempt: Attempt, tasks: &mut JoinSet<()>, on: &Handle) {
        self.erased.spawn(attempt, tasks, on);
    }
}

impl fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerService").finish_non_exhaustive()
    }
}

impl tower_service::Service<Context> for HandlerService {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, context: Context) -> Self::Future {
        let future = self.erased.call(context);
        Box::pin(async move { Ok(future.await) })
    }
}

/// Reads a job's payload as JSON, or says which job, where in it, and what was expected there.
pub(crate) fn decode<A: DeserializeOwned>(context: &Context) -> Result<A, Error> {
    let job = context.job();
    decode_json(&job.payload).map_err(|error| {
        Error::new(ErrorKind::Decode, format!("the payload of kind {:?} can't be decoded", job.kind))
            .caused_by(error)
    })
}

/// Reads `bytes` as JSON (serde_json refuses more than 128 levels of nesting), naming the path of what is
/// wrong. Nothing but white space may follow.
pub(crate) fn decode_json<A: DeserializeOwned>(bytes: &[u8]) -> Result<A, BoxError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| -> BoxError {
        match error.path().iter().next() {
            Some(_) => format!("at {}: {}", error.path(), error.inner()).into(),
            None => error.into_inner().into(),
        }
    })?;
    json.end()?;
    Ok(value)
}

/// Runs `work` on the blocking pool as a child of the job: even when the waiting future is dropped, the job
/// counts as running (and keeps its slot) until `work` returns.
async fn run_blocking(context: Context, work: impl FnOnce(Context) -> Outcome + Send + 'static) -> Outcome {
    let child = context.run().child();
    let (answer, result) = tokio::sync::oneshot::channel();
    let span = tracing::Span::current();
    drop(blocking_pool().spawn_blocking(move || {
        let run = context.run().clone();
        let outcome = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| work(context))));
        if let Err(outcome) = answer.send(outcome) {
            // The attempt was aborted, but waits for its children: what has been done is done.
            run.come_late(outcome);
        }
        drop(run);
        drop(child);
    }));
    match result.await {
        Ok(Ok(outcome)) => outcome,
        // It goes on where the attempt contains it, as any other handler's.
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Outcome::fail(Error::new(ErrorKind::Internal, "the blocking pool dropped the job")),
    }
}

/// The threads for blocking handlers, shared by all workers of the process.
///
/// A runtime in a static is never dropped, so a handler that never returns can't keep the process from
/// ending, as it would on the user's own runtime, whose drop waits for its blocking threads. Each
/// thread stands for a job that holds a slot; jobs beyond 65,535 wait for one of their neighbours.
fn blocking_pool() -> &'static Handle {
    static POOL: OnceLock<Runtime> = OnceLock::new();
    let runtime = POOL.get_or_init(|| {
        Builder::new_current_thread()
            .thread_name("tidegate-blocking")
            .max_blocking_threads(usize::from(u16::MAX))
            .thread_keep_alive(Duration::from_secs(5))
            .build()
            .expect("a runtime without drivers needs nothing from the system")
    });
    runtime.handle()
}
