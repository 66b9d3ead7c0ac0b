//! What Sidekiq promises of single jobs and of its sets, kept here over a server.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::backend::redis::Redis;
use tidegate::{Context, JobId, Manage as _, Outcome, Registry};

use crate::peers::Ruby;
use crate::redis::until;
use crate::scene::{Running, Scene, Seen, Style, number, runtime};

const HOUR: f64 = 3600.0;

/// Puts a job into its queue with these fields, beside its class.
fn push(scene: &Scene, class: &str, fields: &str) {
    let raw = format!(r#"{{"class":"{class}",{fields}}}"#);
    scene.ask(&["SADD", "queues", "default"]);
    scene.ask(&["LPUSH", "queue:default", &raw]);
}

fn fails() -> Registry {
    Registry::new().handle_raw("Fails", |_: Context| async { Outcome::fail("no ink") })
}

/// What stands in a set, by the id.
fn in_set(scene: &Scene, set: &str, jid: &str) -> Option<Value> {
    let all = scene.server.command(&["ZRANGE", set, "0", "-1"]).texts();
    let mut all = all.iter().map(|raw| serde_json::from_str::<Value>(raw).expect("JSON"));
    all.find(|job| job["jid"] == json!(jid))
}

#[test]
fn what_was_run_stands_in_sidekiqs_history_of_the_day_for_five_years() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    for number in 0..5 {
        push(&scene, "Good", &format!(r#""args":[{number}]"#));
    }
    push(&scene, "Fails", r#""args":[],"retry":0"#);
    let registry = fails().handle_raw("Good", |_| async {});
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    until("all have run", || scene.ask(&["GET", "stat:processed"]) == "6");
    worker.stop();
    // A day may have ended meanwhile.
    let history = Ruby::json("api.rb", &["history", "2"], &scene.url);
    let sum = |what: &str| -> u64 { history[what].as_object().expect("days").values().map(number).sum() };
    assert_eq!((sum("processed"), sum("failed")), (6, 1), "{history}");
    for what in ["processed", "failed"] {
        for key in scene.server.command(&["KEYS", &format!("stat:{what}:*")]).texts() {
            let ttl = scene.count(&["TTL", &key]);
            assert!((157_670_000..=157_680_000).contains(&ttl), "{key} goes in {ttl} s");
        }
        assert_eq!(scene.count(&["TTL", &format!("stat:{what}")]), -1);
    }
}

#[test]
fn the_dead_are_bounded_by_number_and_the_oldest_go() {
    let Some(scene) = Scene::alone() else { return };
    let redis = Redis::builder(&scene.url).max_dead(3).open().expect("good settings");
    let now = scene.now();
    for age in 1..=5 {
        let score = format!("{}", now - f64::from(age) * HOUR);
        scene.ask(&["ZADD", "dead", &score, &format!("{age} hours")]);
    }
    push(&scene, "Fails", r#""args":[],"jid":"new","retry":0"#);
    let worker = Running::start(&redis, fails());
    until("it is dead", || scene.count(&["ZCARD", "dead"]) == 3);
    worker.stop();
    let kept = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).texts();
    assert_eq!(kept[..2], ["2 hours", "1 hours"]);
    assert!(kept[2].contains(r#""jid":"new""#), "{kept:?}");

    // Who cancels what waits puts it there too.
    scene.ask(&["ZADD", "schedule", "9999999999", r#"{"class":"A","jid":"later","args":[]}"#]);
    let cancelled = runtime().block_on(redis.cancel(&JobId::new("later"))).expect("asked");
    let kept = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).texts();
    assert!(cancelled && kept.len() == 3 && kept[2].contains(r#""jid":"later""#), "{kept:?}");
    assert_eq!(kept[0], "1 hours");
}

#[test]
fn the_dead_are_bounded_by_age() {
    let Some(scene) = Scene::alone() else { return };
    let now = scene.now();
    for (day, dead_for) in [(180.0, None), (2.0, Some(Duration::from_secs(2 * 86_400)))] {
        scene.ask(&["DEL", "dead"]);
        let builder = Redis::builder(&scene.url);
        let builder = match dead_for {
            Some(time) => builder.dead_for(time),
            None => builder,
        };
        let redis = builder.open().expect("good settings");
        for (name, days) in [("too old", day + 0.1), ("old", day - 0.1), ("younger", 1.0)] {
            scene.ask(&["ZADD", "dead", &format!("{}", now - days * 24.0 * HOUR), name]);
        }
        push(&scene, "Fails", r#""args":[],"jid":"new","retry":0"#);
        let worker = Running::start(&redis, fails());
        until("it is dead", || scene.ask(&["ZRANGE", "dead", "-1", "-1"]).contains(r#""jid":"new""#));
        worker.stop();
        let kept = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).texts();
        assert_eq!(kept[..2], ["old", "younger"]);
        assert_eq!(kept.len(), 3);

        scene.ask(&["ZADD", "dead", "1", "ancient"]);
        scene.ask(&["ZADD", "schedule", "9999999999", r#"{"class":"A","jid":"later","args":[]}"#]);
        assert!(runtime().block_on(redis.cancel(&JobId::new("later"))).expect("asked"));
        let kept = scene.server.command(&["ZRANGE", "dead", "0", "-1"]).texts();
        assert_eq!((kept.len(), &*kept[0]), (4, "old"), "{kept:?}");
    }
}

#[test]
fn retry_for_goes_by_the_time_since_the_first_failure_and_not_by_the_count() {
    let Some(scene) = Scene::alone() else { return };
    let ago = |hours: f64| format!("{:.3}", scene.now() - hours * HOUR);
    let fields = |jid: &str, hours: f64, more: &str| {
        let failed_at = ago(hours);
        format!(r#""args":[],"jid":"{jid}","retry_for":7200,"failed_at":{failed_at},"retry_count":90{more}"#)
    };
    push(&scene, "Fails", r#""args":[],"jid":"first","retry_for":7200,"retry":0"#);
    push(&scene, "Fails", &fields("early", 1.0, ""));
    push(&scene, "Fails", &fields("late", 3.0, ""));
    push(&scene, "Fails", &fields("late and gone", 3.0, r#","dead":false"#));
    let worker = Running::start(&scene.redis(Style::Millis), fails());
    until("all have failed", || scene.ask(&["GET", "stat:failed"]) == "4");
    worker.stop();
    for (jid, set) in [("first", "retry"), ("early", "retry"), ("late", "dead")] {
        assert!(in_set(&scene, set, jid).is_some(), "{jid} is not in {set}");
    }
    assert_eq!((scene.count(&["ZCARD", "retry"]), scene.count(&["ZCARD", "dead"])), (2, 1));
    let early = in_set(&scene, "retry", "early").expect("it is there");
    assert_eq!((&early["retry_count"], early["failed_at"].is_f64()), (&json!(91), true), "{early}");
}

#[test]
fn a_job_that_is_not_to_be_kept_goes_nowhere_and_counts_as_failed() {
    let Some(scene) = Scene::alone() else { return };
    push(&scene, "Fails", r#""args":[],"jid":"kept","retry":0"#);
    push(&scene, "Fails", r#""args":[],"jid":"gone","retry":0,"dead":false"#);
    push(&scene, "Fails", r#""args":[],"jid":"once","retry":false"#);
    push(&scene, "Fails", r#""args":[],"jid":"again","retry":1,"dead":false"#);
    let worker = Running::start(&scene.redis(Style::Millis), fails());
    until("all have failed", || scene.ask(&["GET", "stat:failed"]) == "4");
    assert!(in_set(&scene, "dead", "kept").is_some() && in_set(&scene, "retry", "again").is_some());
    scene.make_due("retry");
    until("it has failed again", || scene.ask(&["GET", "stat:failed"]) == "5");
    worker.stop();
    assert_eq!((scene.count(&["ZCARD", "retry"]), scene.count(&["ZCARD", "dead"])), (0, 1));
    assert_eq!(scene.count(&["LLEN", "queue:default"]), 0);
}

#[test]
fn a_retry_goes_to_the_queue_that_was_named_for_it_and_tags_and_all_else_stay() {
    let Some(scene) = Scene::alone() else { return };
    let rest = r#""args":[ 1.50, "\u00e9"],"jid":"j","tags":["a", "\u00e9"],"cattr":{"x":[ ]},"bid":null"#;
    push(&scene, "Fails", &format!(r#""retry_queue":"slow",{rest}"#));
    let worker = Running::start(&scene.redis(Style::Millis), fails());
    until("it has failed", || scene.count(&["ZCARD", "retry"]) == 1);
    worker.stop();
    let stands = scene.server.command(&["ZRANGE", "retry", "0", "-1"]).texts().remove(0);
    assert!(stands.contains(rest) && stands.contains(r#""queue":"slow""#), "{stands}");
    let slow = Registry::new().handle_raw("Fails", |_: Context| async {});
    let only_slow = |worker: tidegate::WorkerBuilder| worker.queues(tidegate::Queues::strict(["slow"]));
    let worker = Running::start_with(&scene.redis(Style::Millis), slow, only_slow, |presence| presence);
    scene.make_due("retry");
    until("it is done from there", || worker.handle.stats().done == 1);
    worker.stop();
    assert_eq!(scene.count(&["SISMEMBER", "queues", "slow"]), 1);
}

#[test]
fn a_job_of_active_job_runs_by_the_class_inside_and_fails_as_what_it_was() {
    let Some(scene) = Scene::alone() else { return };
    let seen = Seen::default();
    let registry = Registry::new()
        .handle_raw("WelcomeMailJob", seen.then(|_| async {}))
        .handle_raw("BrokenMailJob", seen.then(|_| async { Outcome::fail("no stamp") }));
    let wrappers = ["Sidekiq::ActiveJob::Wrapper", "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper"];
    let inside = |class: &str| format!(r#"[{{"job_class":"{class}","job_id":"7b5f","arguments":[1]}}]"#);
    for (number, wrapper) in wrappers.iter().enumerate() {
        for class in ["WelcomeMailJob", "BrokenMailJob"] {
            let args = inside(class);
            push(&scene, wrapper, &format!(r#""wrapped":"{class}","args":{args},"jid":"{class}{number}""#));
        }
    }
    let worker = Running::start(&scene.redis(Style::Millis), registry);
    until("all have run", || seen.len() == 4 && scene.count(&["ZCARD", "retry"]) == 2);
    worker.stop();
    let args: Value = serde_json::from_str(&inside("WelcomeMailJob")).expect("JSON");
    assert_eq!(seen.args().iter().filter(|seen| **seen == args).count(), 2);
    for (number, wrapper) in wrappers.iter().enumerate() {
        let failed = in_set(&scene, "retry", &format!("BrokenMailJob{number}")).expect("it is there");
        assert_eq!((&failed["class"], &failed["wrapped"]), (&json!(wrapper), &json!("BrokenMailJob")));
        assert_eq!(failed["error_message"], json!("no stamp"));
    }
}

#[test]
fn a_job_that_has_no_time_yet_gets_those_of_the_settings() {
    for style in [Style::Seconds, Style::Millis] {
        let Some(scene) = Scene::alone() else { return };
        push(&scene, "Fails", r#""args":[],"jid":"now""#);
        push(&scene, "Fails", r#""args":[],"jid":"dies","retry":0"#);
        scene.ask(&["ZADD", "schedule", "1", r#"{"class":"Fails","args":[],"jid":"later"}"#]);
        let worker = Running::start(&scene.redis(style), fails());
        until("all have failed", || {
            (scene.count(&["ZCARD", "retry"]), scene.count(&["ZCARD", "dead"])) == (2, 1)
        });
        worker.stop();
        let job = |set, jid| in_set(&scene, set, jid).expect("it is there");
        let dead = job("dead", "dies");
        for time in
            [&job("retry", "now")["failed_at"], &job("retry", "later")["enqueued_at"], &dead["failed_at"]]
        {
            assert_eq!(
                (time.is_f64(), time.is_u64()),
                (style == Style::Seconds, style == Style::Millis),
                "{time}"
            );
        }
        assert_eq!(dead["discarded_at"].is_null(), style == Style::Seconds, "{dead}");
    }
}
