//! What goes wrong between the store and its file.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::gate::Late;
use super::store::time_of;
use super::unheard::{MOST_UNHEARD, Unheard};
use super::*;
use crate::error::ErrorKind;
use crate::inspect::JobState;

/// A file in a folder of its own, which goes with it.
pub(super) struct File(pub(super) PathBuf);

impl File {
    pub(super) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tidegate-lib-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Self(folder.join("jobs.sqlite"))
    }

    pub(super) fn open(&self) -> Sqlite {
        let builder = Sqlite::builder(&self.0).durability(Durability::Normal);
        builder.busy_timeout(Duration::from_millis(50)).open().expect("a file")
    }

    /// A connection of somebody else's.
    pub(super) fn connect(&self) -> Connection {
        Connection::open(&self.0).expect("a file")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

async fn push(jobs: &Sqlite, payload: impl Into<bytes::Bytes>) -> Result<Vec<Enqueued>, Error> {
    jobs.enqueue(vec![NewJob::new("kind", payload)]).await
}

async fn ready(jobs: &Sqlite) -> u64 {
    jobs.counts().await.expect("counted").ready
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let file = File::new();
    let jobs = file.open();
    push(&jobs, "small").await.expect("there is room");
    let limit = |pages: i64| {
        let connection = lock(&jobs.0.gate.connection);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).expect("set");
    };
    limit(1); // as many as there are
    let error = push(&jobs, vec![0; 100_000]).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(crate::error::Chain(&error).to_string().contains("the disk is full"), "{error}");
    // Those that shared its transaction are not lost, but told.
    let (small, large) = tokio::join!(push(&jobs, ""), push(&jobs, vec![0; 100_000]));
    assert_eq!(large.expect_err("no room").kind(), ErrorKind::Full);
    let kept = 1 + u64::from(small.is_ok());
    assert_eq!(ready(&jobs).await, kept);
    limit(1_000_000);
    push(&jobs, vec![0; 100_000]).await.expect("there is room again");
    assert_eq!(ready(&jobs).await, kept + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_fails_leaves_its_neighbours_alone() {
    let file = File::new();
    let jobs = file.open();
    let gate = jobs.0.gate.clone();
    let held = lock(&gate.connection); // so that all of them share the next transaction
    let enqueue = |payload: &'static str, fails: bool| {
        let now = jobs.now();
        let act = move |txn: &mut Txn<'_>| {
            txn.enqueue(now, &[NewJob::new("kind", payload)])?;
            if fails { Err(rusqlite::Error::InvalidQuery) } else { Ok(()) }
        };
        gate.pass("trying", Lasts::ForGood, Late::Skip, act, drop).boxed()
    };
    let mut all = [enqueue("first", false), enqueue("bad", true), enqueue("last", false)];
    for one in &mut all {
        assert!(one.now_or_never().is_none(), "it is left at the gate");
    }
    drop(held);
    let mut answers = Vec::new();
    for one in all {
        answers.push(one.await.is_ok());
    }
    assert_eq!(answers, [true, false, true]);
    let kept = jobs.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed");
    let kept: Vec<_> = kept.iter().map(|job| (job.job.id.to_string(), job.job.payload.clone())).collect();
    assert_eq!(
        kept,
        [("1".to_owned(), "first".into()), ("2".to_owned(), "last".into())],
        "nothing of it is left"
    );
}

/// A commit waits for the disk if anything in it must last, and only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_group_of_which_one_must_last_waits_for_the_disk() {
    let file = File::new();
    let jobs = Sqlite::open(&file.0).expect("a file");
    let gate = jobs.0.gate.clone();
    let left = |lasts| gate.pass("trying", lasts, Late::Skip, |_| Ok(()), drop).boxed();
    let waits = || {
        let level: i64 =
            lock(&gate.connection).query_row("PRAGMA synchronous", [], |row| row.get(0)).expect("a level");
        level == 2
    };
    assert!(waits(), "a file is opened for good");
    for (group, expected) in [
        (&[Lasts::UntilPowerFails][..], false),
        (&[Lasts::UntilPowerFails, Lasts::ForGood], true),
        (&[Lasts::UntilPowerFails, Lasts::UntilPowerFails], false),
        (&[Lasts::ForGood, Lasts::UntilPowerFails], true),
    ] {
        // While this one is at it, the others gather for the next.
        let (before, entered, go) = block(&gate);
        entered.recv().expect("it is at it");
        let mut all: Vec<_> = group.iter().map(|lasts| left(*lasts)).collect();
        for one in &mut all {
            assert!(one.now_or_never().is_none(), "it is left at the gate");
        }
        go.send(()).expect("it waits");
        before.await;
        for one in all {
            one.await.expect("done");
        }
        assert_eq!(waits(), expected, "{group:?}");
    }
}

