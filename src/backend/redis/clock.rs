//! The server's clock, as it is known from its last answer.

use std::time::Duration;

use tokio::time::Instant;

use super::exchange::millis;
use crate::sync::{Mutex, lock};

/// What the server's clock showed, and when it was asked.
#[derive(Debug)]
pub(super) struct Clock {
    known: Mutex<Known>,
    /// How often the server is told that there is a worker.
    seen_every: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    server_ms: u64,
    /// Before it showed that.
    asked_at: Instant,
    /// When the server was last told that there is a worker.
    seen_at: Option<Instant>,
}

/// In `scripts/away.lua` workers are missed after half a lease, but not before this.
const MISSED_AFTER: Duration = Duration::from_secs(3);

impl Clock {
    /// Nothing is known of it: what is said to it first is too late by it, and is answered with what it shows.
    pub(super) fn new(lease_ttl: Duration) -> Self {
        let seen_every = (lease_ttl / 2).max(MISSED_AFTER) / 3;
        let known = Known { server_ms: 0, asked_at: Instant::now(), seen_at: None };
        Self { known: Mutex::new(known), seen_every }
    }

    /// It showed this at some moment after the server was asked.
    pub(super) fn shows(&self, server_ms: u64, asked_at: Instant) {
        let mut known = lock(&self.known);
        (known.server_ms, known.asked_at) = (server_ms, asked_at);
    }

    /// What it shows at `at`, or a little less far on: never more by the way of one answer.
    pub(super) fn at(&self, at: Instant) -> u64 {
        let known = *lock(&self.known);
        known.server_ms.saturating_add(millis(at.saturating_duration_since(known.asked_at)))
    }

    /// Whether the server is to be told now that there is a worker.
    pub(super) fn is_to_be_seen(&self, now: Instant) -> bool {
        let seen_at = lock(&self.known).seen_at;
        seen_at.is_none_or(|seen_at| now.saturating_duration_since(seen_at) >= self.seen_every)
    }

    /// It was told.
    pub(super) fn seen(&self, at: Instant) {
        lock(&self.known).seen_at = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on_between_answers_and_is_set_by_each() {
        let start = Instant::now();
        let clock = Clock::new(Duration::from_secs(30));
        clock.shows(1_000_000, start);
        let second = Duration::from_secs(1);
        assert_eq!(clock.at(start + second * 3), 1_003_000);
        clock.shows(500, start + second);
        assert_eq!(clock.at(start + second * 2), 1_500, "a server whose clock was set back");
        assert_eq!(clock.at(start), 500);
    }

    #[test]
    fn workers_are_seen_three_times_before_they_are_missed() {
        for (ttl, every) in [(30, Duration::from_secs(5)), (2, Duration::from_secs(1))] {
            let start = Instant::now();
            let clock = Clock::new(Duration::from_secs(ttl));
            assert!(clock.is_to_be_seen(start), "it was never told");
            clock.seen(start);
            assert!(!clock.is_to_be_seen(start + every - Duration::from_millis(1)));
            assert!(clock.is_to_be_seen(start + every));
        }
    }
}
