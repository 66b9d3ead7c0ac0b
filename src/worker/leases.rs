//! What the loop and the heartbeat thread share: the [`LeaseTable`] behind its lock.
//!
//! What two threads of the engine decide about together, and what loom checks. (They also share the bell, which only
//! wakes, and each run's control block, which is atomics.) Invariants:
//!
//! 1. Whether a delivery may be settled and whether its lease was lost are decided under the same lock, so
//!    the loop never settles what the heartbeat has called lost (P5).
//! 2. Before the heartbeat waits it notes, under the lock, until when; whoever enters a lease that has to be
//!    looked at sooner sees that note under the same lock, and wakes it. No wake-up is lost, and a busy
//!    worker with leases of one length wakes it once for a whole stretch of jobs.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::job::Tag;
use crate::lease::{Lease, LeaseTable, Renewal, Trust};
use crate::sync::{Mutex, lock};

/// The leases of one worker. `T` is the control block of a run.
#[derive(Debug)]
pub(crate) struct Leases<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    table: LeaseTable<T>,
    waits_for: Option<WaitsFor>,
}

/// What the heartbeat waits for. A woken one waits for nothing until it has looked again.
#[derive(Clone, Copy, Debug)]
enum WaitsFor {
    /// The first entry at all.
    Entry,
    /// The first lease that is due, then.
    Due(Instant),
    /// The end of trust in the first, then, while a renewal is under way.
    Loss(Instant),
}

impl WaitsFor {
    fn is_too_late_for(self, lease: &Lease) -> bool {
        match self {
            Self::Entry => true,
            Self::Due(at) => lease.due_at() < at,
            Self::Loss(at) => lease.trusted_until() < at,
        }
    }
}

/// What the heartbeat should do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Beat {
    /// Nothing is leased: sleep until woken.
    Sleep,
    /// Nothing is due before this instant.
    Wait(Instant),
    /// Renew these, the first of which was due at this instant.
    Renew(Vec<(usize, Tag)>, Instant),
}

