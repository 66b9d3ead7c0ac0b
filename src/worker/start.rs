//! Setting a worker going: the threads, the runtimes and the connections, each where it belongs.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::completions::Completions;
use crate::lease::Renew;
use crate::limit::KindCaps;
use crate::pull::Brisk;
use crate::shutdown::{Phase, Shutdown};
use crate::source::Connect;
use crate::worker::Worker;
use crate::worker::changes::Registered;
use crate::worker::config::Dispatcher;
use crate::worker::fetch::Fetcher;
use crate::worker::flight::Flights;
use crate::worker::handle::{Control, Ended, State, Stats};
use crate::worker::heartbeat::Heartbeat;
use crate::worker::leases::Leases;
use crate::worker::reconnect::Reconnecting;
use crate::worker::report::Report;
use crate::worker::run::Loop;
use crate::worker::settle::Unsettled;
use crate::worker::spare::Spare;
use crate::worker::stage::Stage;
use crate::worker::stopping::Stopping;

/// How long the loop waits for the heartbeat thread to end once it was told to. It ends at its next await
/// point; only a driver that blocks its thread makes it overstay, and then it is left behind.
const HEARTBEAT_END: Duration = Duration::from_millis(500);

/// Runs the worker where its settings say.
pub(crate) async fn run(worker: Worker, shutdown: Shutdown) -> Report {
    // Dropped early, the loop goes on by itself: this makes it end.
    let abandoned = AbortOnDrop(worker.control.clone());
    let dispatcher = worker.limits.dispatcher;
    let name = worker.name.clone();
    let (engine, heartbeat) = assemble(worker, shutdown.clone(), Handle::current());
    let report = match dispatcher {
        Dispatcher::Shared => {
            let stop = CancellationToken::new();
            let mut beside = JoinSet::new();
            beside.spawn(heartbeat.run(stop.clone()));
            let report = listening(&abandoned.0, &shutdown, engine.run()).await;
            stop.cancel();
            while beside.join_next().await.is_some() {}
            report
        }
        Dispatcher::OwnThread => on_own_threads(engine, heartbeat, &name, shutdown).await,
    };
    drop(abandoned);
    report
}

struct AbortOnDrop(Arc<Control>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.stop.escalate(Phase::Abort);
    }
}

/// Awaits `engine` and passes on to it what the switches say.
async fn listening<T>(control: &Control, shutdown: &Shutdown, engine: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        never = control.listen(shutdown) => match never {},
        output = engine => output,
    }
}

async fn on_own_threads(engine: Loop, heartbeat: Heartbeat, name: &str, shutdown: Shutdown) -> Report {
    let (answer, answered) = oneshot::channel();
    let heartbeat_name = format!("tidegate-hb-{name}");
    let body = move || {
        let stop = CancellationToken::new();
        let (ended, has_ended) = sync_channel::<()>(1);
        let beating = stop.clone();
        let beat = move || {
            block_on(heartbeat.run(beating));
            drop(ended);
        };
        let thread =
            thread::Builder::new().name(heartbeat_name).spawn(beat).expect("the system gives a thread");
        let report = block_on(async move { on_stage(engine, &shutdown).await });
        stop.cancel();
        if has_ended.recv_timeout(HEARTBEAT_END) == Err(RecvTimeoutError::Disconnected) {
            // A panic on the heartbeat thread has been printed by the panic hook; there is no more to say.
            let _ = thread.join();
        }
        // Who awaited it may have gone.
        let _ = answer.send(report);
    };
    let thread = thread::Builder::new()
        .name(format!("tidegate-{name}"))
        .spawn(body)
        .expect("the system gives a thread");
    match answered.await {
        Ok(report) => {
            // It has nothing left to do but to end.
            let _ = thread.join();
            report
        }
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the thread answers before it ends"),
        },
    }
}

/// Runs the loop where the tasks of its jobs can poll it too.
async fn on_stage(engine: Loop, shutdown: &Shutdown) -> Report {
    let (control, completions) = (engine.control.clone(), engine.completions.clone());
    let stage = Stage::new(engine.run());
    let weak: Weak<Stage<Report>> = Arc::downgrade(&stage);
    completions.poll_through(weak);
    listening(&control, shutdown, poll_fn(|cx| stage.poll(cx))).await
}

/// Runs `future` on a runtime of its own on this thread. What it leaves on the runtime's blocking pool (name
/// look-ups that hang, say) is not waited for.
///
/// It runs as a task: what the runtime blocks on itself is woken by a system call even on its own thread, and the answer
/// of a source comes by a task of this runtime.
fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().expect("the system gives a runtime");
    let output = runtime.block_on(async {
        let mut task = JoinSet::new();
        task.spawn(future);
        task.join_next().await.expect("it was spawned")
    });
    runtime.shutdown_background();
    output.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn assemble(worker: Worker, shutdown: Shutdown, jobs: Handle) -> (Loop, Heartbeat) {
    let Worker { intake, limits, registered, unknown, telemetry, connections, control, .. } = worker;
    let Registered { kinds, caps, first } = registered;
    let completions = Arc::new(Completions::default());
    completions.know(first, kinds.len());
    let [of_source, of_heartbeat] = connections;
    let leases = Arc::new(Leases::new());
    let policy = &limits.reconnect;
    let seed = limits.seed;
    let renew = intake.renew.map(|connect: Arc<dyn Connect<dyn Renew>>| {
        Reconnecting::new(connect, "heartbeat", policy.clone(), seed ^ 1, Arc::default(), of_heartbeat)
    });
    let state = control.connection.clone();
    let source = Reconnecting::new(intake.source, "source", policy.clone(), seed, state, of_source);
    let heartbeat = Heartbeat {
        leases: leases.clone(),
        renew,
        cancelled: control.bell.clone(),
        telemetry: telemetry.clone(),
        failures: AtomicU32::new(0),
        told: AtomicBool::new(false),
    };
    let places = control.running.limit() + limits.prefetch;
    let stats = Stats { state: State::Running, ..Stats::default() };
    control.publish(stats);
    let _ended = Ended(control.clone());
    let mut engine = Loop {
        kinds,
        unknown,
        caps: KindCaps::new(caps),
        source: Arc::new(source),
        jobs,
        leases,
        control,
        _ended,
        shutdown,
        telemetry,
        fetcher: Fetcher::new(places, seed),
        tasks: JoinSet::new(),
        flights: Flights::default(),
        ready: Default::default(),
        unsettled: Unsettled::default(),
        stopping: Stopping::new(limits.shutdown_deadline),
        phase: Phase::Running,
        cause: None,
        stats,
        completions,
        hot_until: None,
        brisk: Brisk::default(),
        look_at: None,
        spare: Spare::new(),
        starting: Vec::new(),
        spawning: Vec::new(),
        finished: Vec::new(),
        runtime_gone: false,
        entered: Vec::new(),
        limits,
    };
    engine.take_changes();
    (engine, heartbeat)
}
