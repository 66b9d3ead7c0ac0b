//! Leases: kept while they are renewed, worth nothing afterwards.

use std::time::Duration;

use tidegate::{JobState, Renewal, Settlement};
use tokio::time::Instant;

use crate::fixture::{Fixture, job, needs, secs, texts, waiting};

/// Longer than any lease that is not renewed.
fn too_long(f: &Fixture) -> Duration {
    f.ttl + f.slack + Duration::from_millis(1)
}

fn all_settlements() -> [Settlement; 4] {
    let after = Duration::ZERO;
    [Settlement::Ack, Settlement::Retry { after }, Settlement::Reject, Settlement::Release { after }]
}

pub(crate) async fn a_lease_says_since_when_and_for_how_long(f: Fixture) {
    f.push(job("a")).await;
    let before = Instant::now();
    let delivery = f.one().await;
    if f.has.leases {
        let lease = delivery.lease.expect("a lease");
        assert_eq!(lease.ttl, f.ttl);
        assert!(before <= lease.sent_at && lease.sent_at <= Instant::now());
    } else {
        assert_eq!(delivery.lease, None, "who has no leases must not seem to have");
    }
    f.ack(&delivery).await;
    f.finish().await;
}

pub(crate) async fn a_lease_that_is_renewed_is_kept(f: Fixture) {
    needs!(f, leases);
    f.push(job("long")).await;
    let delivery = f.one().await;
    for _ in 0..10 {
        f.pass(f.ttl / 2).await;
        assert_eq!(f.renew(&[delivery.tag]).await, [Renewal::Kept]);
        assert!(f.take(1).await.is_empty(), "somebody else has got it");
    }
    f.ack(&delivery).await;
    f.finish().await;
}

pub(crate) async fn a_job_whose_lease_runs_out_comes_again_and_counts_the_attempt(f: Fixture) {
    needs!(f, leases);
    f.push(job("a")).await;
    f.one().await;
    f.pass(f.ttl / 2).await;
    assert!(f.take(1).await.is_empty());
    f.pass(too_long(&f) - f.ttl / 2).await;
    let again = f.one().await;
    assert_eq!(again.attempt, 2);
    f.ack(&again).await;
    f.finish().await;
}

pub(crate) async fn a_waiting_fetch_gets_a_job_whose_lease_runs_out(f: Fixture) {
    needs!(f, leases);
    f.push(job("a")).await;
    let start = Instant::now();
    f.one().await;
    let again = f.fetch(&waiting(1)).await;
    f.assert_passed(start, f.ttl);
    f.ack(&again[0]).await;
    f.finish().await;
}

/// Nobody is with a worker when both begin to wait; so the second can't know yet when to look again.
pub(crate) async fn a_waiting_fetch_gets_a_job_whose_lease_began_while_it_waited(f: Fixture) {
    needs!(f, leases);
    let start = Instant::now();
    let wanted = waiting(1);
    let (one, other, _) = tokio::join!(f.fetch(&wanted), f.fetch(&wanted), async {
        f.pass(secs(1)).await;
        f.push(job("a")).await
    });
    f.assert_passed(start, secs(1) + f.ttl);
    let mut attempts = [one[0].attempt, other[0].attempt];
    attempts.sort();
    assert_eq!(attempts, [1, 2]);
}

pub(crate) async fn a_settlement_after_the_lease_ran_out_changes_nothing(f: Fixture) {
    needs!(f, leases);
    for settlement in all_settlements() {
        f.push(job("a")).await;
        let late = f.one().await;
        f.pass(too_long(&f)).await;
        assert!(!f.settle(late.tag, settlement).await, "{settlement:?}");
        let again = f.one().await;
        assert_eq!(again.attempt, 2, "{settlement:?}");
        f.ack(&again).await;
    }
    f.finish().await;
}

pub(crate) async fn an_old_tag_changes_nothing_when_the_job_is_with_another(f: Fixture) {
    needs!(f, leases);
    let id = f.push(job("a")).await;
    let old = f.one().await;
    f.pass(too_long(&f)).await;
    let new = f.one().await;
    assert_ne!(old.tag, new.tag);
    for settlement in all_settlements() {
        assert!(!f.settle(old.tag, settlement).await, "{settlement:?}");
    }
    assert_eq!(f.renew(&[old.tag]).await, [Renewal::Lost]);
    if f.backend.inspect.is_some() {
        let stored = f.find(&id).await.expect("there");
        assert_eq!((stored.state, stored.attempts), (JobState::Leased, 2));
    }
    assert!(f.take(1).await.is_empty());
    f.ack(&new).await;
    f.finish().await;
}

