//! The input as a [`Source`]: records become jobs as slots come free, and failed ones wait here for their
//! next attempt.
//!
//! Invariants:
//!
//! 1. What is held depends on the slots, on `max_waiting` and on one block of the input, not on how long the
//!    input is (P2): nothing more is read while as many records as that wait.
//! 2. A record is in exactly one place: still in the block, out with the worker, waiting, or over with.
//! 3. A settlement that finds its output's place taken waits for it, so a slow reader of standard output
//!    slows the work down (P1).
//!
//! It has no leases: a record that is lost with the process is lost with it. Who needs more has a queue.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, Trouble, too_long};
use crate::cli::records::{Block, Item, Reader};
use crate::error::{Error, ErrorKind};
use crate::job::{Job, JobId, Kind, Tag};
use crate::source::{Delivery, FetchRequest, Settled, Settlement, Source, Stale};
use crate::sync::{Mutex, lock};

/// The one kind of job that there is.
pub(super) const KIND: &str = "each";

/// What is known of the records when the worker has ended.
pub(super) trait Records {
    /// The records that were begun and are not over with, by their numbers.
    fn unfinished(&self) -> BTreeMap<u64, Bytes>;

    /// The records that were handed out and never begun.
    fn put_back(&self) -> BTreeMap<u64, Bytes>;

    /// The number of the first record that nothing was done with, if the input has not been run to its end.
    fn not_begun(&self) -> Option<u64>;

    /// Whether the input has ended and all its records are over with.
    fn is_over(&self) -> bool;
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct RecordSource {
    /// Only the one fetch under way takes from the input.
    input: AsyncMutex<Intake>,
    held: Mutex<Held>,
    /// Something was settled: a fetch that waits should look again.
    changed: Notify,
    ledger: Arc<Ledger>,
    kind: Kind,
    max_waiting: usize,
    max_record: usize,
}

/// What has been read and not handed out.
#[derive(Debug)]
struct Intake {
    reader: Reader,
    items: VecDeque<Item>,
    read_at: SystemTime,
    /// The number of the last record that was taken out of here.
    last: u64,
    ended: bool,
}

/// What has been handed out and is not over with.
#[derive(Debug, Default)]
struct Held {
    /// With the worker, by the record's number.
    out: HashMap<u64, Out>,
    /// By when they are due.
    waiting: BTreeMap<(Instant, u64), Tried>,
    /// How many hand-overs there have been.
    tokens: u64,
}

#[derive(Debug)]
struct Out {
    job: Arc<Job>,
    attempt: u32,
    token: u64,
    /// An attempt has begun, this one or one before it.
    begun: bool,
}

/// A record that has been tried so often.
#[derive(Debug)]
struct Tried {
    job: Arc<Job>,
    attempts: u32,
    begun: bool,
}

impl Held {
    fn hand_out(&mut self, number: u64, job: Arc<Job>, attempt: u32, begun: bool) -> Delivery {
        self.tokens += 1;
        let token = self.tokens;
        self.out.insert(number, Out { job: job.clone(), attempt, token, begun });
        Delivery { job, attempt, tag: Tag { session: 0, key: number, token }, lease: None }
    }

    /// What is due, at most `max` of it.
    fn due(&mut self, max: usize, now: Instant) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < max {
            let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) else { break };
            let ((_, number), Tried { job, attempts, begun }) = first.remove_entry();
            deliveries.push(self.hand_out(number, job, attempts + 1, begun));
        }
        deliveries
    }

    fn is_out(&self, tag: &Tag) -> bool {
        self.out.get(&tag.key).is_some_and(|out| out.token == tag.token)
    }

    fn wait(&mut self, number: u64, tried: Tried, until: Instant) {
        self.waiting.insert((until, number), tried);
    }
}

