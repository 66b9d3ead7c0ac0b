//! The log of the daemon on standard error: a line an event, for a person on a terminal, as JSON otherwise.
//!
//! Invariants:
//!
//! 1. Whoever logs never waits for whoever reads: lines go through a queue of bounded length to a thread that writes
//!    them. What does not fit is dropped, counted, and said to be when there is room again.
//! 2. That nobody reads, or that it can't be written, stops nothing.
//! 3. A line is one line, whatever is in its values, and of bounded length.
//!
//! Only what this crate says is shown below WARN: what a library has to say may hold what nobody should see.

mod fields;
mod line;
mod writer;

use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

use self::fields::Fields;
use self::line::{Line, Look};
use self::writer::Writer;
use super::config::LogSettings;

/// From which level on events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For a person on a terminal, and JSON otherwise.
    Auto,
    Human,
    Json,
}

impl Level {
    pub(crate) const WORDS: &[(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    fn filter(self) -> Targets {
        let level = match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        };
        Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_CRATE_NAME"), level)
    }
}

impl Format {
    pub(crate) const WORDS: &[(&'static str, Self)] =
        &[("auto", Self::Auto), ("human", Self::Human), ("json", Self::Json)];

    fn is_json(self) -> bool {
        match self {
            Self::Auto => !io::stderr().is_terminal(),
            Self::Human => false,
            Self::Json => true,
        }
    }
}

/// The log, from its start to its end. Dropped, it writes what has been logged, unless nobody reads that.
pub(crate) struct Log {
    form: Arc<Form>,
    writer: Arc<Writer>,
    filter: reload::Handle<Targets, Registry>,
}

/// How a line looks now.
struct Form {
    json: AtomicBool,
    look: Look,
}

impl Form {
    fn bytes(&self, line: &Line) -> Vec<u8> {
        if self.json.load(Ordering::Relaxed) { line.json() } else { line.human(self.look) }
    }
}

impl Log {
    /// Begins to log what this process does. To be called once.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(settings: LogSettings) -> io::Result<Self> {
        let terminal = io::stderr().is_terminal();
        let unwanted = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let look = Look { short: terminal, colours: terminal && !dumb && !unwanted("NO_COLOR") };
        let json = AtomicBool::new(settings.format.is_json());
        let form = Arc::new(Form { json, look });
        let of_writer = form.clone();
        let writer = Arc::new(Writer::start(move |lines| of_writer.bytes(&Line::about_dropped(lines)))?);
        let (filter, handle) = reload::Layer::new(settings.level.filter());
        let lines = Lines { form: form.clone(), writer: writer.clone() };
        tracing::subscriber::set_global_default(Registry::default().with(filter).with(lines))
            .map_err(io::Error::other)?;
        std::panic::set_hook(Box::new(note_panic));
        Ok(Self { form, writer, filter: handle })
    }

    /// Goes on by other settings.
    pub(crate) fn change(&self, settings: LogSettings) {
        self.form.json.store(settings.format.is_json(), Ordering::Relaxed);
        // The subscriber lives as long as the process.
        let _ = self.filter.reload(settings.level.filter());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.writer.end();
    }
}

/// A panic is an event as any other: its line can be read by what reads the others.
fn note_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let what = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("without a message");
    tracing::error!(what, place, thread, "panicked");
}

/// Makes a line of each event.
struct Lines {
    form: Arc<Form>,
    writer: Arc<Writer>,
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.add_missing(of_span);
            }
        }
        let line = Line::now(*event.metadata().level(), fields);
        self.writer.write(self.form.bytes(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_have_to_say_is_shown_from_warn_on_at_most() {
        for (level, ours, theirs) in [
            (Level::Error, tracing::Level::ERROR, tracing::Level::ERROR),
            (Level::Info, tracing::Level::INFO, tracing::Level::WARN),
            (Level::Trace, tracing::Level::TRACE, tracing::Level::WARN),
        ] {
            let filter = level.filter();
            for (target, most) in [("tidegate::worker::run", ours), ("hyper::proto", theirs)] {
                for event in
                    [tracing::Level::ERROR, tracing::Level::WARN, tracing::Level::INFO, tracing::Level::TRACE]
                {
                    assert_eq!(
                        filter.would_enable(target, &event),
                        event <= most,
                        "{level:?} {target} {event}"
                    );
                }
            }
        }
    }
}
