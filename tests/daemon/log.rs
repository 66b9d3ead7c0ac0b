//! What the daemon says.

use std::process::Stdio;

use rustix::process::Signal;
use tidegate::{JobState, NewJob};

use crate::scene::{Daemon, Jobs, command, hear, line, lines, run};
use crate::support::Place;

#[test]
fn a_failed_job_has_one_line_with_all_that_is_known_of_it() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = "source = \"sqlite:jobs.sqlite\"\n[worker.retry]\nmax_attempts = 2\ninitial = \"0s\"\n\
                  [kinds.work]\nexec = [\"sh\", \"-c\", \"exit 3\"]\n";
    let daemon = Daemon::start(&place, config);
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Dead);
    let ran = daemon.stop();
    let retried = line(&ran, "job failed, will be retried");
    let failed = line(&ran, "job failed for good");
    for (line, level, attempt) in [(&retried, "warn", 1), (&failed, "error", 2)] {
        assert_eq!((line["level"].as_str(), line["kind"].as_str()), (Some(level), Some("work")), "{line}");
        assert_eq!(
            (line["id"].as_str(), line["attempt"].as_u64()),
            (Some(id.as_str()), Some(attempt)),
            "{line}"
        );
        assert!(
            line["reason"].as_str().is_some_and(|reason| reason.contains("exited with status 3")),
            "{line}"
        );
        let time = line["time"].as_str().unwrap_or_default();
        assert!(time.len() == 27 && time.ends_with('Z') && &time[10..11] == "T", "{line}");
    }
}

#[test]
fn it_says_at_the_start_what_runs_and_at_the_end_what_was_done() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config =
        "source = \"sqlite:jobs.sqlite\"\n[kinds.b]\nexec = [\"true\"]\n[kinds.a]\nexec = [\"true\"]\n";
    let daemon = Daemon::start_with(&place, config, |command| {
        command.args(["-j", "3"]);
    });
    let id = jobs.put(NewJob::new("a", ""));
    jobs.until(&id, JobState::Done);
    let ran = daemon.stop();
    let said = lines(&ran);
    let started = &said[0];
    assert_eq!(started["message"], "started");
    assert_eq!((&started["kinds"], &started["max_concurrent_jobs"]), (&"a, b".into(), &3.into()));
    assert_eq!(started["source"], format!("sqlite:{}", place.path("jobs.sqlite").display()));
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
    assert!(started["pid"].is_u64());
    let asked = line(&ran, "asked to stop");
    assert_eq!(asked["signal"], "TERM");
    let stopped = said.last().expect("there are several");
    assert_eq!((&stopped["message"], &stopped["done"]), (&"stopped".into(), &1.into()));
}

