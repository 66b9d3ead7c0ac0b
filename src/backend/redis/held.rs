//! What this handle was handed over and has not settled: the server is told of a job by its token alone, but how it
//! stood in its queue is needed to say how it goes on.

use std::time::SystemTime;

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use crate::job::{Queue, Tag};
use crate::sync::{Mutex, lock};

/// A job that was handed over.
#[derive(Clone, Debug)]
pub(super) struct Hand {
    pub(super) token: u64,
    /// As it stood in its queue.
    pub(super) raw: Bytes,
    pub(super) queue: Queue,
    /// The number of this attempt.
    pub(super) attempt: u32,
    /// There is more to clear up on the server than its token.
    pub(super) marked: bool,
    /// From then on a failure is the last, since it has failed for as long as it may (`retry_for`).
    pub(super) give_up_at: Option<SystemTime>,
    /// It is kept when it dies.
    pub(super) keep_dead: bool,
    /// Until then it may be held, unless it is renewed.
    pub(super) until: Instant,
    /// From then on it is late for a renewal.
    pub(super) overdue_at: Instant,
}

/// The jobs in hand. Those that nobody settles, since their lease was lost, go when the room is needed: at most as many
/// are kept as are held, and [`SPARE`].
#[derive(Debug)]
pub(super) struct Hands {
    /// Tells the tags of this handle from those of others.
    session: u64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    hands: Slab<Hand>,
    /// From how many on it is looked for those that have run out.
    sweep_at: usize,
}

const SPARE: usize = 1024;

impl Hands {
    pub(super) fn new(session: u64) -> Self {
        Self { session, table: Mutex::default() }
    }

    /// The number of this handle, by chance.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    pub(super) fn add(&self, hand: Hand, now: Instant) -> Tag {
        let mut table = lock(&self.table);
        if table.hands.len() >= table.sweep_at.max(SPARE) {
            table.hands.retain(|_, hand| hand.until > now);
            table.sweep_at = table.hands.len() * 2;
            if table.hands.len() < SPARE / 2 {
                table.hands.shrink_to_fit();
            }
        }
        let token = hand.token;
        Tag { session: self.session, key: table.hands.insert(hand) as u64, token }
    }

    /// What was handed over under this tag, if it has not been settled or forgotten.
    pub(super) fn get(&self, tag: Tag) -> Option<Hand> {
        lock(&self.table).find(self.session, tag).cloned()
    }

    /// The heartbeat has renewed it: when it would be overdue again, and until when it may be held.
    pub(super) fn renewed(&self, tag: Tag, overdue_at: Instant, until: Instant) {
        let mut table = lock(&self.table);
        if table.find(self.session, tag).is_some() {
            let hand = &mut table.hands[tag.key as usize];
            (hand.overdue_at, hand.until) = (overdue_at, until);
        }
    }

    /// Up to so many that may still be held and are late for a renewal.
    pub(super) fn overdue(&self, now: Instant, most: usize) -> Vec<Tag> {
        let table = lock(&self.table);
        let late = table.hands.iter().filter(|(_, hand)| hand.overdue_at <= now && now < hand.until);
        late.map(|(key, hand)| Tag { session: self.session, key: key as u64, token: hand.token })
            .take(most)
            .collect()
    }

    /// These were renewed by an exchange. That does not make it longer for which they may be held: if nobody runs them any
    /// more, they are to run out some day.
    pub(super) fn put_off(&self, tags: &[Tag], overdue_at: Instant) {
        let mut table = lock(&self.table);
        for tag in tags {
            if table.find(self.session, *tag).is_some() {
                table.hands[tag.key as usize].overdue_at = overdue_at;
            }
        }
    }

    pub(super) fn remove(&self, tags: impl Iterator<Item = Tag>) {
        let mut table = lock(&self.table);
        for tag in tags {
            if table.find(self.session, tag).is_some() {
                table.hands.remove(tag.key as usize);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.table).hands.len()
    }
}

impl Table {
    fn find(&self, session: u64, tag: Tag) -> Option<&Hand> {
        let hand = self.hands.get(usize::try_from(tag.key).ok()?)?;
        (tag.session == session && tag.token == hand.token).then_some(hand)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hand(token: u64, until: Instant) -> Hand {
        let (raw, queue) = (Bytes::new(), Queue::default());
        Hand {
            token,
            raw,
            queue,
            attempt: 1,
            marked: false,
            give_up_at: None,
            keep_dead: true,
            until,
            overdue_at: until,
        }
    }

    #[test]
    fn what_nobody_settles_is_forgotten_when_its_lease_has_run_out() {
        let hands = Hands::new(7);
        let start = Instant::now();
        for number in 0..100_000 {
            let now = start + Duration::from_millis(number);
            let tag = hands.add(hand(number, now + Duration::from_secs(1)), now);
            assert!(hands.get(tag).is_some());
            assert!(hands.len() <= 2 * 1_001 + SPARE, "{} are kept", hands.len());
        }
    }

    #[test]
    fn what_is_late_for_its_renewal_is_renewed_by_exchanges_until_it_may_no_longer_be_held() {
        let (hands, now) = (Hands::new(7), Instant::now());
        let second = Duration::from_secs(1);
        let late = Hand { overdue_at: now + second, ..hand(1, now + second * 4) };
        let tag = hands.add(late, now);
        assert!(hands.overdue(now, 9).is_empty());
        assert_eq!(hands.overdue(now + second, 9), [tag]);
        assert!(hands.overdue(now + second, 0).is_empty());
        hands.put_off(&[tag], now + second * 2);
        assert!(hands.overdue(now + second, 9).is_empty());
        assert_eq!(hands.overdue(now + second * 3, 9), [tag]);
        assert!(hands.overdue(now + second * 4, 9).is_empty(), "nobody runs it any more");
        hands.renewed(tag, now + second * 5, now + second * 8);
        assert_eq!(hands.overdue(now + second * 5, 9), [tag]);
    }

    #[test]
    fn a_tag_of_another_handle_or_of_another_hand_over_is_unknown() {
        let hands = Hands::new(7);
        let now = Instant::now();
        let tag = hands.add(hand(1, now), now);
        assert!(hands.get(Tag { session: 8, ..tag }).is_none());
        assert!(hands.get(Tag { token: 2, ..tag }).is_none());
        assert!(hands.get(Tag { key: u64::MAX, ..tag }).is_none());
        hands.remove([Tag { token: 2, ..tag }].into_iter());
        assert!(hands.get(tag).is_some());
        hands.remove([tag].into_iter());
        assert!(hands.get(tag).is_none());
    }
}
