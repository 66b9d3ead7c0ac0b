//! `tidegate jobs list` and `tidegate jobs show`.

use std::io::{self, IsTerminal as _};

use super::args::{ListArgs, ShowArgs};
use super::pages::Pages;
use super::view::{FullLine, HEADS, JobLine, full, row, state_name};
use crate::cli::stdout::{json_line, print};
use crate::cli::store::{Store, failed};
use crate::cli::table::{Table, terminal_width};
use crate::cli::text::escaped;
use crate::cli::times::now;
use crate::cli::{Exit, refuse};
use crate::error::{Error, ErrorKind};
use crate::inspect::{JobState, PastAttempt, StoredJob};
use crate::job::JobId;

/// The states that are listed when none is asked for.
const USUAL: [JobState; 4] = [JobState::Leased, JobState::Ready, JobState::Delayed, JobState::Dead];

/// How many jobs of a state are listed: about a screen, of one state or of several.
const LIMIT_OF_ONE: u32 = 50;
const LIMIT_OF_SEVERAL: u32 = 10;

/// Lists jobs, state by state.
pub(super) fn list(store: &Store, args: &ListArgs, json: bool) -> Result<Exit, Exit> {
    let mut states: Vec<JobState> = args.state.iter().map(|state| JobState::from(*state)).collect();
    states.dedup();
    if states.is_empty() {
        states.extend(USUAL);
    }
    if args.skip > 0 && states.len() != 1 {
        return Err(refuse(
            Exit::Usage,
            "--skip needs --state with the one state whose first jobs are left out",
        ));
    }
    let inspect = store.backend.inspect().map_err(|error| failed(&error))?;
    let several = states.len() > 1;
    let limit = args.limit.unwrap_or(if several { LIMIT_OF_SEVERAL } else { LIMIT_OF_ONE }) as usize;
    let mut table = Table::new(HEADS, terminal_width());
    let (mut listed, mut more) = (0, Vec::new());
    for state in states {
        // One more than is shown tells whether there are more.
        let mut pages = Pages::of(args.filter.query(state, limit + 1).skip(args.skip));
        let (mut shown, mut before) = (0, 0);
        loop {
            let mut page = store.wait(pages.next(&**inspect, before)).map_err(|error| failed(&error))?;
            if page.is_empty() {
                break;
            }
            before = page.len();
            if shown + page.len() > limit {
                page.truncate(limit - shown);
                more.push(state_name(state));
            }
            shown += page.len();
            print(&shape(&page, args.quiet, json, &mut table))?;
        }
        listed += shown;
    }
    if !json && !args.quiet {
        note(args, listed, limit, &more);
    }
    Ok(Exit::Done)
}

fn shape(page: &[StoredJob], quiet: bool, json: bool, table: &mut Table<9>) -> Vec<u8> {
    if page.is_empty() {
        return Vec::new();
    }
    let now = now();
    if json {
        page.iter().flat_map(|job| json_line(&JobLine::of(job))).collect()
    } else if quiet {
        page.iter().map(|job| format!("{}\n", escaped(job.job.id.as_str()))).collect::<String>().into_bytes()
    } else {
        table.lines(page.iter().map(|job| row(job, now))).into_bytes()
    }
}

/// What the table does not say.
fn note(args: &ListArgs, listed: usize, limit: usize, more: &[&str]) {
    if listed == 0 {
        refuse(Exit::Done, format!("no such jobs{}", escaped(&args.filter.words())));
    } else if let [first, ..] = more {
        let states = more.join(", ");
        refuse(
            Exit::Done,
            format!("there are more than {limit} {states}: --state {first} --limit N shows more"),
        );
    }
}

/// Shows one job in full.
pub(super) fn show(store: &Store, args: &ShowArgs, json: bool) -> Result<Exit, Exit> {
    let inspect = store.backend.inspect().map_err(|error| failed(&error))?;
    let id = JobId::new(&args.id);
    let found = store.wait(inspect.find(&id)).map_err(|error| failed(&error))?;
    let Some(job) = found else { return Err(refuse(Exit::Failed, missing(&id))) };
    if args.payload {
        return payload(&job);
    }
    let history = kept(store.wait(inspect.history(&id))).map_err(|error| failed(&error))?;
    let history = history.as_deref();
    print(&match json {
        true => json_line(&FullLine::of(&job, history)),
        false => full(&job, history, now()).into_bytes(),
    })?;
    Ok(Exit::Done)
}

/// That there is no such job.
pub(super) fn missing(id: &JobId) -> String {
    format!("there is no job {}: it may have finished", escaped(id.as_str()))
}

/// `None` where no account is kept.
fn kept(history: Result<Vec<PastAttempt>, Error>) -> Result<Option<Vec<PastAttempt>>, Error> {
    match history {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        history => history.map(Some),
    }
}

/// The payload as it is, unless that would drive a terminal.
fn payload(job: &StoredJob) -> Result<Exit, Exit> {
    let bytes = &job.job.payload;
    let plain = std::str::from_utf8(bytes).is_ok_and(|text| escaped(text).len() == text.len());
    if !plain && io::stdout().is_terminal() {
        let why = "the payload is no plain text, and standard output is a terminal: write it to a file";
        return Err(refuse(Exit::Usage, why));
    }
    print(bytes)?;
    Ok(Exit::Done)
}
