//! Jobs of a queue become commands.

use tidegate::{JobState, NewJob};

use crate::scene::{Daemon, Jobs};
use crate::support::Place;

const SOURCE: &str = "source = \"sqlite:jobs.sqlite\"\n";

#[test]
fn each_job_is_run_by_the_command_of_its_kind() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = format!(
        "{SOURCE}[kinds.copy]\nexec = [\"sh\", \"-c\", \"cat > \\\"copy-$TIDEGATE_JOB_ID\\\"\"]\n\
         [kinds.\"to.upper\"]\nexec = [\"./upper\"]\nenv = {{ NAME = {{ file = \"name\" }} }}\nfolder = \".\"\n"
    );
    place.write("name", "out\n");
    place.script("upper", "#!/bin/sh\ntr a-z A-Z > \"$NAME-$TIDEGATE_KIND\"\n");
    let daemon = Daemon::start(&place, &config);
    let copies: Vec<_> =
        (0..10).map(|number| (number, jobs.put(NewJob::new("copy", format!("payload {number}"))))).collect();
    let upper = jobs.put(NewJob::new("to.upper", "loud"));
    jobs.until(&upper, JobState::Done);
    assert_eq!(place.read("out-to.upper"), "LOUD");
    for (number, id) in copies {
        jobs.until(&id, JobState::Done);
        assert_eq!(place.read(&format!("copy-{id}")), format!("payload {number}"));
    }
    let ran = daemon.stop();
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
}

#[test]
fn a_kind_has_what_it_sets_and_else_what_the_worker_sets() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = format!(
        "{SOURCE}[worker]\nunknown_kind = \"reject\"\njob_timeout = \"10ms\"\n\
         [worker.retry]\nmax_attempts = 1\ninitial = \"0s\"\n\
         [kinds.once]\nexec = [\"false\"]\n\
         [kinds.twice]\nexec = [\"sh\", \"-c\", \"test $TIDEGATE_ATTEMPT = 2\"]\ntimeout = \"none\"\nretry = {{ max_attempts = 2 }}\n\
         [kinds.slow]\nexec = [\"sleep\", \"100\"]\n"
    );
    let daemon = Daemon::start(&place, &config);
    let twice = jobs.put(NewJob::new("twice", ""));
    jobs.until(&twice, JobState::Done);
    let slow = jobs.put(NewJob::new("slow", ""));
    jobs.until(&slow, JobState::Dead);
    assert!(jobs.error(&slow).contains("10ms"), "{}", jobs.error(&slow));
    let once = jobs.put(NewJob::new("once", ""));
    jobs.until(&once, JobState::Dead);
    let unknown = jobs.put(NewJob::new("unknown", ""));
    jobs.until(&unknown, JobState::Dead);
    assert!(jobs.error(&unknown).contains("unknown"), "{}", jobs.error(&unknown));
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn never_more_jobs_run_at_once_than_were_set_for_all_and_for_a_kind() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    // Each adds a line when it begins, and one when it ends.
    let config = format!(
        "{SOURCE}[worker]\nmax_concurrent_jobs = 4\nqueues = {{ default = 1 }}\n\
         [kinds.one]\nexec = [\"sh\", \"-c\", \"echo + >> one; sleep 0.01; echo - >> one\"]\nmax_concurrent_jobs = 1\n\
         [kinds.many]\nexec = [\"sh\", \"-c\", \"echo + >> many; sleep 0.01; echo - >> many\"]\n"
    );
    let ids: Vec<_> = (0..20)
        .map(|number| jobs.put(NewJob::new(if number % 2 == 0 { "one" } else { "many" }, "")))
        .collect();
    let daemon = Daemon::start(&place, &config);
    for id in &ids {
        jobs.until(id, JobState::Done);
    }
    assert_eq!(daemon.stop().code(), 0);
    for (file, bound) in [("one", 1), ("many", 4)] {
        let mut most = 0;
        let change = |running: i32, line: &str| running + if line == "+" { 1 } else { -1 };
        let left = place.read(file).lines().fold(0, |running, line| {
            most = most.max(change(running, line));
            change(running, line)
        });
        assert!(left == 0 && most <= bound, "{file}: {most} at once");
    }
}

#[test]
fn a_daemon_that_is_killed_loses_no_job() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let config = format!(
        "{SOURCE}[sqlite]\nlease_ttl = \"500ms\"\n[kinds.work]\nexec = [\"sh\", \"-c\", \"echo > ready; read x < go\"]\n"
    );
    let id = jobs.put(NewJob::new("work", ""));
    let daemon = Daemon::start(&place, &config);
    ready.hear();
    daemon.signal(rustix::process::Signal::KILL);
    daemon.killed();
    go.tell(); // to the command, which is left
    let daemon = Daemon::start(&place, &config);
    ready.hear();
    go.tell();
    jobs.until(&id, JobState::Done);
    assert_eq!(daemon.stop().code(), 0);
}
