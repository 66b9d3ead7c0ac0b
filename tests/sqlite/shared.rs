//! Two handles on one file, as two processes have them.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{Enqueue, FetchRequest, Inspect, NewJob, Renew, Renewal, Settled, Settlement, Source};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::folder::Folder;

fn wanted(max: usize, wait: Duration) -> FetchRequest {
    FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), wait)
}

#[tokio::test]
async fn a_waiting_fetch_hears_of_a_job_that_another_handle_enqueued() {
    let folder = Folder::new();
    let (here, there) = (
        Sqlite::open(folder.file("jobs")).expect("a file"),
        Sqlite::open(folder.file("jobs")).expect("the same"),
    );
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        here.fetch(&wanted(1, Duration::from_secs(60)), &CancellationToken::new()).await.expect("fetched")
    });
    tokio::time::sleep(Duration::from_millis(100)).await; // so that it waits; if it does not yet, the better
    there.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let enqueued = Instant::now();
    assert_eq!(waiting.join_next().await.expect("a task").expect("no panic").len(), 1);
    // It looks every 45 ms, and must not wait for its 60 s. How soon it is exactly, a bench says.
    assert!(enqueued.elapsed() < Duration::from_secs(10));
}

/// At whichever moment the other handle commits, be it between the look that finds nothing and the wait that follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_moment_is_missed_at_which_another_handle_enqueues() {
    let folder = Folder::new();
    let open =
        || Sqlite::builder(folder.file("jobs")).durability(Durability::Normal).open().expect("the file");
    let (here, there) = (open(), open());
    let mut late = 0;
    for round in 0..300 {
        let mut waiting = JoinSet::new();
        let handle = here.clone();
        waiting.spawn(async move {
            let taken = handle.fetch(&wanted(1, Duration::from_secs(2)), &CancellationToken::new()).await;
            taken.expect("fetched")
        });
        for _ in 0..round % 30 {
            tokio::task::yield_now().await;
        }
        there.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
        let mut taken = waiting.join_next().await.expect("a task").expect("no panic");
        if taken.is_empty() {
            late += 1;
            taken = here.fetch(&wanted(1, Duration::ZERO), &CancellationToken::new()).await.expect("fetched");
        }
        let settled = Settled::new(taken[0].tag, Settlement::Ack);
        assert!(here.settle(&[settled]).await.expect("settled").0.is_empty());
    }
    assert_eq!(late, 0, "so many of 300 jobs were found by nobody who waited for them");
}

/// Four handles take and settle at once what others enqueue: each job goes to one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_goes_to_one_of_many_handles() {
    const JOBS: usize = 2_000;
    let folder = Folder::new();
    let file = folder.file("jobs");
    let open = || Sqlite::open(&file).expect("the file");
    let producer = open();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let jobs = open();
        tasks.spawn(async move {
            let mut ids = Vec::new();
            loop {
                let taken = jobs.fetch(&wanted(7, Duration::from_secs(2)), &CancellationToken::new()).await;
                let taken = taken.expect("fetched");
                if taken.is_empty() {
                    return ids;
                }
                let settled: Vec<_> =
                    taken.iter().map(|one| Settled::new(one.tag, Settlement::Ack)).collect();
                assert!(jobs.settle(&settled).await.expect("settled").0.is_empty());
                ids.extend(taken.iter().map(|one| one.job.id.clone()));
            }
        });
    }
    for batch in 0..20 {
        let batch = (0..JOBS / 20).map(|number| NewJob::new("kind", format!("{batch}-{number}")));
        producer.enqueue(batch.collect()).await.expect("enqueued");
    }
    let mut taken = Vec::new();
    while let Some(ids) = tasks.join_next().await {
        taken.extend(ids.expect("no panic"));
    }
    assert_eq!(taken.len(), JOBS);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), JOBS, "one went to two");
    let counts = producer.counts().await.expect("counted");
    assert_eq!((counts.unfinished(), counts.done), (0, JOBS as u64));
}

