//! "Newest payload wins": once a job has been enqueued to replace what was there with its key, no older payload is
//! handed out any more, whatever becomes of either job.
//!
//! Where a retry goes back to the queue beside the newer job, whoever comes last wins, and that is the older one.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{Delivery, Enqueued, JobId, JobState, NewJob, Settlement, Unique};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, job, needs, secs, text, texts};

const ZERO: Duration = Duration::ZERO;

/// A job that is to win over what was there before.
fn newest(payload: &str) -> NewJob {
    job(payload).unique(Unique::while_queued("key").replace_payload())
}

/// One that gives way to what is there.
fn keeping(payload: &str) -> NewJob {
    job(payload).unique(Unique::while_queued("key"))
}

/// Enqueues a job and takes it.
async fn running(f: &Fixture, job: NewJob) -> Delivery {
    let id = f.push(job).await;
    let delivery = f.one().await;
    assert_eq!(delivery.job.id, id);
    delivery
}

/// How many made way.
async fn assert_superseded(f: &Fixture, count: u64) {
    assert_eq!(f.inspect().counts().await.expect("counted").superseded, count);
}

/// Who has taken the place of a job that is with a worker.
async fn marked_by(f: &Fixture, delivery: &Delivery) -> Option<JobId> {
    f.find(&delivery.job.id).await.expect("there").superseded_by
}

/// Runs what must be the only job there, with this payload.
async fn only(f: &Fixture, payload: &str) {
    let delivery = f.one().await;
    assert_eq!(text(&delivery), payload);
    f.ack(&delivery).await;
}

fn returns(after: Duration) -> [Settlement; 2] {
    [Settlement::Retry { after }, Settlement::Release { after }]
}

pub(crate) async fn what_is_handed_back_ends_once_a_newer_one_was_enqueued(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    for (ended, settlement) in (1..).zip(returns(ZERO).into_iter().chain(returns(secs(5)))) {
        let old = running(&f, newest("old")).await;
        assert_eq!(marked_by(&f, &old).await, None);
        let new = f.push(newest("new")).await;
        assert_eq!(marked_by(&f, &old).await, Some(new));
        assert!(f.settle(old.tag, settlement).await, "it counts");
        assert!(f.find(&old.job.id).await.is_none(), "{settlement:?}");
        only(&f, "new").await;
        f.pass(secs(6)).await;
        assert!(f.take(9).await.is_empty(), "{settlement:?}");
        assert_eq!(f.counts().await, [0, 0, 0, 0, ended], "it is not done, and not dead");
        assert_superseded(&f, ended).await;
    }
    f.finish().await;
}

pub(crate) async fn a_lapsed_lease_ends_it_too(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    needs!(f, leases);
    let old = running(&f, newest("old")).await;
    f.push(newest("new")).await;
    f.pass(f.ttl + f.slack + Duration::from_millis(1)).await;
    only(&f, "new").await;
    assert!(!f.settle(old.tag, Settlement::Ack).await, "too late");
    assert_superseded(&f, 1).await;
    f.finish().await;
}

pub(crate) async fn whoever_takes_leases_back_finds_it_ended(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    needs!(f, verb reclaim);
    running(&f, newest("old")).await;
    f.push(newest("new")).await;
    f.pass(f.ttl + f.slack + Duration::from_millis(1)).await;
    assert_eq!(f.reclaim().reclaim(9).await.expect("asked"), 1);
    assert_superseded(&f, 1).await;
    only(&f, "new").await;
    f.finish().await;
}

pub(crate) async fn though_the_newer_one_is_done_already(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    for settlement in returns(ZERO) {
        let old = running(&f, newest("old")).await;
        f.push(newest("new")).await;
        only(&f, "new").await;
        assert!(f.settle(old.tag, settlement).await, "it counts");
        assert!(f.take(9).await.is_empty(), "the older payload came last: {settlement:?}");
    }
    assert_superseded(&f, 2).await;
    f.finish().await;
}

/// Its payload was the last that anybody wanted: that it came to nothing makes the older one no newer.
pub(crate) async fn though_the_newer_one_was_cancelled_or_deleted_or_has_failed_for_good(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    needs!(f, verb manage);
    for way in 0..3 {
        let old = running(&f, newest("old")).await;
        let new = f.push(newest("new")).await;
        match way {
            0 => assert!(f.manage().cancel(&new).await.expect("asked")),
            1 => assert!(f.manage().delete(&new).await.expect("asked")),
            _ => f.reject(&f.one().await).await,
        }
        f.retry(&old, ZERO).await;
        assert!(f.take(9).await.is_empty(), "{way}");
    }
    assert_superseded(&f, 3).await;
    f.finish().await;
}

