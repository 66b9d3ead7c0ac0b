//! What finished records leave on standard output and standard error: [`Printer`], and how it looks.
//!
//! One thread owns standard output and writes one record's output after the other, each whole, so that no two
//! are ever mixed. When whoever reads it is slow, the bounded channel fills, settling waits, and no new jobs
//! start: nothing piles up.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::progress::Console;
use crate::cli::child::exec::Ended;
use crate::cli::child::pipes::Captured;
use crate::cli::stdout::{json_line, write_whole};
use crate::cli::text::{base64, count, excerpt};

/// How many records' output may wait to be written. Enough to keep the thread busy; each may be twice as large
/// as `--max-output`.
const WAITING: usize = 4;

/// What is to be said of one attempt.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) number: u64,
    pub(super) record: Bytes,
    pub(super) attempt: u32,
    /// `None` when no child was started, or when it had to be given up.
    pub(super) ended: Option<Ended>,
    pub(super) fate: Fate,
}

/// What became of the record with this attempt.
#[derive(Debug)]
pub(super) enum Fate {
    Done,
    /// It will not be tried again, for this reason.
    Failed(Arc<str>),
    /// It is not finished: tried again later, or stopped.
    Open,
}

/// How records are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) json: bool,
    pub(super) tag: bool,
}

impl Finished {
    /// Whether there is anything to write.
    fn says_something(&self, style: Style) -> bool {
        let kept = |captured: &Captured| !captured.bytes.is_empty() || captured.dropped > 0;
        match (&self.fate, &self.ended) {
            (Fate::Open, _) if style.json => false,
            (_, _) if style.json => true,
            (Fate::Open, Some(ended)) => kept(&ended.stderr),
            (_, Some(ended)) => kept(&ended.stdout) || kept(&ended.stderr),
            (_, None) => false,
        }
    }

    /// What goes to standard output and what to standard error.
    fn render(&self, style: Style) -> (Vec<u8>, Vec<u8>) {
        if !self.says_something(style) {
            return Default::default();
        }
        if style.json {
            return (json_line(&Line::new(self)), Vec::new());
        }
        let Some(ended) = &self.ended else { return Default::default() };
        let tag = style.tag.then(|| excerpt(&self.record));
        let mut err = lines(&ended.stderr.bytes, tag.as_deref());
        // What an unfinished attempt has written so far would be there twice in the end.
        let settled = !matches!(self.fate, Fate::Open);
        let out = if settled { lines(&ended.stdout.bytes, tag.as_deref()) } else { Vec::new() };
        let outputs = [("output", &ended.stdout, settled), ("error", &ended.stderr, true)];
        for (name, captured, shown) in outputs {
            if captured.dropped > 0 && shown {
                let (number, dropped) = (self.number, count(captured.dropped));
                let note = format!(
                    "tidegate: record {number}: {dropped} bytes of standard {name} beyond --max-output dropped\n"
                );
                err.extend_from_slice(note.as_bytes());
            }
        }
        (out, err)
    }
}

/// Whole lines: the last one gets its end if it has none, and each its tag.
fn lines(bytes: &[u8], tag: Option<&str>) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes.len() + 1);
    match tag {
        None => lines.extend_from_slice(bytes),
        Some(tag) => {
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                lines.extend_from_slice(tag.as_bytes());
                lines.push(b'\t');
                lines.extend_from_slice(line);
            }
        }
    }
    if lines.last().is_some_and(|last| *last != b'\n') {
        lines.push(b'\n');
    }
    lines
}

/// Bytes as JSON can hold them: as text where they are UTF-8, else in Base64.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Plain(&'a str),
    Coded { base64: String },
}

impl<'a> Text<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(|_| Self::Coded { base64: base64(bytes) }, Self::Plain)
    }
}

/// A finished record as `--json` shows it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    r#type: &'static str,
    id: u64,
    record: Text<'a>,
    ok: bool,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(flatten)]
    child: Option<Child<'a>>,
}

