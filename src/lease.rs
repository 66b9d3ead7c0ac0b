//! The right to work on a job for a time: [`Lease`], the verbs [`Renew`] and [`Reclaim`], and the rule of
//! the trust window in [`LeaseTable`].
//!
//! Pure: time is an argument. Invariants, cited by number where they are relied on:
//!
//! 1. Trust in a lease ends at *request sent* + TTL + doubt − margin, so a slow answer never lengthens it. The doubt is
//!    zero but for a source that decides by the token alone.
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
    /// When the request that was answered with this lease was sent, or any moment that is known to have come before the
    /// source granted it; on the monotonic clock.
    pub sent_at: Instant,
    /// For how long the source grants it.
    pub ttl: Duration,
    /// For how long it is believed beyond that while the source can't be asked. Zero unless the source refuses a
    /// settlement by its token, not by the time, so that what comes late is as good as what is in time if nobody was
    /// given the job meanwhile. If somebody was, the job runs in two places until the source can be asked.
    pub doubt: Duration,
}

impl Lease {
    /// A lease of `ttl`, asked for at `sent_at`.
    pub fn new(sent_at: Instant, ttl: Duration) -> Self {
        Self { sent_at, ttl, doubt: Duration::ZERO }
    }

    /// The same, believed for so long beyond its time while the source can't be asked: see [`doubt`](Self::doubt).
    #[must_use]
    pub fn in_doubt_for(self, doubt: Duration) -> Self {
        Self { doubt, ..self }
    }

    /// Until when it may be believed (invariant 1): the margin is a tenth of the TTL, at most 2 s, for the
    /// difference between two machines' clocks' speeds and for the way of the last settlement.
    pub fn trusted_until(&self) -> Instant {
        let margin = (self.ttl / 10).min(Duration::from_secs(2));
        later(self.sent_at, (self.ttl - margin).saturating_add(self.doubt))
    }

    /// When to renew it (invariant 4).
    pub(crate) fn due_at(&self) -> Instant {
        later(self.sent_at, self.ttl / 3)
    }

    /// From when it is renewed together with others that are due: half the way. Keeps leases that were
    /// granted at different times in few batches.
    fn renewable_at(&self) -> Instant {
        later(self.sent_at, self.ttl / 6)
    }
}

/// The longest that anything waits: what is farther off than an instant can hold is as good as never.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

