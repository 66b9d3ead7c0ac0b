//! The presence by itself: what it writes, how long that stands, and what an outage or a blocked worker does to it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::service::Presence;
use tidegate::{Enqueue as _, NewJob, Outcome, Registry, Shutdown, Worker};

use crate::redis::{Proxy, until};
use crate::scene::{BEAT, Door, Running, Scene, Style, runtime};

fn enqueue(scene: &Scene, kind: &str, count: usize) {
    let jobs = (0..count).map(|number| NewJob::json(kind, &[number]).expect("JSON")).collect();
    runtime().block_on(scene.redis(Style::Millis).enqueue(jobs)).expect("the server is there");
}

/// The sum of a field over all keys that begin so.
fn sum(scene: &Scene, pattern: &str, field: &str) -> i64 {
    let keys = scene.server.command(&["KEYS", pattern]).texts();
    keys.iter().map(|key| scene.ask(&["HGET", key, field]).parse::<i64>().unwrap_or(0)).sum()
}

/// By the minute, `H:MM`, and by ten minutes, `H:M`.
const MINUTES: &str = "j|??????|*:??";
const TENS: &str = "j|??????|*:?";

#[test]
fn what_it_tells_stands_in_every_form_that_sidekiq_reads_and_for_a_minute() {
    let Some(scene) = Scene::alone() else { return };
    let door = Door::shut();
    let waits = door.clone();
    let registry = Registry::new().handle_raw("Waits", move |_| {
        let waits = waits.clone();
        async move { waits.pass().await }
    });
    let raw = r#"{ "class":"Waits", "args":["\u00e9",1e3], "jid":"0123456789abcdef01234567", "unknown":{"b":1,"a":2},"retry":true}"#;
    scene.server.command(&["LPUSH", "queue:q", raw]);
    scene.server.command(&["SADD", "queues", "q"]);
    let worker = Running::start(&scene.redis(Style::Millis), registry);
    let (work, workers) = (format!("{}:work", worker.id), format!("{}:workers", worker.id));
    until("it is busy", || scene.count(&["HLEN", &work]) == 1);
    for key in [&work, &workers] {
        let told = scene.server.command(&["HGETALL", key]).texts();
        assert!(told[0].chars().all(|char| char.is_ascii_digit() || char.is_ascii_lowercase()), "{told:?}");
        let told: Value = serde_json::from_str(&told[1]).expect("JSON");
        assert_eq!((&told["payload"], &told["queue"]), (&json!(raw), &json!("q")), "byte for byte");
        assert!(told["run_at"].as_u64().is_some_and(|at| at > 1_000_000_000), "{told}");
    }
    for key in [&worker.id, &work, &workers] {
        assert!((1..=60).contains(&scene.count(&["TTL", key])), "{key}");
    }
    let field = |name: &str| scene.ask(&["HGET", &worker.id, name]);
    assert_eq!([field("busy"), field("concurrency"), field("quiet")], ["1", "4", "false"]);
    assert!(field("beat").parse::<f64>().is_ok_and(|at| at > 1.0e9));
    let info: Value = serde_json::from_str(&field("info")).expect("JSON");
    assert_eq!((&info["identity"], &info["concurrency"]), (&json!(worker.id), &json!(4)));
    assert_eq!((&info["queues"], &info["weights"]), (&json!(["q"]), &json!([{"q": 0}])), "{info}");
    assert_eq!(info["capsules"]["default"], json!({"concurrency": 4, "mode": "strict", "weights": {"q": 0}}));
    assert_eq!(
        (&info["embedded"], &info["tag"], &info["labels"]),
        (&json!(false), &json!("tidegate"), &json!([]))
    );
    let parts: Vec<&str> = worker.id.split(':').collect();
    assert_eq!((parts.len(), parts[1], parts[2].len()), (3, &*std::process::id().to_string(), 12));
    assert_eq!((&info["hostname"], &info["pid"]), (&json!(parts[0]), &json!(std::process::id())));
    assert!(info["started_at"].is_f64() && info["version"].is_string(), "{info}");
    door.open();
    until("it is idle", || scene.count(&["EXISTS", &work, &workers]) == 0 && field("busy") == "0");
    worker.stop();
    assert_eq!(scene.ask(&["KEYS", "*:*:*"]).lines().filter(|key| !key.starts_with("stat:")).count(), 0);
    assert_eq!(scene.count(&["SCARD", "processes"]), 0);
}

