//! Short jobs one after the other in one task: lists of attempts, by kind, each with the task that pulls from it.
//!
//! Where all that begins is done within some microseconds, more tasks and more threads cost more than they bring: each is
//! to be made, woken and stolen, and the threads pass the same memory to and fro. So one task runs them all, reports each,
//! and then polls the loop. `docs/design.md` has the figures.
//!
//! Invariants:
//!
//! 1. What is on a list has its slot, and somebody who comes for it: the task that pulls, or else the loop, which takes it
//!    back and gives each a task of its own.
//! 2. Who pulls and is kept, since its job waits for something or blocks its thread, pulls no more: at once in the first
//!    case, after two [`LOOK`]s of the loop in the second.
//! 3. One task at most pulls from a list. It knows that it does by its ticket; no ticket is given twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::context::Run;

/// For how long, by the last that have ended, all that begins may take for one task to run it alone. To wake a second
/// thread and share with it takes about as long.
pub(crate) const ALONE: Duration = Duration::from_micros(20);

/// For how many turns nobody pulls after it proved wrong that jobs are short.
const DISTURBED: u32 = 16;

/// For how long nobody pulls after a job blocked its thread. What short jobs have woken just before it, on that thread,
/// waits until it gives the thread back, and no look helps: so it is not to happen often. The system may have taken the
/// thread away instead, which is nobody's fault: so the first time costs little, and each time soon after it twice as much.
const BLOCKED: Duration = Duration::from_millis(10);
const MAX_BLOCKED: Duration = Duration::from_secs(10);

/// How often the loop looks whether anybody who pulls is kept by a job.
pub(crate) const LOOK: Duration = Duration::from_millis(1);

/// After so many jobs a task that pulls lets other tasks of its thread go first.
pub(crate) const MAX_IN_A_ROW: u32 = 64;

/// The most attempts that an emptied list keeps room for.
const MAX_ROOM: usize = 1024;

/// Whether one task is enough for all that begins.
#[derive(Debug, Default)]
pub(crate) struct Brisk {
    /// How long a job took, by the last turn in which any ended; nothing is known at first.
    mean: Option<Duration>,
    /// For so many turns more each attempt has a task of its own.
    wait: u32,
    /// Until then too, since a job blocked its thread, and how long before.
    until: Option<(Instant, Duration)>,
}

impl Brisk {
    /// So many have ended, which took so long in all and at the longest.
    pub(crate) fn ended(&mut self, count: usize, total: Duration, longest: Duration) {
        let Ok(count) = u32::try_from(count) else { return };
        if count == 0 {
            return;
        }
        self.mean = Some(total / count);
        self.wait = if longest > ALONE { DISTURBED } else { self.wait.saturating_sub(1) };
    }

    /// A job that was pulled waited for something.
    pub(crate) fn waited_for(&mut self) {
        self.wait = DISTURBED;
    }

    /// A job that was pulled was found to block its thread.
    pub(crate) fn blocked(&mut self, now: Instant) {
        let soon = self.until.filter(|(until, _)| now < *until + MAX_BLOCKED);
        let pause = soon.map_or(BLOCKED, |(_, pause)| (pause * 2).min(MAX_BLOCKED));
        self.until = Some((now + pause, pause));
    }

    /// Whether one task is to run so many.
    pub(crate) fn is_enough_for(&self, count: usize, now: Instant) -> bool {
        if self.until.is_some_and(|(until, _)| until > now) {
            return false;
        }
        let Some(mean) = self.mean.filter(|_| self.wait == 0) else { return false };
        u32::try_from(count).is_ok_and(|count| mean.saturating_mul(count) <= ALONE)
    }
}

/// An attempt that may be given to a task.
#[derive(Debug)]
pub(crate) struct Next {
    /// The place of its delivery.
    pub(crate) place: usize,
    /// The number of its kind.
    pub(crate) kind: usize,
    pub(crate) run: Arc<Run>,
    /// The task that is given it pulls others after it.
    pub(crate) ticket: Option<Ticket>,
}

/// Says which task pulls from a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// The lists, and what has been taken back from them.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    lists: Vec<List>,
    /// The kind that the first list is for; the others follow.
    first_kind: usize,
    tickets: u64,
    /// What nobody pulls any more.
    back: Vec<Next>,
    /// Room for those whose tasks are to pull.
    first: Vec<Next>,
}

#[derive(Debug, Default)]
struct List {
    ready: VecDeque<Next>,
    puller: Option<Ticket>,
    /// Nothing has been pulled since the loop looked last.
    untouched: bool,
}

impl List {
    fn begin(&mut self, tickets: &mut u64) -> Ticket {
        *tickets += 1;
        let ticket = Ticket(*tickets);
        self.puller = Some(ticket);
        self.untouched = false;
        ticket
    }

    fn has(&self, ticket: Ticket) -> bool {
        self.puller == Some(ticket)
    }

