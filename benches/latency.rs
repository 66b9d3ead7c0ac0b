//! How soon an idle worker starts a job, and what an idle worker costs.
//!
//! `cargo bench --bench latency`. `TIDEGATE_BENCH_SMOKE=1` runs it tiny.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

mod support;

use std::time::Duration;

use support::{Table, idle, install_recorder, pick_up, spread};
use tidegate::Memory;

fn main() {
    install_recorder();
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (jobs, time) = if smoke { (50, Duration::from_millis(200)) } else { (2000, Duration::from_secs(30)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");

    let queue = Memory::new();
    // Long enough for every thread to fall asleep.
    let times = runtime.block_on(pick_up(queue.intake(), &queue, jobs, |_| Duration::from_millis(2)));
    let [middle, most, max] = spread(&times).map(|time| format!("{time:.1}"));
    let mut table =
        Table::new(&format!("idle pick-up over memory, {jobs} jobs"), &["", "p50 us", "p99 us", "max us"]);
    table.row(&["enqueue to start".to_owned(), middle, most, max]);
    table.print();

    let (cpu, resident) = runtime.block_on(idle(Memory::new().intake(), time));
    let mut table = Table::new(&format!("an idle worker, {time:?}"), &["", "CPU %", "resident MiB"]);
    table.row(&["idle".to_owned(), format!("{cpu:.2}"), format!("{:.1}", resident as f64 / 1024.0)]);
    table.print();
}