/// However many run out at once, and however few of them are taken back at a time.
pub(crate) async fn of_many_leases_that_ran_out_none_counts(f: Fixture) {
    needs!(f, leases);
    const JOBS: usize = 3_000;
    f.producer.enqueue((0..JOBS).map(|_| job("a")).collect()).await.expect("enqueued");
    let mut held = Vec::new();
    while held.len() < JOBS {
        held.extend(f.take(JOBS).await);
    }
    f.pass(too_long(&f)).await;
    let last = held.last().expect("there are many").tag;
    assert!(!f.settle(last, Settlement::Ack).await, "the last of them");
    assert_eq!(f.renew(&[held[JOBS - 2].tag]).await, [Renewal::Lost]);
}

pub(crate) async fn a_lost_lease_can_not_be_renewed(f: Fixture) {
    needs!(f, leases);
    f.push(job("a")).await;
    let late = f.one().await;
    f.pass(too_long(&f)).await;
    assert_eq!(f.renew(&[late.tag]).await, [Renewal::Lost]);
    let again = f.one().await;
    f.ack(&again).await;
    assert_eq!(f.renew(&[again.tag]).await, [Renewal::Lost], "it is done");
    f.finish().await;
}

pub(crate) async fn answers_come_in_the_order_of_the_tags(f: Fixture) {
    needs!(f, leases);
    f.push_all(&["a", "b", "c"]).await;
    let held = f.take(3).await;
    f.ack(&held[1]).await;
    let tags = [held[2].tag, held[1].tag, held[0].tag, held[2].tag];
    assert_eq!(f.renew(&tags).await, [Renewal::Kept, Renewal::Lost, Renewal::Kept, Renewal::Kept]);
    f.ack(&held[0]).await;
    f.ack(&held[2]).await;
    f.finish().await;
}

pub(crate) async fn reclaiming_says_how_many_and_takes_no_more_than_asked(f: Fixture) {
    needs!(f, verb reclaim);
    f.push_all(&["a", "b", "c"]).await;
    f.take(3).await;
    assert_eq!(f.reclaim().reclaim(9).await.expect("asked"), 0);
    f.pass(too_long(&f)).await;
    assert_eq!(f.reclaim().reclaim(0).await.expect("asked"), 0);
    assert_eq!(f.reclaim().reclaim(2).await.expect("asked"), 2);
    assert_eq!(f.reclaim().reclaim(9).await.expect("asked"), 1);
    assert_eq!(f.reclaim().reclaim(9).await.expect("asked"), 0);
    for delivery in f.take(9).await {
        assert_eq!(delivery.attempt, 2);
        f.ack(&delivery).await;
    }
    f.finish().await;
}

pub(crate) async fn a_job_that_kills_its_workers_ends_in_the_dead_letters(f: Fixture) {
    needs!(f, leases);
    let id = f.push(f.with_attempts(job("poison"), 3)).await;
    for attempt in 1..=3 {
        assert_eq!(f.one().await.attempt, attempt);
        f.pass(too_long(&f)).await;
    }
    assert!(f.take(1).await.is_empty(), "a fourth attempt");
    if f.backend.inspect.is_some() {
        let dead = f.find(&id).await.expect("kept");
        assert_eq!(dead.state, JobState::Dead);
        assert!(!f.has.attributes || dead.attempts == 3);
        assert_eq!(&dead.job.payload[..], b"poison");
        let reason = dead.last_error.expect("a reason");
        assert!(reason.contains("lease expired 3 times"), "{reason}");
    }
    f.finish().await;
}

pub(crate) async fn a_reclaimed_job_keeps_its_place(f: Fixture) {
    needs!(f, leases);
    needs!(f, order);
    f.push_all(&["1", "2", "3"]).await;
    f.take(2).await;
    f.pass(too_long(&f)).await;
    assert_eq!(texts(&f.take(9).await), ["1", "2", "3"]);
}
