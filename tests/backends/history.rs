//! The account that a store keeps of attempts which have ended.

use std::time::Duration;

use tidegate::source::{MAX_OUTPUT_BYTES, MAX_REASON_BYTES};
use tidegate::{AttemptEnd, Delivery, JobId, PastAttempt, Settled, Settlement};

use crate::fixture::{Fixture, job, needs, secs};

const ZERO: Duration = Duration::ZERO;

async fn history(f: &Fixture, id: &JobId) -> Vec<PastAttempt> {
    f.inspect().history(id).await.expect("asked")
}

/// Settles with a reason and an output.
async fn settle(f: &Fixture, delivery: &Delivery, settlement: Settlement, reason: &str, output: &[u8]) {
    let settled = Settled::new(delivery.tag, settlement).because(reason).with_output(output);
    assert!(f.source.settle(&[settled]).await.expect("settled").0.is_empty());
}

pub(crate) async fn each_attempt_that_ended_is_in_the_history(f: Fixture) {
    needs!(f, history);
    needs!(f, delayed);
    let id = f.push(job("a").max_attempts(9)).await;
    assert_eq!(history(&f, &id).await, []);
    let begin = f.find(&id).await.expect("there").since;
    settle(&f, &f.one().await, Settlement::Release { after: ZERO }, "a stop", b"").await;
    let delivery = f.one().await;
    f.pass(secs(3)).await;
    assert_eq!(history(&f, &id).await.len(), 1, "what still runs is not there");
    settle(&f, &delivery, Settlement::Retry { after: secs(5) }, "no luck", b"out\xff").await;
    f.pass(secs(5) + f.slack).await;
    f.one().await;
    f.pass(f.ttl + f.slack + Duration::from_millis(1)).await;
    settle(&f, &f.one().await, Settlement::Reject, "it makes no sense", b"").await;
    let past = history(&f, &id).await;
    let ends: Vec<_> = past.iter().map(|past| (past.attempt, past.end)).collect();
    assert_eq!(
        ends,
        [
            (1, AttemptEnd::Released),
            (1, AttemptEnd::Retried),
            (2, AttemptEnd::Lapsed),
            (3, AttemptEnd::Rejected)
        ]
    );
    let errors: Vec<_> = past.iter().map(|past| past.error.as_deref().expect("a reason")).collect();
    assert_eq!((errors[0], errors[1], errors[3]), ("a stop", "no luck", "it makes no sense"));
    assert!(errors[2].contains("lease ran out"), "{errors:?}");
    assert_eq!(past[1].output.as_deref(), Some(&b"out\xff"[..]));
    assert_eq!(past[2].output, None);
    // From the hand-over to the settlement, or to when somebody saw that the lease had run out.
    let [ran, lapsed] = [&past[1], &past[2]]
        .map(|past| past.ended_at.duration_since(past.started_at).expect("it ended after it began"));
    assert!(secs(3) <= ran && ran <= secs(3) + f.slack * 2, "{ran:?}");
    assert!(f.ttl <= lapsed && lapsed <= f.ttl + f.slack * 4, "{lapsed:?}");
    assert!(begin <= past[0].started_at);
    assert!(past.windows(2).all(|two| two[0].ended_at <= two[1].started_at), "{past:?}");
    f.finish().await;
}

pub(crate) async fn the_history_goes_with_the_job(f: Fixture) {
    needs!(f, history);
    needs!(f, verb manage);
    let done = f.push(job("done")).await;
    f.retry(&f.one().await, ZERO).await;
    f.ack(&f.one().await).await;
    let deleted = f.push(job("deleted")).await;
    f.reject(&f.one().await).await;
    assert_eq!(history(&f, &deleted).await.len(), 1);
    assert!(f.manage().delete(&deleted).await.expect("asked"));
    for id in [done, deleted, JobId::new("no such id")] {
        assert_eq!(history(&f, &id).await, [], "{id}");
    }
    f.finish().await;
}

pub(crate) async fn a_job_that_begins_anew_keeps_its_history(f: Fixture) {
    needs!(f, history);
    needs!(f, verb manage);
    let id = f.push(job("a")).await;
    for _ in 0..2 {
        f.reject(&f.one().await).await;
        assert!(f.manage().requeue(&id).await.expect("asked"));
    }
    let numbers: Vec<_> = history(&f, &id).await.iter().map(|past| past.attempt).collect();
    assert_eq!(numbers, [1, 1]);
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn the_oldest_attempts_make_room(f: Fixture) {
    needs!(f, history);
    let id = f.push(job("a").max_attempts(1_000)).await;
    let mut before = 0;
    for attempt in 1..=60 {
        let delivery = f.one().await;
        assert_eq!(delivery.attempt, attempt);
        f.retry(&delivery, ZERO).await;
        let numbers: Vec<_> = history(&f, &id).await.iter().map(|past| past.attempt).collect();
        assert_eq!(numbers.last(), Some(&attempt), "the newest is there");
        assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
        assert!((20..=100).contains(&numbers.len()) || numbers.len() == attempt as usize, "{numbers:?}");
        assert!(numbers.len() >= before);
        before = numbers.len();
    }
    assert!(before < 60, "all {before} are kept");
    f.reject(&f.one().await).await;
}

pub(crate) async fn what_is_too_long_for_the_history_is_cut(f: Fixture) {
    needs!(f, history);
    let id = f.push(job("a")).await;
    let mut settled = Settled::new(f.one().await.tag, Settlement::Reject);
    settled.reason = Some("ü".repeat(MAX_REASON_BYTES).into());
    settled.output = Some(vec![7; MAX_OUTPUT_BYTES + 1].into());
    assert!(f.source.settle(&[settled]).await.expect("settled").0.is_empty());
    let past = history(&f, &id).await.remove(0);
    assert_eq!(past.error.map(|error| error.len()), Some(MAX_REASON_BYTES));
    assert_eq!(past.output.map(|output| output.len()), Some(MAX_OUTPUT_BYTES));
    f.finish().await;
}

/// Whatever its worker says then.
pub(crate) async fn a_cancelled_attempt_ends_rejected(f: Fixture) {
    needs!(f, history);
    needs!(f, verb manage);
    for settlement in
        [Settlement::Retry { after: ZERO }, Settlement::Release { after: ZERO }, Settlement::Reject]
    {
        let id = f.push(job("a")).await;
        let delivery = f.one().await;
        assert!(f.manage().cancel(&id).await.expect("asked"));
        assert!(f.settle(delivery.tag, settlement).await);
        let past = history(&f, &id).await.remove(0);
        assert_eq!((past.end, past.error.as_deref()), (AttemptEnd::Rejected, Some("cancelled")));
    }
    f.finish().await;
}
