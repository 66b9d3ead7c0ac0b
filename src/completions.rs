//! Where attempts report, how the loop learns of it, and how a task that has reported comes to another attempt.
//!
//! Invariants:
//!
//! 1. A report is taken within a turn if anybody can poll the loop, and else after the loop's timer: who has
//!    reported either sees it taken, or polls the loop.
//! 2. Who is given an attempt stands by: its own report has been taken and it waits to be polled, on a queue from
//!    which any thread may take it. So the attempt begins no later than one in a new task would.
//! 3. An attempt that was given begins, or is reported as dropped.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;

use crate::outcome::{Outcome, Panicked};
use crate::pull::{ALONE, LOOK, Lists, Next, Ticket};
use crate::sync::{Mutex, MutexGuard, lock};

/// How many keys of standbys are kept for a kind; those of tasks that have gone are among them.
const MAX_KEYS: usize = 1024;

/// How often a task that stands by lets others go first while the loop is at it, and may have something for it.
/// A turn takes some microseconds; to be woken anew would cost more than to look again so many times.
const MAX_STANDING: usize = 64;

/// How often it does so while nobody polls the loop and less than half of what runs has reported: a turn for
/// many costs little more than a turn for one.
const PATIENCE: usize = 16;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The handler returned.
    Returned(Outcome),
    /// It panicked.
    Panicked(Panicked),
    /// It was dropped at an await point, as it was told to.
    Aborted,
    /// Its task was dropped by the runtime, which is going down.
    Dropped,
}

/// What an attempt reports.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Which place of the loop's table it had.
    pub(crate) place: usize,
    pub(crate) end: End,
    pub(crate) run_time: Duration,
}

/// What can be polled by whoever has just finished a job.
pub(crate) trait PollInPlace: Send + Sync {
    /// Polls it here and now, unless somebody else is at it; who is then looks once more.
    fn poll_in_place(&self);
}

/// Where attempts report, and how the loop learns of it.
///
/// A worker's loop may live on a thread of its own. To wake that for each finished job would cost two changes
/// of thread a job; instead the task that has just finished a job, which by that proves that its thread is not
/// blocked, polls the loop on the spot. `docs/design.md` has the figures.
#[derive(Default)]
pub(crate) struct Completions {
    done: Mutex<Done>,
    pace: Pace,
    in_place: OnceLock<Weak<dyn PollInPlace>>,
    waker: AtomicWaker,
}

/// What the loop and those who report tell one another without the lock. Hints all of them: who goes by an old
/// one comes too early or too late, by a turn or by [`HOT`](crate::worker) at most.
#[derive(Debug, Default)]
struct Pace {
    /// The loop has reaped something lately and has set itself a timer to look again soon: then a finished
    /// attempt may let the jobs that wait on its thread go first, so that the loop takes several at once.
    hot: AtomicBool,
    /// The loop is dealing with what it has taken, and may have something to give soon.
    in_turn: AtomicBool,
    /// Somebody has come to have few reports taken.
    urgent: AtomicBool,
    /// How often the loop has given something.
    gives: AtomicU64,
    /// How many reports wait.
    reported: AtomicUsize,
    /// How many attempts were running when the loop looked last.
    running: AtomicUsize,
    /// An exchange with the source takes longer than a turn, so that one for all is better than two for a half each.
    slow_source: AtomicBool,
    /// Jobs are so short that one task of each kind runs them all: nobody stands by.
    brisk: AtomicBool,
    /// How often the loop has made tasks.
    spawns: AtomicU64,
    /// A job that was pulled has kept its thread for longer than a look.
    blocked: AtomicBool,
}

impl Pace {
    /// Whether a turn is worth its while: at least half of what runs has reported, or all of it if the source is slow.
    fn is_worth_while(&self) -> bool {
        let part = if self.slow_source.load(Ordering::Relaxed) { 1 } else { 2 };
        self.reported.load(Ordering::Relaxed) * part >= self.running.load(Ordering::Relaxed)
    }

    /// Lets others go first, as long as that may spare a wake-up or a turn.
    async fn stand_by(&self) {
        let gives = self.gives.load(Ordering::Relaxed);
        let mut patience = PATIENCE;
        for _ in 0..MAX_STANDING {
            requeue().await;
            if self.gives.load(Ordering::Relaxed) != gives {
                return;
            }
            if !self.in_turn.load(Ordering::Relaxed) {
                patience -= 1;
                if patience == 0 || self.is_worth_while() {
                    return;
                }
            }
        }
    }
}

