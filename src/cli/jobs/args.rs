//! The options of `tidegate jobs`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use crate::cli::store::SourceArgs;
use crate::inspect::{JobQuery, JobState};

pub(crate) const EXITS: &str = "\
Exit status:
    0  all that was asked for is done
    1  some jobs are not there, or not in a state that allows it
    2  the command line makes no sense
    5  standard output can't be written
   69  the queue is not there, or can't be opened, read or written
   70  something that should not happen did
   78  the configuration can't be read, or names no queue
  141  standard output was closed before the end";

// At most 78 columns wide, so that no terminal breaks a line of an example.
pub(crate) const MORE: &str = "\
A job is ready (could be run now), delayed (waits for its time), leased (is
with a worker), dead (failed for good, or cancelled) or done (and kept for a
while to be looked at, if the queue was told to).

Without a subcommand it is `list`, and without --state that shows the first
jobs of each state but done. Those that have been in their state longest come
first, but of those that are delayed or done, those that are DUE first. Only
the right to read is needed to list and show, and nobody is waited for.
TRIES is how many attempts were begun, SINCE for how long the job has been in
its state, DUE when a delayed job becomes ready, a lease runs out unless it
is renewed, or a done job goes. On a terminal, cells are cut to fit.

Examples:
  What is there? What went wrong, and with which payload?
      tidegate jobs
      tidegate jobs --state dead
      tidegate jobs show 17
      tidegate jobs show 17 --payload > page.tiff
  Once the mail server is back, try all that it has failed:
      tidegate jobs requeue-dead --kind mail
  Forget a queue's dead jobs; how many are they?
      tidegate jobs delete-dead --queue slow --dry-run
      tidegate jobs delete-dead --queue slow
  Cancel all that waits in a queue:
      tidegate jobs list -q --state ready,delayed --queue slow --limit 1000 |
          xargs -r tidegate jobs cancel

With --json each job is one line of standard output: id, state, kind, queue,
priority, attempts, max_attempts, timeout (in seconds), enqueued_at, since,
due, cancel_requested, superseded_by (the newer job that has taken its place),
last_error, and payload, or payload_base64 if it is no text. What is not set
is null; times are UTC as in RFC 3339. `show` adds history, a list of
attempts: attempt, end (done, retried, rejected, released, lapsed or
superseded), started_at, ended_at, error, and output or output_base64. The
others say {\"id\":\"17\",\"ok\":true,\"result\":\"retried\"}, or what is wrong in
\"error\" when ok is false; in bulk, one line for all.
";

/// The options of `tidegate jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    pub(super) source: SourceArgs,

    /// Say it as JSON, one line a job
    #[arg(long, global = true)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) list: ListArgs,

    #[command(subcommand)]
    pub(super) command: Option<JobsCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List jobs: those that have been in their state longest first, or are due first
    #[command(after_help = EXITS)]
    List(ListArgs),
    /// Show all that there is about a job: its payload, its attempts and how they ended
    #[command(after_help = EXITS)]
    Show(ShowArgs),
    /// Make dead or delayed jobs ready now; the attempts of a dead one begin anew
    #[command(after_help = EXITS)]
    Retry(IdsArgs),
    /// Cancel jobs: those that wait are dead then; of one that runs, its worker is told
    #[command(after_help = EXITS)]
    Cancel(IdsArgs),
    /// Delete jobs that are not running, for good
    #[command(after_help = EXITS)]
    Delete(IdsArgs),
    /// Make many dead jobs ready. One whose unique key another job has taken stays dead
    #[command(after_help = EXITS)]
    RequeueDead(BulkArgs),
    /// Delete many dead jobs, for good. Asks before, at a terminal
    #[command(after_help = EXITS)]
    DeleteDead(DeleteArgs),
}

impl JobsCommand {
    /// As it stands on the command line.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::List(_) => "list",
            Self::Show(_) => "show",
            Self::Retry(_) => "retry",
            Self::Cancel(_) => "cancel",
            Self::Delete(_) => "delete",
            Self::RequeueDead(_) => "requeue-dead",
            Self::DeleteDead(_) => "delete-dead",
        }
    }
}

/// The states by the names that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StateName {
    Ready,
    Delayed,
    Leased,
    Dead,
    Done,
}

impl From<StateName> for JobState {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Ready => Self::Ready,
            StateName::Delayed => Self::Delayed,
            StateName::Leased => Self::Leased,
            StateName::Dead => Self::Dead,
            StateName::Done => Self::Done,
        }
    }
}

#[derive(Debug, Default, PartialEq, Args)]
pub(super) struct ListArgs {
    /// Only jobs in these states [default: leased,ready,delayed,dead]
    #[arg(long, value_name = "STATE", value_enum, value_delimiter = ',')]
    pub(super) state: Vec<StateName>,

    #[command(flatten)]
    pub(super) filter: Filter,

    /// At most N jobs of each state, from 1 to 1000000 [default: 50 of one state, 10 of several]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) limit: Option<u32>,

    /// Leave out the first N jobs of the state
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) skip: usize,

    /// Print the ids only
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(super) struct Filter {
    /// Only jobs of this kind
    #[arg(long)]
    pub(super) kind: Option<String>,

    /// Only jobs in this queue
    #[arg(long, value_name = "NAME")]
    pub(super) queue: Option<String>,
}

impl Filter {
    /// At most `max` of the jobs in `state` that pass.
    pub(super) fn query(&self, state: JobState, max: usize) -> JobQuery {
        let mut query = JobQuery::new(state, max);
        query.kind = self.kind.as_deref().map(Into::into);
        query.queue = self.queue.as_deref().map(Into::into);
        query
    }

    /// ` of kind … in queue …`, as far as it is set.
    pub(super) fn words(&self) -> String {
        let kind = self.kind.as_ref().map(|kind| format!(" of kind {kind:?}"));
        let queue = self.queue.as_ref().map(|queue| format!(" in queue {queue:?}"));
        [kind, queue].map(Option::unwrap_or_default).concat()
    }
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The job
    pub(super) id: String,

    /// Write its payload to standard output as it is, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub(super) payload: bool,
}

#[derive(Debug, Args)]
pub(super) struct IdsArgs {
    /// The jobs
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["kind", "queue", "all"]).required(true).multiple(true))]
pub(super) struct BulkArgs {
    #[command(flatten)]
    pub(super) filter: Filter,

    /// All dead jobs, whatever they are
    #[arg(long, conflicts_with_all = ["kind", "queue"])]
    all: bool,

    /// Say how many it would be, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    pub(super) bulk: BulkArgs,

    /// Do not ask. Needed where nobody can be asked
    #[arg(short, long)]
    pub(super) yes: bool,
}
