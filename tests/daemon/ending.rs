//! Signals, and how it ends.

use std::time::Duration;

use rustix::process::Signal;
use tidegate::{JobId, JobState, NewJob};

use crate::scene::{Daemon, Jobs, command, hear, line, run};
use crate::support::{Fifo, Place, is_ignored, timed};

/// A daemon with one job that runs and waits for a word on `go`, and one that waits for its turn.
struct Scene {
    place: Place,
    jobs: Jobs,
    go: Fifo,
    ids: [JobId; 2],
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let (jobs, go) = (Jobs::new(&place), place.fifo("go"));
        place.fifo("ready");
        let ids = [(); 2].map(|()| jobs.put(NewJob::new("work", "")));
        Self { place, jobs, go, ids }
    }

    /// Starts it, and waits until its first job runs. `before` is what its command does first.
    fn start(&self, settings: &str, before: &str) -> Daemon<'_> {
        let config = format!(
            "source = \"sqlite:jobs.sqlite\"\n[worker]\nmax_concurrent_jobs = 1\n{settings}\n\
             [kinds.work]\nexec = [\"sh\", \"-c\", \"{before} echo > ready; read x < go; echo $x >> done\"]\n"
        );
        let daemon = Daemon::start(&self.place, &config);
        hear(self.place.path("ready"));
        daemon
    }

    fn states(&self, first: JobState, second: JobState) {
        self.jobs.until(&self.ids[0], first);
        self.jobs.until(&self.ids[1], second);
    }
}

#[test]
fn the_first_signal_lets_what_runs_finish_and_begins_nothing_more() {
    for signal in [Signal::TERM, Signal::INT] {
        if is_ignored(signal) {
            continue;
        }
        let scene = Scene::new();
        let mut daemon = scene.start("", "");
        daemon.signal(signal);
        daemon.hear("stopping");
        scene.go.tell();
        let ran = daemon.end();
        assert_eq!(ran.code(), 0, "{}", ran.stderr());
        scene.states(JobState::Done, JobState::Ready);
        assert_eq!(scene.place.read("done"), "go\n");
        let stopped = line(&ran, "stopped");
        assert_eq!((&stopped["done"], &stopped["held"]), (&1.into(), &0.into()));
    }
}

#[test]
fn the_second_signal_ends_what_runs_and_its_job_comes_again_uncounted() {
    let scene = Scene::new();
    let mut daemon = scene.start("", "");
    daemon.signal(Signal::TERM);
    daemon.hear("stopping");
    daemon.signal(Signal::TERM);
    let ran = daemon.end();
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    scene.states(JobState::Ready, JobState::Ready);
    assert_eq!(scene.jobs.attempts(&scene.ids[0]), 0);
    assert!(!scene.place.path("done").exists());
}

#[test]
fn quit_loses_no_time() {
    if is_ignored(Signal::QUIT) {
        return;
    }
    let scene = Scene::new();
    let daemon = scene.start("cancel_grace = \"1h\"\nshutdown_deadline = \"10h\"", "trap '' TERM;");
    daemon.signal(Signal::QUIT);
    let ran = daemon.end();
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    scene.states(JobState::Ready, JobState::Ready);
}

#[test]
fn a_stop_ends_in_time_whatever_the_command_does() {
    let scene = Scene::new();
    let daemon = scene.start("shutdown_deadline = \"1s\"", "trap '' TERM;");
    daemon.signal(Signal::TERM);
    let (ran, took) = timed(|| daemon.end());
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    assert!((Duration::from_millis(700)..Duration::from_secs(5)).contains(&took), "{took:?}");
    scene.states(JobState::Ready, JobState::Ready);
}

#[test]
fn a_signal_to_stop_is_obeyed_while_it_is_quiet_and_nothing_begins_then() {
    let scene = Scene::new();
    let mut daemon = scene.start("", "");
    daemon.signal(Signal::TSTP);
    daemon.hear("quiet: no more jobs are taken until CONT comes");
    scene.go.tell();
    scene.jobs.until(&scene.ids[0], JobState::Done);
    daemon.signal(Signal::USR1);
    assert_eq!(daemon.hear("figures")["quiet"], true);
    scene.jobs.until(&scene.ids[1], JobState::Ready);
    daemon.signal(Signal::CONT);
    daemon.hear("going on: jobs are taken again");
    hear(scene.place.path("ready"));
    daemon.signal(Signal::TSTP);
    daemon.hear("quiet");
    daemon.signal(Signal::TERM);
    daemon.hear("stopping");
    scene.go.tell();
    assert_eq!(daemon.end().code(), 0);
    scene.states(JobState::Done, JobState::Done);
}

#[test]
fn a_source_that_can_not_be_opened_ends_it_with_a_code_of_its_own() {
    let place = Place::new();
    place.write("jobs.sqlite", "no database".repeat(1000));
    place.write("tidegate.toml", "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"true\"]\n");
    let ran = run(&place, command(&place, &[]));
    assert_eq!(ran.code(), 69, "{}", ran.stderr());
    let said = line(&ran, "the source can't be opened");
    assert!(said["error"].as_str().is_some_and(|error| error.contains("jobs.sqlite")), "{said}");
}

#[test]
fn hup_does_nothing_when_it_stops() {
    let scene = Scene::new();
    let mut daemon = scene.start("", "");
    daemon.signal(Signal::TERM);
    daemon.hear("stopping");
    daemon.signal(Signal::HUP);
    daemon.hear("stopping: the configuration is not read again");
    scene.go.tell();
    assert_eq!(daemon.end().code(), 0);
}

#[test]
fn a_job_that_can_not_be_handed_back_in_time_is_told_of_by_the_exit_code() {
    let scene = Scene::new();
    let mut daemon = scene.start("shutdown_deadline = \"1s\"\n[sqlite]\nbusy_timeout = \"50ms\"", "");
    let other = rusqlite::Connection::open(scene.place.path("jobs.sqlite")).expect("a file of our own");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes just now");
    daemon.signal(Signal::TERM);
    daemon.hear("stopping");
    scene.go.tell();
    let ran = daemon.end();
    assert_eq!(ran.code(), 1, "{}", ran.stderr());
    assert_eq!(line(&ran, "left behind at the shutdown deadline")["id"], scene.ids[0].as_str());
    assert_eq!(line(&ran, "stopped")["held"], 1);
}

#[test]
fn it_ends_with_a_status_of_its_own_when_its_file_is_taken_away() {
    let place = Place::new();
    let config = "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"true\"]\n";
    let mut daemon = Daemon::start(&place, config);
    std::fs::remove_file(place.path("jobs.sqlite")).expect("it is there");
    daemon.hear("the source failed for good");
    let ran = daemon.end();
    assert_eq!(ran.code(), 69, "{}", ran.stderr());
    assert!(ran.stderr().contains("jobs.sqlite was removed while it was in use"), "{}", ran.stderr());
}
