//! Looking at the file without writing: a connection of its own, on which nothing can be changed.
//!
//! In WAL mode whoever reads waits for nobody and keeps nobody waiting: each look is a transaction of its own that
//! sees the file as it was when it began.
//!
//! To read a file that is in use SQLite needs the `-shm` file beside it, and makes it if it can. Where it may not, and
//! there is no `-wal` file either, the file is at rest: all of it is in one place, and is read without locks. Should
//! anybody begin to write meanwhile, the answer is thrown away.

use std::fmt;
use std::io;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::task::JoinSet;

use super::config::{Running, Settings, SqliteBuilder};
use super::failure::{failed, unreadable};
use super::place::Identity;
use super::schema::{self, Found, How};
use super::store::View;
use crate::error::{Error, ErrorKind};
use crate::inspect::{Counts, Inspect, JobQuery, PastAttempt, StoredJob};
use crate::job::JobId;
use crate::sync::{Mutex, lock};

/// How often a file at rest is read anew because somebody has changed it meanwhile, before it is given up.
const TRIES: usize = 10;

/// The jobs in a file, to be looked at only. Made by [`SqliteBuilder::open_to_read`].
///
/// It needs no right to write, changes nothing, waits for nobody who writes and keeps nobody waiting. What time has
/// done since the last who wrote is shown as they would find it: a delayed job that is due is ready, and so is one
/// whose lease has run out, unless that ends it.
///
/// A handle: clones are cheap and share a connection. Its verbs must be called within a tokio runtime; when one of
/// their futures is dropped nothing is left behind.
#[derive(Clone)]
pub struct SqliteReader(Arc<Reader>);

impl fmt::Debug for SqliteReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteReader").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl SqliteBuilder {
    /// Opens the file only to look at what is in it; it must be there. It may be one that this program can't write, and
    /// another may keep it locked for as long as it likes. Of the settings those count that say when time is over:
    /// `lease_ttl`, `crash_limit`, `keep_done`, `clock`; and `busy_timeout` for the moments at which SQLite lets nobody
    /// in at all, as when it mends a file after a crash.
    ///
    /// A file of an older version is brought to the newest first, which takes the right to write.
    ///
    /// Blocks the thread for as long as the disk takes.
    ///
    /// # Errors
    /// As [`open`](Self::open); and [`Denied`](crate::ErrorKind::Denied) where SQLite can't read a file without making
    /// others beside it, which this program may not.
    pub fn open_to_read(self) -> Result<SqliteReader, Error> {
        self.check()?;
        let reader = Reader::new(&self, self.clock.start());
        let found = reader.ask(&format!("opening {}", self.path.display()), &schema::found)?;
        if found == Found::Empty || !schema::is_newest(found, &self.path, &self.how)? {
            drop(schema::open(&self.path, &self.how)?);
        }
        Ok(SqliteReader(Arc::new(reader)))
    }
}

#[async_trait]
impl Inspect for SqliteReader {
    async fn counts(&self) -> Result<Counts, Error> {
        self.0.clone().counts().await
    }

    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error> {
        self.0.clone().find(id).await
    }

    async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
        self.0.clone().list(wanted).await
    }

    /// As that of [`Sqlite`](super::Sqlite).
    async fn history(&self, id: &JobId) -> Result<Vec<PastAttempt>, Error> {
        self.0.clone().history(id).await
    }
}

pub(super) struct Reader {
    path: PathBuf,
    /// The same, whatever the working folder is by then.
    absolute: PathBuf,
    how: How,
    settings: Settings,
    clock: Running,
    /// Made when it is first asked for: many never are.
    connection: Mutex<Option<(Connection, Option<Identity>)>>,
}

impl Reader {
    pub(super) fn new(builder: &SqliteBuilder, clock: Running) -> Self {
        let SqliteBuilder { path, how, settings, .. } = builder.clone();
        let absolute = path::absolute(&path).unwrap_or_else(|_| path.clone());
        Self { path, absolute, how, settings, clock, connection: Mutex::default() }
    }

    pub(super) async fn counts(self: Arc<Self>) -> Result<Counts, Error> {
        self.look("counting jobs", |view| view.counts()).await
    }

    pub(super) async fn find(self: Arc<Self>, id: &JobId) -> Result<Option<StoredJob>, Error> {
        let id = id.clone();
        self.look("looking for a job", move |view| view.find(&id)).await
    }

    pub(super) async fn list(self: Arc<Self>, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
        let wanted = wanted.clone();
        self.look("listing jobs", move |view| view.list(&wanted)).await
    }

    pub(super) async fn history(self: Arc<Self>, id: &JobId) -> Result<Vec<PastAttempt>, Error> {
        let id = id.clone();
        self.look("asking for a job's attempts", move |view| view.history(&id)).await
    }

