//! A worker's presence, told to somebody who takes notes: what it counts, what it obeys, and that nothing holds it up.
//!
//! On real threads, since it has one of its own. How Sidekiq sees it is in `tests/sidekiq.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tidegate::announce::{Announce, Identity, KindRuns, Notice, Request, Runs};
use tidegate::service::Presence;
use tidegate::{
    Connect, Dispatcher, Error, ErrorKind, Kind, Memory, NewJob, Outcome, Queues, Registry, Shutdown, State,
    Worker,
};
use tokio::task::JoinSet;

use crate::support::{self, Gate, Inside, KIND, Leftovers, gated, registry_of, until};

const BEAT: Duration = Duration::from_millis(10);

/// Takes notes, and asks what it was told to ask.
#[derive(Default)]
struct Listener {
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    notices: Vec<Notice>,
    /// The runs of the notices that were not refused, and of the last word.
    runs: Runs,
    withdrawn: bool,
    connected: usize,
    ask: Vec<Request>,
    refuse: bool,
    hang: bool,
}

impl Listener {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: Request) {
        self.notes().ask.push(request);
    }

    fn told(&self) -> usize {
        self.notes().notices.len()
    }

    fn last(&self) -> Option<Notice> {
        self.notes().notices.last().cloned()
    }

    fn runs(&self, kind: &str) -> KindRuns {
        self.notes().runs.get(&Kind::new(kind)).copied().unwrap_or_default()
    }
}

impl Notes {
    fn add(&mut self, runs: &Runs) {
        for (kind, runs) in runs {
            let sum = self.runs.entry(kind.clone()).or_default();
            sum.done += runs.done;
            sum.failed += runs.failed;
            sum.run_ms += runs.run_ms;
            sum.by_time.iter_mut().zip(runs.by_time).for_each(|(sum, more)| *sum += more);
        }
    }
}

struct Session(Arc<Listener>);

#[async_trait]
impl Announce for Session {
    async fn announce(&self, notice: &Notice) -> Result<Vec<Request>, Error> {
        let hangs = {
            let notes = self.0.notes();
            if notes.refuse {
                return Err(Error::new(ErrorKind::Connection, "gone"));
            }
            notes.hang
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let mut notes = self.0.notes();
        notes.add(&notice.runs);
        notes.notices.push(notice.clone());
        Ok(std::mem::take(&mut notes.ask))
    }

    async fn withdraw(&self, _: &Identity, runs: &Runs, _: SystemTime) -> Result<(), Error> {
        if self.0.notes().hang {
            std::future::pending::<()>().await;
        }
        let mut notes = self.0.notes();
        notes.add(runs);
        notes.withdrawn = true;
        Ok(())
    }
}

/// Leads to the listener.
struct Way(Arc<Listener>);

#[async_trait]
impl Connect<dyn Announce> for Way {
    async fn connect(&self) -> Result<Arc<dyn Announce>, Error> {
        let mut notes = self.0.notes();
        notes.connected += 1;
        if notes.refuse {
            Err(Error::new(ErrorKind::Connection, "refused"))
        } else {
            Ok(Arc::new(Session(self.0.clone())))
        }
    }

