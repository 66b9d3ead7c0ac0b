//! Worker processes that are stopped (`kill -STOP`) for longer than their leases last, and woken.

use std::time::Duration;

use tokio::time::Instant;

use super::process::{Ended, Process, SLOTS, Waits, What};
use super::trail::After;
use super::{Fleet, GRACE, in_memory, random, until, wall_clock};

/// One process that sleeps, while another one has got all that it had and is in the middle of it.
struct Scene {
    fleet: Fleet,
    sleeper: Process,
    other: Process,
}

impl Scene {
    /// The sleeper waits there, and has been asleep for two lifetimes of a lease.
    async fn new(waits: Waits) -> Self {
        let mut fleet = Fleet::with_jobs(SLOTS, Duration::from_secs(2), in_memory()).await;
        let mut sleeper = fleet.start(Duration::ZERO, waits);
        let far = if waits == Waits::InJobs { What::Start } else { What::End };
        until("it has all", || fleet.trail.lines(far, sleeper.generation).len() == SLOTS).await;
        if waits == Waits::InSettling {
            until("it settles", || !fleet.trail.lines(What::Sent, sleeper.generation).is_empty()).await;
        }
        let other = fleet.start(Duration::ZERO, Waits::InJobs);
        let (asleep, at) = loop {
            let (asleep, at) = (Instant::now(), wall_clock());
            sleeper.stop().await;
            // In the middle of a renewal it keeps the others out: that is another story.
            if !fleet.trail.is_locked() {
                break (asleep, at);
            }
            sleeper.wake();
        };
        let theirs = |fleet: &Fleet| fleet.trail.lines(What::Start, other.generation);
        until("the other has all", || theirs(&fleet).len() == SLOTS).await;
        for line in theirs(&fleet) {
            assert!(line.at - at <= (fleet.ttl + GRACE).as_nanos() as u64, "too late: {line:?}");
        }
        tokio::time::sleep_until(asleep + fleet.ttl * 2).await;
        Self { fleet, sleeper, other }
    }

    /// The sleeper wakes, does what it can, and ends; what the other has is not touched by it, and is settled by that.
    async fn wake(self) -> (Ended, usize) {
        let Self { fleet, mut sleeper, other } = self;
        let (jobs, had) = (fleet.trail.held_by(other.generation), fleet.trail.held_by(sleeper.generation));
        assert_eq!((jobs.len(), had.len()), (SLOTS, 0), "all is with the other one");
        let sent = fleet.trail.lines(What::Sent, sleeper.generation).len();
        sleeper.go_on();
        sleeper.wake();
        let ended = sleeper.end().await;
        assert_eq!(fleet.trail.held(), jobs, "the leases of the other one stand, with the same tokens");
        assert_eq!((fleet.trail.done(), fleet.trail.dead()), (0, 0), "nothing was settled");
        other.go_on();
        until("all is settled", || fleet.trail.done() >= SLOTS).await;
        assert_eq!(fleet.trail.done(), SLOTS);
        let all = Ended { done: SLOTS as u64, lost: 0, stale: 0 };
        assert_eq!(other.end().await, all, "the other one has settled them all");
        (ended, sent)
    }
}

/// It knows by its own clock that they are not its own any more, and does not even try.
#[tokio::test]
async fn a_worker_that_is_woken_in_the_middle_of_jobs_it_has_lost_gives_them_up() {
    let (ended, _) = Scene::new(Waits::InJobs).await.wake().await;
    assert_eq!(ended, Ended { done: 0, lost: SLOTS as u64, stale: 0 });
}

/// They were its own when it sent them. The file refuses them, and the worker counts that.
#[tokio::test]
async fn settlements_that_come_after_the_jobs_went_to_another_worker_change_nothing() {
    let (ended, sent) = Scene::new(Waits::InSettling).await.wake().await;
    assert!(sent > 0, "it was settling");
    let sent = sent as u64;
    assert_eq!(ended, Ended { done: 0, lost: SLOTS as u64 - sent, stale: sent });
}

/// Two processes, each stopped ten times for two lifetimes of a lease. Who is awake must not lose a lease because the disk
/// is slow: that, too, would be a second run.
#[tokio::test]
async fn nothing_is_lost_when_workers_are_stopped_and_woken_and_only_what_was_in_flight_runs_twice() {
    const JOBS: usize = 20_000;
    const STOPS: usize = 2 * 10;
    const TTL: Duration = Duration::from_millis(1_500);
    /// So that there is something left to do at the last stop: without any stop the two would be at it for fifty seconds.
    const JOB: Duration = Duration::from_millis(100);
    let mut fleet = Fleet::with_jobs(JOBS, TTL, in_memory()).await;
    let mut workers = [fleet.start(JOB, Waits::Nowhere), fleet.start(JOB, Waits::Nowhere)];
    let (mut cuts, mut locked) = (Vec::new(), Vec::new());
    for stop in 0..STOPS {
        let worker = &mut workers[stop % 2];
        until("it is at work", || !fleet.trail.held_by(worker.generation).is_empty()).await;
        tokio::time::sleep(Duration::from_millis(random(200) as u64)).await;
        let (asleep, at) = (Instant::now(), wall_clock());
        worker.stop().await;
        let mut cut = fleet.trail.cut(at, worker.generation);
        let stands = wall_clock();
        // Who is stopped in the middle of a transaction keeps the file locked, so the other loses its leases too.
        if fleet.trail.is_locked() {
            cut.in_flight = fleet.trail.held();
            locked.push((cuts.len(), stands));
        }
        tokio::time::sleep_until(asleep + TTL * 2).await;
        if locked.last().is_some_and(|(number, _)| *number == cuts.len()) {
            cut.woken_in_the_middle = Some(wall_clock());
        }
        cuts.push(cut);
        worker.wake();
    }
    assert!(fleet.trail.done() < JOBS, "all was done before the last one woke: this shows nothing");
    workers.iter().for_each(Process::hurry);
    until("all is settled", || fleet.trail.done() >= JOBS).await;
    let mut done = 0;
    for worker in workers {
        done += worker.end().await.done;
    }
    assert_eq!(done, JOBS as u64, "each settlement was confirmed to one of them");
    // What was to be handed over in that transaction was in flight as well.
    for (cut, stands) in locked {
        let taking = fleet.trail.was_taking(&cuts[cut], stands);
        cuts[cut].in_flight.extend(taking);
    }
    fleet.trail.check(&fleet.jobs, &cuts, After::Sleep);
}
