//! The store itself: every job, where it stands, and what moves it from one state to the next.
//!
//! Pure: no lock, no task, and time is an argument. Every operation first lets time have its effect
//! ([`Store::advance`]), so that nothing depends on when anybody looks. Invariants:
//!
//! 1. A record is in exactly one state: in the list of that state and, while it waits, in one lane or once
//!    among the delayed.
//! 2. The token of a hand-over is never used again, so an old tag can't match even if its key does (P5).
//! 3. All leases run for the same time, and the list of the leased is kept in the order of their ends: to
//!    find none that has run out is to look at one.
//! 4. What is kept depends on the bounds in [`Settings`], not on how many jobs came and went (P2).

mod admit;
mod deliver;
mod lanes;
mod list;
mod manage;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod unique;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use self::lanes::Lanes;
use self::list::{Links, List};
use self::unique::{Holder, Keys};
use crate::enqueue::Unique;
use crate::inspect::JobState;
use crate::job::{Job, JobId};
use crate::lease::later;

/// A buffer that had to grow beyond this is given back once it is empty. 1,024 records are some 128 KiB.
const KEPT_CAPACITY: usize = 1024;

/// The bounds; [`MemoryBuilder`](super::MemoryBuilder) says what they are and why.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lease_ttl: Duration,
    pub(super) max_jobs: usize,
    pub(super) max_dead: usize,
    pub(super) crash_limit: u32,
    pub(super) max_payload_bytes: usize,
}

/// What an operation did that concerns others than its caller.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// So many jobs have become ready.
    pub(super) ready: usize,
    /// A job is now due before all that were delayed so far.
    pub(super) sooner: bool,
    /// So many dead letters had to go to make room.
    pub(super) dropped_dead: u64,
}

/// All jobs.
#[derive(Debug)]
pub(super) struct Store {
    settings: Settings,
    records: Slab<Record>,
    /// By state.
    lists: [List; 4],
    ready: Lanes,
    /// When due, in which order, which record.
    delayed: BTreeSet<(Instant, u64, usize)>,
    keys: Keys,
    /// How many numbers were given out, for order and identity.
    orders: u64,
    tokens: u64,
    entries: u64,
    /// From when on times are counted in a list's positions.
    begun: Instant,
    done: u64,
    superseded: u64,
    dropped_dead: u64,
    /// The latest time that was seen. Callers read the clock before they have the lock, so what they bring
    /// may be a little behind.
    now: Instant,
    effects: Effects,
    /// The text of every lapse, shared.
    lapsed: Arc<str>,
    /// Why a job that somebody cancelled is dead, shared.
    cancelled: Arc<str>,
}

/// One job.
#[derive(Debug)]
struct Record {
    job: Arc<Job>,
    unique: Option<Box<Unique>>,
    place: Place,
    links: Links,
    /// Its place among the ready: the lower the sooner.
    order: u64,
    /// When it came into its state, and as which of all that ever came into one.
    since: Instant,
    entered: u64,
    /// Attempts begun and not handed back.
    attempts: u32,
    /// How many of its leases ran out.
    lapses: u32,
    last_error: Option<Arc<str>>,
    /// The newer job that has taken its place since it was handed over: it does not wait once more. Boxed, since hardly
    /// any record has one.
    superseded_by: Option<Box<JobId>>,
}

/// The state of a record, with what that state needs.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ready { lane: usize },
    Delayed { due: Instant },
    Leased { token: u64, until: Instant, cancelled: bool },
    Dead,
}

impl Place {
    fn state(self) -> JobState {
        match self {
            Self::Ready { .. } => JobState::Ready,
            Self::Delayed { .. } => JobState::Delayed,
            Self::Leased { .. } => JobState::Leased,
            Self::Dead => JobState::Dead,
        }
    }
}

