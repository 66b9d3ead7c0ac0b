//! How fast no-op jobs go through, beside a bare `JoinSet` loop on the same futures in the same run; what a
//! job allocates; what 100,000 sleeping jobs weigh; whether CPU-bound jobs use all cores.
//!
//! `cargo bench --bench throughput` prints medians of paired runs. `TIDEGATE_BENCH_JOBS` says how many no-op jobs a run has, a
//! million unless it is set. `TIDEGATE_BENCH_SMOKE=1` runs it tiny, to see that it works.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{Counting, Table, alive_bytes, allocations, cpu_time, install_recorder, median, runtime};
use tidegate::{Context, Dispatcher, Enqueue, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One measured run.
struct Run {
    wall: Duration,
    cpu: Duration,
    allocations: u64,
}

impl Run {
    fn of(work: impl FnOnce()) -> Self {
        let (cpu, before, start) = (cpu_time(), allocations(), Instant::now());
        work();
        Self { wall: start.elapsed(), cpu: cpu_time() - cpu, allocations: allocations() - before }
    }
}

/// What every job does in the no-op runs.
async fn no_op(number: u64) {
    std::hint::black_box(number);
}

/// The limit of what can be: a `JoinSet` gated by its length, on the jobs' own runtime.
fn bare<F>(threads: usize, jobs: u64, slots: usize, job: impl Fn(u64) -> F + Send + 'static) -> Run
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = runtime(threads);
    Run::of(|| {
        let mut set = JoinSet::new();
        let mut outer = JoinSet::new();
        outer.spawn_on(
            async move {
                for number in 0..jobs {
                    while set.len() >= slots {
                        set.join_next().await;
                    }
                    set.spawn(job(number));
                }
                while set.join_next().await.is_some() {}
            },
            runtime.handle(),
        );
        runtime.block_on(outer.join_next());
    })
}

/// The same jobs through a worker over the memory backend. Enqueueing is not measured.
fn worker<F>(
    threads: usize,
    jobs: u64,
    slots: usize,
    prefetch: usize,
    dispatcher: Dispatcher,
    job: impl Fn(u64) -> F + Send + Sync + Copy + 'static,
) -> Run
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = runtime(threads);
    let queue = Memory::builder().max_jobs(jobs as usize).build().expect("valid settings");
    runtime.block_on(fill(&queue, jobs));
    let registry =
        Registry::new().handle_raw("no-op", move |context: Context| job(u64::from(context.attempt())));
    let worker = Worker::builder(queue.intake(), registry)
        .max_concurrent_jobs(slots)
        .prefetch(prefetch)
        .dispatcher(dispatcher)
        .build()
        .expect("valid settings");
    let shutdown = Shutdown::new();
    Run::of(|| {
        let report = runtime.block_on(async {
            let drained = async {
                queue.drained().await;
                shutdown.stop();
            };
            tokio::join!(worker.run(shutdown.clone()), drained).0
        });
        assert_eq!(report.stats.done, jobs);
    })
}

async fn fill(queue: &Memory, jobs: u64) {
    let mut left = jobs;
    while left > 0 {
        let batch = left.min(10_000);
        queue.enqueue((0..batch).map(|_| NewJob::new("no-op", "")).collect()).await.expect("room for all");
        left -= batch;
    }
}

/// Runs each contender once a round, so that a busy moment hits all of them, and prints medians.
fn paired(title: &str, jobs: u64, rounds: usize, contenders: &[(&str, &dyn Fn() -> Run)]) {
    let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (at, (_, contender)) in contenders.iter().enumerate() {
            runs[at].push(contender());
        }
    }
    let mut table = Table::new(title, &["", "jobs/s", "ns/job", "cpu ns/job", "allocs/job", "x bare"]);
    let wall = |run: &Run| run.wall.as_nanos() as f64 / jobs as f64;
    let bare = &runs[0];
    for ((name, _), runs) in contenders.iter().zip(&runs) {
        let ns = median(runs.iter().map(wall));
        let cpu = median(runs.iter().map(|run| run.cpu.as_nanos() as f64 / jobs as f64));
        let allocs = median(runs.iter().map(|run| run.allocations as f64 / jobs as f64));
        // Each run beside the bare one of its own round: the machine's speed changes from round to round.
        let ratio = median(runs.iter().zip(bare).map(|(run, bare)| wall(run) / wall(bare)));
        table.row(&[
            (*name).to_owned(),
            format!("{:.0}", 1e9 / ns),
            format!("{ns:.0}"),
            format!("{cpu:.0}"),
            format!("{allocs:.2}"),
            format!("{ratio:.2}"),
        ]);
    }
    table.print();
}

fn no_ops(jobs: u64, rounds: usize) {
    for slots in [20, 1000] {
        paired(
            &format!("{jobs} no-op jobs, {slots} slots, 2 threads"),
            jobs,
            rounds,
            &[
                ("bare JoinSet", &|| bare(2, jobs, slots, no_op)),
                ("own thread", &|| worker(2, jobs, slots, 0, Dispatcher::OwnThread, no_op)),
                ("own thread, prefetch", &|| worker(2, jobs, slots, slots, Dispatcher::OwnThread, no_op)),
                ("shared", &|| worker(2, jobs, slots, 0, Dispatcher::Shared, no_op)),
            ],
        );
    }
    paired(
        &format!("{jobs} no-op jobs, 20 slots, 1 thread"),
        jobs,
        rounds,
        &[
            ("bare JoinSet", &|| bare(1, jobs, 20, no_op)),
            ("own thread", &|| worker(1, jobs, 20, 0, Dispatcher::OwnThread, no_op)),
            ("shared", &|| worker(1, jobs, 20, 0, Dispatcher::Shared, no_op)),
        ],
    );
}

