//! The command line: what can be asked for, in which units and ranges, and what is meant when it is not said.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::complete::{self, CompletionsArgs};
use super::each::Show;
use super::enqueue::{self, EnqueueArgs};
use super::jobs::{self, JobsArgs};
use super::run::{self, RunArgs};
use super::stats::{self, StatsArgs};
use super::values::{size, size_or_none, time, time_or_none};

/// Runs jobs: never more at once than you said, every slot full, nothing left behind.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command for each line, NUL-separated record or JSON line of the input, many at once
    #[command(after_help = EXITS, after_long_help = format!("{MORE}\n{EXITS}"))]
    Each(Box<EachArgs>),

    /// Run the jobs of a queue as the configuration says, until it is told to stop
    #[command(after_help = run::EXITS, after_long_help = format!("{}\n{}", run::MORE, run::EXITS))]
    Run(Box<RunArgs>),

    /// Put a job into a queue, or many from JSON lines
    #[command(after_help = enqueue::EXITS, after_long_help = format!("{}\n{}", enqueue::MORE, enqueue::EXITS))]
    Enqueue(Box<EnqueueArgs>),
    /// List, show, retry, cancel and delete the jobs of a queue
    #[command(after_help = jobs::EXITS, after_long_help = format!("{}\n{}", jobs::MORE, jobs::EXITS))]
    Jobs(JobsArgs),
    /// Say how many jobs of a queue are in each state
    #[command(after_help = stats::EXITS, after_long_help = format!("{}\n{}", stats::MORE, stats::EXITS))]
    Stats(StatsArgs),
    /// Write what a shell needs to complete the command lines of this program
    #[command(after_long_help = complete::MORE)]
    Completions(CompletionsArgs),
}

const EXITS: &str = "\
Exit status:
    0  all records are done
    1  some records failed for good
    2  the command line makes no sense
    3  the input can't be read (what was read before has been run)
    4  the command can't be started: not found, or not executable
    5  an output, or the file of --db, can't be written
   70  something that should not happen did
  129, 130, 131, 143  stopped by HUP, INT, QUIT or TERM before the end
  141  standard output was closed before the end";

// At most 78 columns wide, so that no terminal breaks a line of an example.
const MORE: &str = "\
Placeholders in COMMAND:
  {}       the record; also within an argument, as in --file={}.txt
  {.name}  with --json-lines: a field of the record, as in {.user.name} or
           {.list.0}: of a string its text, of anything else its JSON. A field
           that is missing or null fails the record.
  Without any of them, and without --stdin, the record is appended as the last
  argument.

A TIME is a number with ms, s, m, h or d (seconds if it has none of them), a
SIZE one with B, KiB, MiB, GiB, kB, MB or GB (bytes if it has none).

Examples:
  Compress files, as many at once as there are CPUs:
      find . -name '*.log' -print0 | tidegate each -0 -- gzip -9
  Fetch a list, 8 at once, three tries of at most 30 s each, and keep the
  addresses that failed:
      tidegate each -i urls.txt -j 8 --max-attempts 3 --timeout 30s \\
          --failed-to failed.txt -- \\
          curl -fsS --create-dirs -o out/{} https://example.org/{}
  JSON lines in, JSON lines out:
      tidegate each --json-lines --json -- ./resize --width {.width} {.file} \\
          < jobs.jsonl > results.jsonl
  A long list that survives a crash: the same command again goes on with it:
      tidegate each --db uploads.db -i files.txt -j 4 -- ./upload
  A shell script, in which $1 is the record and can't be mistaken for script:
      tidegate each --shell -- 'wc -l < \"$1\" > \"$1.count\"' < files.txt
  See what would be run:
      tidegate each --dry-run -- mv {} {}.bak < files.txt

Each command runs in a process group of its own, with TIDEGATE_JOB_ID (the
number of the record in the input, from 1) and TIDEGATE_ATTEMPT (from 1) in
its environment, and with nothing on its standard input unless --stdin says
otherwise. A status other than 0 is a failed attempt. When the command has
ended, what it has left running in its group gets TERM, and KILL after
--grace; what has left the group (a daemon, setsid) gets the same when the
run is over. A command that asks something at the terminal is stopped by the
system there: give it what it needs beforehand.

Outputs are shown whole when the command has ended: never mixed with
another's, in the order in which the commands end; of an attempt after which
another is due only what it wrote on standard error. An output whose last
line has no newline gets one; for other bytes than text use --json, or files.

Signals:
  TERM, INT, HUP  first: start nothing more and let what runs finish, until
                  the shutdown deadline is near; second: TERM for what runs,
                  and KILL after --grace; third: KILL
  QUIT            TERM for what runs at once
  TSTP            (Ctrl-Z) start nothing more until CONT comes; on a terminal
                  a second TSTP does the same
  USR1            say on standard error what is running
