//! What is left after a power failure: at every moment of a recorded run the disk is stopped, with the changes that
//! were not synchronised there, or not, or in part, and the file is opened again.
//!
//! What an operation does is there whole or not at all, so there are as many states of the file as operations, and the
//! state that is found says which are gone. With `Durability::Full` none of those that were acknowledged may be, but for
//! fetches and renewals since the last of the others: they are about leases, which a power failure ends anyway. With
//! `Durability::Normal` none that came before the last checkpoint, and some others are: so the test can fail.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use tidegate::backend::sqlite::{COMPLETE_SQL, Durability, Sqlite};
use tidegate::{Delivery, Enqueue, Manage, NewJob, Renew, Settled, Settlement, Source, Unique};
use tokio_util::sync::CancellationToken;

use crate::file::at_once;
use crate::folder::Folder;
use crate::recorder::{Event, RECORDED, Recording, Survives, UNSYNCED, push, take, uri};

/// One recording at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that is in the file. Nothing, if there are no tables of ours yet.
fn state(connection: &Connection) -> String {
    let mut state = String::new();
    for (table, order) in [
        ("tidegate_meta", "version"),
        ("tidegate_counters", "seq"),
        ("tidegate_jobs", "id"),
        ("tidegate_attempts", "job, number"),
        ("tidegate_unique_keys", "seq"),
        ("tidegate_enqueued", "job"),
        ("effects", "what"),
    ] {
        let sql = format!("SELECT * FROM {table} ORDER BY {order}");
        let Ok(mut statement) = connection.prepare(&sql) else { continue };
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|at| row.get(at)).collect());
        for row in rows.expect("asked") {
            let row: Vec<Value> = row.expect("read");
            for value in row {
                match value {
                    Value::Blob(bytes) => state.push_str(&String::from_utf8_lossy(&bytes)),
                    value => state.push_str(&format!("{value:?}")),
                }
            }
            state.push('\n');
        }
        state.push_str("--\n");
    }
    state
}

/// A run, recorded.
struct Run {
    recording: Recording,
    /// The state of the file before the run, and after each operation.
    states: Vec<String>,
}

/// What makes a run: a file, and what was seen of it so far.
struct Writer<'a> {
    file: &'a Path,
    durability: Durability,
    states: Vec<String>,
}

impl Writer<'_> {
    fn open(&mut self) -> Sqlite {
        let builder = Sqlite::builder(uri(self.file, RECORDED)).durability(self.durability);
        let jobs = builder.keep_done(Duration::from_secs(3600)).max_done(3).max_dead(2).open();
        jobs.expect("the file")
    }

    /// Somebody was told that it is done.
    fn acknowledged(&mut self) {
        self.saw(Event::Acknowledged);
    }

    /// Something was done about leases, which a power failure ends anyway.
    fn noted(&mut self) {
        self.saw(Event::Noted);
    }

    fn saw(&mut self, event: Event) {
        let connection = Connection::open(uri(self.file, UNSYNCED)).expect("the file");
        self.states.push(state(&connection));
        push(event);
    }

    /// Somebody else's connection.
    fn theirs(&self) -> Connection {
        let theirs = Connection::open(uri(self.file, RECORDED)).expect("the file");
        let synchronous = match self.durability {
            Durability::Full => "full",
            Durability::Normal => "normal",
        };
        theirs.pragma_update(None, "synchronous", synchronous).expect("set");
        theirs
    }

    fn checkpoint(&mut self) {
        let checkpoint = "PRAGMA wal_checkpoint(RESTART)";
        let busy: i64 = self.theirs().query_row(checkpoint, [], |row| row.get(0)).expect("done");
        assert_eq!(busy, 0);
        push(Event::Checkpointed);
    }
}

async fn fetch(jobs: &Sqlite, max: usize) -> Vec<Delivery> {
    jobs.fetch(&at_once(max), &CancellationToken::new()).await.expect("fetched")
}

async fn settle(jobs: &Sqlite, delivery: &Delivery, settlement: Settlement) {
    let settled = Settled::new(delivery.tag, settlement).because("a reason").with_output(b"output");
    assert!(jobs.settle(&[settled]).await.expect("settled").0.is_empty());
}

/// A job's payload, so long that some need pages of their own.
fn job(number: usize) -> NewJob {
    NewJob::new("kind", vec![number as u8; 50 + number % 5 * 1_500]).max_attempts(9)
}

