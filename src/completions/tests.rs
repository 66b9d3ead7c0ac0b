use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::*;
use crate::context::Run;
use crate::job::{Job, JobId, Kind, Tag};
use crate::source::Delivery;

fn next(place: usize, kind: usize) -> Next {
    let job = Job::new(JobId::new("a"), Kind::new("a"), Bytes::new(), SystemTime::UNIX_EPOCH);
    let tag = Tag { session: 0, key: 0, token: 0 };
    let delivery = Delivery { job: Arc::new(job), attempt: 1, tag, lease: None };
    Next { place, kind, run: Arc::new(Run::new(delivery, None)), ticket: None }
}

fn finished(place: usize) -> Finished {
    Finished { place, end: End::Returned(Outcome::Done), run_time: Duration::ZERO }
}

/// A loop that has just been at it, while `running` attempts run.
fn hot(running: usize) -> Completions {
    let completions = Completions::default();
    completions.know(0, 10);
    completions.set_hot(true);
    completions.turn_is_over(running);
    completions
}

fn take(completions: &Completions) -> Vec<(usize, bool)> {
    let mut room = Vec::new();
    completions.take(&mut room, &mut Vec::new());
    room.iter().map(|finished| (finished.place, matches!(finished.end, End::Dropped))).collect()
}

/// Gives, and says the places of those for which nobody stood by.
fn give(completions: &Completions, attempts: impl IntoIterator<Item = Next>) -> Vec<usize> {
    let (mut attempts, mut left) = (attempts.into_iter().collect(), Vec::new());
    completions.give(&mut attempts, &mut left, |_| false);
    left.iter().rev().map(|next| next.place).collect()
}

fn report(completions: &Completions, place: usize, kind: usize) -> impl Future<Output = Option<Next>> {
    completions.next(kind, completions.tell(Some(finished(place)), kind, None, false))
}

type Task<'a> = Pin<Box<dyn Future<Output = Option<Next>> + 'a>>;

fn reported(completions: &Completions, place: usize, kind: usize) -> Task<'_> {
    let mut task = Box::pin(report(completions, place, kind));
    assert!(task.as_mut().now_or_never().is_none(), "it stands by");
    task
}

/// What the task was given; it must be about to go.
fn given(task: &mut Task<'_>) -> Option<usize> {
    task.as_mut().now_or_never().expect("it goes").map(|next| next.place)
}

#[test]
fn a_task_of_a_handler_that_was_replaced_is_given_nothing() {
    let completions = hot(9);
    let mut before = reported(&completions, 1, 7);
    completions.know(10, 1);
    let (mut after, mut new) = (reported(&completions, 2, 8), reported(&completions, 5, 10));
    take(&completions);
    assert_eq!(give(&completions, [next(3, 10), next(4, 10), next(6, 11)]), [3, 6], "one of the new kind");
    assert_eq!((given(&mut before), given(&mut after), given(&mut new)), (None, None, Some(4)));
}

#[test]
fn who_stands_by_and_was_taken_is_given_the_next_of_its_kind_and_no_other() {
    let completions = hot(9);
    let (mut first, mut second) = (reported(&completions, 1, 7), reported(&completions, 2, 8));
    assert_eq!(give(&completions, [next(3, 7)]), [3], "nothing has been taken yet");
    // Who is not taken keeps its key no longer than it stands by, so both come once more.
    drop((first, second));
    (first, second) = (reported(&completions, 1, 7), reported(&completions, 2, 8));
    assert_eq!(take(&completions).len(), 4);
    assert_eq!(give(&completions, [next(4, 8), next(5, 8), next(6, 9)]), [4, 6], "one of a kind");
    assert_eq!((given(&mut first), given(&mut second)), (None, Some(5)));
    assert_eq!(give(&completions, [next(7, 7), next(8, 8)]), [7, 8], "they have gone");
    assert!(take(&completions).is_empty(), "and nothing is told twice");
}

#[test]
fn who_has_the_key_of_one_that_has_gone_is_not_taken_for_it() {
    let completions = hot(9);
    drop(reported(&completions, 1, 7));
    let mut other = reported(&completions, 2, 8);
    take(&completions);
    assert_eq!(give(&completions, [next(3, 7)]), [3]);
    assert!(give(&completions, [next(4, 8)]).is_empty());
    assert_eq!(given(&mut other), Some(4));
}