/// What has been reported since the loop took it last, how often it has taken, and who stands by.
#[derive(Default)]
struct Done {
    reports: Vec<Finished>,
    takes: u64,
    standbys: Slab<Standby>,
    /// By kind, from `first` on: keys of standbys. Some may have gone, and their keys may be others' by now.
    by_kind: Vec<Vec<usize>>,
    /// The number of the first kind that attempts may still be of. Tasks of those before are given nothing more.
    first: usize,
    /// What is pulled by one task of its kind, by kind from `first` on.
    lists: Lists,
}

/// A task that has reported and waits to be polled once more.
struct Standby {
    kind: usize,
    /// How often the loop had taken reports when this one was made.
    ticket: u64,
    next: Option<Next>,
}

impl Done {
    /// Finds who may be given an attempt at a job of this kind.
    fn standby(&mut self, kind: usize) -> Option<&mut Standby> {
        let takes = self.takes;
        let may =
            |standby: &Standby| standby.kind == kind && standby.ticket != takes && standby.next.is_none();
        let keys = self.by_kind.get_mut(kind.checked_sub(self.first)?)?;
        let key = std::iter::from_fn(|| keys.pop()).find(|key| self.standbys.get(*key).is_some_and(may))?;
        self.standbys.get_mut(key)
    }

    fn stand_by(&mut self, kind: usize) -> usize {
        if self.standbys.is_empty() && self.standbys.capacity() > MAX_KEYS {
            self.standbys = Slab::new(); // give a burst's memory back (P2)
        }
        let key = self.standbys.insert(Standby { kind, ticket: self.takes, next: None });
        let of_kind = kind.checked_sub(self.first).and_then(|at| self.by_kind.get_mut(at));
        if let Some(keys) = of_kind {
            if keys.len() >= MAX_KEYS {
                keys.clear(); // most have gone
            }
            keys.push(key);
        }
        key
    }
}

impl std::fmt::Debug for Completions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completions").field("pace", &self.pace).finish_non_exhaustive()
    }
}

impl Completions {
    /// From now on the loop is polled through this.
    pub(crate) fn poll_through(&self, stage: Weak<dyn PollInPlace>) {
        // Set once, before the first attempt is started.
        let _ = self.in_place.set(stage);
    }

    /// From now on attempts are of so many kinds, numbered from `first`, which were not there before.
    pub(crate) fn know(&self, first: usize, kinds: usize) {
        let mut done = lock(&self.done);
        done.first = first;
        done.by_kind = std::iter::repeat_with(Vec::new).take(kinds).collect();
        done.lists.renew(first, kinds);
    }

    /// Takes all that has been reported; `room` must be empty, and is left in its place. What nobody pulls any more is
    /// moved to `back`.
    pub(crate) fn take(&self, room: &mut Vec<Finished>, back: &mut Vec<Next>) {
        let mut done = lock(&self.done);
        done.lists.take_back(back);
        if !done.reports.is_empty() {
            std::mem::swap(&mut done.reports, room);
            done.takes += 1;
            self.pace.reported.store(0, Ordering::Relaxed);
            self.pace.urgent.store(false, Ordering::Relaxed);
            self.pace.in_turn.store(true, Ordering::Relaxed);
        }
    }

    /// What was taken has been dealt with as far as it can be without waiting; so many are running now.
    pub(crate) fn turn_is_over(&self, running: usize) {
        self.pace.running.store(running, Ordering::Relaxed);
        self.pace.in_turn.store(false, Ordering::Relaxed);
    }

    /// Whether something has been reported that is to be taken now. Otherwise the waker is woken, or the loop
    /// polled in place, when it is.
    pub(crate) fn poll_any(&self, cx: &std::task::Context<'_>) -> bool {
        self.waker.register(cx.waker());
        let (waits, back) = {
            let done = lock(&self.done);
            (!done.reports.is_empty(), done.lists.has_back())
        };
        let pace = &self.pace;
        // While it is hot, those who have reported stand by, and come by themselves.
        let now =
            !pace.hot.load(Ordering::Relaxed) || pace.urgent.load(Ordering::Relaxed) || pace.is_worth_while();
        waits && now || back
    }

