//! `tidegate jobs list` and `show`.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::backend::sqlite::Sqlite;
use tidegate::{Enqueue, NewJob, Settled, Settlement, Source};

use crate::support::{Place, enqueued, take};

/// Jobs in all states but done, and their ids: dead, leased, two ready, delayed.
async fn mixed(place: &Place) -> (Sqlite, [String; 5]) {
    let dead = NewJob::new("mail", r#"{"to":"ada"}"#).max_attempts(3).queue("slow");
    let (queue, dead) = place.with(vec![(dead, Some("the server said no"))]).await;
    let leased = enqueued(&queue, vec![NewJob::new("scan", vec![0xff, 0]).priority(9)]).await;
    take(&queue, 1).await;
    let later = NewJob::new("mail", "later").delay(Duration::from_secs(7_300));
    let more =
        enqueued(&queue, vec![NewJob::new("mail", "first"), NewJob::new("mail", "second"), later]).await;
    let ids = [&dead[0], &leased[0], &more[0], &more[1], &more[2]].map(Clone::clone);
    (queue, ids)
}

/// The words of each line.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn without_a_subcommand_there_is_a_table_of_all_that_is_not_done() {
    let place = Place::new();
    let (_, [dead, leased, first, second, delayed]) = &mixed(&place).await;
    let ran = place.good(["jobs"]);
    let (stdout, list) = (ran.stdout(), place.good(["jobs", "list"]).stdout());
    let rows = words(&stdout);
    let without_times = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(without_times(&stdout), without_times(&list), "they are the same");
    assert_eq!(rows[0], ["ID", "STATE", "QUEUE", "KIND", "TRIES", "SINCE", "DUE", "PAYLOAD", "ERROR"]);
    assert_eq!(rows[1][..5], [&**leased, "leased", "default", "scan", "1"]);
    assert_eq!(*rows[1].last().expect("words"), r"\xff\u{0}");
    assert_eq!(
        (rows[2][..2].to_vec(), rows[3][..2].to_vec()),
        (vec![&**first, "ready"], vec![&**second, "ready"])
    );
    assert_eq!((rows[4][..2].to_vec(), rows[4][6]), (vec![&**delayed, "delayed"], "2h"));
    assert_eq!(rows[5][..5], [&**dead, "dead", "slow", "mail", "1/3"]);
    assert!(stdout.ends_with(&format!("{}  the server said no\n", r#"{"to":"ada"}"#)), "{stdout}");
    let at = |line: usize, what: &str| stdout.lines().nth(line).and_then(|line| line.find(what));
    assert!(
        at(0, "ERROR").is_some() && at(0, "ERROR") == at(5, "the server"),
        "columns are aligned: {stdout}"
    );
}

#[tokio::test]
async fn filters_leave_out_what_was_not_asked_for() {
    let place = Place::new();
    let (queue, [dead, leased, first, second, delayed]) = &mixed(&place).await;
    let ids = |args: &[&str]| -> Vec<String> {
        let all = ["jobs", "list", "--quiet"].iter().chain(args);
        place.run(all).stdout().lines().map(str::to_owned).collect()
    };
    assert_eq!(ids(&["--state", "dead"]), [&**dead]);
    assert_eq!(ids(&["--state", "delayed,ready"]), [&**delayed, &**first, &**second]);
    assert_eq!(ids(&["--state", "delayed", "--state", "dead"]), [&**delayed, &**dead]);
    assert_eq!(ids(&["--kind", "mail"]), [&**first, &**second, &**delayed, &**dead]);
    assert_eq!(ids(&["--kind", "mail", "--queue", "slow"]), [&**dead]);
    assert_eq!(ids(&["--queue", "none"]), [""; 0]);
    assert_eq!(ids(&["--state", "ready", "--limit", "1"]), [&**first]);
    assert_eq!(ids(&["--state", "ready", "--skip", "1"]), [&**second]);
    assert_eq!(place.good(["jobs", "-q", "--state", "leased"]).stdout(), format!("{leased}\n"));
    queue.enqueue(vec![NewJob::new("many", ""); 60]).await.expect("enqueued");
    let some = place.run(["jobs", "list", "--state", "ready"]);
    assert_eq!(some.stdout().lines().count(), 51);
    assert_eq!(some.stderr(), "tidegate: there are more than 50 ready: --state ready --limit N shows more\n");
    let several = place.run(["jobs"]);
    assert_eq!(several.stdout().lines().count(), 1 + 1 + 10 + 1 + 1);
    assert_eq!(
        several.stderr(),
        "tidegate: there are more than 10 ready: --state ready --limit N shows more\n"
    );
    let none = place.run(["jobs", "--kind", "none", "--queue", "q"]);
    assert_eq!((none.code(), none.stdout()), (0, String::new()));
    assert_eq!(none.stderr(), "tidegate: no such jobs of kind \"none\" in queue \"q\"\n");
}

#[tokio::test]
async fn a_long_list_is_shown_whole_and_in_order() {
    let place = Place::new();
    let queue = place.queue();
    for part in 0..3 {
        let job = |number| NewJob::new("k", format!("{}", part * 1_000 + number));
        queue.enqueue((0..1_000).map(job).collect()).await.expect("enqueued");
    }
    let listed = place.good(["jobs", "list", "--json", "--state", "ready", "--limit", "10000"]).json();
    let payloads: Vec<&str> = listed.iter().filter_map(|job| job["payload"].as_str()).collect();
    let meant: Vec<String> = (0..3_000).map(|number| number.to_string()).collect();
    assert_eq!(payloads, meant);
    let table = place.good(["jobs", "list", "--state", "ready", "--limit", "3000"]).stdout();
    assert_eq!((table.lines().count(), table.matches("PAYLOAD").count()), (3_001, 1));
    assert!(table.ends_with("  2999\n"), "the last of them");
}

#[tokio::test]
async fn as_json_a_job_has_all_its_fields() {
    let place = Place::new();
    let (_, [id, ..]) = mixed(&place).await;
    let all = place.good(["jobs", "--json"]).json();
    let names: Vec<&str> = all[4].as_object().expect("an object").keys().map(String::as_str).collect();
    let fields =
        |job: &Value, names: &[&str]| -> Vec<Value> { names.iter().map(|name| job[*name].clone()).collect() };
    assert_eq!(names.len(), 15, "{names:?}");
    let dead = &all[4];
    assert_eq!(
        fields(dead, &["id", "state", "kind", "queue", "priority", "attempts", "max_attempts", "timeout"]),
        [json!(id), json!("dead"), json!("mail"), json!("slow"), json!(0), json!(1), json!(3), Value::Null]
    );
    assert_eq!(
        fields(dead, &["due", "cancel_requested", "superseded_by", "last_error", "payload"]),
        [Value::Null, json!(false), Value::Null, json!("the server said no"), json!(r#"{"to":"ada"}"#)]
    );
    for time in [&dead["enqueued_at"], &dead["since"], &all[0]["due"], &all[3]["due"]] {
        assert!(time.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{time}");
    }
    assert_eq!((&all[0]["payload"], &all[0]["payload_base64"]), (&Value::Null, &json!("/wA=")));
}

#[tokio::test]
async fn a_job_is_shown_in_full_with_its_attempts() {
    let place = Place::new();
    let queue = place.queue();
    let job = NewJob::new("mail", "two\nlines").max_attempts(2).timeout(Duration::from_secs(90)).priority(-3);
    queue.enqueue(vec![job]).await.expect("enqueued");
    let taken = take(&queue, 1).await;
    let retry =
        Settled::new(taken[0].tag, Settlement::Retry { after: Duration::ZERO }).because("no answer\nat all");
    queue.settle(&[retry.with_output(b"\xff\x01")]).await.expect("settled");
    let taken = take(&queue, 1).await;
    let reject = Settled::new(taken[0].tag, Settlement::Reject).because("no").with_output(b"one line\n");
    queue.settle(&[reject]).await.expect("settled");
    let shown = place.good(["jobs", "show", "1"]).stdout();
    let value = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{name:<13}")));
        line.unwrap_or_else(|| panic!("no {name}: {shown}"))[13..].to_owned()
    };
    let names = ["id", "kind", "queue", "priority", "state", "attempts", "last error", "payload"];
    let values = ["1", "mail", "default", "-3", "dead", "2 of 2", "no", "9 bytes"];
    assert_eq!(names.map(value), values, "{shown}");
    assert!(value("since").ends_with("+00:00 (0s ago)"), "{shown}");
    assert_eq!(value("timeout"), "90.0 s");
    assert!(shown.contains("payload      9 bytes\n    two\n    lines\n"), "{shown}");
    assert!(value("attempt 1").starts_with("retried after 0.0"), "{shown}");
    assert!(value("attempt 2").starts_with("rejected after 0.0"), "{shown}");
    let first = "  error      16 bytes\n    no answer\n    at all\n  output     2 bytes, no text\n    00000000  ff 01";
    assert!(shown.contains(first), "{shown}");
    assert!(shown.ends_with("  error      no\n  output     one line\n"), "{shown}");
    let json = place.good(["jobs", "show", "1", "--json"]).json().remove(0);
    let history = json["history"].as_array().expect("a list");
    assert_eq!((&json["state"], &json["payload"]), (&json!("dead"), &json!("two\nlines")));
    let ends: Vec<_> = history.iter().map(|past| (&past["attempt"], &past["end"], &past["error"])).collect();
    assert_eq!(ends[0], (&json!(1), &json!("retried"), &json!("no answer\nat all")));
    assert_eq!(ends[1], (&json!(2), &json!("rejected"), &json!("no")));
    assert_eq!((&history[0]["output_base64"], &history[1]["output"]), (&json!("/wE="), &json!("one line\n")));
    assert!(history[0]["started_at"].as_str() < history[1]["ended_at"].as_str());
}

#[tokio::test]
async fn a_job_that_waits_or_runs_says_until_when() {
    let place = Place::new();
    let (_, [_, leased, _, _, delayed]) = &mixed(&place).await;
    place.good(["jobs", "cancel", leased]);
    for (id, line) in [
        (delayed, "ready at     "),
        (leased, "lease until  "),
        (leased, "cancel       asked for; its worker is told with the next renewal of its lease\n"),
        (leased, "payload      2 bytes, no text\n    00000000  ff 00                "),
        (delayed, "attempts     0 of as many as the worker says\n"),
        (delayed, "history      no attempt has ended yet\n"),
    ] {
        let shown = place.good(["jobs", "show", id]).stdout();
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(place.good(["jobs"]).stdout().contains("  leased, to be cancelled  "));
}

#[tokio::test]
async fn a_superseded_job_says_by_which() {
    let place = Place::new();
    let queue = Sqlite::builder(place.path("tidegate.sqlite")).keep_done(Duration::from_secs(60)).open();
    let queue = queue.expect("a new file");
    let newest = |payload: &str| ["enqueue", "k", payload, "--unique", "key", "--replace"].map(str::to_owned);
    place.good(newest("old"));
    let old = take(&queue, 1).await;
    place.good(newest("new"));
    let by = "superseded   by job 4, which is newer; this one is not tried again\n";
    let shown = place.good(["jobs", "show", "1"]).stdout();
    assert!(shown.contains("state        leased\n") && shown.contains(by), "{shown}");
    let retry = Settled::new(old[0].tag, Settlement::Retry { after: Duration::ZERO }).because("no");
    queue.settle(&[retry]).await.expect("settled");
    let shown = place.good(["jobs", "show", "1"]).stdout();
    assert!(shown.contains("state        done\n") && shown.contains(by), "{shown}");
    assert!(shown.contains("attempt 1    superseded by job 4 after "), "{shown}");
    assert!(place.good(["jobs", "--state", "done"]).stdout().contains("  superseded  "));
    let json = place.good(["jobs", "show", "1", "--json"]).json().remove(0);
    assert_eq!((&json["superseded_by"], &json["history"][0]["end"]), (&json!("4"), &json!("superseded")));
    assert!(place.good(["stats"]).stdout().ends_with("done               0  1 kept\nsuperseded         1\n"));
    assert_eq!(place.good(["stats", "--json"]).json()[0]["superseded"], json!(1));
}

#[tokio::test]
async fn a_done_job_that_is_kept_can_be_looked_at() {
    let place = Place::new();
    let queue = Sqlite::builder(place.path("tidegate.sqlite")).keep_done(Duration::from_secs(7_300)).open();
    let queue = queue.expect("a new file");
    queue.enqueue(vec![NewJob::new("k", "done"), NewJob::new("k", "")]).await.expect("enqueued");
    let taken = take(&queue, 1).await;
    queue.settle(&[Settled::new(taken[0].tag, Settlement::Ack)]).await.expect("settled");
    assert_eq!(place.good(["jobs", "-q"]).stdout(), "2\n", "not among those that are still of interest");
    assert_eq!(place.good(["jobs", "-q", "--state", "done"]).stdout(), "1\n");
    let shown = place.good(["jobs", "show", "1"]).stdout();
    assert!(shown.contains("state        done\n") && shown.contains("(in 2h)\n"), "{shown}");
    assert!(shown.contains("\nkept until   "), "{shown}");
    assert!(shown.contains("\nattempt 1    done after 0.0"), "{shown}");
    for (change, why) in [("retry", "only dead and delayed ones"), ("cancel", "there is nothing to cancel")] {
        let ran = place.run(["jobs", change, "1"]);
        assert!(
            ran.code() == 1 && ran.stderr().contains("job 1 is done: ") && ran.stderr().contains(why),
            "{ran:?}"
        );
    }
    place.good(["jobs", "delete", "1"]);
    assert_eq!(place.run(["jobs", "show", "1"]).code(), 1);
}

#[tokio::test]
async fn a_payload_is_shown_in_part_and_written_whole() {
    let place = Place::new();
    let text: String = (0..5_000).map(|number| format!("line {number}\n")).collect();
    let bytes: Vec<u8> = (0..1_000).map(|number| (number % 256) as u8).collect();
    place.with(vec![(NewJob::new("k", text.clone()), None), (NewJob::new("k", bytes.clone()), None)]).await;
    let shown = place.good(["jobs", "show", "1"]).stdout();
    let note = format!("    … and {} more: `--payload` writes all of it\n", "32,506");
    assert!(
        shown.contains("payload      48,890 bytes\n    line 0\n    line 1\n") && shown.contains(&note),
        "{shown}"
    );
    let dumped = place.good(["jobs", "show", "2"]).stdout();
    assert!(dumped.contains("    000000f0  f0 f1 ") && !dumped.contains("    00000100"), "{dumped}");
    assert!(dumped.contains("    … and 744 more: `--payload` writes all of it\n"), "{dumped}");
    assert!(
        dumped
            .contains("    00000020  20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f  | !\"#$%&'()*+,-./|\n"),
        "{dumped}"
    );
    assert_eq!(place.good(["jobs", "show", "1", "--payload"]).stdout(), text);
    assert_eq!(place.good(["jobs", "show", "2", "--payload"]).0.stdout, bytes);
}

#[tokio::test]
async fn the_options_of_a_list_may_stand_before_its_name() {
    let place = Place::new();
    let (_, [dead, ..]) = &mixed(&place).await;
    for args in [["jobs", "--state", "dead", "-q", "list"], ["jobs", "list", "-q", "--state", "dead"]] {
        assert_eq!(place.good(args).stdout(), format!("{dead}\n"));
    }
}

/// Attempts of the same number, from before and from after.
#[tokio::test]
async fn where_somebody_made_a_dead_job_ready_again_its_attempts_are_divided() {
    let place = Place::new();
    let (queue, ids) = place.with(vec![(NewJob::new("k", ""), Some("first"))]).await;
    let id = &ids[0];
    place.good(["jobs", "retry", id]);
    let settled = async |settlement| {
        let taken = take(&queue, 1).await.remove(0);
        queue.settle(&[Settled::new(taken.tag, settlement)]).await.expect("settled");
    };
    // One that was handed back has no number of its own: that is no new beginning.
    settled(Settlement::Release { after: Duration::ZERO }).await;
    settled(Settlement::Retry { after: Duration::ZERO }).await;
    settled(Settlement::Reject).await;
    let shown = place.good(["jobs", "show", id]).stdout();
    let names: Vec<&str> = shown
        .lines()
        .map(|line| &line[..12])
        .filter(|name| name.starts_with("attempt ") || name.starts_with("retried"))
        .collect();
    assert_eq!(
        names,
        ["attempt 1   ", "retried     ", "attempt 1   ", "attempt 1   ", "attempt 2   "],
        "{shown}"
    );
    assert!(shown.contains("retried      by hand: its attempts begin anew\n"), "{shown}");
}