/// Leaves something at the gate that is at work until it is told to go: what was left before it shares its transaction.
fn block(gate: &Arc<Gate>) -> (BoxFuture<'static, ()>, Receiver<()>, SyncSender<()>) {
    let ((enter, entered), (go, gone)) = (sync_channel(1), sync_channel(1));
    let gate = gate.clone();
    let act = move |_: &mut Txn<'_>| {
        enter.send(()).expect("it is waited for");
        gone.recv().expect("it is told to go");
        Ok(())
    };
    let pass =
        async move { gate.pass("blocking", Lasts::ForGood, Late::Skip, act, drop).await.expect("done") };
    let mut pass = pass.boxed();
    assert!((&mut pass).now_or_never().is_none(), "it is left at the gate");
    (pass, entered, go)
}

async fn take(jobs: &Sqlite) -> Vec<Delivery> {
    let wanted = FetchRequest::new(NonZeroUsize::MIN, Duration::ZERO);
    jobs.fetch(&wanted, &CancellationToken::new()).await.expect("fetched")
}

/// A fetch that is dropped when it has been answered, but has not heard it yet: the jobs are not lost for the time of a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fetch_that_is_dropped_at_work_gives_its_jobs_back() {
    let file = File::new();
    let jobs = file.open();
    push(&jobs, "").await.expect("enqueued");
    let held = lock(&jobs.0.gate.connection);
    let mut fetch = take(&jobs).boxed();
    assert!((&mut fetch).now_or_never().is_none(), "it is left at the gate");
    let (blocked, entered, go) = block(&jobs.0.gate);
    drop(held);
    entered.recv().expect("it is at work, and the fetch was before it");
    drop(fetch);
    go.send(()).expect("it waits");
    blocked.await;
    let taken = loop {
        // As soon as the first is done, so is what gives back.
        let taken = take(&jobs).await;
        if !taken.is_empty() {
            break taken;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!((taken.len(), taken[0].attempt), (1, 1), "the attempt was not counted");
    assert!(taken[0].lease.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_nobody_wants_any_more_is_not_begun() {
    let file = File::new();
    let jobs = file.open();
    let waits = push(&jobs, "waits").await.expect("enqueued")[0].id().clone();
    let before = lock(&jobs.0.gate.connection).total_changes();
    let held = lock(&jobs.0.gate.connection);
    for dropped in [push(&jobs, "late").map(drop).boxed(), jobs.cancel(&waits).map(drop).boxed()] {
        assert!(dropped.now_or_never().is_none(), "it is left at the gate, and dropped here");
    }
    assert!(take(&jobs).now_or_never().is_none(), "this too");
    let (blocked, entered, go) = block(&jobs.0.gate);
    drop(held);
    entered.recv().expect("the others would have been before it");
    go.send(()).expect("it waits");
    blocked.await;
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.leased, counts.dead), (1, 0, 0));
    assert_eq!(lock(&jobs.0.gate.connection).total_changes(), before, "nothing was done and undone either");
}

/// It ran, and so it counts; and who tries again hears that it is settled, not that it was too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_settlement_that_nobody_waits_for_any_more_is_applied_and_known() {
    let file = File::new();
    let jobs = file.open();
    for fused in [false, true] {
        push(&jobs, "runs").await.expect("enqueued");
        let taken = take(&jobs).await.remove(0);
        push(&jobs, "waits").await.expect("enqueued");
        let settled = [Settled::new(taken.tag, Settlement::Ack)];
        let nobodys = Tag { token: taken.tag.token + 1_000, ..taken.tag };
        let wanted = FetchRequest::new(NonZeroUsize::MIN, Duration::ZERO);
        let held = lock(&jobs.0.gate.connection);
        let both = [settled[0].clone(), Settled::new(nobodys, Settlement::Ack)];
        let dropped = match fused {
            false => jobs.settle(&both).now_or_never().map(drop),
            true => jobs.exchange(&both, &wanted).now_or_never().map(drop),
        };
        assert!(dropped.is_none(), "it is left at the gate, and dropped here");
        drop(held);
        // The same worker tries again, as it does with all that was not answered in time.
        let Stale(stale) = match fused {
            false => jobs.settle(&both).await.expect("settled"),
            true => jobs.exchange(&both, &wanted).await.expect("settled").0,
        };
        assert_eq!(stale, [nobodys], "what was stale is so still");
        let counts = jobs.counts().await.expect("counted");
        assert_eq!((counts.done, counts.ready + counts.leased), (1 + u64::from(fused), 1 + u64::from(fused)));
        assert_eq!(counts.leased, u64::from(fused), "the one that nobody waited for took nothing");
        // Once it has been told it is forgotten.
        assert_eq!(jobs.settle(&settled).await.expect("asked").0, [taken.tag]);
    }
}

