//! What a person sees and does.

use std::time::Duration;

use tidegate::{JobId, JobQuery, JobState, NewJob, Renewal, Settlement, StoredJob, Unique};
use tokio::time::Instant;

use crate::fixture::{Fixture, job, needs, secs, waiting};

const ZERO: Duration = Duration::ZERO;

async fn cancel(f: &Fixture, id: &JobId) -> bool {
    f.manage().cancel(id).await.expect("asked")
}

async fn requeue(f: &Fixture, id: &JobId) -> bool {
    f.manage().requeue(id).await.expect("asked")
}

async fn delete(f: &Fixture, id: &JobId) -> bool {
    f.manage().delete(id).await.expect("asked")
}

/// Wants the job to be dead because it was cancelled, and never to come again.
async fn assert_cancelled(f: &Fixture, id: &JobId) {
    if f.backend.inspect.is_some() {
        let dead = f.find(id).await.expect("kept");
        assert_eq!(dead.state, JobState::Dead);
        assert_eq!(dead.last_error.as_deref(), Some("cancelled"));
    }
    f.pass(f.ttl * 2).await;
    assert!(f.take(1).await.is_empty());
}

pub(crate) async fn counts_follow_a_job_through_its_states(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, delayed);
    assert_eq!(f.counts().await, [0, 0, 0, 0, 0]);
    f.push(job("a").delay(secs(5))).await;
    f.push(job("b")).await;
    assert_eq!(f.counts().await, [1, 1, 0, 0, 0]);
    let b = f.one().await;
    assert_eq!(f.counts().await, [0, 1, 1, 0, 0]);
    f.pass(secs(5) + f.slack).await;
    let a = f.one().await;
    f.retry(&a, secs(5)).await;
    f.ack(&b).await;
    assert_eq!(f.counts().await, [0, 1, 0, 0, 1]);
    f.pass(secs(5) + f.slack).await;
    f.reject(&f.one().await).await;
    assert_eq!(f.counts().await, [0, 0, 0, 1, 1]);
    assert_eq!(f.inspect().counts().await.expect("counted").unfinished(), 0);
    f.finish().await;
}

pub(crate) async fn a_job_is_found_as_it_stands(f: Fixture) {
    needs!(f, verb inspect);
    let id = f.push(job("payload")).await;
    let stored = f.find(&id).await.expect("there");
    assert_eq!((&stored.job.id, stored.state, stored.attempts), (&id, JobState::Ready, 0));
    assert_eq!((&stored.job.payload[..], stored.last_error), (&b"payload"[..], None));
    let delivery = f.one().await;
    let stored = f.find(&id).await.expect("there");
    assert_eq!((stored.state, stored.attempts), (JobState::Leased, 1));
    f.ack(&delivery).await;
    assert!(f.find(&id).await.is_none(), "it is finished");
    assert!(f.find(&JobId::new("no such id")).await.is_none());
    f.finish().await;
}

pub(crate) async fn a_list_begins_with_what_has_been_there_longest_or_comes_next(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, delayed);
    let ready = f.push_all(&["a", "b", "c"]).await;
    let mut delayed = Vec::new();
    for wait in [50, 20, 40] {
        // To some stores two jobs of the same bytes are one.
        let later = job(&format!("later {}", delayed.len()));
        delayed.push(f.push(later.delay(secs(wait))).await);
    }
    let ids = async |state, max| {
        let listed = f.list(state, max).await;
        assert!(listed.iter().all(|job| job.state == state));
        listed.iter().map(|job| job.job.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(JobState::Ready, 9).await, ready);
    assert_eq!(ids(JobState::Ready, 2).await, ready[..2]);
    assert_eq!(ids(JobState::Ready, 0).await, []);
    assert_eq!(ids(JobState::Delayed, 9).await, [1, 2, 0].map(|at: usize| delayed[at].clone()));
    let held = f.take(3).await;
    assert_eq!(ids(JobState::Leased, 9).await, ready);
    f.reject(&held[2]).await;
    f.pass(secs(1)).await;
    f.reject(&held[0]).await;
    assert_eq!(ids(JobState::Dead, 9).await, [ready[2].clone(), ready[0].clone()]);
    let dead = f.list(JobState::Dead, 9).await;
    assert!(dead[0].since <= dead[1].since);
}

