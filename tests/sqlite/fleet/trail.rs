//! What is known of each job and each of its attempts: [`Trail`].
//!
//! Tables and triggers of the test's own stand beside the jobs, and are changed in the same transactions: each hand-over
//! with the worker process that it went to, each job that has gone. What handlers did stands in the log of the processes.
//! A token tells a hand-over from all others, so a job's number and a token are the name of an attempt.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Params};

use super::GRACE;
use super::process::{Line, SLOTS, What, log};

/// An attempt: the number of its job, and the token with which that was handed over.
pub(super) type Attempt = (i64, i64);

/// The moment at which a worker process was killed or put to sleep, and what it had then.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) at: u64,
    pub(super) in_flight: HashSet<Attempt>,
    pub(super) generation: u32,
    /// Hand-overs are numbered, and so are settlements; these were the last that had been committed.
    pub(super) last: i64,
    last_gone: i64,
    /// It was put to sleep in the middle of a transaction, as the file was locked while it slept: and when it was woken.
    pub(super) woken_in_the_middle: Option<u64>,
}

/// A settlement that was committed.
#[derive(Clone, Copy, Debug)]
struct Gone {
    number: i64,
    job: i64,
    token: i64,
    state: i64,
    /// When its lease was to run out.
    due: u64,
    /// In whole milliseconds since 1970.
    at: u64,
}

/// What a cut does to the attempts that were in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// None of them can be settled any more.
    Death,
    /// What was being settled at the cut may be settled yet.
    Sleep,
}

/// See the head of this file. Reads only, so that whatever happens to leases is the workers' doing.
pub(super) struct Trail {
    file: PathBuf,
    ttl: Duration,
    connection: Connection,
}

impl Trail {
    /// Begins to note. Nobody may be at work on the file yet.
    pub(super) fn of(file: &Path, ttl: Duration) -> Self {
        let connection = Connection::open(file).expect("the file");
        let sql = format!(
            "CREATE TABLE handed (token INTEGER PRIMARY KEY, generation INTEGER NOT NULL, at INTEGER NOT NULL);
             CREATE TABLE gone (number INTEGER PRIMARY KEY, job INTEGER NOT NULL, token INTEGER NOT NULL,
                 state INTEGER NOT NULL, due INTEGER NOT NULL, at INTEGER NOT NULL);
             CREATE TRIGGER note_handed AFTER UPDATE OF token ON tidegate_jobs WHEN NEW.state = 2 BEGIN
                 INSERT OR IGNORE INTO handed VALUES (NEW.token, NEW.due - NEW.since - {}, NEW.since);
             END;
             CREATE TRIGGER note_gone AFTER DELETE ON tidegate_jobs BEGIN
                 INSERT INTO gone (job, token, state, due, at)
                     VALUES (OLD.id, OLD.token, OLD.state, OLD.due, CAST(unixepoch('subsec') * 1000 AS INTEGER));
             END;",
            ttl.as_nanos()
        );
        connection.execute_batch(&sql).expect("tables of our own");
        Self { file: file.to_owned(), ttl, connection }
    }

    fn number(&self, sql: &str, params: impl Params) -> i64 {
        self.connection.query_row(sql, params, |row| row.get(0)).expect(sql)
    }

    fn attempts(&self, sql: &str, params: impl Params) -> HashSet<Attempt> {
        let mut statement = self.connection.prepare_cached(sql).expect(sql);
        let rows = statement.query_map(params, |row| Ok((row.get(0)?, row.get(1)?))).expect(sql);
        rows.collect::<rusqlite::Result<_>>().expect(sql)
    }

    /// How many jobs are done.
    pub(super) fn done(&self) -> usize {
        usize::try_from(self.number("SELECT done FROM tidegate_counters", [])).expect("a number of jobs")
    }

    pub(super) fn dead(&self) -> i64 {
        self.number("SELECT count(*) FROM tidegate_jobs WHERE state = 3", [])
    }

    /// Whether that process has had anything yet.
    pub(super) fn has_had(&self, generation: u32) -> bool {
        self.number("SELECT count(*) FROM handed WHERE generation = ?1", [generation]) > 0
    }

    /// That process was killed or put to sleep at `at`, and does nothing now.
    pub(super) fn cut(&self, at: u64, generation: u32) -> Cut {
        let last = self.number("SELECT coalesce(max(token), 0) FROM handed", []);
        let last_gone = self.number("SELECT coalesce(max(number), 0) FROM gone", []);
        let in_flight = self.held_by(generation);
        Cut { at, in_flight, generation, last, last_gone, woken_in_the_middle: None }
    }

    /// What that process, which was asleep, was taking just then, and has from when it wakes: with leases that have run
    /// out. To be asked at the end.
    pub(super) fn was_taking(&self, cut: &Cut, asleep: u64) -> HashSet<Attempt> {
        let generation = cut.generation;
        let sql = "SELECT token, generation FROM handed WHERE generation = ?1 AND token > ?2 AND at <= ?3";
        let asleep = asleep.cast_signed();
        let tokens = self.attempts(sql, rusqlite::params![generation, cut.last, asleep]);
        let taken = log(&self.file).into_iter().map(|line| (line.job, line.token));
        taken.filter(|(_, token)| tokens.contains(&(*token, generation.into()))).collect()
    }