#[test]
fn what_has_run_is_charted_by_class_and_by_time() {
    let Some(scene) = Scene::alone() else { return };
    enqueue(&scene, "Good", 30);
    enqueue(&scene, "Bad", 3);
    let registry = Registry::new()
        .handle_raw("Good", |_| async {})
        .handle_raw("Bad", |_| async { Outcome::reject("bad") })
        .handle_raw("Idle", |_| async {});
    let worker = Running::start(&scene.redis(Style::Millis), registry);
    until("it is charted", || sum(&scene, MINUTES, "Good|p") == 30 && sum(&scene, MINUTES, "Bad|f") == 3);
    // What ran between two beats is not told again.
    let beat = scene.ask(&["HGET", &worker.id, "beat"]);
    until("it has beaten again", || scene.ask(&["HGET", &worker.id, "beat"]) != beat);
    worker.stop();
    for keys in [MINUTES, TENS] {
        let of = |field| sum(&scene, keys, field);
        assert_eq!(
            [of("Good|p"), of("Good|f"), of("Bad|p"), of("Bad|f"), of("Idle|p")],
            [30, 0, 3, 3, 0],
            "{keys}"
        );
        assert_eq!(of("Bad|ms"), 0, "those that failed are not timed");
    }
    let ttl = |pattern: &str| scene.count(&["TTL", &scene.server.command(&["KEYS", pattern]).texts()[0]]);
    assert!((1..=8 * 3600).contains(&ttl(MINUTES)) && (8 * 3600..=3 * 86_400).contains(&ttl(TENS)));
    assert!((1..=8 * 3600).contains(&ttl("h|Good-*")));
    let grams = scene.server.command(&["KEYS", "h|*"]).texts();
    assert!(grams.iter().all(|key| key.starts_with("h|Good-")), "{grams:?}");
    let mut timed = 0;
    for key in &grams {
        for place in 0..26 {
            timed += scene.count(&["BITFIELD", key, "GET", "u16", &format!("#{place}")]);
        }
    }
    assert_eq!(timed, 30);
    assert_eq!((scene.count(&["GET", "stat:processed"]), scene.count(&["GET", "stat:failed"])), (33, 3));
}

#[test]
fn with_times_in_seconds_what_has_run_is_charted_as_sidekiq_7_reads_it() {
    let Some(scene) = Scene::alone() else { return };
    enqueue(&scene, "Good", 3);
    let worker =
        Running::start(&scene.redis(Style::Seconds), Registry::new().handle_raw("Good", |_| async {}));
    until("it is charted", || sum(&scene, "j|????????|*:*", "Good|p") == 3);
    worker.stop();
    assert_eq!(sum(&scene, MINUTES, "Good|p") + sum(&scene, TENS, "Good|p"), 0);
}

#[test]
fn an_outage_loses_no_count_and_it_comes_back_by_itself() {
    let Some(mut scene) = Scene::alone() else { return };
    let registry = Registry::new().handle_raw("Good", |_| async {});
    let worker = Running::start(&scene.redis(Style::Millis), registry);
    until("it is announced", || scene.count(&["EXISTS", &worker.id]) == 1);
    for round in 1..=3 {
        scene.server.kill();
        scene.server.restart();
        enqueue(&scene, "Good", 10);
        until("it is announced again", || scene.count(&["SISMEMBER", "processes", &worker.id]) == 1);
        until("it has run", || worker.handle.stats().done == round * 10);
        until("all is told", || sum(&scene, MINUTES, "Good|p") == 10);
    }
    let report = worker.stop();
    assert_eq!((report.stats.done, scene.count(&["SCARD", "processes"])), (30, 0));
    until("no connection is left", || scene.server.clients().is_empty());
}

#[test]
fn what_could_not_be_told_during_an_outage_is_told_after_it() {
    let Some(scene) = Scene::alone() else { return };
    let proxy = Proxy::start(scene.server.port());
    let redis = scene.redis(Style::Millis);
    // The jobs come another way than the word of them goes.
    let seen =
        tidegate::backend::redis::Redis::open(&scene.server.url_through(proxy.port())).expect("a good URL");
    let registry = Registry::new().handle_raw("Good", |_| async {});
    let worker = Worker::builder(redis.intake(), registry).build().expect("good settings");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    let presence = Presence::new(Arc::new(seen), worker.handle()).every(BEAT).expect("a good time");
    let id = presence.id().to_owned();
    let runtime = runtime();
    std::thread::scope(|threads| {
        let both = async { tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown.clone())) };
        let stop = StopAtEnd(&shutdown);
        let running =
            std::thread::Builder::new().spawn_scoped(threads, || runtime.block_on(both)).expect("a thread");
        until("it is announced", || scene.count(&["EXISTS", &id]) == 1);
        proxy.refuse();
        proxy.close();
        until("nothing comes through", || proxy.open() == 0);
        scene.server.command(&["DEL", &id]);
        enqueue(&scene, "Good", 25);
        until("they have run", || handle.stats().done == 25);
        assert_eq!((sum(&scene, MINUTES, "Good|p"), scene.count(&["EXISTS", &id])), (0, 0));
        proxy.accept();
        until("all is told", || sum(&scene, MINUTES, "Good|p") == 25);
        assert_eq!(scene.count(&["EXISTS", &id]), 1);
        drop(stop);
        running.join().expect("it ends");
    });
    assert_eq!(sum(&scene, TENS, "Good|p"), 25);
}

