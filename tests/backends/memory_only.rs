//! What only memory has: its bounds, its URL, waiting until it is drained, and threads without a runtime.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{
    Enqueue, Enqueued, ErrorKind, Inspect, Intake, Memory, NewJob, Settled, Settlement, Source, Unique,
    backend,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fixture::{assert_waits, at_once, job, secs, waiting};

async fn settle_all(memory: &Memory, settlement: Settlement) -> usize {
    let taken = memory.fetch(&at_once(1000), &CancellationToken::new()).await.expect("fetched");
    let settled: Vec<Settled> = taken.iter().map(|delivery| Settled::new(delivery.tag, settlement)).collect();
    assert!(memory.settle(&settled).await.expect("settled").0.is_empty());
    taken.len()
}

#[tokio::test]
async fn a_url_opens_it_with_every_verb() {
    for url in ["memory:", "memory://"] {
        let backend = backend::open(url).expect("a good URL");
        assert_eq!(backend.name, "memory");
        backend.enqueue().expect("it has that").enqueue(vec![job("a")]).await.expect("room");
        assert_eq!(backend.inspect().expect("it has that").counts().await.expect("counted").ready, 1);
        assert_eq!(backend.reclaim().expect("it has that").reclaim(1).await.expect("asked"), 0);
        backend.manage().expect("it has that");
        let (by_ref, owned) = (Intake::from(&backend), Intake::from(backend));
        assert!(by_ref.renew.is_some() && owned.renew.is_some());
    }
}

#[test]
fn a_url_that_makes_no_sense_is_refused_without_its_secrets() {
    for (url, word) in [
        ("amqps://user:secret@host/0", "\"amqps\""),
        ("kafka:secret", "\"kafka\""),
        ("memory", "a scheme and a colon"),
        ("", "a scheme and a colon"),
        ("memory:/tmp/secret", "nothing may follow"),
        ("MEMORY:", "\"MEMORY\""),
    ] {
        let error = backend::open(url).expect_err(url);
        assert!(error.is_invalid_input() && error.to_string().contains(word), "{url:?}: {error}");
        assert!(error.to_string().contains("memory:"), "{url:?}: {error} does not say what there is");
        assert!(!format!("{error:?}").contains("secret"), "{url:?}: {error:?}");
    }
}

#[tokio::test]
async fn two_stores_have_nothing_in_common_and_two_handles_everything() {
    let (one, other) = (Memory::new(), Memory::new());
    let handle = one.clone();
    handle.push(job("a")).expect("room");
    assert_eq!(one.counts().await.expect("counted").ready, 1);
    assert_eq!(other.counts().await.expect("counted").ready, 0);
}

