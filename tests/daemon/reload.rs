//! HUP: the configuration is read again while jobs run, and none of them is dropped.

use std::fs::OpenOptions;
use std::io::Write as _;

use rustix::process::Signal;
use tidegate::{JobState, NewJob};

use crate::scene::{Daemon, Jobs, command, hear, line, lines};
use crate::support::Place;

/// A command that says that it runs, and waits to be let go.
fn waiting(name: &str) -> String {
    format!("exec = [\"sh\", \"-c\", \"echo > {name}-ready; read x < {name}-go; echo $x > {name}-done\"]\n")
}

#[test]
fn more_jobs_run_at_once_as_soon_as_it_is_asked_for() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let fifos =
        ["a", "b"].map(|name| (place.fifo(&format!("{name}-ready")), place.fifo(&format!("{name}-go"))));
    let config = |jobs: u32| {
        let (a, b) = (waiting("a"), waiting("b"));
        format!(
            "source = \"sqlite:jobs.sqlite\"\n[worker]\nmax_concurrent_jobs = {jobs}\n[kinds.a]\n{a}[kinds.b]\n{b}"
        )
    };
    let first = jobs.put(NewJob::new("a", ""));
    let mut daemon = Daemon::start(&place, &config(1));
    let [(a_ready, a_go), (b_ready, b_go)] = fifos;
    hear(a_ready.path().to_owned());
    let second = jobs.put(NewJob::new("b", ""));
    daemon.reload(&config(2));
    assert_eq!(daemon.hear("configuration reloaded")["max_concurrent_jobs"], 2);
    hear(b_ready.path().to_owned());
    a_go.tell();
    b_go.tell();
    jobs.until(&first, JobState::Done);
    jobs.until(&second, JobState::Done);
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn a_kind_gets_another_command_and_another_kind_comes_while_a_job_runs() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let (ready, go) = (place.fifo("old-ready"), place.fifo("old-go"));
    let before = format!("source = \"sqlite:jobs.sqlite\"\n[kinds.work]\n{}", waiting("old"));
    let after = "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"touch\", \"new-done\"]\n\
                 [kinds.more]\nexec = [\"sh\", \"-c\", \"echo $TOKEN > more-done\"]\nenv = { TOKEN = { file = \"token\" } }\n";
    let old = jobs.put(NewJob::new("work", ""));
    let mut daemon = Daemon::start(&place, &before);
    hear(ready.path().to_owned());
    place.write("token", "first");
    daemon.reload(after);
    assert_eq!(daemon.hear("configuration reloaded")["kinds"], "more, work");
    for kind in ["work", "more"] {
        let id = jobs.put(NewJob::new(kind, ""));
        jobs.until(&id, JobState::Done);
    }
    assert!(place.path("new-done").exists());
    assert_eq!(place.read("more-done"), "first\n");
    // What a secret's file says is read again too.
    place.write("token", "second");
    daemon.signal(Signal::HUP);
    daemon.hear("configuration reloaded");
    let more = jobs.put(NewJob::new("more", ""));
    jobs.until(&more, JobState::Done);
    assert_eq!(place.read("more-done"), "second\n");
    go.tell();
    jobs.until(&old, JobState::Done);
    assert_eq!(place.read("old-done"), "go\n", "it has gone on with the command that it was begun with");
    let ran = daemon.stop();
    assert_eq!((ran.code(), jobs.unfinished()), (0, 0));
    let stopped = line(&ran, "stopped");
    assert_eq!((&stopped["done"], &stopped["retried"], &stopped["lost"]), (&4.into(), &0.into(), &0.into()));
}

