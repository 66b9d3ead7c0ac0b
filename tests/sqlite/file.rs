//! The file: what it keeps, and what is said of one that can't be used.

use std::num::NonZeroUsize;
use std::time::Duration;

use rusqlite::Connection;
use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{
    Enqueue, Enqueued, ErrorKind, FetchRequest, Inspect, JobQuery, JobState, NewJob, Settled, Settlement,
    Source, Unique,
};
use tokio_util::sync::CancellationToken;

use crate::folder::Folder;

pub(crate) fn at_once(max: usize) -> FetchRequest {
    FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), Duration::ZERO)
}

#[tokio::test]
async fn everything_is_there_when_the_file_is_opened_again() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let unique = || NewJob::new("kind", "unique").unique(Unique::until_done("key"));
    let first;
    {
        let jobs = Sqlite::open(&file).expect("a new file");
        let created = jobs
            .enqueue(vec![
                NewJob::new("kind", "taken"),
                unique(),
                NewJob::new("kind", vec![0, 255]).delay(Duration::from_secs(3600)).queue("slow").priority(-3),
            ])
            .await
            .expect("enqueued");
        first = created[1].id().clone();
        let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
        let reject = Settled::new(taken.tag, Settlement::Reject).because("it makes no sense");
        assert!(jobs.settle(&[reject]).await.expect("settled").0.is_empty());
    }
    let jobs = Sqlite::open(&file).expect("the same file");
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed, counts.dead, counts.done), (1, 1, 1, 0));
    let dead = jobs.list(&JobQuery::new(JobState::Dead, 9)).await.expect("listed").remove(0);
    assert_eq!((&dead.job.payload[..], dead.attempts), (&b"taken"[..], 1));
    assert_eq!(dead.last_error.as_deref(), Some("it makes no sense"));
    let slow = jobs.list(&JobQuery::new(JobState::Delayed, 9)).await.expect("listed").remove(0).job;
    assert_eq!((&slow.payload[..], slow.queue.as_str(), slow.priority), (&[0, 255][..], "slow", -3));
    assert_eq!(jobs.enqueue(vec![unique()]).await.expect("asked"), [Enqueued::Duplicate(first)]);
    let more = jobs.enqueue(vec![NewJob::new("kind", "more")]).await.expect("enqueued").remove(0);
    for state in [JobState::Ready, JobState::Delayed, JobState::Dead] {
        let ids: Vec<_> = jobs
            .list(&JobQuery::new(state, 9))
            .await
            .expect("listed")
            .into_iter()
            .map(|job| job.job.id.clone())
            .collect();
        assert_eq!(ids.iter().filter(|id| *id == more.id()).count(), usize::from(state == JobState::Ready));
    }
}

#[tokio::test]
async fn an_id_is_never_used_twice() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        let jobs = Sqlite::open(&file).expect("the file");
        for _ in 0..3 {
            let created = jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued").remove(0);
            assert!(ids.insert(created.id().clone()), "{created:?} was there before");
            let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
            let stale = jobs.settle(&[Settled::new(taken.tag, Settlement::Ack)]).await.expect("settled");
            assert!(stale.0.is_empty());
        }
    }
}

