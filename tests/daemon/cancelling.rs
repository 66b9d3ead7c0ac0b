//! `tidegate jobs cancel` of a job that a daemon runs.

use std::process::Command;

use tidegate::{JobState, NewJob};

use crate::scene::{Daemon, Jobs, hear, line};
use crate::support::{Place, until};

/// `tidegate jobs` in that place, which must go well; what it says.
fn jobs(place: &Place, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["jobs", "-s", "sqlite:jobs.sqlite"]).args(args).current_dir(place.path(""));
    let done = command.output().expect("it is built");
    let [said, errors] = [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert_eq!((done.status.code(), errors.as_str()), (Some(0), ""), "{said}");
    said
}

#[test]
fn a_job_that_is_cancelled_while_its_command_runs_is_ended_with_all_that_it_started_and_never_tried_again() {
    let place = Place::new();
    let store = Jobs::new(&place);
    place.fifo("ready");
    let config = "source = \"sqlite:jobs.sqlite\"\n[sqlite]\nlease_ttl = \"1500ms\"\n\
         [worker]\nmax_concurrent_jobs = 1\nretry = { max_attempts = 5, initial = \"0s\" }\n\
         [kinds.long]\nexec = [\"sh\", \"-c\", \"echo run >> runs; echo working; echo > ready; sleep 1000 & wait\"]\n\
         [kinds.short]\nexec = [\"true\"]\n";
    let id = store.put(NewJob::new("long", ""));
    let next = store.put(NewJob::new("short", ""));
    let daemon = Daemon::start(&place, config);
    hear(place.path("ready"));
    assert!(place.processes().len() > 1, "the command runs");
    assert_eq!(jobs(&place, &["cancel", id.as_str()]), format!("{id}\tcancelling\n"));
    // What it had goes to the next one; it is ready no more.
    store.until(&next, JobState::Done);
    store.until(&id, JobState::Dead);
    until("only the daemon is left", || place.processes().len() == 1);
    assert_eq!((store.attempts(&id), place.read("runs").as_str()), (1, "run\n"));
    assert_eq!(store.error(&id), "cancelled");
    let shown = jobs(&place, &["show", id.as_str()]);
    for part in
        ["\nstate        dead\n", "\nlast error   cancelled\n", "\nattempt 1    rejected after ", "working"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let ran = daemon.stop();
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    let stopped = line(&ran, "stopped");
    assert_eq!((&stopped["done"], &stopped["rejected"], &stopped["held"]), (&1.into(), &1.into(), &0.into()));
}
