//! P2: memory, tasks, threads and file descriptors depend on the bounds, never on how many jobs have run, failed,
//! panicked or timed out, nor on how often a worker was started or its connection lost.
//!
//! Whatever is looked at, it is looked at as a row of [`Sample`]s taken while nothing runs, and judged by
//! [`judge`]; the controls, which leak on purpose, go through the same two and are found out.
//!
//! The heap is counted by this program's own allocator, for the process as a whole, so the tests here take turns.

mod faults;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use faults::jobs::Gate;
use faults::left;
use faults::running::{Ended, Running, balanced};
use faults::server::Server;
use tidegate::{
    Context, Delivery, Error, FetchRequest, Intake, IntoOutcome as _, Job, JobId, Kind, Memory, NewJob,
    Outcome, ReconnectPolicy, Registry, RetryPolicy, Settled, Settlement, Source, Stale, Stats, Tag, Worker,
    WorkerBuilder,
};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

// ---- what is measured ----

/// The system's allocator, with a count of what is live.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static PIECES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static HEAP: Counting = Counting;

// SAFETY: all four pass what they are given on to the system's allocator, and its answer back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        PIECES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        PIECES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(size, Ordering::Relaxed);
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        PIECES.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

/// What there is at a moment at which nothing runs.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// How many jobs, cycles or losses there were before.
    after: u64,
    bytes: usize,
    pieces: usize,
    tasks: usize,
    threads: usize,
    descriptors: usize,
}

impl Sample {
    fn take(after: u64, runtime: &Handle) -> Self {
        // Those of the blocking pool stay for a few seconds after their last job: their bound is judged apart.
        let threads = ["jobs", "tidegate-flat", "tidegate-hb-fla"].map(left::threads_named).iter().sum();
        Self {
            after,
            bytes: BYTES.load(Ordering::Relaxed),
            pieces: PIECES.load(Ordering::Relaxed),
            tasks: runtime.metrics().num_alive_tasks(),
            threads,
            descriptors: left::descriptors(),
        }
    }
}

/// How much the heap may differ between two moments: buffers that have found their size.
const TOLERANCE: usize = 64 << 10;

/// And in how many pieces. A leak of one small piece a job is 900,000 of them.
const TOLERATED_PIECES: usize = 512;

/// Whether nothing depends on what has been: no sample is above the first.
fn judge(samples: &[Sample]) -> Result<(), String> {
    let (first, later) = samples.split_first().ok_or("no sample")?;
    for sample in later {
        let more = [
            ("bytes on the heap", sample.bytes, first.bytes + TOLERANCE),
            ("pieces on the heap", sample.pieces, first.pieces + TOLERATED_PIECES),
            ("tasks", sample.tasks, first.tasks),
            ("threads", sample.threads, first.threads),
            ("file descriptors", sample.descriptors, first.descriptors),
        ];
        if let Some((what, found, allowed)) = more.iter().find(|(_, found, allowed)| found > allowed) {
            let (after, before) = (sample.after, first.after);
            return Err(format!(
                "{found} {what} after {after}, and at most {allowed} after {before} would do: {samples:#?}"
            ));
        }
    }
    Ok(())
}

/// One test at a time: all of them look at the process as a whole. Panics that are meant to be are not printed.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static QUIET: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref() != Some(&ON_PURPOSE) {
                loud(panic);
            }
        }));
    });
    turn
}

const ON_PURPOSE: &str = "on purpose";

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name("jobs").enable_all().build().expect("a runtime")
}

// ---- the work ----

/// Enough that those that hang leave room for the others.
const SLOTS: usize = 64;

const KIND: &str = "mixed";
const BLOCKING: &str = "blocking";

/// The payload of the job of this number: the number, and a little ballast.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = vec![0; 64];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().expect("eight bytes at the front"))
}

fn kind(number: u64) -> &'static str {
    if number % 2000 == 1999 { BLOCKING } else { KIND }
}

/// One in a hundred hangs in its first attempt and runs into this.
fn timeout(number: u64) -> Option<Duration> {
    (number % 100 == 51).then_some(Duration::from_millis(5))
}

