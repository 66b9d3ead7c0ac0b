//! Jobs of a queue become commands.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use tidegate::{JobState, NewJob};

use crate::scene::{Daemon, Jobs, hear, line};
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
fn a_job_becomes_a_request_with_its_payload_and_its_secrets() {
    if !cfg!(feature = "http") {
        return;
    }
    let place = Place::new();
    let jobs = Jobs::new(&place);
    let server = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = server.local_addr().expect("it has one");
    let config = format!(
        "{SOURCE}[worker]\nretry = {{ initial = \"0s\" }}\n\
         [kinds.\"mail.send\"]\nhttp = \"http://{address}/jobs/mail\"\nheaders = {{ Authorization = {{ env = \"MAIL_AUTH\" }} }}\n"
    );
    let daemon = Daemon::start_with(&place, &config, |command| {
        command.env("MAIL_AUTH", "Bearer abc");
    });
    let id = jobs.put(NewJob::new("mail.send", "{\"to\":\"Ada\"}"));
    for (attempt, answer) in [(1, "503 Service Unavailable"), (2, "204 No Content")] {
        let (mut stream, _) = server.accept().expect("it comes");
        let mut request = Vec::new();
        while !request.ends_with(b"{\"to\":\"Ada\"}") {
            let mut block = [0; 1024];
            let length = stream.read(&mut block).expect("it is a socket");
            assert!(length > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&block[..length]);
        }
        let request = String::from_utf8(request).expect("plain text").to_lowercase();
        assert!(request.starts_with("post /jobs/mail http/1.1\r\n"), "{request}");
        for header in [
            "authorization: bearer abc",
            "content-type: application/json",
            &format!("tidegate-attempt: {attempt}"),
        ] {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{header}: {request}");
        }
        stream
            .write_all(
                format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .expect("it reads");
    }
    jobs.until(&id, JobState::Done);
    let ran = daemon.stop();
    assert_eq!(ran.code(), 0);
    let failed = line(&ran, "job failed, will be retried");
    assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("503")), "{failed}");
    assert!(!ran.stderr().contains("abc"), "{}", ran.stderr());
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
    hear(ready.path().to_owned());
    daemon.signal(rustix::process::Signal::KILL);
    daemon.killed();
    go.tell(); // to the command, which is left
    let daemon = Daemon::start(&place, &config);
    hear(ready.path().to_owned());
    go.tell();
    jobs.until(&id, JobState::Done);
    assert_eq!(daemon.stop().code(), 0);
}
