//! What goes wrong with the disk under a file: it is full, it is read-only, it is broken.
//!
//! On a disk of its own ([`disk`]) this very test program runs again, with [`DISK`] set.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{
    Context, Enqueue, Error, ErrorKind, Inspect, JobId, NewJob, ReconnectPolicy, Registry, Settled,
    Settlement, Shutdown, Source, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::disk::{self, DISK, LOCK, UNLOCK};
use crate::file::at_once;
use crate::folder::Folder;

/// Runs the test of this name once more with a disk of 1 MiB, by each way to have one. `None` in the process that does
/// so; the other one is to do the work, with the disk's place.
fn with_a_small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let program = std::env::current_exe().expect("a test knows where it is");
    for way in disk::ways() {
        let folder = Folder::new();
        let mut command = way.small_disk(&folder.file("disk"), 1 << 20, "exec \"$0\" \"$@\"");
        let done =
            command.arg(&program).args(["--exact", test, "--nocapture"]).output().expect("there is `sh`");
        let [out, err] = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said));
        assert!(done.status.success() && out.contains("1 passed"), "{way:?}: {}: {out}{err}", done.status);
    }
    None
}

/// Runs one of the disk's own commands.
fn shell(command: &str) -> bool {
    let command = std::env::var(command).expect("it is on a disk of its own");
    Command::new("sh").args(["-c", &command]).status().expect("there is `sh`").success()
}

/// What SQLite makes a file of by default.
const PAGE: usize = 4096;

async fn push(jobs: &Sqlite, payload: Vec<u8>) -> Result<JobId, Error> {
    jobs.enqueue(vec![NewJob::new("kind", payload)]).await.map(|answers| answers[0].id().clone())
}

fn assert_full(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("the disk is full: make room"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_said_and_loses_nothing() {
    let Some(disk) = with_a_small_disk("faults::a_disk_that_is_full_is_said_and_loses_nothing") else {
        return;
    };
    let jobs = Sqlite::open(disk.join("jobs.sqlite")).expect("a new file");
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(push(&jobs, vec![1; 1_000]).await.expect("there is room"));
    }
    let held = jobs.fetch(&at_once(2), &CancellationToken::new()).await.expect("fetched");
    // Others fill the disk, and go on doing so.
    let ballast = disk.join("ballast");
    let fill = || {
        let mut file = OpenOptions::new().append(true).create(true).open(&ballast).expect("a file");
        for size in [4096, 1] {
            while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
        }
    };
    fill();
    let mut refused = 0;
    for _ in 0..20 {
        match push(&jobs, vec![2; 20_000]).await {
            Ok(id) => ids.push(id),
            Err(error) => {
                assert_full(&error);
                refused += 1;
            }
        }
        fill();
    }
    assert!(refused > 0, "the disk was never full");
    let ack = [Settled::new(held[0].tag, Settlement::Ack)];
    assert_full(&jobs.settle(&ack).await.expect_err("there is no room for that either"));
    std::fs::remove_file(&ballast).expect("removed");
    // Without being opened again it goes on, and what was accepted is there, and nothing else.
    assert!(jobs.settle(&ack).await.expect("settled").0.is_empty(), "its lease still runs");
    assert!(
        jobs.settle(&[Settled::new(held[1].tag, Settlement::Reject)]).await.expect("settled").0.is_empty()
    );
    ids.push(push(&jobs, vec![3; 20_000]).await.expect("there is room again"));
    let taken = jobs.fetch(&at_once(99), &CancellationToken::new()).await.expect("fetched");
    let taken: Vec<_> = taken.iter().map(|taken| taken.job.id.clone()).collect();
    assert_eq!(taken, ids[2..]);
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.leased, counts.dead, counts.done), (0, taken.len() as u64, 1, 1));
}

#[tokio::test]
async fn no_file_can_be_made_on_a_full_disk_but_it_can_later() {
    let Some(disk) = with_a_small_disk("faults::no_file_can_be_made_on_a_full_disk_but_it_can_later") else {
        return;
    };
    let (file, ballast) = (disk.join("jobs.sqlite"), disk.join("ballast"));
    std::fs::write(&ballast, vec![0; (1 << 20) - 8192]).expect("there is room for that");
    let error = Sqlite::open(&file).expect_err("there is no room");
    assert_full(&error);
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    std::fs::remove_file(&ballast).expect("removed");
    push(&Sqlite::open(&file).expect("there is room again"), vec![1]).await.expect("enqueued");
}

