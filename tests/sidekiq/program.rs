//! `tidegate run` on a Redis server: it shows itself by itself, and is steered from Sidekiq's API.

use std::process::Command;

use serde_json::json;

use crate::peers::{Ruby, SidekiqWeb};
use crate::redis::{Folder, Process, until};
use crate::scene::{Scene, number};

/// Starts it with this in its configuration.
fn start(folder: &Folder, scene: &Scene, redis: &str) -> Process {
    let (file, url) = (folder.file("tidegate.toml"), &scene.url);
    let config =
        format!("source = \"{url}\"\n{redis}\n[log]\nformat = \"json\"\n[kinds.Shout]\nexec = [\"cat\"]\n");
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