impl RecordSource {
    pub(super) fn new(reader: Reader, ledger: Arc<Ledger>, max_waiting: usize, max_record: usize) -> Self {
        let intake =
            Intake { reader, items: VecDeque::new(), read_at: SystemTime::UNIX_EPOCH, last: 0, ended: false };
        Self {
            input: AsyncMutex::new(intake),
            held: Mutex::default(),
            changed: Notify::new(),
            ledger,
            kind: Kind::new(KIND),
            max_waiting,
            max_record,
        }
    }

    fn open(&self, begun: bool) -> BTreeMap<u64, Bytes> {
        let held = lock(&self.held);
        let out = held
            .out
            .iter()
            .map(|(number, out)| (*number, out.begun || self.ledger.has_begun(*number), &out.job.payload));
        let waiting =
            held.waiting.iter().map(|((_, number), tried)| (*number, tried.begun, &tried.job.payload));
        let open = out.chain(waiting).filter(|(_, has_begun, _)| *has_begun == begun);
        open.map(|(number, _, record)| (number, record.clone())).collect()
    }

    /// What can be handed out now: what is due again first, then what is new.
    fn take(&self, input: &mut Intake, max: usize, now: Instant) -> Vec<Delivery> {
        let mut held = lock(&self.held);
        let mut deliveries = held.due(max, now);
        self.count_waiting(&held);
        while deliveries.len() < max && held.waiting.len() < self.max_waiting {
            let Some(Item::Record { .. }) = input.items.front() else { break };
            if let Some(Item::Record { number, bytes }) = input.items.pop_front() {
                input.last = number;
                let id = JobId::new(number.to_string());
                let job = Job::new(id, self.kind.clone(), bytes, input.read_at);
                deliveries.push(held.hand_out(number, Arc::new(job), 1, false));
            }
        }
        deliveries
    }

    /// Whether the input may be read on, or skipped on, and when else to look again.
    fn outlook(&self, input: &Intake) -> Outlook {
        let held = lock(&self.held);
        Outlook {
            over: input.ended && input.items.is_empty() && held.out.is_empty() && held.waiting.is_empty(),
            may_read: held.waiting.len() < self.max_waiting,
            due: held.waiting.first_key_value().map(|((due, _), _)| *due),
        }
    }

    /// Reads on, or deals with the record at the front if it is one that can't be tried.
    async fn read_on(&self, input: &mut Intake) {
        if let Some(Item::TooLong { .. }) = input.items.front() {
            let room = self.ledger.room().await;
            if let Some(Item::TooLong { number, start, length }) = input.items.pop_front() {
                input.last = number;
                self.ledger.console.advance(length - start.len() as u64);
                self.ledger.failed(number, &start, 0, too_long(length, self.max_record).into(), room);
            }
        } else if input.ended {
            std::future::pending::<()>().await;
        } else {
            let block = input.reader.next().await;
            input.take_in(block, &self.ledger);
        }
    }

    fn apply(&self, settled: &Settled, room: super::output::Room<'_>) {
        let number = settled.tag.key;
        let Some(Out { job, attempt, begun, .. }) = lock(&self.held).out.remove(&number) else { return };
        let begun = begun || self.ledger.has_begun(number);
        let record: &Bytes = &job.payload;
        match settled.settlement {
            Settlement::Ack => self.ledger.done(number, record, attempt, room),
            Settlement::Reject => {
                let reason = settled.reason.clone().unwrap_or_else(|| "was rejected".into());
                self.ledger.failed(number, record, attempt, reason, room);
            }
            Settlement::Retry { after } => {
                self.ledger.open(number, record, attempt, true, room);
                self.wait(number, Tried { job, attempts: attempt, begun }, after);
            }
            Settlement::Release { after } => {
                self.ledger.open(number, record, attempt, false, room);
                self.wait(number, Tried { job, attempts: attempt - 1, begun }, after);
            }
        }
    }

    fn wait(&self, number: u64, tried: Tried, after: Duration) {
        let mut held = lock(&self.held);
        held.wait(number, tried, Instant::now() + after);
        self.count_waiting(&held);
    }