#[tokio::test]
async fn a_disk_that_is_read_only_is_said() {
    let Some(disk) = with_a_small_disk("faults::a_disk_that_is_read_only_is_said") else { return };
    let file = disk.join("jobs.sqlite");
    push(&Sqlite::open(&file).expect("a new file"), vec![1]).await.expect("enqueued");
    // Whoever was at work on the file may hold it for a moment yet.
    assert!((0..1_000).any(|_| shell(LOCK) || pause()), "it can't be made read-only");
    assert_denied(&Sqlite::open(&file).expect_err("it can't be written"), &file);
    assert!(shell(UNLOCK), "it can't be made writable again");
    let jobs = Sqlite::open(&file).expect("it can be written again");
    assert_eq!(jobs.counts().await.expect("counted").ready, 1);
}

/// For a moment; never what was waited for.
fn pause() -> bool {
    std::thread::sleep(Duration::from_millis(5));
    false
}

/// It is said when it is opened, and not with the first job.
#[tokio::test]
async fn a_file_that_may_only_be_read_is_refused() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    push(&Sqlite::open(&file).expect("a new file"), vec![1]).await.expect("enqueued");
    // The same as without the right to write, which would not stop root.
    let error = Sqlite::open(format!("file:{}?mode=ro", file.display())).expect_err("it may not be written");
    assert_denied(&error, &file);
}

fn assert_denied(error: &Error, file: &Path) {
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let text = error.to_string();
    assert!(text.contains("must be able to write") && text.contains(&file.display().to_string()), "{text}");
}

#[tokio::test]
async fn a_file_that_is_broken_is_said_and_never_taken_for_an_empty_one() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    {
        let jobs = Sqlite::open(&file).expect("a new file");
        for _ in 0..50 {
            push(&jobs, vec![7; 3_000]).await.expect("enqueued");
        }
    }
    let wal = file.with_extension("sqlite-wal");
    for _ in 0..1_000 {
        if !wal.exists() {
            break; // the last has closed it
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let whole = std::fs::read(&file).expect("read");
    let mut said = 0;
    // In each copy another page is overwritten.
    for page in 0..whole.len() / PAGE {
        let copy = folder.file(&format!("{page}.sqlite"));
        std::fs::write(&copy, &whole).expect("written");
        let broken = OpenOptions::new().write(true).open(&copy).expect("it is there");
        broken.write_all_at(&[0xA5; PAGE], (page * PAGE) as u64).expect("written");
        let outcome = async {
            let jobs = Sqlite::builder(&copy).durability(Durability::Normal).open()?;
            jobs.counts().await?;
            let taken = jobs.fetch(&at_once(99), &CancellationToken::new()).await?;
            let settled: Vec<_> = taken.iter().map(|one| Settled::new(one.tag, Settlement::Ack)).collect();
            jobs.settle(&settled).await?;
            Ok::<_, Error>(taken.len())
        };
        match outcome.await {
            // A page of nobody's, or of a payload: it can't know.
            Ok(taken) => assert_eq!(taken, 50, "page {page}"),
            Err(error) => {
                said += 1;
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::Decode, "page {page}: {text}");
                assert!(
                    text.contains("corrupt") || text.contains("no SQLite database"),
                    "page {page}: {text}"
                );
            }
        }
    }
    assert!(said > 5, "{said} of {} pages", whole.len() / PAGE);
}

/// Another program keeps the file locked for longer than the worker waits for an answer, but not than the file's own
/// patience: what was given up is applied then, and counted as what it is.
#[tokio::test]
async fn a_settlement_that_takes_longer_than_the_worker_waits_is_no_stale_one() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = Sqlite::builder(&file).busy_timeout(Duration::from_secs(60)).open().expect("a new file");
    push(&jobs, vec![1]).await.expect("enqueued");
    let locked = Arc::new(Mutex::new(Connection::open(&file).expect("it is there")));
    let locks = locked.clone();
    let registry = Registry::new().handle_raw("kind", move |_: Context| {
        let locks = locks.clone();
        async move {
            locks.lock().expect("no panic").execute_batch("BEGIN IMMEDIATE").expect("locked");
        }
    });
    let mut patience = ReconnectPolicy::default();
    patience.call_timeout = Duration::from_millis(100);
    let worker = Worker::builder(jobs.intake(), registry).reconnect(patience).build().expect("good settings");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    let unlock = async {
        while handle.stats().settle_failures < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        locked.lock().expect("no panic").execute_batch("COMMIT").expect("unlocked");
        while handle.stats().done + handle.stats().stale < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.stop();
    };
    let (report, ()) = tokio::join!(worker.run(shutdown.clone()), unlock);
    assert_eq!((report.stats.done, report.stats.stale, report.held.len()), (1, 0, 0));
    assert_eq!(jobs.counts().await.expect("counted").done, 1);
}
