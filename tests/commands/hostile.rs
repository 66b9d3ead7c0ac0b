//! What producers and workers write is shown, and does nothing.

use tidegate::{NewJob, Settled, Settlement, Source};

use crate::support::{Place, enqueued, take};

/// Clears the screen, rings, sets a title, turns text around, and ends lines.
const EVIL: &str = "\u{1b}[2J\u{7}\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}txt\u{2028}\r\nfake  row\t\u{7f}\u{0}";

fn assert_harmless(text: &str) {
    let rest = text.replace('\n', "");
    assert!(!rest.contains(char::is_control), "{text:?}");
    assert!(!rest.contains(['\u{202e}', '\u{2028}']), "{text:?}");
}

#[tokio::test]
async fn escape_sequences_in_jobs_reach_no_terminal() {
    let place = Place::new();
    let kind = EVIL.replace('\0', "");
    let (queue, ids) = place.with(vec![(NewJob::new(&*kind, EVIL).queue(&*kind), Some(EVIL))]).await;
    let second = enqueued(&queue, vec![NewJob::new(&*kind, EVIL).queue(&*kind)]).await.remove(0);
    let taken = take(&queue, 1).await;
    let retry = Settled::new(taken[0].tag, Settlement::Reject).because(EVIL).with_output(EVIL.as_bytes());
    queue.settle(&[retry]).await.expect("settled");
    for args in [
        &["jobs"][..],
        &["jobs", "show", &ids[0]],
        &["jobs", "show", &second],
        &["jobs", "list", "--kind", &kind, "--queue", &kind],
        &["jobs", "list", "--kind", &kind, "--queue", "none"],
        &["jobs", "show", &kind],
        &["jobs", "retry", &kind],
        &["jobs", "requeue-dead", "--kind", &kind, "--dry-run"],
        &["stats", "-s", &format!("sqlite:{kind}")],
        &["enqueue", &kind, "-q", "--max-attempts", "1", "-s", &format!("sqlite:none/{kind}")],
        &["jobs", "--json"],
    ] {
        let ran = place.run(args);
        assert!(!(ran.stdout() + &ran.stderr()).is_empty(), "{args:?}");
        assert_harmless(&ran.stdout());
        assert_harmless(&ran.stderr());
    }
    let rows = place.good(["jobs"]).stdout();
    assert_eq!(rows.lines().count(), 3, "no row is made up: {rows}");
    assert!(
        rows.contains(r"\u{1b}[2J\u{7}\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}txt\u{2028}\r\nfake  row\t\u{7f}"),
        "{rows}"
    );
    let shown = place.good(["jobs", "show", &second]).stdout();
    assert!(!shown.lines().any(|line| line.starts_with("fake")), "no field is made up: {shown}");
    let json = place.good(["jobs", "--json"]).json();
    assert_eq!(
        (&json[0]["payload"], &json[0]["last_error"]),
        (&EVIL.into(), &EVIL.into()),
        "programs get all of it"
    );
}

#[tokio::test]
async fn escape_sequences_in_lines_reach_no_terminal_either() {
    let place = Place::new();
    let name = serde_json::to_string(EVIL).expect("a text");
    let lines = [
        format!("{{{name}:1}}"),
        format!("{{\"kind\":\"k\",\"unique_while\":{name}}}"),
        format!("{{\"kind\":\"k\",\"in\":{name}}}"),
        format!("{{\"kind\":{name},\"queue\":\"\"}}"),
        EVIL.replace(['\n', '\r'], ""),
        "\u{1b}[2J".to_owned(),
        "{\"kind\":\"k\"}".to_owned(),
    ];
    let ran = place.feed(["enqueue", "--json-lines", "--keep-going"], lines.join("\n"));
    assert_eq!((ran.code(), ran.stdout()), (1, "1\n".into()));
    assert_eq!(ran.stderr().lines().count(), 7, "{}", ran.stderr());
    assert_harmless(&ran.stderr());
    let secret = place.run(["stats", "-s", "amqp://user:hunter2@host/0"]);
    assert!(secret.code() == 2 && !secret.stderr().contains("hunter2"), "{}", secret.stderr());
}
