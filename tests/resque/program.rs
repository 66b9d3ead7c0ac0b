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
async fn the_program_says_at_its_start_what_plain_pop_may_lose() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let source = format!("{}?layout=resque&fetch=plain-pop", scene.server.url());
    let mut program = start(&folder, &source, "");
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    until("it has run", || scene.ask(&["GET", "resque:stat:processed"]) == "1");
    until("it stands there", || scene.ask(&["SCARD", "resque:workers"]) == "1");
    assert!(program.stop().success(), "{}", program.output());
    let said: Vec<String> =
        program.output().lines().filter(|line| line.contains("plain pop")).map(str::to_owned).collect();
    assert!(
        matches!(&said[..], [line] if line.contains("\"warn\"") && line.contains("in flight")),
        "{said:?}"
    );
    assert_eq!(left(&scene), [""; 0]);
}

#[tokio::test]
async fn the_program_puts_failed_jobs_back_and_names_those_that_stay() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let source = format!("{}?layout=resque", scene.server.url());
    scene.push(NewJob::new("B", "[]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], tidegate::Settlement::Reject, "why").await;
    let more = "[redis]\nreschedule = \"1s\"\nreschedule_times = 1\n[kinds.B]\nexec = [\"false\"]\nretry = { max_attempts = 1 }";
    let mut program = start(&folder, &source, more);
    program.says("stays failed");
    assert!(program.stop().success(), "{}", program.output());
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "1");
    assert_eq!(scene.ask(&["GET", "resque:stat:failed"]), "2");
}

#[tokio::test]
async fn putting_failed_jobs_back_is_refused_in_another_layout() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let file = folder.file("tidegate.toml");
    let source = scene.server.url();
    let config =
        format!("source = \"{source}\"\n[redis]\nreschedule = \"1m\"\n[kinds.A]\nexec = [\"cat\"]\n");
    std::fs::write(&file, config).expect("a file of ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let mut program = Process::start(command.arg("run").arg("--config").arg(file), &folder.file("output"));
    assert!(!program.wait().success());
    assert!(program.output().contains("layout=resque"), "{}", program.output());
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

#[tokio::test]
async fn the_program_writes_jobs_as_node_resque_does_if_it_is_told_to() {
    let Some(scene) = Scene::start().await else { return };
    let folder = Folder::new();
    let file = folder.file("tidegate.toml");
    let enqueue = |query: &str, args: &[&str]| {
        let source = format!("{}{query}", scene.server.url());
        let config = "[redis]\nnode_resque_style = true\n[kinds.A]\nexec = [\"cat\"]\n";
        std::fs::write(&file, format!("source = \"{source}\"\n{config}")).expect("a file of ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let args: Vec<&str> = args.iter().map(|arg| if *arg == "URL" { &*source } else { arg }).collect();
        command.arg("enqueue").args(args).args(["A", "[1]"]).output().expect("it runs")
    };
    let in_style = r#"{"class":"A","queue":"default","args":[1]}"#;
    let config = file.to_str().expect("plain ASCII");
    for (query, args, expected) in [
        ("?layout=resque", &["--config", config][..], in_style),
        ("?layout=resque&style=resque", &["--config", config], r#"{"class":"A","args":[1]}"#),
        ("?layout=resque&style=node-resque", &["--source", "URL"], in_style),
    ] {
        let output = enqueue(query, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(scene.ask(&["LPOP", "resque:queue:default"]), expected, "{query}");
    }
    let refused = String::from_utf8(enqueue("", &["--config", config]).stderr).expect("UTF-8");
    let expected = "tidegate.toml:3:21: redis.node_resque_style makes no sense: the style of node-resque is there in Resque's layout only";
    assert!(refused.contains(expected), "{refused}");
}
