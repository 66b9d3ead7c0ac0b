//! Durable jobs in one file: how many a second are enqueued and run, what a long queue costs, how soon an idle worker
//! starts a job of its own process and of another one, and what it costs while it waits.
//!
//! `cargo bench --features sqlite --bench sqlite` prints medians of several rounds, in each of which all cases take their
//! turn; what a long queue costs is the median of what it costs in each round. The file is made in the folder that
//! `TIDEGATE_BENCH_FOLDER` names, `target` by default: it should be on a real disk. `TIDEGATE_BENCH_SMOKE=1` runs it
//! tiny, to see that it works.

#![expect(clippy::disallowed_methods, reason = "a bench measures with the system's clock")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::{Counting, Table, cpu_time, idle, install_recorder, median, pick_up, runtime, spread};
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{Context, Enqueue, Inspect, NewJob, Registry, Shutdown, Worker};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Jobs in one call of `enqueue`.
const BATCH: u64 = 1_000;

/// The file, in the process whose worker is woken from another one.
const CHILD: &str = "TIDEGATE_BENCH_CHILD";

/// How jobs are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    queues: u64,
    priorities: u64,
}

const ONE_LANE: Shape = Shape { queues: 1, priorities: 1 };
const MANY_LANES: Shape = Shape { queues: 8, priorities: 5 };

impl Shape {
    fn job(self, number: u64) -> NewJob {
        let priority = i16::try_from(number / self.queues % self.priorities).expect("there are a few");
        NewJob::new("no-op", "").queue(format!("queue-{}", number % self.queues)).priority(priority)
    }
}

/// What is run, and how.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    durability: Durability,
    prefetch: usize,
    shape: Shape,
    /// Whether many jobs wait beside those that are run.
    many: bool,
}

const FULL: Case =
    Case { name: "full", durability: Durability::Full, prefetch: 0, shape: ONE_LANE, many: false };

const CASES: [Case; 7] = [
    FULL,
    Case { name: "full, many waiting", many: true, ..FULL },
    Case { name: "full, 40 lanes", shape: MANY_LANES, ..FULL },
    Case { name: "full, 40 lanes, many waiting", shape: MANY_LANES, many: true, ..FULL },
    Case { name: "full, prefetch 180", prefetch: 180, ..FULL },
    Case { name: "normal", durability: Durability::Normal, ..FULL },
    Case { name: "normal, prefetch 180", durability: Durability::Normal, prefetch: 180, ..FULL },
];

