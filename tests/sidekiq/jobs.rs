//! Jobs go both ways.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::{Enqueue as _, NewJob, Registry};

use crate::peers::{Ruby, Sidekiq};
use crate::redis::until;
use crate::scene::{Running, Scene, Seen, Style, runtime};

#[test]
fn what_ruby_enqueues_now_later_in_bulk_and_elsewhere_is_run() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let enqueue = |class, args: Value, options: Value| Ruby::enqueue(&scene.url, class, &args, &options);
    let mut ids = enqueue("HardJob", json!([[1, "a"], [2, null]]), json!({}));
    ids.extend(enqueue("HardJob", json!([[3], [4]]), json!({"bulk": true, "queue": "high"})));
    ids.extend(enqueue("HardJob", json!([["late"]]), json!({"in": 0.5, "retry": 3})));
    ids.extend(enqueue("HardJob", json!([[{"n": 1.5}], [[]]]), json!({"bulk": true, "in": 0.3})));
    ids.extend(enqueue("Deep::Down::Job", json!([[]]), json!({"retry": false, "queue": "low"})));
    let seen = Seen::default();
    let registry = Registry::new()
        .handle_raw("HardJob", seen.then(|_| async {}))
        .handle_raw("Deep::Down::Job", seen.then(|_| async {}));
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    until("all have run", || seen.len() == ids.len());
    let report = worker.stop();
    assert_eq!(report.stats.done, 8);
    ids.sort();
    assert_eq!(seen.ids(), ids, "the ids are those that Ruby knows");
    let args: Vec<Value> = vec![
        json!(["late"]),
        json!([1, "a"]),
        json!([2, null]),
        json!([3]),
        json!([4]),
        json!([[]]),
        json!([]),
        json!([{"n": 1.5}]),
    ];
    let mut expected = args;
    expected.sort_by_key(Value::to_string);
    assert_eq!(seen.args(), expected);
    let stats = &Ruby::show(&scene.url)["stats"];
    let counts = ["processed", "failed", "enqueued", "scheduled", "retries", "dead", "processes", "busy"];
    assert_eq!(
        counts.map(|count| stats[count].clone()),
        [8, 0, 0, 0, 0, 0, 0, 0].map(|n| json!(n)),
        "{stats}"
    );
}

#[test]
fn sidekiq_runs_what_is_enqueued_here_now_and_later_in_either_style() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let runtime = runtime();
    let mut ids = Vec::new();
    for style in [Style::Seconds, Style::Millis] {
        let job = |args: &Value| NewJob::json("Note", args).expect("JSON");
        let jobs = vec![
            job(&json!([1, "a"])),
            job(&json!([2])).queue("high"),
            job(&json!(["late"])).delay(Duration::from_millis(500)),
        ];
        let enqueued = runtime.block_on(scene.redis(style).enqueue(jobs)).expect("the server is there");
        ids.extend(enqueued.iter().map(|enqueued| enqueued.id().to_string()));
    }
    let seen = Ruby::show(&scene.url);
    assert_eq!((&seen["stats"]["enqueued"], &seen["stats"]["scheduled"]), (&json!(4), &json!(2)), "{seen}");
    let mut sidekiq = Sidekiq::start(&scene.url, &["-c", "2", "-q", "high", "-q", "default"]);
    until("all have run", || scene.told("peer:ran").len() == 6);
    assert!(sidekiq.stop().success(), "{}", sidekiq.output());
    let ran = scene.told("peer:ran");
    let text = |entry: &Value| entry["jid"].as_str().expect("a text").to_owned();
    let mut jids: Vec<String> = ran.iter().map(text).collect();
    jids.sort();
    ids.sort();
    assert_eq!(jids, ids);
    assert_eq!(ran.iter().filter(|entry| entry["args"] == json!(["late"])).count(), 2);
    assert_eq!(Ruby::show(&scene.url)["stats"]["processed"], json!(6));
}

#[test]
fn both_work_off_one_queue_and_each_job_runs_once() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let seen = Seen::default();
    let registry = Registry::new().handle_raw("Note", seen.then(|_| async {}));
    let _sidekiq = Sidekiq::start(&scene.url, &["-c", "2"]);
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    let args: Vec<Value> = (0..200).map(|number| json!([number])).collect();
    let mut ids = Ruby::enqueue(&scene.url, "Note", &json!(args), &json!({"bulk": true}));
    until("all have run", || seen.len() + scene.told("peer:ran").len() == ids.len());
    let theirs = scene.told("peer:ran");
    let mut ran = seen.ids();
    ran.extend(theirs.iter().map(|entry| entry["jid"].as_str().expect("a text").to_owned()));
    ran.sort();
    ids.sort();
    assert_eq!(ran, ids);
    assert_eq!(worker.stop().stats.done, 200 - theirs.len() as u64);
}
