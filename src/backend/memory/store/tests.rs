//! What always holds of a store ([`Store::check`]), and single cases that a person would look up.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::SystemTime;

use super::*;
use crate::enqueue::{Enqueued, NewJob, Window};
use crate::error::ErrorKind;
use crate::inspect::JobQuery;
use crate::job::{JobId, Tag};
use crate::lease::Renewal;
use crate::source::{Delivery, FetchRequest, Settled, Settlement};

pub(super) const WALL: SystemTime = SystemTime::UNIX_EPOCH;

pub(super) fn settings() -> Settings {
    Settings { lease_ttl: secs(4), max_jobs: 12, max_dead: 3, crash_limit: 3, max_payload_bytes: 100 }
}

pub(super) fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Store {
    /// Panics if an invariant does not hold.
    pub(super) fn check(&self) {
        self.check_lists();
        self.check_waiting();
        self.check_keys();
        self.check_running();
        let Settings { max_jobs, max_dead, .. } = self.settings;
        assert!(self.unfinished() <= max_jobs, "more jobs than allowed");
        assert!(self.keys.periods() <= max_jobs, "more keys than allowed");
        assert!(self.list(JobState::Dead).len() <= max_dead, "more dead letters than allowed");
    }

    /// Each record is in the list of its state, and leases end in the order of theirs.
    fn check_lists(&self) {
        let mut seen = BTreeSet::new();
        for state in [JobState::Ready, JobState::Delayed, JobState::Leased, JobState::Dead] {
            let keys: Vec<usize> = self.list(state).keys(&self.records).collect();
            assert_eq!(keys.len(), self.list(state).len(), "{state:?}");
            for key in keys {
                assert_eq!(self.records[key].place.state(), state);
                assert!(seen.insert(key), "record {key} is in two lists");
            }
        }
        assert_eq!(seen.len(), self.records.len(), "a record is in no list");
        let leases = self.list(JobState::Leased).keys(&self.records);
        let ends = leases.filter_map(|key| match self.records[key].place {
            Place::Leased { until, .. } => Some(until),
            _ => None,
        });
        assert!(ends.is_sorted(), "leases are not in the order of their ends");
    }

    /// What waits is once in a lane, or once among the delayed.
    fn check_waiting(&self) {
        let mut ready = BTreeSet::new();
        self.ready.check(|(order, key), lane, queue, kind, priority| {
            let Record { job, place, order: own, .. } = &self.records[key];
            assert!(matches!(place, Place::Ready { lane: own } if *own == lane), "{place:?} in lane {lane}");
            assert_eq!((&job.queue, &job.kind, job.priority, *own), (queue, kind, priority, order));
            assert!(ready.insert(key), "record {key} waits twice");
        });
        assert_eq!(ready.len(), self.list(JobState::Ready).len());
        for (due, order, key) in &self.delayed {
            let Record { place, order: own, .. } = &self.records[*key];
            assert!(matches!(place, Place::Delayed { due: own } if own == due) && own == order, "{place:?}");
        }
        assert_eq!(self.delayed.len(), self.list(JobState::Delayed).len());
    }

    /// Nobody holds a key without a right to it, and nobody is without one that is due.
    fn check_keys(&self) {
        let mut held = BTreeSet::new();
        for (kind, key, holder, for_a_period) in self.keys.all() {
            let record = self.records.get(holder.key).filter(|record| record.job.id == holder.id);
            let unique = record.and_then(|record| record.unique.as_ref());
            let rightly =
                match (unique.map(|unique| unique.window), record.map(|record| record.place.state())) {
                    (None | Some(Window::For(_)), _) => for_a_period,
                    (Some(Window::WhileQueued), state) => {
                        matches!(state, Some(JobState::Ready | JobState::Delayed))
                    }
                    (Some(Window::UntilDone), state) => state != Some(JobState::Dead),
                };
            assert!(rightly, "{holder:?} holds {kind:?} {key:?}");
            assert!(held.insert(&holder.id), "{holder:?} holds {kind:?} {key:?} twice");
        }
        for (_, Record { job, unique, place, .. }) in &self.records {
            let due = match (unique.as_ref().map(|unique| unique.window), place.state()) {
                (Some(Window::UntilDone), state) => state != JobState::Dead,
                (Some(Window::WhileQueued), state) => matches!(state, JobState::Ready | JobState::Delayed),
                _ => false,
            };
            assert!(!due || held.contains(&job.id), "{job:?} has no hold on its key");
        }
    }

    /// Those with a worker are known by their keys, and only they may have made way for another.
    fn check_running(&self) {
        let mut known: Vec<_> = self.keys.all_running().collect();
        let with_a_worker = |record: &Record| record.place.state() == JobState::Leased;
        let mut due: Vec<_> = self
            .records
            .iter()
            .filter(|(_, record)| with_a_worker(record))
            .filter_map(|(at, record)| Some((&record.job.kind, &record.unique.as_ref()?.key, at)))
            .collect();
        known.sort();
        due.sort();
        assert_eq!(known, due);
        for (_, record) in &self.records {
            let marked = record.superseded_by.is_some();
            assert!(!marked || with_a_worker(record) && record.unique.is_some(), "{record:?}");
        }
    }

    /// Panics if anything is left of the jobs that came and went.
    pub(super) fn check_empty(&self) {
        self.check();
        assert!(self.records.is_empty() && self.delayed.is_empty());
        assert_eq!(self.ready.len(), 0);
        assert_eq!((self.keys.len(), self.keys.periods()), (0, 0));
    }
}

