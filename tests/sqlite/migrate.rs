//! Files of older versions: whatever is in them is there when a newer version opens them.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};
use tidegate::backend::sqlite::Sqlite;
use tidegate::{
    AttemptEnd, Enqueue, Enqueued, FetchRequest, Inspect, JobId, JobQuery, JobState, Manage, NewJob, Settled,
    Settlement, Source, Tag, Unique,
};
use tokio_util::sync::CancellationToken;

use crate::folder::Folder;

/// What the first version made.
const VERSION_1: &str = "
    CREATE TABLE counters (seq INTEGER NOT NULL, done INTEGER NOT NULL, dropped_dead INTEGER NOT NULL) STRICT;
    INSERT INTO counters VALUES (0, 0, 0);
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        queue TEXT NOT NULL,
        kind TEXT NOT NULL,
        rank INTEGER NOT NULL,
        ord INTEGER NOT NULL,
        due INTEGER NOT NULL,
        entered INTEGER NOT NULL,
        since INTEGER NOT NULL,
        enqueued_at INTEGER NOT NULL,
        max_attempts INTEGER,
        timeout INTEGER,
        attempts INTEGER NOT NULL,
        lapses INTEGER NOT NULL,
        token INTEGER NOT NULL,
        cancelled INTEGER NOT NULL,
        unique_key TEXT,
        window INTEGER,
        last_error TEXT,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX jobs_ready ON jobs (queue, kind, rank, ord) WHERE state = 0;
    CREATE INDEX jobs_delayed ON jobs (due, ord) WHERE state = 1;
    CREATE INDEX jobs_leased ON jobs (due, id) WHERE state = 2;
    CREATE INDEX jobs_dead ON jobs (entered) WHERE state = 3;
    CREATE TABLE unique_keys (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        seq INTEGER NOT NULL,
        job INTEGER NOT NULL,
        until INTEGER,
        PRIMARY KEY (kind, key, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX unique_keys_until ON unique_keys (until) WHERE until IS NOT NULL;
";

/// What the second one made.
const VERSION_2: &str = include_str!("version_2.sql");

fn nanoseconds(moment: SystemTime) -> i64 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_nanos()).expect("before 2262")
}

/// A file of the first version, with a job in each state, as that version left them.
fn file_of_version_1(file: &Path, now: SystemTime) {
    let connection = Connection::open(file).expect("a new file");
    connection.pragma_update(None, "journal_mode", "wal").expect("set");
    connection.execute_batch(VERSION_1).expect("the tables");
    connection.pragma_update(None, "application_id", 0x5449_4447).expect("set");
    connection.pragma_update(None, "user_version", 1).expect("set");
    let (now, later) = (nanoseconds(now), nanoseconds(now + Duration::from_secs(60)));
    let rows = [(1, 0, 0, 0, 0), (2, 1, later, 1, 7), (3, 2, later, 2, 9), (4, 3, 0, 3, 8)];
    for (id, state, due, attempts, token) in rows {
        let key = (id == 2).then_some("key");
        connection
            .execute(
                "INSERT INTO jobs (id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, max_attempts,
                     timeout, attempts, lapses, token, cancelled, unique_key, window, last_error, payload)
                 VALUES (?1, ?2, 'queue', 'kind', -3, ?1, ?3, ?1, ?4, ?4, 5, 1000, ?5, 1, ?6, 0, ?7, ?8, 'why', ?9)",
                params![id, state, due, now, attempts, token, key, key.map(|_| 1), vec![0_u8, 255, id as u8]],
            )
            .expect("a row");
    }
    connection
        .execute_batch(
            "INSERT INTO unique_keys VALUES ('kind', 'key', 5, 2, NULL); UPDATE counters SET seq = 20, done = 6",
        )
        .expect("the rest");
}

