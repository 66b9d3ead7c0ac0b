//! Waiting for work and taking it: never too much, never too late, never lost.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate::{JobId, Settlement};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, assert_waits, at_once, job, needs, of_queues, secs, text, texts, waiting};

pub(crate) async fn no_more_than_asked_for_is_handed_out(f: Fixture) {
    f.push_all(&["a", "b", "c", "d", "e"]).await;
    let mut taken = f.take(2).await;
    assert_eq!(taken.len(), 2);
    taken.extend(f.take(2).await);
    taken.extend(f.take(2).await);
    assert_eq!(taken.len(), 5);
    for delivery in &taken {
        f.ack(delivery).await;
    }
    f.finish().await;
}

pub(crate) async fn an_empty_queue_answers_after_the_wait(f: Fixture) {
    let start = Instant::now();
    let mut wanted = waiting(1);
    wanted.wait = secs(7);
    assert!(f.fetch(&wanted).await.is_empty());
    f.assert_passed(start, secs(7));
}

pub(crate) async fn no_wait_means_at_once(f: Fixture) {
    let start = Instant::now();
    assert!(f.take(1).await.is_empty());
    f.assert_passed(start, Duration::ZERO);
}

pub(crate) async fn a_waiting_fetch_wakes_when_a_job_is_enqueued(f: Fixture) {
    let start = Instant::now();
    let wanted = waiting(5);
    let (taken, _) = tokio::join!(f.fetch(&wanted), async {
        f.pass(secs(3)).await;
        f.push(job("late")).await
    });
    assert_eq!(texts(&taken), ["late"]);
    f.assert_passed(start, secs(3));
    f.ack(&taken[0]).await;
    f.finish().await;
}

pub(crate) async fn each_waiting_fetch_gets_a_job_of_its_own(f: Fixture) {
    let start = Instant::now();
    let f = Arc::new(f);
    let mut waiting_for = JoinSet::new();
    for _ in 0..4 {
        let f = f.clone();
        waiting_for.spawn(async move { f.fetch(&waiting(1)).await });
    }
    f.pass(secs(1)).await;
    f.push_all(&["a", "b"]).await;
    f.producer.enqueue(vec![job("c"), job("d")]).await.expect("enqueued");
    let mut got = BTreeSet::new();
    while let Some(taken) = waiting_for.join_next().await {
        let taken = taken.expect("no panic");
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert!(got.insert(text(&taken[0])));
    }
    assert_eq!(got.len(), 4);
    f.assert_passed(start, secs(1));
}

pub(crate) async fn a_fetch_that_is_told_to_stop_returns_at_once_and_loses_nothing(f: Fixture) {
    for job_comes_too in [false, true] {
        let start = Instant::now();
        let stop = CancellationToken::new();
        let wanted = waiting(1);
        let (taken, _) = tokio::join!(f.source.fetch(&wanted, &stop), async {
            f.pass(secs(2)).await;
            if job_comes_too {
                f.push(job("at the same time")).await;
            }
            stop.cancel();
        });
        f.assert_passed(start, secs(2));
        let mut taken = taken.expect("stopping is no error");
        taken.extend(f.take(2).await);
        assert_eq!(taken.len(), usize::from(job_comes_too), "{taken:?}");
        for delivery in &taken {
            f.ack(delivery).await;
        }
    }
    f.finish().await;
}

