//! `tidegate stats`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tidegate::{Enqueue, NewJob, Settled, Settlement, Source};

use crate::support::{Place, take};

#[tokio::test]
async fn there_is_a_figure_for_each_state() {
    let place = Place::new();
    let later = NewJob::new("k", "").delay(Duration::from_secs(60));
    let (queue, _) = place.with(vec![(NewJob::new("k", ""), Some("no")), (later, None)]).await;
    queue.enqueue(vec![NewJob::new("k", ""); 1_003]).await.expect("enqueued");
    let taken = take(&queue, 3).await;
    queue.settle(&[Settled::new(taken[0].tag, Settlement::Ack)]).await.expect("settled");
    let ran = place.good(["stats"]);
    let stdout = ran.stdout();
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..5], ["ready", "1,000", "the", "first", "for"]);
    assert_eq!(lines[1..], [["delayed", "1"], ["leased", "2"], ["dead", "1"], ["done", "1"]]);
    let json = place.good(["stats", "--json"]).json().remove(0);
    let figures =
        ["ready", "delayed", "leased", "dead", "done", "kept", "superseded"].map(|name| json[name].as_u64());
    assert_eq!(figures, [Some(1_000), Some(1), Some(2), Some(1), Some(1), Some(0), Some(0)]);
    assert!(
        json["oldest_ready_seconds"].is_f64() && json["at"].as_str().is_some_and(|at| at.ends_with('Z')),
        "{json}"
    );
}

/// More lines than it takes to see what has changed.
const MANY: usize = 100_000;

#[tokio::test]
async fn watching_goes_on_until_a_signal_ends_it() {
    let place = Place::new();
    let queue = place.queue();
    let mut command = place.command(["stats", "--watch", "1ms"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it is built");
    let mut lines =
        BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("a pipe"));
    let ready = |line: &str| line.split_whitespace().nth(3).and_then(|word| word.parse::<u64>().ok());
    let heads = lines.next().expect("a line");
    assert_eq!(
        heads.split_whitespace().collect::<Vec<_>>(),
        ["TIME", "READY", "DELAYED", "LEASED", "DEAD", "DONE", "OLDEST"]
    );
    assert_eq!(lines.next().map(|line| ready(&line)), Some(Some(0)));
    queue.enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
    assert!(lines.by_ref().take(MANY).any(|line| ready(&line) == Some(1)), "it sees what has changed");
    let more: Vec<String> = lines.by_ref().take(60).collect();
    let heads = more.iter().filter(|line| line.starts_with("TIME")).count();
    assert!((2..=4).contains(&heads), "{heads} heads in 60 lines");
    let id = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(id, Signal::TERM).expect("it is ours");
    drop(lines);
    assert!(!child.wait().expect("it ends").success());
}

#[tokio::test]
async fn watching_goes_on_while_somebody_keeps_the_file_locked() {
    let place = Place::new();
    let queue = place.queue();
    let locked = Connection::open(place.path("tidegate.sqlite")).expect("it is there");
    let mut command = place.command(["stats", "--watch", "1ms", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is built");
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    out.next().expect("a line").expect("a pipe");
    locked.execute_batch("BEGIN IMMEDIATE").expect("locked");
    // More than a pipe holds.
    for _ in 0..2_000 {
        assert!(out.next().expect("a line").expect("a pipe").contains("\"ready\":0"));
    }
    locked.execute_batch("ROLLBACK").expect("unlocked");
    queue.enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
    assert!(out.by_ref().take(MANY).any(|line| line.expect("a pipe").contains("\"ready\":1")), "it goes on");
    child.kill().expect("it is ours");
    let left = child.wait_with_output().expect("it ends").stderr;
    assert!(left.is_empty(), "{}", String::from_utf8_lossy(&left));
}

#[test]
fn the_queue_may_be_that_of_a_daemons_configuration() {
    let place = Place::new();
    place.write("daemon.toml", "source = \"sqlite:other.sqlite\"\n[kinds.a]\nexec = [\"no such program\"]\n");
    let created = place.good(["enqueue", "--config", "daemon.toml", "kind"]);
    assert_eq!(created.stdout(), "1\n");
    assert!(place.path("other.sqlite").exists() && !place.path("tidegate.sqlite").exists());
    let ready = |args: &[&str]| place.good(args).json()[0]["ready"].as_u64();
    assert_eq!(ready(&["stats", "--json", "--config", "daemon.toml"]), Some(1));
    // What is said outright counts.
    place.good(["enqueue", "-c", "daemon.toml", "-s", "third.sqlite", "kind"]);
    assert_eq!(ready(&["stats", "--json", "-c", "daemon.toml"]), Some(1));
    place.write("bad.toml", "source = 7\n");
    let refused = place.run(["jobs", "-c", "bad.toml"]);
    assert!(refused.code() == 78 && refused.stderr().contains("bad.toml:1:10"), "{}", refused.stderr());
}
