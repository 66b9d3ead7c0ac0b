//! What is known of the records in hand, and what is done when one is settled: [`Ledger`].
//!
//! The handler enters an attempt and how its child ended; the source, which is told what becomes of the
//! record, closes the entry: it is counted, shown and, if it failed for good, kept. So what is shown is what
//! was settled, never a guess of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::output::{Fate, Finished, Printer, Room};
use super::progress::{Console, Figures};
use super::summary::Summary;
use crate::cli::child::exec::Ended;
use crate::cli::stdout::write_whole;
use crate::cli::text::{count, excerpt, span};
use crate::sync::{Mutex, lock};

/// One for a run.
#[derive(Debug)]
pub(super) struct Ledger {
    /// By the record's number: at most as many as there are slots.
    attempts: Mutex<BTreeMap<u64, Attempt>>,
    summary: Mutex<Summary>,
    trouble: Mutex<Option<Trouble>>,
    pub(super) figures: Arc<Figures>,
    pub(super) console: Arc<Console>,
    pub(super) printer: Printer,
    keep: Option<Keep>,
    stop_on_failure: bool,
}

/// Where the records go that are to be run again: those that failed for good or were not finished.
#[derive(Debug)]
pub(super) struct Keep {
    pub(super) file: File,
    pub(super) name: String,
    /// What stands after each, as in the input.
    pub(super) separator: u8,
}

/// Something that ends the run before its time: what runs is finished, and nothing more is begun. The first
/// stands.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The input can't be read any further. What has been read is still begun.
    Input(io::Error),
    /// The command can't be started.
    Command(String),
    /// The file of failed records can't be written.
    Output(String),
    /// A record failed, and `--stop-on-failure` was given.
    Failure,
}

/// An attempt whose settlement is still to come.
#[derive(Debug)]
struct Attempt {
    record: Bytes,
    number: u32,
    since: Instant,
    child: Option<u32>,
    ended: Option<Ended>,
}

impl Ledger {
    pub(super) fn new(console: Arc<Console>, figures: Arc<Figures>, printer: Printer) -> Self {
        let (attempts, summary, trouble) = Default::default();
        Self { attempts, summary, trouble, figures, console, printer, keep: None, stop_on_failure: false }
    }

    /// The same, with a file for the records that fail for good.
    pub(super) fn keeping(mut self, keep: Option<Keep>) -> Self {
        self.keep = keep;
        self
    }

    /// The same, stopping at the first such record if so `wanted`.
    pub(super) fn stopping_on_failure(mut self, wanted: bool) -> Self {
        self.stop_on_failure = wanted;
        self
    }

    /// An attempt begins.
    pub(super) fn begin(&self, number: u64, record: Bytes, attempt: u32) {
        let entry = Attempt { record, number: attempt, since: Instant::now(), child: None, ended: None };
        lock(&self.attempts).insert(number, entry);
        self.figures.running.fetch_add(1, Ordering::Relaxed);
    }

    /// Its child has started.
    pub(super) fn started(&self, number: u64, child: u32) {
        if let Some(attempt) = lock(&self.attempts).get_mut(&number) {
            attempt.child = Some(child);
        }
    }

    /// Its child has ended.
    pub(super) fn ended(&self, number: u64, ended: Ended) {
        if let Some(attempt) = lock(&self.attempts).get_mut(&number) {
            attempt.ended = Some(ended);
        }
    }

    /// Whether an attempt at the record has begun that has not been settled.
    pub(super) fn has_begun(&self, number: u64) -> bool {
        lock(&self.attempts).contains_key(&number)
    }

    /// How many attempts have not been settled.
    pub(super) fn in_hand(&self) -> usize {
        lock(&self.attempts).len()
    }