A signal to stop that was to be ignored (nohup, a shell's background jobs) is.
Nothing can be done about KILL: the records in hand are forgotten unless
there is a --db, and the commands go on.

With --db the records are taken into FILE as fast as they come, and run from
there, first come first served. Started again on FILE, however it ended, it
runs what is not done; of the input, which must be the same, or empty, it
takes in what is new. What was in hand when it was killed is run again. What a
record has to say is written out before it is noted as done.

With --json each record that is done or has failed becomes one line on
standard output:
  {\"type\":\"record\",\"id\":1,\"record\":\"...\",\"ok\":true,\"attempts\":1,
   \"exit_code\":0,\"seconds\":0.1,\"stdout\":\"...\",\"stderr\":\"...\"}
with \"signal\" in place of \"exit_code\" when a signal ended the command,
\"error\" when ok is false, neither outputs nor seconds when the command could
not be started, and {\"base64\":\"...\"} in place of a text that is not UTF-8.
The last line has \"type\":\"summary\".
";

/// The options of `tidegate each`.
#[derive(Debug, Args)]
pub(crate) struct EachArgs {
    /// Read the records from FILE; - is standard input
    #[arg(short, long, value_name = "FILE", default_value = "-", help_heading = "Records")]
    pub(crate) input: PathBuf,

    /// Records end with a NUL byte rather than a newline, and may be empty. (Empty lines are skipped)
    #[arg(short = '0', long, help_heading = "Records")]
    pub(crate) null: bool,

    /// Each line is a JSON value, of which {.field} in COMMAND is a field
    #[arg(long, conflicts_with = "null", help_heading = "Records")]
    pub(crate) json_lines: bool,

    /// The longest record, from 1B to 1GiB; a longer one is a failure
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size, help_heading = "Records")]
    pub(crate) max_record: usize,

    /// Keep in FILE the records that failed for good or were read and not finished, to be run again. (Not those
    /// longer than --max-record: their bytes are gone)
    #[arg(long, value_name = "FILE", help_heading = "Records")]
    pub(crate) failed_to: Option<PathBuf>,

    /// Keep the records in FILE, a database that is made if it is not there, until they are done. A run that was
    /// ended in any way goes on when the same command is given again: no record that is done is run again
    #[arg(long, value_name = "FILE", help_heading = "Records")]
    pub(crate) db: Option<PathBuf>,

    /// With --db: try the records again that have failed for good
    #[arg(long, requires = "db", help_heading = "Records")]
    pub(crate) retry_failed: bool,

    /// What stands for the record in COMMAND
    #[arg(short = 'I', long, value_name = "TEXT", default_value = "{}", help_heading = "The command")]
    pub(crate) replace: String,

    /// The command reads the record on its standard input: with its newline, or as it is with --null
    #[arg(long, help_heading = "The command")]
    pub(crate) stdin: bool,

    /// COMMAND is a script for `sh -c`, and its arguments (the record, if there are none): $1, $2, …
    #[arg(long, help_heading = "The command")]
    pub(crate) shell: bool,

    /// Show what would be run, and run nothing
    #[arg(long, help_heading = "The command")]
    pub(crate) dry_run: bool,

    /// Run at most so many at once, from 1 to 10000 [default: the number of CPUs]
    #[arg(short = 'j', short_alias = 'P', long, alias = "jobs", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000),
        help_heading = "Limits")]
    pub(crate) max_concurrent_jobs: Option<u32>,

    /// How long an attempt may take, from 1ms to 366d [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,

    /// The time between TERM and KILL, from 0 to 366d
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time_or_none, help_heading = "Limits")]
    pub(crate) grace: Duration,

    /// From the first TERM or INT to the end takes at most this long, from 0 to 366d. What runs may finish
    /// until --grace before that
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = time_or_none, help_heading = "Limits")]
    pub(crate) shutdown_deadline: Duration,

    /// How much is kept of each of a command's two outputs, from 0 to 1GiB; the rest is dropped, and said to be
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size_or_none, help_heading = "Limits")]
    pub(crate) max_output: usize,

    /// Try a record up to N times, from 1
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Retries")]
    pub(crate) max_attempts: u32,

    /// Try a record again up to N times: the same as --max-attempts N+1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..u32::MAX as i64),
        conflicts_with = "max_attempts", help_heading = "Retries")]
    pub(crate) retries: Option<u32>,

    /// The wait before the second attempt, from 0 to 366d; doubled for each further one, less up to a quarter
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time_or_none, help_heading = "Retries")]
    pub(crate) retry_wait: Duration,

    /// The longest wait between two attempts, from 0 to 366d [default: 1m, or --retry-wait if that is longer]
    #[arg(long, value_name = "TIME", value_parser = time_or_none, help_heading = "Retries")]
    pub(crate) max_retry_wait: Option<Duration>,

    /// Read no further while so many records wait for their next attempt, from 1 to 1000000
    #[arg(long, value_name = "N", default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Retries")]
    pub(crate) max_waiting: u32,

    /// Start nothing more once a record has failed for good
    #[arg(long, help_heading = "Retries")]
    pub(crate) stop_on_failure: bool,

    /// Show results as JSON, one line a record
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Put the record and a tab before each line of output
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    pub(crate) tag: bool,

    /// How to show how far it has got
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum, help_heading = "Output")]
    pub(crate) progress: Show,

    /// No progress, and no summary if all records are done
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,

    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

impl EachArgs {
    /// How many attempts a record has in all.
    pub(crate) fn attempts(&self) -> u32 {
        self.retries.map_or(self.max_attempts, |retries| retries + 1)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_help_is_shown_as_it_was_written() {
        for (name, texts) in [
            ("each", [MORE, EXITS]),
            ("enqueue", [enqueue::MORE, enqueue::EXITS]),
            ("jobs", [jobs::MORE, jobs::EXITS]),
            ("stats", [stats::MORE, stats::EXITS]),
            ("completions", [complete::MORE, ""]),
        ] {
            let mut cli = Cli::command();
            let help = cli.find_subcommand_mut(name).expect("there is one").render_long_help().to_string();
            for line in texts.iter().flat_map(|text| text.lines()) {
                assert!(line.len() <= 78 && help.lines().any(|shown| shown == line), "{name}: {line}");
            }
        }
    }
}
