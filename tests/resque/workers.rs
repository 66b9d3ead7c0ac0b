//! The list of workers, and the switch that pauses them all.

use std::time::Duration;

use tidegate::NewJob;

use crate::fixture::Scene;

#[tokio::test]
async fn a_worker_stands_in_the_list_with_a_heartbeat_and_no_job_until_it_signs_off() {
    let Some(scene) = Scene::start().await else { return };
    // Of one that was killed an hour ago, and of one that is not ours.
    for name in ["h-tidegate-00000001:1:*", "h:1:*"] {
        scene.ask(&["SADD", "resque:workers", name]);
        scene.ask(&["HSET", "resque:workers:heartbeat", name, "2020-01-01T00:00:00Z"]);
    }
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    scene.take(1, &["priority", "main"]).await;
    assert_eq!(scene.ask(&["SREM", "resque:workers", "h:1:*"]), "1", "others are not ours to remove");
    let name = scene.worker();
    let parts: Vec<&str> = name.split(':').collect();
    assert_eq!(parts.len(), 3, "{name}");
    assert!(parts[0].contains("-tidegate-"), "no worker of Resque has this host: {name}");
    assert_eq!((parts[1], parts[2]), (&*std::process::id().to_string(), "priority,main"));
    let beat = scene.ask(&["HGET", "resque:workers:heartbeat", &name]);
    assert!(
        beat.len() == 20 && beat.starts_with("20") && beat.contains('T') && beat.ends_with('Z'),
        "{beat}"
    );
    let started = scene.ask(&["GET", &format!("resque:worker:{name}:started")]);
    assert!(started.ends_with(" +0000"), "{started}");
    assert_eq!(scene.ask(&["EXISTS", &format!("resque:worker:{name}")]), "0", "a pruner would fail the job");

    scene.redis.sign_off().await.expect("signed off");
    let left: Vec<String> = scene.keys().into_iter().filter(|key| key.contains("tidegate-")).collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(scene.ask(&["SMEMBERS", "resque:workers"]), "");
    assert_eq!(scene.ask(&["HEXISTS", "resque:workers:heartbeat", &name]), "0");
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
