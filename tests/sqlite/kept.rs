//! Jobs that are done and kept for a while.

use std::time::Duration;

use rusqlite::Connection;
use tidegate::backend::sqlite::{Clock, Durability, Sqlite, SqliteBuilder};
use tidegate::{
    AttemptEnd, Enqueue, Enqueued, Inspect, JobId, JobQuery, JobState, Manage, NewJob, Reclaim, Settled,
    Settlement, Source, StoredJob, Unique,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::file::at_once;
use crate::folder::Folder;

const KEPT: Duration = Duration::from_secs(600);

fn keeping(folder: &Folder) -> SqliteBuilder {
    let builder =
        Sqlite::builder(folder.file("jobs.sqlite")).clock(Clock::Tokio).durability(Durability::Normal);
    builder.keep_done(KEPT)
}

async fn done(jobs: &Sqlite) -> Vec<StoredJob> {
    jobs.list(&JobQuery::new(JobState::Done, 9_999)).await.expect("listed")
}

/// Takes all that is there, and says that it is done.
async fn run_all(jobs: &Sqlite) {
    let taken = jobs.fetch(&at_once(9_999), &CancellationToken::new()).await.expect("fetched");
    let settled: Vec<_> =
        taken.iter().map(|taken| Settled::new(taken.tag, Settlement::Ack).with_output(b"out")).collect();
    assert!(jobs.settle(&settled).await.expect("settled").0.is_empty());
}

async fn run_one(jobs: &Sqlite, job: NewJob) -> JobId {
    let created = jobs.enqueue(vec![job]).await.expect("enqueued").remove(0);
    assert!(matches!(created, Enqueued::Created(_)), "{created:?}");
    run_all(jobs).await;
    created.id().clone()
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_is_kept_for_its_time() {
    let folder = Folder::new();
    let jobs = keeping(&folder).open().expect("a new file");
    let id = run_one(&jobs, NewJob::new("kind", "payload").queue("queue")).await;
    let kept = jobs.find(&id).await.expect("asked").expect("kept");
    assert_eq!((kept.state, kept.attempts, kept.last_error), (JobState::Done, 1, None));
    assert_eq!((&kept.job.payload[..], kept.job.queue.as_str()), (&b"payload"[..], "queue"));
    assert_eq!(kept.due, Some(kept.since + KEPT));
    let past = jobs.history(&id).await.expect("asked");
    assert_eq!(past.len(), 1);
    assert_eq!((past[0].attempt, past[0].end, past[0].error.clone()), (1, AttemptEnd::Done, None));
    assert_eq!(past[0].output.as_deref(), Some(&b"out"[..]));
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.unfinished(), counts.done, counts.kept), (0, 1, 1));
    sleep(KEPT - Duration::from_secs(1)).await;
    assert_eq!(done(&jobs).await.len(), 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(done(&jobs).await.len(), 0);
    assert!(jobs.find(&id).await.expect("asked").is_none());
    assert!(jobs.history(&id).await.expect("asked").is_empty());
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.done, counts.kept), (1, 0), "it is done all the same");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_has_its_whole_history_and_no_error_any_more() {
    let folder = Folder::new();
    let jobs = keeping(&folder).open().expect("a new file");
    let id = jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued").remove(0).id().clone();
    let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
    let retry = Settled::new(taken.tag, Settlement::Retry { after: Duration::ZERO }).because("no luck");
    assert!(jobs.settle(&[retry]).await.expect("settled").0.is_empty());
    run_all(&jobs).await;
    let kept = jobs.find(&id).await.expect("asked").expect("kept");
    assert_eq!((kept.state, kept.attempts, kept.last_error), (JobState::Done, 2, None));
    let past = jobs.history(&id).await.expect("asked");
    let past: Vec<_> = past.iter().map(|past| (past.attempt, past.end, past.error.as_deref())).collect();
    assert_eq!(past, [(1, AttemptEnd::Retried, Some("no luck")), (2, AttemptEnd::Done, None)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_is_final() {
    let folder = Folder::new();
    let jobs = keeping(&folder).open().expect("a new file");
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
    let id = taken.job.id.clone();
    assert!(jobs.cancel(&id).await.expect("asked"), "it is told, but too late");
    assert!(jobs.settle(&[Settled::new(taken.tag, Settlement::Ack)]).await.expect("settled").0.is_empty());
    assert!(!jobs.find(&id).await.expect("asked").expect("kept").cancel_requested);
    let after = Duration::ZERO;
    for settlement in
        [Settlement::Ack, Settlement::Retry { after }, Settlement::Reject, Settlement::Release { after }]
    {
        let stale = jobs.settle(&[Settled::new(taken.tag, settlement)]).await.expect("asked").0;
        assert_eq!(stale, [taken.tag], "{settlement:?}");
    }
    assert!(!jobs.cancel(&id).await.expect("asked") && !jobs.requeue(&id).await.expect("asked"));
    assert_eq!(done(&jobs).await.len(), 1);
    assert!(jobs.delete(&id).await.expect("asked"));
    assert!(!jobs.delete(&id).await.expect("asked"));
    assert_eq!(jobs.counts().await.expect("counted").kept, 0);
}

#[tokio::test(start_paused = true)]
async fn a_unique_key_is_free_once_the_job_is_done_though_it_is_kept() {
    let folder = Folder::new();
    let jobs = keeping(&folder).open().expect("a new file");
    let first = run_one(&jobs, NewJob::new("kind", "").unique(Unique::until_done("key"))).await;
    let next = NewJob::new("kind", "next").unique(Unique::until_done("key").replace_payload());
    let second = run_one(&jobs, next).await;
    assert_ne!(first, second);
    // A period goes on whatever becomes of the job; but nothing that is done gets a new payload.
    let third =
        run_one(&jobs, NewJob::new("kind", "old").unique(Unique::for_period("other", KEPT * 2))).await;
    let late = NewJob::new("kind", "new").unique(Unique::for_period("other", KEPT).replace_payload());
    assert_eq!(jobs.enqueue(vec![late]).await.expect("asked"), [Enqueued::Duplicate(third.clone())]);
    assert_eq!(&jobs.find(&third).await.expect("asked").expect("kept").job.payload[..], b"old");
}

#[tokio::test(start_paused = true)]
async fn a_superseded_job_is_kept_and_says_by_which() {
    let folder = Folder::new();
    let jobs = keeping(&folder).max_done(2).open().expect("a new file");
    let newest = |payload: &'static str| {
        NewJob::new("kind", payload).unique(Unique::while_queued("key").replace_payload())
    };
    let take = async || jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
    let after = Duration::ZERO;
    for (settlement, attempts) in
        [(Settlement::Retry { after }, 1), (Settlement::Release { after }, 0), (Settlement::Reject, 1)]
    {
        jobs.enqueue(vec![newest("old")]).await.expect("enqueued");
        let old = take().await;
        let new = jobs.enqueue(vec![newest("new")]).await.expect("enqueued").remove(0).id().clone();
        let before = jobs.counts().await.expect("counted").kept;
        if settlement == Settlement::Reject {
            // This one's lease runs out instead.
            sleep(Duration::from_secs(31)).await;
            assert_eq!(jobs.reclaim(9).await.expect("asked"), 1);
        } else {
            let settled = Settled::new(old.tag, settlement).because("no luck").with_output(b"out");
            assert!(jobs.settle(&[settled]).await.expect("settled").0.is_empty());
        }
        let kept = jobs.find(&old.job.id).await.expect("asked").expect("kept");
        assert_eq!((kept.state, kept.attempts), (JobState::Done, attempts));
        assert_eq!((&kept.job.payload[..], kept.superseded_by.as_ref()), (&b"old"[..], Some(&new)));
        let past = jobs.history(&old.job.id).await.expect("asked");
        assert_eq!((past.len(), past[0].end, past[0].attempt), (1, AttemptEnd::Superseded, 1));
        assert_eq!(past[0].superseded_by.as_ref(), Some(&new));
        assert_eq!(kept.last_error, past[0].error);
        let why = past[0].error.as_deref().expect("a reason");
        if settlement == Settlement::Reject {
            assert!(why.contains("lease ran out"), "{why}");
        } else {
            assert_eq!((why, past[0].output.as_deref()), ("no luck", Some(&b"out"[..])));
        }
        assert_eq!(
            jobs.counts().await.expect("counted").kept,
            (before + 1).min(2),
            "no more than there is room for"
        );
        assert!(!jobs.cancel(&old.job.id).await.expect("asked"), "it is final");
        assert!(!jobs.requeue(&old.job.id).await.expect("asked"), "it is final");
        run_all(&jobs).await;
        let new = jobs.find(&new).await.expect("asked").expect("kept");
        assert_eq!((new.state, new.superseded_by), (JobState::Done, None));
    }
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.done, counts.superseded, counts.unfinished()), (3, 3, 0));
    // One that is done all the same was superseded by nobody.
    jobs.enqueue(vec![newest("old")]).await.expect("enqueued");
    let old = take().await;
    jobs.enqueue(vec![newest("new")]).await.expect("enqueued");
    assert!(jobs.settle(&[Settled::new(old.tag, Settlement::Ack)]).await.expect("settled").0.is_empty());
    let kept = jobs.find(&old.job.id).await.expect("asked").expect("kept");
    assert_eq!((kept.state, kept.superseded_by, kept.last_error), (JobState::Done, None, None));
    sleep(KEPT).await;
    assert_eq!(jobs.counts().await.expect("counted").kept, 0);
}

