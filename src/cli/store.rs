//! How a command finds its queue: `--source`, a daemon's configuration, or a file in the current folder.
//!
//! A URL may carry credentials, so none is ever repeated; the path of a file is.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::each::db::refuse_records;
use super::excerpt::escaped;
use super::run::config::url_of;
use super::{Exit, refuse};
use crate::backend::sqlite::Sqlite;
use crate::backend::{self, Backend};
use crate::enqueue::Enqueue;
use crate::error::{Chain, Error, ErrorKind};
use crate::inspect::{Inspect, Manage};

/// The endings by which a path without a scheme is taken for a file of ours.
const ENDINGS: [&str; 3] = [".sqlite", ".sqlite3", ".db"];

/// The queue when nothing names one.
const DEFAULT: &str = "sqlite:tidegate.sqlite";

/// Which queue.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The queue: sqlite:PATH, a PATH that ends in .sqlite, .sqlite3 or .db, or redis://HOST:PORT/DATABASE [default: that of --config, or else
    /// sqlite:tidegate.sqlite]
    #[arg(
        short,
        long,
        value_name = "URL",
        env = "TIDEGATE_SOURCE",
        hide_env_values = true,
        global = true,
        help_heading = "Queue"
    )]
    source: Option<String>,

    /// The configuration of a daemon (`tidegate run`), whose queue is meant unless --source names one
    #[arg(short, long, value_name = "FILE", env = "TIDEGATE_CONFIG", global = true, help_heading = "Queue")]
    config: Option<PathBuf>,
}

/// What a queue is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To look at it: no right to write is needed, and nobody is waited for.
    Look,
    /// To change what is in it.
    Change,
    /// To put something into it. If it is not there it is made, which is said to whoever sits at a terminal.
    Fill,
}

/// An open queue, and a runtime for what is asked of it.
///
/// The runtime has a thread of its own, so that a connection is looked after while this one reads or writes.
pub(super) struct Store {
    opened: Opened,
    runtime: Runtime,
}

enum Opened {
    Whole(Backend),
    ToLook(Arc<dyn Inspect>),
}

impl Store {
    /// Opens the queue. When that can't be done, says why, and returns how to end.
    pub(super) fn open(args: &SourceArgs, purpose: Purpose) -> Result<Self, Exit> {
        let (url, adopt) = match (&args.source, &args.config) {
            (Some(source), _) => (url(source).map_err(|why| refuse(Exit::Usage, why))?, false),
            (None, Some(config)) => url_of(config).map_err(|refused| refuse(Exit::Config, refused))?,
            (None, None) => (DEFAULT.to_owned(), false),
        };
        let file = backend::sqlite_path(&url).map(Path::new);
        let made = file.is_some_and(|file| file.symlink_metadata().is_err());
        if let Some(file) = file.filter(|_| made && purpose != Purpose::Fill) {
            let file = escaped(&file.display().to_string());
            return Err(refuse(
                Exit::Unavailable,
                format!(
                    "there is no queue {file}: name another one with --source or TIDEGATE_SOURCE, or a daemon's \
                     configuration with --config or TIDEGATE_CONFIG (`tidegate enqueue` makes one)"
                ),
            ));
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime
            .map_err(|error| refuse(Exit::Internal, format!("the system gives no runtime: {error}")))?;
        let opened = runtime.block_on(async {
            match file {
                Some(file) => open_file(file, adopt, purpose),
                None => backend::open(&url).map(Opened::Whole),
            }
        });
        let opened = opened.map_err(|error| {
            // Of a file that can't be used the command line is not to blame.
            let exit =
                if error.is_invalid_input() && file.is_none() { Exit::Usage } else { Exit::Unavailable };
            refuse(exit, said(&error))
        })?;
        if let Some(file) = file.filter(|_| made && io::stderr().is_terminal()) {
            refuse(Exit::Done, format!("made the queue {}", escaped(&file.display().to_string())));
        }
        Ok(Self { opened, runtime })
    }

    /// Looking at it.
    pub(super) fn inspect(&self) -> Result<&Arc<dyn Inspect>, Error> {
        match &self.opened {
            Opened::Whole(backend) => backend.inspect(),
            Opened::ToLook(inspect) => Ok(inspect),
        }
    }

    /// Changing what is in it.
    pub(super) fn manage(&self) -> Result<&Arc<dyn Manage>, Error> {
        self.whole()?.manage()
    }

    /// Putting something into it.
    pub(super) fn enqueue(&self) -> Result<&Arc<dyn Enqueue>, Error> {
        self.whole()?.enqueue()
    }

    fn whole(&self) -> Result<&Backend, Error> {
        match &self.opened {
            Opened::Whole(backend) => Ok(backend),
            Opened::ToLook(_) => {
                Err(Error::new(ErrorKind::Unsupported, "the queue was opened to be looked at only"))
            }
        }
    }

    /// Waits for what was asked of the queue.
    pub(super) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }
}

/// Opens a file so that looking at it deletes nothing: how many dead and done jobs are kept is for those to say who run
/// jobs.
fn open_file(file: &Path, adopt: bool, purpose: Purpose) -> Result<Opened, Error> {
    let file = Sqlite::builder(file).adopt(adopt).max_dead(usize::MAX).max_done(usize::MAX);
    Ok(match purpose {
        Purpose::Look => Opened::ToLook(Arc::new(file.open_to_read()?)),
        Purpose::Change => Opened::Whole(file.open()?.backend()),
        Purpose::Fill => {
            let jobs = file.open()?;
            refuse_records(&jobs)?;
            Opened::Whole(jobs.backend())
        }
    })
}

/// What went wrong with the queue is said, and how to end returned.
pub(super) fn failed(error: &Error) -> Exit {
    refuse(Exit::Unavailable, said(error))
}

/// An error on one line, whatever is in it.
pub(super) fn said(error: &Error) -> impl fmt::Display {
    escaped(&Chain(error).to_string())
}

/// The URL that is meant. Never part of a message.
fn url(source: &str) -> Result<String, &'static str> {
    if source.is_empty() {
        return Err("--source (or TIDEGATE_SOURCE) is empty: name a queue, such as sqlite:jobs.sqlite");
    }
    if source.split_once(':').is_some_and(|(scheme, _)| scheme == "memory") {
        return Err(
            "--source memory: makes no sense here: that queue would end with this command, and its jobs with it",
        );
    }
    Ok(with_scheme(source).into_owned())
}

/// A path that ends as those of our files do needs no scheme.
pub(crate) fn with_scheme(source: &str) -> Cow<'_, str> {
    let is_file = !source.contains(':') && ENDINGS.iter().any(|ending| source.ends_with(ending));
    if is_file { format!("sqlite:{source}").into() } else { source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_known_ending_needs_no_scheme() {
        for (source, meant) in [
            ("jobs.sqlite", "sqlite:jobs.sqlite"),
            ("../a b/jobs.db", "sqlite:../a b/jobs.db"),
            ("/srv/jobs.sqlite3", "sqlite:/srv/jobs.sqlite3"),
            ("sqlite:jobs", "sqlite:jobs"),
            ("redis://host/jobs.db", "redis://host/jobs.db"),
            ("jobs.txt", "jobs.txt"),
        ] {
            assert_eq!(url(source).as_deref(), Ok(meant));
        }
        assert!(url("").is_err() && url("memory:").is_err() && url("memory://").is_err());
    }
}
