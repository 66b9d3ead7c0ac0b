//! The records in a file that outlives the process (`--db`): taken in as fast as they come, run from there, and, when
//! the run was ended in the middle, gone on with by the next.
//!
//! Invariants:
//!
//! 1. With each block of records it is noted, in the same transaction, how far the input has been taken in. So a run
//!    that is started again on the same input takes up where that was: no record is taken in twice, and none left out.
//! 2. One process at a time: a lock beside the file says so. Whatever is out when a process begins was out with one
//!    that has ended, and is taken back, its attempt not counted.
//! 3. What a record has to say is written before it is noted as over with. Who is killed in between says it twice,
//!    and never not at all.
//!
//! A job's payload is the number of its record, a tab, and the record.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::db::{Db, QUEUE, Taken, pack, unpack};
use super::ledger::{Ledger, Trouble, too_long};
use super::source::Records;
use crate::backend::sqlite::Standing;
use crate::cli::records::{Block, Item, Reader};
use crate::cli::text::count;
use crate::enqueue::NewJob;
use crate::error::{Chain, Error, ErrorKind};
use crate::inspect::Inspect as _;
use crate::job::{Job, JobId, Queue};
use crate::source::{Delivery, FetchRequest, Settled, Settlement, Source, Stale};
use crate::sync::{Mutex, lock};

/// No further records are taken in while so many are open. Together with the size of a record it bounds the file.
const MAX_OPEN: u64 = 1_000_000;

/// How long to wait before the file is tried again that could not be written.
const AGAIN: Duration = Duration::from_millis(500);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Durable {
    db: Db,
    found: Found,
    queue: Queue,
    ledger: Arc<Ledger>,
    max_record: usize,
    /// How the input was left by the run before, and how far it is now.
    before: Taken,
    now: Mutex<Taken>,
    input_over: AtomicBool,
    /// All is over with, as the last fetch has found.
    drained: AtomicBool,
    /// The file could not be written when that was tried last, and it has been said.
    in_trouble: AtomicBool,
    /// How many are open, more or less: people may change the file too.
    open: AtomicU64,
    /// With the worker, by the keys of their tags.
    out: Mutex<HashMap<u64, Out>>,
    /// Nothing is out any more, or the input has ended: there may be nothing left to fetch.
    quiet: Notify,
    /// Something was settled: there may be room for more.
    room: Notify,
}

/// How the file was found.
#[derive(Clone, Copy, Debug)]
struct Found {
    done: u64,
    failed: u64,
    open: u64,
}

#[derive(Debug)]
struct Out {
    number: u64,
    record: Bytes,
    attempt: u32,
    /// What it has to say has been said; its settlement may have failed and come again.
    said: bool,
}

impl Durable {
    /// Takes over what an earlier run has left in the file. With `retry_failed`, what failed for good there is tried
    /// again.
    pub(super) async fn begin(
        db: Db,
        ledger: Arc<Ledger>,
        max_record: usize,
        retry_failed: bool,
    ) -> Result<Self, Error> {
        let queue = Queue::new(QUEUE);
        let before = db.taken().await?;
        db.store.take_over(&queue).await?;
        if retry_failed {
            db.requeue_dead().await?;
        }
        let Standing { open, dead } = db.store.standing(&queue).await?;
        let done = db.store.counts().await?.done;
        Ok(Self {
            found: Found { done, failed: dead + before.too_long, open },
            db,
            queue,
            ledger,
            max_record,
            before,
            now: Mutex::default(),
            input_over: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            in_trouble: AtomicBool::new(false),
            open: AtomicU64::new(open),
            out: Mutex::default(),
            quiet: Notify::new(),
            room: Notify::new(),
        })
    }

    /// Says so if an earlier run has left something.
    pub(super) fn say_what_was_found(&self) {
        let Found { done, failed, open } = self.found;
        if (done, failed, open) != (0, 0, 0) {
            let [done, failed, open] = [done, failed, open].map(count);
            let text = format!(
                "tidegate: going on with {}: {done} done, {failed} failed, {open} to do\n",
                self.db.name
            );
            self.ledger.console.say(text.as_bytes());
        }
    }

