//! What is no job, wherever it stands: it goes to the dead ones as it is, and holds up nothing.

use tidegate::{Context, Registry};

use crate::redis::{malformed, mixed, odd, until};
use crate::scene::{Running, Scene, Style};

/// What is to be found among the dead ones.
fn expected() -> Vec<Vec<u8>> {
    let mut all = malformed();
    // Nobody but Resque's payloads does without a queue in this way.
    all.push(b"{\"class\":\"A\",\"queue\":7,\"args\":[]}".to_vec());
    all.sort();
    all
}

fn all() -> Vec<Vec<u8>> {
    let mut all = mixed();
    all.extend(expected().into_iter().filter(|one| !malformed().contains(one)));
    all
}

#[test]
fn what_is_no_job_is_dead_byte_for_byte_wherever_it_stood_and_all_others_run() {
    for place in ["queue:main", "schedule", "retry"] {
        let Some(scene) = Scene::alone() else { return };
        let begun = scene.now();
        scene.ask(&["SADD", "queues", "main"]);
        for one in all() {
            match place {
                "queue:main" => scene.server.command(&[b"LPUSH", place.as_bytes(), &one]),
                _ => scene.server.command(&[b"ZADD", place.as_bytes(), b"1", &one]),
            };
        }
        let registry = Registry::new().handle_raw("Odd", |_: Context| async {});
        let worker = Running::start(&scene.redis(Style::Millis), registry);
        let (dead, ran) = (expected().len() as i64, odd().len() as u64);
        until(&format!("all of {place} are where they belong"), || {
            scene.count(&["ZCARD", "dead"]) >= dead && worker.handle.stats().done == ran
        });
        worker.stop();
        let kept = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).items();
        let mut kept: Vec<Vec<u8>> = kept.into_iter().map(crate::redis::Reply::bytes).collect();
        kept.sort();
        for (kept, expected) in kept.iter().zip(&expected()) {
            let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            assert!(kept == expected, "{place}: {} is not {}", shown(kept), shown(expected));
        }
        assert_eq!(kept.len(), expected().len(), "{place}");
        for key in ["queue:main", "queue:default", "schedule", "retry", "tidegate:held", "tidegate:leases"] {
            assert_eq!(scene.count(&["EXISTS", key]), 0, "{place}: {key}");
        }
        // It is dead since now, however long it has waited: nothing else keeps it.
        let oldest = scene.server.command(&["ZRANGE", "dead", "0", "0", "WITHSCORES"]).items().remove(1);
        assert!(oldest.text().parse::<f64>().is_ok_and(|at| at >= begun.floor()), "{place}: {oldest:?}");
        // As in Sidekiq, what was never run counts nowhere.
        let counts = ["stat:processed", "stat:failed"].map(|key| scene.ask(&["GET", key]));
        assert_eq!(counts, [ran.to_string(), String::new()], "{place}");
    }
}
