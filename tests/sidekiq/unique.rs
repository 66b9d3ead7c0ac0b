//! Unique keys beside workers of Sidekiq, which know nothing of them.

use tidegate::backend::redis::Redis;
use tidegate::{Enqueue as _, Enqueued, NewJob, Unique};

use crate::scene::{Scene, Style};

/// How far a job is looked for from the old end of its queue.
const LOOKED_THROUGH: usize = 10_000;

async fn enqueue(redis: &Redis) -> Enqueued {
    let job = NewJob::new("A", "[]").unique(Unique::while_queued("k"));
    redis.enqueue(vec![job]).await.expect("the server is there").remove(0)
}

/// As if more than a minute had gone since the job was last seen to wait.
fn a_minute_later(scene: &Scene) {
    let key = "tidegate:unique:1:A:k";
    let there = scene.server.command(&["HGETALL", key]).texts();
    for pair in there.chunks(2) {
        let mut parts: Vec<&str> = pair[1].splitn(4, ';').collect();
        parts[2] = "1";
        scene.ask(&["HSET", key, &pair[0], &parts.join(";")]);
    }
}

/// When it was last seen to wait, in ms.
fn seen_at(scene: &Scene) -> i64 {
    let there = scene.server.command(&["HVALS", "tidegate:unique:1:A:k"]).texts().remove(0);
    there.split(';').nth(2).and_then(|at| at.parse().ok()).expect("a number")
}

/// Puts so many other jobs behind what is there, as producers do.
fn push(scene: &Scene, count: usize) {
    let mut command = vec!["LPUSH", "queue:default"];
    command.extend(vec![r#"{"class":"B","args":[]}"#; count]);
    scene.ask(&command);
}

#[tokio::test]
async fn a_key_whose_job_was_run_elsewhere_is_free_as_soon_as_that_can_be_seen() {
    let Some(scene) = Scene::alone() else { return };
    let redis = scene.redis(Style::Millis);
    push(&scene, LOOKED_THROUGH);
    let first = enqueue(&redis).await;
    let duplicate = Enqueued::Duplicate(first.id().clone());
    a_minute_later(&scene);
    assert_eq!(enqueue(&redis).await, duplicate, "one of too many, so it may be there");
    assert!(seen_at(&scene) > 1, "it is not looked for again at once");
    // As a worker of Sidekiq takes what is next.
    scene.ask(&["RPOP", "queue:default"]);
    a_minute_later(&scene);
    assert_eq!(enqueue(&redis).await, duplicate, "the last that is looked at");

    // It is gone; but it could be farther back than anybody looks.
    scene.ask(&["LPOP", "queue:default"]);
    push(&scene, 2);
    a_minute_later(&scene);
    assert_eq!(enqueue(&redis).await, duplicate);
    scene.ask(&["RPOP", "queue:default"]);
    assert_eq!(scene.count(&["LLEN", "queue:default"]), LOOKED_THROUGH as i64);
    assert_eq!(enqueue(&redis).await, duplicate, "nobody looks twice in a minute");
    a_minute_later(&scene);
    assert!(matches!(enqueue(&redis).await, Enqueued::Created(id) if id != *first.id()));
}