pub(crate) async fn a_list_shows_only_what_is_asked_for(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, attributes);
    let mut ids = Vec::new();
    for (kind, queue) in [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("b", "y"), ("a", "x")] {
        ids.push(f.push(NewJob::new(kind, "").queue(queue)).await);
        f.pass(Duration::from_millis(2)).await; // some tell times by the millisecond
    }
    let all = || JobQuery::new(JobState::Ready, 9);
    let cases: [(JobQuery, &[usize]); 9] = [
        (all(), &[0, 1, 2, 3, 4, 5]),
        (all().kind("a"), &[0, 2, 3, 5]),
        (all().queue("y"), &[2, 4]),
        (all().kind("a").queue("x"), &[0, 3, 5]),
        (all().kind("a").queue("x").skip(1), &[3, 5]),
        (all().skip(4), &[4, 5]),
        (all().skip(usize::MAX), &[]),
        (all().kind("a' OR 1 --"), &[]),
        (JobQuery::new(JobState::Ready, 2).kind("a").skip(1), &[2, 3]),
    ];
    for (wanted, expected) in cases {
        let listed = f.inspect().list(&wanted).await.expect("listed");
        let listed: Vec<_> = listed.iter().map(|job| &job.job.id).collect();
        assert_eq!(listed, expected.iter().map(|at| &ids[*at]).collect::<Vec<_>>(), "{wanted:?}");
    }
    // Those with a worker are in another list, by the same rules.
    f.take(3).await;
    let leased = f.inspect().list(&JobQuery::new(JobState::Leased, 9).kind("a")).await.expect("listed");
    assert_eq!(leased.len(), 2);
}

/// A long list is gone through part by part, while its jobs change.
pub(crate) async fn a_list_goes_on_behind_a_job_whatever_becomes_of_it(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, verb manage);
    needs!(f, delayed);
    let (mut ready, mut delayed) = (Vec::new(), Vec::new());
    for number in 0..7 {
        ready.push(f.push(job(&number.to_string())).await);
        f.pass(Duration::from_millis(2)).await; // some tell times by the millisecond
    }
    for wait in [70, 20, 50, 20] {
        // To some stores two jobs of the same bytes are one.
        let later = job(&format!("later {}", delayed.len()));
        delayed.push(f.push(later.delay(secs(wait))).await);
        f.pass(Duration::from_millis(2)).await;
    }
    for (state, all, max) in [
        (JobState::Ready, ready.clone(), 2),
        (JobState::Delayed, [1, 3, 2, 0].map(|at: usize| delayed[at].clone()).to_vec(), 1),
    ] {
        if state == JobState::Ready && !f.has.attributes {
            // Of a job that has gone, and did not say since when it was there, nobody knows where it was.
            assert!(cancel(&f, &ready[0]).await);
            continue;
        }
        let (mut seen, mut query) = (Vec::new(), JobQuery::new(state, max));
        loop {
            let part = f.inspect().list(&query).await.expect("listed");
            let Some(last) = part.last() else { break };
            query = query.after(last);
            seen.extend(part.iter().map(|job| job.job.id.clone()));
            // Those that have been seen go, some of them and the last too.
            assert!(cancel(&f, &seen[seen.len() - 1]).await && seen.len() <= all.len());
        }
        assert_eq!(seen, all, "{state:?}");
    }
    // Behind the last: those that have come since, and nothing else.
    let last = f.list(JobState::Dead, 99).await.pop().expect("some were cancelled");
    f.pass(secs(11)).await; // some tell only the second at which a job has died
    let late = ready.remove(if f.has.attributes { 0 } else { 1 });
    assert!(cancel(&f, &late).await);
    let more = f.inspect().list(&JobQuery::new(JobState::Dead, 9).after(&last)).await.expect("listed");
    assert_eq!(more.iter().map(|job| &job.job.id).collect::<Vec<_>>(), [&late]);
    let skipped = JobQuery::new(JobState::Dead, 9).after(&last).skip(1);
    assert!(f.inspect().list(&skipped).await.expect("listed").is_empty());
}