/// What is wrong with the file, in words that name it and say what to do.
#[tokio::test]
async fn a_file_that_can_not_be_used_is_refused_by_name() {
    let folder = Folder::new();
    std::fs::write(
        folder.file("text.sqlite"),
        "no database at all, but a text of more than a hundred bytes. ".repeat(9),
    )
    .expect("written");
    drop(Sqlite::open(folder.file("newer.sqlite")).expect("a new file"));
    for (name, sql) in [
        ("newer.sqlite", "UPDATE tidegate_meta SET version = 99"),
        ("others.sqlite", "CREATE TABLE jobs (theirs)"),
        // What the first versions looked for.
        (
            "newer, first form",
            "CREATE TABLE jobs (x); PRAGMA application_id = 1414087751; PRAGMA user_version = 99",
        ),
    ] {
        let connection = Connection::open(folder.file(name)).expect("a file");
        connection.execute_batch(sql).expect(name);
    }
    let cases = [
        ("text.sqlite", ErrorKind::Decode, "no SQLite database"),
        ("newer.sqlite", ErrorKind::Unsupported, "made by a newer Tidegate"),
        ("newer, first form", ErrorKind::Unsupported, "made by a newer Tidegate"),
        ("others.sqlite", ErrorKind::InvalidInput, "some other program"),
        ("no-folder/jobs.sqlite", ErrorKind::Denied, "the folder must be there"),
        (".", ErrorKind::Denied, "the folder must be there"),
    ];
    for (name, kind, part) in cases {
        let before = std::fs::read(folder.file(name)).ok();
        let error = Sqlite::open(folder.file(name)).expect_err(name);
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{name}: {text}");
        assert!(text.contains(part) && text.contains(&folder.path().display().to_string()), "{name}: {text}");
        assert_eq!(std::fs::read(folder.file(name)).ok(), before, "{name} was changed");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let folder = Folder::new();
    let builder = || Sqlite::builder(folder.file("jobs.sqlite"));
    let settings = [
        (builder().lease_ttl(Duration::ZERO), "lease_ttl"),
        (builder().lease_ttl(Duration::MAX), "lease_ttl"),
        (builder().crash_limit(0), "crash_limit"),
        (builder().watch_every(Duration::ZERO), "watch_every"),
    ];
    for (builder, name) in settings {
        let error = builder.open().expect_err(name);
        assert!(error.is_invalid_input() && error.to_string().contains(name), "{error}");
    }
    let jobs = builder().max_payload_bytes(3).durability(Durability::Normal).open().expect("a new file");
    let error = jobs.enqueue(vec![NewJob::new("kind", "four")]).await.expect_err("too large");
    assert!(error.is_invalid_input() && error.to_string().contains("has 4 bytes: at most 3"), "{error}");
    for url in ["sqlite:", "sqlite://relative"] {
        assert!(tidegate::backend::open(url).expect_err(url).is_invalid_input());
    }
}

#[tokio::test]
async fn a_url_opens_the_file() {
    let folder = Folder::new();
    for url in
        [format!("sqlite:{}", folder.file("a").display()), format!("sqlite://{}", folder.file("a").display())]
    {
        let backend = tidegate::backend::open(&url).expect("it opens");
        backend.enqueue().expect("it can").enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    }
    let counts = Sqlite::open(folder.file("a")).expect("it is there").counts().await.expect("counted");
    assert_eq!(counts.ready, 2);
}

#[tokio::test]
async fn the_oldest_dead_letters_make_room() {
    let folder = Folder::new();
    let jobs = Sqlite::builder(folder.file("jobs.sqlite")).max_dead(3).open().expect("a new file");
    jobs.enqueue((0..5).map(|number| NewJob::new("kind", format!("{number}"))).collect())
        .await
        .expect("enqueued");
    for _ in 0..5 {
        let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
        jobs.settle(&[Settled::new(taken.tag, Settlement::Reject)]).await.expect("settled");
    }
    let dead = jobs.list(&JobQuery::new(JobState::Dead, 9)).await.expect("listed");
    let kept: Vec<_> = dead.iter().map(|dead| dead.job.payload.clone()).collect();
    assert_eq!(kept, ["2", "3", "4"]);
}

#[tokio::test]
async fn jobs_can_be_kept_in_a_database_of_another_program() {
    let folder = Folder::new();
    let file = folder.file("theirs.sqlite");
    let theirs = Connection::open(&file).expect("a file");
    let sql = "PRAGMA user_version = 7; PRAGMA application_id = 8; CREATE TABLE jobs (x); INSERT INTO jobs VALUES (1)";
    theirs.execute_batch(sql).expect("done");
    assert!(Sqlite::open(&file).expect_err("nobody said so").is_invalid_input());
    for adopt in [true, false] {
        let jobs = Sqlite::builder(&file).adopt(adopt).open().expect("said, or done before");
        jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    }
    let jobs = Sqlite::open(&file).expect("it is ours too");
    assert_eq!(jobs.counts().await.expect("counted").ready, 2);
    let number = |sql: &str| theirs.query_row(sql, [], |row| row.get::<_, i64>(0)).expect(sql);
    let kept = ["PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM jobs"].map(number);
    assert_eq!(kept, [7, 8, 1], "what is theirs is as it was");
    // Its bytes would be others than those that were written.
    let other = folder.file("utf-16.sqlite");
    let sql = "PRAGMA encoding = 'UTF-16le'; CREATE TABLE jobs (x)";
    Connection::open(&other).expect("a file").execute_batch(sql).expect("done");
    let before = std::fs::read(&other).expect("read");
    let error = Sqlite::builder(&other).adopt(true).open().expect_err("it can't be");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(std::fs::read(&other).expect("read"), before, "it was changed all the same");
}

#[tokio::test]
async fn the_bound_of_payloads_stands_in_the_file_until_another_is_set() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let long = || vec![NewJob::new("kind", vec![0; 2000])];
    let refused =
        async |jobs: &Sqlite| jobs.enqueue(long()).await.is_err_and(|error| error.is_invalid_input());
    let first = Sqlite::builder(&file).max_payload_bytes(1024).open().expect("a new file");
    assert!(refused(&first).await);
    // Who only looks at it, or enqueues, sets none: that of the first holds for all.
    assert!(refused(&Sqlite::open(&file).expect("it is there")).await);
    let more = Sqlite::builder(&file).max_payload_bytes(4096).open().expect("it is there");
    assert!(!refused(&more).await);
    assert!(!refused(&Sqlite::open(&file).expect("it is there")).await);
}
