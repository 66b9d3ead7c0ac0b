//! Sidekiq's own pages, fetched as a browser does, and the buttons on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tidegate::{Outcome, Registry, State};

use crate::peers::{Ruby, SidekiqWeb};
use crate::redis::until;
use crate::scene::{Door, Running, Scene, Style, number};

#[test]
fn the_pages_show_a_worker_and_what_it_is_at_and_their_buttons_quiet_and_stop_it() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let web = SidekiqWeb::start(&scene.url);
    for style in [Style::Seconds, Style::Millis] {
        let door = Door::shut();
        let waits = door.clone();
        let registry = Registry::new().handle_raw("Deep::Thought", move |_| {
            let waits = waits.clone();
            async move { waits.pass().await }
        });
        let ids =
            Ruby::enqueue(&scene.url, "Deep::Thought", &json!([["life", 42]]), &json!({"queue": "slow"}));
        let redis = scene.redis(style);
        let worker = Running::start_with(
            &redis,
            registry,
            |worker| worker.queues(tidegate::Queues::strict(["slow", "default"])),
            |presence| presence.tag("thinker").labels(["blue", "deep"]),
        );
        until("the page shows what it is at", || web.get("/busy").body.contains(&ids[0]));
        let busy = web.get("/busy").body;
        for part in
            ["Deep::Thought", "&quot;life&quot;, 42", "thinker", "blue", "deep", "slow, default", &worker.id]
        {
            assert!(busy.contains(part), "{part}: {busy}");
        }
        let shown = Ruby::show(&scene.url);
        let (process, work) = (&shown["processes"][0], &shown["work"][0]);
        assert_eq!((&process["pid"], number(&process["busy"])), (&json!(std::process::id()), 1));
        assert_eq!((number(&process["concurrency"]), &process["queues"]), (4, &json!(["slow", "default"])));
        assert!(number(&process["rss"]) > 1_000 && number(&process["rtt_us"]) > 0, "{process}");
        assert_eq!((&work["process"], &work["queue"]), (&json!(worker.id), &json!("slow")));
        assert_eq!(
            (&work["payload"]["jid"], &work["payload"]["args"]),
            (&json!(ids[0]), &json!(["life", 42]))
        );
        assert!(work["run_at"].is_u64(), "{work}");
        let stats: Value = serde_json::from_str(&web.get("/stats").body).expect("JSON");
        let stats = &stats["sidekiq"];
        assert_eq!((number(&stats["processes"]), number(&stats["busy"])), (1, 1));

        assert!(!worker.handle.is_quiet());
        web.quiet(&worker.id);
        until("it is quiet", || worker.handle.is_quiet());
        until("the page says so", || web.get("/busy").body.contains("label-danger\">quiet"));
        assert_eq!(worker.handle.stats().state, State::Running);
        web.stop(&worker.id);
        // It drains: the job that runs is done first.
        until("it stops", || worker.handle.is_stopping());
        door.open();
        let (id, report) = (worker.id.clone(), worker.end());
        assert_eq!((report.stats.done, report.held.len()), (1, 0));
        assert!(!web.get("/busy").body.contains(&id), "it is off the page");
        assert_eq!(scene.ask(&["KEYS", &format!("{id}*")]), "", "nothing of it is left");
    }
}

#[test]
fn the_pages_show_what_waits_what_failed_and_what_is_dead() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let web = SidekiqWeb::start(&scene.url);
    let enqueue =
        |class, options: Value| Ruby::enqueue(&scene.url, class, &json!([["x"]]), &options).remove(0);
    let late = enqueue("Late", json!({"in": 3600}));
    let retried = enqueue("Fails", json!({}));
    let dead = enqueue("Fails", json!({"retry": 0}));
    let registry = Registry::new().handle_raw("Fails", |_| async { Outcome::fail("<b>bold</b>") });
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    until("both have failed", || {
        [scene.count(&["ZCARD", "retry"]), scene.count(&["ZCARD", "dead"])] == [1, 1]
    });
    worker.stop();
    let waits = enqueue("Waits", json!({"queue": "idle"}));
    let escaped = "Tidegate::JobFailed: &lt;b&gt;bold&lt;&#x2F;b&gt;";
    for (path, parts) in [
        ("/scheduled", vec!["Late"]),
        ("/retries", vec!["Fails", escaped]),
        ("/morgue", vec!["Fails", escaped]),
        ("/queues", vec!["idle"]),
        ("/queues/idle", vec!["Waits"]),
        ("/", vec!["Dashboard"]),
    ] {
        let page = web.get(path);
        assert_eq!(page.status, 200, "{path}");
        for part in parts {
            assert!(page.body.contains(part), "{path}: {part}: {}", page.body);
        }
    }
    for (set, id) in [("scheduled", &late), ("retries", &retried), ("morgue", &dead)] {
        let zset = match set {
            "scheduled" => "schedule",
            "retries" => "retry",
            _ => "dead",
        };
        let score = scene.server.command(&["ZRANGE", zset, "0", "0", "WITHSCORES"]).texts().remove(1);
        let page = web.get(&format!("/{set}/{score}-{id}"));
        assert!(page.status == 200 || page.status == 302, "{set}: {page:?}");
    }
    assert!(scene.ask(&["LRANGE", "queue:idle", "0", "-1"]).contains(&waits));
    let stats: Value = serde_json::from_str(&web.get("/stats").body).expect("JSON");
    let stats = &stats["sidekiq"];
    let counts = ["processed", "failed", "scheduled", "retries", "dead", "enqueued", "processes", "busy"];
    assert_eq!(counts.map(|count| number(&stats[count])), [2, 2, 1, 1, 1, 1, 0, 0], "{stats}");
}

