//! Jobs that are enqueued and completed in transactions of somebody else's, on the same file.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tidegate::backend::sqlite::{COMPLETE_SQL, Durability, ENQUEUE_SQL, ENQUEUED_SQL, Sqlite};
use tidegate::{
    AttemptEnd, Clash, Context, Delivery, Enqueue, Enqueued, FetchRequest, Inspect, JobId, JobQuery,
    JobState, Manage, NewJob, Reclaim, Registry, Renew, Renewal, Settled, Settlement, Shutdown, Source,
    Start, Unique, Window, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::file::at_once;
use crate::folder::Folder;

const TTL: Duration = Duration::from_millis(300);

fn open(folder: &Folder) -> Sqlite {
    let builder = Sqlite::builder(folder.file("jobs.sqlite")).durability(Durability::Normal);
    builder.lease_ttl(TTL).open().expect("the file")
}

/// A connection as any program has one: with nothing set that we set.
fn theirs(folder: &Folder) -> Connection {
    let connection = Connection::open(folder.file("jobs.sqlite")).expect("the file");
    connection.busy_timeout(Duration::from_secs(5)).expect("set");
    connection.execute_batch("CREATE TABLE IF NOT EXISTS effects (what)").expect("a table of theirs");
    connection
}

fn begin(connection: &mut Connection) -> Transaction<'_> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).expect("begun")
}

fn effects(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM effects", [], |row| row.get(0)).expect("counted")
}

/// Enqueues a job of this kind, and says nothing more.
fn put(connection: &Connection, kind: &str) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO tidegate_enqueue (kind) VALUES (?1)", [kind])
}

fn complete(connection: &Connection, delivery: &Delivery) -> rusqlite::Result<usize> {
    let (job, token) = (delivery.tag.key.cast_signed(), delivery.tag.token.cast_signed());
    connection.execute(COMPLETE_SQL, [job, token])
}

async fn take_one(jobs: &Sqlite) -> Delivery {
    let mut taken = jobs.fetch(&at_once(2), &CancellationToken::new()).await.expect("fetched");
    assert_eq!(taken.len(), 1, "one job was expected: {taken:?}");
    taken.remove(0)
}

async fn settle(jobs: &Sqlite, delivery: &Delivery, settlement: Settlement) -> bool {
    jobs.settle(&[Settled::new(delivery.tag, settlement)]).await.expect("settled").0.is_empty()
}

/// Ready, leased, dead, done.
async fn counts(jobs: &Sqlite) -> [u64; 4] {
    let counts = jobs.counts().await.expect("counted");
    [counts.ready, counts.leased, counts.dead, counts.done]
}

// ---- enqueueing ----

#[tokio::test]
async fn what_is_rolled_back_was_never_enqueued() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    let transaction = begin(&mut theirs);
    transaction.execute("INSERT INTO effects VALUES (1)", []).expect("done");
    transaction
        .execute("INSERT INTO tidegate_enqueue (kind, unique_key, unique_window) VALUES ('kind', 'key', 'until_done')", [])
        .expect("enqueued");
    transaction.rollback().expect("rolled back");
    assert_eq!(counts(&jobs).await, [0; 4]);
    assert_eq!(effects(&theirs), 0);
    // Nor has it left its key behind.
    let again = NewJob::new("kind", "").unique(Unique::until_done("key"));
    assert!(matches!(jobs.enqueue(vec![again]).await.expect("enqueued")[0], Enqueued::Created(_)));
}

