//! A record of the log: every event with its fields and the (perhaps paused) time at which it was written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Once};

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) at: Instant,
    pub(crate) message: String,
    pub(crate) fields: BTreeMap<&'static str, String>,
}

/// The events of this thread, from [`Log::record`] until it is dropped.
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<Line>>>,
}

thread_local! {
    static RECORD: RefCell<Option<Arc<Mutex<Vec<Line>>>>> = const { RefCell::new(None) };
}

impl Log {
    /// Records what this thread logs: all of it under a current-thread runtime with a shared dispatcher.
    ///
    /// There is one subscriber for all threads, and each has a record of its own: were subscribers set by
    /// thread, a line first reached by a thread without one would stay switched off for all.
    pub(crate) fn record() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            let recorder = tracing_subscriber::registry().with(Recorder);
            tracing::subscriber::set_global_default(recorder).expect("no other subscriber in this process");
        });
        let lines = Arc::default();
        RECORD.set(Some(Arc::clone(&lines)));
        Self { lines }
    }

    /// The events so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.lock().expect("nothing panics under this lock").clone()
    }

    /// Those at `level` or graver whose message has `part` in it.
    pub(crate) fn with(&self, level: Level, part: &str) -> Vec<Line> {
        let wanted = |line: &Line| line.level <= level && line.message.contains(part);
        self.lines().into_iter().filter(wanted).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        RECORD.set(None);
    }
}

struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(lines) = RECORD.with_borrow(Clone::clone) else { return };
        if !event.metadata().target().starts_with("tidegate") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields(mut fields) = fields;
        let message = fields.remove("message").unwrap_or_default();
        let line = Line { level: *event.metadata().level(), at: Instant::now(), message, fields };
        lines.lock().expect("nothing panics under this lock").push(line);
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// A duration as `{:?}` writes it, read back.
pub(crate) fn duration(text: &str) -> std::time::Duration {
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let seconds = match &text[number.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        unit => panic!("{unit:?} is no unit of time that `Duration` writes"),
    };
    let number: f64 = number.parse().expect("a duration begins with a number");
    std::time::Duration::from_secs_f64(number * seconds)
}
