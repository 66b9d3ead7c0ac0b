//! A run from beginning to end: the parts set going, the worker steered by signals, and what is said and
//! answered when it is over.
//!
//! ```text
//!  first signal: drain        second, or --grace before the deadline     third, or the deadline
//!  nothing more starts   ──▶  TERM to what runs, KILL after --grace  ──▶  KILL
//! ```

use std::fs::File;
use std::future::pending;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::stdio::dup2_stdin;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempts;
use super::db::Db;
use super::durable::Durable;
use super::ledger::{Ledger, Trouble};
use super::output::{Printer, Style};
use super::progress::{Console, Figures, PLAIN_EVERY, Show};
use super::source::{KIND, RecordSource, Records};
use super::summary::Ending;
use super::{EachArgs, Plan, Refusal};
use crate::cli::child::exec::running;
use crate::cli::child::orphans;
use crate::cli::records::Reader;
use crate::cli::signals::{Asked, Signals, Stop};
use crate::cli::stdout::json_line;
use crate::cli::text::span;
use crate::cli::{Exit, refuse};
use crate::context::Context;
use crate::error::Chain;
use crate::registry::Registry;
use crate::retry::RetryPolicy;
use crate::shutdown::{Phase, Shutdown};
use crate::source::{Intake, Source};
use crate::worker::{Dispatcher, ReconnectPolicy, Report, StopCause, Worker, WorkerHandle};

/// What of the shutdown deadline is left for the end after the last KILL, at most.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How long the last output may take when no time is left: a reader who reads needs no more.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long what has left its group may take to end, after TERM and after KILL, when the run is over.
const ORPHANS_END: Duration = Duration::from_secs(1);

/// By how much the worker's own deadlines exceed ours, so that it never gets in first: it begins to cancel
/// 5 s before its shutdown deadline.
const WORKER_LATER: Duration = Duration::from_secs(6);

/// The time between two looks for orphans that have ended: few enough come together in it.
const BURY_EVERY: Duration = Duration::from_secs(1);

/// How long a settlement may wait for whoever reads standard output. Practically for ever: a pager that
/// nobody touches over a weekend is no failure.
const SETTLE_WAIT: Duration = Duration::from_secs(366 * 86_400);

/// The longest wait between two attempts, unless it is set or the first wait is longer.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(60);

/// Runs the plan.
pub(super) fn carry_out(plan: Plan) -> Result<Exit, Refusal> {
    let cant = |what: &str, error: io::Error| (Exit::Internal, format!("{what}: {error}"));
    // Children inherit this as their standard input, and none of them can take from the records.
    let null = File::open("/dev/null").map_err(|error| cant("/dev/null can't be opened", error))?;
    dup2_stdin(&null).map_err(|error| cant("standard input can't be replaced", error.into()))?;
    orphans::adopt();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| cant("the system gives no runtime", error))?;
    let exit =
        runtime.block_on(run(plan)).map_err(|error| cant("the system gives no thread or signal", error));
    runtime.shutdown_background();
    exit
}

async fn run(plan: Plan) -> io::Result<Exit> {
    let Plan { args, template, launcher, format, input, keep, db, jobs } = plan;
    let signals = Signals::listen()?;
    let figures = Arc::new(Figures::new());
    let show = if args.quiet { Show::Never } else { args.progress };
    let console = Arc::new(Console::new(show, input.size(), figures.clone()));
    let (shutdown, stop) = (Shutdown::new(), CancellationToken::new());
    let (drain, term) = (shutdown.clone(), stop.clone());
    let broken = move || {
        drain.escalate(Phase::Drain);
        term.cancel();
    };
    let style = Style { json: args.json, tag: args.tag };
    let (printer, printed) = Printer::start(style, console.clone(), broken)?;
    let ledger = Ledger::new(console.clone(), figures, printer);
    let ledger = Arc::new(ledger.keeping(keep).stopping_on_failure(args.stop_on_failure));
    let input_name = input.name().to_owned();
    let reader = Reader::start(input, format)?;
    let mut origin = match Origin::of(db, reader, &ledger, &args).await {
        Ok(origin) => origin,
        Err(why) => return Ok(refuse(Exit::Output, why)),
    };
    let terminator = (!args.null).then_some(b'\n');
    let attempts = Attempts {
        template,
        launcher,
        stdin: args.stdin,
        terminator,
        ledger: ledger.clone(),
        stop: stop.clone(),
    };
    let attempts = Arc::new(attempts);
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        let attempts = attempts.clone();
        async move { attempts.run(context).await }
    });
    let retry = RetryPolicy::default()
        .max_attempts(args.attempts())
        .initial(args.retry_wait)
        .cap(args.max_retry_wait.unwrap_or(MAX_RETRY_WAIT.max(args.retry_wait)));
    let patient = ReconnectPolicy { call_timeout: SETTLE_WAIT, ..ReconnectPolicy::default() };
    let worker = Worker::builder(Intake::fixed(origin.source.clone()), registry)
        .name("each")
        .dispatcher(Dispatcher::Shared)
        .max_concurrent_jobs(jobs)
        .max_payload_bytes(args.max_record)
        .retry(retry)
        .reconnect(patient)
        .job_timeout(args.timeout)
        .cancel_grace(args.grace + WORKER_LATER)
        .shutdown_deadline(args.shutdown_deadline + WORKER_LATER)
        .build()
        .map_err(io::Error::other)?;
    let mut steering = Steering {
        handle: worker.handle(),
        ledger: ledger.clone(),
        signals,
        shutdown,
        stop,
        grace: args.grace,
        deadline: args.shutdown_deadline,
        stopping: None,
    };
    let report = steering.run(worker, &mut origin.feeding).await;
    console.finish();
    steering.end_orphans().await;
    let over = Over { report, origin, ledger, input_name };
    Ok(over.end(&args, steering, printed).await)
}

