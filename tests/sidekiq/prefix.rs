//! Two sets of jobs on one server, each behind a prefix of its own, as with the namespaces of old Sidekiqs.

use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{
    Enqueue as _, Enqueued, Inspect as _, JobState, NewJob, Outcome, Registry, RetryPolicy, Unique,
};
use tokio::runtime::Runtime;

use crate::redis::until;
use crate::scene::{Door, Running, Scene, runtime};

fn enqueue(runtime: &Runtime, redis: &Redis, job: NewJob) -> Enqueued {
    runtime.block_on(redis.enqueue(vec![job])).expect("the server is there").remove(0)
}

#[test]
fn a_unique_key_is_taken_behind_its_own_prefix_only() {
    let Some(scene) = Scene::alone() else { return };
    let runtime = runtime();
    let job = || NewJob::new("A", "[]").unique(Unique::until_done("k1"));
    for prefix in ["a:", "b:", ""] {
        let redis = scene.behind(prefix);
        assert!(matches!(enqueue(&runtime, &redis, job()), Enqueued::Created(_)), "{prefix}");
        assert!(matches!(enqueue(&runtime, &redis, job()), Enqueued::Duplicate(_)), "{prefix}");
        assert_eq!(scene.count(&["LLEN", &format!("{prefix}queue:default")]), 1);
    }
}

#[test]
fn nothing_stands_outside_the_prefix_and_what_others_have_there_is_left_alone() {
    let Some(scene) = Scene::alone() else { return };
    let theirs = ["processes", "tidegate:superseded", "tidegate:order", "x:1:0", "b:x:2:0"];
    scene.ask(&["SADD", "processes", "x:1:0"]);
    scene.ask(&["HSET", "x:1:0", "info", "{}"]);
    scene.ask(&["SET", "tidegate:superseded", "7"]);
    scene.ask(&["SET", "tidegate:order", "7"]);
    // One of its own that is gone, though one of this name is there elsewhere, and one that is there.
    scene.ask(&["SADD", "b:processes", "x:1:0", "x:2:0"]);
    scene.ask(&["HSET", "b:x:2:0", "info", "{}"]);
    let (runtime, redis) = (runtime(), scene.behind("b:"));
    let door = Door::shut();
    let waits = door.clone();
    let registry = Registry::new()
        .handle_raw("Waits", move |_| {
            let waits = waits.clone();
            async move {
                waits.pass().await;
                Outcome::fail("once more")
            }
        })
        .handle_raw("Good", |_| async {})
        .handle_raw("Bad", |_| async { Outcome::reject("bad") });
    let at_once = |worker: tidegate::WorkerBuilder| {
        worker.retry(RetryPolicy::default().initial(Duration::ZERO).cap(Duration::ZERO))
    };
    let worker = Running::start_with(&redis, registry, at_once, |presence| presence);
    for kind in ["Good", "Bad"] {
        enqueue(&runtime, &redis, NewJob::new(kind, "[]"));
        enqueue(&runtime, &redis, NewJob::new(kind, "[]").delay(Duration::from_millis(50)));
    }
    // One payload makes way for another while it runs.
    let newest = |n: u32| {
        NewJob::json("Waits", &[n]).expect("JSON").unique(Unique::while_queued("k").replace_payload())
    };
    enqueue(&runtime, &redis, newest(1));
    until("it runs", || worker.handle.stats().running == 1);
    enqueue(&runtime, &redis, newest(2).delay(Duration::from_secs(3600)));
    door.open();
    until("all have run, and the old one has made way", || {
        let counts = runtime.block_on(redis.counts()).expect("counted");
        (counts.superseded, counts.done, counts.dead, counts.ready) == (1, 2, 2, 0)
    });
    let identity = format!("b:{}", worker.id);
    until("it is announced", || scene.count(&["EXISTS", &identity]) == 1);
    until("the one that is gone is off", || scene.count(&["SISMEMBER", "b:processes", "x:1:0"]) == 0);
    assert_eq!(scene.count(&["SISMEMBER", "b:processes", &worker.id]), 1);
    assert_eq!(scene.count(&["SISMEMBER", "b:processes", "x:2:0"]), 1);
    scene.ask(&["LPUSH", &format!("{identity}-signals"), "TERM"]);
    let id = worker.id.clone();
    worker.end();
    let keys = scene.server.command(&["KEYS", "*"]).texts();
    let outside: Vec<&String> =
        keys.iter().filter(|key| !key.starts_with("b:") && !theirs.contains(&key.as_str())).collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert!(!keys.iter().any(|key| key.contains(&id)), "nothing of it is left: {keys:?}");
    for part in ["b:j|", "b:h|Good", "b:tidegate:unique:", "b:stat:processed", "b:process_cleanup"] {
        assert!(keys.iter().any(|key| key.starts_with(part)), "{part}: {keys:?}");
    }
    let theirs = ["tidegate:superseded", "tidegate:order"].map(|key| scene.ask(&["GET", key]));
    assert_eq!(theirs, ["7", "7"]);
    assert_eq!(scene.ask(&["SMEMBERS", "processes"]), "x:1:0");
    let found = runtime.block_on(redis.list(&tidegate::JobQuery::new(JobState::Delayed, 9)));
    assert_eq!(found.expect("listed").len(), 1, "the newer one still waits");
}