#[derive(Debug, Serialize)]
struct Child<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    seconds: f64,
    stdout: Text<'a>,
    stderr: Text<'a>,
    #[serde(skip_serializing_if = "is_zero")]
    stdout_bytes_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    stderr_bytes_dropped: u64,
}

pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'a> Line<'a> {
    fn new(finished: &'a Finished) -> Self {
        let error = match &finished.fate {
            Fate::Failed(reason) => Some(&**reason),
            Fate::Done | Fate::Open => None,
        };
        let child = finished.ended.as_ref().map(|ended| Child {
            exit_code: ended.status.code(),
            signal: ended.status.signal(),
            // Microseconds: a finer figure would only be longer.
            seconds: ended.took.as_micros() as f64 / 1e6,
            stdout: Text::new(&ended.stdout.bytes),
            stderr: Text::new(&ended.stderr.bytes),
            stdout_bytes_dropped: ended.stdout.dropped,
            stderr_bytes_dropped: ended.stderr.dropped,
        });
        let (id, attempts) = (finished.number, finished.attempt);
        Self {
            r#type: "record",
            id,
            record: Text::new(&finished.record),
            ok: error.is_none(),
            attempts,
            error,
            child,
        }
    }
}

/// The near end of the writing thread.
#[derive(Debug)]
pub(super) struct Printer {
    send: mpsc::Sender<Message>,
    style: Style,
}

#[derive(Debug)]
enum Message {
    Show(Finished),
    /// Tell when all before this is written.
    Tell(oneshot::Sender<()>),
    /// The last: this goes to standard output as it is.
    End(Vec<u8>),
}

/// The place for one record's output.
#[derive(Debug)]
pub(super) struct Room<'a> {
    permit: Option<mpsc::Permit<'a, Message>>,
    style: Style,
}

impl Printer {
    /// Starts the thread. `broken` is called at the first failure to write to standard output, after which
    /// nothing more is written there; what it was comes out of the receiver when all is written.
    pub(super) fn start(
        style: Style,
        console: Arc<Console>,
        broken: impl FnOnce() + Send + 'static,
    ) -> io::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let (send, messages) = mpsc::channel(WAITING);
        let (over, done) = oneshot::channel();
        let work = move || {
            // Nobody waits any more when the time to stop is over.
            let _ = over.send(write_all(messages, style, &stdout, &console, broken));
        };
        // It says when it ends; joining it could mean to wait for a reader who never reads.
        thread::Builder::new().name("tidegate-output".to_owned()).stack_size(256 << 10).spawn(work)?;
        Ok((Self { send, style }, done))
    }

    /// Has what was handed in written, and `last` after it. Nothing more may be handed in then.
    pub(super) async fn end(&self, last: Vec<u8>) {
        // If the thread is gone, its answer has said so.
        let _ = self.send.send(Message::End(last)).await;
    }

    /// Waits until all that was handed in is written, or can't be.
    pub(super) async fn written(&self) {
        let (tell, told) = oneshot::channel();
        // If the thread is gone, there is nothing to wait for.
        if self.send.send(Message::Tell(tell)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// Waits until one more record's output may be handed in.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn room(&self) -> Room<'_> {
        Room { permit: self.send.reserve().await.ok(), style: self.style }
    }
}

impl Room<'_> {
    /// Hands it in, if it says anything.
    pub(super) fn print(self, finished: Finished) {
        if let Some(permit) = self.permit.filter(|_| finished.says_something(self.style)) {
            permit.send(Message::Show(finished));
        }
    }
}

