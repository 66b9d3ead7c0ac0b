//! The right to work on a job for a time: [`Lease`], the verbs [`Renew`] and [`Reclaim`], and the rule of
//! the trust window in [`LeaseTable`].
//!
//! Pure: time is an argument. Invariants, cited by number where they are relied on:
//!
//! 1. Trust in a lease ends at *request sent* + TTL − margin, so a slow answer never lengthens it.
//! 2. An entry that was lost stays lost: no late renewal brings it back.
//! 3. An answer that carries another tag than the entry's changes nothing: the place was used again.
//! 4. What is due is renewed at a third of its TTL, so two renewals may fail before trust ends.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::error::Error;
use crate::job::Tag;

/// The right to work on one delivery, for a time.
///
/// Not a lock: it runs out by itself, and what was done under it after that is refused by the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When the request that was answered with this lease was sent (or earlier), on the monotonic clock.
    pub sent_at: Instant,
    /// For how long the source grants it.
    pub ttl: Duration,
}

impl Lease {
    /// A lease of `ttl`, asked for at `sent_at`.
    pub fn new(sent_at: Instant, ttl: Duration) -> Self {
        Self { sent_at, ttl }
    }

    /// Until when it may be believed (invariant 1): the margin is a tenth of the TTL, at most 2 s, for the
    /// difference between two machines' clocks' speeds and for the way of the last settlement.
    pub fn trusted_until(&self) -> Instant {
        let margin = (self.ttl / 10).min(Duration::from_secs(2));
        self.sent_at + (self.ttl - margin)
    }

    /// When to renew it (invariant 4).
    pub(crate) fn due_at(&self) -> Instant {
        self.sent_at + self.ttl / 3
    }

    /// From when it is renewed together with others that are due: half the way. Keeps leases that were
    /// granted at different times in few batches.
    fn renewable_at(&self) -> Instant {
        self.sent_at + self.ttl / 6
    }
}

/// What a source answers to one renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Ours for another TTL.
    Kept,
    /// No longer ours.
    Lost,
    /// Ours, and somebody asked for the job to be cancelled.
    CancelRequested,
}

/// The verb of the heartbeat: keep leases alive.
#[async_trait]
pub trait Renew: Send + Sync + 'static {
    /// Renews all; the answers are in the order of the tags.
    ///
    /// # Errors
    /// On an error nothing is known of any of them; they are tried again until trust ends.
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error>;
}

/// The verb of the rescuer: make the jobs whose lease has run out available again.
#[async_trait]
pub trait Reclaim: Send + Sync + 'static {
    /// Reclaims at most `max`, and says how many it was.
    async fn reclaim(&self, max: usize) -> Result<usize, Error>;
}

/// Whether a delivery may still be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The source has no leases: there is nothing to lose.
    Unleased,
    /// The lease is ours.
    Held,
    /// It was lost, or its time has run out: never settle (P5).
    Lost,
}

/// The leases of the deliveries in flight, by the place that each has there.
///
/// `T` is whom to tell when a lease is lost. At most as many entries as there are places.
#[derive(Debug)]
pub struct LeaseTable<T> {
    places: Vec<Option<Entry<T>>>,
    held: usize,
}

#[derive(Debug)]
struct Entry<T> {
    tag: Tag,
    lease: Lease,
    lost: bool,
    owner: T,
}

impl<T> Default for LeaseTable<T> {
    fn default() -> Self {
        Self { places: Vec::new(), held: 0 }
    }
}

impl<T: Clone> LeaseTable<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leases are entered.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether none is entered.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Enters the lease of the delivery in `place`. A place's former entry is replaced.
    pub fn insert(&mut self, place: usize, tag: Tag, lease: Lease, owner: T) {
        if place >= self.places.len() {
            self.places.resize_with(place + 1, || None);
        }
        let entry = Entry { tag, lease, lost: false, owner };
        if self.places[place].replace(entry).is_none() {
            self.held += 1;
        }
    }

    /// Takes the entry out, once its delivery has been settled or given up.
    pub fn remove(&mut self, place: usize) {
        if self.places.get_mut(place).and_then(Option::take).is_some() {
            self.held -= 1;
        }
        if self.held == 0 && self.places.capacity() > 1024 {
            self.places = Vec::new(); // give a burst's memory back (P2)
        }
    }

    /// Whether the delivery in `place` may be settled at `now` (invariants 1 and 2).
    pub fn trust(&self, place: usize, now: Instant) -> Trust {
        match self.places.get(place).and_then(Option::as_ref) {
            None => Trust::Unleased,
            Some(entry) if entry.lost || now >= entry.lease.trusted_until() => Trust::Lost,
            Some(_) => Trust::Held,
        }
    }

    /// Which leases to renew at `now`: nothing until one is due, then all that are half-way to it.
    pub fn due(&self, now: Instant) -> Vec<(usize, Tag)> {
        let live = || self.entries().filter(|(_, entry)| !entry.lost);
        if !live().any(|(_, entry)| now >= entry.lease.due_at()) {
            return Vec::new();
        }
        live().filter(|(_, entry)| now >= entry.lease.renewable_at()).map(|(place, entry)| (place, entry.tag)).collect()
    }

    /// The shortest TTL of those that are not lost: what bounds the patience with an answer.
    pub fn shortest_ttl(&self) -> Option<Duration> {
        self.entries().filter(|(_, entry)| !entry.lost).map(|(_, entry)| entry.lease.ttl).min()
    }

    /// Applies the answer to a renewal that was sent at `sent_at`. Returns the owner when it has to be told:
    /// the lease is lost, or a cancellation was asked for.
    pub fn renewed(&mut self, place: usize, tag: Tag, sent_at: Instant, answer: Renewal) -> Option<T> {
        let entry = self.places.get_mut(place)?.as_mut()?;
        if entry.tag != tag || entry.lost {
            return None; // invariants 2 and 3
        }
        match answer {
            Renewal::Lost => {
                entry.lost = true;
                Some(entry.owner.clone())
            }
            Renewal::Kept | Renewal::CancelRequested => {
                entry.lease.sent_at = entry.lease.sent_at.max(sent_at);
                (answer == Renewal::CancelRequested).then(|| entry.owner.clone())
            }
        }
    }

    /// Marks as lost what can no longer be believed at `now`, and returns whom to tell.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let run_out = |entry: &&mut Entry<T>| !entry.lost && now >= entry.lease.trusted_until();
        self.places
            .iter_mut()
            .flatten()
            .filter(run_out)
            .map(|entry| {
                entry.lost = true;
                entry.owner.clone()
            })
            .collect()
    }

    /// When to look again: the earliest instant at which a lease is due or runs out. `None` when nothing is
    /// entered that could.
    pub fn next_due(&self) -> Option<Instant> {
        self.entries().filter(|(_, entry)| !entry.lost).map(|(_, entry)| entry.lease.due_at()).min()
    }

    /// When trust in the first of them ends.
    pub fn next_loss(&self) -> Option<Instant> {
        self.entries().filter(|(_, entry)| !entry.lost).map(|(_, entry)| entry.lease.trusted_until()).min()
    }

    fn entries(&self) -> impl Iterator<Item = (usize, &Entry<T>)> {
        self.places.iter().enumerate().filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
    }
}
