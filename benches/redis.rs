//! Jobs on a Redis server: how many a second are enqueued and run, against a bare client that sends the same script;
//! what a long queue costs, and how soon an idle worker starts a job, against a bare `BLMOVE`.
//!
//! `cargo bench --features redis --bench redis` starts a `redis-server` of its own, without persistence, and prints
//! medians of several rounds, in each of which all cases take their turn. `TIDEGATE_BENCH_WAITING` says how many other
//! jobs wait where many do, a million unless it is set: ten million take 3 GiB. `TIDEGATE_BENCH_SMOKE=1` runs it tiny,
//! to see that it works.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

#[path = "../tests/redis/mod.rs"]
mod servers;
mod support;

use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::MultiplexedConnection;
use servers::{Options, RedisServer};
use support::{
    BATCH, Counting, Table, cpu_time, enqueue_no_ops, idle, install_recorder, median, pick_up, run_no_ops,
    runtime, spread,
};
use tidegate::Inspect;
use tidegate::backend::redis::{Fetch, Layout, Redis, RedisBuilder};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SLOTS: usize = 20;

async fn connection(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a good URL");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

#[derive(Default)]
struct Rates {
    enqueued: f64,
    run: f64,
    cpu_us: f64,
    /// How many jobs an exchange carried.
    carried: f64,
}

/// How the jobs are run.
#[derive(Clone, Copy)]
enum By {
    /// The script, and nothing else.
    Bare,
    Worker {
        prefetch: usize,
    },
    /// Popped plainly, in Resque's layout.
    Plain {
        prefetch: usize,
    },
}

impl By {
    fn builder(self, server: &RedisServer) -> RedisBuilder {
        let builder = Redis::builder(&server.url());
        if matches!(self, Self::Plain { .. }) { builder.layout(Layout::Resque) } else { builder }
    }
}

fn round(server: &RedisServer, by: By, count: u64, before: u64) -> Rates {
    server.command(&["FLUSHALL"]);
    let jobs = by.builder(server).open().expect("a good URL");
    runtime(2).block_on(async {
        enqueue_no_ops(&jobs, before).await;
        let start = Instant::now();
        enqueue_no_ops(&jobs, count).await;
        let enqueued = count as f64 / start.elapsed().as_secs_f64();
        server.command(&["CONFIG", "RESETSTAT"]);
        let (start, cpu) = (Instant::now(), cpu_time());
        match by {
            By::Bare => bare(connection(server).await, count).await,
            By::Worker { prefetch } => run_no_ops(jobs.intake(), count, SLOTS, prefetch).await,
            By::Plain { prefetch } => {
                let jobs = by.builder(server).fetch(Fetch::PlainPop).open().expect("a good URL");
                run_no_ops(jobs.intake(), count, SLOTS, prefetch).await;
            }
        }
        let (took, cpu) = (start.elapsed(), cpu_time() - cpu);
        let carried = count as f64 / exchanges(server, by);
        let counts = jobs.counts().await.expect("counted");
        assert!(counts.done >= count && counts.done + counts.unfinished() == before + count, "{counts:?}");
        let (run, cpu_us) = (count as f64 / took.as_secs_f64(), cpu.as_secs_f64() * 1e6 / count as f64);
        Rates { enqueued, run, cpu_us, carried }
    })
}

/// How many scripts the server has run, or pops.
fn exchanges(server: &RedisServer, by: By) -> f64 {
    let told = server.command(&["INFO", "commandstats"]).text();
    let command =
        if matches!(by, By::Plain { .. }) { "cmdstat_lpop:calls=" } else { "cmdstat_evalsha:calls=" };
    let calls = told.split(command).nth(1).and_then(|rest| rest.split(',').next());
    calls.and_then(|calls| calls.parse().ok()).unwrap_or(f64::NAN)
}

/// Settles twenty and takes twenty, again and again: the same script with the same arguments, and nothing is done with
/// what comes.
async fn bare(mut connection: MultiplexedConnection, count: u64) {
    const KEYS: [&str; 14] = [
        "tidegate:leases",
        "tidegate:held",
        "tidegate:token",
        "tidegate:lapsed",
        "tidegate:cancelled",
        "queues",
        "schedule",
        "retry",
        "dead",
        "stat:processed",
        "stat:failed",
        "tidegate:seen",
        "tidegate:lenient",
        "tidegate:",
    ];
    const TEXT: &str = concat!(
        include_str!("../src/backend/redis/scripts/unique.lua"),
        include_str!("../src/backend/redis/scripts/away.lua"),
        include_str!("../src/backend/redis/scripts/exchange.lua")
    );
    let script = redis::Script::new(TEXT);
    redis::cmd("SCRIPT").arg("LOAD").arg(TEXT).query_async::<()>(&mut connection).await.expect("loaded");
    let (mut first, mut held, mut done) = (0, 0, 0);
    while done < count {
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.get_hash()).arg(KEYS.len()).arg(&KEYS[..]);
        call.arg(30_000)
            .arg(SLOTS)
            .arg("queue:")
            .arg("2026-11-21")
            .arg(10_000)
            .arg(15_552_000)
            .arg(256)
            .arg(&["LPUSH", "RPUSH", "RPOP", "zset", "", ""][..])
            .arg(1_u64 << 53)
            .arg(&["0", "0", "0"][..]);
        call.arg(held);
        for token in first..first + held {
            call.arg(token);
        }
        let answer = connection.send_packed_command(&call).await.and_then(Value::extract_error);
        let Ok(Value::Array(answer)) = answer else { panic!("no answer") };
        done += held;
        let Value::Int(token) = answer[5] else { panic!("no token") };
        let Value::Array(groups) = &answer[6] else { panic!("no jobs") };
        let sizes = groups.iter().map(|group| match group {
            Value::Array(group) => group.len() as u64 - 1,
            other => panic!("no group: {other:?}"),
        });
        (first, held) = (token as u64, sizes.sum());
    }
}