    /// What the file says that this process has.
    pub(super) fn held_by(&self, generation: u32) -> HashSet<Attempt> {
        let sql = "SELECT id, token FROM tidegate_jobs JOIN handed USING (token) WHERE state = 2 AND generation = ?1";
        self.attempts(sql, [generation])
    }

    /// What the file says that anybody has.
    pub(super) fn held(&self) -> HashSet<Attempt> {
        self.attempts("SELECT id, token FROM tidegate_jobs WHERE state = 2", [])
    }

    /// Whether somebody has kept the file locked for a good part of a lease's time.
    pub(super) fn is_locked(&self) -> bool {
        let other = Connection::open(&self.file).expect("the file");
        other.busy_timeout(self.ttl / 4).expect("set");
        match other.execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
                true
            }
        }
    }

    /// All lines of this kind that a process has left.
    pub(super) fn lines(&self, what: What, generation: u32) -> Vec<Line> {
        let mut lines = log(&self.file);
        lines.retain(|line| line.what == what && line.generation == generation);
        lines
    }

    /// Each of these jobs is settled, once, by who had its lease and had run it, and before the lease had run out, unless
    /// that was put to sleep in between; and has run again only if it was in flight at a cut, and then in time.
    pub(super) fn check(&self, jobs: &[i64], cuts: &[Cut], after: After) {
        assert_eq!((self.done(), self.dead()), (jobs.len(), 0), "done and dead");
        let log = log(&self.file);
        let gone = self.gone();
        let handed = self.attempts("SELECT token, generation FROM handed", []);
        late(&gone, &handed.into_iter().collect(), cuts).unwrap_or_else(|why| panic!("{why}"));
        let settled = check_settlements(&gone, jobs, &log);
        let mut starts: HashMap<i64, Vec<&Line>> = HashMap::new();
        log.iter()
            .filter(|line| line.what == What::Start)
            .for_each(|line| starts.entry(line.job).or_default().push(line));
        self.check_starts(&starts, &settled, cuts);
        for cut in cuts {
            self.check_again(cut, &starts, &settled, after);
        }
    }

    /// All settlements, in their order.
    fn gone(&self) -> Vec<Gone> {
        let sql = "SELECT number, job, token, state, due, at FROM gone ORDER BY number";
        let mut statement = self.connection.prepare(sql).expect("a table of ours");
        let time = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::unsigned_abs);
        let rows = statement.query_map([], |row| {
            let [number, job, token, state] = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
            Ok(Gone { number, job, token, state, due: time(row, 4)?, at: time(row, 5)? })
        });
        rows.expect("a table of ours").collect::<rusqlite::Result<_>>().expect("rows of ours")
    }

    /// Who runs a job was handed it, once for each run; a run that was not settled was in flight at a cut.
    fn check_starts(&self, starts: &HashMap<i64, Vec<&Line>>, settled: &HashMap<i64, i64>, cuts: &[Cut]) {
        let handed = self.attempts("SELECT token, generation FROM handed", []);
        let mut seen = HashSet::new();
        for line in starts.values().flatten() {
            assert!(seen.insert((line.job, line.token)), "run twice for one hand-over: {line:?}");
            assert!(handed.contains(&(line.token, line.generation.into())), "never handed over: {line:?}");
            let was_cut = cuts.iter().any(|cut| cut.in_flight.contains(&(line.job, line.token)));
            assert!(
                settled.get(&line.job) == Some(&line.token) || was_cut,
                "job {} ran more often than once, and this attempt was not in flight at any cut: {line:?}; all: {:?}; \
                 cuts at {:?}; longest without a line of that process in the time of its lease: {:?}",
                line.job,
                starts[&line.job],
                cuts.iter().map(|cut| cut.at).collect::<Vec<_>>(),
                self.longest_silence(line)
            );
        }
    }

    /// Tells a process that stood still, and so lost its leases, from one that did something wrong.
    fn longest_silence(&self, of: &Line) -> Duration {
        let until = of.at + self.ttl.as_nanos() as u64;
        let mut times: Vec<u64> = log(&self.file)
            .iter()
            .filter(|line| line.generation == of.generation && (of.at..until).contains(&line.at))
            .map(|line| line.at)
            .chain([until])
            .collect();
        times.sort_unstable();
        Duration::from_nanos(times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default())
    }

    /// What was in flight at a cut runs again in time.
    fn check_again(
        &self,
        cut: &Cut,
        starts: &HashMap<i64, Vec<&Line>>,
        settled: &HashMap<i64, i64>,
        after: After,
    ) {
        let limit = self.ttl + GRACE;
        for (job, token) in &cut.in_flight {
            if settled.get(job) == Some(token) {
                assert_eq!(after, After::Sleep, "job {job} was settled by the dead: its attempt {token}");
                continue;
            }
            let next = starts.get(job).into_iter().flatten();
            let next = next.filter(|line| line.token != *token && line.at > cut.at).map(|line| line.at).min();
            let next = next.unwrap_or_else(|| panic!("job {job} never ran again"));
            let waited = Duration::from_nanos(next - cut.at);
            assert!(waited <= limit, "job {job} ran again after {waited:?}: at most {limit:?}");
        }
    }
}

