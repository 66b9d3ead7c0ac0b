//! What is no job, wherever it stands: it goes to the failed ones, from which its bytes can be had, and holds up nothing.

use tidegate::{Context, JobQuery, JobState, Registry, Shutdown, Worker};

use crate::fixture::{Scene, until_async};
use crate::redis::{malformed, mixed, odd};

#[tokio::test]
async fn what_is_no_job_is_among_the_failed_byte_for_byte_wherever_it_stood_and_all_others_run() {
    for place in ["resque:queue:main", "resque:delayed:1"] {
        let Some(scene) = Scene::start().await else { return };
        scene.ask(&["SADD", "resque:queues", "main"]);
        for one in mixed() {
            scene.server.command(&[b"RPUSH", place.as_bytes(), &one]);
        }
        if place != "resque:queue:main" {
            scene.ask(&["ZADD", "resque:delayed_queue_schedule", "1", "1"]);
        }
        let registry = Registry::new().handle_raw("Odd", |_: Context| async {});
        let worker = Worker::builder(scene.redis.intake(), registry).build().expect("good settings");
        let (handle, shutdown) = (worker.handle(), Shutdown::new());
        let running = worker.run(shutdown.clone());
        let both = async {
            let (dead, ran) = (malformed().len().to_string(), odd().len() as u64);
            let what = format!("all of {place} are where they belong");
            until_async(&what, || {
                scene.ask(&["LLEN", "resque:failed"]) == dead && handle.stats().done == ran
            })
            .await;
            shutdown.stop();
        };
        tokio::join!(running, both);
        let backend = scene.redis.backend();
        let wanted = JobQuery::new(JobState::Dead, 1_000);
        let listed = backend.inspect().expect("it can").list(&wanted).await.expect("listed");
        let mut kept: Vec<Vec<u8>> = listed.iter().map(|dead| dead.job.payload.to_vec()).collect();
        let mut expected = malformed();
        kept.sort();
        expected.sort();
        for (kept, expected) in kept.iter().zip(&expected) {
            let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            assert!(kept == expected, "{place}: {} is not {}", shown(kept), shown(expected));
        }
        assert_eq!(kept.len(), expected.len(), "{place}");
        let left: Vec<String> = scene
            .keys()
            .into_iter()
            .filter(|key| {
                !key.contains(":stat:") && !key.contains(":tidegate:token") && !key.contains(":tidegate:seen")
            })
            .collect();
        assert_eq!(left, ["resque:failed", "resque:queues"], "{place}");
    }
}
