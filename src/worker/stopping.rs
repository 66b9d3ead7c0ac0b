//! The timetable of a stop: when to cancel, when to abort, when to be gone (P7). Pure: time is an argument.
//!
//! ```text
//! stop asked                     cancel        abort        end
//!    |------------ drain ----------|-- reserve/2 -|- reserve/2 -|
//!    |<---------------------- deadline ------------------------>|
//! ```
//!
//! Invariants: `asked ≤ cancel ≤ abort ≤ end ≤ asked + deadline`; asking again moves them earlier, never later.

use std::time::Duration;

use tokio::time::Instant;

use crate::lease::later;
use crate::shutdown::Phase;

/// The most time that is kept for what has not finished by itself.
const MAX_RESERVE: Duration = Duration::from_secs(5);

/// What part of the deadline is kept for it, at most [`MAX_RESERVE`].
const RESERVE_PART: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopping {
    deadline: Duration,
    asked: Phase,
    times: Option<Times>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    asked: Instant,
    cancel: Instant,
    abort: Instant,
    end: Instant,
}

impl Stopping {
    pub(crate) fn new(deadline: Duration) -> Self {
        Self { deadline, asked: Phase::Running, times: None }
    }

    /// Somebody asked for `phase` at `now`.
    pub(crate) fn ask(&mut self, phase: Phase, now: Instant) {
        if phase == Phase::Running {
            return;
        }
        self.asked = self.asked.max(phase);
        let half = (self.deadline / RESERVE_PART).min(MAX_RESERVE) / 2;
        let times = self.times.get_or_insert_with(|| {
            let end = later(now, self.deadline);
            Times { asked: now, cancel: end - half - half, abort: end - half, end }
        });
        if phase >= Phase::Cancel {
            times.cancel = times.cancel.min(now);
            times.abort = times.abort.min(now + half);
        }
        if phase >= Phase::Abort {
            times.abort = times.abort.min(now);
        }
        times.end = times.end.min(times.abort + half);
    }

    /// The most that has been asked for.
    pub(crate) fn asked(&self) -> Phase {
        self.asked
    }

    /// How far it should have got by `now`.
    pub(crate) fn phase(&self, now: Instant) -> Phase {
        match self.times {
            None => Phase::Running,
            Some(times) if now >= times.abort => Phase::Abort,
            Some(times) if now >= times.cancel => Phase::Cancel,
            Some(_) => Phase::Drain,
        }
    }

    /// Whether the time is up: whatever is not finished is left.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.times.is_some_and(|times| now >= times.end)
    }

    /// When jobs that were told to stop are to be aborted.
    pub(crate) fn abort_at(&self) -> Option<Instant> {
        self.times.map(|times| times.abort)
    }

    /// The next instant after `now` at which something changes.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let times = self.times?;
        [times.cancel, times.abort, times.end].into_iter().find(|at| *at > now)
    }

    /// How long it has taken until `now`.
    pub(crate) fn took(&self, now: Instant) -> Duration {
        self.times.map_or(Duration::ZERO, |times| now.duration_since(times.asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_signal_drains_then_cancels_then_aborts_within_the_deadline() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::from_secs(25));
        stopping.ask(Phase::Drain, start);
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(stopping.phase(at(19.9)), Phase::Drain);
        assert_eq!(stopping.phase(at(20.1)), Phase::Cancel);
        assert_eq!(stopping.phase(at(22.6)), Phase::Abort);
        assert!(!stopping.is_over(at(24.9)));
        assert!(stopping.is_over(at(25.0)));
    }

    #[test]
    fn a_deadline_of_zero_is_over_at_once() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::ZERO);
        stopping.ask(Phase::Drain, start);
        assert!(stopping.is_over(start));
    }

    proptest! {
        #[test]
        fn asking_again_never_makes_it_later(
            deadline_ms in 0u64..60_000,
            asks in proptest::collection::vec((0u64..20_000, 1usize..4), 1..8),
        ) {
            let deadline = Duration::from_millis(deadline_ms);
            let mut stopping = Stopping::new(deadline);
            let start = Instant::now();
            let (mut now, mut before): (Instant, Option<Times>) = (start, None);
            for (wait, phase) in asks {
                now += Duration::from_millis(wait);
                let asked = [Phase::Running, Phase::Drain, Phase::Cancel, Phase::Abort][phase];
                stopping.ask(asked, now);
                let times = stopping.times.expect("it was asked");
                prop_assert!(stopping.phase(now) >= asked);
                prop_assert!(times.cancel <= times.abort && times.abort <= times.end);
                prop_assert!(times.end <= times.asked + deadline);
                if let Some(before) = before {
                    prop_assert!(times.cancel <= before.cancel && times.abort <= before.abort && times.end <= before.end);
                }
                before = Some(times);
            }
        }
    }
}
