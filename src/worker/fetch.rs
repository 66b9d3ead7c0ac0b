//! The way in: from free permits to running tasks.

use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::context::CancelReason;
use crate::error::Error;
use crate::lease::later;
use crate::outcome::Outcome;
use crate::pull::{LOOK, Next};
use crate::retry::{backoff, less_jitter, splitmix, unit_random};
use crate::shutdown::Phase;
use crate::source::{Delivery, FetchRequest, Settled, Settlement, Source};
use crate::telemetry::seconds;
use crate::worker::config::{KnownKind, UnknownKind};
use crate::worker::flight::{Flight, Stage};
use crate::worker::reconnect::Reconnecting;
use crate::worker::report::StopCause;
use crate::worker::run::{Loop, log_failure, settlement};
use crate::worker::slots::{Permit, Slots};
use crate::worker::spare::let_burst_go;
use crate::worker::verdict::ON_REQUEST;

/// How long a delivery of a kind that is at its cap stays away, if the source can't filter by kind.
const CAPPED_WAIT: Duration = Duration::from_secs(1);

/// How long a delivery of an unknown kind that is handed back stays away.
const UNKNOWN_WAIT: Duration = Duration::from_secs(60);

/// How long a fetch on a session that is given up may take to return what it has taken.
const CALLED_BACK: Duration = Duration::from_secs(1);

/// For how long a fetch waits for settlements that are under way, so that it can ask for more at once. An exchange with
/// a store nearby takes a tenth of that; one that takes longer is not waited for, since slots would stand idle.
const SETTLE_PATIENCE: Duration = Duration::from_millis(20);

/// An answer that comes sooner than this and brings nothing comes from a source that does not wait.
const AT_ONCE: Duration = Duration::from_millis(1);

/// How long to leave such a source alone, so that asking it does not become a busy loop.
const EMPTY_WAIT: Duration = Duration::from_millis(20);

/// The pace of fetching, and what goes round from one fetch to the next.
pub(crate) struct Fetcher {
    /// Places for deliveries: the bound and what may be fetched ahead. Permits come from here (P1).
    places: Slots,
    /// Makes the fetch that is under way return soon.
    stop: CancellationToken,
    spare: Option<FetchRequest>,
    permits: Vec<Permit>,
    failures: u32,
    /// A log line has said so.
    told: bool,
    not_before: Option<Instant>,
    /// How many permits the settlements that are under way will free, and until when that is waited for.
    soon: Option<(usize, Instant)>,
    draws: u64,
    /// The source settles and fetches in one exchange, as the last settlement has shown.
    pub(crate) fuses: bool,
}

/// A fetch under way, and what it needs.
pub(crate) struct Call {
    pub(crate) request: FetchRequest,
    permits: Vec<Permit>,
    stop: CancellationToken,
    /// When it was sent, if it is to wait for jobs.
    waits_since: Option<Instant>,
}

impl Call {
    /// How many free places it has taken. With as many as the settlements free that go with it, it may bring more.
    pub(crate) fn places(&self) -> usize {
        self.permits.len()
    }
}

impl Fetcher {
    pub(crate) fn new(places: usize, seed: u64) -> Self {
        Self {
            places: Slots::new(places),
            stop: CancellationToken::new(),
            spare: None,
            permits: Vec::new(),
            failures: 0,
            told: false,
            not_before: None,
            soon: None,
            draws: seed,
            fuses: false,
        }
    }

    /// Makes the fetch that is under way return, so that the next one may ask for something else.
    pub(crate) fn interrupt(&self) {
        self.stop.cancel();
    }

    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// Settlements are sent that will free so many permits.
    pub(crate) fn expect(&mut self, permits: usize, now: Instant) {
        self.soon = Some((permits, now + SETTLE_PATIENCE));
    }

    /// They have been answered.
    pub(crate) fn expect_nothing(&mut self) {
        self.soon = None;
    }

    /// Until when to wait for permits that are on their way: if they are more than there are now, one fetch for all
    /// fills the slots sooner than a small one now and, after it, another.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        self.soon
            .filter(|(permits, until)| *permits > self.places.free() && *until > now)
            .map(|(_, until)| until)
    }

    /// Whether there is room for more deliveries at `now`, and reason to ask for them now.
    fn is_ready(&self, now: Instant) -> bool {
        self.places.free() > 0 && self.not_before.is_none_or(|at| at <= now) && self.held_until(now).is_none()
    }

    /// Changes how many deliveries may be held. Returns whether there are fewer places than before.
    pub(crate) fn set_places(&self, places: usize) -> bool {
        let before = self.places.limit();
        self.places.set_limit(places);
        places < before
    }
}

