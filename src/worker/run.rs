//! The loop: sole owner of what changes.
//!
//! Invariants:
//!
//! 1. A permit is taken before the fetch; every delivery holds one until its settlement is confirmed or its
//!    lease is lost (P1).
//! 2. Before each fetch and each wait everything that has finished is reaped: what is in the `JoinSet` is
//!    running, has just finished, stands by for the next, or is polling this very loop (P2, P3).
//! 3. Nothing here waits for one thing only: a job, a fetch, a settlement, a timer, a word from outside, each
//!    wakes it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::completions::{Completions, End, Finished, requeue};
use crate::context::{CancelReason, Run};
use crate::job::Job;
use crate::limit::KindCaps;
use crate::outcome::Outcome;
use crate::pull::{Brisk, LOOK, Next};
use crate::shutdown::{Phase, Shutdown};
use crate::source::{Delivery, Settled, Settlement, Source};
use crate::telemetry::{Telemetry, seconds};
use crate::worker::config::{Kinds, KnownKind, Limits};
use crate::worker::fetch::{Fetcher, fetch};
use crate::worker::flight::{Flight, Flights, Stage};
use crate::worker::handle::{Control, Ended, Question, State, Stats};
use crate::worker::leases::Leases;
use crate::worker::reconnect::Reconnecting;
use crate::worker::report::{Report, StopCause};
use crate::worker::settle::{Batch, Unsettled, settle};
use crate::worker::spare::Spare;
use crate::worker::stopping::Stopping;
use crate::worker::verdict::verdict;

/// For how long after something has finished the next to finish may let others go first. Also the longest that
/// a finished job waits for its settlement when every thread that could poll the loop is blocked.
const HOT: Duration = Duration::from_millis(10);

/// After so many turns the loop lets others have the thread, however much there is to do: a source that always
/// has an answer must not keep the jobs' thread that happens to poll the loop.
const TURNS: usize = 64;

/// How long a task may take to return after it has reported.
const TASK_END: Duration = Duration::from_millis(100);

/// When nothing is due, the timer looks this far ahead.
const IDLE: Duration = Duration::from_secs(3600);

/// Everything that the loop owns, and what it shares.
pub(crate) struct Loop {
    pub(crate) limits: Limits,
    pub(crate) kinds: Kinds,
    pub(crate) unknown: Arc<KnownKind>,
    pub(crate) caps: KindCaps,
    pub(crate) source: Arc<Reconnecting<dyn Source>>,
    /// Where jobs run.
    pub(crate) jobs: Handle,
    pub(crate) leases: Arc<Leases<Arc<Run>>>,
    pub(crate) control: Arc<Control>,
    /// However it ends, who asks is told.
    pub(crate) _ended: Ended,
    /// The switch that the caller gave. Looked at on every turn, so that nothing starts after a stop.
    pub(crate) shutdown: Shutdown,
    pub(crate) telemetry: Telemetry,
    pub(crate) fetcher: Fetcher,
    pub(crate) tasks: JoinSet<()>,
    pub(crate) flights: Flights,
    pub(crate) ready: VecDeque<usize>,
    pub(crate) unsettled: Unsettled,
    pub(crate) stopping: Stopping,
    pub(crate) phase: Phase,
    pub(crate) cause: Option<StopCause>,
    pub(crate) stats: Stats,
    /// Where attempts report.
    pub(crate) completions: Arc<Completions>,
    pub(crate) hot_until: Option<Instant>,
    pub(crate) brisk: Brisk,
    /// When to look whether a task that pulls is kept by a job, if any pulls.
    pub(crate) look_at: Option<Instant>,
    /// Control blocks for the next attempts.
    pub(crate) spare: Spare,
    /// What has its slot and is to be handed to a task now.
    pub(crate) starting: Vec<Next>,
    /// What of that needs a task of its own.
    pub(crate) spawning: Vec<Next>,
    /// Room for what has finished.
    pub(crate) finished: Vec<Finished>,
    /// The runtime of the jobs is going down.
    pub(crate) runtime_gone: bool,
    /// Room for the places of a fetch's deliveries.
    pub(crate) entered: Vec<usize>,
}

/// What wakes the loop.
enum Event<S, F> {
    Finished,
    Rung,
    Settled(S),
    Fetched(F),
    Timer,
}

/// A future that may not be there; pending then.
fn poll_maybe<F: Future>(slot: &mut Pin<Box<Option<F>>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let Some(future) = slot.as_mut().as_pin_mut() else { return Poll::Pending };
    let polled = future.poll(cx);
    if polled.is_ready() {
        slot.set(None);
    }
    polled
}

