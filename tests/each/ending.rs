//! Signals.

use rustix::process::Signal;

use crate::support::{Fifo, Place, Running, is_ignored, timed};

/// `each` with one record running, which waits for a word on `go`; more records follow it.
struct Scene {
    place: Place,
    go: Fifo,
    running: Running,
}

impl Scene {
    fn new(options: &[&str], before: &str) -> Self {
        let place = Place::new();
        let (ready, go) = (place.fifo("ready"), place.fifo("go"));
        let script = format!(
            "{before} echo > {}; read x < {}; echo $1 $x",
            ready.path().display(),
            go.path().display()
        );
        let mut args = vec!["-j1", "--progress", "never"];
        args.extend_from_slice(options);
        args.extend_from_slice(&["--shell", "--", &script]);
        let mut running = place.start(args);
        running.feed("one\ntwo\nthree\n");
        ready.hear();
        Self { place, go, running }
    }
}

#[test]
fn the_first_signal_lets_what_runs_finish() {
    for (signal, name, code) in
        [(Signal::INT, "INT", 130), (Signal::TERM, "TERM", 143), (Signal::HUP, "HUP", 129)]
    {
        if is_ignored(signal) {
            continue;
        }
        let Scene { place, go, mut running } = Scene::new(&[], "");
        running.signal(signal);
        let said = running.hear("nothing more starts");
        assert_eq!(
            said,
            format!(
                "tidegate: {name}: nothing more starts, and what runs has 19.5 s to finish (1 running)\n"
            )
        );
        go.tell();
        let ran = running.end(&place);
        assert_eq!((ran.code(), ran.stdout()), (code, "one go\n".into()));
        let summary = format!("stopped by {name} before the end of the input: 1 done, 0 failed in");
        assert!(ran.stderr().contains(&summary), "{}", ran.stderr());
    }
}

#[test]
fn the_second_signal_ends_what_runs_and_its_record_is_neither_done_nor_failed() {
    for before in ["", "trap 'exit 0' TERM;"] {
        let Scene { place, running, .. } = Scene::new(&["--retries", "5", "--failed-to", "failed"], before);
        let mut running = running;
        running.signal(Signal::TERM);
        running.hear("nothing more starts");
        running.signal(Signal::TERM);
        let ran = running.end(&place);
        assert_eq!((ran.code(), ran.stdout()), (143, String::new()));
        assert!(ran.stderr().contains("0 done, 0 failed, 1 begun and not finished"), "{}", ran.stderr());
        assert!(ran.stderr().contains("tidegate: record 1 was not finished: one\n"), "{}", ran.stderr());
        assert!(ran.stderr().contains("tidegate: nothing after record 1 was begun\n"), "{}", ran.stderr());
        assert_eq!(place.read("failed"), "one\n", "it is to be run again");
    }
}

#[test]
fn the_third_signal_kills_what_does_not_listen() {
    let Scene { place, mut running, .. } =
        Scene::new(&["--grace", "1h", "--shutdown-deadline", "10h"], "trap '' TERM;");
    running.signal(Signal::TERM);
    running.hear("nothing more starts");
    running.signal(Signal::TERM);
    running.hear("told to stop");
    running.signal(Signal::TERM);
    let ran = running.end(&place);
    assert_eq!(ran.code(), 143);
    assert!(ran.stderr().contains("1 begun and not finished"), "{}", ran.stderr());
}

#[test]
fn quit_loses_no_time() {
    if is_ignored(Signal::QUIT) {
        return;
    }
    let Scene { place, running, .. } = Scene::new(&[], "");
    running.signal(Signal::QUIT);
    let ran = running.end(&place);
    assert_eq!((ran.code(), ran.stdout()), (131, String::new()));
}

