//! Plain pop, as a user who may do what apisonator's access list allows and nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tidegate::backend::redis::{Fetch, Layout, Redis};
use tidegate::service::Presence;
use tidegate::{
    Context, Delivery, ErrorKind, NewJob, Outcome, Queues, Registry, RetryPolicy, Settled, Settlement,
    Shutdown, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Scene, queues_of_apisonator_first, until_async, wanted};
use crate::redis::{APISONATOR_MAY, Options, Proxy, RedisServer, Way};

/// A server with that user, and the URL of that user at this port.
fn server() -> Option<RedisServer> {
    Options::new().user(&format!("app on >secret ~resque:* {APISONATOR_MAY}")).start()
}

fn open(port: u16) -> Redis {
    let builder = Redis::builder(&format!("redis://app:secret@127.0.0.1:{port}"));
    builder.layout(Layout::Resque).fetch(Fetch::PlainPop).open().expect("good settings")
}

async fn scene() -> Option<Scene> {
    let server = server()?;
    let redis = open(server.port());
    let source = redis.intake().source.connect().await.expect("a source");
    Some(Scene { server, redis, source })
}

fn kinds(taken: &[Delivery]) -> Vec<&str> {
    taken.iter().map(|delivery| delivery.job.kind.as_str()).collect()
}

/// What the server has refused to do since it began.
fn refused(server: &RedisServer) -> String {
    server.command(&["ACL", "LOG"]).items().iter().map(|entry| format!("{entry:?}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gets_by_with_the_commands_of_apisonators_list() {
    let Some(scene) = scene().await else { return };
    let ran = Arc::new(Mutex::new(Vec::new()));
    let registry = Registry::new()
        .handle("Report", {
            let ran = ran.clone();
            move |(number,): (u64,), context: Context| {
                ran.lock().expect("not poisoned").push((context.job().queue.to_string(), number));
                async {}
            }
        })
        .handle("Fails", |(): (), _: Context| async { Outcome::fail("boom") });
    // Before the worker begins, so that the order shows.
    for (queue, numbers) in [("stats", 200..210), ("main", 100..190), ("priority", 0..30)] {
        let jobs = numbers.map(|number| NewJob::new("Report", format!("[{number}]")).queue(queue));
        tidegate::Enqueue::enqueue(&scene.redis, jobs.collect()).await.expect("enqueued");
    }
    scene.push(NewJob::new("Fails", "[]").queue("stats")).await;
    scene.ask(&["RPUSH", "resque:queue:stats", "no job"]);
    let worker = Worker::builder(scene.redis.intake(), registry)
        .max_concurrent_jobs(1)
        .queues(Queues::strict(["priority", "main", "stats"]))
        .retry(RetryPolicy::default().max_attempts(1))
        .build()
        .expect("good settings");
    let presence = scene.redis.backend().announce.expect("it has lists");
    let presence = Presence::new(presence, worker.handle());
    let shutdown = Shutdown::new();
    let both = async { tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone())) };
    let look = async {
        until_async("all have run", || scene.ask(&["GET", "resque:stat:processed"]) == "132").await;
        // An idle worker takes what comes.
        scene.push(NewJob::new("Report", "[999]").queue("main")).await;
        until_async("the late one too", || scene.ask(&["GET", "resque:stat:processed"]) == "133").await;
        assert_eq!(scene.worker().split(':').nth(2), Some("priority,main,stats"));
        shutdown.stop();
    };
    tokio::join!(both, look);
    let ran = ran.lock().expect("not poisoned").clone();
    let expected = (0..30).map(|n| ("priority", n)).chain((100..190).map(|n| ("main", n)));
    let expected = expected.chain((200..210).map(|n| ("stats", n))).chain([("main", 999)]);
    assert_eq!(ran, expected.map(|(queue, n)| (queue.to_owned(), n)).collect::<Vec<_>>());
    assert_eq!(scene.ask(&["GET", "resque:stat:failed"]), "2");
    let failed = scene.server.command(&["LRANGE", "resque:failed", "0", "-1"]).texts();
    let failed: Vec<Value> = failed.iter().map(|entry| serde_json::from_str(entry).expect("JSON")).collect();
    let classes: Vec<_> = failed.iter().map(|entry| entry["payload"]["class"].as_str()).collect();
    assert_eq!(classes.len(), 2, "{failed:?}");
    assert!(
        classes.contains(&Some("Fails")) && classes.contains(&Some("Tidegate::Unreadable")),
        "{failed:?}"
    );
    let left: Vec<String> =
        scene.keys().into_iter().filter(|key| !key.starts_with("resque:tidegate:tried")).collect();
    assert_eq!(left, ["resque:failed", "resque:queues", "resque:stat:failed", "resque:stat:processed"]);
    assert_eq!(refused(&scene.server), "");
}

