//! `tidegate each`: a command for each record of the input, as jobs of a worker.
//!
//! ```text
//!  input ──▶ records ──▶ source ══▶ worker ══▶ attempt ──▶ exec: a child in a group of its own
//!                          │ settled               │ pipes
//!                          ▼                       ▼
//!                        ledger ──▶ output, progress, summary
//! ```
//!
//! This file checks what was asked for and puts the parts together; `steer` runs them.

mod attempt;
mod command;
pub(crate) mod db;
mod dry_run;
mod durable;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod ledger;
mod output;
mod progress;
mod source;
mod steer;
mod summary;

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use self::command::{Rules, Template};
use self::db::Db;
use self::ledger::Keep;
pub(crate) use self::progress::Show;
use super::args::EachArgs;
use super::child::exec::{Launcher, find_program};
use super::child::pipes::Keeping;
use super::records::{Format, Input};
use super::{Exit, refuse, room};

/// Why nothing is run: how to end, and what to say.
type Refusal = (Exit, String);

/// Does what `args` ask for.
pub(crate) fn run(args: EachArgs) -> Exit {
    let exit = Plan::new(args).and_then(|plan| {
        if plan.args.dry_run {
            return Ok(dry_run::dry_run(plan.input, plan.format, &plan.template, plan.args.stdin));
        }
        steer::carry_out(plan)
    });
    exit.unwrap_or_else(|(exit, what)| refuse(exit, what))
}

/// What is to be done, checked.
struct Plan {
    args: EachArgs,
    template: Template,
    launcher: Launcher,
    format: Format,
    input: Input,
    keep: Option<Keep>,
    db: Option<Db>,
    jobs: usize,
}

impl Plan {
    fn new(args: EachArgs) -> Result<Self, Refusal> {
        let usage = |what| (Exit::Usage, what);
        let rules =
            Rules { replace: &args.replace, json: args.json_lines, stdin: args.stdin, shell: args.shell };
        let template = Template::parse(&args.command, &rules).map_err(usage)?;
        if let Some(longest) = args.max_retry_wait
            && args.retry_wait > longest
        {
            let first = args.retry_wait;
            return Err(usage(format!(
                "--retry-wait ({first:?}) is longer than --max-retry-wait ({longest:?})"
            )));
        }
        let cpus = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let jobs = args.max_concurrent_jobs.map_or_else(cpus, |jobs| jobs as usize);
        // A dry run opens no pipes.
        if !args.dry_run {
            room::make_for(jobs as u64)
                .map_err(|why| usage(format!("--max-concurrent-jobs {jobs} {why}")))?;
        }
        let separator = if args.null { 0 } else { b'\n' };
        let format = Format { separator, keep_empty: args.null, max_bytes: args.max_record };
        let input = Input::open(&args.input).map_err(|error| {
            (Exit::Input, format!("--input {} can't be read: {error}", args.input.display()))
        })?;
        let program = match template.program() {
            // A dry run may be made where the program is not installed.
            Some(name) if !args.dry_run => Some(find_program(name).map_err(|why| (Exit::Command, why))?),
            _ => None,
        };
        let keep = Keeping { first: args.max_output, last: 0 };
        let launcher = Launcher { program, folder: None, without: &[], grace: args.grace, keep };
        let db = match &args.db {
            Some(path) if !args.dry_run => Some(Db::open(path, args.max_record)?),
            _ => None,
        };
        let keep = if args.dry_run { None } else { open_keep(&args, &input, separator)? };
        Ok(Self { args, template, launcher, format, input, keep, db, jobs })
    }
}

/// Opens the file for failed records, unless that would destroy the input.
fn open_keep(args: &EachArgs, input: &Input, separator: u8) -> Result<Option<Keep>, Refusal> {
    let Some(path) = &args.failed_to else { return Ok(None) };
    let name = path.display().to_string();
    let cant = |error| (Exit::Output, format!("--failed-to {name} can't be written: {error}"));
    if let (Ok(there), Ok(read)) = (fs::metadata(path), input.file().metadata())
        && there.is_file()
        && (there.dev(), there.ino()) == (read.dev(), read.ino())
    {
        return Err((Exit::Usage, format!("--failed-to {name} is the input itself: give another file")));
    }
    let file: File = OpenOptions::new().write(true).create(true).truncate(true).open(path).map_err(cant)?;
    Ok(Some(Keep { file, name, separator }))
}
