//! Unique keys: each window and each clash, and no gap between the two steps of anything.
//!
//! Where a queue drops duplicates as it reads them, a job that comes in between two steps is marked and
//! never run, or run twice. Here a key is decided once, as the job is taken in.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{Clash, Enqueued, NewJob, Unique};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, job, needs, secs, text, texts};

const ZERO: Duration = Duration::ZERO;

fn with(payload: &str, unique: Unique) -> NewJob {
    job(payload).unique(unique)
}

fn queued(payload: &str) -> NewJob {
    with(payload, Unique::while_queued("key"))
}

fn until_done(payload: &str) -> NewJob {
    with(payload, Unique::until_done("key"))
}

fn for_a_minute(payload: &str) -> NewJob {
    with(payload, Unique::for_period("key", secs(60)))
}

fn of_kind(kind: &str, mut job: NewJob) -> NewJob {
    job.kind = kind.into();
    job
}

pub(crate) async fn of_two_waiting_jobs_the_first_is_kept(f: Fixture) {
    needs!(f, unique);
    for make in [queued, until_done, for_a_minute] {
        let kind = |payload: &str, kind: &str| of_kind(kind, make(payload));
        let name = format!("{:?}", make("").unique);
        let first = f.push(kind("first", &name)).await;
        assert_eq!(f.answer(kind("second", &name)).await, Enqueued::Duplicate(first.clone()));
        assert_eq!(
            f.answer(f.rated(kind("third", &name).queue("other"), 9)).await,
            Enqueued::Duplicate(first)
        );
        let only = f.one().await;
        assert_eq!(text(&only), "first");
        f.ack(&only).await;
    }
    f.finish().await;
}

pub(crate) async fn the_newest_payload_replaces_the_waiting_one(f: Fixture) {
    needs!(f, unique);
    let replacing = |payload: &str, unique: Unique| with(payload, unique.replace_payload());
    for (at, unique) in
        [Unique::while_queued("a"), Unique::until_done("b"), Unique::for_period("c", secs(60))]
            .into_iter()
            .enumerate()
    {
        let first = f.push(f.rated(replacing("old", unique.clone()), 3)).await;
        for payload in ["newer", "newest"] {
            let answer = f.answer(replacing(payload, unique.clone())).await;
            assert_eq!(answer, Enqueued::Replaced(first.clone()), "{at}");
        }
        let only = f.one().await;
        assert_eq!((&only.job.id, text(&only)), (&first, "newest".to_owned()));
        assert_eq!(only.job.priority, if f.has.priorities { 3 } else { 0 });
        f.ack(&only).await;
    }
    f.finish().await;
}

pub(crate) async fn while_queued_ends_with_the_hand_over(f: Fixture) {
    needs!(f, unique);
    f.push(queued("running")).await;
    let running = f.one().await;
    let waiting = f.push(queued("waiting")).await;
    assert_eq!(f.answer(queued("third")).await, Enqueued::Duplicate(waiting));
    f.ack(&running).await;
    let next = f.one().await;
    assert_eq!(text(&next), "waiting");
    f.ack(&next).await;
    f.finish().await;
}

pub(crate) async fn while_queued_begins_again_with_a_retry(f: Fixture) {
    needs!(f, unique);
    let first = f.push(queued("first")).await;
    f.retry(&f.one().await, ZERO).await;
    assert_eq!(f.answer(queued("second")).await, Enqueued::Duplicate(first.clone()));
    f.release(&f.one().await, ZERO).await;
    assert_eq!(f.answer(queued("third")).await, Enqueued::Duplicate(first));
    f.ack(&f.one().await).await;
    f.push(queued("fourth")).await;
    f.ack(&f.one().await).await;
    f.finish().await;
}

