//! The store against a model of it that is too simple to be wrong: one vector of jobs, searched from end to
//! end for everything.
//!
//! Random operations are applied to both. After each, all that can be seen must be the same, and the
//! store's own invariants must hold.

mod ops;
mod simple;

use proptest::prelude::*;

use self::ops::{Op, op};
use self::simple::{Is, Model};
use super::tests::{WALL, secs, settings};
use super::*;
use crate::enqueue::{Enqueued, NewJob};
use crate::inspect::JobQuery;
use crate::job::{JobId, Tag};
use crate::lease::Renewal;
use crate::source::{FetchRequest, Settled, Settlement};

/// Both, side by side.
struct Pair {
    store: Store,
    model: Model,
    start: Instant,
}

impl Pair {
    fn new() -> Self {
        let start = Instant::now();
        Self { store: Store::new(settings(), start), model: Model::default(), start }
    }

    fn now(&self) -> Instant {
        self.start + secs(self.model.now)
    }

    /// The job that an operation is about, counted from the last; `None` before there is any.
    fn pick(&self, back: usize) -> Option<(usize, JobId)> {
        let job = self.model.jobs.len().checked_sub(back + 1)?;
        Some((job, self.model.jobs[job].id.clone()))
    }

    fn tag(&self, back: usize) -> Option<Tag> {
        self.model.tags.len().checked_sub(back + 1).map(|at| self.model.tags[at])
    }

    fn apply(&mut self, op: Op) {
        match op {
            // Time has its effect with the next operation, whichever that is.
            Op::Pass(time) => return self.model.now += time,
            // The only one that lets no lease run out of itself.
            Op::Reclaim(max) => {
                self.model.ripen();
                assert_eq!(self.store.reclaim(self.now(), max), self.model.lapse(max));
                return self.compare_counts();
            }
            _ => {}
        }
        self.model.advance();
        let now = self.now();
        match op {
            Op::Pass(_) | Op::Reclaim(_) => {}
            Op::Enqueue(jobs) => self.enqueue(jobs),
            Op::Fetch(wanted) => self.fetch(&wanted),
            Op::Settle(picks) => self.settle(&picks),
            Op::Renew(picks) => {
                let tags: Vec<Tag> = picks.iter().filter_map(|back| self.tag(*back)).collect();
                let expected: Vec<Renewal> = tags.iter().map(|tag| self.model.renew(*tag)).collect();
                assert_eq!(self.store.renew(now, &tags), expected);
            }
            Op::Cancel(back) => {
                let Some((job, id)) = self.pick(back) else { return self.store.advance(now) };
                assert_eq!(self.store.cancel(now, &id), self.model.cancel(job), "cancel {id}");
            }
            Op::Requeue(back) => {
                let Some((job, id)) = self.pick(back) else { return self.store.advance(now) };
                assert_eq!(self.store.requeue(now, &id).ok(), self.model.requeue(job), "requeue {id}");
            }
            Op::Delete(back) => {
                let Some((job, id)) = self.pick(back) else { return self.store.advance(now) };
                assert_eq!(self.store.delete(now, &id), self.model.delete(job), "delete {id}");
            }
        }
        self.compare();
    }

    fn enqueue(&mut self, jobs: Vec<NewJob>) {
        let expected = self.model.enqueue(&jobs);
        let answers = self.store.enqueue(self.now(), WALL, jobs).ok();
        assert_eq!(answers.is_some(), expected.is_some(), "full or not");
        for (answer, (what, job)) in answers.into_iter().flatten().zip(expected.into_iter().flatten()) {
            let said = match &answer {
                Enqueued::Created(_) => "created",
                Enqueued::Duplicate(_) => "duplicate",
                Enqueued::Replaced(_) => "replaced",
            };
            if what == "created" {
                self.model.jobs[job].id = answer.id().clone();
            }
            assert_eq!((said, answer.id()), (what, &self.model.jobs[job].id));
        }
    }

    fn fetch(&mut self, wanted: &FetchRequest) {
        let expected = self.model.choose(wanted);
        let taken = self.store.fetch(self.now(), wanted);
        let ids =
            |jobs: &[usize]| jobs.iter().map(|job| self.model.jobs[*job].id.clone()).collect::<Vec<_>>();
        let taken_ids: Vec<JobId> = taken.iter().map(|delivery| delivery.job.id.clone()).collect();
        assert_eq!(taken_ids, ids(&expected), "{wanted:?}");
        for (job, delivery) in expected.into_iter().zip(taken) {
            assert!(!self.model.tags.contains(&delivery.tag), "a tag is used again");
            self.model.tags.push(delivery.tag);
            let seen = &mut self.model.jobs[job];
            seen.attempts += 1;
            assert_eq!((delivery.attempt, &delivery.job.payload), (seen.attempts, &seen.new.payload));
            let (until, granted) = (self.model.now + settings().lease_ttl.as_secs(), self.model.next());
            self.model.become_(job, Is::Leased { tag: delivery.tag, until, granted, cancelled: false });
        }
    }