    pub(crate) fn set_slow_source(&self, slow: bool) {
        self.pace.slow_source.store(slow, Ordering::Relaxed);
    }

    pub(crate) fn set_hot(&self, hot: bool) {
        self.pace.hot.store(hot, Ordering::Relaxed);
    }

    /// Gives each attempt to a task of its kind that stands by; those for which there is none go to `left`, the
    /// last first. The last are given first, to those who came last, so that who is first stays first.
    ///
    /// If one task is enough for so many, one of each kind gets all of them, one after the other. Whether that is so.
    pub(crate) fn give(
        &self,
        attempts: &mut Vec<Next>,
        left: &mut Vec<Next>,
        one_is_enough: impl FnOnce(usize) -> bool,
    ) -> bool {
        let mut done = lock(&self.done);
        let brisk = one_is_enough(attempts.len() + done.lists.len());
        self.pace.brisk.store(brisk, Ordering::Relaxed);
        let before = left.len() + attempts.len();
        if brisk {
            done.lists.add(attempts);
        }
        while let Some(next) = attempts.pop() {
            match done.standby(next.kind) {
                Some(standby) => standby.next = Some(next),
                None => left.push(next),
            }
        }
        if left.len() < before {
            self.pace.gives.fetch_add(1, Ordering::Relaxed);
        }
        brisk
    }

    /// The attempt in `place` was dropped, begun or not.
    pub(crate) fn report_dropped(&self, place: usize) {
        drop(self.report(Finished { place, end: End::Dropped, run_time: Duration::ZERO }));
        self.pace.urgent.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    fn report(&self, finished: Finished) -> MutexGuard<'_, Done> {
        let mut done = lock(&self.done);
        done.reports.push(finished);
        self.pace.reported.store(done.reports.len(), Ordering::Relaxed);
        done
    }

    /// Reports, if there is anything to report. What the task does next is to be [awaited](Self::next); `ticket` says that
    /// it pulls, and `tired` that others of its thread should go first for once.
    pub(crate) fn tell(
        &self,
        finished: Option<Finished>,
        kind: usize,
        ticket: Option<Ticket>,
        tired: bool,
    ) -> Told {
        let Some(finished) = finished else { return ticket.map_or(Told::Nothing, Told::Pull) };
        let run_time = finished.run_time;
        let mut done = self.report(finished);
        let hot = self.pace.hot.load(Ordering::Relaxed);
        match ticket {
            // It has waited for nothing, or the ticket would be gone: all that time it kept the thread.
            Some(ticket) if run_time > ALONE => {
                self.pace.blocked.fetch_or(run_time > LOOK, Ordering::Relaxed);
                done.lists.end(kind, ticket);
                Told::Poll
            }
            // Not if the loop would come for the report only when it is polled.
            Some(ticket) if tired && hot => Told::Rest(ticket),
            Some(ticket) => done.lists.pull(kind, ticket).map_or(Told::Pull(ticket), Told::Next),
            None if self.pace.brisk.load(Ordering::Relaxed) => {
                done.lists.begin(kind).map_or(Told::Poll, Told::Pull)
            }
            // Under the lock: the loop sees the report, or whoever reports sees what the loop has made of `hot`.
            None if hot => Told::StandBy(done.stand_by(kind)),
            None => Told::Poll,
        }
    }

    /// Makes the loop take what has been reported, unless it does so by itself meanwhile. Returns the next attempt, if this
    /// task was given one or pulls one.
    ///
    /// Dropped while it waits, it has reported; a ticket is still good.
    pub(crate) async fn next(&self, kind: usize, told: Told) -> Option<Next> {
        match told {
            Told::Nothing => None,
            Told::Next(next) => Some(next),
            Told::Pull(ticket) => self.pull(kind, ticket).await,
            Told::Rest(ticket) => {
                // Not `requeue`, which wakes another thread for what waits here. Should what goes first block this thread,
                // the loop sees to what is on the list and to what has been reported.
                tokio::task::yield_now().await;
                self.pull(kind, ticket).await
            }
            Told::StandBy(key) => {
                let standing = Standing { key, completions: self };
                self.pace.stand_by().await;
                let (next, taken) = standing.leave();
                if !taken {
                    self.poll_in_place();
                }
                next
            }
            Told::Poll => {
                self.poll_in_place();
                None
            }
        }
    }