/// Of the first attempts, one in ten fails, one in a hundred panics and one in a hundred hangs; a few have
/// children and report their progress. The second attempts succeed.
async fn mixed(context: Context) -> Outcome {
    let number = number(context.payload());
    match (context.attempt(), number % 100) {
        (1, residue) if residue % 10 == 3 => Outcome::fail("not this time"),
        (1, 50) => std::panic::panic_any(ON_PURPOSE),
        (1, 51) => std::future::pending().await,
        (_, 52) => {
            context.progress(number, None, "half way");
            let scope = context.scope(2);
            for _ in 0..3 {
                let child = async {
                    tokio::task::yield_now().await;
                    Ok::<_, Error>(())
                };
                if let Err(cancelled) = scope.spawn(child).await {
                    return Outcome::fail(cancelled);
                }
            }
            scope.join().await.into_outcome()
        }
        (_, 53) => {
            tokio::task::yield_now().await;
            Outcome::Done
        }
        _ => Outcome::Done,
    }
}

fn worker(intake: Intake) -> WorkerBuilder {
    let registry = Registry::new().handle_raw(KIND, mixed).handle_blocking_raw(BLOCKING, |_| {});
    let soon = Duration::from_millis(1);
    let mut reconnect = ReconnectPolicy::default();
    (reconnect.initial, reconnect.cap) = (soon, soon);
    Worker::builder(intake, registry)
        .name("flat")
        .max_concurrent_jobs(SLOTS)
        .prefetch(SLOTS)
        .cancel_grace(soon)
        .retry(RetryPolicy::default().initial(soon).factor(1.0))
        .reconnect(reconnect)
        .shutdown_deadline(Duration::from_secs(5))
}

fn start(builder: WorkerBuilder) -> Running {
    Running::start(builder.build().expect("the settings are good"))
}

/// Where the work comes from.
trait Supply {
    /// Adds the jobs of these numbers.
    fn add(&self, numbers: std::ops::Range<u64>);

    /// Waits until all that was added is done or dead.
    async fn drained(&self);
}

impl Supply for Memory {
    fn add(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let mut job = NewJob::new(kind(number), payload(number));
            job.timeout = timeout(number);
            self.push(job).expect("there is room");
        }
    }

    async fn drained(&self) {
        Self::drained(self).await;
    }
}

/// A source without leases and without an end: it makes up its jobs as they are asked for.
#[derive(Clone, Default)]
struct Endless(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<Line>,
    changed: Notify,
}

#[derive(Default)]
struct Line {
    next: u64,
    end: u64,
    open: u64,
    again: VecDeque<(u64, u32)>,
}

impl Endless {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.state.lock().expect("nothing panics under this lock")
    }
}

impl Supply for Endless {
    fn add(&self, numbers: std::ops::Range<u64>) {
        self.line().end = numbers.end;
        self.0.changed.notify_waiters();
    }

