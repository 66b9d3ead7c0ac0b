//! The server's clock, as it is known from its last answer.

use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::exchange::{array, millis, text};
use super::failure::nonsense;
use super::link::send;
use crate::error::Error;
use crate::sync::{Mutex, lock};

const DOING: &str = "asking the server for the time";

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
    /// Asks the server that is at the other end.
    pub(super) async fn ask(
        connection: &mut MultiplexedConnection,
        lease_ttl: Duration,
    ) -> Result<Self, Error> {
        let asked_at = Instant::now();
        let answer = send(connection, DOING, &redis::cmd("TIME")).await?;
        let server_ms = read(answer).ok_or_else(|| nonsense(DOING))?;
        Ok(Self::new(server_ms, asked_at, lease_ttl))
    }

    fn new(server_ms: u64, asked_at: Instant, lease_ttl: Duration) -> Self {
        let seen_every = (lease_ttl / 2).max(MISSED_AFTER) / 3;
        Self { known: Mutex::new(Known { server_ms, asked_at, seen_at: None }), seen_every }
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
        let mut known = lock(&self.known);
        let due =
            known.seen_at.is_none_or(|seen_at| now.saturating_duration_since(seen_at) >= self.seen_every);
        if due {
            known.seen_at = Some(now);
        }
        due
    }
}

/// The seconds, and the microseconds beyond them.
fn read(answer: Value) -> Option<u64> {
    let [seconds, micros] = <[Value; 2]>::try_from(array(answer)?).ok()?;
    let (seconds, micros): (u64, u64) = (text(seconds)?.parse().ok()?, text(micros)?.parse().ok()?);
    Some(seconds.checked_mul(1000)?.saturating_add(micros / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on_between_answers_and_is_set_by_each() {
        let start = Instant::now();
        let clock = Clock::new(1_000_000, start, Duration::from_secs(30));
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
            let clock = Clock::new(0, start, Duration::from_secs(ttl));
            assert!(clock.is_to_be_seen(start), "it was never told");
            assert!(!clock.is_to_be_seen(start + every - Duration::from_millis(1)));
            assert!(clock.is_to_be_seen(start + every));
            assert!(!clock.is_to_be_seen(start + every));
        }
    }

    #[test]
    fn the_time_is_seconds_and_microseconds() {
        let part = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        assert_eq!(read(Value::Array(vec![part("1795334897"), part("717999")])), Some(1_795_334_897_717));
        for bad in [Value::Nil, Value::Array(vec![part("1")]), Value::Array(vec![part("1"), part("x")])] {
            assert_eq!(read(bad), None);
        }
    }
}