fn path() -> PathBuf {
    let folder =
        std::env::var_os("TIDEGATE_BENCH_FOLDER").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("a folder for the file");
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

async fn fill(jobs: &Sqlite, count: u64, shape: Shape) {
    for start in (0..count).step_by(BATCH as usize) {
        let batch = (start..count.min(start + BATCH)).map(|number| shape.job(number));
        jobs.enqueue(batch.collect()).await.expect("enqueued");
    }
}

struct Rates {
    enqueued: f64,
    run: f64,
    cpu_us: f64,
}

/// Enqueues, and runs so many, of those that lay there before if there are any.
fn round(case: Case, count: u64, many: u64) -> Rates {
    let (runtime, jobs) = (runtime(2), open(case.durability));
    let before = if case.many { many } else { 0 };
    runtime.block_on(async {
        fill(&jobs, before, case.shape).await;
        let start = Instant::now();
        fill(&jobs, count, case.shape).await;
        let enqueued = count as f64 / start.elapsed().as_secs_f64();
        let registry = Registry::new().handle_raw("no-op", |_: Context| async {});
        let worker = Worker::builder(jobs.intake(), registry)
            .max_concurrent_jobs(20)
            .prefetch(case.prefetch)
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
    let mut runs: Vec<Vec<Rates>> = CASES.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (runs, case) in runs.iter_mut().zip(CASES) {
            runs.push(round(case, count, many));
        }
    }
    let title = format!(
        "{count} no-op jobs, 20 slots; enqueued in batches of {BATCH}; many: {many}; 40 lanes: {} queues with {} priorities",
        MANY_LANES.queues, MANY_LANES.priorities
    );
    let mut table =
        Table::new(&title, &["", "enqueued/s", "run/s", "cpu us/job run", "run, of that without many"]);
    for (case, runs_of_it) in CASES.iter().zip(&runs) {
        let of = |figure: fn(&Rates) -> f64| median(runs_of_it.iter().map(figure));
        let without = CASES.iter().position(|other| {
            case.many && !other.many && (other.shape, other.prefetch) == (case.shape, case.prefetch)
        });
        let ratio = without
            .map(|at| median(runs_of_it.iter().zip(&runs[at]).map(|(with, without)| with.run / without.run)));
        table.row(&[
            case.name.to_owned(),
            format!("{:.0}", of(|rates| rates.enqueued)),
            format!("{:.0}", of(|rates| rates.run)),
            format!("{:.1}", of(|rates| rates.cpu_us)),
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
        ]);
    }
    table.print();
}

/// Long enough for everything to fall asleep, and out of step with its looks.
fn pause(turn: usize) -> Duration {
    Duration::from_millis(3 + turn as u64 % 7)
}

/// By the clock that all processes share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// The worker's process: says when a handler has begun, until its standard input ends.
fn child(file: &Path) {
    runtime(2).block_on(async {
        let jobs = Sqlite::open(file).expect("the file");
        let registry = Registry::new().handle_raw("tick", |_: Context| {
            let begun = now().as_nanos();
            async move { writeln!(std::io::stdout(), "{begun}").expect("the other process reads it") }
        });
        let worker = Worker::builder(jobs.intake(), registry).build().expect("valid settings");
        let shutdown = Shutdown::new();
        let end = async {
            let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
            ended.expect("no panic").expect("a pipe");
            shutdown.stop();
        };
        tokio::join!(worker.run(shutdown.clone()), end);
    });
}

/// From just before this process enqueues a job to its handler's first line in another one.
fn pick_up_across(times: usize) -> Vec<Duration> {
    let jobs = open(Durability::Full);
    let mut command = Command::new(std::env::current_exe().expect("a bench knows where it is"));
    command.env(CHILD, path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut says = BufReader::new(child.stdout.take().expect("piped"));
    let runtime = runtime(2);
    let mut one = |turn: usize| {
        std::thread::sleep(pause(turn));
        let before = now();
        let tick = vec![NewJob::new("tick", "")];
        runtime.block_on(jobs.enqueue(tick)).expect("enqueued");
        let mut line = String::new();
        says.read_line(&mut line).expect("a pipe");
        Duration::from_nanos(line.trim().parse().expect("it says when")).saturating_sub(before)
    };
    one(0); // until it is at work
    let mut took: Vec<Duration> = (0..times).map(one).collect();
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success(), "the other process failed");
    took.sort();
    took
}

fn main() {
    install_recorder();
    if let Some(file) = std::env::var_os(CHILD) {
        return child(Path::new(&file));
    }
    let smoke = std::env::var_os("TIDEGATE_BENCH_SMOKE").is_some();
    let (count, rounds, many, ticks, rest) =
        if smoke { (500, 1, 1_000, 5, 1) } else { (20_000, 3, 1_000_000, 300, 20) };
    throughput(count, rounds, many);
    let mut table = Table::new(&format!("idle pick-up, {ticks} jobs"), &["", "p50 us", "p99 us", "max us"]);
    let here = {
        let jobs = open(Durability::Full);
        runtime(2).block_on(pick_up(jobs.intake(), &jobs, ticks, pause))
    };
    for (name, took) in [("of the same process", here), ("of another process", pick_up_across(ticks))] {
        let [middle, most, max] = spread(&took).map(|time| format!("{time:.0}"));
        table.row(&[name.to_owned(), middle, most, max]);
    }
    table.print();
    let (cpu, _) =
        runtime(2).block_on(async { idle(open(Durability::Full).intake(), Duration::from_secs(rest)).await });
    println!("\nan idle worker: {cpu:.2} % CPU over {rest} s");
    clear();
}