    fn count_waiting(&self, held: &Held) {
        self.ledger.figures.waiting.store(held.waiting.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

struct Outlook {
    over: bool,
    may_read: bool,
    due: Option<Instant>,
}

impl Intake {
    fn take_in(&mut self, block: Option<Block>, ledger: &Ledger) {
        let Some(Block { items, end, read_at }) = block else {
            self.ended = true;
            return;
        };
        self.items.extend(items);
        self.read_at = read_at;
        self.ended |= end.is_some();
        if let Some(Err(error)) = end {
            // What has been read is still run.
            ledger.trouble(Trouble::Input(error));
        }
    }
}

impl Records for RecordSource {
    fn unfinished(&self) -> BTreeMap<u64, Bytes> {
        self.open(true)
    }

    fn put_back(&self) -> BTreeMap<u64, Bytes> {
        self.open(false)
    }

    fn not_begun(&self) -> Option<u64> {
        let input = self.input.try_lock().ok()?;
        if input.ended && input.items.is_empty() { None } else { Some(input.last + 1) }
    }

    fn is_over(&self) -> bool {
        self.input.try_lock().is_ok_and(|input| self.outlook(&input).over)
    }
}

#[async_trait]
impl Source for RecordSource {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let mut input = self.input.lock().await;
        let until = Instant::now() + wanted.wait;
        loop {
            if self.ledger.is_closed() {
                return Err(Error::new(ErrorKind::Closed, "nothing more is to be begun"));
            }
            let now = Instant::now();
            let deliveries = self.take(&mut input, wanted.max.get(), now);
            let outlook = self.outlook(&input);
            if !deliveries.is_empty() || now >= until {
                return Ok(deliveries);
            }
            if outlook.over {
                return Err(Error::new(
                    ErrorKind::Closed,
                    "the input has ended and all its records are over with",
                ));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(deliveries),
                () = self.read_on(&mut input), if outlook.may_read => {}
                () = self.changed.notified() => {}
                () = sleep_until(outlook.due.map_or(until, |due| due.min(until))) => {}
            }
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let mut stale = Stale::default();
        for settled in settled {
            if !lock(&self.held).is_out(&settled.tag) {
                stale.0.push(settled.tag);
                continue;
            }
            // After this nothing waits, so a settlement is applied whole or not at all.
            let room = self.ledger.room().await;
            self.apply(settled, room);
        }
        self.changed.notify_one();
        Ok(stale)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::num::NonZeroUsize;

    use super::super::output::{Printer, Style};
    use super::super::progress::{Console, Figures, Show};
    use super::*;
    use crate::cli::records::{Format, Input};

    /// A source of these lines, of which at most two may wait to be tried again.
    fn source(name: &str, lines: &str) -> RecordSource {
        let path = std::env::temp_dir().join(format!("tidegate-source-{}-{name}", std::process::id()));
        std::fs::File::create(&path).and_then(|mut file| file.write_all(lines.as_bytes())).expect("a file");
        let input = Input::open(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it was");
        let figures = Arc::new(Figures::new());
        let console = Arc::new(Console::new(Show::Never, None, figures.clone()));
        let style = Style { json: false, tag: false };
        let (printer, _) = Printer::start(style, console.clone(), || ()).expect("a thread");
        let format = Format { separator: b'\n', keep_empty: false, max_bytes: 8 };
        let reader = Reader::start(input, format).expect("a thread");
        RecordSource::new(reader, Arc::new(Ledger::new(console, figures, printer)), 2, 8)
    }

    impl RecordSource {
        /// At most `max`, as text with the number of the attempt; waits a minute for the first.
        async fn get(&self, max: usize) -> Result<Vec<(String, Delivery)>, ErrorKind> {
            let wanted = FetchRequest::new(NonZeroUsize::new(max).expect("some"), Duration::from_secs(60));
            let fetched =
                self.fetch(&wanted, &CancellationToken::new()).await.map_err(|error| error.kind())?;
            let shown = |delivery: Delivery| {
                let text = String::from_utf8_lossy(&delivery.job.payload).into_owned();
                (format!("{text}.{}", delivery.attempt), delivery)
            };
            Ok(fetched.into_iter().map(shown).collect())
        }

        async fn tell(&self, delivery: &Delivery, settlement: Settlement) -> Vec<Tag> {
            self.settle(&[Settled::new(delivery.tag, settlement)]).await.expect("it can't fail").0
        }
    }

    fn names(fetched: &[(String, Delivery)]) -> Vec<&str> {
        fetched.iter().map(|(name, _)| name.as_str()).collect()
    }

    const NOW: Duration = Duration::ZERO;

    #[tokio::test]
    async fn records_are_handed_out_as_asked_for_and_the_end_comes_when_all_are_over_with() {
        let source = source("end", "a\nb\n\nc\n");
        let mut first = source.get(2).await.expect("records");
        assert_eq!(names(&first), ["a.1", "b.1"]);
        assert_eq!(source.not_begun(), Some(3));
        first.extend(source.get(5).await.expect("records"));
        assert_eq!(first[2].1.job.id.as_str(), "4", "its line");
        assert_eq!((source.put_back().len(), source.is_over()), (3, false), "no attempt has begun");
        for (_, delivery) in &first {
            source.ledger.begin(delivery.tag.key, delivery.job.payload.clone(), 1);
        }
        assert_eq!((source.unfinished().len(), source.put_back().len()), (3, 0));
        for (_, delivery) in &first {
            assert_eq!(source.tell(delivery, Settlement::Ack).await, []);
        }
        assert_eq!(source.get(1).await.expect_err("the end"), ErrorKind::Closed);
        assert!(source.is_over() && source.unfinished().is_empty() && source.not_begun().is_none());
    }

    #[tokio::test]
    async fn what_failed_comes_again_before_what_is_new_and_what_was_released_is_not_counted() {
        let source = source("again", "a\nb\nc\n");
        let first = source.get(2).await.expect("records");
        source.tell(&first[0].1, Settlement::Retry { after: NOW }).await;
        source.tell(&first[1].1, Settlement::Release { after: NOW }).await;
        assert_eq!(names(&source.get(3).await.expect("records")), ["a.2", "b.1", "c.1"]);
    }

    #[tokio::test]
    async fn nothing_new_is_begun_while_too_many_wait() {
        let source = source("wait", "a\nb\nc\n");
        let first = source.get(2).await.expect("records");
        let later = Duration::from_millis(30);
        source.tell(&first[0].1, Settlement::Retry { after: later }).await;
        source.tell(&first[1].1, Settlement::Retry { after: 2 * later }).await;
        assert_eq!(names(&source.get(1).await.expect("records")), ["a.2"], "not c");
        assert_eq!(names(&source.get(1).await.expect("records")), ["c.1"], "now that one has gone");
    }

    #[tokio::test]
    async fn a_settlement_counts_once() {
        let source = source("stale", "a\n");
        let first = source.get(1).await.expect("a record").remove(0).1;
        assert_eq!(source.tell(&first, Settlement::Retry { after: NOW }).await, []);
        assert_eq!(source.tell(&first, Settlement::Ack).await, [first.tag], "that hand-over is over");
        let second = source.get(1).await.expect("a record").remove(0).1;
        assert_eq!(source.tell(&first, Settlement::Ack).await, [first.tag], "though the record is out again");
        assert_eq!(source.tell(&second, Settlement::Reject).await, []);
        assert_eq!(source.ledger.figures.over(), (0, 1));
    }

    #[tokio::test]
    async fn a_record_that_is_too_long_fails_in_its_turn() {
        let source = source("long", "a\n123456789\nb\n");
        assert_eq!(names(&source.get(9).await.expect("records")), ["a.1"]);
        assert_eq!(source.ledger.figures.over(), (0, 0));
        assert_eq!(names(&source.get(9).await.expect("records")), ["b.1"]);
        assert_eq!(source.ledger.figures.over(), (0, 1));
    }
}
