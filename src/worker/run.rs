//! The loop: sole owner of what changes.
//!
//! Invariants:
//!
//! 1. A permit is taken before the fetch; every delivery holds one until its settlement is confirmed or its
//!    lease is lost (P1).
//! 2. Before each fetch and each wait everything that has finished is reaped: what is in the `JoinSet` is
//!    running, or has finished since the last look (P2, P3).
//! 3. Nothing here waits for one thing only: a job, a fetch, a settlement, a timer, a word from outside, each
//!    wakes it.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, Sleep};

use crate::context::{CancelReason, Run};
use crate::job::Kind;
use crate::lease::Trust;
use crate::limit::KindCaps;
use crate::outcome::{Outcome, Panicked};
use crate::shutdown::{Phase, Shutdown};
use crate::source::{Delivery, Settled, Settlement, Source};
use crate::telemetry::{Telemetry, seconds};
use crate::worker::config::{KnownKind, Limits};
use crate::worker::execution::{End, Finished, verdict};
use crate::worker::fetch::{Fetcher, fetch};
use crate::worker::flight::{Flights, Stage};
use crate::worker::handle::{Control, Question, State, Stats};
use crate::worker::leases::Leases;
use crate::worker::reconnect::Reconnecting;
use crate::worker::report::{Report, StopCause};
use crate::worker::settle::{Batch, Unsettled, settle};
use crate::worker::stopping::Stopping;

/// When nothing is due, the timer looks this far ahead.
const IDLE: Duration = Duration::from_secs(3600);

/// Everything that the loop owns, and what it shares.
pub(crate) struct Loop {
    pub(crate) limits: Limits,
    pub(crate) kinds: HashMap<Kind, Arc<KnownKind>>,
    pub(crate) unknown: Arc<KnownKind>,
    pub(crate) caps: KindCaps,
    pub(crate) source: Arc<Reconnecting<dyn Source>>,
    /// Where jobs run.
    pub(crate) jobs: Handle,
    pub(crate) leases: Arc<Leases<Arc<Run>>>,
    pub(crate) control: Arc<Control>,
    pub(crate) telemetry: Telemetry,
    pub(crate) fetcher: Fetcher,
    pub(crate) tasks: JoinSet<Finished>,
    pub(crate) flights: Flights,
    pub(crate) ready: VecDeque<usize>,
    pub(crate) unsettled: Unsettled,
    pub(crate) stopping: Stopping,
    pub(crate) phase: Phase,
    pub(crate) cause: Option<StopCause>,
    pub(crate) stats: Stats,
    /// Room for the answers about a batch's leases.
    pub(crate) trust: Vec<Trust>,
    /// Room for the places of a fetch's deliveries.
    pub(crate) entered: Vec<usize>,
}

/// A future that may not be there; pending then.
async fn maybe<F: Future>(slot: &mut Pin<Box<Option<F>>>) -> F::Output {
    std::future::poll_fn(|cx| match slot.as_mut().as_pin_mut() {
        None => Poll::Pending,
        Some(future) => future.poll(cx).map(|output| {
            slot.set(None);
            output
        }),
    })
    .await
}

