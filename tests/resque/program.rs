//! `tidegate run` on a Redis server in Resque's layout, which its source's URL says.

use std::process::Command;

use tidegate::NewJob;

use crate::fixture::Scene;
use crate::redis::{Folder, Process, until};

/// Starts it on this source, with this in its configuration.
pub(crate) fn start(folder: &Folder, source: &str, more: &str) -> Process {
    let file = folder.file("tidegate.toml");
    let config = format!(
        "source = \"{source}\"\n{more}\n[worker]\nqueues = [\"priority\", \"main\"]\n\
         [log]\nformat = \"json\"\n[kinds.A]\nexec = [\"cat\"]\n"
    );
    std::fs::write(&file, config).expect("a file of ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let mut process = Process::start(command.arg("run").arg("--config").arg(file), &folder.file("output"));
    process.says("\"started\"");
    process
}

/// What is left of a worker in the list, and beside it.
fn left(scene: &Scene) -> Vec<String> {
    let mut left: Vec<String> = scene.keys().into_iter().filter(|key| key.contains("-tidegate-")).collect();
    left.extend(scene.server.command(&["SMEMBERS", "resque:workers"]).texts());
    left.extend(scene.server.command(&["HKEYS", "resque:workers:heartbeat"]).texts());
    left
}

#[tokio::test]
async fn the_program_stands_in_the_list_of_workers_until_it_stops() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let mut program = start(&folder, &format!("{}?layout=resque", scene.server.url()), "");
    until("it stands there", || scene.ask(&["SCARD", "resque:workers"]) == "1");
    let pid = program.pid().to_string();
    assert_eq!(scene.worker().split(':').skip(1).collect::<Vec<_>>(), [&*pid, "priority,main"]);
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    until("it has run", || scene.ask(&["GET", "resque:stat:processed"]) == "1");
    assert!(program.stop().success(), "{}", program.output());
    assert_eq!(left(&scene), [""; 0]);
}

#[tokio::test]
async fn the_program_leaves_the_list_when_it_ends_with_an_error() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let mut program = start(&folder, &format!("{}?layout=resque", scene.server.url()), "");
    until("it stands there", || scene.ask(&["SCARD", "resque:workers"]) == "1");
    scene.ask(&["SET", "resque:queue:main", "no list"]);
    assert!(!program.wait().success(), "{}", program.output());
    assert_eq!(left(&scene), [""; 0]);
}

#[tokio::test]
async fn the_program_stays_out_of_the_list_if_it_is_told_to() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let source = format!("{}?layout=resque", scene.server.url());
    let mut program = start(&folder, &source, "[redis]\npresence = false");
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    until("it has run", || scene.ask(&["GET", "resque:stat:processed"]) == "1");
    assert_eq!(left(&scene), [""; 0]);
    assert!(program.stop().success(), "{}", program.output());
}