    /// Waits until the output of one more record can be taken.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn room(&self) -> Room<'_> {
        self.printer.room().await
    }

    /// The record is done.
    pub(super) fn done(&self, number: u64, record: &Bytes, attempt: u32, room: Room<'_>) {
        lock(&self.summary).done += 1;
        self.figures.done.fetch_add(1, Ordering::Relaxed);
        self.over(number, record, attempt, Fate::Done, room);
    }

    /// The record failed for good. Attempt 0 is that of a record that could not be tried.
    pub(super) fn failed(&self, number: u64, record: &Bytes, attempt: u32, reason: Arc<str>, room: Room<'_>) {
        lock(&self.summary).failed(number, attempt, &reason, || excerpt(record));
        self.figures.failed.fetch_add(1, Ordering::Relaxed);
        if attempt > 0 {
            self.keep(record);
        }
        self.over(number, record, attempt, Fate::Failed(reason), room);
        if self.stop_on_failure {
            self.trouble(Trouble::Failure);
        }
    }

    /// The attempt is over and the record is not: it will be tried `again`, or was stopped.
    pub(super) fn open(&self, number: u64, record: &Bytes, attempt: u32, again: bool, room: Room<'_>) {
        lock(&self.summary).retried += u64::from(again);
        self.close(number, record, attempt, Fate::Open, room);
    }

    /// Something ends the run before its time.
    pub(super) fn trouble(&self, trouble: Trouble) {
        let mut first = lock(&self.trouble);
        if !matches!(*first, Some(Trouble::Command(_) | Trouble::Output(_) | Trouble::Failure)) {
            *first = Some(trouble);
        }
    }

    /// Whether there is a reason to begin nothing more.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(*lock(&self.trouble), None | Some(Trouble::Input(_)))
    }

    /// The first trouble, and the summary, in which the `unfinished` records are neither done nor failed, and those
    /// that were `put_back` have not been begun.
    pub(super) fn close_books(
        &self,
        unfinished: &BTreeMap<u64, Bytes>,
        put_back: &BTreeMap<u64, Bytes>,
    ) -> (Option<Trouble>, Summary) {
        let mut summary = std::mem::take(&mut *lock(&self.summary));
        for (number, record) in unfinished {
            summary.unfinished(*number, || excerpt(record));
            self.keep(record);
        }
        for (number, record) in put_back {
            summary.put_back(*number, || excerpt(record));
            self.keep(record);
        }
        (lock(&self.trouble).take(), summary)
    }

    /// What is in hand, for a person.
    pub(super) fn report(&self) -> String {
        let mut text = format!("tidegate: {}\n", self.figures);
        for (number, attempt) in &*lock(&self.attempts) {
            let Attempt { record, number: attempt, since, child, ended } = attempt;
            let child = match (child, ended) {
                (_, Some(_)) => "ended".to_owned(),
                (Some(child), None) => format!("pid {child}"),
                (None, None) => "starting".to_owned(),
            };
            let (age, start) = (span(since.elapsed()), excerpt(record));
            // Writing to a string can't fail.
            let _ =
                writeln!(text, "tidegate: record {number}: {child}, attempt {attempt}, for {age}: {start}");
        }
        text
    }

    fn over(&self, number: u64, record: &Bytes, attempt: u32, fate: Fate, room: Room<'_>) {
        // The separator counts too.
        self.console.advance(record.len() as u64 + 1);
        self.close(number, record, attempt, fate, room);
    }

    fn close(&self, number: u64, record: &Bytes, attempt: u32, fate: Fate, room: Room<'_>) {
        let entry = lock(&self.attempts).remove(&number);
        if entry.is_some() {
            self.figures.running.fetch_sub(1, Ordering::Relaxed);
        }
        let ended = entry.and_then(|entry| entry.ended);
        room.print(Finished { number, record: record.clone(), attempt, ended, fate });
    }

    fn keep(&self, record: &Bytes) {
        let Some(keep) = &self.keep else { return };
        let mut piece = record.to_vec();
        piece.push(keep.separator);
        if let Err(error) = write_whole(&keep.file, &piece) {
            let name = &keep.name;
            self.trouble(Trouble::Output(format!(
                "{name}, which keeps the failed records, can't be written: {error}"
            )));
        }
    }
}

/// Why a record of `length` bytes was not tried.
pub(super) fn too_long(length: u64, max: usize) -> String {
    format!("is {} bytes long, more than --max-record allows ({})", count(length), count(max as u64))
}