#[test]
fn bounds_that_make_no_sense_are_refused_by_name() {
    for (builder, word) in [
        (Memory::builder().lease_ttl(Duration::ZERO), "lease_ttl"),
        (Memory::builder().lease_ttl(Duration::MAX), "lease_ttl"),
        (Memory::builder().max_jobs(0), "max_jobs"),
        (Memory::builder().crash_limit(0), "crash_limit"),
    ] {
        let error = builder.build().expect_err(word);
        assert!(error.is_invalid_input() && error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_as_a_whole_and_fits_later() {
    let memory = Memory::builder().max_jobs(3).build().expect("good settings");
    memory.enqueue(vec![job("a"), job("b")]).await.expect("room");
    let error = memory.enqueue(vec![job("c"), job("d")]).await.expect_err("no room");
    assert!(error.kind() == ErrorKind::Full && error.is_transient(), "{error:?}");
    assert_eq!(memory.counts().await.expect("counted").ready, 2);
    memory.push(job("c")).expect("room for one");
    assert_eq!(memory.push(job("d")).expect_err("no room").kind(), ErrorKind::Full);
    assert_eq!(settle_all(&memory, Settlement::Ack).await, 3);
    memory.enqueue(vec![job("c"), job("d")]).await.expect("room again");
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused_by_name_size_and_limit() {
    let memory = Memory::builder().max_payload_bytes(10).build().expect("good settings");
    memory.push(NewJob::new("fits", vec![0; 10])).expect("just fits");
    for answer in [
        memory.push(NewJob::new("too large", vec![0; 11])).map(drop),
        memory.enqueue(vec![job("fits"), NewJob::new("too large", vec![0; 11])]).await.map(drop),
    ] {
        let error = answer.expect_err("too large");
        assert!(error.is_invalid_input(), "{error:?}");
        for word in ["\"too large\"", "11", "10"] {
            assert!(error.to_string().contains(word), "{error} does not say {word}");
        }
    }
    assert_eq!(memory.counts().await.expect("counted").ready, 1);
}

#[tokio::test]
async fn the_oldest_dead_letters_make_room() {
    let memory = Memory::builder().max_dead(2).build().expect("good settings");
    for payload in ["a", "b", "c"] {
        memory.push(job(payload)).expect("room");
        settle_all(&memory, Settlement::Reject).await;
    }
    let dead = memory.list(&tidegate::JobQuery::new(tidegate::JobState::Dead, 9)).await.expect("listed");
    let payloads: Vec<&[u8]> = dead.iter().map(|dead| &dead.job.payload[..]).collect();
    assert_eq!(payloads, [b"b", b"c"]);
    assert_eq!(memory.dropped_dead_letters(), 1);
}

#[tokio::test(start_paused = true)]
async fn drained_waits_for_the_last_job_however_it_ends() {
    let ends: [(Option<Settlement>, u64); 4] = [
        (Some(Settlement::Ack), 5),
        (Some(Settlement::Reject), 5),
        (None, 30), // its lease runs out, in its last attempt
        (Some(Settlement::Retry { after: secs(7) }), 12),
    ];
    for (end, expected) in ends {
        let memory = Memory::new();
        memory.drained().await; // nothing was ever there
        memory.push(job("a").max_attempts(1)).expect("room");
        let start = Instant::now();
        let (_, ()) = tokio::join!(memory.drained(), async {
            let taken = memory.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched");
            tokio::time::sleep(secs(5)).await;
            let Some(settlement) = end else { return };
            memory.settle(&[Settled::new(taken[0].tag, settlement)]).await.expect("settled");
            if let Settlement::Retry { .. } = settlement {
                let again = memory.fetch(&waiting(1), &CancellationToken::new()).await.expect("fetched");
                memory.settle(&[Settled::new(again[0].tag, Settlement::Ack)]).await.expect("settled");
            }
        });
        let passed = start.elapsed();
        assert!(secs(expected) <= passed && passed < secs(expected + 1), "{end:?}: {passed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_wakes_one_of_those_who_wait_for_any() {
    let memory = Memory::new();
    let (wanted, stop) = (waiting(1), CancellationToken::new());
    let mut first = pin!(memory.fetch(&wanted, &stop));
    let mut second = pin!(memory.fetch(&wanted, &stop));
    assert_waits(first.as_mut());
    assert_waits(second.as_mut());
    memory.push(job("a")).expect("room");
    assert_waits(second.as_mut()); // it was not its turn, and it does not look
    let taken = first.await.expect("fetched");
    assert_eq!(taken.len(), 1);
    assert_waits(second.as_mut());
}

#[test]
fn threads_without_a_runtime_share_it_and_no_key_is_won_twice() {
    let memory = Arc::new(Memory::new());
    const ROUNDS: usize = 2000;
    let produce = || {
        let answer = |round: usize| memory.push(job("x").unique(Unique::until_done(round.to_string())));
        (0..ROUNDS).filter(|round| matches!(answer(*round), Ok(Enqueued::Created(_)))).count()
    };
    let created: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let thread = std::thread::Builder::new().name(format!("producer-{number}"));
                thread.spawn_scoped(scope, produce).expect("a thread")
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(created, ROUNDS);
}

/// Two wait for jobs; one of them is told to stop, from another thread, about when a job comes. Somebody
/// must hear of the job: leases are too long to help out, so a lost ring is a round that never ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_ring_is_lost_between_threads() {
    const ROUNDS: usize = 5000;
    let memory = Memory::builder().lease_ttl(secs(3600)).build().expect("good settings");
    let end = CancellationToken::new();
    let mut workers = JoinSet::new();
    {
        let (memory, end) = (memory.clone(), end.clone());
        workers.spawn(async move {
            while !end.is_cancelled() {
                work_once(&memory, &end).await;
            }
        });
    }
    for round in 0..ROUNDS {
        let stop = CancellationToken::new();
        let (nervous, stopped) = (memory.clone(), stop.clone());
        workers.spawn(async move { work_once(&nervous, &stopped).await });
        for _ in 0..round % 10 {
            tokio::task::yield_now().await;
        }
        memory.push(job("a")).expect("room");
        for _ in 0..round % 1000 {
            std::hint::spin_loop();
        }
        stop.cancel();
        tokio::time::timeout(secs(60), memory.drained()).await.expect("a ring was lost");
        while workers.try_join_next().is_some_and(|ended| ended.is_ok()) {}
    }
    end.cancel();
    while let Some(worker) = workers.join_next().await {
        worker.expect("no panic");
    }
}

/// Waits for a job and is done with it at once.
async fn work_once(memory: &Memory, stop: &CancellationToken) {
    let mut wanted = waiting(1);
    wanted.wait = secs(3600);
    for delivery in memory.fetch(&wanted, stop).await.expect("fetched") {
        let settled = [Settled::new(delivery.tag, Settlement::Ack)];
        assert!(memory.settle(&settled).await.expect("settled").0.is_empty());
    }
}