#[test]
fn nobody_is_given_two() {
    let completions = hot(9);
    drop(reported(&completions, 1, 7));
    let mut other = reported(&completions, 2, 7); // with the key of the first, which is listed twice now
    take(&completions);
    assert_eq!(give(&completions, [next(3, 7), next(4, 7)]), [3]);
    assert_eq!(given(&mut other), Some(4));
}

#[test]
fn what_is_first_stays_first() {
    let completions = hot(9);
    let mut tasks: Vec<_> = (0..3).map(|place| reported(&completions, place, 0)).collect();
    take(&completions);
    assert!(give(&completions, (10..13).map(|place| next(place, 0))).is_empty());
    assert_eq!(tasks.iter_mut().map(given).collect::<Vec<_>>(), [Some(10), Some(11), Some(12)]);
}

#[test]
fn an_attempt_that_was_given_to_a_task_that_is_dropped_is_reported() {
    let completions = hot(9);
    let task = reported(&completions, 1, 0);
    take(&completions);
    assert!(give(&completions, [next(2, 0)]).is_empty());
    drop(task);
    assert_eq!(take(&completions), [(2, true)]);
    assert!(lock(&completions.done).standbys.is_empty());
}

/// Whoever is not taken along comes by itself: it polls the loop, or wakes it.
#[test]
fn who_waits_long_enough_has_its_report_taken() {
    for (running, patience) in [(1, 1), (9, PATIENCE)] {
        let completions = hot(running);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut task = pin!(report(&completions, 1, 0));
        for turn in 0..patience {
            assert!(task.as_mut().poll(&mut cx).is_pending(), "turn {turn} of {patience}");
        }
        assert_eq!(completions.poll_any(&cx), running == 1, "a turn for one of nine can wait");
        assert!(task.as_mut().poll(&mut cx).is_ready(), "it has waited long enough");
        assert!(completions.poll_any(&cx), "and the loop sees it");
    }
}

#[test]
fn nobody_stands_by_when_nothing_is_going_on() {
    let completions = Completions::default();
    assert!(report(&completions, 1, 0).now_or_never().is_some());
    assert_eq!(take(&completions), [(1, false)]);
    assert!(lock(&completions.done).standbys.is_empty() && lock(&completions.done).by_kind.is_empty());
}

/// Gives what one task is to run, and returns who is first.
fn give_brisk(completions: &Completions, places: impl IntoIterator<Item = usize>) -> Vec<Next> {
    let (mut attempts, mut left) = (places.into_iter().map(|place| next(place, 0)).collect(), Vec::new());
    assert!(completions.give(&mut attempts, &mut left, |_| true));
    assert!(attempts.is_empty());
    left
}

fn back(completions: &Completions) -> Vec<usize> {
    let mut back = Vec::new();
    completions.take(&mut Vec::new(), &mut back);
    back.iter().map(|next| next.place).collect()
}

/// Reports for a task that pulls, and returns what it does next.
fn told(completions: &Completions, place: usize, ticket: Option<Ticket>, tired: bool) -> Told {
    completions.tell(Some(finished(place)), 0, ticket, tired)
}

#[test]
fn one_task_pulls_what_is_brisk_and_then_pulls_no_more() {
    let completions = hot(3);
    let first = give_brisk(&completions, 1..=3);
    let [Next { place: 1, ticket: ticket @ Some(_), .. }] = first[..] else { panic!("{first:?}") };
    for place in 2..=3 {
        let Told::Next(next) = told(&completions, place - 1, ticket, false) else { panic!("it pulls on") };
        assert_eq!((next.place, next.ticket), (place, ticket));
    }
    let told = told(&completions, 3, ticket, false);
    assert!(completions.next(0, told).now_or_never().expect("no wait").is_none(), "all has been pulled");
    assert_eq!(take(&completions), [(1, false), (2, false), (3, false)]);
    assert_eq!(give_brisk(&completions, [4]).len(), 1, "another task pulls from now on");
}