    /// How many records have failed for good, in this run and in those before.
    pub(super) async fn failed(&self) -> Result<u64, Error> {
        let dead = self.db.store.standing(&self.queue).await?.dead;
        Ok(dead + self.before.too_long.max(lock(&self.now).too_long))
    }

    /// Takes in the input to its end. Ends early when that is not the input that was taken in before.
    ///
    /// # Cancel safety
    /// What was not yet taken in is lost with the reader.
    pub(super) async fn feed(&self, mut reader: Reader) {
        let mut over = false;
        while !over && !self.ledger.is_closed() {
            let room = self.room.notified();
            if self.open.load(Ordering::Relaxed) >= MAX_OPEN {
                room.await;
                continue;
            }
            let Some(block) = reader.next().await else { break };
            over = block.end.is_some();
            if !self.take_in(block).await {
                break;
            }
        }
        let taken = *lock(&self.now);
        if over && taken.last > 0 && taken.last < self.before.last {
            self.other_input(taken.last);
        }
        self.input_over.store(true, Ordering::Release);
        self.quiet.notify_waiters();
    }

    /// Whether to go on.
    async fn take_in(&self, block: Block) -> bool {
        let mut taken = *lock(&self.now);
        let (mut jobs, mut long) = (Vec::new(), Vec::new());
        for item in block.items {
            let last = taken.last;
            let bytes = length(&item) + 1;
            taken = taken.with(&item);
            if taken.last <= self.before.last {
                self.ledger.console.advance(bytes);
                if taken.last == self.before.last && taken.digest != self.before.digest {
                    self.other_input(taken.last);
                    return false;
                }
                continue;
            }
            if last < self.before.last {
                self.other_input(last);
                return false;
            }
            match item {
                Item::Record { number, bytes } => jobs.push(pack(number, &bytes)),
                Item::TooLong { number, start, length } => long.push((number, start, length)),
            }
        }
        if !jobs.is_empty() || !long.is_empty() {
            let many = jobs.len() as u64;
            if !self.store(jobs, taken).await {
                return false;
            }
            self.open.fetch_add(many, Ordering::Relaxed);
            for (number, start, length) in long {
                let room = self.ledger.room().await;
                self.ledger.console.advance(length - start.len() as u64);
                self.ledger.failed(number, &start, 0, too_long(length, self.max_record).into(), room);
            }
        }
        *lock(&self.now) = taken;
        if let Some(Err(error)) = block.end {
            self.ledger.trouble(Trouble::Input(error));
        }
        true
    }

    async fn store(&self, jobs: Vec<NewJob>, taken: Taken) -> bool {
        loop {
            match self.db.take_in(jobs.clone(), taken).await {
                Ok(()) => {
                    self.in_trouble.store(false, Ordering::Relaxed);
                    return true;
                }
                Err(error) if error.is_transient() => {
                    self.trying_again(&error);
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    self.ledger.trouble(Trouble::Output(format!("--db {}: {}", self.db.name, Chain(&error))));
                    return false;
                }
            }
        }
    }

    /// Says so, once for each time of trouble.
    fn trying_again(&self, error: &Error) {
        if self.in_trouble.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = format!("tidegate: --db {}: {}; trying again\n", self.db.name, Chain(error));
        self.ledger.console.say(text.as_bytes());
    }

    fn other_input(&self, last: u64) {
        let (db, before) = (&self.db.name, count(self.before.last));
        let what = format!(
            "up to record {}, it is not what {db} was filled from, up to record {before}: give the same input again, or \
             another --db",
            count(last)
        );
        self.ledger.trouble(Trouble::Input(std::io::Error::other(what)));
    }

    /// The delivery as the worker is to see it: a job with the number and the bytes of its record.
    fn unpack(&self, mut delivery: Delivery) -> Delivery {
        let Some((number, record)) = unpack(&delivery.job.payload) else {
            return delivery; // somebody else has put it there: it is refused for its id
        };
        let mut job = Job::clone(&delivery.job);
        job.id = JobId::new(number.to_string());
        job.payload = record.clone();
        delivery.job = Arc::new(job);
        delivery.lease = None; // nobody else may take it
        let out = Out { number, record, attempt: delivery.attempt, said: false };
        lock(&self.out).insert(delivery.tag.key, out);
        delivery
    }