    /// Nobody pulls from it any more, and what is left goes `back`. Whether anything was.
    fn end(&mut self, back: &mut Vec<Next>) -> bool {
        self.puller = None;
        let left = !self.ready.is_empty();
        back.extend(self.ready.drain(..));
        left
    }
}

/// The list of this kind, if there is one.
fn list_of(lists: &mut [List], first_kind: usize, kind: usize) -> Option<&mut List> {
    lists.get_mut(kind.checked_sub(first_kind)?)
}

impl Lists {
    /// From now on there are lists for so many kinds, numbered from `first_kind`, all empty; what was on the old ones is taken
    /// back.
    pub(crate) fn renew(&mut self, first_kind: usize, count: usize) {
        for list in &mut self.lists {
            list.end(&mut self.back);
        }
        self.first_kind = first_kind;
        self.lists = std::iter::repeat_with(List::default).take(count).collect();
    }

    /// Adds each attempt to the list of its kind, for who pulls from that. If nobody does, the attempt stays where it is and
    /// gets a ticket: the task that it is given to pulls.
    pub(crate) fn add(&mut self, attempts: &mut Vec<Next>) {
        for mut next in attempts.drain(..) {
            match list_of(&mut self.lists, self.first_kind, next.kind) {
                Some(list) if list.puller.is_some() => list.ready.push_back(next),
                Some(list) => {
                    next.ticket = Some(list.begin(&mut self.tickets));
                    self.first.push(next);
                }
                None => self.first.push(next),
            }
        }
        attempts.append(&mut self.first);
    }

    /// Who asks pulls attempts of this kind from now on, if nobody else does.
    pub(crate) fn begin(&mut self, kind: usize) -> Option<Ticket> {
        let list = list_of(&mut self.lists, self.first_kind, kind)?;
        list.puller.is_none().then(|| list.begin(&mut self.tickets))
    }

    /// Pulls an attempt of this kind, if the ticket is still good for that and there is any.
    pub(crate) fn pull(&mut self, kind: usize, ticket: Ticket) -> Option<Next> {
        let list = list_of(&mut self.lists, self.first_kind, kind).filter(|list| list.has(ticket))?;
        list.untouched = false;
        list.ready.pop_front().map(|next| Next { ticket: Some(ticket), ..next })
    }

    /// Who has this ticket pulls no more; what is left on the list is taken back. Whether anything was.
    pub(crate) fn end(&mut self, kind: usize, ticket: Ticket) -> bool {
        let list = list_of(&mut self.lists, self.first_kind, kind).filter(|list| list.has(ticket));
        list.is_some_and(|list| list.end(&mut self.back))
    }

    /// How many are on lists, and in the hands of those who pull from them.
    pub(crate) fn len(&self) -> usize {
        self.lists.iter().map(|list| list.ready.len() + usize::from(list.puller.is_some())).sum()
    }

    /// Ends the pulling where nothing was pulled since the last look, though something was there. Whether anything is left
    /// to be pulled.
    pub(crate) fn look(&mut self) -> bool {
        for list in &mut self.lists {
            if list.untouched && !list.ready.is_empty() {
                list.end(&mut self.back);
            }
            list.untouched = !list.ready.is_empty();
            if list.ready.is_empty() && list.ready.capacity() > MAX_ROOM {
                list.ready = VecDeque::new(); // give a burst's memory back (P2)
            }
        }
        self.lists.iter().any(|list| list.untouched)
    }

    /// Whether anything has been taken back.
    pub(crate) fn has_back(&self) -> bool {
        !self.back.is_empty()
    }

