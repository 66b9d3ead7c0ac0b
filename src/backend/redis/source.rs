//! A worker's session: it takes jobs and settles them, each batch in one exchange.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::codec::{Failure, sidekiq};
use super::exchange::{self, Answer, DOING, Heard, Lapses, MOST, RECLAIM, Taken, Verdict, Wish};
use super::held::Hand;
use super::layout::Layout;
use super::link::EXCHANGE;
use super::parked::Parked;
use super::watch::Watch;
use super::{Shared, due};
use crate::backend::wall_clock;
use crate::error::Error;
use crate::job::{Job, Queue, Tag};
use crate::lease::{Lease, later};
use crate::source::{
    CALL_TIMEOUT, Delivery, FetchRequest, MAX_REASON_BYTES, Settled, Settlement, Source, Stale, truncate,
};

/// How often it is looked for what wakes nobody: a job that another process made wait for a time sooner than any that
/// was known, a lease that another process began, a new queue that is not called `default`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often a fetch looks again for what takes the place of jobs that can't be handed out, before it answers with
/// what it has.
const ROUNDS: usize = 16;

/// One session of a worker.
pub(super) struct Session {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
    watch: Watch,
    /// A job that waited for its time was due when the server was last asked.
    due: AtomicBool,
    /// None were to be taken when the server was last asked.
    paused: AtomicBool,
    clock: Clock,
    /// How long an answer to a settlement is waited for, as the last fetch had it.
    call_timeout_ms: AtomicU64,
}

/// For the way of an answer a tenth of the time is kept for which it is waited for, and no more than this.
const WAY_BACK: Duration = Duration::from_secs(1);

/// How often an exchange is tried whose end is past by the server's clock, which may have been set.
const TELLINGS: usize = 3;

impl Session {
    pub(super) async fn connect(shared: Arc<Shared>) -> Result<Self, Error> {
        let connection = shared.dial.connect().await?;
        let clock = Clock::new(shared.terms.lease_ttl);
        let watch = Watch::new(shared.dial.clone(), shared.keys.clone());
        let (due, paused) = (AtomicBool::new(false), AtomicBool::new(false));
        let call_timeout_ms = AtomicU64::new(exchange::millis(CALL_TIMEOUT));
        Ok(Self { shared, connection, watch, due, paused, clock, call_timeout_ms })
    }

    fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.call_timeout_ms.load(Ordering::Relaxed))
    }

    /// One exchange, of which nothing is done after `until`.
    async fn ask(
        &self,
        most: usize,
        queues: &[Queue],
        verdicts: &[(u64, Verdict)],
        until: Instant,
    ) -> Result<Answer, Error> {
        let counted_as = self.counted_as();
        for _ in 0..TELLINGS {
            let sent_at = Instant::now();
            // What is done in time is to be heard of in time. A call that lasts longer is called back when another finds
            // that nobody answers.
            let until = until.min(later(sent_at, self.call_timeout()));
            let margin = (until.saturating_duration_since(sent_at) / 10).min(WAY_BACK);
            let (until_ms, seen) = (self.clock.at(until - margin), self.clock.is_to_be_seen(sent_at));
            let overdue = if seen { self.overdue(sent_at) } else { Vec::new() };
            let wish = Wish { reclaim: RECLAIM, most, queues, until_ms, seen, overdue: &overdue };
            let call = exchange::ask(&self.shared.keys, &self.shared.terms, &wish, verdicts, &counted_as);
            let mut connection = self.connection.clone();
            match exchange::understand(EXCHANGE.send(&mut connection, DOING, &call).await?)? {
                Heard::TooLate(now_ms) => self.clock.shows(now_ms, sent_at),
                Heard::Answer(answer) => {
                    self.clock.shows(answer.now_ms, sent_at);
                    self.shared.hands.put_off(&overdue, self.shared.terms.overdue_at(sent_at));
                    if seen && overdue.len() < MOST {
                        self.clock.seen(sent_at);
                    }
                    return Ok(self.heard(answer));
                }
            }
        }
        Err(Error::timeout(format!("{DOING} failed: the server was told too late")))
    }

    /// Jobs that are renewed here, since their heartbeat gets no answer: who runs them is alive, and is not to be given
    /// them once more. Where outages take leases, those of a heartbeat that is not heard are to run out.
    fn overdue(&self, now: Instant) -> Vec<Tag> {
        let Shared { terms, hands, renewal_waits, .. } = &*self.shared;
        let some = !terms.doubt.is_zero() && renewal_waits.load(Ordering::Relaxed);
        if some { hands.overdue(now, MOST) } else { Vec::new() }
    }

    fn heard(&self, answer: Answer) -> Answer {
        self.paused.store(answer.paused, Ordering::Relaxed);
        self.due.store(answer.job_due.is_some_and(|wait| wait.is_zero()), Ordering::Relaxed);
        answer
    }

    /// Brings jobs into their queues whose time has come, if there were any when the server was last asked.
    async fn move_due(&self, now_ms: u64) -> Result<(), Error> {
        if self.due.swap(false, Ordering::Relaxed) {
            let mut connection = self.connection.clone();
            let Shared { keys, layout, times, .. } = &*self.shared;
            due::move_due(&mut connection, keys, *layout, *times, now_ms).await?;
        }
        Ok(())
    }

    /// Takes up to `most` jobs, and says when to look again.
    async fn take(
        &self,
        wanted: &FetchRequest,
        until: Instant,
    ) -> Result<(Vec<Delivery>, Option<Duration>), Error> {
        let most = wanted.max.get().min(MOST);
        let mut taken = wanted.room();
        let mut verdicts = Vec::new();
        for _ in 0..ROUNDS {
            let sent_at = Instant::now();
            let answer = match self.ask(most - taken.len(), &wanted.queues, &verdicts, until).await {
                // The next call meets it again; what was taken is not to wait until its lease runs out.
                Err(_) if !taken.is_empty() => return Ok((taken, None)),
                answer => answer?,
            };
            verdicts.clear();
            let (now_ms, due, full) = (answer.now_ms, answer.due, answer.taken.len() >= most - taken.len());
            for job in answer.taken {
                match self.deliver(job, sent_at) {
                    Ok(delivery) => taken.push(delivery),
                    Err(verdict) => verdicts.push(verdict),
                }
            }
            let some_due = self.due.load(Ordering::Relaxed) && !full;
            if !verdicts.is_empty() {
                continue;
            }
            if !some_due {
                return Ok((taken, due));
            }
            match self.move_due(now_ms).await {
                Err(_) if !taken.is_empty() => return Ok((taken, None)),
                moved => moved?,
            }
        }
        // What is left of these comes again when its lease has run out.
        Ok((taken, Some(Duration::ZERO)))
    }

    /// A job for the worker; or what becomes of it if it can't be handed out.
    fn deliver(&self, taken: Taken, sent_at: Instant) -> Result<Delivery, (u64, Verdict)> {
        let Taken { token, queue, raw, lapses, tries } = taken;
        let layout = self.shared.layout;
        let Ok(read) = layout.read(&raw, &queue) else {
            let raw = layout.unreadable(&raw, &queue, &self.worker(), wall_clock());
            return Err((token, unreadable(layout, raw)));
        };
        let failures = read.failures.saturating_add(tries);
        let mut job = read.job;
        job.queue = queue.clone();
        if read.enqueued_at.is_none() {
            job.enqueued_at = wall_clock();
        }
        let times = match lapses {
            Lapses::Times(times) => times,
            Lapses::Cancelled => {
                let raw = self.dead(&raw, &queue, read.keep_dead, CANCELLED, failures.saturating_add(1));
                return Err((token, Verdict::End { raw }));
            }
        };
        let attempts = failures.saturating_add(times);
        if let Some(reason) = self.poison(&job, attempts, times) {
            let raw = self.dead(&raw, &queue, read.keep_dead, &reason, attempts);
            return Err((token, Verdict::End { raw }));
        }
        let attempt = attempts.saturating_add(1);
        let terms = &self.shared.terms;
        let lease = Lease::new(sent_at, terms.lease_ttl).in_doubt_for(terms.doubt);
        let hand = Hand {
            token,
            raw,
            queue,
            attempt,
            marked: times > 0 || tries > 0 || read.unique.is_some(),
            give_up_at: read.retry_for.and_then(|time| read.first_failed_at?.checked_add(time)),
            keep_dead: read.keep_dead,
            until: terms.held_until(sent_at),
            overdue_at: terms.overdue_at(sent_at),
        };
        let tag = self.shared.hands.add(hand, sent_at);
        Ok(Delivery { job: Arc::new(job), attempt, tag, lease: Some(lease) })
    }

    /// Why a job whose leases ran out is not handed out again, if so. How often a job may fail says nothing of how many
    /// workers it may kill.
    fn poison(&self, job: &Job, attempts: u32, lapses: u32) -> Option<String> {
        let over = lapses >= self.shared.crash_limit || job.max_attempts.is_some_and(|most| attempts >= most);
        (lapses > 0 && over)
            .then(|| format!("lease expired {lapses} times, the last time in attempt {attempts}"))
    }

    /// Settles, and takes up to `wanted.max` if anything is wanted.
    async fn apply(
        &self,
        settled: &[Settled],
        wanted: Option<&FetchRequest>,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        let until = later(Instant::now(), self.call_timeout());
        let mut stale = Vec::new();
        let mut taken = wanted.map(FetchRequest::room).unwrap_or_default();
        let mut parts = settled.chunks(MOST).peekable();
        while let Some(part) = parts.next() {
            // The places are free when all are settled.
            let last = parts.peek().is_none();
            let wanted = wanted.filter(|_| last);
            self.apply_part(part, wanted, until, &mut stale, &mut taken).await?;
        }
        Ok((Stale(stale), taken))
    }

    async fn apply_part(
        &self,
        settled: &[Settled],
        wanted: Option<&FetchRequest>,
        until: Instant,
        stale: &mut Vec<Tag>,
        taken: &mut Vec<Delivery>,
    ) -> Result<(), Error> {
        let mut verdicts = Vec::with_capacity(settled.len());
        for settled in settled {
            let twice = verdicts.iter().any(|(token, _)| *token == settled.tag.token);
            match self.shared.hands.get(settled.tag).filter(|_| !twice) {
                Some(hand) => verdicts.push((hand.token, self.verdict(&hand, settled))),
                None => stale.push(settled.tag),
            }
        }
        let (most, queues) = wanted.map_or((0, &[][..]), |wanted| (wanted.max.get(), &wanted.queues[..]));
        let sent_at = Instant::now();
        let answer = self.ask(most, queues, &verdicts, until).await?;
        let refused = answer.refused;
        let tag_of = |token: &u64| settled.iter().map(|settled| settled.tag).find(|tag| tag.token == *token);
        stale.extend(answer.stale.iter().filter_map(tag_of));
        let mut rejected: Vec<_> = Vec::new();
        for token in &refused {
            if let Some(hand) = tag_of(token).and_then(|tag| self.shared.hands.get(tag)) {
                let raw = self.dead_in_hand(&hand, CANCELLED);
                rejected.push((*token, Verdict::End { raw }));
            }
        }
        for job in answer.taken {
            match self.deliver(job, sent_at) {
                Ok(delivery) => taken.push(delivery),
                Err(verdict) => rejected.push(verdict),
            }
        }
        self.shared.hands.remove(settled.iter().map(|settled| settled.tag));
        // An error from here on must not hide what was taken. What it leaves undone is done when the leases of those
        // have run out, and the next call meets it again.
        if !rejected.is_empty() {
            let _ = self.ask(0, queues, &rejected, until).await;
        }
        let _ = self.move_due(answer.now_ms).await;
        Ok(())
    }
}