impl Loop {
    /// Runs to the end and says what came of it.
    pub(crate) async fn run(mut self, shutdown: Shutdown, mut questions: mpsc::Receiver<Question>) -> Report {
        let mut asked = shutdown.subscribe();
        let mut asked_here = self.control.stop.subscribe();
        let mut connection = self.source.state();
        let changed = self.control.changed.clone();
        let source = self.source.clone();
        let mut fetching = Box::pin(None);
        let mut settling = Box::pin(None);
        let mut timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        let mut batch = Batch::default();
        loop {
            let now = Instant::now();
            self.reap();
            self.obey((*asked.borrow_and_update()).max(*asked_here.borrow_and_update()), now);
            self.sweep(now);
            if settling.is_none() && self.next_batch(&mut batch, now) {
                settling.set(Some(settle(&source, std::mem::take(&mut batch))));
            }
            if let Poll::Ready((settled, answer)) = futures_util::poll!(std::pin::pin!(maybe(&mut settling))) {
                batch = self.settled(settled, answer, now);
            }
            self.start_ready(now);
            if fetching.is_none() && let Some(call) = self.next_fetch(now) {
                fetching.set(Some(fetch(&source, call)));
            }
            if let Poll::Ready((call, answer)) = futures_util::poll!(std::pin::pin!(maybe(&mut fetching))) {
                self.fetched(call, answer);
                self.start_ready(now);
            }
            self.publish();
            if self.is_over(fetching.is_some(), now) {
                break;
            }
            self.set_timer(&mut timer, now);
            tokio::select! {
                biased;
                Some(joined) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.joined(joined),
                (settled, answer) = maybe(&mut settling) => batch = self.settled(settled, answer, Instant::now()),
                (call, answer) = maybe(&mut fetching) => self.fetched(call, answer),
                Some(question) = questions.recv() => self.answer(question),
                () = changed.notified() => self.changed(),
                Ok(()) = asked.changed() => {}
                Ok(()) = asked_here.changed() => {}
                Ok(()) = connection.changed() => self.control.publish_connection(connection.borrow_and_update().clone()),
                () = timer.as_mut() => timer.as_mut().reset(Instant::now() + IDLE),
            }
        }
        self.report()
    }