impl Store {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            records: Slab::new(),
            lists: Default::default(),
            ready: Lanes::default(),
            delayed: BTreeSet::new(),
            keys: Keys::default(),
            orders: 0,
            tokens: 0,
            entries: 0,
            begun: now,
            done: 0,
            superseded: 0,
            dropped_dead: 0,
            now,
            effects: Effects::default(),
            lapsed: Arc::from("its lease ran out: the worker died, or lost touch"),
            cancelled: Arc::from("cancelled"),
        }
    }

    /// How many jobs are neither done nor dead.
    pub(super) fn unfinished(&self) -> usize {
        self.records.len() - self.list(JobState::Dead).len()
    }

    /// How many dead letters had to go since the beginning.
    pub(super) fn dropped_dead(&self) -> u64 {
        self.dropped_dead
    }

    /// What the operations since the last call did.
    pub(super) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    fn list(&self, state: JobState) -> &List {
        &self.lists[state as usize]
    }

    // ---- time ----

    /// Lets time have its effect up to `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        self.ripen(now);
        self.lapse(usize::MAX);
    }

    /// The same, but for leases.
    fn ripen(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.keys.expire(self.now);
        while let Some((_, _, key)) = self.delayed.first().copied().filter(|(due, ..)| *due <= self.now) {
            self.make_ready(key);
        }
    }

    /// When time will have an effect next. Never later than a lease's time from `now`: one that is granted
    /// meanwhile can't end sooner than that, so who sleeps until then need not be told of it.
    pub(super) fn next_event(&self, now: Instant) -> Instant {
        let lapse = self.next_lapse().map_or_else(|| later(now, self.settings.lease_ttl), |(until, _)| until);
        self.delayed.first().map_or(lapse, |(due, ..)| lapse.min(*due))
    }

    // ---- from one state to the next; each keeps invariant 1 ----

    fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    fn next_entry(&mut self) -> u64 {
        self.entries += 1;
        self.entries
    }

    /// Puts a job in its lane, or among the delayed, and says where that is. Its record must follow.
    fn line_up(&mut self, job: &Job, key: usize, wait: Duration, order: u64) -> Place {
        if wait.is_zero() {
            self.effects.ready += 1;
            return Place::Ready { lane: self.ready.push(&job.queue, &job.kind, job.priority, order, key) };
        }
        let due = later(self.now, wait);
        self.delayed.insert((due, order, key));
        self.effects.sooner |= self.delayed.first() == Some(&(due, order, key));
        Place::Delayed { due }
    }

    /// Takes a record that waits out of its lane, or from among the delayed. Another place must follow.
    fn step_out(&mut self, key: usize) {
        let Record { place, order, .. } = self.records[key];
        match place {
            Place::Ready { lane } => self.ready.remove(lane, order),
            Place::Delayed { due } => _ = self.delayed.remove(&(due, order, key)),
            Place::Leased { .. } | Place::Dead => {}
        }
    }

    /// Moves a record that has no place among those who wait (any more) to the list of its new state.
    fn enter(&mut self, key: usize, place: Place) {
        let entered = self.next_entry();
        let record = &mut self.records[key];
        let old = std::mem::replace(&mut record.place, place);
        (record.since, record.entered) = (self.now, entered);
        let (was_out, is_out) = (old.state() == JobState::Leased, place.state() == JobState::Leased);
        if let Some(unique) = record.unique.as_ref().filter(|_| was_out != is_out) {
            match is_out {
                true => self.keys.goes_out(&record.job.kind, unique, key),
                false => self.keys.comes_back(&record.job.kind, unique, key),
            }
        }
        self.lists[old.state() as usize].remove(&mut self.records, key);
        self.lists[place.state() as usize].push(&mut self.records, key);
    }

    /// A record waits once more from now on, and takes its unique key again; one whose place a newer job has taken
    /// ends instead.
    fn wait_again(&mut self, key: usize, wait: Duration, order: u64) {
        let record = &mut self.records[key];
        if record.superseded_by.is_some() {
            return self.end_superseded(key);
        }
        record.order = order;
        let job = record.job.clone();
        if let Some(unique) = &record.unique {
            self.keys.claim_again(&job.kind, unique, Holder { id: job.id.clone(), key });
        }
        let place = self.line_up(&job, key, wait, order);
        self.enter(key, place);
    }

    /// A delayed or dead job is ready now, behind those that are.
    fn make_ready(&mut self, key: usize) {
        self.step_out(key);
        let order = self.next_order();
        self.wait_again(key, Duration::ZERO, order);
    }

    /// To the dead letters; the oldest of these makes room.
    fn bury(&mut self, key: usize, reason: Option<Arc<str>>) {
        self.step_out(key);
        self.free_key(key);
        let record = &mut self.records[key];
        record.superseded_by = None; // what a person brings back is what they want
        if reason.is_some() {
            record.last_error = reason;
        }
        self.enter(key, Place::Dead);
        let dead = self.list(JobState::Dead);
        if let Some(oldest) = dead.first().filter(|_| dead.len() > self.settings.max_dead) {
            self.remove(oldest);
            self.dropped_dead += 1;
            self.effects.dropped_dead += 1;
        }
    }

    /// A newer job has taken its place: it is neither done nor dead.
    fn end_superseded(&mut self, key: usize) {
        self.remove(key);
        self.superseded += 1;
    }

    fn remove(&mut self, key: usize) {
        self.step_out(key);
        self.free_key(key);
        let record = &self.records[key];
        if let (Some(unique), JobState::Leased) = (&record.unique, record.place.state()) {
            self.keys.comes_back(&record.job.kind, unique, key);
        }
        self.lists[self.records[key].place.state() as usize].remove(&mut self.records, key);
        self.records.remove(key);
        if self.records.is_empty() && self.records.capacity() > KEPT_CAPACITY {
            self.records = Slab::new(); // give a burst's memory back (invariant 4)
        }
    }

    /// Frees the unique key that a record holds, unless it holds it for a period.
    fn free_key(&mut self, key: usize) {
        let Record { job, unique, .. } = &self.records[key];
        if let Some(unique) = unique {
            self.keys.free(&job.kind, unique, &job.id);
        }
    }
}
