//! `tidegate stats`: how many jobs are in each state, once or again and again.

use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::Exit;
use super::stdout::{json_line, print};
use super::store::{Purpose, SourceArgs, Store, failed};
use super::text::{age, count};
use super::times::{local, now, since, utc};
use super::values::time;
use crate::error::Error;
use crate::inspect::Counts;

/// After so many lines the heads are shown again: they are still on a screen of the usual height.
const LINES_A_HEAD: u64 = 20;

pub(crate) const EXITS: &str = "\
Exit status:
    0  all is said
    2  the command line makes no sense
    5  standard output can't be written
   69  the queue is not there, or can't be opened or read
   70  something that should not happen did
   78  the configuration can't be read, or names no queue
  141  standard output was closed before the end";

// At most 78 columns wide, so that no terminal breaks a line of an example.
pub(crate) const MORE: &str = "\
ready      wait and could be run now; OLDEST is for how long the first has
delayed    wait for their time: a delay, or the next attempt
leased     are with a worker
dead       failed for good or cancelled, and are kept to be looked at
done       have finished since the queue was made
kept       of those that have ended, how many can still be looked at
superseded  have made way for a newer job (enqueue --replace), if any have

Examples:
  How is it going?
      tidegate stats
  A line every two seconds, until Ctrl-C:
      tidegate stats --watch 2s
  For an alarm:
      tidegate stats --json | jq -e '.dead < 100'

With --json it is one line:
  {\"at\":\"2030-01-31T13:05:06.5Z\",\"ready\":12,\"delayed\":0,\"leased\":4,
   \"dead\":1,\"done\":1017,\"kept\":0,\"superseded\":0,
   \"oldest_ready_seconds\":3.2}
with null for the last field when no job is ready.
";

/// The options of `tidegate stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Say it again and again, with so much time in between, from 1ms to 366d
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    watch: Option<Duration>,

    /// Say it as JSON, each time on one line
    #[arg(long)]
    json: bool,
}

/// How things stood at a moment.
#[derive(Debug)]
struct Stats {
    at: SystemTime,
    counts: Counts,
    /// For how long the first ready job has been so.
    oldest: Option<Duration>,
}

/// The same as `--json` shows it.
#[derive(Debug, Serialize)]
struct Line {
    at: String,
    ready: u64,
    delayed: u64,
    leased: u64,
    dead: u64,
    done: u64,
    kept: u64,
    superseded: u64,
    oldest_ready_seconds: Option<f64>,
}

/// Does what `args` ask for.
pub(crate) fn run(args: &StatsArgs) -> Exit {
    report(args).unwrap_or_else(|exit| exit)
}

fn report(args: &StatsArgs) -> Result<Exit, Exit> {
    let store = Store::open(&args.source, Purpose::Look)?;
    let Some(pause) = args.watch else {
        let stats = look(&store).map_err(|error| failed(&error))?;
        print(&if args.json { json_line(&stats.json()) } else { stats.table().into_bytes() })?;
        return Ok(Exit::Done);
    };
    let mut lines = 0_u64;
    // A signal ends it: there is nothing to put in order.
    loop {
        match look(&store) {
            Ok(stats) if args.json => print(&json_line(&stats.json()))?,
            Ok(stats) => {
                let heads = if lines.is_multiple_of(LINES_A_HEAD) { heads() } else { String::new() };
                print(format!("{heads}{}", stats.line()).as_bytes())?;
                lines += 1;
            }
            // It may pass: a file that is locked, say.
            Err(error) if error.is_transient() => {
                failed(&error);
            }
            Err(error) => return Err(failed(&error)),
        }
        thread::sleep(pause);
    }
}

fn look(store: &Store) -> Result<Stats, Error> {
    let counts = store.wait(store.inspect()?.counts())?;
    let at = now();
    Ok(Stats { at, counts, oldest: counts.ready_since.map(|first| since(first, at)) })
}

fn heads() -> String {
    let heads = ["READY", "DELAYED", "LEASED", "DEAD", "DONE", "OLDEST"];
    let heads: String = heads.iter().map(|head| format!("  {head:>9}")).collect();
    format!("{:<26}{heads}\n", "TIME")
}

impl Stats {
    fn json(&self) -> Line {
        let Counts { ready, delayed, leased, dead, done, kept, superseded, .. } = self.counts;
        let oldest_ready_seconds = self.oldest.map(|oldest| oldest.as_millis() as f64 / 1e3);
        Line { at: utc(self.at), ready, delayed, leased, dead, done, kept, superseded, oldest_ready_seconds }
    }

    /// A line for each figure.
    fn table(&self) -> String {
        let Counts { ready, delayed, leased, dead, done, kept, superseded, .. } = self.counts;
        let oldest = self.oldest.map(|oldest| format!("  the first for {}", age(oldest)));
        let kept = (kept > 0).then(|| format!("  {} kept", count(kept)));
        let rows = [
            ("ready", ready, oldest),
            ("delayed", delayed, None),
            ("leased", leased, None),
            ("dead", dead, None),
            ("done", done, kept),
            ("superseded", superseded, None),
        ];
        // Most queues never have one that is superseded.
        let shown = rows.into_iter().take(if superseded > 0 { 6 } else { 5 });
        let row = |(name, figure, more): (&str, u64, Option<String>)| {
            let width = 20 - name.len();
            format!("{name}{:>width$}{}\n", count(figure), more.unwrap_or_default())
        };
        shown.map(row).collect()
    }

    /// All figures on one line.
    fn line(&self) -> String {
        let Counts { ready, delayed, leased, dead, done, .. } = self.counts;
        let figures = [ready, delayed, leased, dead, done].map(|figure| format!("  {:>9}", count(figure)));
        let oldest = self.oldest.map_or_else(|| "-".to_owned(), age);
        format!("{:<26}{}  {oldest:>9}\n", local(self.at), figures.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_under_their_heads() {
        let mut counts = Counts::default();
        (counts.ready, counts.leased, counts.dead, counts.done, counts.kept) = (1_234, 4, 1, 10_000_000, 7);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_774_400);
        let stats = Stats { at, counts, oldest: Some(Duration::from_millis(3250)) };
        assert_eq!(
            stats.table(),
            "ready          1,234  the first for 3s\ndelayed            0\nleased             4\n\
             dead               1\ndone      10,000,000  7 kept\n"
        );
        let (heads, line) = (heads(), stats.line());
        assert_eq!((heads.len(), line.len()), (93, 94), "{heads}{line}");
        assert!(
            line.ends_with("      1,234          0          4          1  10,000,000         3s\n"),
            "{line}"
        );
        let json = r#"{"at":"2026-01-30T12:00:00Z","ready":1234,"delayed":0,"leased":4,"dead":1,"done":10000000,"kept":7,"superseded":0,"oldest_ready_seconds":3.25}"#;
        assert_eq!(String::from_utf8(json_line(&stats.json())).unwrap(), format!("{json}\n"));
        let mut stats = stats;
        stats.counts.superseded = 12;
        assert!(stats.table().ends_with("done      10,000,000  7 kept\nsuperseded        12\n"));
        let none = Stats { oldest: None, ..stats };
        assert!(none.table().starts_with("ready          1,234\n") && none.line().ends_with(" -\n"));
    }
}