/// Sends a fetch through the live session. Returns the call with the answer.
///
/// A source that has not answered a call time-out after its wait hangs: its session is given up. So is the
/// fetch when a settlement has found that the session is dead: it is called back, and given a moment for what
/// it may have taken.
pub(crate) async fn fetch(
    source: &Reconnecting<dyn Source>,
    call: Call,
) -> (Call, Result<Vec<Delivery>, Error>) {
    let answer = async {
        let session = tokio::select! {
            biased;
            session = source.session() => session?,
            () = call.stop.cancelled() => return Ok(Vec::new()),
        };
        let limit = call.request.wait.saturating_add(source.call_timeout());
        let mut fetching =
            std::pin::pin!(source.within(limit, session.live.fetch(&call.request, &call.stop)));
        let answer = tokio::select! {
            biased;
            answer = &mut fetching => answer,
            () = source.given_up(&session) => {
                call.stop.cancel();
                source.within(CALLED_BACK, fetching).await
            }
        };
        match &answer {
            Ok(_) => source.succeeded(&session),
            Err(error) => source.failed(&session, error).await,
        }
        answer
    };
    let answer = answer.await;
    (call, answer)
}

impl Loop {
    /// Whether there is reason for a fetch.
    fn wants_more(&self) -> bool {
        self.phase == Phase::Running && self.cause.is_none() && !self.control.is_quiet()
    }

    /// Whether there is room and reason for a fetch at `now`.
    pub(crate) fn may_fetch(&self, now: Instant) -> bool {
        self.wants_more() && self.fetcher.is_ready(now)
    }

    /// The next fetch, if there is room and reason for one. Takes its permits.
    pub(crate) fn next_fetch(&mut self, now: Instant) -> Option<Call> {
        if self.may_fetch(now) { self.new_fetch(0, Some(now)) } else { None }
    }

    /// What is to be fetched together with the settlement of so many deliveries, if the source can do that, and there
    /// is reason for it.
    pub(crate) fn fused_fetch(&mut self, settled: usize, now: Instant) -> Option<Call> {
        let fetcher = &self.fetcher;
        let may = fetcher.fuses && self.wants_more() && fetcher.not_before.is_none_or(|at| at <= now);
        // With fewer places than deliveries, what is freed must stay free.
        if may && fetcher.places.taken() <= fetcher.places.limit() {
            self.new_fetch(settled, None)
        } else {
            None
        }
    }

    /// A fetch for all that is free, and for so many places that will be.
    fn new_fetch(&mut self, more: usize, waits_since: Option<Instant>) -> Option<Call> {
        self.take_changes();
        let fetcher = &mut self.fetcher;
        let mut permits = std::mem::take(&mut fetcher.permits);
        permits.extend(std::iter::from_fn(|| fetcher.places.take()));
        let Some(max) = NonZeroUsize::new(permits.len() + more) else {
            fetcher.permits = permits;
            return None;
        };
        let mut request =
            fetcher.spare.take().unwrap_or_else(|| FetchRequest::new(max, self.limits.fetch_wait));
        request.max = max;
        request.call_timeout = self.limits.reconnect.call_timeout;
        fetcher.draws = splitmix(fetcher.draws);
        self.limits.queues.order(fetcher.draws, &mut request.queues);
        self.caps.quotas(&mut request.quotas);
        fetcher.not_before = None;
        if fetcher.stop.is_cancelled() {
            fetcher.stop = CancellationToken::new();
        }
        Some(Call { request, permits, stop: fetcher.stop.clone(), waits_since })
    }

    /// A fetch that went with settlements was answered: what these have freed is taken again.
    pub(crate) fn fetched_too(&mut self, mut call: Call, deliveries: Vec<Delivery>) {
        let places = &self.fetcher.places;
        while call.permits.len() < deliveries.len()
            && let Some(permit) = places.take()
        {
            call.permits.push(permit);
        }
        self.fetched(call, Ok(deliveries));
    }

    /// A fetch that went with settlements was not answered, or not made.
    pub(crate) fn not_fetched(&mut self, call: Call) {
        let Call { request, mut permits, .. } = call;
        permits.clear();
        let_burst_go(&mut permits);
        self.fetcher.spare = Some(request);
        self.fetcher.permits = permits;
    }