#[tokio::test]
async fn a_waiting_worker_hears_of_what_was_committed() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    let waiting = FetchRequest::new(NonZeroUsize::MIN, Duration::from_secs(60));
    let mut fetch = Box::pin({
        let jobs = jobs.clone();
        async move { jobs.fetch(&waiting, &CancellationToken::new()).await.expect("fetched").remove(0) }
    });
    let transaction = begin(&mut theirs);
    put(&transaction, "kind").expect("enqueued");
    // It has had the time to look some times.
    assert!(tokio::time::timeout(Duration::from_millis(150), &mut fetch).await.is_err(), "not committed yet");
    let (id, answer) =
        transaction.query_row(ENQUEUED_SQL, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
    let (id, answer): (i64, String) = (id, answer);
    transaction.commit().expect("committed");
    let committed = tokio::time::Instant::now();
    let taken = fetch.await;
    // It looks every 45 ms, and must not wait for its 60 s.
    assert!(committed.elapsed() < Duration::from_secs(10));
    assert_eq!((taken.job.id.as_str(), answer.as_str()), (id.to_string().as_str(), "created"));
    assert_eq!((taken.job.queue.as_str(), &taken.job.payload[..]), ("default", &b""[..]));
}

/// What a test enqueues in both ways.
#[derive(Clone, Debug)]
struct Asked {
    kind: String,
    payload: Vec<u8>,
    queue: String,
    priority: i16,
    /// From now, in milliseconds.
    start: Option<i64>,
    max_attempts: Option<u32>,
    timeout_ms: Option<u64>,
    unique: Option<(String, Option<u64>, bool, bool)>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let unique = proptest::option::of((
        prop_oneof![3 => "[ab]", 1 => "\\PC{1,9}"],
        proptest::option::weighted(0.3, prop_oneof![Just(0), Just(60_000), Just(u64::MAX >> 1)]),
        any::<bool>(),
        any::<bool>(),
    ));
    let kind = prop_oneof![3 => Just("a".to_owned()), 1 => Just("b".to_owned()), 1 => "\\PC{1,30}"];
    // In steps of what is taken for the same when the rows are compared.
    let start =
        proptest::option::of(prop_oneof![-5_000..=0_i64, (3..500_i64).prop_map(|steps| steps * 20_000)]);
    let timeout = proptest::option::of(prop_oneof![0..10_000_u64, Just(u64::MAX >> 1)]);
    (
        kind,
        proptest::collection::vec(any::<u8>(), 0..40),
        "[xy]|\\PC{1,9}",
        any::<i16>(),
        start,
        proptest::option::of(1..=u32::MAX),
        timeout,
        unique,
    )
        .prop_map(|(kind, payload, queue, priority, start, max_attempts, timeout_ms, unique)| Asked {
            kind,
            payload,
            queue,
            priority,
            start,
            max_attempts,
            timeout_ms,
            unique,
        })
}

/// What happens between two jobs that are enqueued.
#[derive(Clone, Debug)]
enum Step {
    Nothing,
    Take(usize),
    Return(usize, Settlement),
}

fn step() -> impl Strategy<Value = Step> {
    let after = Duration::ZERO;
    let how = proptest::sample::select(vec![
        Settlement::Retry { after },
        Settlement::Release { after },
        Settlement::Retry { after: Duration::from_secs(600) },
        Settlement::Ack,
    ]);
    prop_oneof![
        Just(Step::Nothing),
        (1..4_usize).prop_map(Step::Take),
        (0..9_usize, how).prop_map(|(which, how)| Step::Return(which, how)),
    ]
}

/// Does what comes next with what is held, and says how all jobs stand then.
async fn go_on(
    jobs: &Sqlite,
    step: &Step,
    held: &mut Vec<Delivery>,
) -> Vec<(JobId, JobState, Option<JobId>)> {
    match step {
        Step::Nothing => {}
        Step::Take(max) => {
            held.extend(jobs.fetch(&at_once(*max), &CancellationToken::new()).await.expect("fetched"));
        }
        Step::Return(which, how) => {
            if !held.is_empty() {
                let delivery = held.remove(which % held.len());
                assert!(settle(jobs, &delivery, *how).await);
            }
        }
    }
    let mut stand = Vec::new();
    for state in [JobState::Ready, JobState::Delayed, JobState::Leased] {
        let listed = jobs.list(&JobQuery::new(state, 99)).await.expect("listed");
        stand.extend(listed.into_iter().map(|job| (job.job.id.clone(), job.state, job.superseded_by)));
    }
    stand
}

#[expect(clippy::disallowed_methods, reason = "both ways go by the system's clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

