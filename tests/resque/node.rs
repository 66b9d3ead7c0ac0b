//! node-resque on the same server.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::{FetchRequest, NewJob, Queue, Settlement};
use tokio_util::sync::CancellationToken;

use crate::fixture::Scene;
use crate::peers::{Node, NodeWorker};
use crate::redis::until;

/// The arguments of what node's jobs have told in the list.
fn told(scene: &Scene, list: &str) -> Vec<Value> {
    let entries = scene.server.command(&["LRANGE", list, "0", "-1"]).texts();
    let args = |entry: &String| serde_json::from_str::<Value>(entry).expect("JSON")["args"].clone();
    entries.iter().map(args).collect()
}

#[tokio::test]
async fn jobs_that_node_enqueues_are_taken_here() {
    let (true, Some(scene)) = (Node::is_there(), Scene::start().await) else { return };
    Node::enqueue(&scene.server.url(), "math", "add", &json!([[1, 2], [3]]));
    let taken = scene.take(9, &["math"]).await;
    let seen: Vec<_> =
        taken.iter().map(|it| (it.job.kind.as_str(), String::from_utf8_lossy(&it.job.payload))).collect();
    assert_eq!(seen, [("add", "[1,2]".into()), ("add", "[3]".into())]);
}

#[tokio::test]
async fn jobs_that_are_enqueued_here_are_run_by_node() {
    let (true, Some(scene)) = (Node::is_there(), Scene::start().await) else { return };
    scene.push(NewJob::new("Note", r#"[1,"a"]"#).queue("low")).await;
    scene.push(NewJob::new("Note", r#"["late"]"#).queue("low").delay(Duration::from_millis(700))).await;
    let _worker = NodeWorker::start(&scene.server.url(), &["low"]);
    until("both have run", || told(&scene, "peer:ran").len() == 2);
    assert_eq!(told(&scene, "peer:ran"), [json!([1, "a"]), json!(["late"])]);
}

#[tokio::test]
async fn node_finds_a_job_of_ours_to_delete_if_it_is_written_in_its_style() {
    let (true, Some(scene)) = (Node::is_there(), Scene::with(|builder| builder.node_resque_style()).await)
    else {
        return;
    };
    scene.push(NewJob::new("Note", r#"[1,{"a":"b"}]"#).queue("low")).await;
    assert_eq!(
        scene.ask(&["LINDEX", "resque:queue:low", "0"]),
        r#"{"class":"Note","queue":"low","args":[1,{"a":"b"}]}"#
    );
    let deleted = Node::json("delete.js", &["low", "Note", r#"[1,{"a":"b"}]"#], &scene.server.url());
    assert_eq!((deleted, &*scene.ask(&["EXISTS", "resque:queue:low"])), (json!(1), "0"));
}

#[tokio::test]
async fn what_failed_here_is_seen_by_node_and_goes_back_through_it() {
    let (true, Some(scene)) = (Node::is_there(), Scene::start().await) else { return };
    let url = scene.server.url();
    scene.push(NewJob::new("Note", "[7]").queue("low")).await;
    let taken = scene.take(1, &["low"]).await;
    scene.settle(&taken[0], Settlement::Reject, "no luck").await;
    let seen = Node::show(&url);
    let failed = &seen["failed"][0];
    assert_eq!((&failed["error"], &failed["queue"]), (&json!("no luck"), &json!("low")));
    assert_eq!(failed["payload"], json!({"class": "Note", "args": [7]}));
    assert_eq!(Node::json("failed.js", &["retry"], &url), json!(1));
    let again = scene.take(1, &["low"]).await;
    assert_eq!((&again[0].job.payload[..], again[0].attempt), (&b"[7]"[..], 1));
}

#[tokio::test]
async fn what_failed_at_node_is_seen_here_and_goes_back() {
    let (true, Some(scene)) = (Node::is_there(), Scene::start().await) else { return };
    let url = scene.server.url();
    Node::enqueue(&url, "low", "Fails", &json!([["broken"]]));
    let mut worker = NodeWorker::start(&url, &["low"]);
    until("it has failed", || scene.ask(&["LLEN", "resque:failed"]) == "1");
    assert!(worker.stop().success(), "{}", worker.output());
    let backend = scene.redis.backend();
    let wanted = tidegate::JobQuery::new(tidegate::JobState::Dead, 9);
    let dead = backend.inspect().expect("it can").list(&wanted).await.expect("listed");
    assert_eq!((dead[0].job.kind.as_str(), dead[0].last_error.as_deref()), ("Fails", Some("broken")));
    assert!(backend.manage().expect("it can").requeue(&dead[0].job.id).await.expect("asked"));
    assert_eq!(scene.take(1, &["low"]).await[0].job.kind.as_str(), "Fails");
}

/// Wants eighty jobs to come, none twice, to four sessions that look all the time, and nothing to be left of them.
async fn all_come_once(scene: &Scene) {
    let mut sources = Vec::new();
    for _ in 0..4 {
        sources.push(scene.redis.intake().source.connect().await.expect("a source"));
    }
    let mut wanted = FetchRequest::new(NonZeroUsize::new(200).expect("not zero"), Duration::ZERO);
    wanted.queues = vec![Queue::new("main")];
    let (mut seen, stop) = (Vec::new(), CancellationToken::new());
    let look = async {
        loop {
            let fetch = |at: usize| sources[at].fetch(&wanted, &stop);
            let taken: [_; 4] = tokio::join!(fetch(0), fetch(1), fetch(2), fetch(3)).into();
            let before = seen.len();
            for delivery in taken.into_iter().flat_map(|taken| taken.expect("fetched")) {
                seen.push(String::from_utf8_lossy(&delivery.job.payload).into_owned());
                scene.settle(&delivery, Settlement::Ack, "").await;
            }
            if seen.len() >= 80 && seen.len() == before {
                break;
            }
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(30), look).await;
    assert!(came.is_ok(), "waited in vain until all have come");
    assert_eq!(seen.len(), 80, "none comes twice");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 80, "{seen:?}");
    until("nothing is left of them", || {
        !scene.keys().iter().any(|key| key.contains("delayed") || key.contains("timestamps"))
    });
}

#[tokio::test]
async fn delayed_jobs_come_once_each_though_many_move_them() {
    let Some(scene) = Scene::start().await else { return };
    for number in 0..80 {
        let job = NewJob::new("A", format!("[{number}]")).queue("main");
        scene.push(job.delay(Duration::from_millis(500))).await;
    }
    all_come_once(&scene).await;
}

#[tokio::test]
async fn delayed_jobs_come_once_each_though_node_moves_them_too() {
    let (true, Some(scene)) = (Node::is_there(), Scene::start().await) else { return };
    let url = scene.server.url();
    let args: Vec<Value> = (0..40).map(|number| json!([number])).collect();
    Node::json("enqueue.js", &["main", "A", &json!(args).to_string(), "1500"], &url);
    for number in 40..80 {
        let job = NewJob::new("A", format!("[{number}]")).queue("main");
        scene.push(job.delay(Duration::from_millis(1500))).await;
    }
    // It takes nothing of this queue.
    let _scheduler = NodeWorker::start(&url, &["other"]);
    all_come_once(&scene).await;
}
