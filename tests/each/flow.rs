//! How many run, what is read, what is tried again.

use std::io::{ErrorKind, Write as _};

use crate::support::{Place, state, timed, until};

fn lines(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

#[test]
fn never_more_run_than_may_and_no_slot_stays_empty() {
    let place = Place::new();
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let script = format!("echo $1 > {}; read x < {}", ready.path().display(), go.path().display());
    let mut running = place.start(["-j3", "--shell", &script]);
    running.feed(&lines(10));
    // Three are there at once. Readers of one FIFO share what comes: each takes one line.
    let hold = ready.both_ends();
    let mut heard = std::io::BufReader::new(hold);
    let mut next = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut heard, &mut line).expect("it is a pipe");
        line
    };
    for _ in 0..3 {
        next();
    }
    running.signal(rustix::process::Signal::USR1);
    assert!(running.hear("running").contains("0 done, 3 running"));
    let mut tell = go.both_ends();
    for done in 1..=10 {
        // One place comes free, and one more starts.
        tell.write_all(b"go\n").expect("it is a pipe");
        if done + 3 <= 10 {
            next();
        }
    }
    let ran = running.end(&place);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
}

#[test]
fn a_slow_record_holds_up_no_other() {
    let place = Place::new();
    let go = place.fifo("go");
    let script = format!("[ $1 = 1 ] && read x < {} ; echo $1", go.path().display());
    let mut running = place.start(["-j2", "--progress", "never", "--shell", &script]);
    running.feed(&lines(50));
    let mut stdout = std::io::BufReader::new(running.child.stdout.take().expect("piped"));
    for number in 2..=50 {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut line).expect("it is a pipe");
        assert_eq!(line, format!("{number}\n"));
    }
    go.tell();
    assert_eq!(running.end(&place).code(), 0);
}