#[test]
fn a_stop_ends_in_time_whatever_the_children_do() {
    for (deadline, least) in [("1s", 600), ("0", 0)] {
        let options =
            ["--json", "--failed-to", "failed", "--grace", "200ms", "--shutdown-deadline", deadline];
        let Scene { place, running, .. } = Scene::new(&options, "trap '' TERM;");
        running.signal(Signal::TERM);
        let (ran, took) = timed(|| running.end(&place));
        assert_eq!(ran.code(), 143, "{}", ran.stderr());
        assert!((least..5000).contains(&took.as_millis()), "{took:?}");
        // Whoever reads has the last line, and nothing is said that is not so.
        let out = ran.stdout();
        assert!(out.starts_with(r#"{"type":"summary","done":0,"failed":0,"unfinished":1,"#), "{out:?}");
        assert!(out.ends_with("}\n") && out.lines().count() == 1, "{out:?}");
        assert!(!ran.stderr().contains("not all output was written"), "{}", ran.stderr());
        assert_eq!(place.read("failed"), "one\n");
    }
}

/// What has left its command's group, as daemons do, does not outlive the run.
#[test]
fn what_has_left_its_group_is_ended_with_the_run() {
    for (before, script) in
        [("listens", "exec sleep 1000"), ("does not", "trap '' TERM; sleep 1000; sleep 1000")]
    {
        let place = Place::new();
        let script = format!("setsid sh -c \"touch up; {script}\" & while [ ! -e up ]; do sleep 0.01; done");
        let ran = place.run(["--grace", "200ms", "--shell", &script], "one\n");
        assert_eq!(ran.code(), 0, "{}", ran.stderr());
        assert!(ran.stderr().contains("had left"), "{before}: {}", ran.stderr());
        assert_eq!(place.processes(), Vec::new(), "{before}: left behind");
    }
}

/// What the worker had fetched and no command has begun is called that, and kept.
#[test]
fn records_that_no_command_has_begun_are_not_said_to_be_begun() {
    for _ in 0..20 {
        let place = Place::new();
        let mut running = place.start(["-j20", "--failed-to", "failed", "--", "touch"]);
        running.feed(&(1..=2_000).map(|number| format!("ran.{number}\n")).collect::<String>());
        crate::support::until("it runs", || place.path("ran.100").exists());
        running.signal(Signal::QUIT);
        let ran = running.end(&place);
        for line in ran.stderr().lines().filter(|line| line.contains("was not begun: ")) {
            let record = line.rsplit(' ').next().expect("a record");
            assert!(!place.path(record).exists(), "{line}, but it has run");
            assert!(place.read("failed").lines().any(|kept| kept == record), "{line}, and is not kept");
        }
    }
}

#[test]
fn a_stop_ends_in_time_though_nobody_reads_the_output() {
    let place = Place::new();
    let mut running = place.start([
        "-j2",
        "--shutdown-deadline",
        "1s",
        "--shell",
        "head -c 200000 /dev/zero; touch ran.$1",
    ]);
    running.feed("1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    crate::support::until("the pipe is full", || place.path("ran.6").exists());
    running.signal(Signal::TERM);
    // Its standard output is still open here, and is not read before it has ended.
    let status = running.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(143));
    let ran = running.end(&place);
    assert!(ran.stderr().contains("not all output was written"), "{}", ran.stderr());
}

#[test]
fn a_run_that_was_complete_when_it_was_stopped_is_complete() {
    let place = Place::new();
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let script = format!("echo > {}; read x < {}", ready.path().display(), go.path().display());
    let mut running = place.start(["-j2", "--shell", &script]);
    running.feed("one\n");
    ready.hear();
    // The slot that is free has read on to the end of the input by the time that it says this.
    running.signal(Signal::USR1);
    running.hear("pid");
    running.signal(Signal::TERM);
    running.hear("nothing more starts");
    go.tell();
    let ran = running.end(&place);
    assert!([0, 143].contains(&ran.code()), "{}", ran.stderr());
    assert!(ran.stderr().contains("1 done, 0 failed"), "{}", ran.stderr());
}

#[test]
fn tstp_lets_nothing_more_start_until_cont() {
    let Scene { place, go, mut running } = Scene::new(&[], "");
    running.signal(Signal::TSTP);
    running.hear("nothing more starts until CONT comes (1 running)");
    go.tell();
    let mut stdout = std::io::BufReader::new(running.child.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("it is a pipe");
    assert_eq!(line, "one go\n");
    running.signal(Signal::USR1);
    assert!(running.hear("done").contains("1 done, 0 running"));
    running.signal(Signal::CONT);
    running.hear("going on");
    let ready = place.path("ready");
    for _ in 0..2 {
        std::fs::read_to_string(&ready).expect("it is there");
        go.tell();
    }
    assert_eq!(running.end(&place).code(), 0);
}

#[test]
fn usr1_says_what_is_running() {
    let Scene { place, go, mut running } = Scene::new(&[], "");
    running.signal(Signal::USR1);
    assert!(running.hear("tidegate: ").starts_with("tidegate: 0 done, 1 running, "));
    let line = running.hear("record 1");
    let id: u32 =
        line.split("pid ").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok()).expect("a pid");
    assert!(place.processes().iter().any(|(process, _)| *process == id), "{line}");
    assert!(line.contains(", attempt 1, for ") && line.ends_with(" s: one\n"), "{line}");
    running.signal(Signal::TERM);
    go.tell();
    running.end(&place);
}

#[test]
fn a_signal_that_was_to_be_ignored_stays_ignored() {
    let place = Place::new();
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let script = format!("echo > {}; read x < {}; echo $1", ready.path().display(), go.path().display());
    let mut command = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_tidegate");
    command.args(["-c", "trap '' HUP INT; exec \"$@\"", "sh", program, "each", "-j1", "--shell", &script]);
    let mut running = place.start_command(place.marked(command));
    running.feed("one\n");
    ready.hear();
    running.signal(Signal::HUP);
    running.signal(Signal::INT);
    go.tell();
    let ran = running.end(&place);
    assert_eq!((ran.code(), ran.stdout()), (0, "one\n".into()));
}
