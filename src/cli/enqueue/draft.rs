//! What has been said of a job so far: by a line, by the command line for all lines, and what of it makes a job. Pure.

use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use serde::Deserialize;

use crate::enqueue::{NewJob, Start, Unique, Window};
use crate::error::Error;

/// The largest payload: what the backends take by default.
pub(super) const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// For how long a key is taken, if not for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum While {
    /// While the job waits
    Queued,
    /// Until it is done or dead
    Unfinished,
}

impl From<While> for Window {
    fn from(given: While) -> Self {
        match given {
            While::Queued => Self::WhileQueued,
            While::Unfinished => Self::UntilDone,
        }
    }
}

/// A job as far as it has been described.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Draft {
    pub(super) kind: Option<String>,
    pub(super) payload: Option<Bytes>,
    pub(super) queue: Option<String>,
    pub(super) priority: Option<i16>,
    pub(super) start: Option<Start>,
    pub(super) max_attempts: Option<u32>,
    pub(super) timeout: Option<Duration>,
    pub(super) unique: Option<String>,
    pub(super) window: Option<Window>,
    pub(super) replace: Option<bool>,
}

impl Draft {
    /// The same, with what it does not say from `defaults`.
    pub(super) fn or(self, defaults: &Self) -> Self {
        Self {
            kind: self.kind.or_else(|| defaults.kind.clone()),
            payload: self.payload.or_else(|| defaults.payload.clone()),
            queue: self.queue.or_else(|| defaults.queue.clone()),
            priority: self.priority.or(defaults.priority),
            start: self.start.or(defaults.start),
            max_attempts: self.max_attempts.or(defaults.max_attempts),
            timeout: self.timeout.or(defaults.timeout),
            unique: self.unique.or_else(|| defaults.unique.clone()),
            window: self.window.or(defaults.window),
            replace: self.replace.or(defaults.replace),
        }
    }

    /// The job, if it makes one.
    pub(super) fn job(self) -> Result<NewJob, String> {
        let Some(kind) = self.kind else { return Err("it has no kind".to_owned()) };
        let mut job = NewJob::new(kind, self.payload.unwrap_or_default());
        if let Some(queue) = self.queue {
            job = job.queue(queue);
        }
        job.priority = self.priority.unwrap_or_default();
        job.start = self.start.unwrap_or(Start::Now);
        job.max_attempts = self.max_attempts;
        job.timeout = self.timeout;
        job.unique = self.unique.map(|key| {
            let window = self.window.unwrap_or(Window::WhileQueued);
            let unique = Unique { window, ..Unique::while_queued(key) };
            if self.replace == Some(true) { unique.replace_payload() } else { unique }
        });
        job.validate(MAX_PAYLOAD_BYTES).map_err(|error: Error| error.to_string())?;
        Ok(job)
    }
}
