//! `tidegate run` on a Redis server: it shows itself by itself, and is steered from Sidekiq's API.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::peers::{Ruby, SidekiqWeb};
use crate::redis::{Folder, Process, until};
use crate::scene::{Scene, number};

/// Starts it with these tables in its configuration.
fn start(folder: &Folder, scene: &Scene, tables: &str) -> Process {
    let (file, url) = (folder.file("tidegate.toml"), &scene.url);
    let config =
        format!("source = \"{url}\"\n{tables}\n[log]\nformat = \"json\"\n[kinds.Shout]\nexec = [\"cat\"]\n");
    std::fs::write(&file, config).expect("a file of ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let mut process = Process::start(command.arg("run").arg("--config").arg(file), &folder.file("output"));
    process.says("\"started\"");
    process
}

#[test]
fn the_program_is_on_the_pages_and_a_button_stops_it() {
    let Some(scene) = Scene::with_sidekiq() else { return };
    let folder = Folder::new();
    let mut program = start(&folder, &scene, "[redis]\ntag = \"shop\"\nlabels = [\"eu\"]");
    until("it is announced", || scene.count(&["SCARD", "processes"]) == 1);
    Ruby::enqueue(&scene.url, "Shout", &json!([["hello"]]), &json!({}));
    until("it has run", || Ruby::show(&scene.url)["stats"]["processed"] == json!(1));
    let process = Ruby::show(&scene.url)["processes"][0].clone();
    assert_eq!((&process["tag"], &process["labels"]), (&json!("shop"), &json!(["eu"])));
    assert_eq!((&process["pid"], number(&process["concurrency"])), (&json!(program.pid()), 20));
    let web = SidekiqWeb::start(&scene.url);
    assert!(web.get("/busy").body.contains("shop"));
    web.stop(process["identity"].as_str().expect("a text"));
    assert!(program.wait().success(), "{}", program.output());
    assert!(program.output().contains("\"by\":\"dashboard\""), "{}", program.output());
    assert_eq!(scene.count(&["SCARD", "processes"]), 0);
}

#[test]
fn the_program_hides_if_it_is_told_to() {
    let Some(scene) = Scene::alone() else { return };
    let folder = Folder::new();
    let mut program = start(&folder, &scene, "[redis]\npresence = false");
    let raw = r#"{"class":"Shout","args":[],"jid":"0123456789abcdef01234567"}"#;
    scene.server.command(&["LPUSH", "queue:default", raw]);
    scene.server.command(&["SADD", "queues", "default"]);
    until("it has run", || scene.ask(&["GET", "stat:processed"]) == "1");
    assert!(program.stop().success());
    assert_eq!(scene.count(&["EXISTS", "processes"]), 0);
}

#[test]
fn the_program_takes_leases_as_it_is_told() {
    let Some(scene) = Scene::alone() else { return };
    let folder = Folder::new();
    let raw = r#"{"class":"Long","args":[],"jid":"0123456789abcdef01234567"}"#;
    let poison = r#"{"class":"Long","args":[],"jid":"poison"}"#;
    // One whose lease has run out once.
    let hash = scene.ask(&["EVAL", "return redis.sha1hex(ARGV[1])", "0", poison]);
    scene.server.command(&["SET", "tidegate:lapsed", "1"]);
    scene.server.command(&["SET", &format!("tidegate:lapsed:{hash}"), "1"]);
    scene.server.command(&["LPUSH", "queue:default", poison, raw]);
    scene.server.command(&["SADD", "queues", "default"]);
    let leases = "[worker]\nshutdown_deadline = \"1s\"\n[redis]\nlease_ttl = \"1h\"\nrun_on = \"0s\"\ncrash_limit = 1\n[kinds.Long]\nexec = [\"sleep\", \"1000\"]";
    let mut program = start(&folder, &scene, leases);
    until("one is dead", || scene.count(&["ZCARD", "dead"]) == 1);
    until("one runs", || scene.count(&["ZCARD", "tidegate:leases"]) == 1);
    let lease = scene.server.command(&["ZRANGE", "tidegate:leases", "0", "0", "WITHSCORES"]).texts();
    let left = lease[1].parse::<f64>().expect("when it runs out") / 1000.0 - scene.now();
    assert!((3000.0..=3600.0).contains(&left), "{left} s are left");
    assert!(program.stop().success(), "{}", program.output());
}

#[test]
fn the_program_retries_by_sidekiqs_formula_unless_it_is_told_otherwise() {
    let Some(scene) = Scene::alone() else { return };
    let folder = Folder::new();
    let fails = "exec = [\"false\"]\nretry =";
    let kinds = format!(
        "[kinds.Usual]\nexec = [\"false\"]\n[kinds.Capped]\n{fails} {{ cap = \"5m\" }}\n\
         [kinds.Grows]\n{fails} {{ initial = \"1000s\" }}\n[kinds.Named]\n{fails} {{ formula = \"exponential\" }}\n"
    );
    let mut program = start(&folder, &scene, &kinds);
    let begun = scene.now();
    let waits = [
        ("Usual", 20_751.0, 20_881.0),
        ("Capped", 300.0, 300.0),
        ("Grows", 2700.0, 3600.0),
        ("Named", 2700.0, 3600.0),
    ];
    for (number, (kind, ..)) in waits.iter().enumerate() {
        // The thirteenth attempt of each.
        let raw = format!(r#"{{"class":"{kind}","args":[],"jid":"{number}","retry_count":11}}"#);
        scene.server.command(&["LPUSH", "queue:default", &raw]);
    }
    scene.server.command(&["SADD", "queues", "default"]);
    until("all have failed", || scene.count(&["ZCARD", "retry"]) == 4);
    let ended = scene.now();
    let waiting = scene.server.command(&["ZRANGE", "retry", "0", "-1", "WITHSCORES"]).texts();
    for (kind, least, most) in waits {
        let pair = waiting.chunks(2).find(|pair| pair[0].contains(kind)).expect("it waits");
        let score: f64 = pair[1].parse().expect("a number");
        let (least, most) = (begun + least, ended + most);
        assert!((least..=most).contains(&score), "{pair:?} is not from {least} to {most}");
    }
    assert!(program.stop().success());
}

/// The configuration of a daemon on this source.
fn configuration(folder: &Folder, source: &str) -> PathBuf {
    let file = folder.file("tidegate.toml");
    let config =
        format!("source = \"{source}\"\n[redis]\ntimes_in_seconds = true\n[kinds.Shout]\nexec = [\"cat\"]\n");
    std::fs::write(&file, config).expect("a file of ours");
    file
}

#[test]
fn the_program_writes_times_as_sidekiq_7_does_if_it_is_told_to() {
    let Some(scene) = Scene::alone() else { return };
    let folder = Folder::new();
    let file = configuration(&folder, &scene.url);
    let enqueue = |args: &[&str], variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("enqueue").args(args).args(["Shout", "[]"]);
        variable.map(|value| command.env("TIDEGATE_REDIS__TIMES_IN_SECONDS", value));
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let raw = scene.ask(&["LINDEX", "queue:default", "0"]);
        let job: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
        let of_seconds = |name: &str| job[name].as_f64().is_some_and(|at| at > 1.0e9 && at < 1.0e11);
        assert_eq!(of_seconds("created_at"), of_seconds("enqueued_at"), "{raw}");
        of_seconds("created_at")
    };
    let config = file.to_str().expect("plain ASCII").to_owned();
    let in_url = format!("{}?times=seconds", scene.url);
    assert!(enqueue(&["--config", &config], None));
    assert!(!enqueue(&["--config", &config], Some("false")));
    assert!(enqueue(&["--source", &in_url], None));
    assert!(!enqueue(&["--source", &scene.url], None));
    let mut program = start(&folder, &scene, "[redis]\ntimes_in_seconds = true");
    until("all have run", || scene.ask(&["GET", "stat:processed"]) == "4");
    std::fs::write(&file, format!("source = \"{}\"\n[kinds.Shout]\nexec = [\"cat\"]\n", scene.url))
        .expect("a file of ours");
    program.signal(Signal::HUP);
    program.says("\"redis.times_in_seconds\"");
    assert!(program.stop().success());
    // The year has four digits in the keys of Sidekiq 7, and two in those of 8.
    let charts = scene.server.command(&["KEYS", "j|*"]).texts();
    let day = |key: &String| key.split('|').nth(1).map(str::len);
    assert!(!charts.is_empty() && charts.iter().all(|key| day(key) == Some(8)), "{charts:?}");
}

#[test]
fn times_of_sidekiq_7_are_refused_in_another_layout() {
    let folder = Folder::new();
    let file = configuration(&folder, "redis://localhost?layout=resque");
    for args in [&["run", "--check", "--config"][..], &["enqueue", "Shout", "[]", "--config"]] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).arg(&file).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = "tidegate.toml:3:20: redis.times_in_seconds makes no sense: times are written in Sidekiq's layout only";
        assert!(output.status.code() == Some(78) && said.contains(expected), "{args:?}: {said}");
    }
}
