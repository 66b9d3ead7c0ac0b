//! The one connection that writes, and the transactions that many share.
//!
//! Whoever wants something done leaves it at the gate. If nobody is at work there, a task of the blocking pool is
//! started: it takes all that has been left, does it in one transaction, commits, answers, and looks again. What
//! comes meanwhile shares the next transaction. So a commit, which waits for the disk, is paid for once by as many
//! as are there, and nobody waits for company.
//!
//! Invariants:
//!
//! 1. At most one is at work, and whenever something has been left somebody is, or will be started.
//! 2. An answer is given after the commit of what it answers, or says that it was not committed.
//! 3. What fails of one leaves no trace, and the others of its transaction unharmed.
//! 4. Nothing is begun on a file that is known to be gone from its path.
//! 5. What nobody waits for any more is not begun, unless it is a settlement.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::config::{Durability, Settings};
use super::failure::failed;
use super::place::Place;
use super::schema::How;
use super::store::{Effects, Txn};
use super::turn;
use crate::error::{Chain, Error, ErrorKind};
use crate::sync::{Mutex, lock};

/// The most that share a transaction: keeps the lock on the file short, and others out of step for no longer.
const MAX_GROUP: usize = 256;

pub(super) struct Gate {
    waiting: Mutex<Waiting>,
    pub(super) connection: Mutex<Connection>,
    pub(super) place: Place,
    /// What a commit waits for the disk for; and whether it does so now, which changes under the connection's lock.
    durability: Durability,
    waits: AtomicBool,
    /// How long it waits for other processes.
    patience: Duration,
    settings: Settings,
    /// Rung when something has become ready, or is due sooner than all before.
    pub(super) bell: Notify,
}

#[derive(Default)]
struct Waiting {
    wishes: Vec<Wish>,
    at_work: bool,
}

/// Something to be done in a transaction; there is none if it could not be begun. Returns what is to be called with
/// the transaction's fate, and how it failed if it did.
type Act = Box<dyn FnOnce(Option<&mut Txn<'_>>) -> (Answer, Option<Fate>) + Send>;

struct Wish {
    act: Act,
    /// What it does may be undone by a power failure.
    lasts: Lasts,
}

/// What a power failure may do to what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    /// No more than [`Durability`] says.
    ForGood,
    /// It may undo it. For what is about leases, which end with the machine: undone, the job is there as before.
    UntilPowerFails,
}

/// What becomes of something whose caller has gone before it was begun. (What has begun is done, and committed.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// It is not done: nobody expects it any more.
    Skip,
    /// It is done all the same. For settlements: the job has run, whoever waits to hear that it is noted.
    Do,
}

type Answer = Box<dyn FnOnce(Option<&Fate>) + Send>;

/// Why something was not done, or a transaction not committed.
#[derive(Clone)]
struct Fate {
    kind: ErrorKind,
    text: String,
}

impl Fate {
    fn of(doing: &str, error: rusqlite::Error) -> Self {
        let error = failed(doing, error);
        Self { kind: error.kind(), text: Chain(&error).to_string() }
    }

    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}

impl Gate {
    pub(super) fn new(connection: Connection, place: Place, how: &How, settings: Settings) -> Arc<Self> {
        let durability = how.durability;
        Arc::new(Self {
            waiting: Mutex::default(),
            connection: Mutex::new(connection),
            place,
            durability,
            waits: AtomicBool::new(durability == Durability::Full),
            patience: how.busy_timeout,
            settings,
            bell: Notify::new(),
        })
    }