/// Everything that changes the file, a few times, with checkpoints between.
async fn run(file: &Path, durability: Durability) -> Run {
    take();
    let mut writer = Writer { file, durability, states: vec![String::new()] };
    let mut jobs = writer.open();
    writer.acknowledged();
    writer.theirs().execute_batch("CREATE TABLE effects (what)").expect("a table of theirs");
    writer.acknowledged();
    for round in 0..3 {
        jobs.enqueue(vec![job(round)]).await.expect("enqueued");
        writer.acknowledged();
        let key = Unique::until_done(format!("{round}"));
        let many = (1..5).map(job).chain([job(9).unique(key), job(7).delay(Duration::from_secs(3600))]);
        jobs.enqueue(many.collect()).await.expect("enqueued");
        writer.acknowledged();
        let taken = fetch(&jobs, 6).await;
        writer.noted();
        settle(&jobs, &taken[0], Settlement::Ack).await;
        writer.acknowledged();
        settle(&jobs, &taken[1], Settlement::Retry { after: Duration::ZERO }).await;
        writer.acknowledged();
        settle(&jobs, &taken[2], Settlement::Reject).await;
        writer.acknowledged();
        if round == 1 {
            writer.checkpoint();
        }
        let theirs = writer.theirs();
        let tag = taken[3].tag;
        theirs.execute_batch("BEGIN; INSERT INTO effects VALUES (1)").expect("done");
        theirs.execute(COMPLETE_SQL, [tag.key.cast_signed(), tag.token.cast_signed()]).expect("completed");
        theirs
            .execute("INSERT INTO tidegate_enqueue (kind, payload) VALUES ('kind', 'next')", [])
            .expect("done");
        theirs.execute_batch("COMMIT").expect("committed");
        drop(theirs);
        writer.acknowledged();
        jobs.renew(&[taken[3].tag, taken[4].tag]).await.expect("renewed");
        writer.noted();
        settle(&jobs, &taken[3], Settlement::Release { after: Duration::ZERO }).await;
        writer.acknowledged();
        // As a worker does it: what is freed is taken again in the same transaction.
        let acked = [Settled::new(taken[4].tag, Settlement::Ack)];
        let (stale, next) = jobs.exchange(&acked, &at_once(1)).await.expect("exchanged");
        assert!(stale.0.is_empty() && next.len() == 1);
        writer.acknowledged();
        settle(&jobs, &next[0], Settlement::Ack).await;
        writer.acknowledged();
        jobs.cancel(&taken[5].job.id).await.expect("asked");
        writer.acknowledged();
        if round == 0 {
            // The last to close the file makes a checkpoint and deletes the WAL.
            drop(jobs);
            let wal = file.with_extension("sqlite-wal");
            for _ in 0..1_000 {
                if !wal.exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(!wal.exists(), "it is closed");
            push(Event::Checkpointed);
            jobs = writer.open();
        }
    }
    drop(jobs);
    Run { recording: take(), states: writer.states }
}

/// What was found after a power failure.
struct Found {
    /// How many operations there had been.
    done: usize,
    /// How many up to the last one whose acknowledgement holds.
    acknowledged: usize,
    /// And how many of them before the last checkpoint.
    checkpointed: usize,
    /// Which state the file is in.
    state: usize,
    /// Where, for a person to look.
    place: String,
}

/// Opens a file as it may be after a power failure, and says in which state it is; then goes on with it, if wanted.
fn look(images: BTreeMap<&str, Vec<u8>>, states: &[String], goes_on: bool) -> usize {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    for (name, image) in images {
        let name = Path::new(name).file_name().expect("a name");
        std::fs::write(folder.path().join(name), image).expect("written");
    }
    let found = {
        let connection = Connection::open(uri(&file, UNSYNCED)).expect("it opens");
        let check: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("it can be read");
        assert_eq!(check, "ok");
        state(&connection)
    };
    if goes_on {
        let jobs =
            Sqlite::builder(uri(&file, UNSYNCED)).durability(Durability::Normal).open().expect("it opens");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(jobs.enqueue(vec![job(0)])).expect("enqueued");
    }
    let at = states.iter().position(|state| *state == found);
    at.unwrap_or_else(|| panic!("a state that never was:\n{found}"))
}

/// Stops the disk after each event of the recording, in several ways.
fn stop_everywhere(run: &Run) -> Vec<Found> {
    let mut seen = HashMap::new();
    let mut found = Vec::new();
    let (mut done, mut acknowledged, mut checkpointed) = (0, 0, 0);
    for (at, event) in run.recording.0.iter().enumerate() {
        match event {
            Event::Noted => done += 1,
            Event::Acknowledged => {
                done += 1;
                acknowledged = done;
            }
            Event::Checkpointed => checkpointed = done,
            _ => {}
        }
        let seed = at as u64;
        for survives in
            [Survives::Nothing, Survives::Everything, Survives::Some(seed), Survives::Some(seed + 1_000_000)]
        {
            let (images, number) = run.recording.crash(at + 1, survives);
            let place = format!("after event {at} ({survives:?}), with {acknowledged} acknowledged");
            let state = *seen.entry(number).or_insert_with(|| look(images, &run.states, at % 10 == 0));
            found.push(Found { done, acknowledged, checkpointed, state, place });
        }
    }
    println!("{} moments, {} different files, {} states", found.len(), seen.len(), run.states.len());
    found
}

/// Records a run.
fn record(durability: Durability) -> Run {
    let folder = Folder::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&folder.file("jobs.sqlite"), durability))
}

#[test]
fn what_was_acknowledged_survives_a_power_failure() {
    let _alone = alone();
    let run = record(Durability::Full);
    let mut undone = 0;
    for Found { done, acknowledged, state, place, .. } in stop_everywhere(&run) {
        // What was under way may be there or not.
        assert!(
            (acknowledged..=done + 1).contains(&state),
            "{place} the file is as it was after operation {state}"
        );
        undone = undone.max(done.saturating_sub(state));
    }
    assert_eq!(undone, 1, "a fetch is not waited for, and more than one is not at stake");
}

#[test]
fn the_faster_setting_loses_what_came_after_the_last_checkpoint_and_nothing_else() {
    let _alone = alone();
    let run = record(Durability::Normal);
    let mut lost = 0;
    for Found { done, acknowledged, checkpointed, state, place } in stop_everywhere(&run) {
        assert!(
            (checkpointed..=done + 1).contains(&state),
            "{place}, {checkpointed} of them before the last checkpoint, the file is as it was after operation {state}"
        );
        lost = lost.max(acknowledged.saturating_sub(state));
    }
    assert!(lost > 5, "at most {lost} operations were lost: such a test can't find a loss");
}