    async fn drained(&self) {
        loop {
            let changed = self.0.changed.notified();
            let Line { next, end, open, .. } = *self.line();
            if next == end && open == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[async_trait]
impl Source for Endless {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let deadline = Instant::now() + wanted.wait;
        loop {
            let changed = self.0.changed.notified();
            let taken: Vec<_> = {
                let mut line = self.line();
                std::iter::from_fn(|| line.take()).take(wanted.max.get()).collect()
            };
            if !taken.is_empty() {
                return Ok(taken.into_iter().map(deliver).collect());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Vec::new()),
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let mut line = self.line();
        for Settled { tag, settlement, .. } in settled {
            let (number, attempt) = (tag.key, tag.token as u32);
            match settlement {
                Settlement::Ack | Settlement::Reject => line.open -= 1,
                Settlement::Retry { .. } => line.again.push_back((number, attempt + 1)),
                Settlement::Release { .. } => line.again.push_back((number, attempt)),
            }
        }
        drop(line);
        self.0.changed.notify_waiters();
        Ok(Stale::default())
    }
}

impl Line {
    fn take(&mut self) -> Option<(u64, u32)> {
        if let Some(again) = self.again.pop_front() {
            return Some(again);
        }
        let number = self.next;
        let more = number < self.end;
        if more {
            self.next += 1;
            self.open += 1;
        }
        more.then_some((number, 1))
    }
}

fn deliver((number, attempt): (u64, u32)) -> Delivery {
    let id = JobId::new(number.to_string());
    let mut job = Job::new(id, Kind::new(kind(number)), payload(number).into(), SystemTime::UNIX_EPOCH);
    job.timeout = timeout(number);
    let tag = Tag { session: 0, key: number, token: u64::from(attempt) };
    Delivery { job: Arc::new(job), attempt, tag, lease: None }
}

/// How many jobs are waiting at most: the supply's own memory depends on that.
const CHUNK: u64 = 10_000;

/// Has `running` do the jobs from number `from` up to `to`.
async fn work(supply: &impl Supply, from: u64, to: u64) {
    let mut added = from;
    while added < to {
        let next = to.min(added + CHUNK);
        supply.add(added..next);
        supply.drained().await;
        added = next;
    }
}

/// Waits until the worker has heard of the last settlement: the supply hears of it first.
async fn quiet(running: &Running) {
    while running.handle.stats().in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A task that has reported its job may be on its way out yet: it is given a second to go. One that stays is
    // for the judge to see.
    for _ in 0..1000 {
        if Handle::current().metrics().num_alive_tasks() <= 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ten times a hundred thousand jobs, with a sample after each.
fn a_million_jobs(supply: &impl Supply, intake: Intake) {
    const ROUND: u64 = 100_000;
    let _alone = alone();
    let runtime = runtime();
    let (samples, ended) = runtime.block_on(async {
        let running = start(worker(intake));
        let mut samples = Vec::with_capacity(10);
        for round in 0..10 {
            work(supply, round * ROUND, (round + 1) * ROUND).await;
            quiet(&running).await;
            samples.push(Sample::take((round + 1) * ROUND, &Handle::current()));
        }
        (samples, running.stop().await)
    });
    println!(
        "{} bytes after {}, {} after {}",
        samples[0].bytes, samples[0].after, samples[9].bytes, samples[9].after
    );
    assert!(left::threads_named("tidegate-blocki") <= SLOTS);
    all_were_done(&ended, 10 * ROUND);
    judge(&samples).unwrap_or_else(|growth| panic!("{growth}"));
}

fn all_were_done(Ended { report, .. }: &Ended, jobs: u64) {
    let Stats { done, failed, panicked, timed_out, .. } = report.stats;
    let hundredth = jobs / 100;
    assert_eq!((done, panicked), (jobs, hundredth), "{report}");
    // On a busy machine a second attempt may run into its time as well.
    assert!(
        timed_out >= hundredth && (12 * hundredth..=13 * hundredth).contains(&failed),
        "{:?}",
        report.stats
    );
}

#[test]
fn a_million_jobs_from_a_store_with_leases_leave_nothing_behind() {
    let memory = Memory::new();
    a_million_jobs(&memory, memory.intake());
}

#[test]
fn a_million_jobs_from_an_endless_source_leave_nothing_behind() {
    let endless = Endless::default();
    a_million_jobs(&endless, Intake::fixed(Arc::new(endless.clone())));
}

// ---- starting, stopping, losing ----

async fn two_hundred_times(turn: impl AsyncFnMut(u64)) -> Vec<Sample> {
    times(200, turn).await
}

/// A sample after every tenth turn.
async fn times(count: u64, mut turn: impl AsyncFnMut(u64)) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(20);
    for cycle in 1..=count {
        turn(cycle).await;
        if cycle % 10 == 0 {
            // What a thread or a task gives back a moment after it was joined.
            let before: Option<&Sample> = samples.first();
            let back = |first: &Sample| judge(&[*first, Sample::take(cycle, &Handle::current())]).is_ok();
            for _ in 0..100 {
                if before.is_none_or(back) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            samples.push(Sample::take(cycle, &Handle::current()));
        }
    }
    samples
}

/// Waits, for a third of a second at most, until the worker's threads and tasks are gone: even what was joined
/// the kernel or the runtime may count for a moment yet.
async fn all_are_gone() {
    for _ in 0..300 {
        let threads = left::threads_named("tidegate-flat") + left::threads_named("tidegate-hb-fla");
        if threads == 0 && Handle::current().metrics().num_alive_tasks() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn two_hundred_starts_and_stops_leave_nothing_behind() {
    let _alone = alone();
    let runtime = runtime();
    let samples = runtime.block_on(two_hundred_times(async |cycle| {
        let memory = Memory::new();
        let running = start(worker(memory.intake()));
        work(&memory, cycle * 100, cycle * 100 + 100).await;
        // Every other one is stopped in the middle of its work.
        if cycle % 2 == 0 {
            memory.add(0..100);
        }
        balanced(&running.stop().await.report.stats);
        all_are_gone().await;
    }));
    assert_eq!((samples[0].threads, samples[0].tasks), (2, 0), "the runtime's own threads, and no task");
    judge(&samples).unwrap_or_else(|growth| panic!("{growth}"));
}

#[test]
fn two_hundred_abandoned_runs_leave_nothing_behind() {
    let _alone = alone();
    let runtime = runtime();
    let samples = runtime.block_on(two_hundred_times(async |_| {
        let memory = Memory::new();
        memory.add(0..100);
        let running = start(worker(memory.intake()));
        let handle = running.handle.clone();
        while handle.stats().fetched == 0 {
            tokio::task::yield_now().await;
        }
        running.drop_run().await;
        all_are_gone().await; // it ends in the background
    }));
    judge(&samples).unwrap_or_else(|growth| panic!("{growth}"));
}

#[test]
fn two_hundred_lost_connections_leave_nothing_behind() {
    let _alone = alone();
    let runtime = runtime();
    let (samples, ended) = runtime.block_on(async {
        // Leases so short that the heartbeat is at work as well.
        let memory =
            Memory::builder().lease_ttl(Duration::from_millis(500)).build().expect("the settings are good");
        let server = Server::forgetful(memory);
        let running = start(worker(server.intake()));
        let samples = two_hundred_times(async |cycle| {
            server.memory().add(cycle * 100..cycle * 100 + 50);
            server.cut();
            server.memory().add(cycle * 100 + 50..cycle * 100 + 100);
            Memory::drained(server.memory()).await;
            quiet(&running).await;
        })
        .await;
        assert!(server.sessions_alive() <= 2, "{} sessions", server.sessions_alive());
        (samples, running.stop().await)
    });
    balanced(&ended.report.stats);
    assert!(ended.report.stats.done >= 200 * 99, "{}", ended.report);
    judge(&samples).unwrap_or_else(|growth| panic!("{growth}"));
}

// ---- controls ----

/// What the barrier did: every task that has finished is kept until the end, which never comes.
#[test]
fn a_worker_that_never_reaps_is_found_out() {
    let _alone = alone();
    let runtime = runtime();
    let samples = runtime.block_on(async {
        let (mut samples, mut barrier) = (Vec::with_capacity(10), JoinSet::new());
        for round in 1..=10 {
            for number in 0..1000 {
                barrier.spawn(async move { number });
            }
            while Handle::current().metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
            samples.push(Sample::take(round * 1000, &Handle::current()));
        }
        samples
    });
    let growth = judge(&samples).expect_err("a kilobyte for every six jobs is a leak");
    assert!(growth.contains("on the heap"), "{growth}");
}

/// And what each of the other things that are counted looks like when it is kept.
#[test]
fn cycles_that_keep_a_task_a_thread_or_a_file_are_found_out() {
    let _alone = alone();
    let runtime = runtime();
    let (mut tasks, mut files) = (JoinSet::new(), Vec::new());
    let keeps_tasks = runtime.block_on(times(30, async |_| {
        tasks.spawn(std::future::pending::<()>());
    }));
    runtime.block_on(tasks.shutdown());
    let keeps_files = runtime.block_on(times(30, async |_| {
        files.push(File::open("/proc/self/stat").expect("/proc is mounted"));
    }));
    drop(files);
    let gate = Gate::default();
    let mut threads = Vec::new();
    let keeps_threads = runtime.block_on(times(30, async |_| {
        let gate = gate.clone();
        let wait = move || gate.block();
        threads.push(std::thread::Builder::new().name("jobs-kept".into()).spawn(wait).expect("a thread"));
    }));
    gate.open();
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    for (what, samples) in
        [("tasks", keeps_tasks), ("file descriptors", keeps_files), ("threads", keeps_threads)]
    {
        let growth = judge(&samples).expect_err(what);
        assert!(growth.contains(what), "{growth}");
    }
}

// ---- for long ----

/// At full rate, for as many seconds as the environment says, through a server whose connections are cut every
/// second, beside a second worker that is started and stopped. One line a second.
#[test]
#[ignore = "soak: run by ./check --soak"]
fn soak() {
    let _alone = alone();
    let seconds =
        std::env::var("TIDEGATE_SOAK_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let runtime = runtime();
    let (samples, resident) = runtime.block_on(soaking(Duration::from_secs(seconds)));
    // The first tenth warms up.
    let warm = samples.len() / 10;
    judge(&samples[warm..]).unwrap_or_else(|growth| panic!("{growth}"));
    let least = |sizes: &[usize]| *sizes.iter().min().expect("at least one second");
    let third = (resident.len() - warm).div_ceil(3);
    let (early, late) = (least(&resident[warm..warm + third]), least(&resident[resident.len() - third..]));
    assert!(
        late <= early + RESIDENT_TOLERANCE,
        "{early} KiB were resident in the first third, {late} KiB in the last"
    );
}

/// In KiB. The heap is judged to the byte; this is for what an allocator or a stack might keep besides.
const RESIDENT_TOLERANCE: usize = 2 << 10;

async fn soaking(time: Duration) -> (Vec<Sample>, Vec<usize>) {
    let server = Server::forgetful(Memory::new());
    let running = start(worker(server.intake()));
    let lines = time.as_secs() as usize + 1;
    let (mut samples, mut resident, mut added) = (Vec::with_capacity(lines), Vec::with_capacity(lines), 0);
    let (began, mut line) = (Instant::now(), 0);
    // Written past the test harness, which would keep what is printed.
    let mut table = std::io::stdout();
    let _ = writeln!(table, "      s         jobs    jobs/s     heap B  pieces   RSS KiB threads   fds");
    while began.elapsed() < time {
        let (second, before) = (Instant::now(), added);
        server.cut();
        while second.elapsed() < Duration::from_secs(1) {
            work(server.memory(), added, added + CHUNK).await;
            added += CHUNK;
        }
        let beside = Memory::new();
        let brief = start(worker(beside.intake()));
        work(&beside, added, added + 100).await;
        balanced(&brief.stop().await.report.stats);
        drop(beside);
        quiet(&running).await;
        let sample = Sample::take(added, &Handle::current());
        samples.push(sample);
        resident.push(resident_kib());
        line += 1;
        let rate = (added - before) as f64 / second.elapsed().as_secs_f64();
        let Sample { bytes, pieces, threads, descriptors, .. } = sample;
        let rss = resident[resident.len() - 1];
        let _ = writeln!(
            table,
            "{line:>7} {added:>12} {rate:>9.0} {bytes:>10} {pieces:>7} {rss:>9} {threads:>7} {descriptors:>5}"
        );
    }
    let ended = running.stop().await;
    println!("{}", ended.report);
    assert!(ended.report.stats.done >= added, "{}", ended.report);
    (samples, resident)
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("the kernel counts what is resident");
    line.trim().trim_end_matches(" kB").parse().expect("kibibytes")
}

/// So that a counter that is never read for its own sake does not hide behind the others.
#[test]
fn the_counting_allocator_counts() {
    let _alone = alone();
    static SIZE: AtomicU64 = AtomicU64::new(100_000);
    let before = (BYTES.load(Ordering::Relaxed), PIECES.load(Ordering::Relaxed));
    let kept = vec![0u8; SIZE.load(Ordering::Relaxed) as usize];
    let during = (BYTES.load(Ordering::Relaxed), PIECES.load(Ordering::Relaxed));
    assert!(during.0 >= before.0 + 90_000 && during.1 > before.1.saturating_sub(10), "{before:?} {during:?}");
    drop(kept);
    assert!(BYTES.load(Ordering::Relaxed) < during.0 - 90_000);
}
