//! P2: neither the worker's heap nor any key of ours on the server depends on how many jobs went through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::backend::redis::{Fetch, Layout, Redis, RedisBuilder};
use tidegate::{Context, Enqueue as _, NewJob, Outcome, Queues, Registry, RetryPolicy, Worker};

use crate::alone::{Sample, is_alone, judge};
use crate::books::{KIND, size};
use crate::crew::{start, until};
use crate::redis::RedisServer;

const ROUNDS: u64 = 10;

/// Of the first attempts some fail, and of the jobs a few for good.
fn registry() -> Registry {
    let turn = Arc::new(AtomicU64::new(0));
    Registry::new().handle_raw(KIND, move |context: Context| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        async move {
            match turn % 100 {
                0..5 if context.attempt() == 1 => Outcome::fail("now and then"),
                99 => Outcome::reject("for good"),
                _ => Outcome::Done,
            }
        }
    })
}

/// How many bytes the jobs have of which some are remembered.
const REMEMBERED: u64 = 100;

/// What our own keys take on the server, in bytes.
fn our_keys(server: &RedisServer, way: &Way) -> usize {
    let mut keys = server.command(&["KEYS", &format!("{}tidegate:*", way.prefix)]).texts();
    if way.later_is_dead {
        let all = keys.len();
        keys.retain(|key| !key.contains("tidegate:tried:"));
        let remembered = all - keys.len();
        assert!(remembered <= REMEMBERED as usize, "{remembered} counts of attempts");
    }
    let bytes = keys.iter().map(|key| {
        let usage = server.command(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).text();
        usage.parse::<usize>().unwrap_or(0)
    });
    bytes.sum()
}

/// Whose keys these are, and how the jobs are taken.
struct Way {
    prefix: &'static str,
    /// The command that says how many dead jobs there are, with their key.
    dead: [&'static str; 2],
    set: fn(RedisBuilder) -> RedisBuilder,
    /// A job that is to be tried later is among the dead ones at once, and its attempts are counted on for three days: by its
    /// bytes, of which there are few here.
    later_is_dead: bool,
}

/// Lets so many jobs go through, and judges what is there after each of some rounds.
fn stays_flat(jobs: u64, way: &Way) {
    let jobs = jobs / ROUNDS;
    let Some(server) = RedisServer::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = (way.set)(Redis::builder(&server.url()).max_dead(500)).open().expect("good settings");
        let worker = Worker::builder(store.intake(), registry()).queues(Queues::strict(["default", "other"]));
        let retry = RetryPolicy::default().max_attempts(3).initial(Duration::from_millis(1));
        let running = start(worker.max_concurrent_jobs(100).prefetch(100).retry(retry));
        let ended = || {
            let stats = running.handle.stats();
            stats.done + stats.rejected + if way.later_is_dead { stats.retried } else { 0 }
        };
        let different = if way.later_is_dead { REMEMBERED } else { 1_000 };
        let mut samples = Vec::new();
        for round in 1..=ROUNDS {
            for batch in 0..jobs / 1_000 {
                let queue = if batch % 2 == 0 { "default" } else { "other" };
                let batch = (0..1_000)
                    .map(|number| NewJob::new(KIND, format!("[{}]", number % different)).queue(queue));
                store.enqueue(batch.collect()).await.expect("enqueued");
            }
            until("a round is done", async || ended() >= round * jobs).await;
            if let Ok(inspect) = store.backend().inspect() {
                assert_eq!(inspect.counts().await.expect("counted").unfinished(), 0);
            }
            samples.push(Sample::take(server.clients().len(), our_keys(&server, way)));
        }
        println!("{} jobs: {:?} ... {:?}", ROUNDS * jobs, samples[1], samples[9]);
        judge(&samples[1..]).expect("flat");
        assert!(server.command(&way.dead).number() <= 500);
        assert_eq!(ended(), ROUNDS * jobs);
        let report = running.stop().await.report;
        assert_eq!(
            report.stats.fetched,
            report.stats.done + report.stats.rejected + report.stats.retried,
            "{report}"
        );
        // That of the producer and of who asks.
        until("no connection of the worker's is left", async || server.clients().len() == 1).await;
    });
}

#[test]
fn nothing_grows_with_how_many_jobs_went_through() {
    if !is_alone("flat::nothing_grows_with_how_many_jobs_went_through") {
        return;
    }
    let way = Way { prefix: "", dead: ["ZCARD", "dead"], set: |builder| builder, later_is_dead: false };
    stays_flat(size(200_000, 2_000_000), &way);
}

#[test]
fn nothing_grows_in_resques_layout_either() {
    if !is_alone("flat::nothing_grows_in_resques_layout_either") {
        return;
    }
    let set = |builder: RedisBuilder| builder.layout(Layout::Resque);
    let way = Way { prefix: "resque:", dead: ["LLEN", "resque:failed"], set, later_is_dead: false };
    stays_flat(size(20_000, 200_000), &way);
}

#[test]
fn nothing_grows_with_plain_pop_either() {
    if !is_alone("flat::nothing_grows_with_plain_pop_either") {
        return;
    }
    let set = |builder: RedisBuilder| builder.layout(Layout::Resque).fetch(Fetch::PlainPop);
    let way = Way { prefix: "resque:", dead: ["LLEN", "resque:failed"], set, later_is_dead: true };
    stays_flat(size(20_000, 200_000), &way);
}