#[test]
fn other_queues_are_served_and_other_retries_made_from_then_on() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = |queue: &str, attempts: u32| {
        format!(
            "source = \"sqlite:jobs.sqlite\"\n[worker]\nqueues = [\"{queue}\"]\nretry = {{ max_attempts = {attempts}, initial = \"0s\" }}\n\
             [kinds.work]\nexec = [\"sh\", \"-c\", \"test $TIDEGATE_ATTEMPT = 3\"]\n"
        )
    };
    let first = jobs.put(NewJob::new("work", "").queue("a"));
    let second = jobs.put(NewJob::new("work", "").queue("b"));
    let mut daemon = Daemon::start(&place, &config("a", 1));
    jobs.until(&first, JobState::Dead);
    jobs.until(&second, JobState::Ready);
    daemon.reload(&config("b", 3));
    daemon.hear("configuration reloaded");
    jobs.until(&second, JobState::Done);
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_and_the_old_one_stays() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let fine = "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"touch\", \"done\"]\n";
    let mut daemon = Daemon::start(&place, fine);
    for (bad, problem, shown) in [
        (
            "[kinds.work]\nexec = [\"false\"]\ntimout = \"1s\"\n",
            "tidegate.toml:3:1: unknown key `timout` in [kinds.work]: did you mean `timeout`?",
            "timout = …",
        ),
        (
            "[kinds.work]\nexec = [\"no-such-program\"]\n",
            "tidegate.toml:2:8: kinds.work.exec: no-such-program is not found in any folder of PATH",
            "exec = [… ]",
        ),
        ("[kinds.work\n", "tidegate.toml:1:12: unclosed table", "[kinds.work"),
    ] {
        daemon.reload(bad);
        let refused = daemon.hear("configuration refused");
        assert!(refused["problem"].as_str().is_some_and(|said| said.starts_with(problem)), "{refused}");
        assert_eq!(refused["line"].as_str().map(|line| line.replace("…]", "… ]")).as_deref(), Some(shown));
        assert_eq!(refused["level"], "error");
        daemon.hear("the configuration stays as it was");
    }
    std::fs::remove_file(place.path("tidegate.toml")).expect("it is ours");
    daemon.signal(Signal::HUP);
    let refused = daemon.hear("configuration refused");
    assert!(
        refused["problem"].as_str().is_some_and(|said| said.contains("can't be read: No such file")),
        "{refused}"
    );
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Done);
    assert!(place.path("done").exists());
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn what_can_not_be_changed_without_a_restart_is_named_each_time() {
    let place = Place::new();
    let config = |rest: &str| format!("{rest}[kinds.work]\nexec = [\"true\"]\n");
    let mut daemon = Daemon::start(&place, &config("source = \"sqlite:jobs.sqlite\"\n"));
    let other = config(
        "source = \"sqlite:other.sqlite\"\n[sqlite]\nmax_dead = 1\n[worker]\nname = \"x\"\nprefetch = 1\nshutdown_deadline = \"1s\"\n\
         cancel_grace = \"4s\"\nfetch_wait = \"1s\"\nmax_payload = \"1KiB\"\nunknown_kind = \"reject\"\nreconnect = { factor = 3 }\n",
    );
    for _ in 0..3 {
        daemon.reload(&other);
        daemon.hear("configuration reloaded");
    }
    daemon.reload(&config("source = \"sqlite:jobs.sqlite\"\n"));
    daemon.hear("configuration reloaded");
    let ran = daemon.stop();
    let named: Vec<String> = lines(&ran)
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|message| message.starts_with("needs a restart")))
        .map(|line| line["setting"].as_str().unwrap_or_default().to_owned())
        .collect();
    let all = [
        "source",
        "sqlite.max_dead",
        "worker.name",
        "worker.prefetch",
        "worker.shutdown_deadline",
        "worker.cancel_grace",
        "worker.fetch_wait",
        "worker.max_payload",
        "worker.unknown_kind",
        "worker.reconnect",
    ];
    assert_eq!(named, [all, all, all].concat(), "at each reload but the last, which has nothing to name");
    assert!(!place.path("other.sqlite").exists());
}

#[test]
fn the_log_changes_its_level_and_its_form() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = |log: &str, kind: &str| {
        format!(
            "source = \"sqlite:jobs.sqlite\"\n[log]\n{log}\n[worker.retry]\ninitial = \"0s\"\n\
             [kinds.{kind}]\nexec = [\"sh\", \"-c\", \"test $TIDEGATE_ATTEMPT = 2\"]\n"
        )
    };
    let mut daemon = Daemon::start(&place, &config("", "first"));
    let fails = |kind: &str| {
        let id = jobs.put(NewJob::new(kind, ""));
        jobs.until(&id, JobState::Done);
    };
    fails("first");
    daemon.hear("job failed, will be retried");
    // What is not logged can't be waited for, but that its kind is known.
    daemon.reload(&config("level = \"error\"", "second"));
    fails("second");
    daemon.reload(&config("format = \"human\"", "third"));
    daemon.hear_text(" INFO  configuration reloaded ");
    fails("third");
    let said = daemon.hear_text(" WARN  job failed, will be retried ");
    assert!(said.contains(" kind=third attempt=1 "), "{said}");
    let ran = daemon.stop();
    assert!(!ran.stderr().contains("second"), "{}", ran.stderr());
}

/// Whoever sends it may not know how far the daemon is.
#[test]
fn a_hup_that_comes_while_it_starts_does_not_end_it() {
    let place = Place::new();
    Jobs::new(&place);
    let file = place.fifo("tidegate.toml");
    let write = |jobs: u32, before: &dyn Fn()| {
        // Both wait here for each other, each time that it is read.
        let mut pipe = OpenOptions::new().write(true).open(file.path()).expect("it is there");
        before();
        let config = format!(
            "source = \"sqlite:jobs.sqlite\"\n[worker]\nmax_concurrent_jobs = {jobs}\n[kinds.a]\nexec = [\"true\"]\n"
        );
        pipe.write_all(config.as_bytes()).expect("it is read");
    };
    let mut daemon = Daemon::begin(&place, command(&place, &[]));
    write(1, &|| daemon.signal(Signal::HUP));
    assert_eq!(daemon.hear("started")["max_concurrent_jobs"], 1);
    // What was asked for then is done now.
    write(2, &|| ());
    assert_eq!(daemon.hear("configuration reloaded")["max_concurrent_jobs"], 2);
    assert_eq!(daemon.stop().code(), 0);
}