/// Where the worker has the records from.
struct Origin {
    source: Arc<dyn Source>,
    records: Arc<dyn Records>,
    /// Goes on beside the worker.
    feeding: Pin<Box<dyn Future<Output = ()>>>,
    durable: Option<Arc<Durable>>,
}

impl Origin {
    /// The input itself.
    fn input(reader: Reader, ledger: &Arc<Ledger>, args: &EachArgs) -> Self {
        let max_waiting = args.max_waiting as usize;
        let source = Arc::new(RecordSource::new(reader, ledger.clone(), max_waiting, args.max_record));
        Self { source: source.clone(), records: source, feeding: Box::pin(pending()), durable: None }
    }

    async fn of(
        db: Option<Db>,
        reader: Reader,
        ledger: &Arc<Ledger>,
        args: &EachArgs,
    ) -> Result<Self, String> {
        match db {
            None => Ok(Self::input(reader, ledger, args)),
            Some(db) => Self::file(db, reader, ledger, args).await,
        }
    }

    /// A file, which is filled from the input.
    async fn file(db: Db, reader: Reader, ledger: &Arc<Ledger>, args: &EachArgs) -> Result<Self, String> {
        let cant = format!("--db {} can't be used: ", db.name);
        let begun = Durable::begin(db, ledger.clone(), args.max_record, args.retry_failed).await;
        let durable = begun.map_err(|error| cant + &Chain(&error).to_string())?;
        if !args.quiet {
            durable.say_what_was_found();
        }
        let durable = Arc::new(durable);
        let feeding = {
            let durable = durable.clone();
            async move {
                durable.feed(reader).await;
                pending().await
            }
        };
        Ok(Self {
            source: durable.clone(),
            records: durable.clone(),
            feeding: Box::pin(feeding),
            durable: Some(durable),
        })
    }

    /// How many records have failed for good, those of earlier runs on the same file included.
    async fn failed(&self, in_this_run: u64) -> u64 {
        match &self.durable {
            None => in_this_run,
            // If the file can't be read any more, that has been said.
            Some(durable) => match timeout(LAST_MOMENT, durable.failed()).await {
                Ok(Ok(failed)) => failed,
                Ok(Err(_)) | Err(_) => in_this_run,
            },
        }
    }
}

/// The hand on the worker while it runs.
struct Steering {
    handle: WorkerHandle,
    ledger: Arc<Ledger>,
    signals: Signals,
    shutdown: Shutdown,
    /// Cancelled when children are to be stopped.
    stop: CancellationToken,
    grace: Duration,
    deadline: Duration,
    stopping: Option<Stopping>,
}

/// A stop under way.
#[derive(Clone, Copy)]
struct Stopping {
    by: Stop,
    /// When children are told to stop, when they are killed at the latest, and when all is to be over.
    term_at: Instant,
    kill_at: Instant,
    end_at: Instant,
}

impl Steering {
    async fn run(&mut self, worker: Worker, feeding: &mut Pin<Box<dyn Future<Output = ()>>>) -> Report {
        let mut run = std::pin::pin!(worker.run(self.shutdown.clone()));
        let mut ticks = interval(PLAIN_EVERY);
        ticks.reset();
        let mut burials = interval(BURY_EVERY);
        loop {
            let next = self.next_step();
            tokio::select! {
                biased;
                report = &mut run => return report,
                asked = self.signals.next() => self.obey(asked),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.step(),
                () = &mut *feeding => {}
                _ = ticks.tick() => self.ledger.console.plain_line(),
                _ = burials.tick() => orphans::bury(&running()),
            }
        }
    }

