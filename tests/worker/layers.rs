//! Tower layers around handlers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tidegate::{Context, Dispatcher, HandlerService, Intake, Outcome, Registry, Settlement, Worker};
use tower::{Layer, Service, ServiceBuilder};

use crate::support::{
    Feed, Inside, Leftovers, Recording, during, job, jobs, panics, registry_of, under_both,
};

/// What happened, in its order.
type Log = Arc<Mutex<Vec<String>>>;

/// Writes down its name before and after, and how long it took on tokio's clock.
#[derive(Clone)]
struct Named(&'static str, Log);

#[derive(Clone)]
struct NamedService<S>(Named, S);

impl<S> Layer<S> for Named {
    type Service = NamedService<S>;

    fn layer(&self, inner: S) -> NamedService<S> {
        NamedService(self.clone(), inner)
    }
}

impl<S> Service<Context> for NamedService<S>
where
    S: Service<Context, Response = Outcome, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Outcome;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.1.poll_ready(cx)
    }

    fn call(&mut self, context: Context) -> Self::Future {
        let Named(name, log) = self.0.clone();
        let write = move |what: String| log.lock().expect("no test thread panicked").push(what);
        let answer = self.1.call(context);
        Box::pin(async move {
            write(format!("{name} begins"));
            let began = tokio::time::Instant::now();
            let answer = answer.await;
            write(format!("{name} ends after {} s", began.elapsed().as_secs()));
            answer
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_layer_added_last_is_the_outermost_and_each_sees_the_whole_time() {
    let log = Log::default();
    let feed = Feed::new().with(jobs(1)).shared();
    let registry = Registry::new().layer(Named("inner", log.clone()));
    let registry = registry.handle_raw("work", |_: Context| tokio::time::sleep(Duration::from_secs(3)));
    // A layer goes around handlers that were registered before it, too.
    let registry = registry.layer(Named("outer", log.clone()));
    let worker = Worker::builder(feed.intake(), registry)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    during(worker, feed.drained()).await;
    let log = log.lock().expect("no test thread panicked").clone();
    assert_eq!(log, ["outer begins", "inner begins", "inner ends after 3 s", "outer ends after 3 s"]);
}

under_both! {
    async fn a_timeout_layer_fails_the_attempt(dispatcher) {
        let feed = Feed::new().with([job("a")]).shared();
        let recording = Recording::around(feed);
        let registry = registry_of(|_| std::future::pending::<()>());
        let layer = ServiceBuilder::new().layer(tower::timeout::TimeoutLayer::new(Duration::from_millis(5)));
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry.layer(layer))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let left = Leftovers::before();
        let (report, ()) = during(worker, recording.has_been_told(1)).await;
        assert!(matches!(recording.told()[0].settlement, Settlement::Retry { .. }));
        assert_eq!(recording.told()[0].reason.as_deref(), Some("request timed out"));
        assert_eq!((report.stats.failed, report.stats.timed_out), (1, 0));
        left.none().await;
    }

    async fn a_limit_layer_makes_attempts_wait_for_each_other(dispatcher) {
        let inside = Inside::default();
        let feed = Feed::new().with(jobs(30)).shared();
        let registry = registry_of({
            let inside = inside.clone();
            move |_: Context| {
                let inside = inside.clone();
                async move {
                    let _stay = inside.enter();
                    tokio::task::yield_now().await;
                }
            }
        });
        let layer = tower::limit::GlobalConcurrencyLimitLayer::new(2);
        let worker = Worker::builder(feed.intake(), registry.layer(layer))
            .max_concurrent_jobs(10)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!((report.stats.done, inside.entered()), (30, 30));
        assert!(inside.most() <= 2, "{} ran at once", inside.most());
    }

    async fn a_layer_may_answer_in_place_of_the_handler(dispatcher) {
        let feed = Feed::new().with(jobs(1)).shared();
        let recording = Recording::around(feed.clone());
        let registry = registry_of(|_| async { panics("it was called") });
        let answering = tower::layer::layer_fn(|_: HandlerService| {
            tower::service_fn(|context: Context| async move {
                Ok::<_, Infallible>(Outcome::reject(format!("{} is not welcome", context.job().id)))
            })
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry.layer(answering))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await;
        assert_eq!(recording.told()[0].reason.as_deref(), Some("0 is not welcome"));
    }

    async fn an_error_or_a_panic_of_a_layer_fails_the_attempt_only(dispatcher) {
        let feed = Feed::new().with(jobs(40)).shared();
        let recording = Recording::around(feed.clone());
        let failing = tower::layer::layer_fn(|inner: HandlerService| {
            tower::service_fn(move |context: Context| {
                let mut inner = inner.clone();
                let number: u32 = context.job().id.as_str().parse().expect("ids are numbers");
                // One panics while the call is made, one while it is awaited.
                if number == 1 {
                    panics("in the call");
                }
                async move {
                    match number {
                        2 => Err(std::io::Error::other("the limiter is down")),
                        3 => { panics("in the future"); Ok(Outcome::Done) }
                        _ => Ok(inner.call(context).await.unwrap_or_else(|never| match never {})),
                    }
                }
            })
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}).layer(failing))
            .max_concurrent_jobs(3)
            .retry(tidegate::RetryPolicy::never())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        let reason = |id: &str| recording.told_of(id)[0].reason.clone().unwrap_or_default().to_string();
        assert_eq!(reason("1"), "panicked: in the call");
        assert_eq!(reason("2"), "the limiter is down");
        assert_eq!(reason("3"), "panicked: in the future");
        assert_eq!((report.stats.done, report.stats.rejected, report.stats.panicked), (37, 3, 2));
    }
}
