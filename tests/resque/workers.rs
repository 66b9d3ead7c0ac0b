//! The list of workers, and the switch that pauses them all.

use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::service::Presence;
use tidegate::{Context, NewJob, Queues, Registry, Settlement, Shutdown, Worker};

use crate::fixture::{Scene, until_async};

/// A worker of these queues that waits for its first job, as it is started.
fn worker(redis: &Redis) -> (Worker, Presence) {
    let registry = Registry::new().handle("A", |(): (), _: Context| async {});
    let queues = Queues::strict(["priority", "main"]);
    let worker = Worker::builder(redis.intake(), registry).queues(queues).build().expect("good settings");
    let presence = redis.backend().announce.expect("it has lists");
    let presence =
        Presence::new(presence, worker.handle()).every(Duration::from_millis(50)).expect("a good time");
    (worker, presence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stands_in_the_list_with_a_heartbeat_and_no_job_until_it_has_ended() {
    let Some(scene) = Scene::start().await else { return };
    // Of one that was killed an hour ago, and of one that is not ours.
    for name in ["h-tidegate-00000001:1:*", "h:1:*"] {
        scene.ask(&["SADD", "resque:workers", name]);
        scene.ask(&["HSET", "resque:workers:heartbeat", name, "2020-01-01T00:00:00Z"]);
    }
    let shutdown = Shutdown::new();
    let (worker, presence) = worker(&scene.redis);
    let both = async { tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone())) };
    let look = async {
        let gone = || scene.ask(&["SISMEMBER", "resque:workers", "h-tidegate-00000001:1:*"]) == "0";
        until_async("it has removed the dead one", gone).await;
        assert_eq!(scene.ask(&["SREM", "resque:workers", "h:1:*"]), "1", "others are not ours to remove");
        let name = scene.worker();
        let parts: Vec<&str> = name.split(':').collect();
        assert_eq!(parts.len(), 3, "{name}");
        assert!(parts[0].contains("-tidegate-"), "no worker of Resque has this host: {name}");
        assert_eq!((parts[1], parts[2]), (&*std::process::id().to_string(), "priority,main"));
        let beat = scene.ask(&["HGET", "resque:workers:heartbeat", &name]);
        let in_form = beat.len() == 20 && beat.starts_with("20") && beat.contains('T') && beat.ends_with('Z');
        assert!(in_form, "{beat}");
        let started = scene.ask(&["GET", &format!("resque:worker:{name}:started")]);
        assert!(started.ends_with(" +0000"), "{started}");
        scene.push(NewJob::new("A", "[]").queue("main")).await;
        let counted = format!("resque:stat:processed:{name}");
        until_async("its job is counted", || scene.ask(&["GET", &counted]) == "1").await;
        let busy = scene.ask(&["EXISTS", &format!("resque:worker:{name}")]);
        assert_eq!(busy, "0", "a pruner would fail the job");
        shutdown.stop();
        name
    };
    let (_, name) = tokio::join!(both, look);
    let left: Vec<String> = scene.keys().into_iter().filter(|key| key.contains("-tidegate-")).collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(scene.ask(&["SMEMBERS", "resque:workers"]), "");
    assert_eq!(scene.ask(&["HEXISTS", "resque:workers:heartbeat", &name]), "0");
}

#[tokio::test]
async fn who_does_not_stand_in_the_list_leaves_no_counters_of_its_own() {
    let Some(scene) = Scene::start().await else { return };
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Ack, "").await;
    assert_eq!(scene.ask(&["GET", "resque:stat:processed"]), "1");
    let left: Vec<String> = scene.keys().into_iter().filter(|key| key.contains("stat:processed:")).collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn while_all_workers_are_paused_no_job_is_taken() {
    let Some(scene) = Scene::start().await else { return };
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    scene.ask(&["SET", "resque:pause-all-workers", " True\n"]);
    let before = scene.server.info("total_commands_processed").expect("a number");
    assert!(scene.fetch(1, &["main"], Duration::from_millis(1500)).await.is_empty());
    let after = scene.server.info("total_commands_processed").expect("a number");
    let asked = after.parse::<u64>().expect("a number") - before.parse::<u64>().expect("a number");
    assert!(asked < 60, "{asked} commands in a second and a half: it should wait");
    scene.ask(&["SET", "resque:pause-all-workers", "false"]);
    assert_eq!(scene.take(1, &["main"]).await.len(), 1);
}
