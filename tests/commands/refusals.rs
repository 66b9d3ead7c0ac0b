//! What makes no sense is answered by an error that names what and where.

use tidegate::NewJob;

use crate::support::Place;

#[test]
fn an_argument_that_makes_no_sense_is_named_and_nothing_is_made() {
    let place = Place::new();
    place.write("good.jsonl", "{\"kind\":\"k\"}\n");
    for (args, named) in [
        (&["enqueue"][..], "<KIND>"),
        (&["enqueue", ""], "a job's kind is empty"),
        (&["enqueue", "k", "a", "b"], "'b'"),
        (&["enqueue", "k", "a", "--payload-file", "f"], "--payload-file"),
        (&["enqueue", "k", "a", "--json-lines"], "--json-lines"),
        (&["enqueue", "--json-lines", "good.jsonl", "--payload-file", "f"], "--payload-file"),
        (&["enqueue", "k", "--keep-going"], "--json-lines"),
        (&["enqueue", "k", "--dry-run"], "--json-lines"),
        (&["enqueue", "k", "--queue", ""], "the queue of a job of kind \"k\" is empty"),
        (&["enqueue", "k", "--priority", "40000"], "40000 is not in -32768..=32767"),
        (&["enqueue", "k", "--in", "soon"], "such as 500ms, 1.5s or 2m"),
        (&["enqueue", "k", "--in", "367d"], "it must be at most 366d"),
        (&["enqueue", "k", "--in", "1m", "--at", "2030-01-01"], "--at"),
        (
            &["enqueue", "k", "--at", "noon"],
            "such as 2030-01-31T14:05:00Z, or in local time, such as '2030-01-31 14:05'",
        ),
        (&["enqueue", "k", "--max-attempts", "0"], "--max-attempts"),
        (&["enqueue", "k", "--timeout", "0"], "it must be at least 1ms"),
        (&["enqueue", "k", "--unique", ""], "the unique key of a job of kind \"k\" is empty"),
        (&["enqueue", "k", "--unique-for", "1h"], "give a key"),
        (&["enqueue", "k", "--replace"], "give a key"),
        (&["enqueue", "k", "--unique-while", "done"], "queued, unfinished"),
        (
            &["enqueue", "k", "--unique", "u", "--unique-for", "1h", "--unique-while", "queued"],
            "--unique-while",
        ),
        (&["enqueue", "k", "--json", "--quiet"], "--quiet"),
        (&["enqueue", "k", "-s", "memory:"], "would end with this command"),
        (&["enqueue", "k", "-s", ""], "--source (or TIDEGATE_SOURCE) is empty"),
        (&["enqueue", "k", "-s", "sqlite:"], "must follow `sqlite:`"),
        (&["enqueue", "k", "-s", "sqlite::memory:"], "the path of a file must follow `sqlite:`"),
        (&["enqueue", "k", "-s", "jobs"], "begins with a scheme and a colon"),
        (&["enqueue", "k", "-s", "http://user:secret@host/"], "\"http\" is no backend"),
        (&["jobs", "-s", "memory:"], "would end with this command"),
        (&["jobs", "--state", "lost"], "ready, delayed, leased, dead, done"),
        (&["jobs", "--limit", "0"], "1..=1000000"),
        (&["jobs", "list", "--json", "-q"], "--quiet"),
        (
            &["jobs", "--state", "dead", "show", "1"],
            "--state and the other options of `jobs list` belong to it, not to `show`",
        ),
        (&["jobs", "-q", "retry", "1"], "belong to it, not to `retry`"),
        (&["jobs", "--state", "dead", "list", "-q"], "all of them before `list`, or all of them after it"),
        (&["jobs", "show"], "<ID>"),
        (&["jobs", "show", "1", "--payload", "--json"], "--payload"),
        (&["jobs", "retry"], "<ID>"),
        (&["jobs", "requeue-dead"], "<--kind <KIND>|--queue <NAME>|--all>"),
        (&["jobs", "requeue-dead", "--all", "--kind", "k"], "--kind"),
        (&["jobs", "delete-dead", "--yes"], "<--kind <KIND>|--queue <NAME>|--all>"),
        (&["stats", "--watch", "0"], "it must be at least 1ms"),
        (&["completions"], "<SHELL>"),
        (&["completions", "tcsh"], "bash, elvish, fish, powershell, zsh"),
    ] {
        let ran = place.run(args);
        assert_eq!((ran.code(), ran.stdout()), (2, String::new()), "{args:?}: {}", ran.stderr());
        assert!(
            ran.stderr().contains(named) && !ran.stderr().contains("secret"),
            "{args:?}: {}",
            ran.stderr()
        );
    }
    let made: Vec<_> = std::fs::read_dir(place.path(""))
        .expect("ours")
        .map(|entry| entry.expect("ours").file_name())
        .collect();
    assert_eq!(made, ["good.jsonl"]);
}

