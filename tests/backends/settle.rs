//! What becomes of a delivery: each settlement does what it says, once.

use std::time::Duration;

use tidegate::{JobState, Settled, Settlement, Tag};
use tokio::time::Instant;

use crate::fixture::{Fixture, job, needs, secs, texts, waiting};

pub(crate) async fn an_acked_job_is_gone(f: Fixture) {
    f.push(job("a")).await;
    let delivery = f.one().await;
    assert_eq!(delivery.attempt, 1);
    f.ack(&delivery).await;
    f.finish().await;
}

pub(crate) async fn a_retried_job_comes_again_as_the_next_attempt(f: Fixture) {
    let id = f.push(job("a")).await;
    for attempt in 1..=4 {
        let delivery = f.one().await;
        assert_eq!((&delivery.job.id, delivery.attempt), (&id, attempt));
        f.retry(&delivery, Duration::ZERO).await;
    }
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn a_retry_waits_for_its_time(f: Fixture) {
    needs!(f, delayed);
    let id = f.push(job("a")).await;
    let delivery = f.one().await;
    let start = Instant::now();
    let reason = Settled::new(delivery.tag, Settlement::Retry { after: secs(8) }).because("no luck: timeout");
    f.source.settle(&[reason]).await.expect("settled");
    if f.backend.inspect.is_some() {
        let stored = f.find(&id).await.expect("there");
        assert_eq!((stored.state, stored.attempts), (JobState::Delayed, 1));
        assert_eq!(stored.last_error.as_deref(), Some("no luck: timeout"));
    }
    assert!(f.take(1).await.is_empty());
    let again = f.fetch(&waiting(1)).await;
    f.assert_passed(start, secs(8));
    assert_eq!(again[0].attempt, 2);
    f.ack(&again[0]).await;
    f.finish().await;
}

pub(crate) async fn a_released_job_does_not_count_the_attempt(f: Fixture) {
    f.push(f.with_attempts(job("a"), 2)).await;
    for _ in 0..5 {
        let delivery = f.one().await;
        assert_eq!(delivery.attempt, 1);
        f.release(&delivery, Duration::ZERO).await;
    }
    f.retry(&f.one().await, Duration::ZERO).await;
    let delivery = f.one().await;
    assert_eq!(delivery.attempt, 2);
    f.ack(&delivery).await;
    f.finish().await;
}

pub(crate) async fn a_release_may_wait(f: Fixture) {
    needs!(f, delayed);
    f.push(job("a")).await;
    let start = Instant::now();
    f.release(&f.one().await, secs(8)).await;
    assert!(f.take(1).await.is_empty());
    let again = f.fetch(&waiting(1)).await;
    f.assert_passed(start, secs(8));
    assert_eq!(again[0].attempt, 1);
    f.ack(&again[0]).await;
    f.finish().await;
}

pub(crate) async fn a_rejected_job_is_kept_with_its_payload_and_its_reason(f: Fixture) {
    let id = f.push(job("bad")).await;
    let delivery = f.one().await;
    let settled = Settled::new(delivery.tag, Settlement::Reject).because("no such file: cat.png");
    f.source.settle(&[settled]).await.expect("settled");
    if f.backend.inspect.is_some() {
        let dead = f.find(&id).await.expect("kept");
        assert_eq!(dead.state, JobState::Dead);
        assert!(!f.has.attributes || dead.attempts == 1);
        assert_eq!(&dead.job.payload[..], b"bad");
        assert_eq!(dead.last_error.as_deref(), Some("no such file: cat.png"));
    }
    f.finish().await;
}

pub(crate) async fn a_reason_is_cut_and_never_refused(f: Fixture) {
    let id = f.push(job("bad")).await;
    let mut settled = Settled::new(f.one().await.tag, Settlement::Reject);
    settled.reason = Some("ü\u{0}'\n\u{1F980}".repeat(10_000).into());
    assert!(f.source.settle(&[settled]).await.expect("settled").0.is_empty());
    if f.backend.inspect.is_some() {
        let dead = f.find(&id).await.expect("kept");
        let reason = dead.last_error.expect("a reason");
        assert!(reason.starts_with('ü') && reason.len() <= 4096, "{} bytes", reason.len());
    }
    f.finish().await;
}

pub(crate) async fn settling_twice_is_reported_and_changes_nothing(f: Fixture) {
    let zero = Duration::ZERO;
    let all = [
        Settlement::Ack,
        Settlement::Retry { after: zero },
        Settlement::Reject,
        Settlement::Release { after: zero },
    ];
    f.push(job("a")).await;
    let delivery = f.one().await;
    f.retry(&delivery, zero).await;
    for settlement in all {
        assert!(!f.settle(delivery.tag, settlement).await, "{settlement:?}");
    }
    let again = f.one().await;
    assert_eq!(again.attempt, 2);
    f.ack(&again).await;
    for settlement in all {
        assert!(!f.settle(again.tag, settlement).await, "{settlement:?}");
    }
    f.finish().await;
}

pub(crate) async fn a_batch_is_applied_though_some_of_it_is_stale(f: Fixture) {
    f.push_all(&["a", "b", "c"]).await;
    let held = f.take(3).await;
    f.ack(&held[1]).await;
    let batch: Vec<Settled> =
        held.iter().map(|delivery| Settled::new(delivery.tag, Settlement::Ack)).collect();
    let stale = f.source.settle(&batch).await.expect("stale is no error");
    assert_eq!(stale.0, [held[1].tag]);
    f.finish().await;
}

pub(crate) async fn a_tag_that_was_never_handed_out_is_stale(f: Fixture) {
    f.push(job("a")).await;
    let Tag { session, key, token } = f.one().await.tag;
    for tag in [
        Tag { session: session.wrapping_add(1), key, token },
        Tag { session, key: key.wrapping_add(1), token },
        Tag { session, key, token: token.wrapping_add(1) },
        Tag { session: u64::MAX, key: u64::MAX, token: u64::MAX },
    ] {
        assert!(!f.settle(tag, Settlement::Ack).await, "{tag:?}");
    }
    assert!(f.settle(Tag { session, key, token }, Settlement::Ack).await);
    f.finish().await;
}

pub(crate) async fn the_same_tag_twice_in_a_batch_counts_once(f: Fixture) {
    f.push(job("a")).await;
    let tag = f.one().await.tag;
    let batch = [Settled::new(tag, Settlement::Ack), Settled::new(tag, Settlement::Reject)];
    assert_eq!(f.source.settle(&batch).await.expect("settled").0, [tag]);
    if f.backend.inspect.is_some() {
        assert_eq!(f.counts().await, [0, 0, 0, 0, 1]);
    }
    f.finish().await;
}

pub(crate) async fn an_empty_batch_is_nothing(f: Fixture) {
    assert!(f.source.settle(&[]).await.expect("nothing to settle").0.is_empty());
    assert!(f.producer.enqueue(Vec::new()).await.expect("nothing to enqueue").is_empty());
    if let Some(renewer) = &f.renewer {
        assert!(renewer.renew(&[]).await.expect("nothing to renew").is_empty());
    }
    f.finish().await;
}

pub(crate) async fn an_exchange_settles_and_takes_what_is_there_without_waiting(f: Fixture) {
    needs!(f, exchange);
    assert!(f.source.fuses());
    f.push_all(&["a", "b", "c"]).await;
    let held = f.take(2).await;
    let start = Instant::now();
    let acked: Vec<Settled> = held.iter().map(|held| Settled::new(held.tag, Settlement::Ack)).collect();
    let (stale, taken) = f.source.exchange(&acked, &waiting(2)).await.expect("exchanged");
    assert_eq!((stale.0, texts(&taken)), (vec![], vec!["c".to_owned()]));
    let back = [Settled::new(taken[0].tag, Settlement::Release { after: Duration::ZERO }), acked[0].clone()];
    let (stale, taken) = f.source.exchange(&back, &waiting(2)).await.expect("exchanged");
    assert_eq!(
        (stale.0, texts(&taken)),
        (vec![acked[0].tag], vec!["c".to_owned()]),
        "what is freed is taken"
    );
    let last = [Settled::new(taken[0].tag, Settlement::Ack)];
    let (stale, taken) = f.source.exchange(&last, &waiting(2)).await.expect("exchanged");
    assert!(stale.0.is_empty() && taken.is_empty());
    f.assert_passed(start, Duration::ZERO);
    f.finish().await;
}

pub(crate) async fn an_exchange_with_a_source_that_does_not_fuse_settles(f: Fixture) {
    if f.source.fuses() {
        assert!(f.has.exchange);
        return;
    }
    f.push_all(&["a", "b"]).await;
    let held = f.take(1).await;
    let acked = [Settled::new(held[0].tag, Settlement::Ack)];
    let (stale, taken) = f.source.exchange(&acked, &waiting(2)).await.expect("settled");
    assert!(stale.0.is_empty() && taken.is_empty());
    f.ack(&f.one().await).await;
    f.finish().await;
}