#[tokio::test]
async fn a_job_that_comes_after_the_stop_is_handed_over_all_the_same() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.port());
    let redis = open(proxy.port());
    let source = redis.intake().source.connect().await.expect("a source");
    let stop = CancellationToken::new();
    let wanted = wanted(5, &["main"], Duration::from_secs(60));
    let fetch = source.fetch(&wanted, &stop);
    let late = async {
        until_async("it waits", || server.clients().iter().any(|client| client.contains("cmd=blpop"))).await;
        // The server has given the job away when it is stopped, and nobody has heard of it.
        proxy.hold(Way::ToClient);
        server.command(&["RPUSH", "resque:queue:main", r#"{"class":"Late","args":[]}"#]);
        until_async("it was popped", || server.command(&["LLEN", "resque:queue:main"]).number() == 0).await;
        stop.cancel();
        proxy.release(Way::ToClient);
    };
    let (taken, ()) = tokio::join!(fetch, late);
    assert_eq!(kinds(&taken.expect("stopping is no error")), ["Late"]);
}

#[tokio::test]
async fn a_wait_that_was_dropped_loses_no_job() {
    let Some(scene) = scene().await else { return };
    for number in 0..3 {
        let wanted = wanted(5, &["main"], Duration::from_secs(60));
        let nobody = CancellationToken::new();
        let fetch = scene.source.fetch(&wanted, &nobody);
        let waits = until_async("it waits", || {
            scene.server.clients().iter().any(|client| client.contains("cmd=blpop"))
        });
        tokio::select! {
            taken = fetch => panic!("there was nothing: {taken:?}"),
            () = waits => {}
        }
        // Popped for a fetch that is gone, and then for other queues than those wanted now.
        scene.push(NewJob::new("Kept", format!("[{number}]")).queue("main")).await;
        if number == 1 {
            assert!(scene.fetch(5, &["other"], Duration::from_millis(50)).await.is_empty());
        }
        let taken = scene.take(5, &["main"]).await;
        assert_eq!(&taken[0].job.payload[..], format!("[{number}]").as_bytes());
        scene.settle(&taken[0], Settlement::Ack, "").await;
    }
    assert_eq!(refused(&scene.server), "");
}

#[tokio::test]
async fn what_is_to_be_tried_later_is_among_the_failed_ones_and_its_attempts_count_on() {
    let Some(scene) = scene().await else { return };
    scene.push(NewJob::new("A", "[1]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Retry { after: Duration::from_secs(9) }, "not now").await;
    let entry: Value = serde_json::from_str(&scene.ask(&["LINDEX", "resque:failed", "0"])).expect("JSON");
    assert_eq!((&entry["error"], &entry["queue"]), (&"not now".into(), &"main".into()));
    scene.ask(&["RPUSH", "resque:queue:main", r#"{"class":"A","args":[1]}"#]);
    let again = scene.take(1, &["main"]).await;
    assert_eq!(again[0].attempt, 2);
    scene.settle(&again[0], Settlement::Ack, "").await;
    assert!(scene.keys().iter().all(|key| !key.starts_with("resque:tidegate:tried:")), "{:?}", scene.keys());
}

#[tokio::test]
async fn while_all_workers_are_paused_no_job_is_popped() {
    let Some(scene) = scene().await else { return };
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    scene.ask(&["SET", "resque:pause-all-workers", "true"]);
    assert!(scene.fetch(1, &["main"], Duration::from_millis(300)).await.is_empty());
    assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), "1");
    scene.ask(&["DEL", "resque:pause-all-workers"]);
    assert_eq!(scene.take(1, &["main"]).await.len(), 1);
}

#[tokio::test]
async fn a_job_that_is_put_off_does_not_go_round_and_round() {
    let Some(scene) = scene().await else { return };
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let before = scene.server.info("total_commands_processed").expect("a number");
    let end = tokio::time::Instant::now() + Duration::from_millis(500);
    let mut rounds = 0;
    while tokio::time::Instant::now() < end {
        let taken = scene.take(1, &["main"]).await;
        scene.settle(&taken[0], Settlement::Release { after: Duration::from_secs(1) }, "").await;
        rounds += 1;
    }
    assert!(rounds <= 12, "{rounds} times in half a second, {before} commands before");
}

#[tokio::test]
async fn what_the_server_refuses_to_write_is_settled_later_and_nothing_is_popped_with_it() {
    let Some(scene) = scene().await else { return };
    for number in 0..2 {
        scene.push(NewJob::new("A", format!("[{number}]")).queue("main")).await;
    }
    let taken = scene.take(1, &["main"]).await;
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let settled = [Settled::new(taken[0].tag, Settlement::Reject).because("no luck")];
    let more = wanted(5, &["main"], Duration::ZERO);
    let error = scene.source.exchange(&settled, &more).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), "1", "nobody would have got it");
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let (stale, more) = scene.source.exchange(&settled, &more).await.expect("there is room");
    assert!(stale.0.is_empty());
    assert_eq!(&more[0].job.payload[..], b"[1]");
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "1");
}