    fn settle(&mut self, picks: &[(usize, Settlement)]) {
        let known = picks.iter().filter_map(|(back, settlement)| Some((self.tag(*back)?, *settlement)));
        let known: Vec<(Tag, Settlement)> = known.collect();
        let settled: Vec<Settled> =
            known.iter().map(|(tag, settlement)| Settled::new(*tag, *settlement)).collect();
        let stale: Vec<Tag> = known
            .iter()
            .filter(|(tag, settlement)| !self.model.settle(*tag, *settlement))
            .map(|(tag, _)| *tag)
            .collect();
        assert_eq!(self.store.settle(self.now(), &settled).0, stale);
    }

    fn compare_counts(&mut self) {
        self.store.check();
        let of = |is: fn(&Is) -> bool| self.model.count(is) as u64;
        let ready = of(|is| *is == Is::Ready);
        let delayed = of(|is| matches!(is, Is::Delayed(_)));
        let leased = of(|is| matches!(is, Is::Leased { .. }));
        let dead = of(|is| *is == Is::Dead);
        let count = |state| self.store.list(state).len() as u64;
        let [ready_here, delayed_here] = [JobState::Ready, JobState::Delayed].map(count);
        let [leased_here, dead_here] = [JobState::Leased, JobState::Dead].map(count);
        assert_eq!(
            [ready_here, delayed_here, leased_here, dead_here, self.store.done, self.store.superseded],
            [ready, delayed, leased, dead, self.model.done, self.model.superseded],
            "ready, delayed, leased, dead, done, superseded"
        );
    }

    /// All that can be seen is the same: nothing is lost, nothing is there twice, nothing came of itself.
    fn compare(&mut self) {
        self.compare_counts();
        let now = self.now();
        for (state, is) in [
            (JobState::Ready, (|is| *is == Is::Ready) as fn(&Is) -> bool),
            (JobState::Delayed, |is| matches!(is, Is::Delayed(_))),
            (JobState::Leased, |is| matches!(is, Is::Leased { .. })),
            (JobState::Dead, |is| *is == Is::Dead),
        ] {
            let listed = self.store.view_all(now, WALL, &JobQuery::new(state, usize::MAX));
            let listed: Vec<_> =
                listed.iter().map(|view| (&view.job.id, view.attempts, &view.job.payload)).collect();
            let mut expected: Vec<_> =
                self.model.listed(is).iter().map(|job| &self.model.jobs[*job]).collect();
            if state == JobState::Delayed {
                expected.sort_by_key(|job| match job.state {
                    Is::Delayed(due) => (due, job.order),
                    _ => unreachable!("only they are listed"),
                });
            }
            let expected: Vec<_> =
                expected.into_iter().map(|job| (&job.id, job.attempts, &job.new.payload)).collect();
            assert_eq!(listed, expected, "{state:?}");
        }
        for job in self.model.jobs.iter().rev().take(10) {
            let found = self.store.find(now, WALL, &job.id);
            assert_eq!(found.is_none(), job.state == Is::Gone, "{job:?}");
            let by = job.superseded_by.map(|by| self.model.jobs[by].id.clone());
            assert!(found.is_none_or(|found| found.superseded_by == by), "{job:?} by {by:?}");
        }
    }

    /// Everything is run to its end; then nothing may be left.
    fn drain(mut self) {
        while self.store.unfinished() > 0 {
            self.apply(Op::Pass(6));
            let all = FetchRequest::new(usize::MAX.try_into().expect("not zero"), Duration::ZERO);
            self.apply(Op::Fetch(all));
            self.apply(Op::Settle((0..settings().max_jobs).map(|back| (back, Settlement::Ack)).collect()));
        }
        for job in self.model.listed(|is| *is == Is::Dead) {
            self.apply(Op::Delete(self.model.jobs.len() - job - 1));
        }
        self.apply(Op::Pass(10)); // all periods end
        self.apply(Op::Renew(Vec::new()));
        self.store.check_empty();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(ops in prop::collection::vec(op(), 1..80)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.apply(op);
        }
        pair.drain();
    }
}