pub(crate) async fn a_job_says_until_when_it_stays_where_it_is(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, delayed);
    needs!(f, leases);
    let id = f.push(job("a").delay(secs(5))).await;
    let due_in = async || {
        let stored = f.find(&id).await.expect("there");
        let listed = f.list(stored.state, 9).await.remove(0);
        let wait =
            |stored: &StoredJob| stored.due.map(|due| due.duration_since(stored.since).expect("later"));
        // A store may count its time by another clock than that by which it tells it.
        let (found, listed) = (wait(&stored), wait(&listed));
        assert!(found.unwrap_or_default().abs_diff(listed.unwrap_or_default()) <= f.slack);
        found
    };
    let is_about = |due: Option<Duration>, wait: Duration| {
        assert!(due.expect("a time").abs_diff(wait) <= f.slack, "{due:?} instead of {wait:?}");
    };
    if f.has.attributes {
        is_about(due_in().await, secs(5));
    }
    f.pass(secs(5) + f.slack).await;
    if f.has.places {
        assert_eq!(due_in().await, None, "it is ready");
    }
    let delivery = f.one().await;
    is_about(due_in().await, f.ttl);
    f.pass(secs(7)).await;
    f.renew(&[delivery.tag]).await;
    is_about(due_in().await, f.ttl + secs(7));
    f.reject(&delivery).await;
    assert_eq!(due_in().await, None, "it is dead");
    f.finish().await;
}

pub(crate) async fn a_cancellation_is_seen_until_the_job_has_ended(f: Fixture) {
    needs!(f, verb inspect);
    needs!(f, verb manage);
    let ids = f.push_all(&["a", "b"]).await;
    let held = f.take(2).await;
    assert!(cancel(&f, &ids[0]).await);
    let asked = f.list(JobState::Leased, 9).await.iter().map(|job| job.cancel_requested).collect::<Vec<_>>();
    assert_eq!(asked, [true, false]);
    f.reject(&held[0]).await;
    assert!(!f.find(&ids[0]).await.expect("there").cancel_requested, "it is no longer with a worker");
    f.ack(&held[1]).await;
    f.finish().await;
}

pub(crate) async fn a_cancelled_waiting_job_is_dead(f: Fixture) {
    needs!(f, verb manage);
    let id = f.push(job("a")).await;
    assert!(cancel(&f, &id).await);
    assert!(!cancel(&f, &id).await, "it is dead already");
    assert_cancelled(&f, &id).await;
    if f.has.delayed {
        let id = f.push(job("b").delay(secs(5))).await;
        assert!(cancel(&f, &id).await);
        assert_cancelled(&f, &id).await;
    }
    f.finish().await;
}

pub(crate) async fn a_running_job_is_told_of_its_cancellation(f: Fixture) {
    needs!(f, verb manage);
    needs!(f, leases);
    let ids = f.push_all(&["a", "b"]).await;
    let held = f.take(2).await;
    assert!(cancel(&f, &ids[0]).await);
    assert!(cancel(&f, &ids[0]).await, "once more is no harm");
    for _ in 0..2 {
        let answers = f.renew(&[held[0].tag, held[1].tag]).await;
        assert_eq!(answers, [Renewal::CancelRequested, Renewal::Kept]);
    }
    f.reject(&held[0]).await;
    assert_eq!(f.renew(&[held[0].tag]).await, [Renewal::Lost]);
    f.ack(&held[1]).await;
    assert_cancelled(&f, &ids[0]).await;
    f.finish().await;
}

pub(crate) async fn a_cancelled_job_that_was_done_all_the_same_is_done(f: Fixture) {
    needs!(f, verb manage);
    let id = f.push(job("a")).await;
    let delivery = f.one().await;
    assert!(cancel(&f, &id).await);
    f.ack(&delivery).await;
    if f.backend.inspect.is_some() {
        assert_eq!(f.counts().await, [0, 0, 0, 0, 1]);
    }
    f.finish().await;
}

pub(crate) async fn a_cancelled_job_is_never_tried_again(f: Fixture) {
    needs!(f, verb manage);
    for settlement in [
        Settlement::Retry { after: ZERO },
        Settlement::Retry { after: secs(5) },
        Settlement::Release { after: ZERO },
        Settlement::Reject,
    ] {
        let id = f.push(job("a")).await;
        let delivery = f.one().await;
        assert!(cancel(&f, &id).await);
        assert!(f.settle(delivery.tag, settlement).await, "{settlement:?}");
        assert_cancelled(&f, &id).await;
    }
    f.finish().await;
}

