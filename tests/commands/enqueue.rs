//! One job from the command line.

use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

use tidegate::backend::sqlite::Sqlite;
use tidegate::{Inspect, JobQuery, JobState, NewJob, StoredJob};

use crate::support::{Place, take};

async fn only(queue: &Sqlite, state: JobState) -> StoredJob {
    let mut jobs = queue.list(&JobQuery::new(state, 9)).await.expect("listed");
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    jobs.remove(0)
}

#[tokio::test]
async fn a_job_is_as_it_was_said_and_its_id_is_printed() {
    let place = Place::new();
    assert_eq!(place.good(["enqueue", "thumbnail", r#"{"file":"cat.png"}"#]).stdout(), "1\n");
    let plain = only(&place.queue(), JobState::Ready).await;
    assert_eq!((plain.job.id.as_str(), plain.job.kind.as_str()), ("1", "thumbnail"));
    assert_eq!(
        (&plain.job.payload[..], plain.job.queue.as_str()),
        (&br#"{"file":"cat.png"}"#[..], "default")
    );
    assert_eq!((plain.job.priority, plain.job.max_attempts, plain.job.timeout), (0, None, None));
    let args = ["enqueue", "mail", "-5", "--queue", "slow", "--priority", "-7", "--max-attempts", "3"];
    let ran = place.good(args.into_iter().chain(["--timeout", "1.5s", "--in", "1h"]));
    assert_eq!(ran.stdout(), "2\n");
    let full = only(&place.queue(), JobState::Delayed).await;
    assert_eq!((&full.job.payload[..], full.job.queue.as_str(), full.job.priority), (&b"-5"[..], "slow", -7));
    assert_eq!((full.job.max_attempts, full.job.timeout), (Some(3), Some(Duration::from_millis(1500))));
    assert_eq!(full.due, Some(full.since + Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_payload_comes_from_the_command_line_a_file_or_standard_input_byte_for_byte() {
    let place = Place::new();
    let bytes = b"\xff\0\x1b[2J\n";
    place.write("payload", bytes);
    let raw = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    place.good(["enqueue", "k"]);
    place.good([std::ffi::OsStr::new("enqueue"), std::ffi::OsStr::new("k"), raw]);
    place.good(["enqueue", "k", "--payload-file", "payload"]);
    for args in [&["enqueue", "k", "-"][..], &["enqueue", "k", "--payload-file", "-"]] {
        assert_eq!(place.feed(args, bytes).code(), 0);
    }
    let taken = take(&place.queue(), 9).await;
    let payloads: Vec<&[u8]> = taken.iter().map(|taken| &taken.job.payload[..]).collect();
    assert_eq!(payloads, [&b""[..], b"\xff\xfe", bytes, bytes, bytes]);
}

#[tokio::test]
async fn workers_get_jobs_by_priority_and_then_in_the_order_in_which_they_were_enqueued() {
    let place = Place::new();
    for (payload, priority) in [("a", "0"), ("b", "5"), ("c", "-5"), ("d", "5"), ("e", "0")] {
        place.good(["enqueue", "k", payload, "--priority", priority]);
    }
    let taken = take(&place.queue(), 9).await;
    let order: Vec<&[u8]> = taken.iter().map(|taken| &taken.job.payload[..]).collect();
    assert_eq!(order, [b"b", b"d", b"a", b"e", b"c"]);
}

#[tokio::test]
async fn a_moment_is_in_local_time_unless_it_says_otherwise_and_one_in_the_past_is_now() {
    let place = Place::new();
    let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(4_070_952_000); // 2099-01-01T12:00:00Z
    for (at, zone) in
        [("2099-01-01T12:00:00Z", "UTC"), ("2099-01-01 21:00", "JST-9"), ("2099-01-01 21:00:00", "JST-9")]
    {
        let output = place.command(["enqueue", "k", "--at", at]).env("TZ", zone).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
    }
    place.good(["enqueue", "k", "past", "--at", "2001-01-01"]);
    let queue = place.queue();
    let delayed = queue.list(&JobQuery::new(JobState::Delayed, 9)).await.expect("listed");
    let due: Vec<_> = delayed.iter().map(|job| job.due).collect();
    let off = |due: SystemTime| due.duration_since(moment).unwrap_or_else(|before| before.duration());
    assert!(
        due.len() == 3 && due.iter().all(|due| due.is_some_and(|due| off(due) < Duration::from_secs(1))),
        "{due:?}"
    );
    assert_eq!(&only(&queue, JobState::Ready).await.job.payload[..], b"past");
}

#[tokio::test]
async fn of_jobs_with_one_key_it_is_said_which_was_created_and_which_was_there() {
    let place = Place::new();
    let keyed = |more: &[&str]| place.good(["enqueue", "k", "--unique", "u"].iter().chain(more)).stdout();
    assert_eq!(keyed(&["first"]), "1\tcreated\n");
    assert_eq!(keyed(&["second"]), "1\tduplicate\n");
    assert_eq!(keyed(&["third", "--replace"]), "1\treplaced\n");
    let json = r#"{"ok":true,"id":"1","result":"duplicate"}"#;
    assert_eq!(keyed(&["--json"]), format!("{json}\n"));
    assert_eq!(keyed(&["--quiet"]), "");
    let other = place.good(["enqueue", "other", "--unique", "u"]);
    assert!(other.stdout().ends_with("\tcreated\n"), "another kind's keys are its own");
    let taken = take(&place.queue(), 1).await;
    assert_eq!(&taken[0].job.payload[..], b"third");
    // The first runs: by default its key is free again, but not for one that is to be unfinished.
    assert!(keyed(&["--unique-while", "unfinished"]).ends_with("\tcreated\n"));
    take(&place.queue(), 9).await;
    assert!(keyed(&["--unique-for", "1h"]).ends_with("\tduplicate\n"));
    assert!(
        place.good(["enqueue", "k", "--unique", "v", "--unique-for", "0"]).stdout().ends_with("created\n")
    );
    assert!(
        place.good(["enqueue", "k", "--unique", "v", "--unique-for", "1h"]).stdout().ends_with("created\n")
    );
    assert!(place.good(["enqueue", "k", "--unique", "v"]).stdout().ends_with("duplicate\n"));
}

#[tokio::test]
async fn the_queue_is_found_by_option_environment_or_folder() {
    let place = Place::new();
    for (source, file) in
        [("sqlite:a", "a"), ("b.sqlite", "b.sqlite"), ("sub folder/c.db", "sub folder/c.db")]
    {
        std::fs::create_dir_all(place.path("sub folder")).expect("a folder");
        place.good(["enqueue", "k", "-s", source]);
        let output =
            place.command(["enqueue", "k"]).env("TIDEGATE_SOURCE", source).output().expect("it runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let counts = Sqlite::open(place.path(file)).expect("it is there").counts().await.expect("counted");
        assert_eq!(counts.ready, 2, "{source}");
    }
    assert!(!place.path("tidegate.sqlite").exists());
    let absolute = format!("sqlite://{}", place.path("a").display());
    assert_eq!(place.good(["stats", "--source", &absolute, "--json"]).json()[0]["ready"], 2);
}

#[tokio::test]
async fn a_payload_may_have_16_mib_and_no_byte_more() {
    let place = Place::new();
    place.write("most", vec![b'x'; 16 << 20]);
    place.write("more", vec![b'x'; (16 << 20) + 1]);
    place.good(["enqueue", "k", "--payload-file", "most"]);
    let ran = place.run(["enqueue", "k", "--payload-file", "more"]);
    assert_eq!((ran.code(), ran.stdout()), (2, String::new()));
    assert!(ran.stderr().contains("the payload from more has more than 16777216 bytes"), "{}", ran.stderr());
    assert_eq!(only(&place.queue(), JobState::Ready).await.job.payload.len(), 16 << 20);
    // A queue that is shared with programs takes theirs as well.
    let library = NewJob::new("k", vec![0; 1 << 20]);
    place.with(vec![(library, None)]).await;
    assert_eq!(place.good(["stats", "--json"]).json()[0]["ready"], 2);
}
