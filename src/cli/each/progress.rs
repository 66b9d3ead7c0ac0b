//! How far it has got, while it runs: [`Figures`], and the [`Console`] that shows them.
//!
//! On a terminal that can draw there is a bar, drawn by a thread of its own from counters that cost the runtime
//! nothing; elsewhere a plain line now and then. Whoever writes to the terminal asks the console, so that nothing is written into
//! the bar.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;

use crate::cli::text::{count, rate, span};

/// The time between two plain lines: rare enough for a log, soon enough for a person who waits.
pub(super) const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// The time between two drawings of the bar: figures that change faster can't be read.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// What has been counted so far.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) done: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) running: AtomicU64,
    /// Failed, and waiting for their next attempt.
    pub(super) waiting: AtomicU64,
    /// Bytes of the input that are over with.
    pub(super) bytes: AtomicU64,
    begun: Instant,
}

impl Figures {
    pub(super) fn new() -> Self {
        let zero = AtomicU64::default;
        Self {
            done: zero(),
            failed: zero(),
            running: zero(),
            waiting: zero(),
            bytes: zero(),
            begun: Instant::now(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// So many records done and failed.
    pub(super) fn over(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, failed) = self.over();
        let (running, waiting) = (self.running.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed));
        write!(f, "{} done", count(done))?;
        if failed > 0 {
            write!(f, ", {} failed", count(failed))?;
        }
        write!(f, ", {running} running")?;
        if waiting > 0 {
            write!(f, ", {waiting} to be tried again")?;
        }
        let elapsed = self.elapsed();
        write!(f, ", {}, {}", rate(done + failed, elapsed), span(elapsed))
    }
}

/// When to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Show {
    /// A bar on a terminal that can draw one, plain lines elsewhere.
    Auto,
    /// A line every 30 s.
    Plain,
    /// Nothing.
    Never,
}

/// What is shown to a person on standard error.
#[derive(Debug)]
pub(super) struct Console {
    figures: Arc<Figures>,
    bar: Option<ProgressBar>,
    /// Whether what goes to standard output shows on the bar's terminal.
    stdout_shows: bool,
    plain: bool,
}

impl Console {
    /// `size` is how many bytes the input has, where that is known.
    pub(super) fn new(show: Show, size: Option<u64>, figures: Arc<Figures>) -> Self {
        let on_terminal = show == Show::Auto && io::stderr().is_terminal();
        // A terminal that can't draw (`TERM` is `dumb`, or not set) hides the bar; it can show lines.
        let bar = on_terminal.then(|| bar(size, figures.clone())).filter(|bar| !bar.is_hidden());
        let plain = bar.is_none() && show != Show::Never;
        Self { figures, bar, stdout_shows: io::stdout().is_terminal(), plain }
    }

    /// Writes to standard error: whole, and not into the bar. Nobody can be told if that fails.
    pub(super) fn say(&self, text: &[u8]) {
        if !text.is_empty() {
            let write = || io::stderr().lock().write_all(text);
            let _ = self.bar.as_ref().map_or_else(write, |bar| bar.suspend(write));
        }
    }

    /// Has `write` write to standard output, not into the bar.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            // Only then: while the bar is put aside nobody else can touch it, and a pipe may block for long.
            Some(bar) if self.stdout_shows => bar.suspend(write),
            _ => write(),
        }
    }

    /// Takes note that so many more bytes of the input are over with.
    pub(super) fn advance(&self, bytes: u64) {
        let position = self.figures.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Says how far it has got, if that is said in plain lines.
    pub(super) fn plain_line(&self) {
        if self.plain {
            self.say(format!("tidegate: {}\n", self.figures).as_bytes());
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(size: Option<u64>, figures: Arc<Figures>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:24} {percent:>3}%  {figures}{left}"),
        None => (ProgressBar::no_length(), "{spinner}  {figures}"),
    };
    // The templates are the two above; should they not be understood, a bar of another look will do.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let left = figures.clone();
    let style = style.with_key("figures", move |_: &ProgressState, out: &mut dyn fmt::Write| {
        // There is no one to tell of a failure to draw.
        let _ = write!(out, "{figures}");
    });
    bar.set_style(style.with_key("left", move |state: &ProgressState, out: &mut dyn fmt::Write| {
        let left = state.len().and_then(|size| time_left(size, state.pos(), left.elapsed()));
        let _ = left.map_or(Ok(()), |left| write!(out, ", {} left", span(left)));
    }));
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(DRAW_EVERY);
    bar
}

/// How long the rest of `size` bytes takes if it goes on as it did; unknown before anything is over with.
fn time_left(size: u64, over: u64, elapsed: Duration) -> Option<Duration> {
    let rest = size.saturating_sub(over) as f64 / over as f64;
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * rest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_unknown_at_first_and_nothing_in_the_end() {
        let left = |over| time_left(1000, over, Duration::from_secs(10));
        assert_eq!(
            [left(0), left(250), left(1000)],
            [None, Some(Duration::from_secs(30)), Some(Duration::ZERO)]
        );
        assert_eq!(left(1001), Some(Duration::ZERO), "a last line without its end counts as if it had one");
        assert_eq!(time_left(0, 0, Duration::ZERO), None);
    }

    #[tokio::test(start_paused = true)]
    async fn figures_leave_out_what_there_is_none_of() {
        let figures = Figures::new();
        tokio::time::advance(Duration::from_secs(2)).await;
        figures.done.store(1234, Ordering::Relaxed);
        figures.running.store(20, Ordering::Relaxed);
        assert_eq!(figures.to_string(), "1,234 done, 20 running, 617/s, 2.00 s");
        figures.failed.store(2, Ordering::Relaxed);
        figures.waiting.store(1, Ordering::Relaxed);
        assert_eq!(
            figures.to_string(),
            "1,234 done, 2 failed, 20 running, 1 to be tried again, 618/s, 2.00 s"
        );
    }
}