#[test]
fn usr1_lists_what_is_in_hand() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let config = "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"sh\", \"-c\", \"echo > ready; read x < go\"]\n";
    let mut daemon = Daemon::start(&place, config);
    let id = jobs.put(NewJob::new("work", "").queue("mail"));
    hear(ready.path().to_owned());
    daemon.signal(Signal::USR1);
    let listed = daemon.hear("in hand");
    assert_eq!((&listed["id"], &listed["kind"]), (&id.as_str().into(), &"work".into()));
    assert_eq!((&listed["queue"], &listed["phase"]), (&"mail".into(), &"Running".into()));
    let figures = daemon.hear("figures");
    assert_eq!(
        (&figures["in_hand"], &figures["running"], &figures["done"]),
        (&1.into(), &1.into(), &0.into())
    );
    go.tell();
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn no_secret_is_ever_logged() {
    const SECRET: &str = "hunter2";
    const LAID: &str = "correct horse";
    let place = Place::new();
    let jobs = Jobs::new(&place);
    place.write("token", SECRET);
    // What it was given it says on both outputs, in the middle, at the end, and where the outputs are cut.
    let script = "test $A$B$C = hunter2hunter2$D || exit 9; x() { head -c $1 /dev/zero | tr '\\0' x; }\n\
                  echo \"$B\"; { echo \"token: $C; $LAID\"; x 989; printf %s $B; x 5000; printf %s $C; x 986\n\
                  echo \"no $B$C, $LAID\"; } >&2; exit 3";
    let work = format!(
        "exec = [\"sh\", \"-c\", {script:?}]\nmax_output = \"2KiB\"\nretry = {{ max_attempts = 2, initial = \"0s\" }}\n\
         env = {{ A = \"hunter2\", B = {{ env = \"TOKEN\" }}, C = {{ file = \"token\" }}, D = \"hunter2\" }}\n"
    );
    let config = format!("source = \"sqlite:jobs.sqlite\"\n[log]\nlevel = \"trace\"\n[kinds.work]\n{work}");
    let mut daemon = Daemon::start_with(&place, &config, |command| {
        command.env("TOKEN", SECRET).env("TIDEGATE_KINDS__WORK__ENV__LAID", LAID);
    });
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Dead);
    assert_nothing_kept_holds(&place, id.as_str(), &["hunte", "nter2", "horse"]);
    // The payload is the producer's.
    let told = jobs.put(NewJob::new("work", SECRET));
    jobs.until(&told, JobState::Dead);
    daemon.reload(&format!("{config}garce = \"1s\"\n"));
    daemon.hear("configuration refused");
    daemon.reload(&config);
    daemon.hear("configuration reloaded");
    daemon.signal(Signal::USR1);
    daemon.hear("figures");
    let ran = daemon.stop();
    let reasons: Vec<String> =
        lines(&ran).iter().filter_map(|line| line["reason"].as_str().map(str::to_owned)).collect();
    assert_eq!(reasons.len(), 4);
    for reason in reasons {
        assert!(
            reason.starts_with("exited with status 3: …x") && reason.ends_with(r"xno ***, ***"),
            "{reason}"
        );
    }
    for secret in ["hunte", "nter2", "horse"] {
        assert!(!ran.stderr().contains(secret), "{}", ran.stderr());
    }
    let mut check = command(&place, &["--check"]);
    check.env("TOKEN", SECRET);
    let ran = run(&place, check);
    assert_eq!(ran.code(), 0);
    assert!(!ran.stdout().contains(SECRET), "{}", ran.stdout());
}

/// Neither what `jobs show` says of a job nor any byte of the store, which somebody still has open.
fn assert_nothing_kept_holds(place: &Place, id: &str, secrets: &[&str]) {
    for form in [&["jobs", "show", id][..], &["jobs", "show", "--json", id]] {
        let mut show = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        show.args(form).args(["--source", "jobs.sqlite"]).current_dir(place.path(""));
        let shown = show.output().expect("the program is built");
        let said = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success() && said.contains("***"), "{shown:?}");
        for secret in secrets {
            assert!(!said.contains(secret), "{said}");
        }
    }
    for file in ["jobs.sqlite", "jobs.sqlite-wal"] {
        let bytes = std::fs::read(place.path(file)).expect("it is there while the file is open");
        for secret in secrets {
            let held = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!held, "{file} holds {secret}");
        }
    }
}

