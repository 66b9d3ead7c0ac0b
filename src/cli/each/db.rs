//! The file of `--db`: opening and locking it, what is noted of the input, and how a record is packed into a job.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

use super::source::KIND;
use crate::backend::sqlite::{Durability, Sqlite};
use crate::cli::Exit;
use crate::cli::records::Item;
use crate::enqueue::NewJob;
use crate::error::{Chain, Error, ErrorKind};
use crate::inspect::{Inspect as _, JobQuery, JobState, Manage as _};
use crate::retry::Fnv;

/// The queue that the records are in, so that they meet no other job of the file.
pub(super) const QUEUE: &str = "each";

/// The name of the note about the input.
const NOTE: &str = "each input";

/// What stands before a record in its job takes at most so many bytes.
const PREFIX_BYTES: usize = 24;

/// A lease that practically never ends: nobody else may have what is out (invariant 2).
const LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How many dead jobs are looked at together.
const PAGE: usize = 1000;

/// How far the input has been taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Taken {
    /// The number of the last record.
    pub(super) last: u64,
    /// A digest of all records so far: tells another input from this one.
    pub(super) digest: u64,
    /// How many were too long to be taken in.
    pub(super) too_long: u64,
}

impl Taken {
    pub(super) fn with(mut self, item: &Item) -> Self {
        let (number, bytes) = match item {
            Item::Record { number, bytes } => (*number, bytes),
            Item::TooLong { number, start, .. } => {
                self.too_long += 1;
                (*number, start)
            }
        };
        self.last = number;
        let mut digest = Fnv(self.digest);
        digest.write(&number.to_le_bytes());
        digest.write(bytes);
        self.digest = digest.finish();
        self
    }
}

/// The file, locked.
#[derive(Debug)]
pub(super) struct Db {
    pub(super) store: Sqlite,
    pub(super) name: String,
    /// Held until the process ends.
    _lock: File,
}

impl Db {
    /// Opens the file, unless another process runs records from it.
    pub(super) fn open(path: &Path, max_record: usize) -> Result<Self, (Exit, String)> {
        let name = path.display().to_string();
        let cant = |why: String| (Exit::Output, format!("--db {name} can't be used: {why}"));
        let lock = lock_beside(path).map_err(cant)?;
        let store = Sqlite::builder(path)
            .lease_ttl(LEASE)
            .durability(Durability::Full)
            .max_dead(i64::MAX as usize)
            .max_payload_bytes(max_record + PREFIX_BYTES)
            .open()
            .map_err(|error| cant(Chain(&error).to_string()))?;
        if holds_others(&store).map_err(cant)? {
            return Err(cant("it holds jobs of another sort: name a file of its own".to_owned()));
        }
        Ok(Self { store, name, _lock: lock })
    }

    /// How far the input has been taken in.
    pub(super) async fn taken(&self) -> Result<Taken, Error> {
        let Some(text) = self.store.note(NOTE).await? else { return Ok(Taken::default()) };
        serde_json::from_str(&text).map_err(|error| {
            let what = format!("the note {NOTE:?} in {} makes no sense", self.name);
            Error::new(ErrorKind::Decode, what).caused_by(error)
        })
    }

    /// Takes in records, and notes how far that has come.
    pub(super) async fn take_in(&self, jobs: Vec<NewJob>, taken: Taken) -> Result<(), Error> {
        let note = serde_json::to_string(&taken).unwrap_or_default();
        self.store.enqueue_and_note(jobs, NOTE, note).await
    }

    /// All that have failed for good are to be tried again.
    pub(super) async fn requeue_dead(&self) -> Result<(), Error> {
        let dead = JobQuery::new(JobState::Dead, PAGE).queue(QUEUE);
        loop {
            let dead = self.store.list(&dead).await?;
            if dead.is_empty() {
                return Ok(());
            }
            let requeued = dead.iter().map(|dead| self.store.requeue(&dead.job.id));
            futures_util::future::try_join_all(requeued).await?;
        }
    }
}

/// Whether there are jobs in the file that did not come from here, of which workers may be taking care.
fn holds_others(store: &Sqlite) -> Result<bool, String> {
    if store.has_note(NOTE).map_err(|error| Chain(&error).to_string())? {
        return Ok(false);
    }
    let runtime = Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let counts = runtime.block_on(store.counts()).map_err(|error| Chain(&error).to_string())?;
    Ok(counts.unfinished() + counts.dead + counts.done > 0)
}

/// Refuses a file with records: jobs of another sort among them would be taken for records that have failed.
///
/// # Errors
/// If it has some, or can't be asked.
pub(crate) fn refuse_records(store: &Sqlite) -> Result<(), Error> {
    if store.has_note(NOTE)? {
        let what =
            "the file holds the records of a `tidegate each --db`, which must run them: name another file";
        return Err(Error::invalid(what));
    }
    Ok(())
}

/// A lock beside the file rather than on it: SQLite's own locks end when anybody in the process closes the file.
fn lock_beside(path: &Path) -> Result<File, String> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&beside);
    let file = opened.map_err(|error| {
        let beside = beside.display();
        format!("{beside} can't be opened: {error}: this program must be able to write it and its folder")
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err("another `tidegate each` is running its records: wait for it, or name another file"
                .to_owned())
        }
        Err(TryLockError::Error(error)) => Err(format!("{} can't be locked: {error}", beside.display())),
    }
}

/// A record as a job.
pub(super) fn pack(number: u64, record: &Bytes) -> NewJob {
    let mut payload = BytesMut::with_capacity(PREFIX_BYTES + record.len());
    payload.extend_from_slice(number.to_string().as_bytes());
    payload.extend_from_slice(b"\t");
    payload.extend_from_slice(record);
    NewJob::new(KIND, payload.freeze()).queue(QUEUE)
}

/// The number and the bytes of the record in a job, if there is one.
pub(super) fn unpack(payload: &Bytes) -> Option<(u64, Bytes)> {
    let tab = payload.iter().take(PREFIX_BYTES).position(|byte| *byte == b'\t')?;
    let number = std::str::from_utf8(&payload[..tab]).ok()?.parse().ok()?;
    Some((number, payload.slice(tab + 1..)))
}
