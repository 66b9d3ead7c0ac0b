//! Short jobs one after the other in one task: nobody waits for long behind one that turns out not to be short.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use tidegate::{Context, Enqueue, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::runtime::Builder;

use crate::support::{Gate, patience, until};

/// Few, so that all of them together are short even in a build without optimisation.
const SLOTS: usize = 4;

const ROUNDS: usize = 20;

/// What the jobs do: most nothing, some what takes long.
struct Work {
    /// How many quick jobs each task has run.
    by_task: Mutex<HashMap<tokio::task::Id, usize>>,
    quick: AtomicUsize,
    waits: Arc<Gate>,
    blocks: Mutex<mpsc::Receiver<()>>,
}

impl Work {
    fn registry(self: &Arc<Self>) -> Registry {
        let work = self.clone();
        Registry::new().handle_raw("work", move |context: Context| {
            let wait = match context.payload().as_ref() {
                b"block" => {
                    // Whoever sends or hangs up lets it go.
                    let _ = work.blocks.lock().expect("one at a time").recv();
                    None
                }
                b"wait" => Some(work.waits.clone()),
                _ => {
                    let id = tokio::task::id();
                    *work.by_task.lock().expect("no panic").entry(id).or_default() += 1;
                    work.quick.fetch_add(1, Ordering::SeqCst);
                    None
                }
            };
            async move {
                if let Some(gate) = wait {
                    gate.pass().await;
                }
            }
        })
    }
}

fn quick(count: usize) -> Vec<NewJob> {
    (0..count).map(|_| NewJob::new("work", "")).collect()
}

/// Among quick jobs, one that is not. Those beside it are done before it is let go. Returns whether one task ran most of
/// the quick ones before.
fn one_that_is_not_quick(other: &'static str) -> bool {
    let jobs = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (release, blocks) = mpsc::sync_channel(1); // dropped before the runtime, which waits for the job
    let (waits, by_task, ran) = (Gate::shut(), Mutex::default(), AtomicUsize::new(0));
    let work = Arc::new(Work { by_task, quick: ran, waits: waits.clone(), blocks: Mutex::new(blocks) });
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), work.registry()).max_concurrent_jobs(SLOTS).build();
    let (worker, shutdown) = (worker.expect("the settings make sense"), Shutdown::new());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_on(worker.run(shutdown.clone()), jobs.handle());
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = here.block_on(async {
        let drained = || tokio::time::timeout(patience(), memory.drained());
        memory.enqueue(quick(100 * SLOTS)).await.expect("room");
        drained().await.expect("they are done");
        // The first of those that one exchange brings: if one task runs them all, the others are behind it.
        let mut batch = vec![NewJob::new("work", other)];
        batch.extend(quick(SLOTS - 1));
        memory.enqueue(batch).await.expect("room");
        until("those beside it are done", || work.quick.load(Ordering::SeqCst) == 101 * SLOTS - 1).await;
        match other {
            "wait" => waits.open(),
            _ => release.send(()).expect("the jobs are there"),
        }
        drained().await.expect("it is done");
        shutdown.stop();
        tasks.join_next().await.expect("one task").expect("no panic")
    });
    assert_eq!(report.stats.done as usize, 101 * SLOTS, "{report}");
    let most = work.by_task.lock().expect("no panic").values().max().copied();
    most > Some(20 * SLOTS)
}

fn over_and_over(other: &'static str) {
    let pulled = (0..ROUNDS).filter(|_| one_that_is_not_quick(other)).count();
    assert!(pulled > 0, "in no round did one task run most of the jobs: this shows nothing");
}

#[test]
fn nobody_waits_behind_one_that_blocks_its_thread() {
    over_and_over("block");
}

#[test]
fn nobody_waits_behind_one_that_waits_for_something() {
    over_and_over("wait");
}

/// On the only thread, and with no end of jobs: 64 run before others have a turn, or twice that if these have just had one.
#[test]
fn other_tasks_of_the_thread_have_their_turns() {
    let memory = Memory::new();
    let (again, ran) = (memory.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = ran.clone();
    let registry = Registry::new().handle_raw("work", move |_: Context| {
        // Each makes the next: the queue is never empty.
        again.push(NewJob::new("work", "")).expect("room");
        counted.fetch_add(1, Ordering::Relaxed);
        async {}
    });
    let worker = Worker::builder(memory.intake(), registry).max_concurrent_jobs(SLOTS).build();
    let (worker, shutdown) = (worker.expect("the settings make sense"), Shutdown::new());
    let handle = worker.handle();
    let jobs = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut tasks = tokio::task::JoinSet::new();
    let run = worker.run(shutdown.clone());
    tasks.spawn_on(async move { drop(run.await) }, jobs.handle());
    let (tell, told) = tokio::sync::oneshot::channel();
    let turns = async move {
        let mut most = 0;
        for _ in 0..1_000 {
            let before = ran.load(Ordering::Relaxed);
            tokio::task::yield_now().await;
            most = most.max(ran.load(Ordering::Relaxed) - before);
        }
        let _ = tell.send(most);
    };
    here.block_on(async {
        memory.enqueue(quick(SLOTS)).await.expect("room");
        until("many jobs have run", || handle.stats().done > 10_000).await;
        tasks.spawn_on(turns, jobs.handle());
        let most = tokio::time::timeout(patience(), told).await.expect("it has its turns").expect("no panic");
        shutdown.stop();
        while tokio::time::timeout(patience(), tasks.join_next()).await.expect("all end").is_some() {}
        assert!((SLOTS..200).contains(&most), "{most} jobs between two turns");
    });
}