/// What becomes of what is no job: Sidekiq counts it nowhere, and Resque's pages show that it failed.
fn unreadable(layout: Layout, raw: Vec<u8>) -> Verdict {
    match layout {
        Layout::Sidekiq => Verdict::Unreadable { raw },
        Layout::Resque => Verdict::End { raw: Some(raw) },
    }
}

/// A job in hand as it waits where its layout has nothing for that.
fn parked(hand: &Hand, attempts: u32, reason: &str) -> Vec<u8> {
    let (queue, raw, reason) = (hand.queue.clone(), hand.raw.clone(), Arc::from(reason));
    Parked { token: hand.token, attempts, queue, reason, raw }.write()
}

pub(super) const CANCELLED: &str = "cancelled";

impl Session {
    /// How a dead job is kept, if it is.
    fn dead(&self, raw: &[u8], queue: &Queue, keep: bool, reason: &str, attempt: u32) -> Option<Vec<u8>> {
        let times = self.shared.times;
        let failure = Failure { reason, now: wall_clock(), attempt, queue: Some(queue), times };
        keep.then(|| self.shared.layout.dead(raw, &self.worker(), &failure))
    }

    fn dead_in_hand(&self, hand: &Hand, reason: &str) -> Option<Vec<u8>> {
        self.dead(&hand.raw, &hand.queue, hand.keep_dead, reason, hand.attempt)
    }