impl Loop {
    /// Runs to the end and says what came of it.
    pub(crate) async fn run(mut self) -> Report {
        let (source, leases) = (self.source.clone(), self.leases.clone());
        self.set_gauges();
        let mut fetching = Box::pin(None);
        let mut settling = Box::pin(None);
        let mut timer = Box::pin(tokio::time::sleep(IDLE));
        let mut batch = Batch::default();
        for turn in 1_usize.. {
            if turn.is_multiple_of(TURNS) {
                self.let_others_go().await;
            }
            let now = Instant::now();
            self.reap(now);
            self.obey(now);
            self.sweep(now);
            if settling.is_none() && self.next_batch(&mut batch, fetching.is_some(), now) {
                settling.set(Some(settle(&source, &leases, std::mem::take(&mut batch))));
            }
            let settled = poll_fn(|cx| Poll::Ready(poll_maybe(&mut settling, cx))).await;
            if let Poll::Ready((settled, answer)) = settled {
                batch = self.settled(settled, answer, now);
            }
            self.start_ready(now);
            if fetching.is_none()
                && let Some(call) = self.next_fetch(now)
            {
                fetching.set(Some(fetch(&source, call)));
            }
            let fetched = poll_fn(|cx| Poll::Ready(poll_maybe(&mut fetching, cx))).await;
            let mut more_to_fetch = false;
            if let Poll::Ready((call, answer)) = fetched {
                self.fetched(call, answer);
                self.start_ready(now);
                more_to_fetch = self.may_fetch(now);
            }
            self.publish();
            if self.is_over(fetching.is_some(), now) {
                break;
            }
            let more_to_settle = settling.is_none() && self.unsettled.is_due(now);
            if more_to_fetch || more_to_settle || self.flights.next_sweep().is_some_and(|at| at <= now) {
                continue;
            }
            self.before_waiting(&mut timer, now);
            let event = poll_fn(|cx| {
                if self.completions.poll_any(cx) {
                    return Poll::Ready(Event::Finished);
                }
                if self.control.bell.poll_heard(cx) {
                    return Poll::Ready(Event::Rung);
                }
                if let Poll::Ready(answered) = poll_maybe(&mut settling, cx) {
                    return Poll::Ready(Event::Settled(answered));
                }
                if let Poll::Ready(answered) = poll_maybe(&mut fetching, cx) {
                    return Poll::Ready(Event::Fetched(answered));
                }
                timer.as_mut().poll(cx).map(|()| Event::Timer)
            });
            match event.await {
                Event::Finished => {}
                Event::Rung => self.changed(),
                Event::Settled((settled, answer)) => batch = self.settled(settled, answer, Instant::now()),
                Event::Fetched((call, answer)) => self.fetched(call, answer),
                Event::Timer => timer.as_mut().reset(Instant::now() + IDLE),
            }
        }
        self.end_tasks().await;
        self.report()
    }

    /// Gives the thread away once, and hears the bell, which otherwise is heard only when there is nothing to do.
    async fn let_others_go(&mut self) {
        requeue().await;
        if poll_fn(|cx| Poll::Ready(self.control.bell.poll_heard(cx))).await {
            self.changed();
        }
    }

    /// Takes in all that has finished, without waiting, and lets its tasks go.
    fn reap(&mut self, now: Instant) {
        let mut finished = std::mem::take(&mut self.finished);
        self.completions.take(&mut finished, &mut self.spawning);
        self.keep_hot(!finished.is_empty(), now);
        let (count, mut total, mut longest) = (finished.len(), Duration::ZERO, Duration::ZERO);
        for Finished { place, end, run_time } in finished.drain(..) {
            (total, longest) = (total + run_time, longest.max(run_time));
            self.ended(place, end, run_time);
        }
        self.finished = finished;
        self.brisk.ended(count, total, longest);
        if !self.spawning.is_empty() {
            self.brisk.waited_for();
        }
        if self.look_at.is_some_and(|at| at <= now) {
            let before = self.spawning.len();
            let more = self.completions.look(&mut self.spawning);
            if self.spawning.len() > before {
                self.brisk.blocked(now);
            }
            self.look_at = more.then(|| now + LOOK);
        }
        if self.completions.was_blocked() {
            self.brisk.blocked(now);
        }
        self.spawn();
        while self.tasks.try_join_next().is_some() {}
    }

    /// While attempts finish one after the other, those that wait on a job's thread may go first and the loop
    /// takes several at once. That no report waits behind a job that blocks its thread, the timer sees to.
    fn keep_hot(&mut self, reaped: bool, now: Instant) {
        if reaped {
            let cold = self.hot_until.is_none();
            self.hot_until = Some(now + HOT);
            if cold {
                self.completions.set_hot(true);
            }
        } else if self.hot_until.is_some_and(|until| until <= now) {
            self.hot_until = None;
            self.completions.set_hot(false);
        }
    }