    /// Does `act` in a transaction, and answers once that has been committed.
    ///
    /// Dropped before it has begun, it is done if `late` says so; once it has begun it is done in any case. Its answer
    /// then goes to `unheard`.
    pub(super) async fn pass<T: Send + 'static>(
        self: &Arc<Self>,
        doing: &'static str,
        lasts: Lasts,
        late: Late,
        act: impl FnOnce(&mut Txn<'_>) -> rusqlite::Result<T> + Send + 'static,
        unheard: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, Error> {
        let (tell, told) = oneshot::channel();
        let act = wish(doing, late, act, Caller { tell, unheard });
        self.leave(Wish { act, lasts });
        let answer = told.await.unwrap_or_else(|_| Err(closed(doing)))?;
        answer.take().ok_or_else(|| closed(doing))
    }

    /// Does `act` some time; nobody waits for it.
    pub(super) fn leave_behind(
        self: &Arc<Self>,
        doing: &'static str,
        act: impl FnOnce(&mut Txn<'_>) -> rusqlite::Result<()> + Send + 'static,
    ) {
        let act = wish(doing, Late::Do, act, Nobody);
        self.leave(Wish { act, lasts: Lasts::UntilPowerFails });
    }

    fn leave(self: &Arc<Self>, wish: Wish) {
        let mut waiting = lock(&self.waiting);
        waiting.wishes.push(wish);
        if !std::mem::replace(&mut waiting.at_work, true) {
            drop(waiting);
            let shift = Shift::of(self);
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || shift.work())),
                // An answer was dropped outside of any: the shift sees to it that it is done all the same.
                Err(_) => drop(shift),
            }
        }
    }

    fn next_group(&self) -> Vec<Wish> {
        let mut waiting = lock(&self.waiting);
        if waiting.wishes.is_empty() {
            waiting.at_work = false;
        }
        let size = waiting.wishes.len().min(MAX_GROUP);
        waiting.wishes.drain(..size).collect()
    }

    fn serve(&self, group: Vec<Wish>) {
        let mut answers = Vec::with_capacity(group.len());
        let alone = group.len() == 1;
        let for_good = group.iter().any(|wish| wish.lasts == Lasts::ForGood);
        let mut wishes = group.into_iter().map(|wish| wish.act);
        let there = self.place.check().map_err(|error| Fate { kind: error.kind(), text: error.to_string() });
        let served = there.and_then(|()| {
            self.serve_in(&lock(&self.connection), for_good, &mut wishes, alone, &mut answers)
        });
        answers.extend(wishes.map(|wish| wish(None).0));
        let fate = match served {
            Ok(effects) => {
                if effects.dropped_dead > 0 {
                    let dropped = effects.dropped_dead;
                    tracing::warn!(dropped, "the oldest dead letters went to make room: max_dead is reached");
                }
                if effects.ready || effects.sooner {
                    self.bell.notify_waiters();
                }
                None
            }
            Err(fate) => Some(fate),
        };
        for answer in answers {
            answer(fate.as_ref());
        }
    }

    /// Whether the next commit is to wait until it is on the disk. One that does not is there with the next that does:
    /// they are written one behind the other.
    fn wait_for_the_disk(&self, connection: &Connection, wait: bool) -> rusqlite::Result<()> {
        if self.durability == Durability::Normal || self.waits.load(Ordering::Relaxed) == wait {
            return Ok(());
        }
        connection.execute_batch(if wait {
            "PRAGMA synchronous = FULL"
        } else {
            "PRAGMA synchronous = NORMAL"
        })?;
        self.waits.store(wait, Ordering::Relaxed);
        Ok(())
    }

    fn serve_in(
        &self,
        connection: &Connection,
        for_good: bool,
        wishes: &mut impl Iterator<Item = Act>,
        alone: bool,
        answers: &mut Vec<Answer>,
    ) -> Result<Effects, Fate> {
        let sql = |error| Fate::of("a transaction on the file", error);
        self.wait_for_the_disk(connection, for_good).map_err(sql)?;
        let transaction = Transaction::begin(connection, self.patience).map_err(sql)?;
        let mut txn = Txn::begin(connection, &self.settings).map_err(sql)?;
        for wish in wishes {
            if !alone {
                txn.save().map_err(sql)?;
            }
            let (answer, failed) = wish(Some(&mut txn));
            answers.push(answer);
            match failed {
                None if alone => {}
                None => txn.keep().map_err(sql)?,
                // SQLite has undone everything: a full disk, say.
                Some(fate) if connection.is_autocommit() => return Err(fate),
                Some(_) if alone => return Ok(Effects::default()),
                Some(_) => txn.undo().map_err(sql)?,
            }
        }
        let effects = txn.end().map_err(sql)?;
        transaction.commit().map_err(sql)?;
        Ok(effects)
    }
}

/// Who is told the answer to a wish.
trait Hearer<T>: Send + 'static {
    /// Whether anybody waits for it.
    fn listens(&self) -> bool;
    fn tell(self, answer: Result<T, Error>);
}

struct Caller<T, U: FnOnce(T)> {
    tell: oneshot::Sender<Result<Told<T, U>, Error>>,
    unheard: U,
}

impl<T: Send + 'static, U: FnOnce(T) + Send + 'static> Hearer<T> for Caller<T, U> {
    fn listens(&self) -> bool {
        !self.tell.is_closed()
    }

    fn tell(self, answer: Result<T, Error>) {
        let unheard = self.unheard;
        // What can't be sent is dropped, and so is what is not taken.
        let _ = self.tell.send(answer.map(|done| Told(Some((done, unheard)))));
    }
}