/// By default nothing is kept of it, and nothing of its attempts is left behind.
#[tokio::test(start_paused = true)]
async fn a_superseded_job_that_is_not_kept_leaves_nothing() {
    let folder = Folder::new();
    let jobs = keeping(&folder).keep_done(Duration::ZERO).open().expect("a new file");
    let newest = |payload: &'static str| {
        NewJob::new("kind", payload).unique(Unique::while_queued("key").replace_payload())
    };
    for round in 0..3 {
        jobs.enqueue(vec![newest("old")]).await.expect("enqueued");
        let old = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
        jobs.enqueue(vec![newest("new")]).await.expect("enqueued");
        match round {
            0 => sleep(Duration::from_secs(31)).await,
            _ => {
                let retry =
                    Settled::new(old.tag, Settlement::Retry { after: Duration::ZERO }).because("no luck");
                assert!(jobs.settle(&[retry]).await.expect("settled").0.is_empty());
            }
        }
        run_all(&jobs).await;
    }
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.unfinished(), counts.kept, counts.superseded), (0, 0, 3));
    drop(jobs);
    let connection = Connection::open(folder.file("jobs.sqlite")).expect("the file");
    for table in ["tidegate_jobs", "tidegate_attempts", "tidegate_unique_keys"] {
        let rows =
            connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, u32>(0));
        assert_eq!(rows.expect("counted"), 0, "{table}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_are_kept_than_there_is_room_for() {
    let folder = Folder::new();
    let jobs = keeping(&folder).max_done(3).open().expect("a new file");
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(run_one(&jobs, NewJob::new("kind", "")).await);
    }
    let kept: Vec<_> = done(&jobs).await.iter().map(|kept| kept.job.id.clone()).collect();
    assert_eq!(kept, ids[2..]);
    assert!(jobs.history(&ids[0]).await.expect("asked").is_empty());
    drop(jobs);
    // A smaller room takes effect with the next that is done.
    let jobs = keeping(&folder).max_done(1).open().expect("the file");
    let last = run_one(&jobs, NewJob::new("kind", "")).await;
    let kept: Vec<_> = done(&jobs).await.iter().map(|kept| kept.job.id.clone()).collect();
    assert_eq!(kept, [last]);
    drop(jobs);
    let jobs = keeping(&folder).max_done(0).open().expect("the file");
    run_one(&jobs, NewJob::new("kind", "")).await;
    assert!(done(&jobs).await.is_empty());
}