    /// Takes all that has finished out of the set, without waiting.
    fn reap(&mut self) {
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            self.joined(joined);
        }
    }

    fn joined(&mut self, joined: Result<(Id, Finished), JoinError>) {
        match joined {
            Ok((_, Finished { place, end, run_time })) => self.ended(place, end, run_time),
            Err(error) => self.ended_without_a_word(error),
        }
    }

    /// An attempt has ended: what is the source to be told?
    fn ended(&mut self, place: usize, end: End, run_time: Duration) {
        let Some(flight) = self.flights.get(place) else { return };
        let (run, kind) = (flight.run.clone(), flight.kind.clone());
        kind.telemetry.run_seconds.record(seconds(run_time));
        match &end {
            End::Panicked(panic) => {
                self.stats.panicked += 1;
                kind.telemetry.panics.increment(1);
                let job = &run.delivery.job;
                tracing::error!(id = %job.id, kind = %job.kind, attempt = run.delivery.attempt, %panic, "job panicked");
            }
            End::Aborted if run.cancel_reason() == Some(CancelReason::Timeout) => kind.telemetry.timeouts.increment(1),
            _ => {}
        }
        if self.caps.put_back(&run.delivery.job.kind) {
            self.fetcher.interrupt();
        }
        match verdict(&run, end) {
            None => self.give_up(place),
            Some(outcome) => {
                let settlement = self.retry_rule(&run.delivery, &kind, &outcome);
                let mut settled = Settled::new(run.delivery.tag, settlement);
                if let Some(reason) = outcome.reason() {
                    settled = settled.because(&reason);
                    self.log_failure(&run.delivery, &settled, &reason);
                }
                self.conclude(place, settled);
            }
        }
    }

    /// A task ended and could not say so: its future was dropped by the runtime, or panicked while it was
    /// being dropped.
    fn ended_without_a_word(&mut self, error: JoinError) {
        let Some(place) = self.flights.place_of(error.id()) else { return };
        if error.is_cancelled() {
            // The loop aborts no task, so their runtime is going down: no job can run there any more.
            tracing::error!("the runtime that jobs run on has been shut down: the worker stops");
            self.control.stop.escalate(Phase::Abort);
            if let Some(flight) = self.flights.get(place) {
                flight.run.cancel(CancelReason::Shutdown);
            }
            return self.ended(place, End::Aborted, Duration::ZERO);
        }
        let panic = match error.try_into_panic() {
            Ok(payload) => Panicked::new(payload.as_ref()),
            Err(error) => Panicked(error.to_string()),
        };
        self.ended(place, End::Panicked(panic), Duration::ZERO);
    }

    /// The policy's word on an outcome.
    pub(crate) fn retry_rule(&self, delivery: &Delivery, kind: &KnownKind, outcome: &Outcome) -> Settlement {
        let age = match outcome {
            Outcome::Fail { .. } => delivery.job.enqueued_at.elapsed().unwrap_or_default(),
            _ => Duration::ZERO,
        };
        kind.retry.settle(&delivery.job, delivery.attempt, age, outcome, self.limits.seed)
    }

    fn log_failure(&mut self, delivery: &Delivery, settled: &Settled, reason: &str) {
        self.stats.failed += 1;
        let (job, attempt) = (&delivery.job, delivery.attempt);
        match settled.settlement {
            Settlement::Retry { after } => {
                tracing::warn!(id = %job.id, kind = %job.kind, attempt, reason, ?after, "job failed, will be retried");
            }
            _ => tracing::error!(id = %job.id, kind = %job.kind, attempt, reason, "job failed for good"),
        }
    }

    /// The source is to be told this of the delivery in `place`. Frees its slot; its permit stays taken.
    pub(crate) fn conclude(&mut self, place: usize, settled: Settled) {
        if let Some(flight) = self.flights.get_mut(place) {
            flight.stage = Stage::Settling(settled);
            self.unsettled.push(place);
        }
    }

    /// Moves on in stopping as far as was asked, by signal or by the clock.
    fn obey(&mut self, asked: Phase, now: Instant) {
        if self.stopping.asked() < asked {
            self.stopping.ask(asked, now);
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
        }
    }

    /// A setting was changed, or the heartbeat has cancelled something.
    fn changed(&mut self) {
        self.fetcher.set_places(self.control.running.limit() + self.limits.prefetch);
        self.fetcher.interrupt();
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
            self.telemetry.in_flight.set(in_flight as f64);
            self.telemetry.free_slots.set(self.control.running.free() as f64);
        }
        self.control.publish(self.stats);
    }

    /// Whether there is nothing left to do, or no time left to do it in.
    fn is_over(&self, fetching: bool, now: Instant) -> bool {
        let done = self.flights.is_empty();
        if matches!(self.cause, Some(StopCause::SourceEnded)) && done && !fetching {
            return true;
        }
        match self.phase {
            Phase::Running => false,
            // A fetch was told to return; until jobs would be cancelled there is time to wait for what it
            // may have taken.
            Phase::Drain => done && !fetching,
            Phase::Cancel | Phase::Abort => done || self.stopping.is_over(now),
        }
    }

    fn set_timer(&self, timer: &mut Pin<Box<Sleep>>, now: Instant) {
        let fetch = if self.phase == Phase::Running { self.fetcher.not_before() } else { None };
        let times = [self.flights.next_sweep(), self.unsettled.not_before(), fetch, self.stopping.next(now)];
        let next = times.into_iter().flatten().min();
        // One that rings too early costs a look; resetting it each time would cost more.
        if let Some(next) = next.filter(|next| *next < timer.deadline()) {
            timer.as_mut().reset(next);
        }
    }

    fn report(mut self) -> Report {
        let now = Instant::now();
        let held = self.flights.views(now);
        for job in &held {
            tracing::error!(id = %job.id, kind = %job.kind, phase = ?job.phase, "left behind at the shutdown deadline");
        }
        self.stats.lost += held.len() as u64;
        (self.stats.in_flight, self.stats.running) = (0, 0);
        self.stats.state = State::Ended;
        self.telemetry.in_flight.set(0.0);
        self.control.publish(self.stats);
        Report {
            cause: self.cause.unwrap_or(StopCause::Shutdown),
            stats: self.stats,
            held,
            stopping_took: self.stopping.took(now),
        }
    }
}