/// An answer on its way. Wherever it is dropped before it was taken, nobody has heard it.
struct Told<T, U: FnOnce(T)>(Option<(T, U)>);

impl<T, U: FnOnce(T)> Told<T, U> {
    fn take(mut self) -> Option<T> {
        self.0.take().map(|(done, _)| done)
    }
}

impl<T, U: FnOnce(T)> Drop for Told<T, U> {
    fn drop(&mut self) {
        if let Some((done, unheard)) = self.0.take() {
            unheard(done);
        }
    }
}

struct Nobody;

impl<T> Hearer<T> for Nobody {
    fn listens(&self) -> bool {
        false
    }

    fn tell(self, answer: Result<T, Error>) {
        if let Err(error) = answer {
            tracing::warn!(error = %Chain(&error), "what nobody waits for failed");
        }
    }
}

/// A wish to do `act`, whose answer goes to `hearer` once it is known whether it was committed.
fn wish<T: Send + 'static>(
    doing: &'static str,
    late: Late,
    act: impl FnOnce(&mut Txn<'_>) -> rusqlite::Result<T> + Send + 'static,
    hearer: impl Hearer<T>,
) -> Act {
    Box::new(move |txn| {
        let listens = hearer.listens();
        if !listens && late == Late::Skip {
            return (Box::new(|_| ()), None);
        }
        let done = txn.map(|txn| {
            txn.set_heard(listens);
            contained(doing, || act(txn))
        });
        let failed = done.as_ref().and_then(|done| done.as_ref().err()).cloned();
        let answer: Answer = Box::new(move |fate| {
            hearer.tell(match (done, fate) {
                (Some(Err(own)), _) => Err(own.error()),
                (_, Some(fate)) => Err(fate.error()),
                (Some(Ok(done)), None) => Ok(done),
                (None, None) => Err(closed(doing)),
            });
        });
        (answer, failed)
    })
}

/// A transaction that writes; rolled back unless it is committed. (That of rusqlite has its statements parsed anew each
/// time, which is a tenth of what a small transaction costs.)
struct Transaction<'a>(&'a Connection);

impl<'a> Transaction<'a> {
    fn begin(connection: &'a Connection, patience: Duration) -> rusqlite::Result<Self> {
        turn::begin(connection, patience).map(|()| Self(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(|_| ())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // If even that fails, the next one can't begin, and says why.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

/// A panic in the middle of one is no reason to leave all the others without an answer.
fn contained<T>(doing: &str, act: impl FnOnce() -> rusqlite::Result<T>) -> Result<T, Fate> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => done.map_err(|error| Fate::of(doing, error)),
        Err(_) => Err(Fate { kind: ErrorKind::Internal, text: format!("{doing} panicked") }),
    }
}

fn closed(doing: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("{doing} failed: whoever was to do it panicked, or got no thread"),
    )
}

/// Somebody's time at work.
struct Shift {
    gate: Arc<Gate>,
    /// What is to be done if it ends in the middle.
    unfinished: Unfinished,
}

enum Unfinished {
    /// Nothing: it has ended.
    Ended,
    /// It never began: its runtime is shutting down. What was left at the gate may be of others, whose runtime goes
    /// on, so a thread of its own does it, which ends with that.
    Thread,
    /// What was left is dropped, and those who wait for it are told by that.
    Drop,
}

impl Shift {
    fn of(gate: &Arc<Gate>) -> Self {
        Self { gate: gate.clone(), unfinished: Unfinished::Thread }
    }

    fn work(mut self) {
        self.unfinished = Unfinished::Drop; // from here on it ends early only if something panics
        loop {
            let group = self.gate.next_group();
            if group.is_empty() {
                self.unfinished = Unfinished::Ended;
                return;
            }
            self.gate.serve(group);
        }
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        match self.unfinished {
            Unfinished::Ended => {}
            Unfinished::Thread => {
                let shift = Self { gate: self.gate.clone(), unfinished: Unfinished::Drop };
                // Without a thread the shift is dropped with the closure, and tells those who wait.
                let _ = std::thread::Builder::new()
                    .name("tidegate-sqlite".to_owned())
                    .spawn(move || shift.work());
            }
            Unfinished::Drop => {
                let mut waiting = lock(&self.gate.waiting);
                waiting.at_work = false;
                let wishes = std::mem::take(&mut waiting.wishes);
                drop(waiting);
                drop(wishes);
            }
        }
    }
}
