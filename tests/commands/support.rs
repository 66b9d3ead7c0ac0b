//! A folder to run the program in, and the queue in it as the library sees it.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tidegate::backend::sqlite::Sqlite;
use tidegate::{Delivery, Enqueue, FetchRequest, NewJob, Settled, Settlement, Source};
use tokio_util::sync::CancellationToken;

use crate::fed::fed;
use crate::folder::Folder;

/// A folder of the test's own. The program takes the queue in it if no other is named.
pub(crate) struct Place(Folder);

impl Place {
    pub(crate) fn new() -> Self {
        Self(Folder::new())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), contents).expect("a file of our own");
        name.to_owned()
    }

    /// `tidegate` with these arguments, in this folder.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_remove("TIDEGATE_SOURCE")
            .env_remove("TIDEGATE_CONFIG")
            .env("TZ", "UTC");
        command
    }

    /// Runs it to its end with nothing on its standard input.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.feed(args, "")
    }

    /// Runs it to its end with `input` on its standard input.
    pub(crate) fn feed<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: impl AsRef<[u8]>,
    ) -> Ran {
        Ran(fed(self.command(args), input))
    }

    /// Runs it, and sees that all is well.
    pub(crate) fn good<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let ran = self.run(args);
        assert_eq!((ran.code(), ran.stderr()), (0, String::new()), "{}", ran.stdout());
        ran
    }

    /// The queue that the program finds here.
    pub(crate) fn queue(&self) -> Sqlite {
        Sqlite::open(self.path("tidegate.sqlite")).expect("a file of our own")
    }

    /// That queue with jobs in it, of which those with a reason are dead for it; and their ids, first of the dead.
    pub(crate) async fn with(&self, jobs: Vec<(NewJob, Option<&str>)>) -> (Sqlite, Vec<String>) {
        let queue = self.queue();
        let (dying, living): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|(_, reason)| reason.is_some());
        let (dying, reasons): (Vec<_>, Vec<_>) = dying.into_iter().unzip();
        let mut ids = enqueued(&queue, dying).await;
        let taken = take(&queue, reasons.len()).await;
        let settled = taken.iter().zip(reasons).map(|(taken, reason)| {
            Settled::new(taken.tag, Settlement::Reject).because(reason.unwrap_or_default())
        });
        queue.settle(&settled.collect::<Vec<_>>()).await.expect("settled");
        ids.extend(enqueued(&queue, living.into_iter().map(|(job, _)| job).collect()).await);
        (queue, ids)
    }
}

/// Enqueues them, and returns their ids.
pub(crate) async fn enqueued(queue: &Sqlite, jobs: Vec<NewJob>) -> Vec<String> {
    let enqueued = queue.enqueue(jobs).await.expect("enqueued");
    enqueued.iter().map(|enqueued| enqueued.id().to_string()).collect()
}

/// As many of the jobs that are ready, in the order in which workers get them.
pub(crate) async fn take(queue: &Sqlite, jobs: usize) -> Vec<Delivery> {
    let Some(max) = NonZeroUsize::new(jobs) else { return Vec::new() };
    let wanted = FetchRequest::new(max, Duration::ZERO);
    queue.fetch(&wanted, &CancellationToken::new()).await.expect("fetched")
}

/// What a run has left.
#[derive(Debug)]
pub(crate) struct Ran(pub(crate) Output);

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().unwrap_or_else(|| panic!("{} {}", self.0.status, self.stderr()))
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).expect("UTF-8")
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).expect("UTF-8")
    }

    /// Its lines of JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}