/// No settlement was taken once its lease had run out. The exceptions are named one by one: those in the one transaction
/// in whose middle a process was put to sleep. It had asked for the time, and kept everybody else out; so these come
/// first of all that was settled after the cut, in one row, and once it was awake.
fn late(gone: &[Gone], handed: &HashMap<i64, i64>, cuts: &[Cut]) -> Result<usize, String> {
    let by = |token: i64| handed.get(&token).copied();
    let mut found = 0;
    for one in gone.iter().filter(|one| one.at * 1_000_000 > one.due) {
        let was_in_the_middle = |cut: &&Cut| {
            let Some(woken) = cut.woken_in_the_middle else { return false };
            let mut until =
                gone.iter().filter(|other| (cut.last_gone + 1..=one.number).contains(&other.number));
            // The file's times are in whole milliseconds.
            one.number > cut.last_gone
                && one.number <= cut.last_gone + SLOTS as i64
                && one.at >= woken / 1_000_000
                && until.all(|other| by(other.token) == Some(cut.generation.into()))
        };
        if !cuts.iter().any(|cut| was_in_the_middle(&cut)) {
            let after = Duration::from_nanos(one.at * 1_000_000 - one.due);
            return Err(format!(
                "job {} was settled {after:?} after its lease had run out, by process {:?}, which was in the middle of no \
                 transaction when it was put to sleep: {one:?}; {cuts:?}",
                one.job,
                by(one.token)
            ));
        }
        found += 1;
    }
    Ok(found)
}

/// Returns with which token each job was settled.
fn check_settlements(gone: &[Gone], jobs: &[i64], log: &[Line]) -> HashMap<i64, i64> {
    let ends = log.iter().filter(|line| line.what == What::End);
    let ends: HashMap<Attempt, &Line> = ends.map(|line| ((line.job, line.token), line)).collect();
    let mut settled = HashMap::new();
    for Gone { job, token, state, at, .. } in gone {
        assert_eq!(*state, 2, "job {job} was settled though nobody had it");
        let end = ends.get(&(*job, *token)).unwrap_or_else(|| {
            panic!("job {job} was settled in place of who had it: its attempt {token} never ended")
        });
        // The file's times are in whole milliseconds.
        assert!(
            end.at / 1_000_000 <= *at,
            "job {job} was settled before the attempt {token} that had it ended: {end:?}, {at}"
        );
        assert!(settled.insert(*job, *token).is_none(), "job {job} was settled twice");
    }
    let open: Vec<_> = jobs.iter().filter(|job| !settled.contains_key(job)).collect();
    assert!(open.is_empty(), "never settled: {open:?}");
    assert_eq!(settled.len(), jobs.len(), "what was settled was never enqueued");
    settled
}

#[test]
fn a_settlement_that_was_taken_too_late_is_found() {
    const MS: u64 = 1_000_000;
    let settled = |number, token, at| Gone { number, job: number, token, state: 2, due: 500 * MS, at };
    let cut = |woken: Option<u64>| Cut {
        at: 300 * MS,
        in_flight: HashSet::new(),
        generation: 7,
        last: 0,
        last_gone: 1,
        woken_in_the_middle: woken.map(|ms| ms * MS),
    };
    // Token 1 went to process 7, and token 2 to another one.
    let handed = HashMap::from([(1, 7), (2, 8)]);
    let late = |gone: &[Gone], cut| late(gone, &handed, &[cut]).ok();
    let in_time = [settled(1, 1, 200), settled(2, 2, 500)];
    assert_eq!(late(&in_time, cut(None)), Some(0));
    let middle = [settled(1, 1, 200), settled(2, 1, 250), settled(3, 1, 900)];
    assert_eq!(late(&middle, cut(Some(850))), Some(1));
    for (what, gone, cut) in [
        ("it slept in no transaction", &middle[..], cut(None)),
        ("it was asleep yet", &middle, cut(Some(950))),
        ("somebody else", &[settled(1, 1, 200), settled(2, 2, 900)], cut(Some(850))),
        ("somebody else came in between", &[settled(2, 2, 400), settled(3, 1, 900)], cut(Some(850))),
        ("before the cut", &[settled(1, 1, 900)], cut(Some(850))),
        ("more than it could have", &[settled(2 + SLOTS as i64, 1, 900)], cut(Some(850))),
    ] {
        assert_eq!(late(gone, cut), None, "{what}");
    }
}