pub(crate) async fn though_the_newer_one_waits_for_its_time(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    needs!(f, delayed);
    let old = running(&f, f.rated(newest("old"), 9)).await;
    f.push(f.rated(newest("new").delay(secs(20)).queue("other"), -9)).await;
    f.retry(&old, ZERO).await;
    assert!(f.take(9).await.is_empty(), "the newest wish is to wait");
    f.pass(secs(20) + f.slack).await;
    only(&f, "new").await;
    f.finish().await;
}

pub(crate) async fn of_a_chain_only_the_newest_comes_back(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let first = running(&f, newest("first")).await;
    let second = running(&f, newest("second")).await;
    let third = running(&f, newest("third")).await;
    for older in [&first, &second] {
        assert_eq!(marked_by(&f, older).await.as_ref(), Some(&third.job.id), "the newest of all");
    }
    f.retry(&second, ZERO).await;
    f.retry(&third, ZERO).await;
    f.release(&first, ZERO).await;
    only(&f, "third").await;
    assert_superseded(&f, 2).await;
    f.finish().await;
}

pub(crate) async fn a_new_payload_of_a_waiting_job_supersedes_what_runs(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let old = running(&f, keeping("old")).await;
    let waiting = f.push(keeping("waiting")).await;
    assert_eq!(marked_by(&f, &old).await, None, "nobody asked for the newest so far");
    assert_eq!(f.answer(newest("new")).await, Enqueued::Replaced(waiting.clone()));
    assert_eq!(marked_by(&f, &old).await, Some(waiting));
    f.retry(&old, ZERO).await;
    only(&f, "new").await;
    assert_superseded(&f, 1).await;
    f.finish().await;
}

pub(crate) async fn a_new_payload_of_a_waiting_job_supersedes_what_waits_beside_it(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    for wait in [ZERO, secs(5)] {
        let olds = [running(&f, keeping("old")).await, running(&f, keeping("old, too")).await];
        let waiting = f.push(keeping("waiting")).await;
        for old in &olds {
            f.retry(old, wait).await;
        }
        assert_eq!(f.answer(newest("new")).await, Enqueued::Replaced(waiting));
        let [ready, delayed, ..] = f.counts().await;
        assert_eq!([ready, delayed], [1, 0], "the others made way at once");
        only(&f, "new").await;
        f.pass(secs(6)).await;
        f.push(keeping("next")).await;
        only(&f, "next").await;
    }
    assert_superseded(&f, 4).await;
    f.finish().await;
}

/// Who replaces decides, and for whichever window.
pub(crate) async fn what_the_older_ones_asked_for_does_not_matter(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let windows = [Unique::while_queued("a"), Unique::until_done("b"), Unique::for_period("c", secs(60))];
    for unique in windows {
        let old = running(&f, job("old").unique(Unique::while_queued(unique.key.as_str()))).await;
        f.push(job("new").unique(unique.replace_payload())).await;
        f.retry(&old, ZERO).await;
        only(&f, "new").await;
    }
    assert_superseded(&f, 3).await;
    f.finish().await;
}

pub(crate) async fn a_period_that_has_passed_protects_nothing_that_runs(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let for_a_while =
        |payload: &str| job(payload).unique(Unique::for_period("key", secs(9)).replace_payload());
    let old = running(&f, for_a_while("old")).await;
    assert!(matches!(f.answer(for_a_while("dropped")).await, Enqueued::Duplicate(_)));
    f.pass(secs(9) + f.slack).await;
    f.push(for_a_while("new")).await;
    f.retry(&old, ZERO).await;
    only(&f, "new").await;
    // What waits is a job of its own by then: else a queue that is slower than the period would never run any.
    f.pass(secs(9) + f.slack).await;
    f.push(for_a_while("waiting")).await;
    f.pass(secs(9) + f.slack).await;
    f.push(for_a_while("newer")).await;
    let both = f.take(9).await;
    assert_eq!(texts(&both), ["waiting", "newer"]);
    for delivery in &both {
        f.ack(delivery).await;
    }
    assert_superseded(&f, 1).await;
    f.finish().await;
}