#[tokio::test]
async fn a_file_of_the_first_version_is_brought_to_the_newest_with_all_that_is_in_it() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    #[expect(clippy::disallowed_methods, reason = "the file is as if it had been made just now")]
    let now = SystemTime::now();
    file_of_version_1(&file, now);
    let jobs = Sqlite::open(&file).expect("a file of ours");
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed, counts.leased, counts.dead, counts.done), (1, 1, 1, 1, 6));
    let dead = Connection::open(&file).expect("the file").query_row(
        "SELECT dead FROM tidegate_counters",
        [],
        |row| row.get::<_, u32>(0),
    );
    assert_eq!(dead.expect("read"), 1);
    for (id, state, attempts) in
        [(1, JobState::Ready, 0), (2, JobState::Delayed, 1), (3, JobState::Leased, 2), (4, JobState::Dead, 3)]
    {
        let stored = jobs.find(&JobId::new(id.to_string())).await.expect("asked").expect("there");
        assert_eq!((stored.state, stored.attempts, stored.since), (state, attempts, now), "{id}");
        let job = stored.job;
        assert_eq!((job.kind.as_str(), job.queue.as_str(), job.priority), ("kind", "queue", 3));
        assert_eq!((&job.payload[..], job.max_attempts), (&[0, 255, id][..], Some(5)));
        assert_eq!((job.timeout, job.enqueued_at), (Some(Duration::from_micros(1)), now));
        assert_eq!(stored.last_error.as_deref(), Some("why"));
        assert_eq!(jobs.history(&job.id).await.expect("asked"), []);
    }
    // The key is still taken, numbers go on where they were, and the lease is still that worker's.
    let unique = NewJob::new("kind", "").unique(Unique::until_done("key"));
    assert_eq!(jobs.enqueue(vec![unique]).await.expect("asked"), [Enqueued::Duplicate(JobId::new("2"))]);
    let new = jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued").remove(0);
    assert!(new.id().as_str().parse::<u64>().expect("a number") > 20);
    let tag = Tag { session: 0, key: 3, token: 9 };
    let retry = Settled::new(tag, Settlement::Retry { after: Duration::ZERO });
    assert!(jobs.settle(&[retry]).await.expect("settled").0.is_empty());
    let past = jobs.history(&JobId::new("3")).await.expect("asked").remove(0);
    assert_eq!((past.attempt, past.started_at, past.end), (2, now, AttemptEnd::Retried));
    // All of it runs.
    assert!(jobs.requeue(&JobId::new("2")).await.expect("asked"));
    assert!(jobs.requeue(&JobId::new("4")).await.expect("asked"));
    let wanted = FetchRequest::new(NonZeroUsize::new(9).expect("not zero"), Duration::ZERO);
    let taken = jobs.fetch(&wanted, &CancellationToken::new()).await.expect("fetched");
    let settled: Vec<_> = taken.iter().map(|taken| Settled::new(taken.tag, Settlement::Ack)).collect();
    assert!(jobs.settle(&settled).await.expect("settled").0.is_empty());
    assert_eq!(jobs.counts().await.expect("counted").done, 6 + 5);
}

/// A file of the second version, with a job in each state and one that waits beside it with its key.
fn file_of_version_2(file: &Path, now: SystemTime) {
    let connection = Connection::open(file).expect("a new file");
    connection.pragma_update(None, "journal_mode", "wal").expect("set");
    connection.execute_batch(VERSION_2).expect("the tables");
    connection.pragma_update(None, "application_id", 0x5449_4447).expect("set");
    connection.pragma_update(None, "user_version", 2).expect("set");
    let (now, later) = (nanoseconds(now), nanoseconds(now + Duration::from_secs(60)));
    for (id, state, due, history) in
        [(1, 0, 0, 0), (2, 1, later, 0), (3, 2, later, 1), (4, 3, 0, 0), (5, 4, later, 0)]
    {
        connection
            .execute(
                "INSERT INTO tidegate_jobs (id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, attempts,
                     lapses, token, cancelled, unique_key, window, last_error, history, payload)
                 VALUES (?1, ?2, 'queue', 'kind', 0, ?1, ?3, ?1, ?4, ?4, 1, 0, 9, 0, ?5, 0, 'why', ?6, ?7)",
                params![id, state, due, now, (id == 1 || id == 3).then_some("key"), history, vec![id as u8; 9_000]],
            )
            .expect("a row");
    }
    connection
        .execute_batch(
            "INSERT INTO tidegate_unique_keys VALUES ('kind', 'key', 6, 1, NULL);
             INSERT INTO tidegate_attempts VALUES (3, 1, 1, 5, 6, 1, 'no luck', NULL);
             UPDATE tidegate_counters SET seq = 20, done = 6, dead = 1, kept = 1;
             UPDATE tidegate_meta SET max_payload = 10000",
        )
        .expect("the rest");
}

#[tokio::test]
async fn a_file_of_the_second_version_is_brought_to_the_newest_with_all_that_is_in_it() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    #[expect(clippy::disallowed_methods, reason = "the file is as if it had been made just now")]
    let now = SystemTime::now();
    file_of_version_2(&file, now);
    let jobs = Sqlite::open(&file).expect("a file of ours");
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed, counts.leased, counts.dead), (1, 1, 1, 1));
    assert_eq!((counts.done, counts.kept, counts.superseded), (6, 1, 0));
    for (id, state) in [
        (1, JobState::Ready),
        (2, JobState::Delayed),
        (3, JobState::Leased),
        (4, JobState::Dead),
        (5, JobState::Done),
    ] {
        let stored = jobs.find(&JobId::new(id.to_string())).await.expect("asked").expect("there");
        assert_eq!((stored.state, stored.since, stored.superseded_by), (state, now, None), "{id}");
        assert_eq!(stored.job.payload, vec![id; 9_000]);
    }
    assert_eq!(jobs.history(&JobId::new("3")).await.expect("asked").len(), 1);
    let large = NewJob::new("kind", vec![0; 10_001]);
    jobs.enqueue(vec![large]).await.expect_err("the bound of who set it last");
    // What ran then makes way for what comes now, by either way.
    let theirs = Connection::open(&file).expect("the file");
    theirs
        .execute_batch("INSERT INTO tidegate_enqueue (kind, unique_key, on_clash) VALUES ('kind', 'key', 'replace_payload')")
        .expect("enqueued");
    let running = jobs.find(&JobId::new("3")).await.expect("asked").expect("there");
    assert_eq!(running.superseded_by, Some(JobId::new("1")));
    let newest = NewJob::new("kind", "").unique(Unique::while_queued("key").replace_payload());
    assert_eq!(jobs.enqueue(vec![newest]).await.expect("asked"), [Enqueued::Replaced(JobId::new("1"))]);
    let tag = Tag { session: 0, key: 3, token: 9 };
    let retry = Settled::new(tag, Settlement::Retry { after: Duration::ZERO });
    assert!(jobs.settle(&[retry]).await.expect("settled").0.is_empty());
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.leased, counts.superseded), (1, 0, 1));
}

