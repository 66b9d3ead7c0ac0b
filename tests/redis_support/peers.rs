//! The peers work among themselves: then what is seen of them beside Tidegate is Tidegate's doing.

use serde_json::{Value, json};

use crate::peers::{Node, NodeWorker, Ruby, Sidekiq, SidekiqWeb};
use crate::redis::{RedisServer, until};

/// What jobs have told in a list: `peer:began` or `peer:ran`.
fn told(server: &RedisServer, list: &str) -> Vec<Value> {
    let entries = server.command(&["LRANGE", list, "0", "-1"]).texts();
    entries.iter().map(|entry| serde_json::from_str(entry).expect("JSON")).collect()
}

fn args_of(entries: &[Value]) -> Vec<Value> {
    let mut args: Vec<_> = entries.iter().map(|entry| entry["args"].clone()).collect();
    args.sort_by_key(Value::to_string);
    args
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn sidekiq_runs_what_ruby_enqueues_now_later_and_in_bulk() {
    let (true, Some(server)) = (Ruby::is_there(), RedisServer::start()) else { return };
    let url = server.url();
    let now = Ruby::enqueue(&url, "Note", &json!([[1, "a"], [2, null]]), &json!({}));
    let bulk = Ruby::enqueue(&url, "Note", &json!([[3], [4]]), &json!({"bulk": true, "queue": "high"}));
    let late = Ruby::enqueue(&url, "Note", &json!([["late"]]), &json!({"in": 0.5, "retry": 3}));
    assert_eq!((now.len(), bulk.len(), late.len()), (2, 2, 1));
    let seen = Ruby::show(&url);
    assert_eq!(number(&seen["queues"]["high"]["size"]), 2);
    assert_eq!(seen["queues"]["default"]["jobs"][1]["args"], json!([1, "a"]), "the oldest is the last");
    assert_eq!((&seen["scheduled"][0]["jid"], &seen["scheduled"][0]["retry"]), (&json!(late[0]), &json!(3)));

    let mut sidekiq = Sidekiq::start(&url, &["-c", "2", "-q", "high", "-q", "default"]);
    until("all have run", || told(&server, "peer:ran").len() == 5);
    let ran = told(&server, "peer:ran");
    assert_eq!(args_of(&ran), [json!(["late"]), json!([1, "a"]), json!([2, null]), json!([3]), json!([4])]);
    assert!(ran.iter().all(|entry| entry["pid"] == json!(sidekiq.pid())), "{ran:?}");
    assert!(sidekiq.stop().success(), "{}", sidekiq.output());
    assert_eq!(Ruby::show(&url)["stats"]["processed"], json!(5));
}

#[test]
fn sidekiqs_api_sees_what_failed_and_retries_and_buries_it() {
    let (true, Some(server)) = (Ruby::is_there(), RedisServer::start()) else { return };
    let url = server.url();
    let fails = Ruby::enqueue(&url, "Fails", &json!([["on purpose"]]), &json!({"retry": 0}));
    let mended = Ruby::enqueue(&url, "FailsUntilMended", &json!([[1]]), &json!({}));
    let _sidekiq = Sidekiq::start(&url, &["-c", "2"]);
    until("both have failed", || {
        let count = |key: &str| server.command(&["ZCARD", key]).number();
        (count("dead"), count("retry")) == (1, 1)
    });
    let seen = Ruby::show(&url);
    let dead = &seen["dead"][0];
    assert_eq!((&dead["jid"], &dead["error_class"]), (&json!(fails[0]), &json!("ArgumentError")));
    assert_eq!(dead["error_message"], json!("on purpose"));
    assert_eq!(seen["retries"][0]["jid"], json!(mended[0]));

    server.command(&["SET", "peer:mend", "1"]);
    // As if its time had come; chance puts it off by up to ten seconds.
    for job in server.command(&["ZRANGE", "retry", "0", "-1"]).texts() {
        server.command(&["ZADD", "retry", "XX", "1", &job]);
    }
    until("it runs now", || told(&server, "peer:ran").len() == 1);
    assert_eq!(Ruby::json("api.rb", &["retry", "dead", &fails[0]], &url), json!(fails[0]));
    until("it has died again", || server.command(&["ZCARD", "dead"]).number() == 1);
    assert_eq!(told(&server, "peer:began").iter().filter(|entry| entry["class"] == "Fails").count(), 2);
    Ruby::json("api.rb", &["delete", "dead", &fails[0]], &url);
    assert_eq!(server.command(&["ZCARD", "dead"]).number(), 0);
}

#[test]
fn sidekiqs_pages_show_a_busy_process_and_its_buttons_quiet_and_stop_it() {
    let (true, Some(server)) = (Ruby::is_there(), RedisServer::start()) else { return };
    let url = server.url();
    let ids = Ruby::enqueue(&url, "Waits", &json!([["go"]]), &json!({}));
    let mut sidekiq = Sidekiq::start(&url, &["-c", "1"]);
    until("it is busy", || told(&server, "peer:began").len() == 1);
    let web = SidekiqWeb::start(&url);
    assert_eq!((web.get("/").status, web.get("/nowhere").status), (200, 404));
    // What a process is at is told with its heartbeat.
    until("the page shows what it is at", || web.get("/busy").body.contains(&ids[0]));
    let seen = Ruby::show(&url);
    let (process, work) = (&seen["processes"][0], &seen["work"][0]);
    assert_eq!((&process["pid"], number(&process["busy"])), (&json!(sidekiq.pid()), 1));
    assert_eq!((&work["process"], &work["payload"]["jid"]), (&process["identity"], &json!(ids[0])));
    let stats: Value = serde_json::from_str(&web.get("/stats").body).expect("JSON");
    assert_eq!(number(&stats["sidekiq"]["processes"]), 1);

    let identity = process["identity"].as_str().expect("a text");
    web.quiet(identity);
    until("it is quiet", || server.command(&["HGET", identity, "quiet"]).text() == "true");
    assert!(web.get("/busy").body.contains("quiet"));
    web.stop(identity);
    server.command(&["RPUSH", "go", "now"]);
    assert!(sidekiq.wait().success(), "{}", sidekiq.output());
    assert_eq!(told(&server, "peer:ran").len(), 1);
}

#[test]
fn a_form_without_its_token_is_refused() {
    let (true, Some(server)) = (Ruby::is_there(), RedisServer::start()) else { return };
    let web = SidekiqWeb::start(&server.url());
    assert_eq!(web.post("/busy", "quiet=Quiet").status, 403);
}

#[test]
fn node_resque_runs_what_node_enqueues_and_what_failed_can_be_tried_again() {
    let (true, Some(server)) = (Node::is_there(), RedisServer::start()) else { return };
    let url = server.url();
    Node::enqueue(&url, "low", "Note", &json!([[1, "a"], [2]]));
    Node::enqueue(&url, "low", "FailsUntilMended", &json!([["x"]]));
    assert_eq!(Node::json("enqueue.js", &["low", "Note", "[[\"late\"]]", "300"], &url), json!(1));
    assert_eq!(Node::show(&url)["queues"]["low"].as_array().map(Vec::len), Some(3));
    let mut worker = NodeWorker::start(&url, &["high", "low"]);
    until("one has failed", || server.command(&["LLEN", "resque:failed"]).number() == 1);
    until("the others have run", || told(&server, "peer:ran").len() == 3);
    let seen = Node::show(&url);
    let failed = &seen["failed"][0];
    assert_eq!(
        (&failed["payload"]["class"], &failed["error"]),
        (&json!("FailsUntilMended"), &json!("not mended"))
    );
    assert_eq!(seen["workers"].as_object().map(serde_json::Map::len), Some(1), "{seen}");

    server.command(&["SET", "peer:mend", "1"]);
    assert_eq!(Node::json("failed.js", &["retry"], &url), json!(1));
    until("it runs now", || told(&server, "peer:ran").len() == 4);
    assert_eq!(
        args_of(&told(&server, "peer:ran")),
        [json!(["late"]), json!(["x"]), json!([1, "a"]), json!([2])]
    );
    assert!(worker.stop().success(), "{}", worker.output());
    assert_eq!(Node::show(&url)["workers"], json!({}));
}

#[test]
fn the_peers_to_measure_against_run() {
    let Some(server) = RedisServer::start() else { return };
    let mut measured = Vec::new();
    if Ruby::is_there() {
        measured.extend(["5", "20"].map(|threads| Ruby::json("bench.rb", &["300", threads], &server.url())));
    }
    if Node::is_there() {
        measured.push(Node::json("bullmq_bench.js", &["300"], &server.url()));
    }
    for one in measured {
        assert!(number(&one["jobs"]) == 300 && number(&one["jobs_per_second"]) > 0, "{one}");
    }
}

#[test]
fn the_lock_of_the_packages_names_no_host_to_fetch_them_from() {
    let lock = include_str!("../peers/node/package-lock.json");
    assert_eq!(fetched_from_one_place(lock), [""; 0]);
    let other = r#"{"packages": {"": {}, "node_modules/a": {"resolved": "https://example.org/a.tgz"}}}"#;
    assert_eq!(fetched_from_one_place(other), ["node_modules/a"]);
}

/// The packages of which a lock says where they come from: whoever uses another registry could not install them.
fn fetched_from_one_place(lock: &str) -> Vec<String> {
    let lock: Value = serde_json::from_str(lock).expect("JSON");
    let packages = lock["packages"].as_object().expect("a lock of npm");
    let told = packages.iter().filter(|(_, package)| package.get("resolved").is_some());
    told.map(|(name, _)| name.clone()).collect()
}
