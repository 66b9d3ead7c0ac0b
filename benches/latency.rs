//! How soon an idle worker starts a job, and what an idle worker costs.
//!
//! `cargo bench --bench latency`. `TIDEGATE_BENCH_SMOKE=1` runs it tiny.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

mod support;

use std::time::{Duration, Instant};

use support::{Table, cpu_time, install_recorder, resident_kib};
use tidegate::{Context, Enqueue, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::sync::mpsc;

/// From just before the enqueueing of one job to its handler's first line, one job after the other.
async fn pick_up(jobs: usize) -> Vec<Duration> {
    let queue = Memory::new();
    let (started, mut has_started) = mpsc::channel(1);
    let registry = Registry::new().handle_raw("tick", move |_: Context| {
        let (started, now) = (started.clone(), Instant::now());
        async move { started.send(now).await }
    });
    let worker = Worker::builder(queue.intake(), registry).build().expect("valid settings");
    let shutdown = Shutdown::new();
    let mut times = Vec::with_capacity(jobs);
    let measure = async {
        for _ in 0..jobs {
            // Long enough for every thread to fall asleep.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let before = Instant::now();
            queue.enqueue(vec![NewJob::new("tick", "")]).await.expect("room");
            let start = has_started.recv().await.expect("the job starts");
            times.push(start.duration_since(before));
        }
        shutdown.stop();
    };
    tokio::join!(worker.run(shutdown.clone()), measure);
    times.sort();
    times
}

/// CPU and resident memory of a worker that has nothing to do.
async fn idle(time: Duration) -> (f64, u64) {
    let queue = Memory::new();
    let registry = Registry::new().handle_raw("tick", |_: Context| async {});
    let worker = Worker::builder(queue.intake(), registry).build().expect("valid settings");
    let shutdown = Shutdown::new();
    let measure = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = cpu_time();
        tokio::time::sleep(time).await;
        let used = cpu_time() - before;
        shutdown.stop();
        (100.0 * used.as_secs_f64() / time.as_secs_f64(), resident_kib())
    };
    tokio::join!(worker.run(shutdown.clone()), measure).1
}

fn main() {
    install_recorder();
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (jobs, time) = if smoke { (50, Duration::from_millis(200)) } else { (2000, Duration::from_secs(30)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");

    let times = runtime.block_on(pick_up(jobs));
    let at = |part: f64| {
        format!("{:.1}", times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3)
    };
    let mut table =
        Table::new(&format!("idle pick-up over memory, {jobs} jobs"), &["", "p50 us", "p99 us", "max us"]);
    table.row(&["enqueue to start".to_owned(), at(0.5), at(0.99), at(1.0)]);
    table.print();

    let (cpu, resident) = runtime.block_on(idle(time));
    let mut table = Table::new(&format!("an idle worker, {time:?}"), &["", "CPU %", "resident MiB"]);
    table.row(&["idle".to_owned(), format!("{cpu:.2}"), format!("{:.1}", resident as f64 / 1024.0)]);
    table.print();
}
