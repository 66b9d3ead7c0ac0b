//! What is shown of the commands' outputs, and of the run itself.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};

use serde_json::Value;

use crate::support::{Place, until};

fn lines(numbers: impl Iterator<Item = u32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

#[test]
fn outputs_are_shown_whole_and_never_mixed() {
    // Each writes its output in pieces, mid-line, and without a last newline.
    let script = "for i in 1 2 3 4 5; do printf \"$1:\"; printf \"$i \"; done; printf \"\\n$1 end\"";
    let ran = Place::new().run(["-j8", "--shell", script], lines(1..=100));
    assert_eq!(ran.code(), 0);
    let stdout = ran.stdout();
    let all: Vec<&str> = stdout.lines().collect();
    let mut seen = BTreeSet::new();
    for pair in all.chunks(2) {
        let number = pair[1].strip_suffix(" end").expect("the last line of a record");
        assert_eq!(pair[0], format!("{number}:1 {number}:2 {number}:3 {number}:4 {number}:5 "));
        assert!(seen.insert(number.to_owned()));
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn standard_error_stays_apart() {
    let ran = Place::new().run(["-q", "--shell", "echo out $1; printf 'err %s' $1 >&2"], "a\n");
    assert_eq!((ran.stdout(), ran.stderr()), ("out a\n".into(), "err a\n".into()));
}

#[test]
fn what_is_too_much_is_dropped_and_said_to_be() {
    let ran = Place::new().run(["--max-output", "10B", "--shell", "seq 1000; seq 100 >&2"], "a\n");
    assert_eq!((ran.code(), ran.stdout()), (0, "1\n2\n3\n4\n5\n".into()));
    let notes = "1\n2\n3\n4\n5\ntidegate: record 1: 3,883 bytes of standard output beyond --max-output dropped\n\
                 tidegate: record 1: 282 bytes of standard error beyond --max-output dropped\n";
    assert!(ran.stderr().starts_with(notes), "{}", ran.stderr());
}

#[test]
fn bytes_that_are_no_text_pass_as_they_are() {
    let ran = Place::new().run(["--shell", "head -c 100000 /dev/zero; printf '\\377\\n'"], "a\n");
    assert_eq!(ran.0.stdout.len(), 100_002);
    assert!(ran.0.stdout.ends_with(b"\0\xff\n"));
}

#[test]
fn a_tag_stands_before_each_line() {
    let ran = Place::new().run(["-j1", "--tag", "--shell", "echo 1; printf 2"], "a b\nc\n");
    assert_eq!(ran.stdout(), "a b\t1\na b\t2\nc\t1\nc\t2\n");
}

#[test]
fn json_has_a_line_for_each_record_and_one_for_all() {
    let script = "case $1 in bad) exit 3;; raw) printf '\\377';; killed) kill -9 $$;; *) echo \"$1\"; echo err >&2;; esac";
    let args = ["--json", "-j1", "--max-attempts", "2", "--retry-wait", "1ms", "--shell", script];
    let ran = Place::new().run(args, "plain\nbad\nraw\nkilled\na\0b\n");
    assert_eq!((ran.code(), ran.stderr()), (1, String::new()));
    let mut values: Vec<Value> =
        ran.stdout().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summary = values.pop().expect("the last line");
    assert_eq!(
        (&summary["type"], &summary["done"], &summary["failed"], &summary["retried"], &summary["stopped_by"]),
        (&"summary".into(), &2.into(), &3.into(), &2.into(), &Value::Null)
    );
    values.sort_by_key(|value| value["id"].as_u64());
    let [plain, bad, raw, killed, nul] = &values[..] else { panic!("{values:?}") };
    assert!(plain["seconds"].is_f64());
    assert_eq!(
        (&plain["record"], &plain["ok"], &plain["exit_code"], &plain["stdout"], &plain["stderr"]),
        (&"plain".into(), &true.into(), &0.into(), &"plain\n".into(), &"err\n".into())
    );
    assert_eq!(
        (&bad["ok"], &bad["exit_code"], &bad["attempts"], &bad["error"]),
        (&false.into(), &3.into(), &2.into(), &"exited with status 3".into())
    );
    assert_eq!(raw["stdout"]["base64"], "/w==");
    assert_eq!((&killed["signal"], &killed["exit_code"]), (&9.into(), &Value::Null));
    assert_eq!((&nul["record"], &nul["stdout"], &nul["attempts"]), (&"a\0b".into(), &Value::Null, &1.into()));
}

#[test]
fn a_summary_is_left_out_only_when_all_is_well_and_it_is_not_wanted() {
    let place = Place::new();
    assert!(place.run(["true"], "a\n").stderr().starts_with("tidegate: 1 done, 0 failed in "));
    assert_eq!(place.run(["-q", "true"], "a\n").stderr(), "");
    let failed = place.run(["-q", "false"], "a\n").stderr();
    assert!(failed.contains("tidegate: record 1 failed: exited with status 1: a\n"), "{failed}");
}

#[test]
fn standard_output_that_is_closed_early_ends_the_run_quietly() {
    let place = Place::new();
    let (ready, wait) = (place.fifo("ready"), place.fifo("wait"));
    let keep = wait.both_ends();
    // One waits for ever; the others say something.
    let paths = (ready.path().display(), wait.path().display());
    let script = format!("[ $1 = 0 ] && {{ echo > {}; read x < {}; }} || echo $1", paths.0, paths.1);
    let mut running = place.start(["-j2", "--grace", "1s", "--shell", &script]);
    let mut stdin = running.child.stdin.take().expect("piped");
    let mut stdout = BufReader::new(running.child.stdout.take().expect("piped"));
    stdin.write_all(b"0\n1\n").expect("it reads");
    ready.hear();
    let mut line = String::new();
    stdout.read_line(&mut line).expect("it is a pipe");
    assert_eq!(line, "1\n");
    drop(stdout);
    // Many, since a process that another test starts at this moment may have the other end a little longer.
    // It may end before it has read them.
    let _ = stdin.write_all(lines(2..1000).as_bytes());
    let ran = running.end(&place);
    assert_eq!((ran.code(), ran.stderr()), (141, String::new()));
    drop((stdin, keep));
}

#[test]
fn a_slow_reader_slows_the_work_down() {
    let place = Place::new();
    // Each says more than a pipe holds.
    let mut running =
        place.start(["-j2", "--max-output", "200KiB", "--shell", "touch ran.$1; head -c 150000 /dev/zero"]);
    running.feed(&lines(1..=100));
    let ran = || std::fs::read_dir(place.path("")).expect("it is ours").count();
    // One being written, four that wait for it, two that wait to be settled; and not many more.
    until("the places are full", || ran() >= 6);
    running.signal(rustix::process::Signal::USR1);
    running.hear("running");
    assert!(ran() <= 12, "{} have run", ran());
    let ended = running.end(&place);
    assert_eq!((ended.code(), ended.0.stdout.len()), (0, 100 * 150_001));
}