    /// A fetch was answered: its deliveries are taken in, each with a permit; the other permits are freed.
    pub(crate) fn fetched(&mut self, call: Call, answer: Result<Vec<Delivery>, Error>) {
        let Call { request, mut permits, stop, waits_since } = call;
        match answer {
            Ok(deliveries) => {
                self.telemetry.fetches.increment(1);
                self.telemetry.deliveries.increment(deliveries.len() as u64);
                self.stats.fetched += deliveries.len() as u64;
                if std::mem::take(&mut self.fetcher.failures) > 0 && std::mem::take(&mut self.fetcher.told) {
                    tracing::info!("fetching works again");
                }
                let did_not_wait = waits_since.is_some_and(|since| since.elapsed() < AT_ONCE);
                if deliveries.is_empty() && !stop.is_cancelled() && did_not_wait {
                    self.fetcher.not_before = Some(Instant::now() + EMPTY_WAIT);
                }
                request.put_room_back(self.take_in(deliveries, &mut permits));
            }
            Err(error) => self.fetch_failed(error),
        }
        self.fetcher.spare = Some(request);
        permits.clear();
        let_burst_go(&mut permits);
        self.fetcher.permits = permits;
    }

    fn fetch_failed(&mut self, error: Error) {
        if error.kind() == crate::error::ErrorKind::Closed {
            self.cause.get_or_insert(StopCause::SourceEnded);
            return;
        }
        self.telemetry.fetch_failures.increment(1);
        if !error.is_transient() {
            tracing::error!(error = %crate::error::Chain(&error), "the source failed for good: the worker stops");
            self.cause.get_or_insert(StopCause::Failed(error));
            return;
        }
        self.fetcher.failures = self.fetcher.failures.saturating_add(1);
        if error.is_disconnect() {
            return; // the reconnecting source waits, and says so
        }
        let policy = &self.limits.reconnect;
        let whole = backoff(policy.initial, policy.factor, policy.cap, self.fetcher.failures);
        let wait = less_jitter(
            whole,
            policy.jitter,
            unit_random((self.limits.seed, "fetch", self.fetcher.failures)),
        );
        if !std::mem::replace(&mut self.fetcher.told, true) {
            tracing::warn!(error = %crate::error::Chain(&error), ?wait, "fetch failed, retrying");
        }
        self.fetcher.not_before = Some(later(Instant::now(), wait));
    }

    /// Returns the emptied vector.
    fn take_in(&mut self, mut deliveries: Vec<Delivery>, permits: &mut Vec<Permit>) -> Vec<Delivery> {
        if deliveries.is_empty() {
            return deliveries;
        }
        self.take_changes();
        let now = Instant::now();
        for delivery in deliveries.drain(..) {
            // A source that hands over more than was asked for breaks its contract; its jobs are run all the
            // same, and the bound is kept at the next fetch.
            let permit = permits.pop().unwrap_or_else(|| self.fetcher.places.take_beyond());
            let kind = self.kinds.get(&delivery.job.kind).unwrap_or(&self.unknown).clone();
            let refusal = self.refusal(&delivery, &kind);
            if let Some(refused) = refusal.as_ref().filter(|refused| refused.reason.is_some()) {
                log_failure(&delivery, refused);
            }
            let timeout = delivery.job.timeout.or(kind.timeout);
            let run = self.spare.take(delivery, timeout);
            let flight = Flight { run, kind, since: now, stage: Stage::Ready, answer: 0, _permit: permit };
            let place = self.flights.insert(flight);
            self.entered.push(place);
            match refusal {
                None => self.ready.push_back(place),
                Some(settlement) => self.conclude(place, settlement),
            }
        }
        let entered = self.entered.drain(..).filter_map(|place| {
            let run = &self.flights.get(place)?.run;
            Some((place, run.delivery.tag, run.delivery.lease?, run.clone()))
        });
        if self.leases.enter(entered) {
            self.leases.wake();
        }
        let_burst_go(&mut self.entered);
        deliveries
    }

    /// Why a delivery is not to be run at all, and what becomes of it then.
    fn refusal(&mut self, delivery: &Delivery, kind: &KnownKind) -> Option<Settled> {
        let job = &delivery.job;
        let settled = |settlement| Settled::new(delivery.tag, settlement);
        if kind.handler.is_none() {
            let reason = format!("no handler for kind {:?}", job.kind);
            return Some(match self.limits.unknown_kind {
                UnknownKind::Reject => settled(Settlement::Reject).because(&reason),
                UnknownKind::Release => settled(Settlement::Release { after: UNKNOWN_WAIT }),
                UnknownKind::Retry => settlement(delivery, kind, &Outcome::fail(reason), self.limits.seed),
            });
        }
        if job.payload.len() > self.limits.max_payload_bytes {
            let (size, limit) = (job.payload.len(), self.limits.max_payload_bytes);
            let reason = format!("the payload has {size} bytes: more than max_payload_bytes, {limit}");
            return Some(settled(Settlement::Reject).because(&reason));
        }
        let attempts = job.max_attempts.unwrap_or(kind.retry.attempts());
        if delivery.attempt > attempts {
            let begun = delivery.attempt - 1;
            let reason =
                format!("{begun} attempts were begun, of {attempts} allowed, and the last left no word");
            return Some(settled(Settlement::Reject).because(&reason));
        }
        let room = self.caps.take(&job.kind);
        (!room).then(|| settled(Settlement::Release { after: CAPPED_WAIT }))
    }

