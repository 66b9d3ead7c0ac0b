//! The deliveries in hand: one [`Flight`] each, from fetch to confirmed settlement, in a table of places.
//!
//! ```text
//! Ready ─ slot free ─▶ Running ─ told to stop ─▶ Cancelling ─ grace over ─▶ Aborting ─ still there ─▶ Stuck
//!                         └──────────────┴─────── ended ───────┴───────────────┴──▶ Settling ─ confirmed ─▶ gone
//! ```
//!
//! Owned by the loop alone. A place is free again only when its flight has gone, so that a place names one
//! delivery everywhere: in the table, in the lease table, in the output of its task.

use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use crate::context::{CancelReason, Run};
use crate::inspect::{JobPhase, JobView};
use crate::job::JobId;
use crate::lease::later;
use crate::source::Settled;
use crate::worker::config::KnownKind;
use crate::worker::slots::Permit;

/// How long an aborted job may take to reach an await point before it is called stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// One delivery in hand.
pub(crate) struct Flight {
    pub(crate) run: Arc<Run>,
    pub(crate) kind: Arc<KnownKind>,
    pub(crate) since: Instant,
    pub(crate) stage: Stage,
    /// Which answer of the source brought the attempt, for who [gathers](crate::worker::settle::Gathering) settlements.
    pub(crate) answer: u64,
    /// The place in the bound; freed with the flight (P1).
    pub(crate) _permit: Permit,
}

/// How far a delivery has got.
pub(crate) enum Stage {
    /// Waits for a slot.
    Ready,
    /// Its task runs. `ending` says what is next if it was told to stop.
    Running { _slot: Permit, ending: Option<Ending> },
    /// It has ended; this is to be confirmed by the source.
    Settling(Settled),
}

/// How far the ending of a running job has got.
#[derive(Clone, Copy)]
pub(crate) enum Ending {
    /// Told to stop; aborted at this instant.
    Cancelling(Instant),
    /// Aborted; called stuck at this instant.
    Aborting(Instant),
    /// It does not give its thread back.
    Stuck,
}

/// The table of flights.
#[derive(Default)]
pub(crate) struct Flights {
    table: Slab<Flight>,
    /// No flight has anything to do before this instant. May be earlier than needed, never later.
    sweep_at: Option<Instant>,
}

/// What a sweep found and did.
#[derive(Default)]
pub(crate) struct Swept {
    pub(crate) timed_out: u64,
    pub(crate) aborted: u64,
    /// Told to stop before their handlers were called, and taken back.
    pub(crate) revoked: Vec<usize>,
}

impl Flights {
    pub(crate) fn insert(&mut self, flight: Flight) -> usize {
        self.table.insert(flight)
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Flight> {
        self.table.get(place)
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut Flight> {
        self.table.get_mut(place)
    }

    pub(crate) fn remove(&mut self, place: usize) -> Option<Flight> {
        let flight = self.table.try_remove(place);
        if self.table.is_empty() && self.table.capacity() > 1024 {
            self.table = Slab::new(); // give a burst's memory back (P2)
        }
        flight
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Flight)> {
        self.table.iter()
    }

    /// How many are running.
    pub(crate) fn running(&self) -> usize {
        self.table.iter().filter(|(_, flight)| matches!(flight.stage, Stage::Running { .. })).count()
    }

    /// Which place the job has, if it has one.
    pub(crate) fn find(&self, id: &JobId) -> Option<usize> {
        self.table.iter().find(|(_, flight)| flight.run.delivery.job.id == *id).map(|(place, _)| place)
    }

    /// Look at the flights again at this instant or sooner.
    pub(crate) fn sweep_by(&mut self, at: Instant) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |before| before.min(at)));
    }

    pub(crate) fn next_sweep(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Does what is due at `now`: cancels what has passed its deadline, aborts what did not stop when told
    /// to (`grace` after that, at `abort_at` at the latest), names what is stuck.
    pub(crate) fn sweep(&mut self, now: Instant, grace: Duration, abort_at: Option<Instant>) -> Swept {
        let mut swept = Swept::default();
        let mut next: Option<Instant> = None;
        for (place, flight) in &mut self.table {
            if flight.was_called_off() {
                swept.revoked.push(place);
            } else if let Some(at) = flight.sweep(now, grace, abort_at, &mut swept) {
                next = Some(next.map_or(at, |before| before.min(at)));
            }
        }
        self.sweep_at = next;
        swept
    }

    /// The time is up: whatever was aborted and is still there is stuck, however short a time ago that was.
    pub(crate) fn name_stuck(&mut self) {
        for (_, flight) in &mut self.table {
            if let Stage::Running { ending, .. } = &mut flight.stage {
                *ending = Some(Ending::Stuck);
            }
        }
    }

    /// What a person may see of them at `now`.
    pub(crate) fn views(&self, now: Instant) -> Vec<JobView> {
        self.table.iter().map(|(_, flight)| flight.view(now)).collect()
    }
}