/// Many whose time is over are deleted in parts, so that none keeps others out for long; a waiting worker sees to it.
#[tokio::test(start_paused = true)]
async fn a_crowd_whose_time_is_over_is_deleted_in_parts() {
    const JOBS: usize = 6_500;
    let folder = Folder::new();
    let jobs = keeping(&folder).open().expect("a new file");
    jobs.enqueue((0..JOBS).map(|_| NewJob::new("kind", "")).collect()).await.expect("enqueued");
    run_all(&jobs).await;
    assert_eq!(jobs.counts().await.expect("counted").kept, JOBS as u64);
    sleep(KEPT).await;
    jobs.reclaim(0).await.expect("asked"); // any operation will do
    assert_eq!(jobs.counts().await.expect("counted").kept, 0, "none is shown any more");
    let connection = Connection::open(folder.file("jobs.sqlite")).expect("the file");
    let rows = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get::<_, isize>(0)).expect("counted")
    };
    let left = rows("tidegate_jobs");
    assert!(0 < left && left < JOBS.cast_signed(), "{left} are left");
    // Without anything to do it looks again at once, for as long as something is left.
    let stop = CancellationToken::new();
    let mut wanted = at_once(1);
    wanted.wait = Duration::from_secs(1);
    assert!(jobs.fetch(&wanted, &stop).await.expect("nothing there").is_empty());
    for table in ["tidegate_jobs", "tidegate_attempts"] {
        assert_eq!(rows(table), 0, "{table}");
    }
}

/// The bounds go by counters, which must be right whatever happened.
#[tokio::test(start_paused = true)]
async fn what_is_counted_is_what_is_there() {
    let folder = Folder::new();
    let jobs =
        keeping(&folder).max_done(20).max_dead(10).lease_ttl(Duration::from_secs(5)).open().expect("a file");
    let connection = Connection::open(folder.file("jobs.sqlite")).expect("the file");
    for round in 0..200_u32 {
        let job = NewJob::new("kind", "").max_attempts(1 + round % 3);
        let id = jobs.enqueue(vec![job]).await.expect("enqueued").remove(0).id().clone();
        let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
        let settlement = match round % 7 {
            0..3 => Settlement::Ack,
            3 | 4 => Settlement::Reject,
            5 => Settlement::Retry { after: Duration::from_secs(7) },
            _ => {
                sleep(Duration::from_secs(6)).await;
                Settlement::Ack
            }
        };
        jobs.settle(&[Settled::new(taken.tag, settlement)]).await.expect("settled");
        match round % 11 {
            0 => _ = jobs.delete(&id).await.expect("asked"),
            1 => _ = jobs.requeue(&id).await.expect("asked"),
            2 => _ = jobs.cancel(&id).await.expect("asked"),
            3 => sleep(KEPT / 10).await,
            _ => {}
        }
        let counts = jobs.counts().await.expect("counted");
        let counted = connection.query_row("SELECT dead, kept FROM tidegate_counters", [], |row| {
            Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?))
        });
        let (dead, kept) = counted.expect("read");
        assert_eq!((counts.dead, counts.kept), (dead.into(), kept.into()), "in round {round}");
        assert!(dead <= 10 && kept <= 20);
    }
}
