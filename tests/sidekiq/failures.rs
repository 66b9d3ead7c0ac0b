//! What fails at one is seen, retried, given up or deleted by the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tidegate::{Outcome, Registry};

use crate::peers::{Ruby, Sidekiq};
use crate::redis::until;
use crate::scene::{Running, Scene, Seen, Style, number};

/// A handler that fails until it is mended.
fn fragile(seen: &Seen, mended: &Arc<AtomicBool>) -> Registry {
    let mended = mended.clone();
    let handler = seen.then(move |_| {
        let mended = mended.load(Ordering::Relaxed);
        async move { if mended { Outcome::Done } else { Outcome::fail("no ink") } }
    });
    Registry::new().handle_raw("Print", handler)
}

fn show(scene: &Scene) -> Value {
    Ruby::show(&scene.url)
}

fn api(scene: &Scene, args: &[&str]) {
    Ruby::json("api.rb", args, &scene.url);
}

#[test]
fn what_fails_here_stands_in_sidekiqs_retries_and_is_retried_from_there() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let (seen, mended) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let ids = Ruby::enqueue(&scene.url, "Print", &json!([["page"]]), &json!({"queue": "paper"}));
    let worker = Running::start(&scene.redis(Style::Seconds), fragile(&seen, &mended));
    until("it has failed", || scene.count(&["ZCARD", "retry"]) == 1);
    let shown = show(&scene);
    let retry = &shown["retries"][0];
    assert_eq!(
        (&retry["jid"], &retry["class"], &retry["queue"]),
        (&json!(ids[0]), &json!("Print"), &json!("paper"))
    );
    assert_eq!((&retry["error_message"], &retry["retry_count"]), (&json!("no ink"), &json!(0)));
    assert_eq!(retry["error_class"], json!("Tidegate::JobFailed"));
    let (enqueued, failed) = (retry["enqueued_at"].as_f64(), retry["failed_at"].as_f64());
    assert!(failed.is_some_and(|at| at > 1.0e9 && at < 1.0e11) && failed >= enqueued, "{retry}");

    // The API takes one off the count, and what fails again is counted on.
    api(&scene, &["retry", "retry", &ids[0]]);
    until("it has failed again", || seen.len() == 2 && scene.count(&["ZCARD", "retry"]) == 1);
    mended.store(true, Ordering::Relaxed);
    api(&scene, &["retry", "retry", &ids[0]]);
    until("it is done", || worker.handle.stats().done == 1);
    let stats = &show(&scene)["stats"];
    let counts = ["processed", "failed", "retries", "dead", "enqueued"].map(|name| number(&stats[name]));
    assert_eq!(counts, [3, 2, 0, 0, 0]);
    worker.stop();
}

#[test]
fn a_retry_can_be_deleted_or_killed_from_the_api() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let (seen, mended) = (Seen::default(), Arc::default());
    let ids = Ruby::enqueue(&scene.url, "Print", &json!([[1], [2]]), &json!({}));
    let worker = Running::start(&scene.redis(Style::Seconds), fragile(&seen, &mended));
    until("both have failed", || scene.count(&["ZCARD", "retry"]) == 2);
    api(&scene, &["delete", "retry", &ids[0]]);
    api(&scene, &["kill", "retry", &ids[1]]);
    let shown = show(&scene);
    assert_eq!((&shown["retries"], &shown["dead"][0]["jid"]), (&json!([]), &json!(ids[1])));
    mended.store(true, Ordering::Relaxed);
    api(&scene, &["retry", "dead", &ids[1]]);
    until("it is done", || worker.handle.stats().done == 1);
    assert_eq!((seen.len(), worker.stop().stats.done), (3, 1));
}

#[test]
fn what_is_given_up_here_stands_among_the_dead_and_runs_again_from_there() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let (seen, mended) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let none = Ruby::enqueue(&scene.url, "Print", &json!([["once"]]), &json!({"retry": 0}));
    let two = Ruby::enqueue(&scene.url, "Print", &json!([["twice"]]), &json!({"retry": 1}));
    Ruby::enqueue(&scene.url, "Print", &json!([["forgotten"]]), &json!({"retry": false}));
    let worker = Running::start(&scene.redis(Style::Seconds), fragile(&seen, &mended));
    until("all have failed", || seen.len() == 3 && scene.count(&["ZCARD", "retry"]) == 1);
    scene.make_due("retry");
    until("both are dead", || scene.count(&["ZCARD", "dead"]) == 2);
    let shown = show(&scene);
    let dead = shown["dead"].as_array().expect("a list");
    let of = |id: &str| dead.iter().find(|job| job["jid"] == json!(id)).expect("it is there");
    assert_eq!((&of(&none[0])["retry_count"], &of(&two[0])["retry_count"]), (&json!(0), &json!(1)));
    assert!(dead.iter().all(|job| job["error_message"] == json!("no ink")), "{dead:?}");
    assert_eq!((number(&shown["stats"]["failed"]), number(&shown["stats"]["processed"])), (4, 4));

    mended.store(true, Ordering::Relaxed);
    api(&scene, &["retry", "dead", &none[0]]);
    until("it is done", || worker.handle.stats().done == 1);
    api(&scene, &["delete", "dead", &two[0]]);
    assert_eq!(show(&scene)["dead"], json!([]));
    worker.stop();
}