#[test]
fn what_nobody_heard_of_is_remembered_up_to_a_bound() {
    let unheard = Unheard::default();
    let tag = |token: usize| Tag { session: 0, key: 1, token: token as u64 };
    let settled: Vec<_> =
        (0..3 * MOST_UNHEARD).map(|token| Settled::new(tag(token), Settlement::Ack)).collect();
    for part in settled.chunks(1_000) {
        unheard.note(part, &Stale(vec![part[0].tag]));
    }
    let all: Vec<_> = settled.iter().map(|settled| settled.tag).collect();
    let left = unheard.without(Stale(all)).0;
    assert_eq!(settled.len() - left.len(), MOST_UNHEARD);
    assert_eq!(unheard.without(Stale(vec![tag(3 * MOST_UNHEARD - 1)])).0.len(), 1, "it was told");
}

#[tokio::test]
async fn a_file_that_others_keep_locked_is_said_and_comes_back() {
    let file = File::new();
    let jobs = file.open();
    let other = file.connect();
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let error = push(&jobs, "").await.expect_err("it is locked");
    assert!(error.is_transient() && !error.is_disconnect(), "{error:?}");
    assert!(error.to_string().contains("another process has kept the file locked"), "{error}");
    other.execute_batch("COMMIT").expect("unlocked");
    push(&jobs, "").await.expect("it is free again");
    assert_eq!(ready(&jobs).await, 1);
}

#[test]
fn a_runtime_that_ends_takes_no_other_with_it() {
    let file = File::new();
    let jobs = file.open();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    for round in 1..=20 {
        let (ends, mut tasks) = (runtime(), tokio::task::JoinSet::new());
        for _ in 0..5 {
            let jobs = jobs.clone();
            tasks.spawn_on(async move { push(&jobs, "perhaps").await }, ends.handle());
        }
        ends.shutdown_background();
        // Whoever comes next is served.
        runtime().block_on(push(&jobs, "surely")).expect("enqueued");
        let ready = runtime().block_on(ready(&jobs));
        assert!((round..=6 * round).contains(&ready), "{ready} after {round} rounds");
    }
}

#[tokio::test]
async fn a_text_that_is_no_id_of_ours_is_not_found() {
    let file = File::new();
    let jobs = file.open();
    push(&jobs, "").await.expect("enqueued");
    for text in ["", "0", "01", "+1", " 1", "1 ", "1-1", "-1", "99999999999999999999", "x"] {
        assert!(jobs.find(&JobId::new(text)).await.expect("asked").is_none(), "{text:?}");
    }
    assert!(jobs.find(&JobId::new("1")).await.expect("asked").is_some());
}

#[test]
fn times_come_back_as_they_were() {
    for nanoseconds in [0, 1, -1, 1_700_000_000_123_456_789, i64::MAX, -i64::MAX] {
        assert_eq!(time_of(moment(nanoseconds)), nanoseconds);
    }
}

#[tokio::test]
async fn a_panic_at_work_is_told_and_locks_nobody_out() {
    let file = File::new();
    let jobs = file.open();
    let gate = jobs.0.gate.clone();
    let panicked = gate
        .pass(
            "trying",
            Lasts::ForGood,
            Late::Skip,
            |_| -> rusqlite::Result<()> { panic!("on purpose") },
            drop,
        )
        .await;
    assert_eq!(panicked.expect_err("it was not done").kind(), ErrorKind::Internal);
    push(&jobs, "").await.expect("the next is served");
    assert_eq!(ready(&jobs).await, 1);
}