    fn next_step(&self) -> Option<Instant> {
        let stopping = self.stopping?;
        if !self.stop.is_cancelled() {
            Some(stopping.term_at)
        } else if self.shutdown.phase() < Phase::Abort {
            Some(stopping.kill_at)
        } else {
            None
        }
    }

    fn step(&mut self) {
        if self.stop.is_cancelled() {
            self.shutdown.escalate(Phase::Abort);
        } else {
            self.stop.cancel();
        }
    }

    fn obey(&mut self, asked: Asked) {
        match asked {
            Asked::Stop(by) => self.stop(by),
            // Where Ctrl-Z comes from there is no other hand to send CONT.
            Asked::Quiet if self.handle.is_quiet() && io::stderr().is_terminal() => self.resume(),
            Asked::Quiet => {
                self.handle.quiet();
                let again = if io::stderr().is_terminal() { "Ctrl-Z or " } else { "" };
                self.say(&format!("nothing more starts until {again}CONT comes"));
            }
            Asked::Resume => self.resume(),
            Asked::Report => self.ledger.console.say(self.ledger.report().as_bytes()),
            // There is nothing to read again, and no signal asks for it here.
            Asked::Reload => {}
        }
    }

    fn resume(&self) {
        if self.handle.is_quiet() {
            self.handle.resume();
            self.say("going on");
        }
    }

    fn stop(&mut self, by: Stop) {
        let now = Instant::now();
        if self.stopping.is_none() {
            let (term_at, kill_at) = timetable(now, self.deadline, self.grace);
            self.stopping = Some(Stopping { by, term_at, kill_at, end_at: now + self.deadline });
            self.shutdown.escalate(Phase::Drain);
            if !by.at_once {
                let time = span(term_at - now);
                self.say(&format!("{}: nothing more starts, and what runs has {time} to finish", by.name));
                return;
            }
        }
        if !self.stop.is_cancelled() {
            self.say(&format!("{}: what runs is told to stop", by.name));
            self.stop.cancel();
        } else {
            self.say(&format!("{}: what runs is killed", by.name));
            self.shutdown.escalate(Phase::Abort);
        }
    }

    /// Ends what has left its group and its parent: nothing outlives the run. Takes no longer than is left.
    async fn end_orphans(&self) {
        orphans::bury(&running());
        for kill in [false, true] {
            let left = orphans::end(kill);
            if left == 0 {
                return;
            }
            if !kill {
                let what = if left == 1 { "1 process" } else { "processes" };
                self.say(&format!("{what} that had left their command's group are told to stop"));
            }
            let until = Instant::now() + if kill { ORPHANS_END } else { self.grace.min(ORPHANS_END) };
            let until = self.stopping.map_or(until, |stopping| until.min(stopping.end_at));
            while orphans::left() > 0 && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
                orphans::bury(&running());
                if kill {
                    orphans::end(true); // the children of those that were killed are ours by now
                }
            }
        }
    }

    fn say(&self, what: &str) {
        let in_hand = self.ledger.in_hand();
        self.ledger.console.say(format!("tidegate: {what} ({in_hand} running)\n").as_bytes());
    }

    /// Waits for what is still to be written; `None` when the time to stop is over first.
    async fn written(&mut self, printed: oneshot::Receiver<io::Result<()>>) -> Option<io::Result<()>> {
        let mut printed = std::pin::pin!(printed);
        // Who reads at all gets the last words, even if the time is up.
        let last_words = Instant::now() + LAST_WORDS;
        loop {
            let until = self.stopping.map(|stopping| stopping.end_at.max(last_words));
            tokio::select! {
                biased;
                answer = &mut printed => {
                    return Some(answer.unwrap_or_else(|_| Err(io::Error::other("the thread that writes panicked"))));
                }
                asked = self.signals.next() => {
                    if let Asked::Stop(by) = asked {
                        // The first is obeyed at once: nothing runs any more that could be drained.
                        let now = Instant::now();
                        self.stopping = Some(Stopping { by, term_at: now, kill_at: now, end_at: now + LAST_WORDS });
                    }
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return None,
            }
        }
    }
}