/// The body of the thread.
fn write_all(
    mut messages: mpsc::Receiver<Message>,
    style: Style,
    stdout: &File,
    console: &Console,
    broken: impl FnOnce(),
) -> io::Result<()> {
    let mut broken = Some(broken);
    let mut answer = Ok(());
    while let Some(message) = messages.blocking_recv() {
        let (out, err, last) = match message {
            Message::Show(finished) => {
                let (out, err) = finished.render(style);
                (out, err, false)
            }
            Message::Tell(tell) => {
                let _ = tell.send(()); // who asked may have gone
                continue;
            }
            Message::End(out) => (out, Vec::new(), true),
        };
        if !out.is_empty() && answer.is_ok() {
            answer = console.aside(|| write_whole(stdout, &out));
            if answer.is_err() {
                broken.take().into_iter().for_each(|tell| tell());
            }
        }
        console.say(&err);
        if last {
            break;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;
    use std::time::Duration;

    use super::*;

    fn finished(stdout: &[u8], stderr: &[u8], status: i32, fate: Fate) -> Finished {
        let captured = |bytes: &[u8]| Captured { bytes: bytes.to_vec(), ..Captured::default() };
        let ended = Ended {
            status: ExitStatus::from_raw(status),
            stdout: captured(stdout),
            stderr: captured(stderr),
            took: Duration::from_micros(1500),
            told_to_stop: false,
        };
        Finished { number: 17, record: Bytes::from_static(b"re\tc"), attempt: 2, ended: Some(ended), fate }
    }

    const TEXT: Style = Style { json: false, tag: false };
    const TAGGED: Style = Style { json: false, tag: true };
    const JSON: Style = Style { json: true, tag: false };

    fn shown(finished: &Finished, style: Style) -> (String, String) {
        let (out, err) = finished.render(style);
        assert_eq!(finished.says_something(style), !(out.is_empty() && err.is_empty()));
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn text_is_shown_whole_and_ends_its_last_line() {
        let both = finished(b"one\ntwo", b"oops", 0, Fate::Done);
        assert_eq!(shown(&both, TEXT), ("one\ntwo\n".into(), "oops\n".into()));
        assert_eq!(shown(&both, TAGGED), ("re\\tc\tone\nre\\tc\ttwo\n".into(), "re\\tc\toops\n".into()));
        assert_eq!(shown(&finished(b"", b"", 0, Fate::Done), TEXT), Default::default());
    }

    #[test]
    fn an_unfinished_attempt_shows_its_complaints_but_no_result() {
        let open = finished(b"half a result", b"oops\n", 256, Fate::Open);
        assert_eq!(shown(&open, TEXT), (String::new(), "oops\n".into()));
        assert_eq!(shown(&open, JSON), Default::default());
        assert_eq!(shown(&finished(b"half", b"", 256, Fate::Open), TEXT), Default::default());
    }

    #[test]
    fn what_was_dropped_is_said() {
        let mut long = finished(b"abc", b"", 0, Fate::Done);
        long.ended.as_mut().unwrap().stdout.dropped = 12_345;
        let note = "tidegate: record 17: 12,345 bytes of standard output beyond --max-output dropped\n";
        assert_eq!(shown(&long, TEXT), ("abc\n".into(), note.into()));
        assert!(shown(&long, JSON).0.contains("\"stdout_bytes_dropped\":12345"));
    }

    #[test]
    fn json_tells_all_and_loses_no_byte() {
        let ok = finished(b"a\n\"b\"", b"", 0, Fate::Done);
        let line = r#"{"type":"record","id":17,"record":"re\tc","ok":true,"attempts":2,"exit_code":0,"seconds":0.0015,"stdout":"a\n\"b\"","stderr":""}"#;
        assert_eq!(shown(&ok, JSON), (format!("{line}\n"), String::new()));
        let killed = finished(b"\xff\xfe\xfd", b"", 9, Fate::Failed("was killed".into()));
        let line = r#"{"type":"record","id":17,"record":"re\tc","ok":false,"attempts":2,"error":"was killed","signal":9,"seconds":0.0015,"stdout":{"base64":"//79"},"stderr":""}"#;
        assert_eq!(shown(&killed, JSON), (format!("{line}\n"), String::new()));
        let never = Finished { ended: None, ..finished(b"", b"", 0, Fate::Failed("has a NUL byte".into())) };
        let line =
            r#"{"type":"record","id":17,"record":"re\tc","ok":false,"attempts":2,"error":"has a NUL byte"}"#;
        assert_eq!(shown(&never, JSON), (format!("{line}\n"), String::new()));
    }
}
