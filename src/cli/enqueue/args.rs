//! The options of `tidegate enqueue`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::draft::{Draft, While};
use crate::cli::store::SourceArgs;
use crate::cli::times::moment;
use crate::cli::values::{time, time_or_none};
use crate::enqueue::{Start, Window};

pub(crate) const EXITS: &str = "\
Exit status:
    0  all jobs are enqueued
    1  some lines were refused; those before the first of them (all others,
       with --keep-going) are enqueued
    2  the command line makes no sense
    3  the payload or the lines can't be read
    5  standard output can't be written (the jobs are enqueued all the same)
   69  the queue can't be opened or written
   70  something that should not happen did
   78  the configuration can't be read, or names no queue
  141  standard output was closed before the end";

// At most 78 columns wide, so that no terminal breaks a line of an example.
pub(crate) const MORE: &str = "\
A TIME is a number with ms, s, m, h or d (seconds if it has none of them).
A WHEN is a moment as in RFC 3339 (2030-01-31T14:05:00Z), or in local time
('2030-01-31 14:05'); one in the past means at once.

Prints the id of each job on a line of its own. That of a job with a unique
key is followed by a tab and by what became of it: created, duplicate (the id
is that of the job that was there before) or replaced (that job has the new
payload now).

With --json-lines each line is an object of these fields, all of them
optional: kind, payload (a text is taken as it is, anything else as its JSON),
payload_base64, queue, priority, in, at, max_attempts, timeout, unique,
unique_for, unique_while, replace. A time is a text such as \"10m\" or a number
of seconds; null is as if the field were not there. KIND and the options are
for lines that do not say otherwise. Lines are enqueued as they come in, at
most 1000 in one transaction. At the first line that makes no sense it stops:
all lines before it are enqueued, and nothing from it on. To check all lines
beforehand, use --dry-run.

Examples:
  One job, now; another, not before five minutes have passed:
      tidegate enqueue thumbnail '{\"file\":\"cat.png\"}'
      tidegate enqueue remind 'call Ada' --in 5m
  At most one at a time, however often it is asked for:
      tidegate enqueue reindex --unique all --unique-while unfinished
  Bytes from a file, in another queue, before all others there:
      tidegate enqueue scan --payload-file page.tiff --queue slow --priority 9
  A table's rows as jobs:
      jq -c '.[] | {payload: ., unique: .id}' rows.json |
          tidegate enqueue import --json-lines --max-attempts 3

With --json each job becomes one line on standard output, here in two:
  {\"line\":1,\"ok\":true,\"id\":\"7\",\"result\":\"created\"}
  {\"line\":2,\"ok\":false,\"error\":\"it has no kind\"}
";

/// The options of `tidegate enqueue`.
#[derive(Debug, Args)]
pub(crate) struct EnqueueArgs {
    #[command(flatten)]
    pub(super) source: SourceArgs,

    /// What sort of job it is: the name by which a worker finds what is to run it
    #[arg(required_unless_present = "json_lines")]
    pub(super) kind: Option<String>,

    /// Its payload, as it is; - is standard input [default: nothing]
    #[arg(conflicts_with_all = ["payload_file", "json_lines"], allow_negative_numbers = true)]
    pub(super) payload: Option<OsString>,

    /// The payload is what is in FILE, at most 16 MiB; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "json_lines")]
    pub(super) payload_file: Option<PathBuf>,

    /// The queue that it waits in [default: default]
    #[arg(long, value_name = "NAME", help_heading = "The job")]
    pub(super) queue: Option<String>,

    /// Greater runs sooner within its queue, from -32768 to 32767 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "The job")]
    pub(super) priority: Option<i16>,

    /// Not before so much time has passed, from 0 to 366d
    #[arg(long, value_name = "TIME", value_parser = time_or_none, conflicts_with = "at", help_heading = "The job")]
    pub(super) r#in: Option<Duration>,

    /// Not before this moment
    #[arg(long, value_name = "WHEN", value_parser = moment, help_heading = "The job")]
    pub(super) at: Option<SystemTime>,

    /// Try it up to N times, from 1 [default: as the worker says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "The job")]
    pub(super) max_attempts: Option<u32>,

    /// How long an attempt may take, from 1ms to 366d [default: as the worker says]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "The job")]
    pub(super) timeout: Option<Duration>,

    /// Add nothing if there is a job of this kind with the same KEY
    #[arg(long, value_name = "KEY", help_heading = "Only once")]
    pub(super) unique: Option<String>,

    /// The key is taken while the job waits (queued), or until it is done or dead (unfinished) [default: queued]
    #[arg(long, value_name = "STATE", value_enum, help_heading = "Only once")]
    pub(super) unique_while: Option<While>,

    /// The key is taken for so long from now on, from 0 to 366d, whatever becomes of the job
    #[arg(long, value_name = "TIME", value_parser = time_or_none, conflicts_with = "unique_while",
        help_heading = "Only once")]
    pub(super) unique_for: Option<Duration>,

    /// If there is such a job and it still waits, it gets the new payload; one that runs is not tried again
    #[arg(long, help_heading = "Only once")]
    pub(super) replace: bool,

    /// Many jobs: each line of FILE is a JSON object; - is standard input, and meant when there is no FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Many")]
    pub(super) json_lines: Option<PathBuf>,

    /// Say which lines make no sense, and go on
    #[arg(long, requires = "json_lines", help_heading = "Many")]
    pub(super) keep_going: bool,

    /// Check all lines, and enqueue nothing
    #[arg(long, requires = "json_lines", help_heading = "Many")]
    pub(super) dry_run: bool,

    /// Say what became of the jobs as JSON, one line a job
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,

    /// Print no ids
    #[arg(short, long, conflicts_with = "json", help_heading = "Output")]
    pub(super) quiet: bool,
}

impl EnqueueArgs {
    /// What the command line says of the job, or of all that do not say otherwise.
    pub(super) fn draft(&self) -> Draft {
        let given = self.unique_while.map(Window::from);
        Draft {
            kind: self.kind.clone(),
            payload: None,
            queue: self.queue.clone(),
            priority: self.priority,
            start: self.r#in.map(Start::After).or(self.at.map(Start::At)),
            max_attempts: self.max_attempts,
            timeout: self.timeout,
            unique: self.unique.clone(),
            window: self.unique_for.map(Window::For).or(given),
            replace: self.replace.then_some(true),
        }
    }

    /// What of the options makes no sense together.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let window = self.unique_while.is_some() || self.unique_for.is_some() || self.replace;
        if window && self.unique.is_none() && self.json_lines.is_none() {
            return Err("--unique-while, --unique-for and --replace say what --unique KEY means: give a key");
        }
        Ok(())
    }
}
