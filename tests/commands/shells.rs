//! The program among others: completions, pipes that close, scripts.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use tidegate::{Enqueue, NewJob};

use crate::support::Place;

#[test]
fn completions_are_scripts_that_their_shell_reads() {
    let place = Place::new();
    let script = |shell| place.good(["completions", shell]).stdout();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = script(shell);
        for word in ["enqueue", "requeue-dead", "json-lines"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    place.write("tidegate.bash", script("bash"));
    let mut bash = Command::new("bash");
    let Ok(output) = bash.args(["-n", "tidegate.bash"]).current_dir(place.path("")).output() else {
        eprintln!("skipped: there is no bash here");
        return;
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    // What bash would complete `tidegate jobs req` to.
    let ask = "source ./tidegate.bash; COMP_WORDS=(tidegate jobs req); COMP_CWORD=2; _tidegate tidegate req jobs; echo \"${COMPREPLY[@]}\"";
    let output =
        Command::new("bash").args(["-c", ask]).current_dir(place.path("")).output().expect("it is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "requeue-dead\n", "{output:?}");
}

#[tokio::test]
async fn output_that_nobody_reads_any_more_ends_it_quietly() {
    let place = Place::new();
    place.queue().enqueue(vec![NewJob::new("k", "x".repeat(100)); 5_000]).await.expect("enqueued");
    let lines: String = "{}\n".repeat(200_000);
    place.write("jobs.jsonl", lines);
    for args in [
        &["jobs", "list", "--state", "ready", "--limit", "5000"][..],
        &["jobs", "list", "--state", "ready", "--limit", "5000", "--json"],
        &["stats", "--watch", "1ms"],
        &["enqueue", "k", "--json-lines", "jobs.jsonl", "-s", "many.db"],
    ] {
        let mut command = place.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is built");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut String::new()).expect("a pipe");
        drop(stdout);
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("a pipe");
        let status = child.wait().expect("it ends");
        assert_eq!((status.code(), said.as_str()), (Some(141), ""), "{args:?}");
    }
}

#[tokio::test]
async fn output_that_can_not_be_written_is_a_failure() {
    let place = Place::new();
    place.queue().enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("skipped: there is no /dev/full here");
        return;
    };
    for args in [&["jobs"][..], &["stats"], &["enqueue", "k"], &["completions", "bash"]] {
        let full = full.try_clone().expect("a descriptor");
        let output = place.command(args).stdout(full).output().expect("it runs");
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("standard output can't be written"),
            "{output:?}"
        );
    }
}

#[test]
fn the_help_of_each_command_has_its_exit_codes() {
    let place = Place::new();
    for command in [&["enqueue"][..], &["jobs"], &["stats"], &["jobs", "show"], &["jobs", "delete-dead"]] {
        for help in ["-h", "--help"] {
            let ran = place.good(command.iter().chain(&[help]));
            assert!(
                ran.stdout().contains("Exit status:\n    0  ") && ran.stdout().contains("\n   69  the queue"),
                "{command:?}"
            );
        }
    }
}
