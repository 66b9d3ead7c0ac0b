//! `tidegate jobs retry`, `cancel` and `delete`.

use std::time::Duration;

use serde_json::json;
use tidegate::{Inspect, NewJob, Renew, Renewal, Unique};

use crate::support::{Place, enqueued, take};

#[tokio::test]
async fn dead_and_delayed_jobs_are_retried_and_others_are_told_apart() {
    let place = Place::new();
    let jobs = vec![
        (NewJob::new("k", "dead"), Some("no")),
        (NewJob::new("k", "delayed").delay(Duration::from_secs(3600)), None),
        (NewJob::new("k", "ready"), None),
    ];
    let (queue, ids) = place.with(jobs).await;
    let [dead, delayed, ready] = &ids[..] else { panic!("{ids:?}") };
    let ran = place.run(["jobs", "retry", dead, ready, "1700", delayed, "x\u{1b}"]);
    assert_eq!((ran.code(), ran.stdout()), (1, format!("{dead}\tretried\n{delayed}\tretried\n")));
    let why = format!(
        "tidegate: job {ready} is ready: only dead and delayed ones can be retried\n\
         tidegate: there is no job 1700: it may have finished\n\
         tidegate: there is no job x\\u{{1b}}: it may have finished\n"
    );
    assert_eq!(ran.stderr(), why);
    let counts = queue.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed, counts.dead), (3, 0, 0));
    let shown = place.good(["jobs", "show", dead, "--json"]).json();
    assert_eq!(shown[0]["attempts"], 0, "its attempts begin anew");
    let json = place.run(["jobs", "retry", "--json", dead, "1700"]);
    let said = json.json();
    assert_eq!((json.code(), json.stderr(), said.len()), (1, String::new(), 2));
    assert_eq!(said[0]["error"], format!("job {dead} is ready: only dead and delayed ones can be retried"));
    let missing = "there is no job 1700: it may have finished";
    assert_eq!(said[1], json!({"id": "1700", "ok": false, "error": missing}));
}

#[tokio::test]
async fn a_dead_job_whose_key_is_taken_stays_dead_and_it_is_said_why() {
    let place = Place::new();
    let keyed = || NewJob::new("k", "").unique(Unique::until_done("u"));
    let (_, ids) = place.with(vec![(keyed(), Some("no")), (keyed(), None)]).await;
    let ran = place.run(["jobs", "retry", &ids[0]]);
    assert_eq!((ran.code(), ran.stdout()), (1, String::new()));
    assert_eq!(
        ran.stderr(),
        format!("tidegate: job {} stays dead: another job has its unique key\n", ids[0])
    );
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_and_of_one_that_runs_the_worker_is_told() {
    let place = Place::new();
    let (queue, ids) = place.with(vec![(NewJob::new("k", "runs"), None)]).await;
    let taken = take(&queue, 1).await;
    let (waits, runs) = (enqueued(&queue, vec![NewJob::new("k", "waits")]).await.remove(0), &ids[0]);
    let said = place.good(["jobs", "cancel", &waits, runs]).stdout();
    assert_eq!(said, format!("{waits}\tcancelled\n{runs}\tcancelling\n"));
    assert_eq!(queue.renew(&[taken[0].tag]).await.expect("asked"), [Renewal::CancelRequested]);
    let again = place.run(["jobs", "cancel", &waits, "--json"]);
    assert_eq!(again.json()[0]["error"], format!("job {waits} is dead: there is nothing to cancel"));
    let listed = place.good(["jobs", "--state", "dead"]).stdout();
    assert!(listed.ends_with("  cancelled\n"), "{listed}");
}

#[tokio::test]
async fn all_jobs_but_those_that_run_are_deleted() {
    let place = Place::new();
    let jobs = vec![(NewJob::new("k", "dead"), Some("no")), (NewJob::new("k", "runs"), None)];
    let (queue, ids) = place.with(jobs).await;
    take(&queue, 1).await;
    let later = NewJob::new("k", "").delay(Duration::from_secs(60));
    let more = enqueued(&queue, vec![NewJob::new("k", "ready"), later]).await;
    let [dead, runs, ready, delayed] = [&ids[0], &ids[1], &more[0], &more[1]];
    let ran = place.run(["jobs", "delete", dead, runs, ready, delayed]);
    assert_eq!(
        (ran.code(), ran.stdout()),
        (1, format!("{dead}\tdeleted\n{ready}\tdeleted\n{delayed}\tdeleted\n"))
    );
    assert_eq!(
        ran.stderr(),
        format!("tidegate: job {runs} is leased: cancel it first, or wait for its end\n")
    );
    let counts = queue.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed, counts.leased, counts.dead), (0, 0, 1, 0));
}

#[tokio::test]
async fn many_ids_are_changed_in_their_order() {
    let place = Place::new();
    let queue = place.queue();
    let mut ids = enqueued(&queue, vec![NewJob::new("k", ""); 1_000]).await;
    ids.reverse();
    let ran = place.good(["jobs".to_owned(), "delete".to_owned()].into_iter().chain(ids.clone()));
    let said: Vec<String> = ids.iter().map(|id| format!("{id}\tdeleted")).collect();
    assert_eq!(ran.stdout().lines().collect::<Vec<_>>(), said);
    assert_eq!(queue.counts().await.expect("counted").ready, 0);
}