/// However a test ends, the worker does.
struct StopAtEnd<'s>(&'s Shutdown);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn it_beats_on_while_every_thread_of_the_jobs_is_blocked() {
    let Some(scene) = Scene::alone() else { return };
    let (release, wait) = std::sync::mpsc::sync_channel::<()>(8);
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let registry = Registry::new().handle_raw("Blocks", move |_| {
        let wait = wait.clone();
        async move {
            let _ = wait.lock().expect("nobody panics").recv_timeout(Duration::from_secs(30));
        }
    });
    enqueue(&scene, "Blocks", 4);
    let worker = Running::start(&scene.redis(Style::Millis), registry);
    // Two threads run jobs here, and four jobs hold them.
    until("it is busy", || scene.ask(&["HGET", &worker.id, "busy"]) == "4");
    for _ in 0..5 {
        let beat = scene.ask(&["HGET", &worker.id, "beat"]);
        until("it beats on", || scene.ask(&["HGET", &worker.id, "beat"]) != beat);
    }
    assert_eq!(worker.handle.stats().done, 0);
    drop(release);
    until("all are done", || worker.handle.stats().done == 4);
    worker.stop();
}

#[test]
fn it_ends_in_time_when_the_server_does_not_answer_and_nothing_of_it_stands_for_ever() {
    let Some(mut scene) = Scene::alone() else { return };
    let registry = Registry::new().handle_raw("Good", |_| async {});
    let short = |worker: tidegate::WorkerBuilder| worker.shutdown_deadline(Duration::from_secs(2));
    let worker = Running::start_with(&scene.redis(Style::Millis), registry, short, |presence| presence);
    until("it is announced", || scene.count(&["EXISTS", &worker.id]) == 1);
    scene.server.pause();
    let (id, begun) = (worker.id.clone(), now());
    worker.stop();
    let took = begun.elapsed();
    scene.server.resume();
    assert!(took < Duration::from_secs(4), "{took:?}");
    // The server finds what was sent to it when it goes on.
    assert_ne!(scene.count(&["TTL", &id]), -1, "what it could not take back runs out");
}

#[test]
fn one_that_is_dropped_takes_back_what_it_told() {
    let Some(scene) = Scene::alone() else { return };
    let redis = scene.redis(Style::Millis);
    let registry = Registry::new().handle_raw("Good", |_| async {});
    let worker = Worker::builder(redis.intake(), registry).build().expect("good settings");
    let presence = Presence::new(Arc::new(redis.clone()), worker.handle()).every(BEAT).expect("a good time");
    let id = presence.id().to_owned();
    let runtime = runtime();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_on(presence.run(Shutdown::new()), runtime.handle());
    until("it is announced", || scene.count(&["EXISTS", &id]) == 1);
    tasks.abort_all();
    until("it is gone", || scene.ask(&["KEYS", &format!("{id}*")]).is_empty());
    assert_eq!(scene.count(&["SCARD", "processes"]), 0);
}

#[test]
fn processes_that_have_died_are_taken_off() {
    let Some(scene) = Scene::alone() else { return };
    scene.server.command(&["SADD", "processes", "dead:1:000000000000", "alive:2:000000000000"]);
    scene.server.command(&["HSET", "alive:2:000000000000", "info", "{}"]);
    let worker = Running::start(&scene.redis(Style::Millis), Registry::new().handle_raw("A", |_| async {}));
    until("the dead one is off", || scene.count(&["SISMEMBER", "processes", "dead:1:000000000000"]) == 0);
    assert_eq!(scene.count(&["SISMEMBER", "processes", "alive:2:000000000000"]), 1);
    assert!((1..=60).contains(&scene.count(&["TTL", "process_cleanup"])));
    worker.stop();
}

#[test]
fn a_time_between_beats_that_makes_no_sense_is_refused() {
    let redis = tidegate::backend::redis::Redis::open("redis://127.0.0.1/").expect("a good URL");
    let worker = Worker::builder(redis.intake(), Registry::new().handle_raw("A", |_| async {})).build();
    let worker = worker.expect("good settings");
    let presence = || Presence::new(Arc::new(redis.clone()), worker.handle());
    for bad in [Duration::ZERO, Duration::from_secs(26)] {
        let error = presence().every(bad).expect_err("it makes no sense");
        assert!(error.is_invalid_input() && error.to_string().contains("every"), "{error}");
    }
    assert!(presence().every(Duration::from_secs(25)).is_ok());
    assert_ne!(presence().id(), presence().id());
}

#[expect(clippy::disallowed_methods, reason = "real threads and a real server")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