impl Asked {
    fn new_job(&self) -> NewJob {
        let mut job = NewJob::new(self.kind.as_str(), self.payload.clone()).queue(self.queue.as_str());
        job.priority = self.priority;
        job.start = match self.start {
            None => Start::Now,
            Some(ms @ ..0) => Start::At(now() - Duration::from_millis(ms.unsigned_abs())),
            Some(ms) => Start::After(Duration::from_millis(ms.unsigned_abs())),
        };
        job.max_attempts = self.max_attempts;
        job.timeout = self.timeout_ms.map(Duration::from_millis);
        job.unique = self.unique.as_ref().map(|(key, period, until_done, replaces)| {
            let mut unique = Unique::while_queued(key);
            unique.window = match (period, until_done) {
                (Some(period), _) => Window::For(Duration::from_millis(*period)),
                (None, true) => Window::UntilDone,
                (None, false) => Window::WhileQueued,
            };
            unique.clash = if *replaces { Clash::ReplacePayload } else { Clash::KeepFirst };
            unique
        });
        job
    }

    fn values(&self) -> [Value; 10] {
        let text = |text: &str| Value::Text(text.to_owned());
        let whole = |number: u64| Value::Integer(i64::try_from(number).expect("small enough"));
        let (key, window, clash) = match &self.unique {
            None => (Value::Null, Value::Null, Value::Null),
            Some((key, period, until_done, replaces)) => {
                let window = match (period, until_done) {
                    (Some(period), _) => whole(*period),
                    (None, true) => text("until_done"),
                    (None, false) => text("while_queued"),
                };
                let clash = if *replaces { text("replace_payload") } else { Value::Null };
                (text(key), window, clash)
            }
        };
        [
            text(&self.kind),
            Value::Blob(self.payload.clone()),
            text(&self.queue),
            self.priority.into(),
            self.start.map_or(Value::Null, |ms| Value::Real(seconds(now()) + ms as f64 / 1_000.0)),
            self.max_attempts.map_or(Value::Null, |most| whole(most.into())),
            self.timeout_ms.map_or(Value::Null, whole),
            key,
            window,
            clash,
        ]
    }
}