impl<T: Clone> Leases<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { table: LeaseTable::new(), waits_for: None }), wake: Notify::new() }
    }

    /// Enters the leases of a batch. Returns whether the heartbeat has to be [woken](Leases::wake).
    pub(crate) fn enter(&self, batch: impl Iterator<Item = (usize, Tag, Lease, T)>) -> bool {
        let mut state = lock(&self.state);
        let mut wake = false;
        for (place, tag, lease, owner) in batch {
            wake |= state.waits_for.is_some_and(|wait| wait.is_too_late_for(&lease));
            state.table.insert(place, tag, lease, owner);
        }
        if wake {
            state.waits_for = None;
        }
        wake
    }

    /// Takes out those whose deliveries have been settled or given up.
    pub(crate) fn leave(&self, places: impl Iterator<Item = usize>) {
        let mut state = lock(&self.state);
        places.for_each(|place| state.table.remove(place));
    }

    /// For each place, whether its delivery may be settled at `now`.
    pub(crate) fn trust(&self, places: impl Iterator<Item = usize>, now: Instant, answer: &mut Vec<Trust>) {
        let state = lock(&self.state);
        answer.clear();
        answer.extend(places.map(|place| state.table.trust(place, now)));
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until `at` (for ever if `None`), or until woken.
    pub(crate) async fn wait(&self, at: Option<Instant>) {
        let woken = self.wake.notified();
        match at {
            None => woken.await,
            Some(at) => {
                // Either way the heartbeat looks again.
                let _ = tokio::time::timeout_at(at, woken).await;
            }
        }
    }

    /// What the heartbeat should do at `now`.
    pub(crate) fn beat(&self, now: Instant) -> Beat {
        let mut state = lock(&self.state);
        let Some(due_at) = state.table.next_due() else {
            // Entries that are lost already need nothing more; they count as none.
            state.waits_for = Some(WaitsFor::Entry);
            return Beat::Sleep;
        };
        let due = state.table.due(now);
        state.waits_for = due.is_empty().then_some(WaitsFor::Due(due_at));
        if due.is_empty() { Beat::Wait(due_at) } else { Beat::Renew(due, due_at) }
    }

    /// When trust in the first lease ends, for the heartbeat to wait for.
    pub(crate) fn wait_for_loss(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        let loss = state.table.next_loss();
        state.waits_for = Some(loss.map_or(WaitsFor::Entry, WaitsFor::Loss));
        loss
    }

    /// How long an answer to a renewal may take: a third of the shortest TTL leaves time for one more try.
    pub(crate) fn patience(&self) -> Option<Duration> {
        lock(&self.state).table.shortest_ttl().map(|ttl| ttl / 3)
    }

    /// Applies the answers to renewals that were sent at `sent_at`; returns whom to tell what.
    pub(crate) fn renewed(&self, answers: &[(usize, Tag, Renewal)], sent_at: Instant) -> Vec<(T, Renewal)> {
        let mut state = lock(&self.state);
        let told = answers.iter().filter_map(|(place, tag, answer)| {
            state.table.renewed(*place, *tag, sent_at, *answer).map(|owner| (owner, *answer))
        });
        told.collect()
    }

    /// Marks as lost what can no longer be believed at `now`; returns whom to tell.
    pub(crate) fn expire(&self, now: Instant) -> Vec<T> {
        lock(&self.state).table.expire(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn tag(token: u64) -> Tag {
        Tag { session: 0, key: 0, token }
    }

    fn enter(leases: &Leases<u64>, place: usize, lease: Lease) -> bool {
        let token = place as u64;
        leases.enter(std::iter::once((place, tag(token), lease, token)))
    }

    fn trust(leases: &Leases<u64>, place: usize, now: Instant) -> Trust {
        let mut answer = vec![Trust::Lost; 3];
        leases.trust(std::iter::once(place), now, &mut answer);
        assert_eq!(answer.len(), 1);
        answer[0]
    }

    #[test]
    fn only_a_lease_that_comes_too_early_for_what_it_waits_for_wakes_the_heartbeat() {
        let (leases, now) = (Leases::new(), Instant::now());
        assert!(!enter(&leases, 0, Lease::new(now, TTL)), "it has not begun to wait");
        assert_eq!(leases.beat(now), Beat::Wait(now + TTL / 3));
        assert!(!enter(&leases, 1, Lease::new(now, TTL)), "due at the same time");
        assert!(!enter(&leases, 2, Lease::new(now, TTL * 2)), "due later");
        assert!(enter(&leases, 3, Lease::new(now, TTL / 2)), "due sooner");
        assert!(!enter(&leases, 4, Lease::new(now, TTL / 4)), "it has been woken already and will look");
        assert_eq!(leases.beat(now), Beat::Wait(now + TTL / 12));
    }

    #[test]
    fn the_first_lease_wakes_a_heartbeat_that_sleeps() {
        let (leases, now) = (Leases::new(), Instant::now());
        assert_eq!(leases.beat(now), Beat::Sleep);
        assert!(enter(&leases, 0, Lease::new(now, TTL)));
        leases.leave(std::iter::once(0));
        assert_eq!(leases.beat(now), Beat::Sleep);
        // What is lost already needs nothing more, and does not keep it awake.
        enter(&leases, 0, Lease::new(now, TTL));
        assert_eq!(leases.expire(now + TTL), [0]);
        assert_eq!(leases.beat(now + TTL), Beat::Sleep);
        assert!(enter(&leases, 1, Lease::new(now + TTL, TTL)));
    }

    #[test]
    fn while_a_renewal_is_under_way_only_the_end_of_trust_counts() {
        let (leases, now) = (Leases::new(), Instant::now());
        enter(&leases, 0, Lease::new(now, TTL));
        let due = now + TTL / 3;
        assert_eq!(leases.beat(due), Beat::Renew(vec![(0, tag(0))], due));
        assert_eq!(leases.wait_for_loss(), Some(now + Duration::from_secs(28)));
        assert!(!enter(&leases, 1, Lease::new(due, TTL)), "its trust ends later");
        assert!(enter(&leases, 2, Lease::new(due, Duration::from_secs(1))), "its trust ends sooner");
        leases.leave([0, 1, 2].into_iter());
        assert_eq!(leases.wait_for_loss(), None);
        assert!(enter(&leases, 0, Lease::new(now, TTL * 9)), "now any would be the first");
    }

    #[test]
    fn what_was_called_lost_is_not_trusted_and_its_owner_is_told_once() {
        let (leases, now) = (Leases::new(), Instant::now());
        enter(&leases, 5, Lease::new(now, TTL));
        assert_eq!(trust(&leases, 5, now), Trust::Held);
        assert_eq!(trust(&leases, 6, now), Trust::Unleased);
        let answers = [(5, tag(5), Renewal::Lost), (6, tag(6), Renewal::Lost)];
        assert_eq!(leases.renewed(&answers, now), [(5, Renewal::Lost)]);
        assert_eq!(leases.renewed(&answers, now), []);
        assert_eq!(trust(&leases, 5, now), Trust::Lost);
        assert_eq!(leases.expire(now + TTL), Vec::<u64>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_that_comes_before_the_wait_is_not_lost() {
        let leases = Leases::<u64>::new();
        leases.wake();
        assert!(leases.wait(None).now_or_never().is_some());
        assert!(leases.wait(None).now_or_never().is_none(), "and counts once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_time() {
        let (leases, now) = (Leases::<u64>::new(), Instant::now());
        leases.wait(Some(now + TTL)).await;
        assert!(Instant::now() >= now + TTL);
    }
}

/// What loop and heartbeat share, under every order of their steps. Each model has a mutant beside it that is
/// wrong in the way that the model is there for, and that loom must find.
#[cfg(all(test, tidegate_loom))]
mod loom {
    use std::sync::Arc; // loom's own would panic once more in a thread that a deadlock has left behind
    use std::time::Duration;

    use ::loom::sync::Notify;
    use ::loom::sync::atomic::{AtomicBool, Ordering};
    use ::loom::{model, thread};

    use super::{Beat, Leases, WaitsFor};
    use crate::job::Tag;
    use crate::lease::{Lease, Renewal, Trust};
    use crate::sync::lock;

    type Shared = Arc<Leases<u64>>;

    const TTL: Duration = Duration::from_secs(30);
    const PLACE: usize = 0;

    fn tag(token: u64) -> Tag {
        Tag { session: 0, key: 0, token }
    }

    fn enter(leases: &Shared, token: u64, sent_at: tokio::time::Instant) -> bool {
        leases.enter(std::iter::once((PLACE, tag(token), Lease::new(sent_at, TTL), token)))
    }

    fn leave(leases: &Shared) {
        leases.leave(std::iter::once(PLACE));
    }

    fn is_held(leases: &Shared, now: tokio::time::Instant) -> bool {
        let mut trust = Vec::new();
        leases.trust(std::iter::once(PLACE), now, &mut trust);
        trust == [Trust::Held]
    }

    /// The heartbeat beats until there is something to renew; the loop enters a lease. A wake-up that is lost
    /// is a deadlock, which loom reports.
    fn falling_asleep(beat: fn(&Shared, tokio::time::Instant) -> Beat) {
        let start = tokio::time::Instant::now();
        model(move || {
            let (leases, bell) = (Arc::new(Leases::new()), Arc::new(Notify::new()));
            let heart = {
                let (leases, bell) = (leases.clone(), bell.clone());
                thread::spawn(move || {
                    loop {
                        match beat(&leases, start + TTL / 3) {
                            Beat::Sleep | Beat::Wait(_) => bell.wait(),
                            Beat::Renew(due, _) => return assert_eq!(due, [(PLACE, tag(1))]),
                        }
                    }
                })
            };
            if enter(&leases, 1, start) {
                bell.notify();
            }
            heart.join().expect("the heartbeat does not panic");
        });
    }

    #[test]
    fn a_lease_that_is_entered_while_the_heartbeat_falls_asleep_wakes_it() {
        falling_asleep(|leases, now| leases.beat(now));
    }

    /// Wrong: looks at the table under one lock and notes under another that it will sleep.
    fn beat_in_two_steps(leases: &Shared, now: tokio::time::Instant) -> Beat {
        let is_empty = lock(&leases.state).table.next_due().is_none();
        if is_empty {
            lock(&leases.state).waits_for = Some(WaitsFor::Entry);
            return Beat::Sleep;
        }
        leases.beat(now)
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_heartbeat_that_notes_its_sleep_under_another_lock_loses_a_wake_up() {
        falling_asleep(beat_in_two_steps);
    }

    /// The same for a heartbeat that waits for a later lease, or for the end of trust, when a sooner one comes.
    fn waiting_for_another(noted_with_the_look: bool) {
        let start = tokio::time::Instant::now();
        model(move || {
            let (leases, bell) = (Arc::new(Leases::new()), Arc::new(Notify::new()));
            let later = Lease::new(start + TTL * 4, TTL);
            leases.enter(std::iter::once((1, tag(9), later, 9)));
            let heart = {
                let (leases, bell) = (leases.clone(), bell.clone());
                thread::spawn(move || {
                    // A renewal is under way: what counts is when trust in the first lease ends.
                    loop {
                        let loss = if noted_with_the_look {
                            leases.wait_for_loss()
                        } else {
                            let loss = lock(&leases.state).table.next_loss();
                            lock(&leases.state).waits_for = loss.map(WaitsFor::Loss);
                            loss
                        };
                        if loss.is_some_and(|at| at < start + TTL) {
                            return;
                        }
                        bell.wait();
                    }
                })
            };
            if enter(&leases, 1, start) {
                bell.notify();
            }
            heart.join().expect("the heartbeat does not panic");
        });
    }

    #[test]
    fn a_lease_that_runs_out_sooner_wakes_a_heartbeat_that_waits_for_a_loss() {
        waiting_for_another(true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_heartbeat_that_notes_a_loss_under_another_lock_misses_a_sooner_one() {
        waiting_for_another(false);
    }

    /// The heartbeat calls the lease lost, by an answer or by the clock; the loop decides whether to settle.
    fn losing(by_the_clock: bool, decides_late: bool) {
        let start = tokio::time::Instant::now();
        model(move || {
            let leases = Arc::new(Leases::new());
            enter(&leases, 1, start);
            let called_lost = Arc::new(AtomicBool::new(false));
            let heart = {
                let (leases, called_lost) = (leases.clone(), called_lost.clone());
                thread::spawn(move || {
                    let told = if by_the_clock {
                        leases.expire(start + TTL).len()
                    } else {
                        leases.renewed(&[(PLACE, tag(1), Renewal::Lost)], start).len()
                    };
                    // Before the loop leaves the place there is somebody to tell, afterwards there is not.
                    if told > 0 {
                        called_lost.store(true, Ordering::SeqCst);
                    }
                    // A late answer changes nothing any more.
                    leases.renewed(&[(PLACE, tag(1), Renewal::Kept)], start + TTL);
                })
            };
            // Wrong if late: the answer to an earlier question, used now.
            let earlier = is_held(&leases, start);
            let was_called_lost = called_lost.load(Ordering::SeqCst);
            let settles = if decides_late { earlier } else { is_held(&leases, start) };
            assert!(!(settles && was_called_lost), "what was called lost was settled");
            leave(&leases);
            heart.join().expect("the heartbeat does not panic");
            assert!(leases.expire(start + TTL * 9).is_empty());
        });
    }

    #[test]
    fn what_an_answer_called_lost_is_never_settled() {
        losing(false, false);
    }

    #[test]
    fn what_the_clock_called_lost_is_never_settled() {
        losing(true, false);
    }

    #[test]
    #[should_panic(expected = "what was called lost was settled")]
    fn a_loop_that_asks_too_early_settles_what_was_called_lost() {
        losing(false, true);
    }

    /// The loop settles, leaves and uses the place again while the answer to a renewal of the first tenant is
    /// on its way.
    fn moving_in(answers_for: fn(&Shared, tokio::time::Instant) -> u64) {
        let start = tokio::time::Instant::now();
        model(move || {
            let leases = Arc::new(Leases::new());
            enter(&leases, 1, start);
            let heart = {
                let leases = leases.clone();
                thread::spawn(move || {
                    let Beat::Renew(due, _) = leases.beat(start + TTL / 3) else { return };
                    // A tenant that has moved in meanwhile is not yet due.
                    assert_eq!(due, [(PLACE, tag(1))]);
                    let token = answers_for(&leases, start + TTL);
                    let told = leases.renewed(&[(PLACE, tag(token), Renewal::Lost)], start);
                    assert!(told.iter().all(|(owner, _)| *owner == 1), "the new tenant was told");
                })
            };
            if is_held(&leases, start) {
                leave(&leases);
                enter(&leases, 2, start + TTL / 3);
                assert!(is_held(&leases, start + TTL / 3), "the new tenant is lost");
            }
            heart.join().expect("the heartbeat does not panic");
        });
    }

    #[test]
    fn an_answer_for_the_former_tenant_of_a_place_never_touches_the_new_one() {
        moving_in(|_, _| 1);
    }

    /// Wrong: looks up whom the answer is for when it comes.
    fn whoever_is_there(leases: &Shared, now: tokio::time::Instant) -> u64 {
        let there = lock(&leases.state).table.due(now);
        there.first().map_or(1, |(_, tag)| tag.token)
    }

    #[test]
    #[should_panic(expected = "the new tenant")]
    fn a_heartbeat_that_knows_only_the_place_evicts_the_new_tenant() {
        moving_in(whoever_is_there);
    }

    /// Everything at once: the loop uses a place twice while the heartbeat beats, renews and expires.
    #[test]
    fn the_table_is_empty_when_the_loop_has_left_whatever_the_heartbeat_did() {
        let start = tokio::time::Instant::now();
        model(move || {
            let leases = Arc::new(Leases::new());
            let heart = {
                let leases = leases.clone();
                thread::spawn(move || {
                    leases.expire(start + TTL / 2);
                    if let Beat::Renew(due, _) = leases.beat(start + TTL / 3) {
                        let answers: Vec<_> =
                            due.iter().map(|(place, tag)| (*place, *tag, Renewal::Kept)).collect();
                        leases.renewed(&answers, start + TTL / 3);
                    }
                    leases.expire(start + TTL);
                })
            };
            enter(&leases, 1, start);
            leave(&leases);
            enter(&leases, 2, start);
            leave(&leases);
            heart.join().expect("the heartbeat does not panic");
            assert!(lock(&leases.state).table.is_empty());
            assert_eq!(leases.beat(start + TTL), Beat::Sleep);
        });
    }
}