pub(crate) async fn a_cancelled_job_whose_worker_died_is_dead(f: Fixture) {
    needs!(f, verb manage);
    needs!(f, leases);
    let id = f.push(job("a")).await;
    f.one().await;
    assert!(cancel(&f, &id).await);
    f.pass(f.ttl + f.slack + Duration::from_millis(1)).await;
    assert!(f.take(1).await.is_empty());
    assert_cancelled(&f, &id).await;
    f.finish().await;
}

pub(crate) async fn a_dead_job_can_be_made_ready_and_begins_anew(f: Fixture) {
    needs!(f, verb manage);
    let id = f.push(f.with_attempts(job("a"), 2)).await;
    f.retry(&f.one().await, ZERO).await;
    f.reject(&f.one().await).await;
    assert!(requeue(&f, &id).await);
    assert!(!requeue(&f, &id).await, "it is ready already");
    let again = f.one().await;
    assert_eq!((&again.job.id, again.attempt), (&id, 1));
    assert!(!requeue(&f, &id).await, "it runs");
    f.ack(&again).await;
    assert!(!requeue(&f, &id).await, "it is done");
    f.finish().await;
}

pub(crate) async fn a_delayed_job_can_be_made_ready(f: Fixture) {
    needs!(f, verb manage);
    needs!(f, delayed);
    let id = f.push(job("a").delay(secs(3600))).await;
    assert!(requeue(&f, &id).await);
    f.retry(&f.one().await, secs(3600)).await;
    assert!(requeue(&f, &id).await);
    let again = f.one().await;
    assert_eq!(again.attempt, 2, "only a dead one's attempts begin anew");
    f.ack(&again).await;
    f.finish().await;
}

pub(crate) async fn a_waiting_fetch_gets_what_is_requeued(f: Fixture) {
    needs!(f, verb manage);
    let id = f.push(job("a")).await;
    f.reject(&f.one().await).await;
    let start = Instant::now();
    let wanted = waiting(1);
    let (taken, _) = tokio::join!(f.fetch(&wanted), async {
        f.pass(secs(2)).await;
        assert!(requeue(&f, &id).await);
    });
    f.assert_passed(start, secs(2));
    f.ack(&taken[0]).await;
    f.finish().await;
}

pub(crate) async fn a_dead_job_whose_key_was_taken_stays_dead(f: Fixture) {
    needs!(f, verb manage);
    needs!(f, unique);
    for unique in [Unique::while_queued("a"), Unique::until_done("b")] {
        let id = f.push(job("first").unique(unique.clone())).await;
        f.reject(&f.one().await).await;
        f.push(job("second").unique(unique)).await;
        assert!(!requeue(&f, &id).await, "two would wait with one key");
        f.ack(&f.one().await).await;
        assert!(requeue(&f, &id).await, "it is free again");
        f.ack(&f.one().await).await;
    }
    f.finish().await;
}

pub(crate) async fn a_job_that_does_not_run_can_be_deleted(f: Fixture) {
    needs!(f, verb manage);
    let id = f.push(job("waits")).await;
    assert!(delete(&f, &id).await);
    assert!(!delete(&f, &id).await);
    let id = f.push(job("runs")).await;
    let delivery = f.one().await;
    assert!(!delete(&f, &id).await);
    f.reject(&delivery).await;
    assert!(delete(&f, &id).await);
    if f.has.delayed {
        let id = f.push(job("delayed").delay(secs(5))).await;
        assert!(delete(&f, &id).await);
    }
    f.pass(secs(10)).await;
    if f.backend.inspect.is_some() {
        assert_eq!(f.counts().await, [0; 5]);
    }
    f.finish().await;
}

pub(crate) async fn what_is_not_there_can_not_be_changed(f: Fixture) {
    needs!(f, verb manage);
    let done = f.push(job("a")).await;
    f.ack(&f.one().await).await;
    for id in [done, JobId::new(""), JobId::new("no such id"), JobId::new("0-0"), JobId::new("'; --")] {
        assert!(!cancel(&f, &id).await && !requeue(&f, &id).await && !delete(&f, &id).await, "{id:?}");
    }
    f.finish().await;
}