    /// Looks, on the blocking pool of whoever asks. Dropped before it has begun, it is not done.
    async fn look<T: Send + 'static>(
        self: Arc<Self>,
        doing: &'static str,
        act: impl Fn(&View<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let mut looking = JoinSet::new();
        looking.spawn_blocking(move || {
            self.ask(doing, &|connection| act(&View::new(connection, &self.settings, self.clock.now())))
        });
        match looking.join_next().await {
            Some(Ok(answer)) => answer,
            _ => {
                let text = format!("{doing} failed: whoever was to do it panicked, or got no thread");
                Err(Error::new(ErrorKind::Internal, text))
            }
        }
    }

    /// Blocks for as long as the disk takes.
    fn ask<T>(&self, doing: &str, act: &dyn Fn(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        let mut kept = lock(&self.connection);
        let mut answer = self.in_use(&mut kept, act);
        if answer.is_ok() {
            return answer.map_err(|error| failed(doing, error));
        }
        // The next look begins anew, whatever was wrong with this one.
        *kept = None;
        for _ in 0..TRIES {
            let Err(error) = &answer else { break };
            if !may_not_make_files(error) {
                break;
            }
            match self.at_rest(act) {
                Ok(Some(read)) => return Ok(read),
                // Somebody has begun to write: by now there may be all that it takes.
                Ok(None) => answer = self.in_use(&mut kept, act),
                Err(error) => return Err(unreadable(doing, &self.path, error)),
            }
        }
        answer.map_err(|error| match may_not_make_files(&error) {
            true => unreadable(doing, &self.path, error),
            false => failed(doing, error),
        })
    }

    fn in_use<T>(
        &self,
        kept: &mut Option<(Connection, Option<Identity>)>,
        act: &dyn Fn(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        // Another file may have taken the place of the one that was read: what counts is what is there.
        let there = Identity::at(&self.absolute).ok();
        kept.take_if(|(_, opened)| *opened != there);
        let (connection, _) = match kept {
            Some(kept) => kept,
            None => kept.insert((schema::open_to_read(&self.path, self.how.busy_timeout, false)?, there)),
        };
        // Deferred: it begins with the first that is read, and ends with the look.
        let look = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
        let answer = act(&look)?;
        look.rollback()?;
        Ok(answer)
    }

    /// `None` if it is not at rest.
    fn at_rest<T>(&self, act: &dyn Fn(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
        let Some(before) = Rest::of(&self.path) else { return Ok(None) };
        let answer =
            schema::open_to_read(&self.path, Duration::ZERO, true).and_then(|connection| act(&connection));
        // What was wrong may come of somebody's writing.
        if Rest::of(&self.path).is_none_or(|after| after != before) {
            return Ok(None);
        }
        answer.map(Some)
    }
}

/// Whether SQLite would need files beside the one that it reads.
fn may_not_make_files(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// By what it can be told that a file has not been changed.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    length: u64,
    modified: SystemTime,
}

impl Rest {
    /// `None` if somebody may be writing: in WAL mode nobody does without a `-wal` file.
    fn of(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let mut wal = path.clone().into_os_string();
        wal.push("-wal");
        let there = Path::new(&wal).symlink_metadata();
        if there.err().is_none_or(|error| error.kind() != io::ErrorKind::NotFound) {
            return None;
        }
        let metadata = path.metadata().ok()?;
        Some(Self { length: metadata.len(), modified: metadata.modified().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::sqlite::Sqlite;
    use crate::backend::sqlite::tests::File;

    fn count(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM tidegate_notes", [], |row| row.get(0))
    }

    #[test]
    fn what_was_read_while_somebody_began_to_write_is_thrown_away() {
        let file = File::new();
        drop(file.open());
        let builder = Sqlite::builder(&file.0);
        let reader = Reader::new(&builder, builder.clock.start());
        let writes = |sql: &'static str| {
            let writer = file.connect();
            move || writer.execute_batch(sql).expect("written")
        };
        assert_eq!(reader.at_rest(&count).expect("read"), Some(0));
        // It is still there, with its -wal file.
        let write = writes("INSERT INTO tidegate_notes VALUES ('a', '')");
        let answer = reader.at_rest(&|connection| {
            write();
            count(connection)
        });
        assert_eq!(answer.expect("read"), None);
        assert_eq!(reader.at_rest(&count).expect("not read"), None, "it is not at rest");
        drop(write);
        // It comes and goes while the file is read: what it has read may be of both.
        let answer = reader.at_rest(&|connection| {
            writes("INSERT INTO tidegate_notes VALUES ('b', '')")();
            count(connection)
        });
        assert!(matches!(answer, Ok(None)), "{answer:?}");
        assert_eq!(reader.at_rest(&count).expect("read"), Some(2));
    }
}