/// A full server gets room by what is popped, run and settled; so that goes on.
#[tokio::test]
async fn what_is_no_job_is_not_lost_when_it_can_not_be_written_at_once_and_holds_nothing_up() {
    let Some(scene) = scene().await else { return };
    scene.ask(&["RPUSH", "resque:queue:main", "no job"]);
    for number in 0..2 {
        scene.push(NewJob::new("A", format!("[{number}]")).queue("main")).await;
    }
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let one = wanted(1, &["main"], Duration::ZERO);
    let nobody = CancellationToken::new();
    assert!(scene.source.fetch(&one, &nobody).await.expect("popped").is_empty());
    assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), "2");
    let first = scene.source.fetch(&one, &nobody).await.expect("the next one is popped");
    assert_eq!(&first[0].job.payload[..], b"[0]");
    let done = [Settled::new(first[0].tag, Settlement::Ack)];
    let (stale, second) = scene.source.exchange(&done, &one).await.expect("that needs no room");
    assert!(stale.0.is_empty());
    assert_eq!(&second[0].job.payload[..], b"[1]");
    let done = [Settled::new(second[0].tag, Settlement::Ack)];
    assert!(scene.source.settle(&done).await.expect("that needs no room").0.is_empty());
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "0", "there was no room");
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    // It may be another session that does it.
    let another = scene.redis.intake().source.connect().await.expect("a source");
    assert!(another.fetch(&one, &nobody).await.expect("fetched").is_empty());
    assert!(scene.ask(&["LINDEX", "resque:failed", "0"]).contains("Tidegate::Unreadable"));
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "1");
}

/// One that has failed needs room, and those that are done do not.
#[tokio::test]
async fn what_is_settled_beside_something_that_is_refused_is_settled() {
    let Some(scene) = scene().await else { return };
    for number in 0..3 {
        scene.push(NewJob::new("A", format!("[{number}]")).queue("main")).await;
    }
    let taken = scene.take(2, &["main"]).await;
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let failed = Settled::new(taken[0].tag, Settlement::Reject).because("no luck");
    let done = Settled::new(taken[1].tag, Settlement::Ack);
    let error = scene.source.settle(&[failed.clone(), done.clone()]).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    // The worker has heard of the error alone, and tries each again.
    let one = wanted(1, &["main"], Duration::ZERO);
    let (stale, more) =
        scene.source.exchange(std::slice::from_ref(&done), &one).await.expect("it needs no room");
    assert_eq!((stale.0.len(), more.len()), (0, 1));
    assert_eq!(scene.source.settle(&[done]).await.expect("told").0.len(), 1, "it was heard of before");
    scene.source.settle(std::slice::from_ref(&failed)).await.expect_err("there is no room");
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(scene.source.settle(&[failed]).await.expect("there is room").0.is_empty());
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "1");
}