fn throughput(server: &RedisServer, count: u64, rounds: usize, many: u64) {
    let cases: [(&str, By, u64); 6] = [
        ("bare script", By::Bare, 0),
        ("worker", By::Worker { prefetch: 0 }, 0),
        ("worker, prefetch 60", By::Worker { prefetch: 60 }, 0),
        ("worker, many waiting", By::Worker { prefetch: 0 }, many),
        ("worker, plain pop", By::Plain { prefetch: 0 }, 0),
        ("worker, plain pop, prefetch 60", By::Plain { prefetch: 60 }, 0),
    ];
    let mut runs: Vec<Vec<Rates>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (runs, (_, by, before)) in runs.iter_mut().zip(cases) {
            runs.push(round(server, by, count, before));
        }
    }
    let title = format!("{count} no-op jobs, {SLOTS} slots; enqueued in batches of {BATCH}; many: {many}");
    let mut table = Table::new(
        &title,
        &["", "enqueued/s", "run/s", "of bare", "cpu us/job run", "x bare", "jobs/exchange"],
    );
    let of = |runs: &[Rates], figure: fn(&Rates) -> f64| median(runs.iter().map(figure));
    let (bare_run, bare_cpu) = (of(&runs[0], |rates| rates.run), of(&runs[0], |rates| rates.cpu_us));
    for ((name, ..), runs) in cases.iter().zip(&runs) {
        let (run, cpu) = (of(runs, |rates| rates.run), of(runs, |rates| rates.cpu_us));
        table.row(&[
            (*name).to_owned(),
            format!("{:.0}", of(runs, |rates| rates.enqueued)),
            format!("{run:.0}"),
            format!("{:.2}", run / bare_run),
            format!("{cpu:.1}"),
            format!("{:.2}", cpu / bare_cpu),
            format!("{:.1}", of(runs, |rates| rates.carried)),
        ]);
    }
    table.print();
}

/// From just before a push to the answer of a `BLMOVE` that waits for it.
async fn bare_pick_up(server: &RedisServer, times: usize) -> Vec<Duration> {
    let (mut waits, mut pushes) = (connection(server).await, connection(server).await);
    waits.set_response_timeout(Duration::from_secs(60));
    let mut took = Vec::new();
    for turn in 0..times {
        let wait = redis::cmd("BLMOVE").arg("from").arg("to").arg("RIGHT").arg("LEFT").arg(0).to_owned();
        let waiting = async {
            waits.send_packed_command(&wait).await.expect("moved");
            Instant::now()
        };
        let pushing = async {
            tokio::time::sleep(Duration::from_millis(3 + turn as u64 % 7)).await;
            let start = Instant::now();
            pushes.send_packed_command(redis::cmd("LPUSH").arg("from").arg("job")).await.expect("pushed");
            start
        };
        let (arrived, start) = tokio::join!(waiting, pushing);
        took.push(arrived - start);
    }
    took.sort();
    took
}

fn latency(server: &RedisServer, ticks: usize) {
    let mut table = Table::new(&format!("idle pick-up, {ticks} jobs"), &["", "p50 us", "p99 us", "max us"]);
    let bare = runtime(2).block_on(bare_pick_up(server, ticks));
    let jobs = Redis::open(&server.url()).expect("a good URL");
    let producer = Redis::open(&server.url()).expect("a good URL");
    let pause = |turn: usize| Duration::from_millis(3 + turn as u64 % 7);
    let ours = runtime(2).block_on(pick_up(jobs.intake(), &producer, ticks, pause));
    for (name, took) in [("bare BLMOVE", bare), ("worker", ours)] {
        let [middle, most, max] = spread(&took).map(|time| format!("{time:.0}"));
        table.row(&[name.to_owned(), middle, most, max]);
    }
    table.print();
}

fn main() {
    install_recorder();
    let Some(server) = Options::new().start() else { return };
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (count, rounds, many, ticks, rest) =
        if smoke { (500, 1, 1_000, 5, 1) } else { (100_000, 5, 1_000_000, 500, 20) };
    let many =
        std::env::var("TIDEGATE_BENCH_WAITING").ok().and_then(|many| many.parse().ok()).unwrap_or(many);
    throughput(&server, count, rounds, many);
    server.command(&["FLUSHALL"]);
    latency(&server, ticks);
    let jobs = Redis::open(&server.url()).expect("a good URL");
    let (cpu, _) = runtime(2).block_on(async { idle(jobs.intake(), Duration::from_secs(rest)).await });
    println!("\nan idle worker: {cpu:.2} % CPU over {rest} s");
}