impl Flight {
    /// Returns when to look again.
    fn sweep(
        &mut self,
        now: Instant,
        grace: Duration,
        abort_at: Option<Instant>,
        swept: &mut Swept,
    ) -> Option<Instant> {
        let Stage::Running { ending, .. } = &mut self.stage else { return None };
        if ending.is_none() && !self.run.has_started() {
            return self.run.deadline_from(now); // its time has not begun: a thread has to come free
        }
        if ending.is_none() {
            let deadline = self.run.deadline();
            if deadline.is_some_and(|deadline| deadline <= now) && self.run.cancel_reason().is_none() {
                swept.timed_out += 1;
                self.kind.telemetry.timeouts.increment(1);
                self.run.cancel(CancelReason::Timeout);
            }
            if self.run.cancel_reason().is_none() {
                return deadline;
            }
            *ending = Some(Ending::Cancelling(later(now, grace)));
        }
        if let Some(Ending::Cancelling(at)) = *ending {
            let at = abort_at.map_or(at, |latest| at.min(latest));
            if at > now {
                *ending = Some(Ending::Cancelling(at));
                return Some(at);
            }
            swept.aborted += 1;
            self.run.abort();
            *ending = Some(Ending::Aborting(now + STUCK_AFTER));
        }
        match *ending {
            Some(Ending::Aborting(at)) if at > now => Some(at),
            Some(Ending::Aborting(_)) => {
                *ending = Some(Ending::Stuck);
                let job = &self.run.delivery.job;
                let (attempt, age) = (self.run.delivery.attempt, now.duration_since(self.since));
                tracing::error!(id = %job.id, kind = %job.kind, attempt, ?age,
                    "job does not end: it was aborted and still holds its thread and its slot");
                None
            }
            _ => None,
        }
    }

    /// Whether it was told to stop before its handler was called; it never will be, then.
    fn was_called_off(&self) -> bool {
        matches!(self.stage, Stage::Running { ending: None, .. })
            && self.run.cancel_reason().is_some()
            && self.run.revoke()
    }

    pub(crate) fn view(&self, now: Instant) -> JobView {
        let phase = match &self.stage {
            Stage::Ready => JobPhase::Prefetched,
            Stage::Running { ending: Some(Ending::Stuck), .. } => JobPhase::Stuck,
            Stage::Running { ending: Some(_), .. } => JobPhase::Cancelling,
            Stage::Running { .. } if self.run.has_started() => JobPhase::Running,
            Stage::Running { .. } => JobPhase::Starting,
            Stage::Settling(_) => JobPhase::Settling,
        };
        let delivery = &self.run.delivery;
        let age = now.duration_since(self.since);
        let mut view = JobView::new(&delivery.job, delivery.attempt, delivery.tag, phase, age);
        let started = self.run.has_started().then(|| self.run.started_at()).flatten();
        view.started = started.map(|at| now.duration_since(at));
        view.progress = self.run.last_progress().map(|(progress, at)| (progress, now.duration_since(at)));
        view
    }
}