#[tokio::test]
async fn skipping_needs_one_state() {
    let place = Place::new();
    place.with(vec![(NewJob::new("k", ""), None)]).await;
    let ran = place.run(["jobs", "list", "--skip", "1"]);
    assert_eq!((ran.code(), ran.stdout()), (2, String::new()));
    assert!(ran.stderr().contains("--skip needs --state"), "{}", ran.stderr());
}

#[test]
fn what_only_looks_or_changes_makes_no_queue() {
    let place = Place::new();
    for args in [
        &["jobs"][..],
        &["jobs", "show", "1"],
        &["jobs", "retry", "1"],
        &["jobs", "requeue-dead", "--all"],
        &["jobs", "delete-dead", "--all", "--yes"],
        &["stats"],
        &["stats", "--watch", "1ms"],
        &["stats", "-s", "sqlite:./tidegate.sqlite"],
    ] {
        let ran = place.run(args);
        assert_eq!((ran.code(), ran.stdout()), (69, String::new()), "{args:?}");
        let said = ran.stderr();
        assert!(
            said.starts_with("tidegate: there is no queue ")
                && said.contains("--source or TIDEGATE_SOURCE, or a daemon's configuration with --config")
                && said.contains("tidegate.sqlite: name another one"),
            "{said}"
        );
        assert!(!place.path("tidegate.sqlite").exists(), "{args:?}");
    }
}

#[test]
fn a_file_that_is_no_queue_is_named_and_left_as_it_is() {
    let place = Place::new();
    place.write("text.db", "no database at all, but a text of more than a hundred bytes. ".repeat(9));
    let other = rusqlite::Connection::open(place.path("other.db")).expect("a new file");
    other.execute_batch("CREATE TABLE theirs (x)").expect("a table");
    drop(other);
    std::fs::create_dir(place.path("folder.db")).expect("a folder");
    for (source, why) in [
        ("text.db", "text.db failed: the file is no SQLite database"),
        ("other.db", "other.db is a database of some other program: name another file"),
        ("folder.db", "folder.db"),
        ("no-folder/jobs.db", "the folder must be there"),
    ] {
        let before = std::fs::read(place.path(source)).ok();
        for args in [&["jobs", "-s", source][..], &["stats", "-s", source], &["enqueue", "k", "-s", source]] {
            if source.contains('/') && args[0] != "enqueue" {
                continue;
            }
            let ran = place.run(args);
            assert_eq!((ran.code(), ran.stdout()), (69, String::new()), "{args:?}: {}", ran.stderr());
            assert!(ran.stderr().contains(why), "{args:?}: {}", ran.stderr());
        }
        assert_eq!(std::fs::read(place.path(source)).ok(), before, "{source} was changed");
    }
}

/// Whoever runs the records would take a job among them for one that has failed.
#[test]
fn a_job_is_not_put_among_the_records_of_a_command() {
    let place = Place::new();
    place.write("in", "one\n");
    place.good(["each", "-q", "--db", "records.db", "-i", "in", "--", "true"]);
    for args in [&["enqueue", "k"][..], &["enqueue", "each", "2\ttwo"], &["enqueue", "--json-lines", "-"]] {
        let mut args = args.to_vec();
        args.extend(["-s", "records.db"]);
        let ran = place.feed(&args, "{\"kind\":\"k\"}\n");
        assert_eq!((ran.code(), ran.stdout()), (69, String::new()), "{args:?}");
        assert!(ran.stderr().contains("the records of a `tidegate each --db`"), "{}", ran.stderr());
    }
    let said = place.good(["stats", "-s", "records.db", "--json"]).json().remove(0);
    assert_eq!((&said["done"], &said["ready"]), (&1.into(), &0.into()), "{said}");
}

#[test]
fn an_input_that_can_not_be_read_is_named_and_nothing_is_made() {
    let place = Place::new();
    for (args, why) in [
        (
            &["enqueue", "k", "--payload-file", "none"][..],
            "the payload can't be read from none: No such file",
        ),
        (&["enqueue", "k", "--payload-file", "."], "the payload can't be read from .: Is a directory"),
        (&["enqueue", "--json-lines", "none"], "none can't be read: No such file"),
        (&["enqueue", "--json-lines", "."], ". can't be read: is a directory"),
    ] {
        let ran = place.run(args);
        assert_eq!((ran.code(), ran.stdout()), (3, String::new()), "{args:?}: {}", ran.stderr());
        assert!(ran.stderr().contains(why), "{args:?}: {}", ran.stderr());
    }
    assert!(!place.path("tidegate.sqlite").exists());
}