/// Whose version stands nowhere but in our own table: the other marks are its user's.
#[tokio::test]
async fn who_only_looks_brings_a_file_of_the_second_version_to_the_newest_too() {
    let folder = Folder::new();
    let (file, new) = (folder.file("jobs.sqlite"), folder.file("new.sqlite"));
    #[expect(clippy::disallowed_methods, reason = "the file is as if it had been made just now")]
    file_of_version_2(&file, SystemTime::now());
    drop(Sqlite::open(&new).expect("a new file"));
    let old = Connection::open(&file).expect("it is there");
    old.execute_batch(
        "PRAGMA user_version = 7;
         PRAGMA application_id = 8;
         UPDATE tidegate_jobs SET state = 0, due = 0 WHERE id = 2;
         UPDATE tidegate_jobs SET entered = 11 WHERE id = 1",
    )
    .expect("good statements");
    drop(old);
    let jobs = Sqlite::builder(&file).open_to_read().expect("a file of ours");
    let listed = jobs.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed");
    let ids: Vec<_> = listed.iter().map(|job| job.job.id.as_str()).collect();
    assert_eq!(ids, ["2", "1"], "the first has come back behind the second");
    let connection = Connection::open(&file).expect("it is there");
    let marks = ["user_version", "application_id"]
        .map(|name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).expect("asked"));
    assert_eq!(marks, [7, 8]);
    assert_eq!(schema(&connection), schema(&Connection::open(&new).expect("it is there")));
}

/// What stands in a file besides rows.
fn schema(connection: &Connection) -> Vec<(String, String, Option<String>)> {
    let mut statement = connection
        .prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")
        .expect("a good statement");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.expect("asked").collect::<Result<_, _>>().expect("read")
}

/// What a file has in the end does not depend on where it began.
#[tokio::test]
async fn a_file_that_was_brought_to_the_newest_version_has_what_a_new_one_has() {
    let folder = Folder::new();
    let [first, second, new] = ["first", "second", "new"].map(|name| folder.file(name));
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    let now = SystemTime::now();
    file_of_version_1(&first, now);
    file_of_version_2(&second, now);
    let opened = |file: &Path| {
        for _ in 0..2 {
            drop(Sqlite::open(file).expect("it opens, and once more"));
        }
        let connection = Connection::open(file).expect("it is there");
        let marks = ["application_id", "user_version"].map(|name| {
            connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).expect("asked")
        });
        (schema(&connection), marks)
    };
    let new = opened(&new);
    assert_eq!(opened(&first), new);
    assert_eq!(opened(&second), new);
    assert!(
        new.0.iter().all(|(_, name, _)| name.contains("tidegate_")),
        "a name of somebody else's: {new:?}"
    );
}

/// The version is in a table of ours: a number that the file's user keeps for tables of their own says nothing to us.
#[tokio::test]
async fn the_version_number_of_the_files_user_is_left_alone() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = Sqlite::open(&file).expect("a new file");
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let theirs = Connection::open(&file).expect("the file");
    theirs.execute_batch("PRAGMA user_version = 99; CREATE TABLE jobs (theirs)").expect("done");
    drop((jobs, theirs));
    let jobs = Sqlite::open(&file).expect("still ours");
    assert_eq!(jobs.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed").len(), 1);
    let version =
        Connection::open(&file)
            .expect("the file")
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    assert_eq!(version.expect("asked"), 99);
}

/// Nor is it touched when the file is brought to a newer version.
#[tokio::test]
async fn the_version_number_of_the_files_user_outlives_an_upgrade() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    file_of_version_2(&file, SystemTime::now());
    let theirs = Connection::open(&file).expect("the file");
    theirs.execute_batch("PRAGMA user_version = 99; PRAGMA application_id = 7").expect("set");
    drop(Sqlite::open(&file).expect("still ours"));
    let marks = ["application_id", "user_version"]
        .map(|name| theirs.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).expect("asked"));
    assert_eq!(marks, [7, 99]);
}
