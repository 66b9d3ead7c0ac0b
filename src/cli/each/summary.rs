//! What is said at the end: [`Summary`].

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::text::{count, rate, span};

/// How many failures the summary lists, and how many unfinished records; `--failed-to` keeps them all. Two
/// screens of a terminal.
const LISTED: usize = 50;

/// What became of all records. Bounded, however many there are.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Begun, and neither done nor failed when it ended.
    pub(super) unfinished: u64,
    /// Read, and not begun when it ended.
    pub(super) put_back: u64,
    /// Attempts after which another was due.
    pub(super) retried: u64,
    failures: Vec<Failure>,
    leftovers: Vec<(u64, String)>,
    unbegun: Vec<(u64, String)>,
}

/// A record that failed for good.
#[derive(Debug)]
struct Failure {
    number: u64,
    attempt: u32,
    reason: Arc<str>,
    excerpt: String,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ending<'a> {
    pub(super) took: Duration,
    pub(super) max_attempts: u32,
    /// What stopped it before the end of the input, if anything did: `TERM`, say.
    pub(super) stopped_by: Option<&'a str>,
    /// The first record that was not begun, if the input was not run to its end.
    pub(super) not_begun: Option<u64>,
    /// Records that failed for good in earlier runs on the same file.
    pub(super) failed_before: u64,
}

/// The summary as `--json` shows it.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    done: u64,
    failed: u64,
    unfinished: u64,
    put_back: u64,
    retried: u64,
    seconds: f64,
    stopped_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_begun_from: Option<u64>,
    #[serde(skip_serializing_if = "super::output::is_zero")]
    failed_before: u64,
}

impl Summary {
    /// A record failed for good with its `attempt`-th attempt (0: it never became one).
    pub(super) fn failed(
        &mut self,
        number: u64,
        attempt: u32,
        reason: &Arc<str>,
        excerpt: impl FnOnce() -> String,
    ) {
        self.failed += 1;
        if self.failures.len() < LISTED {
            self.failures.push(Failure { number, attempt, reason: reason.clone(), excerpt: excerpt() });
        }
    }

    /// A record was begun and not finished.
    pub(super) fn unfinished(&mut self, number: u64, excerpt: impl FnOnce() -> String) {
        self.unfinished += 1;
        if self.leftovers.len() < LISTED {
            self.leftovers.push((number, excerpt()));
        }
    }

    /// A record was read and not begun.
    pub(super) fn put_back(&mut self, number: u64, excerpt: impl FnOnce() -> String) {
        self.put_back += 1;
        if self.unbegun.len() < LISTED {
            self.unbegun.push((number, excerpt()));
        }
    }

    /// The summary for a person.
    pub(super) fn text(&self, ending: &Ending<'_>) -> String {
        let mut text = "tidegate: ".to_owned();
        // Writing to a string can't fail.
        if let Some(by) = ending.stopped_by {
            let _ = write!(text, "stopped by {by} before the end of the input: ");
        }
        let _ = write!(text, "{} done, {} failed", count(self.done), count(self.failed));
        if self.unfinished > 0 {
            let _ = write!(text, ", {} begun and not finished", count(self.unfinished));
        }
        if self.put_back > 0 {
            let _ = write!(text, ", {} read and not begun", count(self.put_back));
        }
        let _ = write!(text, " in {} ({})", span(ending.took), rate(self.done + self.failed, ending.took));
        match self.retried {
            0 => {}
            1 => text.push_str("; 1 attempt was repeated"),
            more => {
                let _ = write!(text, "; {} attempts were repeated", count(more));
            }
        }
        text.push('\n');
        for Failure { number, attempt, reason, excerpt } in &self.failures {
            let _ = write!(text, "tidegate: record {number} failed: {reason}");
            if ending.max_attempts > 1 && *attempt > 0 {
                let _ = write!(text, " (attempt {attempt} of {})", ending.max_attempts);
            }
            let _ = writeln!(text, ": {excerpt}");
        }
        let more = |text: &mut String, all: u64, listed: usize, what: &str| {
            if all > listed as u64 {
                let more = count(all - listed as u64);
                let _ = writeln!(text, "tidegate: and {more} more {what} (--failed-to FILE keeps them all)");
            }
        };
        more(&mut text, self.failed, self.failures.len(), "failed");
        for (number, excerpt) in &self.leftovers {
            let _ = writeln!(text, "tidegate: record {number} was not finished: {excerpt}");
        }
        more(&mut text, self.unfinished, self.leftovers.len(), "were not finished");
        for (number, excerpt) in &self.unbegun {
            let _ = writeln!(text, "tidegate: record {number} was not begun: {excerpt}");
        }
        more(&mut text, self.put_back, self.unbegun.len(), "were not begun");
        if ending.failed_before > 0 {
            let failed = count(ending.failed_before);
            let _ =
                writeln!(text, "tidegate: {failed} failed in earlier runs (--retry-failed tries them again)");
        }
        match ending.not_begun {
            None => {}
            Some(0 | 1) => text.push_str("tidegate: nothing of the input was begun\n"),
            Some(number) => {
                let _ = writeln!(text, "tidegate: nothing after record {} was begun", count(number - 1));
            }
        }
        text
    }