struct Bench {
    store: Store,
    now: Instant,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self { store: Store::new(settings, now), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn enqueue(&mut self, jobs: impl IntoIterator<Item = NewJob>) -> Result<Vec<JobId>, crate::Error> {
        let answers = self.store.enqueue(self.now, WALL, jobs.into_iter().collect())?;
        self.store.check();
        Ok(answers.iter().map(|answer| answer.id().clone()).collect())
    }

    fn fetch(&mut self, max: usize) -> Vec<Delivery> {
        let wanted = FetchRequest::new(NonZeroUsize::new(max).expect("not zero"), Duration::ZERO);
        let taken = self.store.fetch(self.now, &wanted);
        self.store.check();
        taken
    }

    fn settle(&mut self, tag: Tag, settlement: Settlement) -> bool {
        let stale = self.store.settle(self.now, &[Settled::new(tag, settlement)]);
        self.store.check();
        stale.0.is_empty()
    }
}

fn jobs(count: usize) -> impl Iterator<Item = NewJob> {
    (0..count).map(|_| NewJob::new("kind", "payload"))
}

#[test]
fn a_key_that_was_used_again_does_not_make_an_old_tag_valid() {
    let mut bench = Bench::new(settings());
    bench.enqueue(jobs(1)).expect("room");
    let old = bench.fetch(1).remove(0).tag;
    assert!(bench.settle(old, Settlement::Ack));
    bench.enqueue(jobs(1)).expect("room");
    let new = bench.fetch(1).remove(0).tag;
    assert_eq!(old.key, new.key, "this test needs the same record to be used again");
    assert!(!bench.settle(old, Settlement::Ack));
    assert_eq!(bench.store.renew(bench.now, &[old, new]), [Renewal::Lost, Renewal::Kept]);
    assert!(!bench.settle(Tag { session: 1, ..new }, Settlement::Ack));
    assert!(bench.settle(new, Settlement::Ack));
    bench.store.check_empty();
}

#[test]
fn an_old_id_never_finds_another_job() {
    let mut bench = Bench::new(settings());
    let old = bench.enqueue(jobs(1)).expect("room").remove(0);
    assert!(bench.store.delete(bench.now, &old));
    let new = bench.enqueue(jobs(1)).expect("room").remove(0);
    for wrong in
        [old.as_str(), "", "-", "1", "0-0", "1-99999999999999999999999", "+2-0", "2-00", "2-+0", "é-0"]
    {
        assert!(bench.store.find(bench.now, WALL, &JobId::new(wrong)).is_none(), "{wrong:?} found a job");
    }
    assert_eq!(bench.store.find(bench.now, WALL, &new).expect("there").job.id, new);
}

#[test]
fn a_batch_that_does_not_fit_leaves_nothing_behind() {
    let mut bench = Bench::new(settings());
    bench.enqueue(jobs(10)).expect("room");
    let error = bench.enqueue(jobs(3)).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(error.to_string().contains("10 jobs, of at most 12"), "{error}");
    assert_eq!(bench.store.counts(bench.now, WALL).ready, 10);
    bench.enqueue(jobs(2)).expect("room");
}

#[test]
fn a_second_job_with_a_taken_key_needs_no_room() {
    let mut bench = Bench::new(settings());
    let unique = || NewJob::new("kind", "payload").unique(Unique::until_done("key"));
    bench.enqueue(jobs(11)).expect("room");
    let ids = bench.enqueue([unique(), unique()]).expect("the second is the first");
    assert_eq!(ids[0], ids[1]);
    bench.enqueue([unique(), unique()]).expect("both are the first");
    bench.enqueue(jobs(1)).expect_err("full");
    bench.enqueue([]).expect("nothing fits anywhere");
}

#[test]
fn keys_for_a_period_are_bounded_though_their_jobs_are_gone() {
    let mut bench = Bench::new(settings());
    let unique = |key: usize| NewJob::new("kind", "").unique(Unique::for_period(key.to_string(), secs(60)));
    for key in 0..12 {
        bench.enqueue([unique(key)]).expect("room");
        let tag = bench.fetch(1).remove(0).tag;
        assert!(bench.settle(tag, Settlement::Ack));
    }
    let error = bench.enqueue([unique(12)]).expect_err("too many keys");
    assert_eq!(error.kind(), ErrorKind::Full);
    bench.enqueue([unique(3)]).expect("no new key");
    bench.enqueue(jobs(12)).expect("jobs have a bound of their own");
    bench.pass(secs(60));
    bench.fetch(12);
    bench.store.check();
    assert_eq!(bench.store.keys.periods(), 0);
}

#[test]
fn a_job_that_kills_its_workers_ends_in_the_dead_letters() {
    let mut bench = Bench::new(settings());
    let id = bench.enqueue([NewJob::new("poison", "raw \u{0} bytes")]).expect("room").remove(0);
    for attempt in 1..=3 {
        assert_eq!(bench.fetch(1)[0].attempt, attempt);
        bench.pass(secs(4));
    }
    assert!(bench.fetch(1).is_empty());
    let dead = bench.store.find(bench.now, WALL, &id).expect("kept");
    assert_eq!((dead.state, dead.attempts), (JobState::Dead, 3));
    assert_eq!(&dead.job.payload[..], "raw \u{0} bytes".as_bytes());
    let reason = dead.last_error.expect("a reason");
    assert_eq!(&*reason, "lease expired 3 times, the last time in attempt 3 of at most 3");
}

#[test]
fn a_jobs_own_bound_goes_before_the_crash_limit() {
    let mut bench = Bench::new(settings());
    bench
        .enqueue([NewJob::new("kind", "").max_attempts(5), NewJob::new("kind", "").max_attempts(1)])
        .expect("room");
    bench.fetch(2);
    bench.pass(secs(4));
    assert_eq!(bench.store.reclaim(bench.now, 10), 2);
    assert_eq!(bench.store.list(JobState::Dead).len(), 1);
    for _ in 2..=5 {
        assert_eq!(bench.fetch(2).len(), 1);
        bench.pass(secs(4));
    }
    assert!(bench.fetch(2).is_empty());
}

#[test]
fn the_oldest_dead_letters_make_room_and_are_counted() {
    let mut bench = Bench::new(settings());
    let ids = bench.enqueue(jobs(5)).expect("room");
    for tag in bench.fetch(5).iter().map(|delivery| delivery.tag) {
        assert!(bench.settle(tag, Settlement::Reject));
    }
    assert_eq!(bench.store.take_effects().dropped_dead, 2);
    let dead = bench.store.view_all(bench.now, WALL, &JobQuery::new(JobState::Dead, 10));
    let left: Vec<JobId> = dead.iter().map(|dead| dead.job.id.clone()).collect();
    assert_eq!(left, ids[2..]);
}

#[test]
fn no_time_is_too_long() {
    let mut bench = Bench::new(settings());
    let far = NewJob::new("kind", "").delay(Duration::MAX).unique(Unique::for_period("key", Duration::MAX));
    let id = bench.enqueue([far]).expect("room").remove(0);
    bench.pass(secs(1_000_000));
    assert!(bench.fetch(1).is_empty());
    assert!(bench.store.requeue(bench.now, &id).expect("room"));
    for settlement in
        [Settlement::Retry { after: Duration::MAX }, Settlement::Release { after: Duration::MAX }]
    {
        let tag = bench.fetch(1).remove(0).tag;
        assert!(bench.settle(tag, settlement));
        assert!(bench.store.requeue(bench.now, &id).expect("room"));
    }
}

#[test]
fn a_period_of_no_time_takes_no_key() {
    let mut bench = Bench::new(settings());
    let job = || NewJob::new("kind", "").unique(Unique::for_period("key", Duration::ZERO));
    let ids = bench.enqueue([job(), job()]).expect("room");
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_clock_that_is_a_little_behind_takes_nothing_back() {
    let mut bench = Bench::new(settings());
    bench.enqueue([NewJob::new("kind", "").delay(secs(5))]).expect("room");
    let before = bench.now;
    bench.pass(secs(5));
    assert_eq!(bench.store.counts(bench.now, WALL).ready, 1);
    let wanted = FetchRequest::new(NonZeroUsize::MIN, Duration::ZERO);
    let late = bench.store.fetch(before, &wanted).remove(0);
    assert_eq!(late.lease.expect("leased").sent_at, before, "trust is counted from the request");
    bench.store.check();
    bench.pass(secs(3));
    assert!(bench.settle(late.tag, Settlement::Ack), "the store grants the whole time from the hand-over");
}

#[test]
fn the_leased_are_listed_by_hand_over_and_not_by_renewal() {
    let mut bench = Bench::new(settings());
    let ids = bench.enqueue(jobs(3)).expect("room");
    let taken = bench.fetch(3);
    bench.pass(secs(1));
    bench.store.renew(bench.now, &[taken[0].tag]);
    let leased = bench.store.view_all(bench.now, WALL + secs(100), &JobQuery::new(JobState::Leased, 2));
    assert_eq!(leased.iter().map(|job| job.job.id.clone()).collect::<Vec<_>>(), ids[..2]);
    assert_eq!(leased[0].since, WALL + secs(99));
}

#[test]
fn a_burst_gives_its_memory_back() {
    let mut bench = Bench::new(Settings { max_jobs: 100_000, ..settings() });
    bench.store.enqueue(bench.now, WALL, jobs(100_000).collect()).expect("room");
    let wanted = FetchRequest::new(NonZeroUsize::MAX, Duration::ZERO);
    let settled: Vec<Settled> = bench
        .store
        .fetch(bench.now, &wanted)
        .iter()
        .map(|delivery| Settled::new(delivery.tag, Settlement::Ack))
        .collect();
    assert!(bench.store.settle(bench.now, &settled).0.is_empty());
    bench.store.check_empty();
    assert!(bench.store.records.capacity() <= KEPT_CAPACITY);
}

#[test]
fn a_replaced_payload_leaves_what_was_seen_before_as_it_was() {
    let mut bench = Bench::new(settings());
    let job = |payload: &'static str| {
        NewJob::new("kind", payload).unique(Unique::while_queued("key").replace_payload())
    };
    let id = bench.enqueue([job("old")]).expect("room").remove(0);
    let seen = bench.store.find(bench.now, WALL, &id).expect("there");
    let answers = bench.store.enqueue(bench.now, WALL, vec![job("new")]).expect("room");
    assert_eq!(answers, [Enqueued::Replaced(id)]);
    assert_eq!(&seen.job.payload[..], b"old");
    assert_eq!(&bench.fetch(1)[0].job.payload[..], b"new");
}
