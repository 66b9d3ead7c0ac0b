//! Many jobs from JSON lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use tidegate::{Inspect, JobQuery, JobState};

use crate::support::{Place, take};

fn lines(numbers: std::ops::RangeInclusive<u32>, bad: u32) -> String {
    let line = |number| match number {
        number if number == bad => "{\"kind\":\"k\",\"priority\":40000}\n".to_owned(),
        number => format!("{{\"kind\":\"k\",\"payload\":{{\"n\":{number}}}}}\n"),
    };
    numbers.map(line).collect()
}

const WHY: &str = "priority: invalid value: integer `40000`, expected i16 at column 28";

#[tokio::test]
async fn ten_thousand_lines_are_enqueued_in_their_order_up_to_a_bad_one() {
    let place = Place::new();
    place.write("jobs.jsonl", lines(1..=10_000, 5_001));
    let ran = place.run(["enqueue", "--json-lines", "jobs.jsonl"]);
    let ids: String = (1..=5_000).map(|id| format!("{id}\n")).collect();
    assert_eq!((ran.code(), ran.stdout()), (1, ids));
    let said = format!(
        "tidegate: line 5001 of jobs.jsonl: {WHY}\ntidegate: stopped there: the 5,000 jobs before that are enqueued\n"
    );
    assert_eq!(ran.stderr(), said);
    // The rest, as the message suggests.
    let rest = place.feed(["enqueue", "-q", "--json-lines"], lines(5_002..=10_000, 0));
    assert_eq!((rest.code(), rest.stdout(), rest.stderr()), (0, String::new(), String::new()));
    let taken = take(&place.queue(), 20_000).await;
    let payloads: Vec<String> =
        taken.iter().map(|taken| String::from_utf8_lossy(&taken.job.payload).into_owned()).collect();
    let meant: Vec<String> =
        (1..=10_000).filter(|number| *number != 5_001).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert!(payloads == meant, "{} jobs, and not those", payloads.len());
}

#[tokio::test]
async fn with_keep_going_all_but_the_bad_lines_are_enqueued() {
    let place = Place::new();
    place.write("jobs.jsonl", lines(1..=10_000, 5_001));
    let ran = place.run(["enqueue", "--json-lines", "jobs.jsonl", "--keep-going", "--json"]);
    let said = ran.json();
    assert_eq!((ran.code(), said.len()), (1, 10_000));
    assert_eq!(ran.stderr(), "tidegate: jobs enqueued: 9,999, lines refused: 1\n");
    let bad: Vec<_> = said.iter().filter(|line| line["ok"] == false).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!((&bad[0]["line"], &bad[0]["error"]), (&5_001.into(), &WHY.into()));
    let last = &said[9_999];
    assert_eq!(
        (&last["line"], &last["id"], &last["result"]),
        (&10_000.into(), &"9999".into(), &"created".into())
    );
    assert_eq!(place.queue().counts().await.expect("counted").ready, 9_999);
}

#[tokio::test]
async fn a_dry_run_names_every_bad_line_and_makes_nothing() {
    let place = Place::new();
    let ran = place.feed(
        ["enqueue", "--json-lines", "-", "--dry-run"],
        "{\"kind\":\"k\"}\n\n  \n{\"kind\":\"\"}\r\n[]\n{\"kind\":\"k\"}\n{}",
    );
    assert_eq!((ran.code(), ran.stdout()), (1, String::new()));
    assert_eq!(
        ran.stderr(),
        "tidegate: line 4 of standard input: a job's kind is empty: name the handler that is to run it\n\
         tidegate: line 5 of standard input: it is no JSON object\n\
         tidegate: line 7 of standard input: it has no kind\n\
         tidegate: good lines: 2, bad lines: 3; nothing is enqueued\n"
    );
    assert!(!place.path("tidegate.sqlite").exists());
    let good = place.feed(["enqueue", "k", "--json-lines", "--dry-run"], "{}\n{}\n");
    assert_eq!(
        (good.code(), good.stderr()),
        (0, "tidegate: good lines: 2, bad lines: 0; nothing is enqueued\n".into())
    );
}

