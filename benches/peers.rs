//! How many no-op jobs a second Tidegate runs, and what others run that keep theirs on Redis, each in turn on the same
//! server: Sidekiq (6, as Debian has it, with YJIT) and BullMQ (reliable too).
//!
//! `cargo bench --features redis --bench peers` starts a `redis-server` of its own, without persistence, and prints
//! medians of several rounds. It needs Ruby and Node with what is run beside us (`tests/peers`); what is not there is
//! left out, and a line says so. `TIDEGATE_BENCH_SMOKE=1` runs it tiny.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

#[path = "../tests/peers/mod.rs"]
mod peers;
#[path = "../tests/redis/mod.rs"]
mod redis;
mod support;

use std::time::Instant;

use peers::{Node, Ruby};
use redis::{Options, RedisServer};
use serde_json::Value;
use support::{Table, enqueue_no_ops, install_recorder, median, run_no_ops, runtime};
use tidegate::backend::redis::{Fetch, Layout, Redis};

const SLOTS: usize = 20;

/// Who runs the jobs.
#[derive(Clone, Copy)]
enum By {
    Tidegate { fetch: Fetch, prefetch: usize },
    Sidekiq { threads: usize },
    BullMq,
}

impl By {
    fn is_there(self) -> bool {
        match self {
            Self::Tidegate { .. } => true,
            Self::Sidekiq { .. } => Ruby::is_there(),
            Self::BullMq => Node::is_there(),
        }
    }

    /// How many jobs a second it runs, of this many on a server that holds nothing else.
    fn run(self, server: &RedisServer, count: u64) -> f64 {
        server.command(&["FLUSHALL"]);
        let rate = |told: Value| told["jobs_per_second"].as_f64().expect("a rate");
        match self {
            Self::Tidegate { fetch, prefetch } => tidegate(server, fetch, prefetch, count),
            Self::Sidekiq { threads } => {
                let args = ["bench.rb", &count.to_string(), &threads.to_string()];
                rate(Ruby::json("--yjit", &args, &server.url()))
            }
            Self::BullMq => {
                let args = [&*count.to_string(), &SLOTS.to_string()];
                rate(Node::json("bullmq_bench.js", &args, &server.url()))
            }
        }
    }
}

fn tidegate(server: &RedisServer, fetch: Fetch, prefetch: usize, count: u64) -> f64 {
    let layout = if fetch == Fetch::PlainPop { Layout::Resque } else { Layout::Sidekiq };
    let jobs = Redis::builder(&server.url()).layout(layout).fetch(fetch).open().expect("a good URL");
    runtime(2).block_on(async {
        enqueue_no_ops(&jobs, count).await;
        let start = Instant::now();
        run_no_ops(jobs.intake(), count, SLOTS, prefetch).await;
        count as f64 / start.elapsed().as_secs_f64()
    })
}

fn main() {
    install_recorder();
    let Some(server) = Options::new().start() else { return };
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (count, rounds) = if smoke { (500, 1) } else { (100_000, 3) };
    let (reliable, plain) = (Fetch::default(), Fetch::PlainPop);
    let cases = [
        ("BullMQ", By::BullMq),
        ("Sidekiq, 5 threads", By::Sidekiq { threads: 5 }),
        ("Sidekiq", By::Sidekiq { threads: SLOTS }),
        ("Tidegate", By::Tidegate { fetch: reliable, prefetch: 0 }),
        ("Tidegate, prefetch 60", By::Tidegate { fetch: reliable, prefetch: 60 }),
        ("Tidegate, plain pop", By::Tidegate { fetch: plain, prefetch: 0 }),
        ("Tidegate, plain pop, prefetch 60", By::Tidegate { fetch: plain, prefetch: 60 }),
    ];
    let cases: Vec<_> = cases.into_iter().filter(|(_, by)| by.is_there()).collect();
    let mut runs: Vec<Vec<f64>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (runs, (_, by)) in runs.iter_mut().zip(&cases) {
            runs.push(by.run(&server, count));
        }
    }
    let medians: Vec<f64> = runs.iter().map(|runs| median(runs.iter().copied())).collect();
    let of = |name: &str| cases.iter().zip(&medians).find(|(case, _)| case.0 == name).map(|(_, rate)| *rate);
    let times = |rate: f64, peer: &str| of(peer).map_or("-".to_owned(), |peer| format!("{:.1}", rate / peer));
    let title = format!("{count} no-op jobs, {SLOTS} slots, medians of {rounds}");
    let mut table = Table::new(&title, &["", "jobs/s", "x BullMQ", "x Sidekiq, 5 threads", "x Sidekiq"]);
    for ((name, _), rate) in cases.iter().zip(&medians) {
        let mut row = vec![(*name).to_owned(), format!("{rate:.0}")];
        row.extend(["BullMQ", "Sidekiq, 5 threads", "Sidekiq"].map(|peer| times(*rate, peer)));
        table.row(&row);
    }
    table.print();
}