/// All that a row of a job or a key says, with its times as how far they lie from now, in steps of 20 s.
fn rows(connection: &Connection) -> Vec<Vec<Value>> {
    let now = (seconds(now()) * 1e9) as i64;
    let mut rows = Vec::new();
    for (sql, times) in [
        ("SELECT * FROM tidegate_jobs ORDER BY id", &["due", "since", "enqueued_at"][..]),
        ("SELECT * FROM tidegate_unique_keys ORDER BY seq", &["until"]),
        ("SELECT * FROM tidegate_counters", &[]),
    ] {
        let mut statement = connection.prepare(sql).expect("a good statement");
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        // 0 is no time, and the last of all is never.
        let is_time =
            |at: usize, time: i64| times.contains(&names[at].as_str()) && time > 0 && time < i64::MAX;
        let read = statement.query_map([], |row| {
            (0..names.len())
                .map(|at| {
                    Ok(match row.get::<_, Value>(at)? {
                        Value::Integer(time) if is_time(at, time) => {
                            Value::Text(format!("{} steps from now", ((time - now) as f64 / 20e9).round()))
                        }
                        value => value,
                    })
                })
                .collect::<rusqlite::Result<Vec<_>>>()
        });
        rows.extend(read.expect("asked").map(|row| row.expect("read")));
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// A row of jobs, of which some clash, goes into one file by the one way and into another by the other, while some
    /// are taken and handed back in between.
    #[test]
    fn both_ways_leave_the_same_behind(all in proptest::collection::vec((asked(), step()), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (here, there) = (Folder::new(), Folder::new());
        let patient = |folder: &Folder| {
            let builder = Sqlite::builder(folder.file("jobs.sqlite")).durability(Durability::Normal);
            builder.lease_ttl(Duration::from_secs(600)).open().expect("a new file")
        };
        let (jobs, other) = (patient(&here), patient(&there));
        let (connection, theirs) = (theirs(&here), theirs(&there));
        let mut held = [Vec::new(), Vec::new()];
        for (asked, step) in &all {
            let answer = runtime.block_on(jobs.enqueue(vec![asked.new_job()])).expect("enqueued").remove(0);
            theirs.execute(ENQUEUE_SQL, asked.values()).expect("enqueued");
            let told: (i64, String) =
                theirs.query_row(ENQUEUED_SQL, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
            let word = match &answer {
                Enqueued::Created(_) => "created",
                Enqueued::Duplicate(_) => "duplicate",
                Enqueued::Replaced(_) => "replaced",
            };
            prop_assert_eq!((told.0.to_string(), told.1.as_str()), (answer.id().to_string(), word));
            // The first that either does is to end what a door has left to the next.
            let then = [(&jobs, 0), (&other, 1)].map(|(jobs, at)| runtime.block_on(go_on(jobs, step, &mut held[at])));
            prop_assert_eq!(&then[0], &then[1]);
        }
        prop_assert_eq!(rows(&connection), rows(&theirs));
        drop((jobs, other));
    }

    /// A name that is no text could not be read back, and would hold up all others.
    #[test]
    fn a_name_is_taken_if_it_is_a_text(name in prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..6),
        "\\PC{1,4}".prop_map(String::into_bytes),
        proptest::collection::vec(prop_oneof![Just(0xC3_u8), 0x80..0xC0_u8, Just(b'a'), 0xE0..=0xFF_u8], 1..7),
    ]) {
        let folder = Folder::new();
        let (jobs, theirs) = (open(&folder), theirs(&folder));
        let put = |sql: &str| theirs.execute(sql, [&name]).is_ok();
        let taken = [
            put("INSERT INTO tidegate_enqueue (kind) VALUES (CAST(?1 AS TEXT))"),
            put("INSERT INTO tidegate_enqueue (kind, queue) VALUES ('kind', CAST(?1 AS TEXT))"),
            put("INSERT INTO tidegate_enqueue (kind, unique_key) VALUES ('kind', CAST(?1 AS TEXT))"),
        ];
        let text = std::str::from_utf8(&name);
        let fine = text.is_ok_and(|text| !text.contains(['\0', '\u{FFFE}', '\u{FFFF}']));
        prop_assert_eq!(taken, [fine; 3]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listed = runtime.block_on(jobs.list(&JobQuery::new(JobState::Ready, 9))).expect("all can be read");
        prop_assert_eq!(listed.len(), if fine { 3 } else { 0 });
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_the_transaction_goes_on() {
    let folder = Folder::new();
    let jobs = Sqlite::builder(folder.file("jobs.sqlite")).max_payload_bytes(5).open().expect("a new file");
    let mut theirs = theirs(&folder);
    let transaction = begin(&mut theirs);
    transaction.execute("INSERT INTO effects VALUES (1)", []).expect("done");
    let long = format!("'{}'", "ä".repeat(2_049));
    let cases: [(&str, &[&str]); 14] = [
        ("kind", &["NULL", "''", "7", "x'61'"]),
        ("queue", &["''", "7", "x'61'"]),
        ("unique_key", &["''", "7", "x'61'"]),
        ("kind, queue and unique_key", &["'a' || char(0)", "CAST(x'ff' AS TEXT)", &long]),
        ("payload must be", &["7", "0.5"]),
        ("payload is larger", &["'123456'", "x'010203040506'", "'äää'"]),
        ("priority", &["32768", "-32769", "0.5", "'1'", "9223372036854775807"]),
        ("run_at", &["'2030-01-01'", "x'00'"]),
        ("max_attempts", &["0", "-1", "4294967296", "1.0", "'3'"]),
        ("timeout_ms", &["-1", "0.5", "'5'"]),
        ("unique_window", &["'for ever'", "-1", "0.5", "x'00'"]),
        ("on_clash", &["'keep_second'", "1"]),
        ("unique_window and on_clash need", &["'until_done'"]),
        ("unique_window and on_clash need ", &["'replace_payload'"]),
    ];
    for (about, values) in cases {
        for value in values {
            let (column, rest) = match about {
                "kind, queue and unique_key" | "kind" => ("kind", ""),
                "payload must be" | "payload is larger" => ("payload", ", 'kind'"),
                "unique_window" | "on_clash" => (about, ", 'kind'"),
                "unique_window and on_clash need" => ("unique_window", ", 'kind'"),
                "unique_window and on_clash need " => ("on_clash", ", 'kind'"),
                column => (column, ", 'kind'"),
            };
            let key = if matches!(about, "unique_window" | "on_clash") { "'key'" } else { "NULL" };
            let sql = match (rest, column) {
                ("", _) => format!("INSERT INTO tidegate_enqueue (kind) VALUES ({value})"),
                (_, "unique_key") => {
                    format!("INSERT INTO tidegate_enqueue (unique_key, kind) VALUES ({value}{rest})")
                }
                _ => format!(
                    "INSERT INTO tidegate_enqueue ({column}, kind, unique_key) VALUES ({value}{rest}, {key})"
                ),
            };
            let error = transaction.execute(&sql, []).expect_err(&sql).to_string();
            let wanted = format!("tidegate: {}", about.trim_end());
            assert!(error.starts_with(&wanted), "{sql}: {error}");
        }
    }
    let fits =
        "INSERT INTO tidegate_enqueue (kind, payload, priority, run_at, timeout_ms, max_attempts, unique_key)
         VALUES ('k', 'äx' || '12', -32768, 9e99, 9223372036854775807, 4294967295, ?1)";
    transaction.execute(fits, ["a".repeat(100_000)]).expect("it makes sense");
    transaction.commit().expect("committed");
    let counts = jobs.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed), (0, 1));
    assert_eq!(effects(&theirs), 1);
}

/// Puts a job with this payload and the key "key" in by the door.
fn replace(connection: &Connection, payload: &str, on_clash: &str) -> (i64, String) {
    let sql =
        "INSERT INTO tidegate_enqueue (kind, payload, unique_key, on_clash) VALUES ('kind', ?1, 'key', ?2)";
    connection.execute(sql, [payload, on_clash]).expect("enqueued");
    connection.query_row(ENQUEUED_SQL, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked")
}

#[tokio::test]
async fn the_newest_payload_wins_over_what_runs_and_what_waits() {
    let folder = Folder::new();
    let builder = Sqlite::builder(folder.file("jobs.sqlite")).keep_done(Duration::from_secs(60));
    let (jobs, mut theirs) = (builder.open().expect("a new file"), theirs(&folder));
    let running = {
        replace(&theirs, "running", "keep_first");
        take_one(&jobs).await
    };
    replace(&theirs, "retried", "keep_first");
    let retried = take_one(&jobs).await;
    let (waiting, _) = replace(&theirs, "waiting", "keep_first");
    assert!(settle(&jobs, &retried, Settlement::Retry { after: Duration::ZERO }).await);
    // What is rolled back has superseded nothing.
    let transaction = begin(&mut theirs);
    replace(&transaction, "never was", "replace_payload");
    transaction.rollback().expect("rolled back");
    let all = [&running, &retried].map(|old| old.job.id.clone());
    for id in &all {
        assert_eq!(jobs.find(id).await.expect("asked").expect("there").superseded_by, None);
    }
    assert_eq!(replace(&theirs, "newest", "replace_payload"), (waiting, "replaced".to_owned()));
    for id in &all {
        let old = jobs.find(id).await.expect("asked").expect("there");
        assert_eq!(old.superseded_by, Some(JobId::new(waiting.to_string())));
    }
    // One waited, and has ended; one runs, and does when it comes back.
    let (counts, ended) = (jobs.counts().await.expect("counted"), JobState::Done);
    assert_eq!((counts.ready, counts.leased, counts.superseded, counts.done, counts.kept), (1, 1, 1, 0, 1));
    assert!(settle(&jobs, &running, Settlement::Release { after: Duration::ZERO }).await);
    for (id, past) in all.iter().zip([&[AttemptEnd::Superseded], &[AttemptEnd::Retried]]) {
        assert_eq!(jobs.find(id).await.expect("asked").expect("kept").state, ended);
        let ends: Vec<_> = jobs.history(id).await.expect("asked").iter().map(|past| past.end).collect();
        assert_eq!(ends, past);
    }
    assert_eq!(&take_one(&jobs).await.job.payload[..], b"newest");
    // Nor has anybody kept the key.
    assert_eq!(replace(&theirs, "next", "replace_payload").1, "created");
    assert_eq!(jobs.counts().await.expect("counted").superseded, 2);
}

#[tokio::test]
async fn what_a_door_drops_supersedes_nothing() {
    let folder = Folder::new();
    let (jobs, theirs) = (open(&folder), theirs(&folder));
    replace(&theirs, "old", "keep_first");
    let old = take_one(&jobs).await;
    let holder =
        "INSERT INTO tidegate_enqueue (kind, unique_key, unique_window) VALUES ('kind', 'key', 'until_done')";
    theirs.execute(holder, []).expect("enqueued");
    let holder = take_one(&jobs).await;
    let answer = (holder.tag.key.cast_signed(), "duplicate".to_owned());
    assert_eq!(replace(&theirs, "dropped", "replace_payload"), answer);
    for delivery in [&old, &holder] {
        let job = jobs.find(&delivery.job.id).await.expect("asked").expect("there");
        assert_eq!(job.superseded_by, None);
    }
}

#[tokio::test]
async fn many_are_enqueued_by_one_statement() {
    let folder = Folder::new();
    let (jobs, theirs) = (open(&folder), theirs(&folder));
    theirs
        .execute_batch("CREATE TABLE files (name); INSERT INTO files VALUES ('a'), ('b'), ('c')")
        .expect("done");
    theirs
        .execute(
            "INSERT INTO tidegate_enqueue (kind, payload) SELECT 'kind', name FROM files ORDER BY name",
            [],
        )
        .expect("enqueued");
    let taken = jobs.fetch(&at_once(9), &CancellationToken::new()).await.expect("fetched");
    let payloads: Vec<_> = taken.iter().map(|taken| &taken.job.payload[..]).collect();
    assert_eq!(payloads, [b"a", b"b", b"c"]);
}

// ---- completing ----

#[tokio::test]
async fn a_job_is_completed_with_its_effect_or_not_at_all() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let delivery = take_one(&jobs).await;
    for commits in [false, true] {
        let transaction = begin(&mut theirs);
        transaction.execute("INSERT INTO effects VALUES (1)", []).expect("done");
        complete(&transaction, &delivery).expect("completed");
        if commits {
            transaction.commit().expect("committed");
        }
    }
    assert_eq!(effects(&theirs), 1);
    assert_eq!(counts(&jobs).await, [0, 1, 0, 0], "its worker has not said so yet");
    assert!(settle(&jobs, &delivery, Settlement::Ack).await);
    assert_eq!(counts(&jobs).await, [0, 0, 0, 1]);
    assert!(!settle(&jobs, &delivery, Settlement::Ack).await, "once is enough");
}

#[tokio::test]
async fn a_completed_job_is_done_whatever_its_worker_says() {
    let folder = Folder::new();
    let builder = Sqlite::builder(folder.file("jobs.sqlite")).keep_done(Duration::from_secs(60));
    let (jobs, theirs) = (builder.open().expect("a new file"), theirs(&folder));
    let after = Duration::ZERO;
    let all = [
        Settlement::Ack,
        Settlement::Retry { after },
        Settlement::Retry { after: Duration::from_secs(5) },
        Settlement::Reject,
        Settlement::Release { after },
    ];
    for (done, settlement) in (1..).zip(all) {
        jobs.enqueue(vec![NewJob::new("kind", "").max_attempts(9)]).await.expect("enqueued");
        let delivery = take_one(&jobs).await;
        complete(&theirs, &delivery).expect("completed");
        let settled = Settled::new(delivery.tag, settlement).because("a reason").with_output(b"out");
        assert!(
            jobs.settle(std::slice::from_ref(&settled)).await.expect("settled").0.is_empty(),
            "{settlement:?}"
        );
        assert_eq!(counts(&jobs).await, [0, 0, 0, done], "{settlement:?}");
        let kept = jobs.find(&delivery.job.id).await.expect("asked").expect("kept");
        assert_eq!((kept.state, kept.attempts), (JobState::Done, 1));
        let past = jobs.history(&delivery.job.id).await.expect("asked").remove(0);
        assert_eq!((past.end, past.output.as_deref()), (AttemptEnd::Done, Some(&b"out"[..])));
        assert_eq!(jobs.settle(&[settled]).await.expect("asked").0, [delivery.tag], "once is enough");
    }
}

/// The worker dies after the commit, before it could say anything.
#[tokio::test]
async fn a_completed_job_whose_worker_died_is_not_run_again() {
    let folder = Folder::new();
    let (jobs, theirs) = (open(&folder), theirs(&folder));
    jobs.enqueue(vec![NewJob::new("kind", "").unique(Unique::until_done("key"))]).await.expect("enqueued");
    let delivery = take_one(&jobs).await;
    complete(&theirs, &delivery).expect("completed");
    assert!(!jobs.cancel(&delivery.job.id).await.expect("asked"), "it is too late for that");
    assert_eq!(jobs.renew(&[delivery.tag]).await.expect("asked"), [Renewal::Kept], "the handler may finish");
    drop(jobs);
    let jobs = open(&folder);
    let waiting = FetchRequest::new(NonZeroUsize::MIN, TTL * 3);
    let taken = jobs.fetch(&waiting, &CancellationToken::new()).await.expect("fetched");
    assert!(taken.is_empty(), "it was run again: {taken:?}");
    assert_eq!(counts(&jobs).await, [0, 0, 0, 1]);
    // It was only slow, not dead: what it says is late, not stale. And only once.
    assert!(settle(&jobs, &delivery, Settlement::Ack).await);
    assert!(!settle(&jobs, &delivery, Settlement::Ack).await);
    assert_eq!(counts(&jobs).await, [0, 0, 0, 1]);
}

/// One that is completed by nobody is run again, so the test above can fail.
#[tokio::test]
async fn a_job_that_was_not_completed_is_run_again() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let delivery = take_one(&jobs).await;
    let transaction = begin(&mut theirs);
    complete(&transaction, &delivery).expect("completed");
    transaction.rollback().expect("rolled back");
    let waiting = FetchRequest::new(NonZeroUsize::MIN, TTL * 30);
    assert_eq!(jobs.fetch(&waiting, &CancellationToken::new()).await.expect("fetched").len(), 1);
    assert!(!settle(&jobs, &delivery, Settlement::Ack).await);
}

#[tokio::test]
async fn a_stale_token_rolls_back_the_whole_transaction() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    jobs.enqueue(vec![NewJob::new("kind", "").max_attempts(9)]).await.expect("enqueued");
    let old = take_one(&jobs).await;
    let mut try_with = |delivery: &Delivery, part: &str| {
        let transaction = begin(&mut theirs);
        transaction.execute("INSERT INTO effects VALUES (1)", []).expect("done");
        let error = complete(&transaction, delivery).expect_err("it is stale").to_string();
        assert!(error.starts_with("tidegate: this") && error.contains(part), "{error}");
        // Though the program passes over the error.
        transaction.commit().expect_err("there is nothing left to commit");
        assert_eq!(effects(&theirs), 0);
    };
    // The lease has run out, though nobody has noticed yet; then it is with another; then that one is done.
    tokio::time::sleep(TTL + Duration::from_millis(5)).await;
    try_with(&old, "lease ran out");
    let new = take_one(&jobs).await;
    assert_eq!(new.attempt, 2);
    try_with(&old, "lease ran out");
    assert!(settle(&jobs, &new, Settlement::Ack).await);
    try_with(&new, "it was settled");
    // A handler that tries its transaction again, since it did not hear that it was committed.
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    let twice = take_one(&jobs).await;
    complete(&Connection::open(folder.file("jobs.sqlite")).expect("the file"), &twice).expect("completed");
    try_with(&twice, "completed already");
}

