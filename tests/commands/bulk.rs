//! `tidegate jobs requeue-dead` and `delete-dead`.

use serde_json::json;
use tidegate::{Counts, Inspect, NewJob, Unique};

use crate::support::Place;

/// 2,500 dead jobs of two kinds in two queues: 1,250 of `mail`, of which 625 are in `slow`, and the same of `scan`.
fn dead() -> Vec<(NewJob, Option<&'static str>)> {
    let job = |number: u32| {
        let kind = if number.is_multiple_of(2) { "mail" } else { "scan" };
        let queue = if number % 4 < 2 { "slow" } else { "fast" };
        (NewJob::new(kind, number.to_string()).queue(queue), Some("no"))
    };
    (0..2_500).map(job).collect()
}

fn counted(counts: Counts) -> (u64, u64) {
    (counts.ready, counts.dead)
}

#[tokio::test]
async fn dead_jobs_are_requeued_by_filter_page_by_page() {
    let place = Place::new();
    let (queue, _) = place.with(dead()).await;
    let said = |args: &[&str]| place.good(["jobs", "requeue-dead"].iter().chain(args)).stdout();
    assert_eq!(said(&["--all", "--dry-run"]), "2,500 dead jobs would be requeued\n");
    let some = ["--kind", "mail", "--queue", "slow"];
    assert_eq!(
        said(&[&some[..], &["--dry-run"]].concat()),
        "625 dead jobs of kind \"mail\" in queue \"slow\" would be requeued\n"
    );
    assert_eq!(counted(queue.counts().await.expect("counted")), (0, 2_500));
    assert_eq!(said(&some), "625 dead jobs of kind \"mail\" in queue \"slow\" requeued\n");
    assert_eq!(counted(queue.counts().await.expect("counted")), (625, 1_875));
    assert_eq!(said(&["--kind", "scan"]), "1,250 dead jobs of kind \"scan\" requeued\n");
    assert_eq!(counted(queue.counts().await.expect("counted")), (1_875, 625));
    let json = place.good(["jobs", "requeue-dead", "--all", "--json"]).json();
    assert_eq!(json, [json!({"ok": true, "result": "requeued", "jobs": 625, "stayed": 0, "dry_run": false})]);
    assert_eq!(counted(queue.counts().await.expect("counted")), (2_500, 0));
    assert_eq!(said(&["--all"]), "0 dead jobs requeued\n");
}

#[tokio::test]
async fn dead_jobs_whose_key_is_taken_stay_dead_and_are_counted() {
    let place = Place::new();
    // The same key for every tenth of them, and one that waits and has it.
    let keyed = |number: u32| {
        let job = NewJob::new("k", "");
        if number.is_multiple_of(10) { job.unique(Unique::while_queued("u")) } else { job }
    };
    let jobs: Vec<_> = (0..10).map(|number| (keyed(number), Some("no"))).collect();
    let mut first = Vec::new();
    for _ in 0..30 {
        first.extend(place.with(jobs.clone()).await.1.into_iter().next());
    }
    let (queue, _) = place.with(vec![(keyed(0), None)]).await;
    let ran = place.run(["jobs", "requeue-dead", "--kind", "k"]);
    assert_eq!((ran.code(), ran.stdout()), (1, "270 dead jobs of kind \"k\" requeued\n".into()));
    let lines: Vec<_> = ran.stderr().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 21, "{lines:?}");
    let why = "another job has its unique key, or somebody else was quicker";
    assert_eq!(lines[0], format!("tidegate: job {} was not requeued: {why}", first[0]));
    assert_eq!(lines[20], "tidegate: and 10 more for the same reason");
    assert_eq!(counted(queue.counts().await.expect("counted")), (271, 30));
    let json = place.run(["jobs", "requeue-dead", "--all", "--json"]);
    assert_eq!((json.code(), json.stderr()), (1, String::new()));
    assert_eq!(json.json()[0]["stayed"], 30);
}

#[tokio::test]
async fn dead_jobs_are_deleted_only_by_who_means_it() {
    let place = Place::new();
    let (queue, _) = place.with(dead()).await;
    let ran = place.feed(["jobs", "delete-dead", "--all"], "y\n");
    assert_eq!((ran.code(), ran.stdout()), (2, String::new()));
    assert_eq!(ran.stderr(), "tidegate: --yes is needed to delete jobs where nobody can be asked\n");
    let would = place.good(["jobs", "delete-dead", "--queue", "slow", "--dry-run"]);
    assert_eq!(would.stdout(), "1,250 dead jobs in queue \"slow\" would be deleted\n");
    assert_eq!(counted(queue.counts().await.expect("counted")), (0, 2_500));
    let done = place.good(["jobs", "delete-dead", "--queue", "slow", "--yes"]);
    assert_eq!(done.stdout(), "1,250 dead jobs in queue \"slow\" deleted\n");
    assert_eq!(counted(queue.counts().await.expect("counted")), (0, 1_250));
    assert_eq!(place.good(["jobs", "delete-dead", "--all", "-y"]).stdout(), "1,250 dead jobs deleted\n");
    assert_eq!(counted(queue.counts().await.expect("counted")), (0, 0));
}