#[tokio::test]
async fn the_command_line_speaks_for_lines_that_do_not() {
    let place = Place::new();
    let args = [
        "enqueue",
        "usual",
        "--json-lines",
        "-",
        "--queue",
        "q",
        "--in",
        "1h",
        "--unique-while",
        "unfinished",
    ];
    let input = r#"{"payload":"a"}
        {"kind":"own","payload":null,"queue":"own","in":0,"priority":3}
        {"payload":[1, 2],"at":"2001-01-01","unique":"u"}
        {"unique":"u"}
    "#;
    let ran = place.feed(args, input);
    assert_eq!(
        (ran.code(), ran.stdout(), ran.stderr()),
        (0, "1\n2\n3\tcreated\n3\tduplicate\n".into(), String::new())
    );
    let queue = place.queue();
    let ready = queue.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed");
    let seen: Vec<_> = ready
        .iter()
        .map(|job| (job.job.kind.as_str(), job.job.queue.as_str(), job.job.priority, &job.job.payload[..]))
        .collect();
    assert_eq!(seen, [("own", "own", 3, &b""[..]), ("usual", "q", 0, b"[1, 2]")]);
    assert_eq!(queue.counts().await.expect("counted").delayed, 1);
    // It is running now, and still neither done nor dead.
    take(&queue, 9).await;
    assert_eq!(place.feed(args, r#"{"unique":"u"}"#).stdout(), "3\tduplicate\n");
}

#[tokio::test]
async fn a_job_is_there_as_soon_as_its_line_has_been_written() {
    let place = Place::new();
    let mut command = place.command(["enqueue", "k", "--json-lines"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is built");
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    for id in ["1\n", "2\n", "3\n"] {
        stdin.write_all(b"{}\n").expect("it reads");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a pipe");
        assert_eq!(line, id, "while the input is still open");
    }
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
}

#[tokio::test]
async fn large_payloads_and_lines_that_are_too_long_are_told_apart() {
    let place = Place::new();
    let coded = format!("{}AA==", "AAAA".repeat((16 << 20) / 3));
    let most = format!("{{\"payload_base64\":\"{coded}\"}}");
    let more = format!("{{\"payload_base64\":\"AAAA{coded}\"}}");
    let endless = format!("{{\"payload\":\"{}\"}}", "x".repeat(33 << 20));
    let input = format!("{most}\n{more}\n{endless}\n{{}}\n");
    let ran = place.feed(["enqueue", "k", "--json-lines", "--keep-going"], input);
    assert_eq!((ran.code(), ran.stdout()), (1, "1\n2\n".into()));
    let lines: Vec<_> = ran.stderr().lines().map(str::to_owned).collect();
    assert!(
        lines[0].contains("line 2 of standard input: the payload of a job of kind \"k\" has 16777219 bytes"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("line 3 of standard input: it has 34,603,022 bytes: at most 33,554,432"),
        "{lines:?}"
    );
    assert_eq!(take(&place.queue(), 1).await[0].job.payload.len(), 16 << 20);
}

#[tokio::test]
async fn what_jobs_shows_as_json_can_be_enqueued_again() {
    let place = Place::new();
    for payload in ["plain", "{\"a\": 1}", "null", ""] {
        place.good(["enqueue", "k", payload, "--queue", "q", "--priority", "2", "--timeout", "90s"]);
    }
    assert_eq!(place.feed(["enqueue", "k", "-"], b"\xff\0").code(), 0);
    let listed = place.good(["jobs", "list", "--json"]).json();
    let lines = listed.iter().map(|job| {
        let names = ["kind", "queue", "priority", "timeout", "max_attempts", "payload", "payload_base64"];
        serde_json::Value::Object(names.iter().map(|name| ((*name).to_owned(), job[name].clone())).collect())
    });
    let input: String = lines.map(|line| format!("{line}\n")).collect();
    let other = ["enqueue", "--json-lines", "-s", "other.db"];
    let ran = place.feed(other, input);
    assert_eq!((ran.code(), ran.stderr()), (0, String::new()));
    let again = place.good(["jobs", "list", "--json", "-s", "other.db"]).json();
    for (job, again) in listed.iter().zip(&again) {
        for name in ["kind", "queue", "priority", "timeout", "max_attempts", "payload", "payload_base64"] {
            assert_eq!(job[name], again[name], "{name}");
        }
    }
    assert_eq!((listed.len(), again.len()), (5, 5));
}