#[test]
fn a_billion_lines_are_read_only_as_slots_come_free() {
    let place = Place::new();
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    let script = format!("echo $1 > {}; read x < {}", ready.path().display(), go.path().display());
    let mut running = place.start(["-j2", "--shell", &script]);
    let mut stdin = running.child.stdin.take().expect("piped");
    rustix::io::ioctl_fionbio(&stdin, true).expect("a pipe");
    let block = [b'x', b'\n'].repeat(4096);
    let mut taken = 0;
    let mut fill = |taken: &mut usize| loop {
        match stdin.write(&block) {
            Ok(length) => *taken += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    };
    // What a pipe holds, and one block.
    let bound = (64 << 10) + (64 << 10);
    let mut heard = std::io::BufReader::new(ready.both_ends());
    let mut tell = go.both_ends();
    for _ in 0..200 {
        fill(&mut taken);
        std::io::BufRead::read_line(&mut heard, &mut String::new()).expect("it is a pipe");
        fill(&mut taken);
        assert!(taken <= bound, "{taken} bytes were taken for a few records of two bytes each");
        tell.write_all(b"go\n").expect("it is a pipe");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a Linux");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 40 << 10, "{peak} KiB");
    running.signal(rustix::process::Signal::TERM);
    running.hear("nothing more starts");
    running.signal(rustix::process::Signal::TERM);
    drop((heard, tell, stdin));
    assert_eq!(running.end(&place).code(), 143);
}

#[test]
fn memory_does_not_grow_with_the_number_of_records() {
    let place = Place::new();
    let go = place.fifo("go");
    let peak_after = |records: u32| {
        let script = format!("[ $1 = {records} ] && read x < {}; exit 1", go.path().display());
        let mut running = place.start(["-j4", "--progress", "never", "--shell", &script]);
        running.feed(&lines(records));
        // It waits for the last one's other end.
        let tell = std::fs::OpenOptions::new().write(true).open(go.path()).expect("it is there");
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("it runs");
        drop(tell);
        assert_eq!(running.end(&place).code(), 1);
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a Linux");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let (few, many) = (peak_after(100), peak_after(1200));
    assert!(many < few + 1024, "{few} KiB with 100 failed records, {many} KiB with 1200");
}

#[test]
fn nothing_of_a_record_is_left_when_it_is_over() {
    let place = Place::new();
    let (ready, go) = (place.fifo("ready"), place.fifo("go"));
    // Each leaves processes behind, in its group and out of it; then one waits.
    let script = format!(
        "[ $1 -le 30 ] && {{ sleep 1000 & (sleep 1000 &) ; setsid true & true; }} || {{ echo > {}; read x < {}; }}",
        ready.path().display(),
        go.path().display()
    );
    let mut running = place.start(["-j3", "--shell", &script]);
    running.feed(&lines(31));
    ready.hear();
    let own = running.id();
    // Orphans that made a group of their own are taken away once a second.
    until("only the last record's shell is left", || {
        let processes = place.processes();
        let zombies = children(own).into_iter().filter(|child| state(*child) == Some('Z')).count();
        processes.len() == 2 && zombies == 0
    });
    go.tell();
    assert_eq!(running.end(&place).code(), 0);
}

/// The ids of a process's children.
fn children(id: u32) -> Vec<u32> {
    let lists = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = lists.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

#[test]
fn a_record_that_fails_is_tried_again_and_in_the_end_named() {
    let place = Place::new();
    let script = "echo try $TIDEGATE_ATTEMPT >&2; echo $1.$TIDEGATE_ATTEMPT; \
                  [ $1 != bad ] && [ $TIDEGATE_ATTEMPT -ge 2 ]";
    let args = ["--max-attempts", "3", "--retry-wait", "1ms", "--failed-to", "failed", "--shell", script];
    let ran = place.run(args, "bad\ngood\n");
    assert_eq!(
        (ran.code(), ran.sorted()),
        (1, vec!["bad.3".into(), "good.2".into()]),
        "only what counts is shown"
    );
    let stderr = ran.stderr();
    assert_eq!(stderr.matches("try 1\n").count(), 2, "complaints are shown of every attempt: {stderr}");
    assert!(stderr.contains("1 done, 1 failed") && stderr.contains("3 attempts were repeated"), "{stderr}");
    assert!(stderr.contains("record 1 failed: exited with status 1 (attempt 3 of 3): bad\n"), "{stderr}");
    assert_eq!(place.read("failed"), "bad\n");
    let again = place.run(["-i", "failed", "--retries", "0", "true"], "");
    assert_eq!(again.code(), 0);
}

#[test]
fn reading_pauses_while_too_many_wait_to_be_tried_again() {
    let place = Place::new();
    let script = "echo $1 >> ran.$TIDEGATE_ATTEMPT; [ $TIDEGATE_ATTEMPT = 2 ]";
    let args = ["-j1", "--retries", "1", "--retry-wait", "20ms", "--max-waiting", "2", "--shell", script];
    let ran = place.run(args, lines(12));
    assert_eq!(ran.code(), 0);
    assert_eq!(place.read("ran.1").lines().count(), 12);
    assert_eq!(place.read("ran.2").lines().count(), 12);
    assert!(ran.stderr().contains("12 attempts were repeated"), "{}", ran.stderr());
}

#[test]
fn a_record_that_takes_too_long_is_ended_with_all_that_it_started() {
    let place = Place::new();
    let script = "trap '' TERM; (trap '' TERM; exec sleep 1000) & sleep 1000";
    let args = ["--timeout", "300ms", "--grace", "100ms", "--shell", script];
    let (ran, took) = timed(|| place.run(args, "a\n"));
    assert_eq!(ran.code(), 1);
    assert!(ran.stderr().contains("record 1 failed: timed out after 300ms: a"), "{}", ran.stderr());
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn a_failure_may_stop_the_rest() {
    let place = Place::new();
    let ran = place.run(["-j1", "--stop-on-failure", "--shell", "echo $1; [ $1 != 3 ]"], lines(1000));
    assert_eq!((ran.code(), ran.stdout()), (1, "1\n2\n3\n".into()));
    assert!(
        ran.stderr().contains("stopped by --stop-on-failure before the end of the input: 2 done, 1 failed"),
        "{}",
        ran.stderr()
    );
}
