//! Jobs from JSON lines: read block by block, checked line by line, enqueued batch by batch.
//!
//! Invariants:
//!
//! 1. What has been read and makes sense is enqueued before the next block is waited for, so that a producer that
//!    writes a line now and then finds its job at once.
//! 2. What is held depends on the bounds below, not on how long the input is (P2).
//! 3. Without `--keep-going`, all lines before the first bad one are enqueued, and nothing from it on.

use std::path::Path;

use serde::Serialize;

use super::draft::{Draft, MAX_PAYLOAD_BYTES};
use super::line::draft;
use super::{EnqueueArgs, enqueue, shown};
use crate::cli::excerpt::escaped;
use crate::cli::records::{BLOCK_BYTES, Format, Input, Item, Splitter};
use crate::cli::stdout::{json_line, print};
use crate::cli::store::{Purpose, Store};
use crate::cli::text::count;
use crate::cli::{Exit, refuse};
use crate::enqueue::NewJob;

/// The longest line: the largest payload in Base64, and as much again of other fields and blanks.
const MAX_LINE_BYTES: usize = 2 * MAX_PAYLOAD_BYTES;

/// The most jobs that are enqueued in one transaction: others who wait for the file wait for no longer.
const MAX_BATCH: usize = 1_000;

/// The most bytes of payloads in it, beside the last one's.
const MAX_BATCH_BYTES: usize = MAX_PAYLOAD_BYTES;

/// A line that was refused, as `--json` shows it.
#[derive(Serialize)]
struct Refused<'a> {
    line: u64,
    ok: bool,
    error: &'a str,
}

/// Enqueues what the lines of `path` say.
pub(super) fn run(args: &EnqueueArgs, path: &Path) -> Result<Exit, Exit> {
    let mut input = Input::open(path).map_err(|error| {
        refuse(Exit::Input, format!("{} can't be read: {error}", escaped(&path.display().to_string())))
    })?;
    let store = if args.dry_run { None } else { Some(Store::open(&args.source, Purpose::Fill)?) };
    let name = escaped(input.name());
    let mut feed = Feed {
        args,
        store: store.as_ref(),
        defaults: args.draft(),
        name: &name,
        batch: Vec::new(),
        batch_bytes: 0,
        taken: 0,
        refused: 0,
    };
    let format = Format { separator: b'\n', keep_empty: false, max_bytes: MAX_LINE_BYTES };
    let (mut splitter, mut buffer) = (Splitter::new(format), vec![0; BLOCK_BYTES]);
    loop {
        let block = input.read(&mut splitter, &mut buffer);
        for item in block.items {
            feed.item(item)?;
        }
        feed.flush()?;
        match block.end {
            None => {}
            Some(Ok(())) => return Ok(feed.end()),
            Some(Err(error)) => {
                let taken = feed.taken();
                return Err(refuse(
                    Exit::Input,
                    format!("{name} can't be read any further: {error}; {taken}"),
                ));
            }
        }
    }
}

/// What is between the input and the queue.
struct Feed<'a> {
    args: &'a EnqueueArgs,
    /// `None` in a dry run.
    store: Option<&'a Store>,
    defaults: Draft,
    name: &'a str,
    /// Each with the number of its line.
    batch: Vec<(u64, NewJob)>,
    batch_bytes: usize,
    taken: u64,
    refused: u64,
}

impl Feed<'_> {
    fn item(&mut self, item: Item) -> Result<(), Exit> {
        let (number, job) = match item {
            Item::Record { bytes, .. } if bytes.trim_ascii().is_empty() => return Ok(()),
            Item::Record { number, bytes } => {
                (number, draft(&bytes).and_then(|line| line.or(&self.defaults).job()))
            }
            Item::TooLong { number, length, .. } => (number, Err(too_long(length))),
        };
        match job {
            Ok(job) => {
                self.batch_bytes += job.payload.len();
                self.batch.push((number, job));
                if self.batch.len() >= MAX_BATCH || self.batch_bytes >= MAX_BATCH_BYTES {
                    self.flush()?;
                }
                Ok(())
            }
            Err(why) => self.refuse(number, &why),
        }
    }

    fn refuse(&mut self, number: u64, why: &str) -> Result<(), Exit> {
        self.refused += 1;
        let goes_on = self.args.keep_going || self.args.dry_run;
        if !goes_on {
            self.flush()?;
        }
        if self.args.json {
            print(&json_line(&Refused { line: number, ok: false, error: why }))?;
        } else {
            let (name, why) = (self.name, escaped(why));
            refuse(Exit::Failed, format!("line {number} of {name}: {why}"));
        }
        if goes_on {
            return Ok(());
        }
        Err(refuse(Exit::Failed, format!("stopped there: {}", self.taken())))
    }

    /// Enqueues what is in the batch.
    fn flush(&mut self) -> Result<(), Exit> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (Some((first, _)), Some((last, _))) = (batch.first(), batch.last()) else { return Ok(()) };
        let (first, last, length) = (*first, *last, batch.len() as u64);
        if let Some(store) = self.store {
            let (marks, jobs): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|(number, job)| ((number, job.unique.is_some()), job)).unzip();
            let enqueued = enqueue(store, jobs).map_err(|exit| {
                let (name, taken) = (self.name, self.taken());
                refuse(exit, format!("nothing of lines {first} to {last} of {name} is enqueued; {taken}"))
            })?;
            self.taken += length;
            let lines = enqueued.iter().zip(marks);
            let lines = lines.flat_map(|(one, (number, keyed))| shown(one, Some(number), keyed, self.args));
            print(&lines.collect::<Vec<u8>>())
        } else {
            self.taken += length;
            Ok(())
        }
    }

    /// What has become of the lines so far.
    fn taken(&self) -> String {
        match self.taken {
            0 => "nothing before that is enqueued".to_owned(),
            1 => "the 1 job before that is enqueued".to_owned(),
            taken => format!("the {} jobs before that are enqueued", count(taken)),
        }
    }

    fn end(&self) -> Exit {
        let exit = if self.refused == 0 { Exit::Done } else { Exit::Failed };
        let (taken, refused) = (count(self.taken), count(self.refused));
        if self.store.is_none() {
            refuse(exit, format!("good lines: {taken}, bad lines: {refused}; nothing is enqueued"))
        } else if self.refused > 0 {
            refuse(exit, format!("jobs enqueued: {taken}, lines refused: {refused}"))
        } else {
            exit
        }
    }
}

fn too_long(length: u64) -> String {
    format!("it has {} bytes: at most {} are allowed", count(length), count(MAX_LINE_BYTES as u64))
}