#[tokio::test]
async fn a_job_enqueues_its_successor_as_it_completes() {
    let folder = Folder::new();
    let (jobs, mut theirs) = (open(&folder), theirs(&folder));
    let unique = || NewJob::new("kind", "").unique(Unique::until_done("key"));
    jobs.enqueue(vec![unique()]).await.expect("enqueued");
    let first = take_one(&jobs).await;
    let transaction = begin(&mut theirs);
    complete(&transaction, &first).expect("completed");
    transaction
        .execute("INSERT INTO tidegate_enqueue (kind, unique_key, unique_window) VALUES ('kind', 'key', 'until_done')", [])
        .expect("enqueued");
    let answer: String =
        transaction.query_row("SELECT answer FROM tidegate_enqueued", [], |row| row.get(0)).expect("asked");
    transaction.commit().expect("committed");
    assert_eq!(answer, "created");
    // Whatever the first one's worker says: the key is the second's.
    assert!(settle(&jobs, &first, Settlement::Retry { after: Duration::ZERO }).await);
    let second = take_one(&jobs).await;
    assert_ne!(first.job.id, second.job.id);
    let third = jobs.enqueue(vec![unique()]).await.expect("asked");
    assert_eq!(third, [Enqueued::Duplicate(second.job.id.clone())]);
}