    fn target(&self) -> String {
        "a listener".to_owned()
    }
}

/// The presence of `worker`, and who hears of it.
fn presence_of(worker: &Worker) -> (Presence, Arc<Listener>) {
    let listener = Arc::new(Listener::default());
    let presence = Presence::new(Arc::new(Way(listener.clone())), worker.handle());
    (presence.every(BEAT).expect("a good time"), listener)
}

async fn put(memory: &Memory, kind: &str, count: usize) {
    for _ in 0..count {
        memory.push(NewJob::json(kind, &()).expect("JSON")).expect("there is room");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_is_counted_once_by_kind_and_what_was_put_off_is_not() {
    let memory = Memory::new();
    let mended = Arc::new(AtomicBool::new(false));
    let first = mended.clone();
    let registry = || {
        let first = first.clone();
        Registry::new()
            .handle_raw("good", |_| async { tokio::time::sleep(Duration::from_millis(31)).await })
            .handle_raw("retried", move |_| {
                let again = first.swap(true, Ordering::Relaxed);
                async move { if again { Outcome::Done } else { Outcome::fail_for("once", Duration::ZERO) } }
            })
            .handle_raw("bad", |_| async { Outcome::reject("bad") })
            .handle_raw("panics", |_| async { support::panics("as it should") })
            .handle_raw("later", |_| async { Outcome::Snooze(Duration::from_secs(3600)) })
    };
    let worker =
        Worker::builder(memory.intake(), registry()).max_concurrent_jobs(3).build().expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let (shutdown, handle) = (Shutdown::new(), worker.handle());
    let scenario = async {
        for (kind, count) in [("good", 7), ("retried", 1), ("bad", 2), ("panics", 1), ("later", 3)] {
            put(&memory, kind, count).await;
        }
        until("half has ended", || handle.stats().done == 8 && handle.stats().rejected == 2).await;
        until("it is told", || listener.runs("good").done == 7).await;
        // The counters of a kind go on when its handler is replaced.
        handle.set_registry(registry()).expect("a good registry");
        put(&memory, "good", 3).await;
        until("the rest has ended", || handle.stats().done == 11).await;
        shutdown.stop();
    };
    tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone()), scenario);
    let of = |kind| (listener.runs(kind).done, listener.runs(kind).failed);
    assert_eq!([of("good"), of("retried"), of("bad"), of("later")], [(10, 0), (1, 1), (0, 2), (0, 0)]);
    assert_eq!(of("panics").1, 1);
    let good = listener.runs("good");
    assert!(
        good.run_ms >= 310 && good.by_time.iter().sum::<u64>() == 10 && good.by_time[..2] == [0, 0],
        "{good:?}"
    );
    assert_eq!((listener.runs("bad").run_ms, listener.notes().withdrawn), (0, true));
    Leftovers::only_mine("the listener", &listener).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_the_worker_is_at() {
    let memory = Memory::new();
    let (gate, inside) = (Gate::shut(), Inside::default());
    let worker = Worker::builder(memory.intake(), gated(&gate, &inside))
        .max_concurrent_jobs(2)
        .prefetch(2)
        .queues(Queues::weighted([("default", 3), ("low", 1)]))
        .build()
        .expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let (shutdown, handle) = (Shutdown::new(), worker.handle());
    let scenario = async {
        put(&memory, KIND, 4).await;
        until("two run", || listener.last().is_some_and(|notice| notice.running.len() == 2)).await;
        let notice = listener.last().expect("it was told");
        assert_eq!((notice.max_concurrent_jobs, notice.quiet), (2, false));
        assert_eq!(notice.queues, [("default".into(), 3), ("low".into(), 1)]);
        assert!(notice.resident_kib > 0);
        handle.set_queues(Queues::strict(["default"])).expect("good queues");
        handle.set_max_concurrent_jobs(3).expect("a good bound");
        until("the change is told", || {
            let notice = listener.last().expect("it was told");
            notice.queues == [("default".into(), 0)]
                && notice.max_concurrent_jobs == 3
                && notice.running.len() == 3
        })
        .await;
        shutdown.stop();
        until("that it stops is told", || listener.last().is_some_and(|notice| notice.quiet)).await;
        assert!(!listener.notes().withdrawn, "it is there until it has drained");
        gate.open();
    };
    tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone()), scenario);
    assert!(listener.notes().withdrawn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_is_obeyed_and_stop_asked_twice_does_not_hurry() {
    let memory = Memory::new();
    let (gate, inside) = (Gate::shut(), Inside::default());
    let worker = Worker::builder(memory.intake(), gated(&gate, &inside)).build().expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let handle = worker.handle();
    let scenario = async {
        put(&memory, KIND, 1).await;
        until("it runs", || inside.now() == 1).await;
        listener.ask(Request::Report);
        listener.ask(Request::Quiet);
        until("it is quiet", || handle.is_quiet()).await;
        for _ in 0..3 {
            listener.ask(Request::Stop);
            until("it was asked", || listener.notes().ask.is_empty()).await;
        }
        until("it stops", || handle.is_stopping()).await;
        let told = listener.told();
        until("it beats on", || listener.told() > told + 2).await;
        assert_eq!(handle.stats().state, State::Running, "it drains");
        gate.open();
        handle.ended().await;
    };
    let (report, ..) = tokio::join!(worker.run(Shutdown::new()), presence.run(Shutdown::new()), scenario);
    assert_eq!((report.stats.done, report.stats.released), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_told_is_told_later_and_nothing_twice() {
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), registry_of(|_| async {})).build().expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let (shutdown, handle) = (Shutdown::new(), worker.handle());
    let scenario = async {
        for round in 1..=3 {
            until("it is told", || listener.told() > 0).await;
            listener.notes().refuse = true;
            put(&memory, KIND, 5).await;
            until("they have run", || handle.stats().done == round * 5).await;
            let connected = listener.notes().connected;
            until("it tries on", || listener.notes().connected > connected + 1).await;
            listener.notes().refuse = false;
            until("all is told", || listener.runs(KIND).done == round * 5).await;
        }
        listener.notes().refuse = true;
        put(&memory, KIND, 5).await;
        until("they have run", || handle.stats().done == 20).await;
        listener.notes().refuse = false;
        shutdown.stop();
    };
    tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone()), scenario);
    assert_eq!(listener.runs(KIND).done, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_never_answered_ends_in_time() {
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), registry_of(|_| async {})).build().expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let (shutdown, handle) = (Shutdown::new(), worker.handle());
    let scenario = async {
        until("it is told", || listener.told() > 0).await;
        listener.notes().hang = true;
        shutdown.stop();
        handle.ended().await;
        tokio::time::Instant::now()
    };
    let (_, (), ended_at) =
        tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone()), scenario);
    // Half a second, and what a busy machine adds.
    assert!(ended_at.elapsed() < Duration::from_secs(3), "{:?}", ended_at.elapsed());
    Leftovers::only_mine("the listener", &listener).await;
}

