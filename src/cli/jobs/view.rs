//! A job as programs see it, as a row of a table, and in full. Pure: the time is an argument.

use std::fmt::Write as _;
use std::str::from_utf8;
use std::time::SystemTime;

use serde::Serialize;

use crate::cli::excerpt::escaped;
use crate::cli::text::{age, base64, count, excerpt, span};
use crate::cli::times::{local, since, utc};
use crate::inspect::{AttemptEnd, JobState, PastAttempt, StoredJob};
use crate::job::JobId;
use crate::source::truncate;

/// How much of a payload or an output is shown to a person if it is text: some screens.
const SHOWN_TEXT: usize = 16 << 10;

/// How much of it if it is not: sixteen lines.
const SHOWN_BYTES: usize = 256;

/// The heads of [`row`].
pub(super) const HEADS: [&str; 9] =
    ["ID", "STATE", "QUEUE", "KIND", "TRIES", "SINCE", "DUE", "PAYLOAD", "ERROR"];

/// What a state is called.
pub(super) fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Ready => "ready",
        JobState::Delayed => "delayed",
        JobState::Leased => "leased",
        JobState::Dead => "dead",
        JobState::Done => "done",
    }
}

/// What an end is called.
fn end_name(end: AttemptEnd) -> &'static str {
    match end {
        AttemptEnd::Done => "done",
        AttemptEnd::Retried => "retried",
        AttemptEnd::Rejected => "rejected",
        AttemptEnd::Released => "released",
        AttemptEnd::Lapsed => "lapsed",
        AttemptEnd::Superseded => "superseded",
    }
}

// ---- for programs ----

/// A job as `--json` shows it.
#[derive(Debug, Serialize)]
pub(super) struct JobLine<'a> {
    id: &'a str,
    state: &'static str,
    kind: &'a str,
    queue: &'a str,
    priority: i16,
    attempts: u32,
    max_attempts: Option<u32>,
    timeout: Option<f64>,
    enqueued_at: String,
    since: String,
    due: Option<String>,
    cancel_requested: bool,
    superseded_by: Option<&'a str>,
    last_error: Option<&'a str>,
    #[serde(flatten)]
    payload: Payload<'a>,
}

/// The bytes of a payload, as a text if they are one.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Text { payload: &'a str },
    Bytes { payload_base64: String },
}

/// The same for what an attempt has left.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Output<'a> {
    Text { output: &'a str },
    Bytes { output_base64: String },
}

impl<'a> JobLine<'a> {
    pub(super) fn of(stored: &'a StoredJob) -> Self {
        let job = &*stored.job;
        let coded = |_| Payload::Bytes { payload_base64: base64(&job.payload) };
        Self {
            id: job.id.as_str(),
            state: state_name(stored.state),
            kind: job.kind.as_str(),
            queue: job.queue.as_str(),
            priority: job.priority,
            attempts: stored.attempts,
            max_attempts: job.max_attempts,
            timeout: job.timeout.map(|timeout| timeout.as_secs_f64()),
            enqueued_at: utc(job.enqueued_at),
            since: utc(stored.since),
            due: stored.due.map(utc),
            cancel_requested: stored.cancel_requested,
            superseded_by: stored.superseded_by.as_ref().map(JobId::as_str),
            last_error: stored.last_error.as_deref(),
            payload: from_utf8(&job.payload).map_or_else(coded, |payload| Payload::Text { payload }),
        }
    }
}

/// A job with its attempts; `null` where no account of them is kept.
#[derive(Debug, Serialize)]
pub(super) struct FullLine<'a> {
    #[serde(flatten)]
    job: JobLine<'a>,
    history: Option<Vec<AttemptLine<'a>>>,
}

#[derive(Debug, Serialize)]
struct AttemptLine<'a> {
    attempt: u32,
    end: &'static str,
    started_at: String,
    ended_at: String,
    error: Option<&'a str>,
    #[serde(flatten)]
    output: Option<Output<'a>>,
}

impl<'a> FullLine<'a> {
    pub(super) fn of(stored: &'a StoredJob, history: Option<&'a [PastAttempt]>) -> Self {
        let line = |past: &'a PastAttempt| AttemptLine {
            attempt: past.attempt,
            end: end_name(past.end),
            started_at: utc(past.started_at),
            ended_at: utc(past.ended_at),
            error: past.error.as_deref(),
            output: past.output.as_deref().map(|bytes| {
                let coded = |_| Output::Bytes { output_base64: base64(bytes) };
                from_utf8(bytes).map_or_else(coded, |output| Output::Text { output })
            }),
        };
        let history = history.map(|history| history.iter().map(line).collect());
        Self { job: JobLine::of(stored), history }
    }
}

// ---- for people ----

/// A job as a row of a table. Its cells are not escaped yet.
pub(super) fn row(stored: &StoredJob, now: SystemTime) -> [String; 9] {
    let job = &stored.job;
    let tries = match job.max_attempts {
        Some(most) => format!("{}/{most}", stored.attempts),
        None => stored.attempts.to_string(),
    };
    let state = match stored.state {
        JobState::Done if stored.superseded_by.is_some() => "superseded",
        _ if stored.cancel_requested => "leased, to be cancelled",
        state => state_name(state),
    };
    [
        job.id.to_string(),
        state.to_owned(),
        job.queue.to_string(),
        job.kind.to_string(),
        tries,
        age(since(stored.since, now)),
        stored.due.map(|due| age(since(now, due))).unwrap_or_default(),
        excerpt(&job.payload),
        stored.last_error.as_deref().unwrap_or_default().to_owned(),
    ]
}