/// Where the newest payload is to win, the older one does not come back: see `superseded`.
pub(crate) async fn while_queued_both_are_kept_if_nobody_asked_for_the_newest(f: Fixture) {
    needs!(f, unique);
    let first = f.push(queued("first")).await;
    let running = f.one().await;
    let second = f.push(queued("second")).await;
    f.retry(&running, ZERO).await;
    assert_eq!(f.answer(queued("third")).await, Enqueued::Duplicate(second.clone()));
    // As long as one of them waits it stands for others, whoever of them had the key before.
    let one = f.take(1).await.remove(0);
    let other = if one.job.id == first { second } else { first };
    assert_eq!(f.answer(queued("fourth")).await, Enqueued::Duplicate(other.clone()));
    f.ack(&one).await;
    f.retry(&f.one().await, ZERO).await;
    assert_eq!(f.answer(queued("fifth")).await, Enqueued::Duplicate(other));
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn until_done_holds_while_it_runs_and_waits_again(f: Fixture) {
    needs!(f, unique);
    let first = f.push(until_done("first")).await;
    for _ in 0..2 {
        let running = f.one().await;
        assert_eq!(f.answer(until_done("second")).await, Enqueued::Duplicate(first.clone()));
        f.retry(&running, ZERO).await;
        assert_eq!(f.answer(until_done("second")).await, Enqueued::Duplicate(first.clone()));
    }
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn until_done_ends_with_the_job(f: Fixture) {
    needs!(f, unique);
    for _ in 0..3 {
        f.push(until_done("next")).await;
        f.ack(&f.one().await).await;
    }
    f.finish().await;
}

pub(crate) async fn until_done_ends_in_the_dead_letters(f: Fixture) {
    needs!(f, unique);
    f.push(until_done("bad")).await;
    f.reject(&f.one().await).await;
    f.push(until_done("good")).await;
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn until_done_ends_with_deletion_and_cancellation(f: Fixture) {
    needs!(f, unique);
    needs!(f, verb manage);
    let first = f.push(until_done("deleted")).await;
    assert!(f.manage().delete(&first).await.expect("asked"));
    let second = f.push(until_done("cancelled")).await;
    assert!(f.manage().cancel(&second).await.expect("asked"));
    f.push(until_done("done")).await;
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn until_done_keeps_the_payload_of_a_running_job(f: Fixture) {
    needs!(f, unique);
    for unique in
        [Unique::until_done("a").replace_payload(), Unique::for_period("b", secs(60)).replace_payload()]
    {
        let first = f.push(with("running", unique.clone())).await;
        let running = f.one().await;
        assert_eq!(f.answer(with("too late", unique)).await, Enqueued::Duplicate(first));
        f.retry(&running, ZERO).await;
        let again = f.one().await;
        assert_eq!(text(&again), "running");
        f.ack(&again).await;
    }
    f.finish().await;
}

pub(crate) async fn for_a_period_holds_whatever_becomes_of_the_job(f: Fixture) {
    needs!(f, unique);
    let first = f.push(for_a_minute("first")).await;
    f.ack(&f.one().await).await;
    f.pass(secs(55)).await;
    for clash in [Clash::KeepFirst, Clash::ReplacePayload] {
        let mut late = for_a_minute("late");
        late.unique.as_mut().expect("unique").clash = clash;
        assert_eq!(f.answer(late).await, Enqueued::Duplicate(first.clone()));
    }
    f.pass(secs(5) + f.slack).await;
    f.push(for_a_minute("next")).await;
    f.reject(&f.one().await).await;
    assert!(matches!(f.answer(for_a_minute("second")).await, Enqueued::Duplicate(_)));
    f.finish().await;
}

pub(crate) async fn for_a_period_is_not_begun_anew_by_a_retry(f: Fixture) {
    needs!(f, unique);
    f.push(for_a_minute("first")).await;
    f.pass(secs(20)).await;
    let running = f.one().await;
    f.retry(&running, ZERO).await;
    f.pass(secs(40) + f.slack).await;
    f.push(for_a_minute("second")).await;
    for delivery in f.take(9).await {
        f.ack(&delivery).await;
    }
    assert!(
        matches!(f.answer(for_a_minute("third")).await, Enqueued::Duplicate(_)),
        "the second holds it now"
    );
    f.finish().await;
}

pub(crate) async fn a_delayed_job_holds_its_key(f: Fixture) {
    needs!(f, unique);
    needs!(f, delayed);
    let first = f.push(queued("old").delay(secs(20))).await;
    assert_eq!(f.answer(queued("dropped")).await, Enqueued::Duplicate(first.clone()));
    let newest = with("newest", Unique::while_queued("key").replace_payload());
    assert_eq!(f.answer(newest).await, Enqueued::Replaced(first));
    assert!(f.take(1).await.is_empty(), "a new payload brings no new time");
    f.pass(secs(20)).await;
    let only = f.one().await;
    assert_eq!(text(&only), "newest");
    f.ack(&only).await;
    f.finish().await;
}

pub(crate) async fn a_lapsed_lease_takes_the_key_again(f: Fixture) {
    needs!(f, unique);
    needs!(f, leases);
    let first = f.push(queued("first")).await;
    f.one().await;
    f.pass(f.ttl + f.slack + Duration::from_millis(1)).await;
    if f.backend.reclaim.is_some() {
        f.reclaim().reclaim(9).await.expect("asked");
    }
    assert_eq!(f.answer(queued("second")).await, Enqueued::Duplicate(first));
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn two_kinds_never_clash(f: Fixture) {
    needs!(f, unique);
    for kind in ["a", "b"] {
        f.push(NewJob::new(kind, kind).unique(Unique::until_done("key"))).await;
    }
    for delivery in f.take(9).await {
        f.ack(&delivery).await;
    }
    f.finish().await;
}

pub(crate) async fn a_batch_clashes_with_itself(f: Fixture) {
    needs!(f, unique);
    let replacing = |payload: &str| with(payload, Unique::until_done("key").replace_payload());
    let batch = vec![until_done("first"), job("other"), until_done("second"), replacing("third")];
    let answers = f.producer.enqueue(batch).await.expect("enqueued");
    let first = answers[0].id().clone();
    assert!(matches!(answers[0], Enqueued::Created(_)) && matches!(answers[1], Enqueued::Created(_)));
    assert_eq!(answers[2..], [Enqueued::Duplicate(first.clone()), Enqueued::Replaced(first)]);
    let mut got = texts(&f.take(9).await);
    got.sort();
    assert_eq!(got, ["other", "third"]);
}

pub(crate) async fn of_many_producers_at_once_one_wins(f: Fixture) {
    needs!(f, unique);
    let f = Arc::new(f);
    for make in [queued, until_done, for_a_minute] {
        let mut producers = JoinSet::new();
        for number in 0..40 {
            let f = f.clone();
            producers.spawn(async move {
                tokio::task::yield_now().await;
                let kind = format!("{:?}", make("").unique);
                f.answer(of_kind(&kind, make(&number.to_string()))).await
            });
        }
        let (mut winners, mut stands_for_all) = (0, Vec::new());
        while let Some(answer) = producers.join_next().await {
            let answer = answer.expect("no panic");
            winners += usize::from(matches!(answer, Enqueued::Created(_)));
            stands_for_all.push(answer.id().clone());
        }
        stands_for_all.dedup();
        assert_eq!((winners, stands_for_all.len()), (1, 1));
        f.ack(&f.one().await).await;
    }
}

/// Producers write ever newer payloads while workers take them: whatever was accepted is seen by a worker
/// that took the job after it was accepted, and the last one by the last.
pub(crate) async fn no_newest_payload_is_lost_between_producers_and_workers(f: Fixture) {
    needs!(f, unique);
    const ROUNDS: u32 = 200;
    let f = Arc::new(f);
    let mut tasks = JoinSet::new();
    let producer = f.clone();
    tasks.spawn(async move {
        for number in 1..=ROUNDS {
            let newest = with(&number.to_string(), Unique::while_queued("key").replace_payload());
            let answer = producer.answer(newest).await;
            assert!(!matches!(answer, Enqueued::Duplicate(_)), "{number} was dropped");
            if number % 3 == 0 {
                tokio::task::yield_now().await;
            }
        }
        0
    });
    tasks.spawn(async move {
        let mut last = 0;
        while last < ROUNDS {
            for delivery in f.take(3).await {
                let number = text(&delivery).parse().expect("a number");
                assert!(number > last, "{number} came after {last}");
                last = number;
                f.ack(&delivery).await;
            }
            tokio::task::yield_now().await;
        }
        last
    });
    let mut seen = 0;
    while let Some(last) = tasks.join_next().await {
        seen = last.expect("no panic").max(seen);
    }
    assert_eq!(seen, ROUNDS);
}