/// When children are told to stop and when they are killed at the latest, after a stop at `now`.
fn timetable(now: Instant, deadline: Duration, grace: Duration) -> (Instant, Instant) {
    let last_moment = LAST_MOMENT.min(deadline / 10);
    // However long the grace, half of the time is for finishing.
    let drain = deadline.saturating_sub(grace + last_moment).max(deadline / 2);
    (now + drain, now + deadline - last_moment)
}

/// A run that is over, but for what is said of it.
struct Over {
    report: Report,
    origin: Origin,
    ledger: Arc<Ledger>,
    input_name: String,
}

impl Over {
    async fn end(
        self,
        args: &EachArgs,
        mut steering: Steering,
        printed: oneshot::Receiver<io::Result<()>>,
    ) -> Exit {
        let records = &self.origin.records;
        let complete = records.is_over();
        let (trouble, summary) = self.ledger.close_books(&records.unfinished(), &records.put_back());
        let failed = self.origin.failed(summary.failed).await;
        let stop = steering.stopping.map(|stopping| stopping.by).filter(|_| !complete);
        let stopped_by = match &trouble {
            Some(Trouble::Failure) if stop.is_none() && !complete => Some("--stop-on-failure"),
            _ => stop.map(|stop| stop.name),
        };
        let took = self.ledger.figures.elapsed();
        let before = failed.saturating_sub(summary.failed);
        let (max_attempts, not_begun) = (args.attempts(), records.not_begun());
        let ending = Ending { took, max_attempts, stopped_by, not_begun, failed_before: before };
        let last = if args.json { json_line(&summary.json(&ending)) } else { Vec::new() };
        let ledger = self.ledger.clone();
        // In a task of its own, since a reader of standard output who is slow may make even this wait.
        let mut hand_in = tokio::task::JoinSet::new();
        hand_in.spawn(async move { ledger.printer.end(last).await });
        let written = steering.written(printed).await;
        let flawless = complete && failed == 0;
        let broken_pipe = matches!(&written, Some(Err(error)) if error.kind() == ErrorKind::BrokenPipe);
        if !(args.json || args.quiet && flawless || broken_pipe) {
            self.ledger.console.say(summary.text(&ending).as_bytes());
        }
        let (exit, what) =
            self.verdict(trouble, written, stop.or(steering.stopping.map(|late| late.by)), failed);
        if let Some(what) = what {
            self.ledger.console.say(format!("tidegate: {what}\n").as_bytes());
        }
        exit
    }

    /// How to end, and what is still to be said of it.
    fn verdict(
        &self,
        trouble: Option<Trouble>,
        written: Option<io::Result<()>>,
        stop: Option<Stop>,
        failed: u64,
    ) -> (Exit, Option<String>) {
        let complete = self.origin.records.is_over();
        if let StopCause::Failed(error) = &self.report.cause {
            return (Exit::Internal, Some(format!("the worker failed: {error}")));
        }
        match (trouble, written, stop) {
            (Some(Trouble::Command(what)), _, _) => (Exit::Command, Some(what)),
            (_, Some(Err(error)), _) if error.kind() == ErrorKind::BrokenPipe => (Exit::Pipe, None),
            (_, Some(Err(error)), _) => {
                (Exit::Output, Some(format!("standard output can't be written: {error}")))
            }
            (Some(Trouble::Output(what)), _, _) => (Exit::Output, Some(what)),
            (_, None, Some(stop)) => {
                (Exit::Signal(stop.number), Some("not all output was written".to_owned()))
            }
            (_, _, Some(stop)) if !complete => (Exit::Signal(stop.number), None),
            (Some(Trouble::Input(error)), _, _) => {
                (Exit::Input, Some(format!("{} can't be read any further: {error}", self.input_name)))
            }
            (Some(Trouble::Failure), _, _) => (Exit::Failed, None),
            (None, _, _) if failed > 0 => (Exit::Failed, None),
            (None, _, _) if complete => (Exit::Done, None),
            (None, _, _) => (Exit::Internal, Some(format!("the worker ended early: {}", self.report))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_have_until_the_grace_before_the_deadline() {
        let now = Instant::now();
        for (deadline, grace, term, kill) in [
            (25_000, 5_000, 19_500, 24_500),
            (10_000, 8_000, 5_000, 9_500),
            (1_000, 5_000, 500, 900),
            (1_000, 0, 900, 900),
            (0, 5_000, 0, 0),
        ] {
            let times = timetable(now, Duration::from_millis(deadline), Duration::from_millis(grace));
            let expected = [term, kill].map(|time| now + Duration::from_millis(time));
            assert_eq!([times.0, times.1], expected, "deadline {deadline} ms, grace {grace} ms");
        }
    }
}