#[tokio::test]
async fn what_can_not_be_written_does_not_grow_for_ever() {
    let Some(scene) = scene().await else { return };
    let push = [vec!["RPUSH", "resque:queue:main"], vec!["no job"; 2_500]].concat();
    scene.server.command(&push);
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let now = wanted(600, &["main"], Duration::ZERO);
    let nobody = CancellationToken::new();
    for left in ["1900", "1300"] {
        let taken = scene.source.fetch(&now, &nobody).await;
        assert_eq!(taken.is_err(), left == "1300", "{taken:?}");
        assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), left);
    }
    owes_and_pops_nothing(&scene, &["main"], "1300").await;
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    while scene.ask(&["LLEN", "resque:queue:main"]) != "0" {
        assert!(scene.source.fetch(&now, &nobody).await.expect("fetched").is_empty());
    }
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "2500");
}

/// Wants the server to be full, and none of these jobs to be popped as long as others are owed to it.
async fn owes_and_pops_nothing(scene: &Scene, queues: &[&str], left: &str) {
    let error = scene.source.fetch(&wanted(1, queues, Duration::ZERO), &CancellationToken::new()).await;
    assert_eq!(error.expect_err("there is no room").kind(), ErrorKind::Full);
    assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), left);
}

#[tokio::test]
async fn what_was_popped_as_a_pause_began_is_kept_until_it_can_be_put_back() {
    let Some(scene) = scene().await else { return };
    for number in 0..4 {
        scene.push(NewJob::new("A", format!("[{number}]")).queue("main")).await;
    }
    let running = scene.take(1, &["main"]).await;
    scene.ask(&["SET", "resque:pause-all-workers", "true"]);
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    owes_and_pops_nothing(&scene, &["main"], "2").await;
    scene.ask(&["DEL", "resque:pause-all-workers"]);
    owes_and_pops_nothing(&scene, &["main"], "2").await;
    let done = [Settled::new(running[0].tag, Settlement::Ack)];
    let now = wanted(1, &["main"], Duration::ZERO);
    let (stale, taken) = scene.source.exchange(&done, &now).await.expect("that needs no room");
    assert_eq!((stale.0.len(), taken.len()), (0, 0));
    assert_eq!(scene.ask(&["LLEN", "resque:queue:main"]), "2");
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    // It may be another session that does it.
    let another = scene.redis.intake().source.connect().await.expect("a source");
    let now = wanted(5, &["main"], Duration::ZERO);
    let taken = another.fetch(&now, &CancellationToken::new()).await.expect("fetched");
    let payloads: Vec<_> = taken.iter().map(|it| String::from_utf8_lossy(&it.job.payload)).collect();
    assert_eq!(payloads, ["[1]", "[2]", "[3]"]);
}

#[tokio::test]
async fn a_late_job_of_a_queue_that_is_no_longer_wanted_is_kept_until_it_can_be_put_back() {
    let Some(scene) = scene().await else { return };
    let main = wanted(5, &["main"], Duration::from_secs(60));
    let nobody = CancellationToken::new();
    let waits =
        until_async("it waits", || scene.server.clients().iter().any(|client| client.contains("cmd=blpop")));
    tokio::select! {
        taken = scene.source.fetch(&main, &nobody) => panic!("there was nothing: {taken:?}"),
        () = waits => {}
    }
    scene.push(NewJob::new("Kept", "[1]").queue("main")).await;
    scene.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let other = wanted(5, &["other"], Duration::from_millis(50));
    let error = scene.source.fetch(&other, &nobody).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    owes_and_pops_nothing(&scene, &["other"], "0").await;
    scene.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(&scene.take(5, &["main"]).await[0].job.payload[..], b"[1]");
}

#[tokio::test]
async fn of_all_queues_those_of_apisonator_come_first_and_in_its_order() {
    let Some(scene) = scene().await else { return };
    queues_of_apisonator_first(&scene).await;
}