#[test]
fn a_worker_that_was_given_no_policy_retries_by_sidekiqs_formula_and_gives_up_with_it() {
    let Some(scene) = Scene::alone() else { return };
    // How each stands after its last failure, and its wait after the next: count ** 4 + 15, and less than
    // 10 * (count + 1) more.
    const WAITS: [(&str, u64, u64); 3] = [
        (r#""jid":"a","retry_count":2"#, 96, 136),
        (r#""jid":"b","retry_count":10"#, 14_656, 14_776),
        (r#""jid":"c","retry_count":23"#, 331_791, 332_041),
    ];
    let begun = scene.now();
    for fields in WAITS.map(|(fields, ..)| fields).iter().chain(&[r#""jid":"d","retry_count":24"#]) {
        scene.ask(&["LPUSH", "queue:default", &format!(r#"{{"class":"Print","args":[],{fields}}}"#)]);
    }
    scene.ask(&["SADD", "queues", "default"]);
    let registry = Registry::new().handle_raw("Print", |_| async { Outcome::fail("no ink") });
    let worker =
        Running::start_with(&scene.redis(Style::Millis), registry, |worker| worker, |presence| presence);
    until("all have failed", || worker.handle.stats().failed == 4 && scene.count(&["ZCARD", "retry"]) == 3);
    let ended = scene.now();
    let waiting = scene.server.command(&["ZRANGE", "retry", "0", "-1", "WITHSCORES"]).texts();
    for (pair, (fields, least, most)) in waiting.chunks(2).zip(WAITS) {
        let jid = fields.split(',').next().expect("an id");
        assert!(pair[0].contains(jid), "{pair:?} is not {fields}");
        let score: f64 = pair[1].parse().expect("a number");
        let (least, most) = (begun + least as f64, ended + most as f64);
        assert!((least..most).contains(&score), "{pair:?} is not from {least} to {most}");
    }
    // The failure of the 26th attempt, which is the 25th retry, is the last.
    let dead = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).texts();
    assert!(dead.len() == 1 && dead[0].contains(r#""jid":"d""#), "{dead:?}");
    worker.stop();
}

#[test]
fn what_fails_at_sidekiq_is_retried_here() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let ids = Ruby::enqueue(&scene.url, "FailsUntilMended", &json!([[7]]), &json!({"retry": 5}));
    let mut sidekiq = Sidekiq::start(&scene.url, &["-c", "1"]);
    until("it has failed there", || scene.count(&["ZCARD", "retry"]) == 1);
    assert!(sidekiq.stop().success(), "{}", sidekiq.output());
    let failed = number(&show(&scene)["stats"]["failed"]);
    let seen = Seen::default();
    let attempts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let handler = seen.then(move |context: tidegate::Context| {
        noted.lock().expect("nobody panics").push(context.attempt());
        async {}
    });
    let worker =
        Running::start(&scene.redis(Style::Seconds), Registry::new().handle_raw("FailsUntilMended", handler));
    scene.make_due("retry");
    until("it is done here", || worker.handle.stats().done == 1);
    assert_eq!((seen.ids(), seen.args()), (ids, vec![json!([7])]));
    assert_eq!(*attempts.lock().expect("nobody panics"), [u32::try_from(failed).expect("few") + 1]);
    worker.stop();
}

#[test]
fn what_fails_here_is_retried_at_sidekiq() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let ids = Ruby::enqueue(&scene.url, "Note", &json!([["x"]]), &json!({}));
    let registry = Registry::new().handle_raw("Note", |_| async { Outcome::fail("not today") });
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    until("it has failed here", || scene.count(&["ZCARD", "retry"]) == 1);
    worker.stop();
    let _sidekiq = Sidekiq::start(&scene.url, &["-c", "1"]);
    scene.make_due("retry");
    until("it has run there", || scene.told("peer:ran").len() == 1);
    assert_eq!(scene.told("peer:ran")[0]["jid"], json!(ids[0]));
}
