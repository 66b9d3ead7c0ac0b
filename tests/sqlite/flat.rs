//! P2 for the file: it, the heap and the descriptors grow with what is in it at once, and not with how much went
//! through.
//!
//! 200,000 jobs go through one file: done, retried, rejected, deleted, kept for a moment, with payloads, outputs and unique
//! keys; the last of them with `Durability::Full`, once the file has been opened again. After each tenth of them everything
//! is measured while nothing runs, in a process where nothing else does: this very test program, run again with [`FILE`]
//! set. All the time a third process looks at the file ([`READER`]), which keeps the WAL from being begun anew now and
//! then, and measures itself.

use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rusqlite::ffi::sqlite3_memory_used;
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{
    Context, Enqueue, Inspect, JobQuery, JobState, Manage, NewJob, Outcome, Registry, RetryPolicy, Shutdown,
    Unique, Worker, WorkerHandle,
};

use crate::folder::Folder;
use crate::heap;

/// The file, in the process that measures.
const FILE: &str = "TIDEGATE_TEST_FLAT";

/// The same, in the process that looks.
const READER: &str = "TIDEGATE_TEST_FLAT_READER";

const ROUNDS: u64 = 10;
/// How many of them are with [`Durability::Full`], and wait for the disk: the last ones.
const FULL_ROUNDS: u64 = 2;
const JOBS: u64 = 20_000;
/// How many more a round are deleted before they could run.
const DELETED: u64 = 2_000;

/// The most that are kept of what is dead, and of what is done.
const KEPT: usize = 500;

/// What there is at a moment at which nothing runs.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Without SQLite's, which counts its own.
    heap: u64,
    sqlite: u64,
    descriptors: u64,
    file: u64,
    wal: u64,
}

impl Sample {
    fn take(file: &Path) -> Self {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        // SAFETY: it may be asked at any time.
        let sqlite = unsafe { sqlite3_memory_used() };
        Self {
            heap: heap::live() as u64,
            sqlite: sqlite.unsigned_abs(),
            descriptors: std::fs::read_dir("/proc/self/fd").expect("a Linux").count() as u64,
            file: size(file),
            wal: size(&file.with_extension("sqlite-wal")),
        }
    }
}

/// Whether nothing depends on how much went through: no sample is much above the first.
fn judge(samples: &[Sample]) -> Result<(), String> {
    let (first, later) = samples.split_first().ok_or("no sample")?;
    for sample in later {
        // Buffers and caches that find their size, and half-filled pages. A piece of 16 bytes a job would be 2.5 MiB of
        // the heap, a row 10 MiB of the file.
        let more = [
            ("heap", sample.heap, first.heap + (128 << 10)),
            ("memory of SQLite's", sample.sqlite, first.sqlite + (512 << 10)),
            ("descriptors", sample.descriptors, first.descriptors),
            ("file", sample.file, first.file + (1 << 20)),
            // A checkpoint comes every two thousand pages of 4 KiB; a reader may put it off for a while.
            ("WAL", sample.wal, 32 << 20),
        ];
        if let Some((what, found, allowed)) = more.iter().find(|(_, found, allowed)| found > allowed) {
            return Err(format!("{what}: {found}, and at most {allowed} would do: {samples:#?}"));
        }
    }
    Ok(())
}

fn open_files(file: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("a Linux").filter_map(Result::ok);
    let folder = file.parent().expect("a folder");
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(folder))).count()
}

/// Of the first attempts some fail, and of the jobs a few for good.
fn registry() -> Registry {
    let turn = Arc::new(AtomicU32::new(0));
    Registry::new().handle_raw("kind", move |context: Context| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        async move {
            if turn.is_multiple_of(10) {
                context.keep_output(&[b'o'; 100]);
            }
            match turn % 100 {
                0..5 if context.attempt() == 1 => Outcome::fail("now and then"),
                99 => Outcome::reject("for good"),
                _ => Outcome::Done,
            }
        }
    })
}

