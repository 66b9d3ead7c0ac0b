//! Durable jobs in one file: how many a second are enqueued and run, what a long queue costs, how soon an idle worker
//! starts a job, and what it costs while it waits.
//!
//! `cargo bench --features sqlite --bench sqlite` prints medians of several rounds. The file is made in the folder that
//! `TIDEGATE_BENCH_FOLDER` names, `target` by default: it should be on a real disk. `TIDEGATE_BENCH_SMOKE=1` runs it
//! tiny, to see that it works.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::{Counting, Table, cpu_time, idle, install_recorder, median, pick_up, spread};
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{Context, Enqueue, Inspect, NewJob, Registry, Shutdown, Worker};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Jobs in one call of `enqueue`.
const BATCH: u64 = 1_000;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn path() -> PathBuf {
    let folder =
        std::env::var_os("TIDEGATE_BENCH_FOLDER").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    folder.join("bench.sqlite")
}

/// Takes away what is there.
fn clear() {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
}

/// A fresh file.
fn open(durability: Durability) -> Sqlite {
    clear();
    Sqlite::builder(path()).durability(durability).open().expect("a file")
}

async fn fill(jobs: &Sqlite, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        let batch = (start..count.min(start + BATCH)).map(|_| NewJob::new("no-op", ""));
        jobs.enqueue(batch.collect()).await.expect("enqueued");
    }
}

struct Rates {
    enqueued: f64,
    run: f64,
    cpu_us: f64,
}

/// Enqueues, and runs so many, of those that lay there before if there are any.
fn round(durability: Durability, count: u64, before: u64, prefetch: usize) -> Rates {
    let (runtime, jobs) = (runtime(), open(durability));
    runtime.block_on(async {
        fill(&jobs, before).await;
        let start = Instant::now();
        fill(&jobs, count).await;
        let enqueued = count as f64 / start.elapsed().as_secs_f64();
        let registry = Registry::new().handle_raw("no-op", |_: Context| async {});
        let worker = Worker::builder(jobs.intake(), registry)
            .max_concurrent_jobs(20)
            .prefetch(prefetch)
            .build()
            .expect("valid settings");
        let (handle, shutdown) = (worker.handle(), Shutdown::new());
        let (start, cpu) = (Instant::now(), cpu_time());
        let stop = async {
            while handle.stats().done < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let took = (start.elapsed(), cpu_time() - cpu);
            shutdown.stop();
            took
        };
        let (took, cpu) = tokio::join!(worker.run(shutdown.clone()), stop).1;
        let counts = jobs.counts().await.expect("counted");
        assert!(counts.done >= count && counts.done + counts.unfinished() == before + count, "{counts:?}");
        Rates {
            enqueued,
            run: count as f64 / took.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
        }
    })
}

fn throughput(count: u64, rounds: usize, many: u64) {
    let cases: [(&str, Durability, u64, usize); 5] = [
        ("full", Durability::Full, 0, 0),
        ("full, prefetch 180", Durability::Full, 0, 180),
        ("normal", Durability::Normal, 0, 0),
        ("normal, prefetch 180", Durability::Normal, 0, 180),
        ("full, many waiting", Durability::Full, many, 0),
    ];
    let mut runs: Vec<Vec<Rates>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (runs, (_, durability, before, prefetch)) in runs.iter_mut().zip(cases) {
            runs.push(round(durability, count, before, prefetch));
        }
    }
    let title = format!("{count} no-op jobs, 20 slots; enqueued in batches of {BATCH}; many: {many}");
    let mut table = Table::new(&title, &["", "enqueued/s", "run/s", "cpu us/job run"]);
    for ((name, ..), runs) in cases.iter().zip(&runs) {
        let of = |figure: fn(&Rates) -> f64| median(runs.iter().map(figure));
        table.row(&[
            (*name).to_owned(),
            format!("{:.0}", of(|rates| rates.enqueued)),
            format!("{:.0}", of(|rates| rates.run)),
            format!("{:.1}", of(|rates| rates.cpu_us)),
        ]);
    }
    table.print();
}

/// Picks up what the same handle enqueues, or another one.
async fn pick_up_of(times: usize, across: bool) -> Vec<Duration> {
    let jobs = open(Durability::Full);
    let producer = if across { Sqlite::open(path()).expect("the same file") } else { jobs.clone() };
    // Long enough for everything to fall asleep, and out of step with its looks.
    pick_up(jobs.intake(), &producer, times, |turn| Duration::from_millis(3 + turn as u64 % 7)).await
}

fn main() {
    install_recorder();
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (count, rounds, many, ticks, rest) =
        if smoke { (500, 1, 1_000, 5, 1) } else { (20_000, 3, 1_000_000, 300, 20) };
    throughput(count, rounds, many);
    let mut table = Table::new(&format!("idle pick-up, {ticks} jobs"), &["", "p50 us", "p99 us", "max us"]);
    for (name, across) in [("by the same handle", false), ("by another", true)] {
        let took = runtime().block_on(pick_up_of(ticks, across));
        let [middle, most, max] = spread(&took).map(|time| format!("{time:.0}"));
        table.row(&[name.to_owned(), middle, most, max]);
    }
    table.print();
    let (cpu, _) =
        runtime().block_on(async { idle(open(Durability::Full).intake(), Duration::from_secs(rest)).await });
    println!("\nan idle worker: {cpu:.2} % CPU over {rest} s");
    clear();
}