/// The boxes on a page, each with the id of its job.
fn boxes(web: &SidekiqWeb, path: &str) -> Vec<(String, String)> {
    let boxes = web.get(path).boxes().into_iter();
    let id = |key: &str| key.split_once('-').expect("a score and an id").1.to_owned();
    boxes.map(|key| (id(&key), key)).collect()
}

fn box_of(web: &SidekiqWeb, path: &str, id: &str) -> String {
    let found = boxes(web, path).into_iter().find(|(found, _)| found == id);
    found.unwrap_or_else(|| panic!("{id} is not on {path}")).1
}

#[test]
fn the_buttons_beside_what_failed_and_what_is_dead_retry_kill_and_delete() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let web = SidekiqWeb::start(&scene.url);
    let mended = Arc::new(AtomicBool::new(false));
    let broken = mended.clone();
    let registry = Registry::new().handle_raw("Print", move |_| {
        let mended = broken.load(Ordering::Relaxed);
        async move { if mended { Outcome::Done } else { Outcome::fail("no ink") } }
    });
    let args: Vec<Value> = (0..7).map(|number| json!([number])).collect();
    let ids = Ruby::enqueue(&scene.url, "Print", &json!(args), &json!({}));
    let worker = Running::start(&scene.redis(Style::Seconds), registry);
    let counts = || [scene.count(&["ZCARD", "retry"]), scene.count(&["ZCARD", "dead"])];
    until("all have failed", || counts() == [7, 0]);
    let chosen = |path: &str, id: &str, button: &str, label: &str| {
        web.press(path, &[("key[]", &box_of(&web, path, id)), (button, label)]);
    };
    chosen("/retries", &ids[0], "delete", "Delete");
    assert_eq!(counts(), [6, 0]);
    chosen("/retries", &ids[1], "kill", "Kill");
    assert_eq!((counts(), &boxes(&web, "/morgue")[0].0), ([5, 1], &ids[1]));
    // Of several at once, as with more boxes ticked.
    let two = [box_of(&web, "/retries", &ids[2]), box_of(&web, "/retries", &ids[3])];
    web.press("/retries", &[("key[]", &two[0]), ("key[]", &two[1]), ("kill", "Kill")]);
    assert_eq!(counts(), [3, 3]);
    mended.store(true, Ordering::Relaxed);
    chosen("/retries", &ids[4], "retry", "Retry Now");
    until("it is done", || worker.handle.stats().done == 1);
    assert_eq!(counts(), [2, 3]);
    web.press_on("/retries", "/retries/all/kill", &[("kill", "Kill All")]);
    assert_eq!(counts(), [0, 5]);

    chosen("/morgue", &ids[1], "retry", "Retry Now");
    until("it is done", || worker.handle.stats().done == 2);
    chosen("/morgue", &ids[2], "delete", "Delete");
    assert_eq!(counts(), [0, 3]);
    // On the page of one job.
    let path = format!("/morgue/{}", box_of(&web, "/morgue", &ids[3]));
    web.press(&path, &[("retry", "Retry Now")]);
    until("it is done", || worker.handle.stats().done == 3);
    web.press_on("/morgue", "/morgue/all/retry", &[("retry", "Retry All")]);
    until("all are done", || worker.handle.stats().done == 5);
    assert_eq!((counts(), worker.stop().stats.done), ([0, 0], 5));
    assert!(web.get("/morgue").boxes().is_empty());
}

#[test]
fn the_api_quiets_and_stops_a_worker_too() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let worker = Running::start(&scene.redis(Style::Seconds), Registry::new().handle_raw("A", |_| async {}));
    until("it is announced", || scene.count(&["SCARD", "processes"]) == 1);
    // Both at once are heard at once.
    assert_eq!(Ruby::json("api.rb", &["quiet", &worker.id], &scene.url), json!([worker.id]));
    assert_eq!(Ruby::json("api.rb", &["stop", "all"], &scene.url), json!([worker.id]));
    let handle = worker.handle.clone();
    worker.end();
    assert!(handle.is_quiet() && handle.stats().state == State::Ended);
    assert_eq!(Ruby::show(&scene.url)["stats"]["processes"], json!(0));
}
