//! Whether the file that is open is still the one at its path.
//!
//! On Unix a file can be removed, or another one put in its place, while it is open. SQLite goes on with the one that it
//! has: what is written there is acknowledged, seen by nobody else, and gone with the last process that has it open. (Only
//! when it closes the file it looks itself, and leaves alone what is beside the path then.)
//!
//! So it is looked now and then. Once it was found gone nothing is written any more: even if it came back, others may have
//! put there what is not known here.

use std::io;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::lease::later;
use crate::sync::{Mutex, lock};

/// A file by its device and its number there, which are its own as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl Identity {
    /// Of what is at `path` now.
    #[cfg(unix)]
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).map(|found| Self(found.dev(), found.ino()))
    }

    /// Elsewhere a file that is open can't be taken away.
    #[cfg(not(unix))]
    pub(super) fn at(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The path of a file that is open, and which file that was.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// `None` if there is nothing to be looked for: it is in memory only.
    opened: Option<Identity>,
    every: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    next: Instant,
    gone: Option<Gone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    Removed,
    Replaced,
}

impl Place {
    /// That of the file that was opened as `path` just now. [`check`](Self::check) looks there no more often than `every`
    /// so long.
    pub(super) fn of(path: &Path, connection: &Connection, every: Duration) -> Self {
        // The working folder may change. A path that is a URI is none to the system, so SQLite says where that is.
        let given = path::absolute(path).ok().and_then(|path| Some((Identity::at(&path).ok()?, path)));
        let found = given.or_else(|| {
            let path = PathBuf::from(connection.path()?);
            Some((Identity::at(&path).ok()?, path))
        });
        let (opened, path) = found.map_or((None, path.to_owned()), |(opened, path)| (Some(opened), path));
        let seen = Mutex::new(Seen { next: later(Instant::now(), every), gone: None });
        Self { path, opened, every, seen }
    }

    /// Whether it is still there, as of the last look: there is another if that was long ago.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub(super) fn check(&self) -> Result<(), Error> {
        let due = lock(&self.seen).next <= Instant::now();
        if due { self.look() } else { self.known() }
    }

    /// Looks whether it is still there: one system call, which takes about a microsecond.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), from then on for good. What keeps it from being looked at says nothing.
    pub(super) fn look(&self) -> Result<(), Error> {
        if let Some(opened) = self.opened {
            let gone = match Identity::at(&self.path) {
                Ok(found) => (found != opened).then_some(Gone::Replaced),
                Err(error) => {
                    let missing = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
                    missing.contains(&error.kind()).then_some(Gone::Removed)
                }
            };
            let mut seen = lock(&self.seen);
            seen.gone = seen.gone.or(gone);
            seen.next = later(Instant::now(), self.every);
        }
        self.known()
    }

    fn known(&self) -> Result<(), Error> {
        let Some(gone) = lock(&self.seen).gone else { return Ok(()) };
        let (path, every) = (self.path.display(), self.every);
        let what = match gone {
            Gone::Removed => "was removed",
            Gone::Replaced => "was replaced by another file",
        };
        let text = format!(
            "the file {path} {what} while it was in use: what is written to the old one is lost with it, so nothing is any \
             more, and what was in the last moment (about {every:?}) is lost; start this program again to use what is \
             there now, or a new file"
        );
        Err(Error::new(ErrorKind::NotFound, text))
    }
}