    /// What a settlement means for a job in hand.
    fn verdict(&self, hand: &Hand, settled: &Settled) -> Verdict {
        let reason = truncate(settled.reason.as_deref().unwrap_or_default(), MAX_REASON_BYTES);
        match settled.settlement {
            Settlement::Ack if hand.marked => Verdict::MarkedDone,
            Settlement::Ack => Verdict::Done,
            Settlement::Reject => Verdict::Dead { raw: self.dead_in_hand(hand, reason) },
            Settlement::Release { after } if after.is_zero() || self.shared.layout == Layout::Sidekiq => {
                Verdict::Back { after }
            }
            Settlement::Release { after } => Verdict::Wait { after, raw: parked(hand, 0, "") },
            Settlement::Retry { after } => self.retry(hand, reason, after),
        }
    }

    fn retry(&self, hand: &Hand, reason: &str, after: Duration) -> Verdict {
        if self.shared.layout == Layout::Resque {
            let attempts = hand.attempt;
            return match after.is_zero() {
                true => Verdict::Again { attempts },
                false => Verdict::Later { after, raw: parked(hand, attempts, reason) },
            };
        }
        let now = wall_clock();
        if hand.give_up_at.is_some_and(|at| at <= now) {
            return Verdict::Dead { raw: self.dead_in_hand(hand, reason) };
        }
        let times = self.shared.times;
        let failure = Failure { reason, now, attempt: hand.attempt, queue: Some(&hand.queue), times };
        let Ok(raw) = sidekiq::retried(&hand.raw, &failure) else {
            // It was understood when it was taken.
            return Verdict::Back { after };
        };
        if !after.is_zero() {
            return Verdict::Later { after, raw };
        }
        match sidekiq::enqueued(&raw, now, times) {
            Ok((queue, raw)) => Verdict::Retry { queue, raw },
            Err(_) => Verdict::Back { after },
        }
    }
}

#[async_trait]
impl Source for Session {
    /// # Cancel safety
    /// What a dropped fetch had taken comes again when its lease has run out.
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        if stop.is_cancelled() {
            return Ok(Vec::new());
        }
        let deadline = later(Instant::now(), wanted.wait);
        let until = later(deadline, wanted.call_timeout);
        self.attend(wanted);
        loop {
            let bell = self.shared.bell.notified();
            let (taken, due) = self.take(wanted, until).await?;
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            let look = Instant::now() + due.unwrap_or(LOOK_AGAIN).clamp(Duration::from_millis(1), LOOK_AGAIN);
            let queues = self.queues(wanted).await?;
            tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                () = sleep_until(deadline.min(look)) => {}
                () = bell => {}
                ready = self.watch.ready(&queues), if !self.paused.load(Ordering::Relaxed) => ready?,
            }
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        if settled.is_empty() {
            return Ok(Stale::default());
        }
        Ok(self.apply(settled, None).await?.0)
    }

    fn fuses(&self) -> bool {
        true
    }

    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        self.attend(wanted);
        self.apply(settled, Some(wanted)).await
    }
}

impl Session {
    /// Notes for how long answers are waited for, and says in whose name it takes, where workers have names.
    fn attend(&self, wanted: &FetchRequest) {
        self.call_timeout_ms.store(exchange::millis(wanted.call_timeout), Ordering::Relaxed);
        if self.shared.layout == Layout::Resque {
            self.shared.roll.takes_from(&wanted.queues, self.shared.hands.session() >> 32);
        }
    }

    /// What it is called in the list of workers.
    fn worker(&self) -> String {
        self.shared.roll.name()
    }

    /// What the names of the counters end with in which its jobs are counted too.
    fn counted_as(&self) -> String {
        match self.shared.layout {
            Layout::Sidekiq => exchange::today(wall_clock()),
            Layout::Resque => self.shared.roll.entered(),
        }
    }

    /// The queues to wait for: those wanted, or all that are served.
    async fn queues(&self, wanted: &FetchRequest) -> Result<Vec<Queue>, Error> {
        if !wanted.queues.is_empty() {
            return Ok(wanted.queues.clone());
        }
        let mut connection = self.connection.clone();
        due::served(&mut connection, &self.shared.keys).await
    }
}