pub(crate) async fn a_fetch_that_was_stopped_before_takes_nothing(f: Fixture) {
    f.push(job("stays")).await;
    let stop = CancellationToken::new();
    stop.cancel();
    let start = Instant::now();
    let taken = f.source.fetch(&waiting(1), &stop).await.expect("stopping is no error");
    assert!(taken.is_empty());
    f.assert_passed(start, Duration::ZERO);
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn a_dropped_fetch_loses_nothing(f: Fixture) {
    needs!(f, leases);
    for _ in 0..3 {
        let wanted = waiting(1);
        let fetched = f.fetch(&wanted);
        assert!(tokio::time::timeout(secs(1), fetched).await.is_err(), "there was nothing to fetch");
    }
    f.push(job("after")).await;
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn a_wake_up_passes_on_when_the_woken_fetch_goes(f: Fixture) {
    needs!(f, leases);
    let wanted = waiting(1);
    let mut second = Box::pin(f.fetch(&wanted));
    {
        let mut first = pin!(f.fetch(&wanted));
        assert_waits(first.as_mut());
        assert_waits(second.as_mut());
        f.push(job("for the other")).await; // wakes the first, which is then dropped
    }
    let start = Instant::now();
    let taken = second.await;
    f.assert_passed(start, Duration::ZERO);
    f.ack(&taken[0]).await;
    f.finish().await;
}

pub(crate) async fn a_delayed_job_comes_by_itself_when_its_time_has_come(f: Fixture) {
    needs!(f, delayed);
    let start = Instant::now();
    f.push(job("later").delay(secs(10))).await;
    assert!(f.take(1).await.is_empty());
    let taken = f.fetch(&waiting(1)).await;
    f.assert_passed(start, secs(10));
    f.ack(&taken[0]).await;
    f.finish().await;
}

pub(crate) async fn a_moment_in_the_past_means_at_once(f: Fixture) {
    needs!(f, delayed);
    f.push(job("past").at(SystemTime::UNIX_EPOCH)).await;
    f.ack(&f.one().await).await;
    f.finish().await;
}

pub(crate) async fn a_waiting_fetch_hears_of_what_is_due_sooner(f: Fixture) {
    needs!(f, delayed);
    f.push(job("later").delay(secs(50))).await;
    let wanted = waiting(1);
    let (taken, start) = tokio::join!(f.fetch(&wanted), async {
        f.calm().await;
        let start = Instant::now();
        f.push(job("sooner").delay(secs(5))).await;
        start
    });
    assert_eq!(texts(&taken), ["sooner"]);
    f.assert_passed(start, secs(5));
}

pub(crate) async fn a_waiting_fetch_gets_what_is_released(f: Fixture) {
    let start = Instant::now();
    f.push(job("back")).await;
    let held = f.one().await;
    let wanted = waiting(1);
    let (taken, _) = tokio::join!(f.fetch(&wanted), async {
        f.pass(secs(2)).await;
        f.release(&held, Duration::ZERO).await;
    });
    f.assert_passed(start, secs(2));
    f.ack(&taken[0]).await;
    f.finish().await;
}

pub(crate) async fn a_waiting_fetch_takes_only_what_it_asked_for(f: Fixture) {
    let (mails, images) = (of_queues(waiting(1), &["mails"]), of_queues(waiting(1), &["images"]));
    let start = Instant::now();
    let (mail, image, _) = tokio::join!(f.fetch(&mails), f.fetch(&images), async {
        f.pass(secs(1)).await;
        f.push(job("image").queue("images")).await;
        f.push(job("mail").queue("mails")).await;
    });
    assert_eq!((texts(&mail), texts(&image)), (vec!["mail".to_owned()], vec!["image".to_owned()]));
    f.assert_passed(start, secs(1));
}

pub(crate) async fn nothing_is_handed_out_twice(f: Fixture) {
    const JOBS: usize = 300;
    let f = Arc::new(f);
    let mut workers = JoinSet::new();
    for max in 1..=6 {
        let f = f.clone();
        workers.spawn(async move {
            let mut ids = Vec::new();
            loop {
                let mut wanted = waiting(max);
                wanted.wait = secs(5);
                let taken = f.fetch(&wanted).await;
                if taken.is_empty() {
                    return ids;
                }
                for delivery in &taken {
                    f.ack(delivery).await;
                    ids.push(delivery.job.id.clone());
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    for number in 0..JOBS {
        f.push(job(&number.to_string())).await;
        tokio::task::yield_now().await;
    }
    let mut all: BTreeMap<JobId, usize> = BTreeMap::new();
    while let Some(ids) = workers.join_next().await {
        ids.expect("no panic").into_iter().for_each(|id| *all.entry(id).or_default() += 1);
    }
    assert_eq!(all.len(), JOBS);
    assert!(all.values().all(|times| *times == 1), "{all:?}");
}

/// Workers that do everything that workers do, dying included, until all is done.
pub(crate) async fn nothing_is_lost_and_nothing_is_made_up(f: Fixture) {
    needs!(f, leases);
    needs!(f, delayed);
    const JOBS: usize = 120;
    let mut open: BTreeSet<String> = (0..JOBS).map(|number| number.to_string()).collect();
    let mut forgotten = Vec::new();
    let mut number: u64 = 7;
    for payload in &open {
        f.push(f.with_attempts(job(payload), 1000)).await;
    }
    while !open.is_empty() {
        let wanted = at_once(1 + open.len() % 7);
        for delivery in f.fetch(&wanted).await {
            assert!(open.contains(&text(&delivery)), "{delivery:?} was done, or never enqueued");
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (number >> 33) % 6 {
                0 => f.retry(&delivery, Duration::ZERO).await,
                1 => f.retry(&delivery, secs(3)).await,
                2 => f.release(&delivery, Duration::ZERO).await,
                // Its worker died. One that this happens to three times is not handed out again.
                3 if delivery.attempt < 3 => forgotten.push(delivery.tag),
                _ => {
                    f.ack(&delivery).await;
                    open.remove(&text(&delivery));
                }
            }
        }
        f.pass(secs(1)).await;
    }
    for tag in forgotten {
        assert!(!f.settle(tag, Settlement::Ack).await, "the worker that died has no say in it any more");
    }
    f.finish().await;
}