/// A worker whose handlers complete their jobs themselves, and then fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_completes_its_job_by_its_tag() {
    let folder = Folder::new();
    let jobs = open(&folder);
    drop(theirs(&folder));
    let runs = Arc::new(AtomicU32::new(0));
    let file = folder.file("jobs.sqlite");
    let registry = Registry::new().handle_blocking_raw("kind", {
        let runs = runs.clone();
        move |context: Context| -> Result<(), String> {
            runs.fetch_add(1, Ordering::Relaxed);
            let tag = context.tag();
            let mut theirs = Connection::open(&file).expect("the file");
            theirs.busy_timeout(Duration::from_secs(5)).expect("set");
            let transaction = begin(&mut theirs);
            transaction.execute("INSERT INTO effects VALUES (1)", []).expect("done");
            transaction
                .execute(COMPLETE_SQL, params![tag.key.cast_signed(), tag.token.cast_signed()])
                .expect("ours");
            transaction.commit().expect("committed");
            Err("something else went wrong afterwards".to_owned())
        }
    });
    jobs.enqueue((0..20).map(|_| NewJob::new("kind", "")).collect()).await.expect("enqueued");
    let worker =
        Worker::builder(jobs.intake(), registry).max_concurrent_jobs(4).build().expect("good settings");
    let shutdown = Shutdown::new();
    let stop = async {
        while jobs.counts().await.expect("counted").unfinished() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.stop();
    };
    let both = async { tokio::join!(worker.run(shutdown.clone()), stop) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("all of them end");
    assert_eq!(counts(&jobs).await, [0, 0, 0, 20]);
    assert_eq!((runs.load(Ordering::Relaxed), effects(&theirs(&folder))), (20, 20));
}

// ---- the end of a file ----

#[tokio::test]
async fn what_is_not_ours_in_the_file_stays_as_it_is() {
    let folder = Folder::new();
    let (jobs, theirs) = (open(&folder), theirs(&folder));
    theirs
        .execute_batch("CREATE TABLE jobs (id); CREATE INDEX jobs_ready ON jobs (id)")
        .expect("their names");
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued");
    assert!(jobs.delete(&JobId::new("1")).await.expect("asked"));
    assert_eq!(jobs.reclaim(9).await.expect("asked"), 0);
    drop((jobs, theirs));
    let again = open(&folder);
    assert_eq!(counts(&again).await, [0; 4]);
}
