//! `tidegate jobs list` and `tidegate jobs show`.

use std::io::{self, IsTerminal as _};

use super::args::{ListArgs, ShowArgs};
use super::pages::Pages;
use super::view::{FullLine, HEADS, JobLine, full, row, state_name};
use crate::cli::excerpt::escaped;
use crate::cli::stdout::{json_line, print};
use crate::cli::store::{Store, failed};
use crate::cli::table::{Table, terminal_width};
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

/// The most rows that are laid out together.
const ROWS: usize = 1_000;

/// Lists jobs, state by state.
pub(super) fn list(store: &Store, args: &ListArgs, json: bool) -> Result<Exit, Exit> {
    let mut states: Vec<JobState> = args.state.iter().map(|state| JobState::from(*state)).collect();
    if states.is_empty() {
        states.extend(USUAL);
    }
    let several = states.len() > 1;
    if args.skip > 0 && several {
        return Err(refuse(
            Exit::Usage,
            "--skip needs --state with the one state whose first jobs are left out",
        ));
    }
    let limit = args.limit.unwrap_or(if several { LIMIT_OF_SEVERAL } else { LIMIT_OF_ONE }) as usize;
    let inspect = &**store.inspect().map_err(|error| failed(&error))?;
    let mut shown = Shown::new(args.quiet, json);
    let mut more = Vec::new();
    for state in states {
        // One more than is shown tells whether there are more.
        let mut pages = Pages::of(args.filter.query(state, limit + 1).skip(args.skip));
        let mut left = limit;
        loop {
            let page = store.wait(pages.next(inspect)).map_err(|error| failed(&error))?;
            let length = page.len();
            if length == 0 {
                break;
            }
            if length > left {
                more.push(state_name(state));
            }
            shown.add(&page[..length.min(left)])?;
            left = left.saturating_sub(length);
        }
    }
    shown.end()?;
    if !json && !args.quiet {
        note(args, shown.listed, limit, &more);
    }
    Ok(Exit::Done)
}

/// What is shown of the jobs.
struct Shown {
    quiet: bool,
    json: bool,
    table: Table<9>,
    /// Laid out together, so that their columns are those of all.
    rows: Vec<[String; 9]>,
    listed: usize,
}

impl Shown {
    fn new(quiet: bool, json: bool) -> Self {
        let table = Table::new(HEADS, terminal_width());
        Self { quiet, json, table, rows: Vec::new(), listed: 0 }
    }

    fn add(&mut self, jobs: &[StoredJob]) -> Result<(), Exit> {
        self.listed += jobs.len();
        if self.json {
            return print(&jobs.iter().flat_map(|job| json_line(&JobLine::of(job))).collect::<Vec<u8>>());
        }
        if self.quiet {
            let id = |job: &StoredJob| format!("{}\n", escaped(job.job.id.as_str()));
            return print(jobs.iter().map(id).collect::<String>().as_bytes());
        }
        let now = now();
        self.rows.extend(jobs.iter().map(|job| row(job, now)));
        if self.rows.len() >= ROWS { self.end() } else { Ok(()) }
    }

    /// Writes what has not been written yet.
    fn end(&mut self) -> Result<(), Exit> {
        if self.rows.is_empty() {
            return Ok(());
        }
        print(self.table.lines(self.rows.drain(..)).as_bytes())
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
    let inspect = store.inspect().map_err(|error| failed(&error))?;
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
    let harmless = |part: &str| escaped(part).len() == part.len();
    let plain = std::str::from_utf8(bytes).is_ok_and(|text| text.split(['\n', '\t']).all(harmless));
    if !plain && io::stdout().is_terminal() {
        let why = "the payload is no plain text, and standard output is a terminal: write it to a file";
        return Err(refuse(Exit::Usage, why));
    }
    print(bytes)?;
    Ok(Exit::Done)
}