/// A lease's time begins when the file is free, and not when somebody began to wait for that.
#[tokio::test]
async fn a_hand_over_that_had_to_wait_for_the_file_has_a_whole_lease_all_the_same() {
    const TTL: Duration = Duration::from_millis(500);
    let folder = Folder::new();
    let jobs = Sqlite::builder(folder.file("jobs")).lease_ttl(TTL).open().expect("a file");
    jobs.enqueue(vec![NewJob::new("kind", ""), NewJob::new("kind", "")]).await.expect("enqueued");
    let theirs = rusqlite::Connection::open(folder.file("jobs")).expect("the same");
    let due = |id: &str| {
        let sql = "SELECT due FROM tidegate_jobs WHERE id = ?1 AND state = 2";
        let due: i64 = theirs.query_row(sql, [id], |row| row.get(0)).expect("it is out");
        SystemTime::UNIX_EPOCH + Duration::from_nanos(due.unsigned_abs())
    };
    let stop = CancellationToken::new();
    let one = wanted(1, Duration::ZERO);
    for fused in [false, true] {
        theirs.execute_batch("BEGIN IMMEDIATE").expect("it is free");
        let mut taking = pin!(async {
            match fused {
                false => jobs.fetch(&one, &stop).await.expect("fetched"),
                true => jobs.exchange(&[], &one).await.expect("exchanged").1,
            }
        });
        assert!(tokio::time::timeout(TTL * 2, &mut taking).await.is_err(), "the file is locked");
        let (freed, wall) = (Instant::now(), wall_clock());
        theirs.execute_batch("COMMIT").expect("it was begun");
        let taken = taking.await.remove(0);
        assert!(taken.lease.is_some_and(|lease| lease.sent_at >= freed), "the worker is to believe in it");
        assert!(due(taken.job.id.as_str()) >= wall + TTL, "and so are all others");
    }
}

#[expect(clippy::disallowed_methods, reason = "leases run out by the system's clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// SQLite lets in whoever comes first, and sleeps for up to 100 ms between two looks: who leaves hardly a pause keeps the others
/// out for seconds. A lease must not run out meanwhile.
#[tokio::test]
async fn who_writes_one_transaction_after_the_other_keeps_nobody_from_renewing_a_lease() {
    const RENEWALS: usize = 32;
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = Sqlite::builder(&file).busy_timeout(Duration::from_secs(60));
    let jobs = jobs.lease_ttl(Duration::from_secs(600)).open().expect("a new file");
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let had =
        jobs.fetch(&wanted(1, Duration::ZERO), &CancellationToken::new()).await.expect("fetched").remove(0);
    let over = CancellationToken::new();
    let (busy, told) = (Connection::open(&file).expect("the same file"), over.clone());
    let busy = tokio::task::spawn_blocking(move || {
        busy.busy_timeout(Duration::from_secs(60)).expect("set");
        busy.execute_batch("PRAGMA synchronous = OFF; CREATE TABLE theirs (number INTEGER)").expect("done");
        let mut written = 0;
        while !told.is_cancelled() {
            busy.execute_batch("BEGIN IMMEDIATE; INSERT INTO theirs VALUES (1)").expect("begun");
            // As long as a disk takes, say.
            std::thread::sleep(Duration::from_millis(3));
            busy.execute_batch("COMMIT").expect("committed");
            // As long as one of our own processes takes to begin the next.
            std::thread::sleep(Duration::from_micros(50));
            written += 1;
        }
        written
    });
    // However this ends, the other one does too.
    let over = over.drop_guard();
    let mut took = Vec::new();
    for _ in 0..RENEWALS {
        // At another moment of its work each time.
        tokio::time::sleep(Duration::from_millis(10 + took.len() as u64 % 7)).await;
        let before = Instant::now();
        assert_eq!(jobs.renew(&[had.tag]).await.expect("renewed"), [Renewal::Kept]);
        took.push(before.elapsed());
        // Ten times what it takes on a machine that does nothing else.
        assert!(took.iter().sum::<Duration>() < Duration::from_secs(4), "{took:?}");
    }
    drop(over);
    took.sort();
    println!("half within {:?}, the last after {:?}", took[RENEWALS / 2], took[RENEWALS - 1]);
    assert!(busy.await.expect("no panic") > RENEWALS, "it wrote all the time");
}