/// All that there is about a job. Nothing in it drives the terminal.
pub(super) fn full(stored: &StoredJob, history: Option<&[PastAttempt]>, now: SystemTime) -> String {
    let job = &stored.job;
    let mut page = Page(String::new());
    page.field("id", job.id.as_str());
    page.field("kind", job.kind.as_str());
    page.field("queue", job.queue.as_str());
    page.field("priority", &job.priority.to_string());
    page.field("state", state_name(stored.state));
    page.field("since", &ago(stored.since, now));
    if let Some(due) = stored.due {
        let what = match stored.state {
            JobState::Leased => "lease until",
            JobState::Done => "kept until",
            _ => "ready at",
        };
        let left = since(now, due);
        let left = if left.is_zero() { "now".to_owned() } else { format!("in {}", age(left)) };
        page.field(what, &format!("{} ({left})", local(due)));
    }
    if stored.cancel_requested {
        page.field("cancel", "asked for; its worker is told with the next renewal of its lease");
    }
    if let Some(by) = &stored.superseded_by {
        page.field("superseded", &format!("by job {by}, which is newer; this one is not tried again"));
    }
    page.field("enqueued", &ago(job.enqueued_at, now));
    let most = job.max_attempts.map_or("as many as the worker says".to_owned(), |most| most.to_string());
    page.field("attempts", &format!("{} of {most}", stored.attempts));
    page.field("timeout", &job.timeout.map_or("as the worker says".to_owned(), span));
    if let Some(error) = &stored.last_error {
        page.text("last error", error.as_bytes(), "");
    }
    page.text("payload", &job.payload, ": `--payload` writes all of it");
    match history {
        None => page.field("history", "this queue keeps none"),
        Some([]) => page.field("history", "no attempt has ended yet"),
        Some(attempts) => {
            let mut before = None;
            for past in attempts {
                if before.is_some_and(|before| begins_anew(before, past)) {
                    page.field("retried", "by hand: its attempts begin anew");
                }
                page.attempt(past);
                before = Some(past);
            }
        }
    }
    page.0
}

/// Whether somebody has made the dead job ready between these two: numbers grow, unless an attempt was handed back.
fn begins_anew(before: &PastAttempt, past: &PastAttempt) -> bool {
    past.attempt < before.attempt || past.attempt == before.attempt && before.end != AttemptEnd::Released
}

fn ago(moment: SystemTime, now: SystemTime) -> String {
    format!("{} ({} ago)", local(moment), age(since(moment, now)))
}

/// Names on the left, what they stand for on the right of them, or below and indented.
struct Page(String);

// Writing to a string can't fail.
impl Page {
    fn field(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name:<12} {}", escaped(value));
    }

    fn attempt(&mut self, past: &PastAttempt) {
        let took = span(since(past.started_at, past.ended_at));
        let started = local(past.started_at);
        let by = past.superseded_by.as_ref().map(|by| format!(" by job {by}")).unwrap_or_default();
        self.field(
            &format!("attempt {}", past.attempt),
            &format!("{}{by} after {took}, begun {started}", end_name(past.end)),
        );
        if let Some(error) = &past.error {
            self.text("  error", error.as_bytes(), "");
        }
        if let Some(output) = &past.output {
            self.text("  output", output, ": `--json` has all of it");
        }
    }

    /// Bytes as lines of text, or as numbers if they are none; `more` says where the rest is.
    fn text(&mut self, name: &str, bytes: &[u8], more: &str) {
        let text = from_utf8(bytes).ok();
        let what = if text.is_some() { "" } else { ", no text" };
        let shown = bytes.len().min(if text.is_some() { SHOWN_TEXT } else { SHOWN_BYTES });
        match text {
            Some("") => return self.field(name, "empty"),
            Some(text) if text.len() == shown && !text.trim_end().contains('\n') => {
                return self.field(name, text.trim_end_matches('\n'));
            }
            Some(text) => {
                self.field(name, &format!("{} bytes{what}", count(bytes.len() as u64)));
                for line in truncate(text, shown).lines() {
                    let _ = writeln!(self.0, "    {}", escaped(line));
                }
            }
            None => {
                self.field(name, &format!("{} bytes{what}", count(bytes.len() as u64)));
                for (at, part) in bytes[..shown].chunks(16).enumerate() {
                    let _ = writeln!(self.0, "    {}", dumped(at * 16, part));
                }
            }
        }
        if bytes.len() > shown {
            let _ = writeln!(self.0, "    … and {} more{more}", count((bytes.len() - shown) as u64));
        }
    }
}

/// A line of `hexdump -C`.
fn dumped(at: usize, bytes: &[u8]) -> String {
    let mut line = format!("{at:08x} ");
    for byte in bytes {
        let _ = write!(line, " {byte:02x}");
    }
    let graphic = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' };
    let text: String = bytes.iter().map(graphic).collect();
    format!("{line:<57}  |{text}|")
}