    /// Starts what is ready, slot by slot. Once stopping, hands it back instead.
    #[expect(
        clippy::disallowed_methods,
        reason = "a metric compares it with the clock of the job's producer"
    )]
    pub(crate) fn start_ready(&mut self, now: Instant) {
        if self.ready.is_empty() {
            return;
        }
        if self.phase > Phase::Running {
            while let Some(place) = self.ready.pop_front() {
                self.hand_back(place);
            }
            return;
        }
        let wall = SystemTime::now();
        while let Some(&place) = self.ready.front() {
            if self.was_cancelled(place) {
                self.ready.pop_front();
                continue;
            }
            let Some(slot) = self.control.running.take() else { break };
            self.ready.pop_front();
            self.start(place, slot, now, wall);
        }
        self.hand_over(now);
    }

    /// Hands what was started to tasks: to those that have just finished another, and to new ones.
    fn hand_over(&mut self, now: Instant) {
        if self.starting.is_empty() {
            return;
        }
        let one_is_enough = |count| self.brisk.is_enough_for(count, now);
        if self.completions.give(&mut self.starting, &mut self.spawning, one_is_enough) {
            self.look_at.get_or_insert(now + LOOK);
        }
        let_burst_go(&mut self.starting);
        self.spawn();
    }

    /// Makes tasks for what is to have one of its own.
    pub(crate) fn spawn(&mut self) {
        if self.spawning.is_empty() {
            return;
        }
        self.completions.has_spawned();
        while let Some(next) = self.spawning.pop() {
            let handler = self.flights.get(next.place).and_then(|flight| flight.kind.handler.as_ref());
            let Some(handler) = handler else { continue };
            handler.spawn(Attempt::new(next, self.completions.clone()), &mut self.tasks, &self.jobs);
        }
        let_burst_go(&mut self.spawning);
    }

    /// A lease may have been lost, or a cancellation asked for, while a delivery waited for its slot: then it
    /// is not started at all.
    fn was_cancelled(&mut self, place: usize) -> bool {
        let Some(flight) = self.flights.get(place) else { return true };
        let cancelled = flight.run.cancel_reason().is_some();
        if cancelled {
            self.call_off(place);
        }
        cancelled
    }

    /// Lets go of a delivery that was told to stop before its handler was called.
    pub(crate) fn call_off(&mut self, place: usize) {
        let Some(flight) = self.flights.get(place) else { return };
        let delivery = &flight.run.delivery;
        match flight.run.cancel_reason() {
            Some(CancelReason::LeaseLost) => {
                self.caps.put_back(&delivery.job.kind);
                self.give_up(place);
            }
            Some(CancelReason::Requested) => {
                let settled = Settled::new(delivery.tag, Settlement::Reject).because(ON_REQUEST);
                self.caps.put_back(&delivery.job.kind);
                self.conclude(place, settled);
            }
            Some(CancelReason::Shutdown | CancelReason::Timeout) | None => self.hand_back(place),
        }
    }

    fn start(&mut self, place: usize, slot: Permit, now: Instant, wall: SystemTime) {
        let Some(flight) = self.flights.get_mut(place) else { return };
        let run = flight.run.clone();
        if run.delivery.attempt == 1 {
            let waited = wall.duration_since(run.delivery.job.enqueued_at).unwrap_or_default();
            flight.kind.telemetry.latency_seconds.record(seconds(waited));
        }
        let deadline = run.deadline_from(now);
        flight.stage = Stage::Running { _slot: slot, ending: None };
        flight.answer = self.unsettled.gathering.began();
        self.starting.push(Next { place, kind: flight.kind.number, run, ticket: None });
        self.stats.started += 1;
        if let Some(at) = deadline {
            self.flights.sweep_by(at);
        }
    }

    /// Hands back what was handed to the runtime and has not begun, since no thread was free for it.
    pub(crate) fn revoke_not_begun(&mut self) {
        let revoked = |(place, flight): (usize, &Flight)| {
            (matches!(flight.stage, Stage::Running { .. }) && flight.run.revoke()).then_some(place)
        };
        let places: Vec<usize> = self.flights.iter().filter_map(revoked).collect();
        places.into_iter().for_each(|place| self.hand_back(place));
    }

    /// Hands a delivery back that has not been started.
    fn hand_back(&mut self, place: usize) {
        let Some(flight) = self.flights.get(place) else { return };
        let delivery = &flight.run.delivery;
        self.caps.put_back(&delivery.job.kind);
        let settled = Settled::new(delivery.tag, Settlement::Release { after: Duration::ZERO });
        self.conclude(place, settled);
    }
}