/// The same for a request: its headers, the query of its URL, where an answer sends it, and what an answer repeats.
#[cfg(feature = "http")]
#[test]
fn no_secret_of_a_request_is_ever_logged() {
    const SECRET: &str = "hunter2";
    const SECOND: &str = "swordfish";
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("it is bound").port();
    let served = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut heads = Vec::new();
        let location = format!("Location: http://{SECRET}.example/?key={SECRET}\r\n");
        for (status, location) in
            [("500 Internal Server Error", ""), ("302 Found", location.as_str()), ("404 Not Found", "")]
        {
            let (mut connection, _) = server.accept().expect("a request");
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut part = [0; 4096];
                let length = connection.read(&mut part).expect("it is sent");
                assert!(length > 0, "it is sent whole");
                head.extend_from_slice(&part[..length]);
            }
            // What it was asked, what it makes of that, and where what is kept ends a part of it.
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut body = format!("no such token: {SECRET}, {SECOND}\n{head}");
            body.push_str(&" ".repeat(2048 - 5 - body.len()));
            body.push_str(&SECRET.repeat(200));
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\n{location}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            // Whoever has read enough hangs up.
            let _ = connection.write_all(answer.as_bytes());
            heads.push(head);
        }
        heads
    });
    let config = format!(
        "source = \"sqlite:jobs.sqlite\"\n[log]\nlevel = \"trace\"\n[kinds.work]\nhttp = \"http://127.0.0.1:{port}/jobs?key={SECRET}\"\n\
         headers = {{ Authorization = \"Bearer {SECOND}\", X-More = {{ env = \"TOKEN\" }} }}\n\
         max_response = \"2KiB\"\nretry = {{ max_attempts = 3, initial = \"0s\" }}\n"
    );
    let daemon = Daemon::start_with(&place, &config, |command| {
        command.env("TOKEN", SECRET);
    });
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Dead);
    for head in served.expect("a thread").join().expect("it was asked") {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("authorization: bearer swordfish") && head.contains("hunter2"), "{head}");
    }
    assert_nothing_kept_holds(&place, id.as_str(), &["hunte", "swordfish"]);
    let ran = daemon.stop();
    assert!(ran.stderr().contains("404 Not Found: no such token: ***, ***"), "{}", ran.stderr());
    assert!(ran.stderr().contains("which leads to ***.example"), "{}", ran.stderr());
    for secret in ["hunte", SECOND] {
        assert!(!ran.stderr().contains(secret), "{}", ran.stderr());
    }
}

#[test]
fn a_log_that_nobody_can_read_stops_nothing() {
    let place = Place::new();
    let jobs = Jobs::new(&place);
    place.write("tidegate.toml", "source = \"sqlite:jobs.sqlite\"\n[kinds.work]\nexec = [\"true\"]\n");
    let mut command = command(&place, &[]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is built");
    drop(child.stderr.take());
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Done);
    let process = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
    rustix::process::kill_process(process, Signal::TERM).expect("it is ours");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    place.assert_nobody_is_left();
}

#[test]
fn a_log_that_nobody_reads_for_a_while_stops_nothing_and_says_what_it_has_dropped() {
    const JOBS: usize = 4000;
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let config = "source = \"sqlite:jobs.sqlite\"\n[sqlite]\ndurability = \"normal\"\n\
                  [worker]\nmax_concurrent_jobs = 200\nunknown_kind = \"reject\"\n[kinds.work]\nexec = [\"true\"]\n";
    // Each of them is a line in the log, and the pipe to it holds some hundreds.
    let many = jobs.put_many((0..JOBS).map(|_| NewJob::new("unknown", "")).collect());
    let mut daemon = Daemon::start(&place, config);
    for id in &many {
        jobs.until(id, JobState::Dead);
    }
    let id = jobs.put(NewJob::new("work", ""));
    jobs.until(&id, JobState::Done);
    // From here on it is read.
    daemon.hear("lines of the log were dropped");
    let ran = daemon.stop();
    let said = lines(&ran);
    let dropped: u64 = said.iter().filter_map(|line| line["lines"].as_u64()).sum();
    let failed = said.iter().filter(|line| line["message"] == "job failed for good").count() as u64;
    assert!(dropped > 0 && dropped + failed == JOBS as u64, "{dropped} + {failed}");
}

#[test]
fn the_log_is_for_a_person_if_that_is_asked_for() {
    let place = Place::new();
    let config = "[kinds.work]\nexec = [\"true\"]\n";
    place.write("tidegate.toml", config);
    let mut command = command(&place, &["--log-format", "human", "--source", "sqlite:jobs.sqlite"]);
    command.env("TERM", "xterm");
    let mut running = place.start_command(command);
    let said = running.hear(" INFO  started ");
    assert!(said.contains(" kinds=work max_concurrent_jobs=20 pid=") && !said.contains('\x1b'), "{said}");
    running.signal(Signal::TERM);
    let said = running.end(&place).stderr();
    assert!(said.lines().last().is_some_and(|last| last.contains(" INFO  stopped ")), "{said}");
}