    /// The summary for a program.
    pub(super) fn json(&self, ending: &Ending<'_>) -> impl Serialize {
        let Self { done, failed, unfinished, put_back, retried, .. } = *self;
        let seconds = ending.took.as_micros() as f64 / 1e6;
        let (stopped_by, not_begun_from) = (ending.stopped_by, ending.not_begun);
        Line {
            r#type: "summary",
            done,
            failed,
            unfinished,
            put_back,
            retried,
            seconds,
            stopped_by,
            not_begun_from,
            failed_before: ending.failed_before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Ending<'_> = Ending {
        took: Duration::from_secs(2),
        max_attempts: 1,
        stopped_by: None,
        not_begun: None,
        failed_before: 0,
    };

    #[test]
    fn a_summary_says_no_more_than_there_is_to_say() {
        let summary = Summary { done: 1000, ..Summary::default() };
        assert_eq!(summary.text(&QUICK), "tidegate: 1,000 done, 0 failed in 2.00 s (500/s)\n");
    }

    #[test]
    fn a_summary_names_each_failure_and_how_it_was_stopped() {
        let mut summary = Summary { done: 9, retried: 1, ..Summary::default() };
        summary.failed(7, 3, &"exited with status 1".into(), || "a b".to_owned());
        summary.failed(8, 0, &"is longer than --max-record".into(), || "xxx".to_owned());
        summary.unfinished(9, || "c".to_owned());
        summary.unfinished(10, || "d".to_owned());
        summary.put_back(11, || "e".to_owned());
        let ending = Ending { max_attempts: 3, stopped_by: Some("TERM"), not_begun: Some(14), ..QUICK };
        assert_eq!(
            summary.text(&ending),
            "tidegate: stopped by TERM before the end of the input: 9 done, 2 failed, 2 begun and not finished, 1 read and \
             not begun in 2.00 s (5.5/s); 1 attempt was repeated\n\
             tidegate: record 7 failed: exited with status 1 (attempt 3 of 3): a b\n\
             tidegate: record 8 failed: is longer than --max-record: xxx\n\
             tidegate: record 9 was not finished: c\n\
             tidegate: record 10 was not finished: d\n\
             tidegate: record 11 was not begun: e\n\
             tidegate: nothing after record 13 was begun\n"
        );
        let json = serde_json::to_string(&summary.json(&ending)).expect("plain figures");
        let expected = r#"{"type":"summary","done":9,"failed":2,"unfinished":2,"put_back":1,"retried":1,"seconds":2.0,"stopped_by":"TERM","not_begun_from":14}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn a_summary_of_countless_failures_stays_short() {
        let mut summary = Summary::default();
        for number in 1..=10_000 {
            summary.failed(number, 1, &"exited with status 1".into(), || "x".to_owned());
        }
        let text = summary.text(&QUICK);
        assert_eq!(text.lines().count(), 1 + LISTED + 1);
        assert!(
            text.ends_with("tidegate: and 9,950 more failed (--failed-to FILE keeps them all)\n"),
            "{text}"
        );
    }
}
