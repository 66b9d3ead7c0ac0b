//! What the benches share: a counting allocator, CPU time, medians, a table, a metrics recorder.
#![allow(dead_code, reason = "each bench uses its part")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{AtomicStorage, Registry};
use tidegate::{Context, Enqueue, Intake, NewJob, Shutdown, Worker};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

/// Each thread counts in a shard of its own, so that counting does not make the threads wait for one another.
static SHARDS: [Shard; 64] = [const { Shard::new() }; 64];

#[repr(align(128))]
struct Shard {
    allocations: AtomicU64,
    allocated: AtomicU64,
    freed: AtomicU64,
}

impl Shard {
    const fn new() -> Self {
        Self { allocations: AtomicU64::new(0), allocated: AtomicU64::new(0), freed: AtomicU64::new(0) }
    }

    fn mine() -> &'static Self {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) });
        let number = NUMBER.get();
        if number != usize::MAX {
            return &SHARDS[number];
        }
        NUMBER.set(THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS.len());
        &SHARDS[NUMBER.get()]
    }

    fn sum(of: impl Fn(&Self) -> &AtomicU64) -> u64 {
        SHARDS.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    }
}

/// Counts what the system's allocator hands out.
pub(crate) struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let shard = Shard::mine();
        shard.allocations.fetch_add(1, Ordering::Relaxed);
        shard.allocated.fetch_add(layout.size() as u64, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Shard::mine().freed.fetch_add(layout.size() as u64, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How many allocations there have been.
pub(crate) fn allocations() -> u64 {
    Shard::sum(|shard| &shard.allocations)
}

/// How many bytes are allocated.
pub(crate) fn alive_bytes() -> u64 {
    Shard::sum(|shard| &shard.allocated) - Shard::sum(|shard| &shard.freed)
}

/// The CPU time of this process, user and system, all threads, from `/proc/self/stat` (proc(5)): fields 14
/// and 15, in hundredths of a second.
pub(crate) fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0);
    Duration::from_millis(ticks * 10)
}

/// Resident memory in KiB, from `/proc/self/status` (proc(5)).
pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// The middle one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The middle one of these sorted times, the one that a hundredth exceed, and the longest; in microseconds.
pub(crate) fn spread(sorted: &[Duration]) -> [f64; 3] {
    [0.5, 0.99, 1.0].map(|part| {
        let at = ((sorted.len() - 1) as f64 * part) as usize;
        sorted[at].as_secs_f64() * 1e6
    })
}

/// A table for a person.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    title: String,
}

impl Table {
    /// With these columns.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            rows: vec![columns.iter().map(|column| (*column).to_owned()).collect()],
            title: title.to_owned(),
        }
    }

    /// One more row.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// To standard output.
    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let line: Vec<String> = cells
                .map(
                    |(at, (cell, width))| {
                        if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            println!("  {}", line.join("  "));
        }
    }
}

/// A recorder that really counts, as an exporter's would: atomics for counters and gauges, buckets of
/// samples for histograms.
struct Real(Registry<Key, AtomicStorage>);

impl Recorder for Real {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.0.get_or_create_counter(key, |counter| counter.clone().into())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.0.get_or_create_gauge(key, |gauge| gauge.clone().into())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Buckets::default()))
    }
}

/// A histogram of fixed buckets, as Prometheus has it: it does not grow. Each bucket reaches twice as far as the
/// one before it, the first to a nanosecond.
#[derive(Default)]
struct Buckets {
    counts: [AtomicU64; 32],
    sum: AtomicU64,
}

impl metrics::HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let nanoseconds = (value * 1e9) as u64;
        let bucket = (u64::BITS - nanoseconds.leading_zeros()).min(31) as usize;
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// Metrics on, for all that follows.
pub(crate) fn install_recorder() {
    metrics::set_global_recorder(Real(Registry::new(AtomicStorage))).expect("none is installed yet");
}

pub(crate) fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}

/// Jobs in one call of `enqueue`.
pub(crate) const BATCH: u64 = 1_000;

pub(crate) async fn enqueue_no_ops(jobs: &dyn Enqueue, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        let batch = (start..count.min(start + BATCH)).map(|_| NewJob::new("no-op", "[1,2]"));
        jobs.enqueue(batch.collect()).await.expect("enqueued");
    }
}

/// Runs so many no-op jobs, and ends when they are settled.
pub(crate) async fn run_no_ops(intake: Intake, count: u64, slots: usize, prefetch: usize) {
    let shutdown = Shutdown::new();
    let (run, stop) = (AtomicU64::new(0), shutdown.clone());
    // The last one ends it; nobody looks at a clock meanwhile.
    let no_op = move |_: Context| {
        if run.fetch_add(1, Ordering::Relaxed) + 1 == count {
            stop.stop();
        }
        async {}
    };
    let registry = tidegate::Registry::new().handle_raw("no-op", no_op);
    let worker = Worker::builder(intake, registry).max_concurrent_jobs(slots).prefetch(prefetch);
    worker.build().expect("valid settings").run(shutdown).await;
}

/// From just before the enqueueing of one job to its handler's first line, one job after the other, each after a
/// `pause`; sorted.
pub(crate) async fn pick_up(
    intake: Intake,
    producer: &dyn Enqueue,
    times: usize,
    pause: impl Fn(usize) -> Duration,
) -> Vec<Duration> {
    let (started, mut has_started) = mpsc::channel(1);
    let registry = tidegate::Registry::new().handle_raw("tick", move |_: Context| {
        let (started, now) = (started.clone(), Instant::now());
        async move { started.send(now).await }
    });
    let worker = Worker::builder(intake, registry).build().expect("valid settings");
    let shutdown = Shutdown::new();
    let mut took = Vec::with_capacity(times);
    let measure = async {
        for turn in 0..times {
            tokio::time::sleep(pause(turn)).await;
            let before = Instant::now();
            producer.enqueue(vec![NewJob::new("tick", "")]).await.expect("enqueued");
            took.push(has_started.recv().await.expect("it starts").duration_since(before));
        }
        shutdown.stop();
    };
    tokio::join!(worker.run(shutdown.clone()), measure);
    took.sort();
    took
}

/// The CPU that a worker with nothing to do takes, in percent of one, and its resident memory in KiB.
pub(crate) async fn idle(intake: Intake, time: Duration) -> (f64, u64) {
    let registry = tidegate::Registry::new().handle_raw("tick", |_: Context| async {});
    let worker = Worker::builder(intake, registry).build().expect("valid settings");
    let shutdown = Shutdown::new();
    let measure = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = cpu_time();
        tokio::time::sleep(time).await;
        let used = cpu_time() - before;
        let resident = resident_kib();
        shutdown.stop();
        (100.0 * used.as_secs_f64() / time.as_secs_f64(), resident)
    };
    tokio::join!(worker.run(shutdown.clone()), measure).1
}