    /// Moves what has been taken back.
    pub(crate) fn take_back(&mut self, to: &mut Vec<Next>) {
        if !self.back.is_empty() {
            to.append(&mut self.back);
            if self.back.capacity() > MAX_ROOM {
                self.back = Vec::new(); // give a burst's memory back (P2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;
    use crate::job::{Job, JobId, Kind, Tag};
    use crate::source::Delivery;

    const SHORT: Duration = Duration::from_nanos(200);

    fn next(place: usize, kind: usize) -> Next {
        let job = Job::new(JobId::new("a"), Kind::new("a"), Bytes::new(), SystemTime::UNIX_EPOCH);
        let tag = Tag { session: 0, key: 0, token: 0 };
        let delivery = Delivery { job: Arc::new(job), attempt: 1, tag, lease: None };
        Next { place, kind, run: Arc::new(Run::new(delivery, None)), ticket: None }
    }

    /// Two lists, for kinds 5 and 6.
    fn lists() -> Lists {
        let mut lists = Lists::default();
        lists.renew(5, 2);
        lists
    }

    /// Adds, and returns the places and tickets of those that stay.
    fn add(
        lists: &mut Lists,
        attempts: impl IntoIterator<Item = (usize, usize)>,
    ) -> Vec<(usize, Option<Ticket>)> {
        let mut attempts = attempts.into_iter().map(|(place, kind)| next(place, kind)).collect();
        lists.add(&mut attempts);
        attempts.into_iter().map(|next| (next.place, next.ticket)).collect()
    }

    fn back(lists: &mut Lists) -> Vec<usize> {
        let mut back = Vec::new();
        lists.take_back(&mut back);
        back.iter().map(|next| next.place).collect()
    }

    #[test]
    fn the_first_of_a_kind_pulls_the_others_in_their_order() {
        let mut lists = lists();
        let first = add(&mut lists, [(1, 5), (2, 6), (3, 5), (4, 6), (5, 5), (6, 4), (7, 9)]);
        let [(1, Some(five)), (2, Some(six)), (6, None), (7, None)] = first[..] else {
            panic!("one of each kind pulls, and what is of no kind is not pulled: {first:?}")
        };
        assert!(add(&mut lists, [(8, 5)]).is_empty(), "somebody pulls that already");
        let mut pull =
            |at, ticket| lists.pull(at, ticket).map(|next| (next.place, next.ticket == Some(ticket)));
        assert_eq!([pull(5, five), pull(5, five)], [Some((3, true)), Some((5, true))]);
        assert_eq!([pull(6, five), pull(5, six)], [None, None], "each from its own list");
        assert_eq!([pull(6, six), pull(6, six), pull(5, five)], [Some((4, true)), None, Some((8, true))]);
    }

    #[test]
    fn who_ends_leaves_the_rest_and_a_ticket_that_is_good_for_nothing() {
        let mut lists = lists();
        let Some(ticket) = lists.begin(5) else { panic!("nobody pulls") };
        assert_eq!(lists.begin(5), None, "one at a time");
        add(&mut lists, [(1, 5), (2, 5)]);
        assert!(lists.end(5, ticket));
        assert_eq!(back(&mut lists), [1, 2]);
        let Some(other) = lists.begin(5) else { panic!("nobody pulls any more") };
        assert!(other != ticket && add(&mut lists, [(3, 5)]).is_empty());
        assert!(!lists.end(5, ticket) && lists.pull(5, ticket).is_none());
        assert_eq!(lists.pull(5, other).map(|next| next.place), Some(3));
        assert!(!lists.end(5, other), "nothing was left");
    }

    #[test]
    fn who_pulls_nothing_between_two_looks_is_kept() {
        let mut lists = lists();
        let Some(ticket) = lists.begin(5) else { panic!("nobody pulls") };
        assert!(!lists.look() && !lists.look());
        add(&mut lists, [(1, 5), (2, 5), (3, 5)]);
        assert!(lists.look());
        assert_eq!(lists.pull(5, ticket).map(|next| next.place), Some(1));
        assert!(lists.look());
        assert!(back(&mut lists).is_empty(), "it pulls, if slowly");
        assert!(!lists.look());
        assert_eq!(back(&mut lists), [2, 3]);
        assert!(lists.pull(5, ticket).is_none() && lists.begin(5).is_some(), "another may");
    }

    #[test]
    fn new_lists_are_empty_and_nothing_of_the_old_is_lost() {
        let mut lists = lists();
        let Some(ticket) = lists.begin(6) else { panic!("nobody pulls") };
        add(&mut lists, [(1, 6)]);
        lists.renew(5, 2);
        assert!(lists.pull(6, ticket).is_none() && !lists.end(6, ticket));
        assert_eq!(back(&mut lists), [1]);
    }

    #[test]
    fn one_task_is_enough_for_what_is_done_in_a_moment() {
        let (mut brisk, now) = (Brisk::default(), Instant::now());
        assert!(!brisk.is_enough_for(1, now), "nothing is known");
        brisk.ended(20, SHORT * 20, SHORT);
        brisk.ended(0, Duration::ZERO, Duration::ZERO);
        assert!(
            brisk.is_enough_for(1, now) && brisk.is_enough_for(100, now) && !brisk.is_enough_for(101, now)
        );
        brisk.ended(20, SHORT * 20, ALONE + SHORT);
        for turn in 0..DISTURBED {
            assert!(!brisk.is_enough_for(1, now), "one was long, {turn} turns ago");
            brisk.ended(1, SHORT, SHORT);
        }
        assert!(brisk.is_enough_for(100, now));
        brisk.waited_for();
        assert!(!brisk.is_enough_for(1, now));
        for _ in 0..DISTURBED {
            brisk.ended(20, ALONE, ALONE / 20);
        }
        assert!(brisk.is_enough_for(20, now) && !brisk.is_enough_for(40, now));
    }

    #[test]
    fn nobody_pulls_after_a_job_that_blocked_and_for_longer_if_that_is_often() {
        let (mut brisk, mut now) = (Brisk::default(), Instant::now());
        brisk.ended(20, SHORT * 20, SHORT);
        for pause in
            [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_000, 10_000].map(Duration::from_millis)
        {
            brisk.blocked(now);
            assert!(!brisk.is_enough_for(1, now + pause - SHORT), "{pause:?}");
            now += pause;
            assert!(brisk.is_enough_for(1, now), "{pause:?}");
        }
        now += MAX_BLOCKED;
        brisk.blocked(now);
        assert!(brisk.is_enough_for(1, now + BLOCKED), "it is long since");
    }
}