/// Under this dispatcher the loop stands still with the jobs' thread; the presence does not.
#[test]
fn it_beats_on_when_the_loop_does_not_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (release, wait) = std::sync::mpsc::sync_channel::<()>(1);
    let wait = Arc::new(Mutex::new(Some(wait)));
    let blocks = Arc::new(AtomicBool::new(false));
    let is_blocked = blocks.clone();
    let registry = registry_of(move |_| {
        let (wait, blocks) = (wait.lock().expect("nobody panics").take(), blocks.clone());
        async move {
            if let Some(wait) = wait {
                blocks.store(true, Ordering::Relaxed);
                let _ = wait.recv();
            }
        }
    });
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), registry).dispatcher(Dispatcher::Shared).build();
    let worker = worker.expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let (shutdown, heard) = (Shutdown::new(), listener.clone());
    memory.push(NewJob::json(KIND, &()).expect("JSON")).expect("there is room");
    // The jobs' thread is this one: somebody else has to look.
    let stop = shutdown.clone();
    let watch = move || {
        let blocked = comes_true(|| is_blocked.load(Ordering::Relaxed));
        // One may have been answered just before.
        let before = heard.told();
        let told = comes_true(|| heard.told() >= before + 3);
        drop(release);
        stop.stop();
        assert!(blocked && told, "it was told nothing while the loop stood still");
    };
    let watching = std::thread::Builder::new().name("watch".to_owned()).spawn(watch).expect("a thread");
    runtime.block_on(async { tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone())) });
    watching.join().expect("it was told meanwhile");
    assert!(listener.notes().withdrawn);
}

/// Waits on a thread without a runtime, for a quarter of a minute at most.
fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    (0..7_500).any(|_| {
        std::thread::sleep(Duration::from_millis(2));
        condition()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_worker_never_begins_ends_when_it_is_told_to_stop() {
    let worker =
        Worker::builder(Memory::new().intake(), registry_of(|_| async {})).build().expect("good settings");
    let (presence, listener) = presence_of(&worker);
    let shutdown = Shutdown::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(presence.run(shutdown.clone()));
    until("it is told", || listener.told() > 0).await;
    shutdown.stop();
    tasks.join_next().await.expect("a task").expect("it does not panic");
    assert!(listener.notes().withdrawn);
    drop(worker);
}