    /// Pulls the next attempt. When the list is empty the loop is polled, which may add to it; if nothing is there even
    /// then, the task pulls no more.
    async fn pull(&self, kind: usize, ticket: Ticket) -> Option<Next> {
        let next = lock(&self.done).lists.pull(kind, ticket);
        if next.is_some() {
            return next;
        }
        let before = self.pace.spawns.load(Ordering::Relaxed);
        self.poll_in_place();
        if self.pace.spawns.load(Ordering::Relaxed) != before {
            // The last of them waits where no other thread can take it from: it goes first, since what this task pulls next
            // may block the thread.
            requeue().await;
        }
        let mut done = lock(&self.done);
        let next = done.lists.pull(kind, ticket);
        if next.is_none() {
            done.lists.end(kind, ticket);
        }
        next
    }

    /// The task that has this ticket is kept by its job: others see to what it had on its list, and the loop to what it
    /// has reported.
    pub(crate) fn is_kept(&self, kind: usize, ticket: Ticket) {
        if self.ends(kind, ticket) {
            self.poll_in_place();
        }
    }

    /// The task that has this ticket has been dropped.
    pub(crate) fn is_dropped(&self, kind: usize, ticket: Ticket) {
        if self.ends(kind, ticket) {
            self.pace.urgent.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    /// Whether the loop has to be polled now that nobody has this ticket any more.
    fn ends(&self, kind: usize, ticket: Ticket) -> bool {
        let mut done = lock(&self.done);
        done.lists.end(kind, ticket) || !done.reports.is_empty()
    }

    /// Whether a job that was pulled has kept its thread for long since this was asked last.
    pub(crate) fn was_blocked(&self) -> bool {
        let blocked = &self.pace.blocked;
        blocked.load(Ordering::Relaxed) && blocked.swap(false, Ordering::Relaxed)
    }

    /// The loop has made tasks.
    pub(crate) fn has_spawned(&self) {
        self.pace.spawns.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks whether those who pull are kept by jobs that block their threads: what they have on their lists is moved to
    /// `back` then. Whether to look once more after another [`LOOK`](crate::pull::LOOK): something is left to be pulled.
    pub(crate) fn look(&self, back: &mut Vec<Next>) -> bool {
        let mut done = lock(&self.done);
        let more = done.lists.look();
        done.lists.take_back(back);
        more
    }

    fn poll_in_place(&self) {
        self.pace.urgent.store(true, Ordering::Relaxed);
        match self.in_place.get() {
            None => self.waker.wake(),
            Some(stage) => {
                if let Some(stage) = stage.upgrade() {
                    stage.poll_in_place();
                }
            }
        }
    }
}

/// What a task does that has reported.
#[derive(Debug)]
pub(crate) enum Told {
    /// It runs this.
    Next(Next),
    /// It looks for something to pull, and has the loop polled if there is nothing.
    Pull(Ticket),
    /// The same, once others have had its thread.
    Rest(Ticket),
    /// It waits, under this key, for what the loop may give it.
    StandBy(usize),
    /// It has the loop polled, and ends.
    Poll,
    /// It ends.
    Nothing,
}

/// A place among those who stand by. Dropped with its task, it reports for the attempt that it was given.
struct Standing<'a> {
    key: usize,
    completions: &'a Completions,
}

impl Standing<'_> {
    /// Goes. Returns what it was given, and whether its report has been taken.
    fn leave(self) -> (Option<Next>, bool) {
        let (key, completions) = (self.key, self.completions);
        std::mem::forget(self);
        let mut done = lock(&completions.done);
        let standby = done.standbys.remove(key);
        (standby.next, standby.ticket != done.takes)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let standby = lock(&self.completions.done).standbys.remove(self.key);
        if let Some(Next { place, kind, ticket, .. }) = standby.next {
            self.completions.report_dropped(place);
            if let Some(ticket) = ticket {
                self.completions.is_dropped(kind, ticket);
            }
        }
    }
}

/// Lets the tasks go first that wait on this thread.
///
/// Not `tokio::task::yield_now`: that keeps the task out of the other threads' reach until this thread comes
/// to a pause, which a blocking job may delay; a plain wake-up puts it at the end of the queue, for any thread
/// to steal.
pub(crate) async fn requeue() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