/// `wait` after `now`; a wait that the clock can't count ends in thirty years.
pub(crate) fn later(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or_else(|| now + FAR)
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
        live()
            .filter(|(_, entry)| now >= entry.lease.renewable_at())
            .map(|(place, entry)| (place, entry.tag))
            .collect()
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// One step of what may happen to a table. Places and tags are chosen among few, so that they clash.
    #[derive(Clone, Debug)]
    enum Step {
        Insert { place: usize, ttl_ms: u64, doubt_ms: u64, sent_ms_ago: u64 },
        Remove { place: usize },
        Pass { ms: u64 },
        Answer { place: usize, tags_ago: u64, sent_ms_ago: u64, answer: Renewal },
        Expire,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let place = 0usize..5;
        let ttl = prop_oneof![Just(0u64), 1u64..50, 20_000u64..40_000];
        let doubt = prop_oneof![Just(0u64), 1u64..50_000];
        let answer = prop_oneof![Just(Renewal::Kept), Just(Renewal::Lost), Just(Renewal::CancelRequested)];
        let step = prop_oneof![
            3 => (place.clone(), ttl, doubt, 0u64..20).prop_map(|(place, ttl_ms, doubt_ms, sent_ms_ago)| {
                Step::Insert { place, ttl_ms, doubt_ms, sent_ms_ago }
            }),
            2 => place.clone().prop_map(|place| Step::Remove { place }),
            3 => prop_oneof![0u64..20, 0u64..20_000].prop_map(|ms| Step::Pass { ms }),
            4 => (place, 0u64..3, 0u64..20_000, answer).prop_map(|(place, tags_ago, sent_ms_ago, answer)| {
                Step::Answer { place, tags_ago, sent_ms_ago, answer }
            }),
            2 => Just(Step::Expire),
        ];
        proptest::collection::vec(step, 1..60)
    }

    #[derive(Clone, Copy, Debug)]
    struct Known {
        token: u64,
        sent: u64,
        ttl: u64,
        doubt: u64,
        lost: bool,
    }

    impl Known {
        /// In milliseconds; all that is divided is a multiple of what it is divided by, up to the rounding of
        /// the clock's nanoseconds, which are compared where they matter.
        fn trusted_until(self) -> u64 {
            let margin = (self.ttl * 1_000_000 / 10).min(2_000_000_000);
            (self.sent + self.ttl + self.doubt) * 1_000_000 - margin
        }

        fn due(self) -> u64 {
            self.sent * 1_000_000 + self.ttl * 1_000_000 / 3
        }

        fn renewable(self) -> u64 {
            self.sent * 1_000_000 + self.ttl * 1_000_000 / 6
        }
    }

    /// A simple model beside the table: one map, looked at in full for each question.
    struct Both {
        table: LeaseTable<u64>,
        known: HashMap<usize, Known>,
        start: Instant,
        now_ms: u64,
        tokens: u64,
    }

    /// Longer than anything that is subtracted from the time.
    const BEGIN_MS: u64 = 100_000;

    fn tag(token: u64) -> Tag {
        Tag { session: 1, key: 7, token }
    }

    impl Both {
        fn new() -> Self {
            Self {
                table: LeaseTable::new(),
                known: HashMap::new(),
                start: Instant::now(),
                now_ms: BEGIN_MS,
                tokens: 0,
            }
        }

        fn at(&self, nanos: u64) -> Instant {
            self.start + Duration::from_nanos(nanos)
        }

        fn now(&self) -> Instant {
            self.at(self.now_ms * 1_000_000)
        }

        fn take(&mut self, step: &Step) {
            match *step {
                Step::Insert { place, ttl_ms, doubt_ms, sent_ms_ago } => {
                    self.tokens += 1;
                    let sent = self.now_ms - sent_ms_ago;
                    let lease = Lease::new(self.at(sent * 1_000_000), Duration::from_millis(ttl_ms));
                    let lease = lease.in_doubt_for(Duration::from_millis(doubt_ms));
                    self.table.insert(place, tag(self.tokens), lease, self.tokens);
                    self.known.insert(
                        place,
                        Known { token: self.tokens, sent, ttl: ttl_ms, doubt: doubt_ms, lost: false },
                    );
                }
                Step::Remove { place } => {
                    self.table.remove(place);
                    self.known.remove(&place);
                }
                Step::Pass { ms } => self.now_ms += ms,
                Step::Answer { place, tags_ago, sent_ms_ago, answer } => {
                    let current = self.known.get(&place).map_or(self.tokens, |known| known.token);
                    let token = current.saturating_sub(tags_ago);
                    let sent = self.now_ms - sent_ms_ago;
                    let told = self.table.renewed(place, tag(token), self.at(sent * 1_000_000), answer);
                    assert_eq!(told, self.answered(place, token, sent, answer));
                }
                Step::Expire => {
                    let now = self.now_ms * 1_000_000;
                    let mut told = self.table.expire(self.now());
                    let mut expected = Vec::new();
                    for known in
                        self.known.values_mut().filter(|known| !known.lost && now >= known.trusted_until())
                    {
                        known.lost = true;
                        expected.push(known.token);
                    }
                    told.sort_unstable();
                    expected.sort_unstable();
                    assert_eq!(told, expected, "who is told of the end of trust");
                }
            }
        }

        /// An answer concerns the entry that it was asked for, if that is still there and not lost.
        fn answered(&mut self, place: usize, token: u64, sent: u64, answer: Renewal) -> Option<u64> {
            let known = self.known.get_mut(&place).filter(|known| known.token == token && !known.lost)?;
            match answer {
                Renewal::Lost => known.lost = true,
                Renewal::Kept | Renewal::CancelRequested => known.sent = known.sent.max(sent),
            }
            (answer != Renewal::Kept).then_some(token)
        }

        fn compare(&self) {
            let now = self.now_ms * 1_000_000;
            for place in 0..6 {
                let expected = match self.known.get(&place) {
                    None => Trust::Unleased,
                    Some(known) if known.lost || now >= known.trusted_until() => Trust::Lost,
                    Some(_) => Trust::Held,
                };
                assert_eq!(self.table.trust(place, self.now()), expected, "place {place}");
            }
            let live: Vec<(usize, Known)> = self
                .known
                .iter()
                .filter(|(_, known)| !known.lost)
                .map(|(place, known)| (*place, *known))
                .collect();
            let mut due = self.table.due(self.now());
            due.sort_unstable();
            let mut expected = Vec::new();
            if live.iter().any(|(_, known)| now >= known.due()) {
                let renewable = live.iter().filter(|(_, known)| now >= known.renewable());
                expected.extend(renewable.map(|(place, known)| (*place, tag(known.token))));
            }
            expected.sort_unstable();
            assert_eq!(due, expected, "what is to be renewed");
            let earliest = |of: fn(Known) -> u64| live.iter().map(|(_, known)| self.at(of(*known))).min();
            assert_eq!(self.table.next_due(), earliest(Known::due));
            assert_eq!(self.table.next_loss(), earliest(Known::trusted_until));
            assert_eq!((self.table.len(), self.table.is_empty()), (self.known.len(), self.known.is_empty()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn a_table_answers_as_a_simple_model_does_whatever_happens(steps in steps()) {
            let mut both = Both::new();
            both.compare();
            for step in &steps {
                both.take(step);
                both.compare();
            }
        }
    }

    fn lease(sent_at: Instant, seconds: u64) -> Lease {
        Lease::new(sent_at, Duration::from_secs(seconds))
    }

    #[test]
    fn trust_ends_a_margin_before_the_lease_does() {
        let sent = Instant::now();
        assert_eq!(lease(sent, 10).trusted_until(), sent + Duration::from_secs(9));
        assert_eq!(lease(sent, 60).trusted_until(), sent + Duration::from_secs(58), "at most two seconds");
        let mut table = LeaseTable::new();
        table.insert(0, tag(1), lease(sent, 10), ());
        let end = sent + Duration::from_secs(9);
        assert_eq!(table.trust(0, end - Duration::from_nanos(1)), Trust::Held);
        assert_eq!(table.trust(0, end), Trust::Lost);
    }

    #[test]
    fn a_slow_answer_lengthens_nothing() {
        let sent = Instant::now();
        let mut table = LeaseTable::new();
        table.insert(0, tag(1), lease(sent, 10), ());
        let asked = sent + Duration::from_secs(4);
        // It came five seconds later; what counts is when it was asked for.
        assert_eq!(table.renewed(0, tag(1), asked, Renewal::Kept), None);
        assert_eq!(table.next_loss(), Some(asked + Duration::from_secs(9)));
        // An answer to an earlier request does not take anything back either.
        table.renewed(0, tag(1), sent + Duration::from_secs(1), Renewal::Kept);
        assert_eq!(table.next_loss(), Some(asked + Duration::from_secs(9)));
    }

    #[test]
    fn a_late_answer_revives_no_lost_lease() {
        let sent = Instant::now();
        let mut table = LeaseTable::new();
        table.insert(0, tag(1), lease(sent, 10), "the job");
        let end = sent + Duration::from_secs(9);
        assert_eq!(table.expire(end), ["the job"]);
        assert_eq!(table.renewed(0, tag(1), sent + Duration::from_secs(8), Renewal::Kept), None);
        assert_eq!(table.trust(0, sent), Trust::Lost);
        assert_eq!(table.expire(end), Vec::<&str>::new(), "nobody is told twice");
    }

    #[test]
    fn an_answer_for_another_tag_changes_nothing() {
        let sent = Instant::now();
        let mut table = LeaseTable::new();
        table.insert(0, tag(1), lease(sent, 10), "the first");
        table.remove(0);
        table.insert(0, tag(2), lease(sent, 10), "the second");
        for answer in [Renewal::Lost, Renewal::CancelRequested, Renewal::Kept] {
            assert_eq!(table.renewed(0, tag(1), sent + Duration::from_secs(5), answer), None);
        }
        assert_eq!(table.trust(0, sent), Trust::Held);
        assert_eq!(table.next_loss(), Some(sent + Duration::from_secs(9)));
        assert_eq!(table.renewed(99, tag(1), sent, Renewal::Lost), None, "a place that never was");
    }

    #[test]
    fn two_renewals_may_fail_before_trust_ends() {
        for seconds in [1, 5, 10, 30, 60, 3600] {
            let lease = lease(Instant::now(), seconds);
            let third = lease.ttl / 3;
            assert!(lease.due_at() + third < lease.trusted_until(), "a lease of {seconds} s");
        }
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut table = LeaseTable::new();
        let lease = lease(Instant::now(), 10);
        (0..100_000).for_each(|place| table.insert(place, tag(1), lease, ()));
        assert_eq!(table.len(), 100_000);
        (0..100_000).for_each(|place| table.remove(place));
        assert!(table.is_empty() && table.places.capacity() <= 1024);
    }
}