/// Enqueues a round's jobs, of which so many have ended before, and waits until they have ended.
async fn round(jobs: &Sqlite, handle: &WorkerHandle, round: u64, before: u64) {
    let ended = |handle: &WorkerHandle| handle.stats().done + handle.stats().rejected;
    for batch in 0..20 {
        let job = |number: u64| {
            let number = batch * JOBS / 20 + number;
            let job = NewJob::new("kind", vec![b'x'; 100 + number as usize % 400]);
            let key = format!("{round}-{number}");
            if number.is_multiple_of(5) { job.unique(Unique::until_done(key)) } else { job }
        };
        // The file is as large as what waited at once, so that must not depend on who is quicker.
        while ended(handle) + JOBS / 20 < before + batch * (JOBS / 20) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        jobs.enqueue((0..JOBS / 20).map(job).collect()).await.expect("enqueued");
        delete_some(jobs, DELETED / 20).await;
    }
    while ended(handle) < before + JOBS {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let counts = jobs.counts().await.expect("counted");
    assert_eq!(counts.unfinished(), 0);
    assert!(counts.dead <= KEPT as u64 && counts.kept <= KEPT as u64, "{counts:?}");
}

/// So many jobs that nobody runs, half of them not yet due and a few with keys, come and are deleted, each by itself; and
/// with them a few of the dead.
async fn delete_some(jobs: &Sqlite, count: u64) {
    let job = |number: u64| {
        let job = NewJob::new("other", vec![b'y'; 50 + number as usize * 7 % 300]).queue("other");
        let job = if number.is_multiple_of(2) { job } else { job.delay(Duration::from_secs(3600)) };
        if number.is_multiple_of(7) { job.unique(Unique::while_queued(format!("{number}"))) } else { job }
    };
    let made = jobs.enqueue((0..count).map(job).collect()).await.expect("enqueued");
    // As many at once as there are: they share transactions.
    let mut deleting: FuturesUnordered<_> = made.iter().map(|made| jobs.delete(made.id())).collect();
    while let Some(deleted) = deleting.next().await {
        assert!(deleted.expect("deleted"), "nobody else takes them");
    }
    for dead in jobs.list(&JobQuery::new(JobState::Dead, 3)).await.expect("listed") {
        jobs.delete(&dead.job.id).await.expect("deleted"); // or gone meanwhile, to make room
    }
}

/// One after the other with this durability, and what there is after each.
async fn rounds(file: &Path, durability: Durability, numbers: Range<u64>, samples: &mut Vec<Sample>) {
    let builder = Sqlite::builder(file).durability(durability);
    let builder = builder.keep_done(Duration::from_millis(50)).max_done(KEPT).max_dead(KEPT);
    let jobs = builder.open().expect("the file");
    let worker = Worker::builder(jobs.intake(), registry())
        .queues(tidegate::Queues::strict(["default"]))
        .prefetch(200)
        .retry(RetryPolicy::default().max_attempts(3).initial(Duration::from_millis(1)))
        .build()
        .expect("good settings");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    let run = async {
        for number in numbers.clone() {
            round(&jobs, &handle, number, (number - numbers.start) * JOBS).await;
            samples.push(Sample::take(file));
        }
        shutdown.stop();
    };
    let (report, ()) = tokio::join!(worker.run(shutdown.clone()), run);
    assert_eq!(report.stats.done + report.stats.rejected, (numbers.end - numbers.start) * JOBS, "{report}");
}

/// Not a test but the process that measures, unless [`FILE`] is not set.
#[test]
fn measuring_process() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let file = Path::new(&file);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    drop(Sqlite::open(file).expect("a new file"));
    let mut reader = this_program("flat::looking_process");
    reader.env_remove(FILE).env(READER, file).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reader = reader.stderr(Stdio::piped()).spawn().expect("it starts");
    let samples = runtime.block_on(async {
        let mut samples = Vec::new();
        let first_full = ROUNDS - FULL_ROUNDS;
        rounds(file, Durability::Normal, 0..first_full, &mut samples).await;
        rounds(file, Durability::Full, first_full..ROUNDS, &mut samples).await;
        samples
    });
    drop(runtime);
    drop(reader.stdin.take());
    let looked = reader.wait_with_output().expect("it ends");
    let said = [&looked.stdout, &looked.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(looked.status.success() && said[0].contains("looked"), "{}{}", said[0], said[1]);
    assert_eq!(open_files(file), 0, "closed with the last handle");
    println!("{samples:?}\n{}", said[0]);
    judge(&samples[1..]).expect("flat");
}

/// Not a test but the process that looks at the file until its input ends, unless [`READER`] is not set.
#[test]
fn looking_process() {
    let Some(file) = std::env::var_os(READER) else { return };
    let file = Path::new(&file);
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    let input = std::thread::Builder::new().name("input".to_owned());
    let input = input.spawn(move || {
        let ended = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
        ended.expect("a pipe");
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut looks, mut samples) = (0_u64, Vec::new());
    runtime.block_on(async {
        let jobs = Sqlite::builder(file).open_to_read().expect("the file");
        while !over.load(Ordering::Relaxed) {
            jobs.counts().await.expect("counted");
            for state in [JobState::Ready, JobState::Leased, JobState::Dead, JobState::Done] {
                for job in jobs.list(&JobQuery::new(state, 20)).await.expect("listed") {
                    jobs.history(&job.job.id).await.expect("read");
                }
            }
            looks += 1;
            if looks.is_multiple_of(20) {
                samples.push(Sample { file: 0, wal: 0, ..Sample::take(file) });
            }
            // It is to look at the file, not to keep the machine busy.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    input.expect("a thread").join().expect("no panic");
    assert!(samples.len() > 2, "{looks} looks show little");
    println!("looked {looks} times: {:?} .. {:?}", samples[1], samples[samples.len() - 1]);
    judge(&samples[1..]).expect("flat");
}

/// This very test program, to run that test of it.
fn this_program(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", test, "--nocapture"]);
    command
}

#[test]
fn nothing_grows_with_how_many_jobs_went_through() {
    let folder = Folder::new();
    let mut command = this_program("flat::measuring_process");
    command.env(FILE, folder.file("jobs.sqlite"));
    let done = command.stdin(Stdio::null()).output().expect("it starts");
    let said = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(done.status.success(), "{}{}", said[0], said[1]);
    println!("{}", said[0]);
}

#[test]
fn what_grows_with_each_job_is_found() {
    let sample = Sample { heap: 1 << 20, sqlite: 1 << 20, descriptors: 20, file: 1 << 20, wal: 1 << 20 };
    assert_eq!(judge(&[sample; 9]), Ok(()));
    // 16 bytes, or a page, or a descriptor now and then, for each of 160,000 jobs.
    for grown in [
        Sample { heap: sample.heap + 16 * 160_000, ..sample },
        Sample { sqlite: sample.sqlite + 16 * 160_000, ..sample },
        Sample { descriptors: sample.descriptors + 1, ..sample },
        Sample { file: sample.file + 20 * 160_000, ..sample },
        Sample { wal: 4096 * 160_000, ..sample },
    ] {
        assert!(judge(&[sample, sample, grown]).is_err(), "{grown:?}");
    }
}