    /// An attempt has ended: what is the source to be told?
    fn ended(&mut self, place: usize, end: End, run_time: Duration) {
        let running = |flight: &&mut Flight| matches!(flight.stage, Stage::Running { .. });
        // One that was taken back has been settled already, even if its task is dropped after that.
        let Some(flight) = self.flights.get_mut(place).filter(running) else { return };
        self.unsettled.gathering.ended(flight.answer, run_time);
        if matches!(end, End::Dropped) {
            // No job can run there any more.
            tracing::error!("the runtime that jobs run on has been shut down: the worker stops");
            self.runtime_gone = true;
            flight.run.cancel(CancelReason::Shutdown);
            if flight.run.has_children() {
                return; // what it left on the blocking pool goes on: nobody else may begin
            }
        }
        let (delivery, kind) = (&flight.run.delivery, &flight.kind);
        kind.telemetry.run_seconds.record(seconds(run_time));
        if self.caps.put_back(&delivery.job.kind) {
            self.fetcher.interrupt();
        }
        match &end {
            End::Panicked(panic) => {
                self.stats.panicked += 1;
                kind.telemetry.panics.increment(1);
                let Job { id, kind, .. } = &*delivery.job;
                tracing::error!(%id, %kind, attempt = delivery.attempt, %panic, "job panicked");
            }
            End::Returned(_) | End::Aborted | End::Dropped => {}
        }
        let Some(outcome) = verdict(&flight.run, end) else { return self.give_up(place) };
        let mut settled = settlement(delivery, kind, &outcome, self.limits.seed);
        settled.output = flight.run.take_output();
        if matches!(settled.settlement, Settlement::Ack) {
            kind.tally.done(run_time);
        }
        if is_failure(&outcome) {
            kind.tally.failed();
            self.stats.failed += 1;
            log_failure(delivery, &settled);
        }
        flight.stage = Stage::Settling(settled);
        self.unsettled.push(place);
    }

    /// The source is to be told this of the delivery in `place`. Frees its slot; its permit stays taken.
    pub(crate) fn conclude(&mut self, place: usize, settled: Settled) {
        if let Some(flight) = self.flights.get_mut(place) {
            flight.stage = Stage::Settling(settled);
            self.unsettled.push(place);
        }
    }

    /// Moves on in stopping as far as was asked, by signal or by the clock.
    fn obey(&mut self, now: Instant) {
        let asked = self.shutdown.phase().max(self.control.stop.phase());
        if self.stopping.asked() < asked {
            self.stopping.ask(asked, now);
        }
        if self.runtime_gone {
            self.stopping.ask(Phase::Abort, now);
        }
        if matches!(self.cause, Some(StopCause::Failed(_))) {
            self.stopping.ask(Phase::Drain, now);
        }
        let phase = self.stopping.phase(now);
        if phase == self.phase {
            return;
        }
        tracing::info!(?phase, in_flight = self.flights.len(), "stopping");
        self.phase = phase;
        self.fetcher.interrupt();
        if !matches!(self.cause, Some(StopCause::Failed(_))) || phase >= Phase::Cancel {
            self.revoke_not_begun();
        }
        if phase >= Phase::Cancel {
            for (_, flight) in self.flights.iter() {
                if matches!(flight.stage, Stage::Running { .. }) {
                    flight.run.cancel(CancelReason::Shutdown);
                }
            }
            self.flights.sweep_by(now);
        }
    }

    /// Does what is due in the table of flights.
    fn sweep(&mut self, now: Instant) {
        if self.flights.next_sweep().is_some_and(|at| at <= now) {
            let abort_at = self.stopping.abort_at();
            let swept = self.flights.sweep(now, self.limits.cancel_grace, abort_at);
            self.stats.timed_out += swept.timed_out;
            self.stats.aborted += swept.aborted;
            swept.revoked.into_iter().for_each(|place| self.call_off(place));
        }
    }

    /// The bell was rung: a setting was changed, a question asked, or the heartbeat has cancelled something.
    fn changed(&mut self) {
        self.take_changes();
        let places = self.control.running.limit() + self.limits.prefetch;
        if self.fetcher.set_places(places) || self.control.is_quiet() {
            self.fetcher.interrupt();
        }
        self.set_gauges();
        for question in self.control.take_questions() {
            self.answer(question);
        }
        self.flights.sweep_by(Instant::now());
    }