    /// Says what there is to say, once.
    async fn say(&self, settled: &Settled) {
        let (number, record, attempt) = {
            let mut out = lock(&self.out);
            let Some(out) = out.get_mut(&settled.tag.key) else { return };
            if std::mem::replace(&mut out.said, true) {
                return;
            }
            (out.number, out.record.clone(), out.attempt)
        };
        let room = self.ledger.room().await;
        match settled.settlement {
            Settlement::Ack => self.ledger.done(number, &record, attempt, room),
            Settlement::Reject => {
                let reason = settled.reason.clone().unwrap_or_else(|| "was rejected".into());
                self.ledger.failed(number, &record, attempt, reason, room);
            }
            Settlement::Retry { .. } => self.ledger.open(number, &record, attempt, true, room),
            Settlement::Release { .. } => self.ledger.open(number, &record, attempt, false, room),
        }
    }

    /// Whether nothing is left to do. The file is looked into only when nothing is in hand and the input is over.
    async fn is_drained(&self) -> Result<bool, Error> {
        let idle = self.input_over.load(Ordering::Acquire) && lock(&self.out).is_empty();
        Ok(idle && !self.db.store.has_open(&self.queue).await?)
    }

    /// As [`fetch`](Source::fetch), which it is but for what is said.
    async fn take(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        loop {
            if self.ledger.is_closed() {
                return Err(Error::new(ErrorKind::Closed, "nothing more is to be begun"));
            }
            // From here on it hears of it when nothing is out any more.
            let quiet = self.quiet.notified();
            if self.is_drained().await? {
                self.drained.store(true, Ordering::Release);
                return Err(Error::new(ErrorKind::Closed, "all records are over with"));
            }
            let enough = stop.child_token();
            let mut fetching = std::pin::pin!(self.db.store.fetch(wanted, &enough));
            let (fetched, again) = tokio::select! {
                biased;
                fetched = &mut fetching => (fetched?, false),
                () = quiet => {
                    enough.cancel();
                    (fetching.await?, !stop.is_cancelled())
                }
            };
            if !fetched.is_empty() || !again {
                return Ok(fetched.into_iter().map(|delivery| self.unpack(delivery)).collect());
            }
        }
    }

    /// What is in hand and has not been said to be over: that of others may not have been noted, and is run again.
    fn of(&self, begun: bool) -> BTreeMap<u64, Bytes> {
        let out = lock(&self.out);
        let of = out.values().filter(|out| !out.said && self.ledger.has_begun(out.number) == begun);
        of.map(|out| (out.number, out.record.clone())).collect()
    }
}

fn length(item: &Item) -> u64 {
    match item {
        Item::Record { bytes, .. } => bytes.len() as u64,
        Item::TooLong { length, .. } => *length,
    }
}

#[async_trait]
impl Source for Durable {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let fetched = self.take(wanted, stop).await;
        // The worker does try again, and has no way of its own to say so.
        fetched.inspect_err(|error| {
            if error.is_transient() {
                self.trying_again(error)
            }
        })
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        for settled in settled {
            self.say(settled).await;
        }
        self.ledger.printer.written().await;
        let stale = self.db.store.settle(settled).await.inspect_err(|error| self.trying_again(error))?;
        let mut out = lock(&self.out);
        for settled in settled {
            out.remove(&settled.tag.key);
            if matches!(settled.settlement, Settlement::Ack | Settlement::Reject) {
                // As good as a guess may be: it only says when to take in more.
                let _ =
                    self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| open.checked_sub(1));
            }
        }
        if out.is_empty() {
            self.quiet.notify_waiters();
        }
        drop(out);
        self.room.notify_waiters();
        self.in_trouble.store(false, Ordering::Relaxed);
        Ok(stale)
    }
}

impl Records for Durable {
    fn unfinished(&self) -> BTreeMap<u64, Bytes> {
        self.of(true)
    }

    fn put_back(&self) -> BTreeMap<u64, Bytes> {
        self.of(false)
    }

    /// Those that were taken in are in the file.
    fn not_begun(&self) -> Option<u64> {
        None
    }

    fn is_over(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }
}