pub(crate) async fn only_the_same_kind_and_key_is_superseded(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let mut other_kind = newest("of another kind");
    other_kind.kind = "other".into();
    let other_key = job("with another key").unique(Unique::while_queued("other"));
    let mut others = Vec::new();
    for other in [other_kind, other_key, job("without a key")] {
        others.push(running(&f, other).await);
    }
    let new = running(&f, newest("new")).await;
    for delivery in others.iter().chain([&new]) {
        assert_eq!(marked_by(&f, delivery).await, None);
        f.retry(delivery, ZERO).await;
        f.ack(&f.one().await).await;
    }
    assert_superseded(&f, 0).await;
    f.finish().await;
}

pub(crate) async fn what_was_dropped_supersedes_nothing(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let old = running(&f, keeping("old")).await;
    let holder = running(&f, job("holder").unique(Unique::until_done("key"))).await;
    assert_eq!(f.answer(newest("dropped")).await, Enqueued::Duplicate(holder.job.id.clone()));
    f.retry(&old, ZERO).await;
    f.ack(&holder).await;
    only(&f, "old").await;
    assert_superseded(&f, 0).await;
    f.finish().await;
}

pub(crate) async fn a_superseded_job_that_is_done_all_the_same_is_done(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    let old = running(&f, newest("old")).await;
    f.push(newest("new")).await;
    f.ack(&old).await;
    only(&f, "new").await;
    assert_eq!(f.counts().await, [0, 0, 0, 0, 2]);
    assert_superseded(&f, 0).await;
    f.finish().await;
}

/// Nothing has superseded what a person brings back.
pub(crate) async fn a_superseded_job_that_fails_for_good_is_dead_and_can_begin_anew(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    needs!(f, verb manage);
    let old = running(&f, newest("old")).await;
    f.push(newest("new")).await;
    f.reject(&old).await;
    let dead = f.find(&old.job.id).await.expect("kept");
    assert_eq!((dead.state, dead.superseded_by), (JobState::Dead, None));
    assert!(!f.manage().requeue(&old.job.id).await.expect("asked"), "its key is taken");
    only(&f, "new").await;
    assert!(f.manage().requeue(&old.job.id).await.expect("asked"));
    f.retry(&f.one().await, ZERO).await;
    only(&f, "old").await;
    // Nor is one that was cancelled superseded.
    let old = running(&f, newest("old")).await;
    f.push(newest("new")).await;
    assert!(f.manage().cancel(&old.job.id).await.expect("asked"));
    f.retry(&old, ZERO).await;
    assert_eq!(f.find(&old.job.id).await.expect("kept").state, JobState::Dead);
    only(&f, "new").await;
    assert_superseded(&f, 0).await;
    f.finish().await;
}

pub(crate) async fn a_superseded_job_holds_no_key_and_no_room(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    for payload in ["first", "second", "third"] {
        let old = running(&f, newest("old")).await;
        f.push(newest(payload)).await;
        only(&f, payload).await;
        f.retry(&old, ZERO).await;
        assert_eq!(f.counts().await[..4], [0; 4]);
    }
    f.push(keeping("next")).await;
    only(&f, "next").await;
    f.finish().await;
}

/// Producers write ever newer payloads while workers fail, hand back and finish as it comes: no worker ever gets an
/// older payload than was handed out before, and the last one is the last that is handed out.
pub(crate) async fn no_older_payload_is_handed_out_after_a_newer_one(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb inspect);
    const ROUNDS: u32 = 300;
    let f = Arc::new(f);
    let mut tasks = JoinSet::new();
    let producer = f.clone();
    tasks.spawn(async move {
        for number in 1..=ROUNDS {
            producer.answer(newest(&number.to_string())).await;
            for _ in 0..number % 4 {
                tokio::task::yield_now().await;
            }
        }
    });
    tasks.spawn(async move {
        let (mut last, mut turn, mut held) = (0, 0, Vec::new());
        // Until the newest is done and nothing is left.
        while last < ROUNDS || !held.is_empty() {
            for delivery in f.take(3).await {
                let number = text(&delivery).parse().expect("a number");
                assert!(number >= last, "{number} came after {last}");
                last = number;
                held.push(delivery);
            }
            // Some stay for a while, so that newer ones are done before them.
            while held.len() > turn % 5 {
                turn += 1;
                let delivery = held.swap_remove(turn * 7 % held.len());
                match turn % 3 {
                    0 => f.ack(&delivery).await,
                    1 => f.retry(&delivery, ZERO).await,
                    _ => f.release(&delivery, ZERO).await,
                }
            }
            turn += 1;
            tokio::task::yield_now().await;
        }
        assert!(f.inspect().counts().await.expect("counted").superseded > 0, "nothing was put to the test");
    });
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
}