/// 2 µs of CPU each. With all cores used, a job costs 1 µs of wall time on two of them.
fn cpu_bound(jobs: u64, rounds: usize) {
    async fn two_microseconds(_: u64) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(2) {
            std::hint::spin_loop();
        }
    }
    paired(
        &format!("{jobs} jobs of 2 us CPU, 20 slots, 2 threads"),
        jobs,
        rounds,
        &[
            ("bare JoinSet", &|| bare(2, jobs, 20, two_microseconds)),
            ("own thread", &|| worker(2, jobs, 20, 0, Dispatcher::OwnThread, two_microseconds)),
            ("shared", &|| worker(2, jobs, 20, 0, Dispatcher::Shared, two_microseconds)),
        ],
    );
}

/// What a sleeping job weighs: its task, its timer, its flight, its lease, its record in the store.
fn sleepers(jobs: u64) {
    let runtime = runtime(2);
    let queue = Memory::builder().max_jobs(jobs as usize).build().expect("valid settings");
    let before = alive_bytes();
    runtime.block_on(fill(&queue, jobs));
    let stored = alive_bytes() - before;
    let registry = Registry::new()
        .handle_raw("no-op", |_: Context| async { tokio::time::sleep(Duration::from_secs(3600)).await });
    let worker = Worker::builder(queue.intake(), registry)
        .max_concurrent_jobs(jobs as usize)
        .shutdown_deadline(Duration::from_secs(30))
        .build()
        .expect("valid settings");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    let (mut all, start) = (0, Instant::now());
    runtime.block_on(async {
        let watch = async {
            while handle.stats().running < jobs {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Every job is running once each has been polled to its sleep.
            while handle.jobs().await.iter().any(|job| job.phase != tidegate::JobPhase::Running) {}
            all = alive_bytes() - before;
            shutdown.escalate(tidegate::Phase::Abort);
        };
        tokio::join!(worker.run(shutdown.clone()), watch)
    });
    let mut table = Table::new(&format!("{jobs} sleeping jobs at once"), &["", "bytes/job"]);
    table.row(&["waiting in the store".to_owned(), format!("{}", stored / jobs)]);
    table.row(&["asleep in the worker, store included".to_owned(), format!("{}", all / jobs)]);
    table.print();
    println!("started and handed back within {:?}", start.elapsed());
}

/// One job in 20 takes 50 times as long: how much of the slots' time is busy, beside batches of 20 that wait for the
/// slowest of each.
fn full(jobs: u32) {
    const SLOTS: u32 = 20;
    let time = |number: u32| Duration::from_millis(if number.is_multiple_of(20) { 100 } else { 2 });
    // What the naps really took: a timer goes off at the next millisecond.
    let napped = Arc::new(AtomicU64::new(0));
    let nap = {
        let napped = napped.clone();
        move |number: u32| {
            let (napped, start) = (napped.clone(), Instant::now());
            async move {
                tokio::time::sleep(time(number)).await;
                napped.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
        }
    };
    let share = |wall: Duration| {
        100.0 * napped.swap(0, Ordering::Relaxed) as f64 / 1e6 / (f64::from(SLOTS) * wall.as_secs_f64())
    };
    let runtime = runtime(2);
    let queue = Memory::new();
    let napping = nap.clone();
    let registry = Registry::new().handle_raw("nap", move |context: Context| {
        napping(String::from_utf8_lossy(context.payload()).parse().unwrap_or(1))
    });
    let worker = Worker::builder(queue.intake(), registry).max_concurrent_jobs(SLOTS as usize).build();
    let (worker, shutdown) = (worker.expect("valid settings"), Shutdown::new());
    let ours = runtime.block_on(async {
        let naps = (0..jobs).map(|number| NewJob::new("nap", number.to_string())).collect();
        queue.enqueue(naps).await.expect("room for all");
        let start = Instant::now();
        let stop = async {
            queue.drained().await;
            shutdown.stop();
            start.elapsed()
        };
        tokio::join!(worker.run(shutdown.clone()), stop).1
    });
    let ours = (share(ours), ours);
    let batches = runtime.block_on(async {
        let start = Instant::now();
        for first in (0..jobs).step_by(SLOTS as usize) {
            let mut set = JoinSet::new();
            for number in first..jobs.min(first + SLOTS) {
                set.spawn(nap(number));
            }
            while set.join_next().await.is_some() {}
        }
        start.elapsed()
    });
    let mut table = Table::new(
        &format!("{jobs} jobs of 2 ms, 1 in 20 of 100 ms, {SLOTS} slots"),
        &["", "busy %", "wall"],
    );
    for (name, (busy, wall)) in [("own thread", ours), ("batches of 20", (share(batches), batches))] {
        table.row(&[name.to_owned(), format!("{busy:.1}"), format!("{wall:.2?}")]);
    }
    table.print();
}

fn main() {
    install_recorder();
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (jobs, rounds, sleeping) = if smoke { (10_000, 1, 1_000) } else { (1_000_000, 5, 100_000) };
    let jobs = std::env::var("TIDEGATE_BENCH_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(jobs);
    no_ops(jobs, rounds);
    cpu_bound(jobs / 4, rounds);
    full(if smoke { 200 } else { 4_000 });
    sleepers(sleeping);
}