    fn answer(&mut self, question: Question) {
        // Who asked may have gone meanwhile; then the answer goes nowhere.
        match question {
            Question::Jobs(answer) => {
                let _ = answer.send(self.flights.views(Instant::now()));
            }
            Question::Cancel(id, answer) => {
                let flight = self.flights.find(&id).and_then(|place| self.flights.get(place));
                let found = flight.is_some_and(|flight| !matches!(flight.stage, Stage::Settling(_)));
                if let Some(flight) = flight.filter(|_| found) {
                    flight.run.cancel(CancelReason::Requested);
                    self.flights.sweep_by(Instant::now());
                }
                let _ = answer.send(found);
            }
        }
    }

    fn publish(&mut self) {
        let (in_flight, running) = (self.flights.len() as u64, self.control.running.taken() as u64);
        let before = (self.stats.in_flight, self.stats.running);
        (self.stats.in_flight, self.stats.running) = (in_flight, running);
        if before != (in_flight, running) {
            self.set_gauges();
        }
        self.control.publish(self.stats);
    }

    fn set_gauges(&self) {
        self.telemetry.in_flight.set(self.stats.in_flight as f64);
        self.telemetry.free_slots.set(self.control.running.free() as f64);
    }

    /// Whether there is nothing left to do, or no time left to do it in.
    fn is_over(&self, fetching: bool, now: Instant) -> bool {
        // A fetch was told to return: while there is time it is waited for, since what it may have taken off
        // the queue would be lost with it.
        let done = self.flights.is_empty() && !fetching;
        let ending = self.phase > Phase::Running || matches!(self.cause, Some(StopCause::SourceEnded));
        done && ending || self.stopping.is_over(now)
    }

    /// Lets those go who stood by, and sets the timer.
    fn before_waiting(&self, timer: &mut Pin<Box<Sleep>>, now: Instant) {
        self.completions.turn_is_over(self.control.running.taken());
        let fetch = if self.phase == Phase::Running { self.fetcher.not_before() } else { None };
        let (sweep, settle) = (self.flights.next_sweep(), self.unsettled.not_before());
        let held = self.fetcher.held_until(now);
        let times = [sweep, settle, fetch, held, self.stopping.next(now), self.hot_until, self.look_at];
        let next = times.into_iter().flatten().filter(|at| *at > now).min();
        // One that rings too early costs a look; resetting it each time would cost more.
        if let Some(next) = next.filter(|next| *next < timer.deadline()) {
            timer.as_mut().reset(next);
        }
    }

    /// Lets the tasks go that have reported. Those of stuck jobs stay behind: they hold a thread, and nothing
    /// here can end them.
    async fn end_tasks(&mut self) {
        let stuck = self.flights.running();
        let ended = async { while self.tasks.len() > stuck && self.tasks.join_next().await.is_some() {} };
        // A task that has reported has no more to do than to return.
        let _ = tokio::time::timeout(TASK_END, ended).await;
        self.tasks.detach_all();
    }

    fn report(mut self) -> Report {
        let now = Instant::now();
        self.flights.name_stuck();
        let held = self.flights.views(now);
        for job in &held {
            tracing::error!(id = %job.id, kind = %job.kind, phase = ?job.phase, "left behind at the shutdown deadline");
        }
        self.stats.lost += held.len() as u64;
        (self.stats.in_flight, self.stats.running) = (0, 0);
        self.stats.state = State::Ended;
        self.set_gauges();
        self.control.publish(self.stats);
        Report {
            cause: self.cause.unwrap_or(StopCause::Shutdown),
            stats: self.stats,
            held,
            stopping_took: self.stopping.took(now),
        }
    }
}

/// What the source is told of `outcome`, by the policy of its kind.
pub(crate) fn settlement(delivery: &Delivery, kind: &KnownKind, outcome: &Outcome, seed: u64) -> Settled {
    let age = match outcome {
        Outcome::Fail { .. } => delivery.job.enqueued_at.elapsed().unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let settlement = kind.retry.settle(&delivery.job, delivery.attempt, age, outcome, seed);
    let settled = Settled::new(delivery.tag, settlement);
    match outcome.reason() {
        None => settled,
        Some(reason) => settled.because(&reason),
    }
}

fn is_failure(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Fail { .. } | Outcome::Reject(_))
}

pub(crate) fn log_failure(delivery: &Delivery, settled: &Settled) {
    let (job, attempt) = (&delivery.job, delivery.attempt);
    let reason = settled.reason.as_deref().unwrap_or_default();
    match settled.settlement {
        Settlement::Retry { after } => {
            tracing::warn!(id = %job.id, kind = %job.kind, attempt, reason, ?after, "job failed, will be retried");
        }
        _ => tracing::error!(id = %job.id, kind = %job.kind, attempt, reason, "job failed for good"),
    }
}
