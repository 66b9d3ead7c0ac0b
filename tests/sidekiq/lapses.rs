//! Jobs whose workers die: how often they are handed out again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Delivery, FetchRequest, JobId, JobState, Source};
use tokio_util::sync::CancellationToken;

use crate::scene::{Scene, Style};

async fn source(redis: &Redis) -> Arc<dyn Source> {
    redis.intake().source.connect().await.expect("a source")
}

/// What is there now, without a wait.
async fn take(source: &Arc<dyn Source>) -> Vec<Delivery> {
    let wanted = FetchRequest::new(NonZeroUsize::MIN, Duration::ZERO);
    source.fetch(&wanted, &CancellationToken::new()).await.expect("fetched")
}

/// As if the worker had died and its lease had run out.
fn lapse(scene: &Scene) {
    for token in scene.server.command(&["ZRANGE", "tidegate:leases", "0", "-1"]).texts() {
        scene.ask(&["ZADD", "tidegate:leases", "XX", "1", &token]);
    }
}

#[tokio::test]
async fn whatever_its_attempts_a_job_that_kills_its_workers_is_given_up_at_the_crash_limit() {
    // Of each what it says of its attempts, and how often it is handed out.
    for (fields, times) in [
        (r#""retry_for":10"#, 3),
        (r#""retry":25"#, 3),
        (r#""retry":true"#, 3),
        (r#""retry":25,"retry_count":10"#, 3),
        (r#""retry":1"#, 2),
        (r#""retry":25,"retry_count":24"#, 1),
        // It goes nowhere when it dies.
        (r#""retry":false"#, 1),
        (r#""retry":25,"dead":false"#, 3),
    ] {
        let Some(scene) = Scene::alone() else { return };
        let redis = scene.redis(Style::Millis);
        let source = source(&redis).await;
        scene.ask(&[
            "LPUSH",
            "queue:default",
            &format!(r#"{{"class":"Kills","args":[],"jid":"k",{fields}}}"#),
        ]);
        for round in 1..=times {
            assert_eq!(take(&source).await.len(), 1, "{fields}: round {round}");
            lapse(&scene);
        }
        assert!(take(&source).await.is_empty(), "{fields}: it comes a {}th time", times + 1);
        let found = redis.backend().inspect().expect("it can").find(&JobId::new("k")).await.expect("asked");
        if fields.contains("false") {
            assert!(found.is_none(), "{fields}: {found:?}");
            continue;
        }
        let dead = found.expect("it is kept");
        let reason = dead.last_error.expect("a reason");
        assert_eq!(dead.state, JobState::Dead, "{fields}");
        assert!(reason.starts_with(&format!("lease expired {times} times")), "{fields}: {reason}");
    }
}