/// In place of those that stood by when each had its own task.
#[test]
fn who_reports_when_jobs_are_brisk_pulls_if_nobody_else_does() {
    let completions = hot(3);
    give_brisk(&completions, []);
    let (first, second) = (told(&completions, 1, None, false), told(&completions, 2, None, false));
    assert!(matches!((&first, &second), (Told::Pull(_), Told::Poll)), "{first:?}, {second:?}");
    assert!(give_brisk(&completions, [3]).is_empty(), "it is on its way");
    assert_eq!(completions.next(0, first).now_or_never().flatten().map(|next| next.place), Some(3));
    assert!(completions.next(0, second).now_or_never().expect("no wait").is_none());
}

#[test]
fn a_task_that_is_kept_or_dropped_leaves_what_it_had_and_the_loop_hears_of_it() {
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    for end in [Completions::is_kept, Completions::is_dropped] {
        // The last of a list after a report, and the first, with none.
        for (places, left) in [(1, &[][..]), (3, &[2, 3])] {
            let completions = hot(9);
            let ticket = give_brisk(&completions, 1..=places)[0].ticket.expect("it pulls");
            if places == 1 {
                drop(told(&completions, 1, Some(ticket), true));
            }
            assert!(!completions.poll_any(&cx), "it reports more before it comes");
            end(&completions, 0, ticket);
            assert!(completions.poll_any(&cx), "{places}");
            assert_eq!(back(&completions), left);
        }
    }
}

#[test]
fn who_was_not_quick_pulls_no_more_and_others_see_to_the_rest() {
    for (run_time, blocked) in [(ALONE + LOOK / 100, false), (LOOK * 2, true)] {
        let completions = hot(3);
        let ticket = give_brisk(&completions, 1..=3)[0].ticket;
        let slow = Finished { run_time, ..finished(1) };
        assert!(matches!(completions.tell(Some(slow), 0, ticket, false), Told::Poll));
        assert_eq!(back(&completions), [2, 3]);
        assert_eq!([completions.was_blocked(), completions.was_blocked()], [blocked, false]);
    }
}

#[test]
fn what_is_on_lists_and_who_pulls_from_them_counts_too() {
    let completions = hot(9);
    let counts = std::cell::RefCell::new(Vec::new());
    for (places, kind) in [(1..=3, 0), (4..=4, 0), (5..=5, 1)] {
        let mut attempts = places.map(|place| next(place, kind)).collect();
        let note = |count| {
            counts.borrow_mut().push(count);
            true
        };
        completions.give(&mut attempts, &mut Vec::new(), note);
    }
    assert_eq!(counts.into_inner(), [3, 4, 5]);
}

#[test]
fn nobody_rests_on_a_report_that_the_loop_does_not_come_for() {
    let completions = hot(1);
    let ticket = give_brisk(&completions, 1..=1)[0].ticket;
    completions.set_hot(false);
    assert!(matches!(told(&completions, 1, ticket, true), Told::Pull(_)));
}

#[test]
fn a_tired_task_lets_others_go_first_and_pulls_on() {
    let completions = hot(3);
    let ticket = give_brisk(&completions, 1..=2)[0].ticket;
    let told = told(&completions, 1, ticket, true);
    assert!(matches!(told, Told::Rest(_)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let next = runtime.block_on(async {
        let mut next = pin!(completions.next(0, told));
        assert!(next.as_mut().now_or_never().is_none(), "it waits for a turn");
        next.await
    });
    assert_eq!(next.map(|next| next.place), Some(2));
}

#[test]
fn what_is_left_behind_a_job_that_blocks_its_thread_is_taken_back() {
    let completions = hot(3);
    let ticket = give_brisk(&completions, 1..=3)[0].ticket;
    let mut back = Vec::new();
    assert!(completions.look(&mut back) && back.is_empty());
    assert!(!completions.look(&mut back));
    assert_eq!(back.iter().map(|next| next.place).collect::<Vec<_>>(), [2, 3]);
    let late = told(&completions, 1, ticket, false);
    assert!(completions.next(0, late).now_or_never().expect("no wait").is_none(), "it comes too late");
    assert_eq!(take(&completions), [(1, false)], "but it reports");
}

#[test]
fn the_keys_that_are_kept_are_bounded() {
    let completions = hot(2 * MAX_KEYS);
    for place in 0..10 * MAX_KEYS {
        drop(reported(&completions, place, 0));
    }
    let done = lock(&completions.done);
    assert!(done.by_kind[0].len() <= MAX_KEYS && done.standbys.capacity() <= 2 * MAX_KEYS);
}
