//! What stands on the server.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tidegate::{Enqueue as _, ErrorKind, NewJob, Settlement};

use crate::fixture::{Scene, queues_of_apisonator_first};

const AT_ONCE: Settlement = Settlement::Retry { after: Duration::ZERO };

#[tokio::test]
async fn a_job_stands_at_the_tail_as_resque_puts_it_there_and_is_taken_from_the_head() {
    let Some(scene) = Scene::start().await else { return };
    scene.push(NewJob::new("Archive", r#"[35,"pull"]"#).queue("main")).await;
    scene.push(NewJob::new("Archive", "[36]").queue("main")).await;
    assert_eq!(scene.keys(), ["resque:queue:main", "resque:queues"]);
    let queued = scene.ask(&["LRANGE", "resque:queue:main", "0", "-1"]);
    assert_eq!(
        queued,
        "{\"class\":\"Archive\",\"args\":[35,\"pull\"]}\n{\"class\":\"Archive\",\"args\":[36]}"
    );
    assert_eq!(scene.ask(&["SMEMBERS", "resque:queues"]), "main");
    // As any worker of Resque would.
    let first = scene.ask(&["LPOP", "resque:queue:main"]);
    assert!(first.contains("35"), "{first}");
    let taken = scene.take(1, &["main"]).await;
    assert_eq!((taken[0].job.kind.as_str(), &taken[0].job.payload[..]), ("Archive", &b"[36]"[..]));
    scene.settle(&taken[0], Settlement::Ack, "").await;
    assert_eq!(scene.ask(&["GET", "resque:stat:processed"]), "1");
    assert_eq!(scene.ask(&["GET", "resque:stat:failed"]), "");
}

#[tokio::test]
async fn the_prefix_is_that_of_the_settings() {
    let Some(scene) = Scene::with(|builder| builder.prefix("other:")).await else { return };
    scene.push(NewJob::new("A", "[]").queue("main").delay(Duration::from_secs(60))).await;
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Reject, "why").await;
    assert!(scene.keys().iter().all(|key| key.starts_with("other:")), "{:?}", scene.keys());
    assert_eq!(scene.ask(&["LLEN", "other:failed"]), "1");
}

#[tokio::test]
async fn a_failed_job_is_an_entry_as_resque_writes_it() {
    let Some(scene) = Scene::start().await else { return };
    scene.push(NewJob::new("Archive", r#"[35,"pull"]"#).queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Reject, "no \"disk\"").await;
    let entry = scene.ask(&["LRANGE", "resque:failed", "0", "-1"]);
    let value: Value = serde_json::from_str(&entry).expect("JSON");
    let at = value["failed_at"].as_str().expect("a text");
    // Resque's pages take it apart.
    let worker = value["worker"].as_str().expect("a text");
    assert!(worker.contains("-tidegate-") && worker.split(':').nth(2) == Some("main"), "{worker}");
    let expected = format!(
        r#"{{"failed_at":"{at}","payload":{{"class":"Archive","args":[35,"pull"]}},"exception":"Tidegate::JobFailed","error":"no \"disk\"","backtrace":[],"worker":"{worker}","queue":"main"}}"#
    );
    assert_eq!(entry, expected);
    assert!(at.len() == 23 && at.ends_with(" UTC") && at[4..].starts_with('/'), "{at}");
    assert_eq!(scene.ask(&["GET", "resque:stat:processed"]), "1", "failures count too");
    assert_eq!(scene.ask(&["GET", "resque:stat:failed"]), "1");
}

#[tokio::test]
async fn a_requeued_job_goes_back_as_it_was_and_its_entry_goes() {
    let Some(scene) = Scene::start().await else { return };
    let raw = r#"{"class":"Archive","args":[ 1 ],"extra":"kept"}"#;
    scene.ask(&["SADD", "resque:queues", "main"]);
    scene.ask(&["RPUSH", "resque:queue:main", raw]);
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Reject, "why").await;
    let backend = scene.redis.backend();
    assert!(backend.manage().expect("it can").requeue(&taken[0].job.id).await.expect("asked"));
    assert_eq!(scene.ask(&["LRANGE", "resque:queue:main", "0", "-1"]), raw);
    assert_eq!(scene.ask(&["LLEN", "resque:failed"]), "0");
}

#[tokio::test]
async fn failed_jobs_are_bounded_only_if_somebody_says_so() {
    for (bound, kept) in [(None, "5"), (Some(3), "3")] {
        let set = |builder: tidegate::backend::redis::RedisBuilder| match bound {
            Some(most) => builder.max_dead(most),
            None => builder,
        };
        let Some(scene) = Scene::with(set).await else { return };
        for number in 0..5 {
            scene.push(NewJob::new("A", format!("[{number}]")).queue("main")).await;
            let taken = scene.take(1, &["main"]).await;
            scene.settle(&taken[0], Settlement::Reject, "why").await;
        }
        assert_eq!(scene.ask(&["LLEN", "resque:failed"]), kept);
        assert!(scene.ask(&["LINDEX", "resque:failed", "-1"]).contains("[4]"), "the oldest go");
    }
}

#[tokio::test]
async fn what_is_no_job_is_kept_among_the_failed_ones() {
    let Some(scene) = Scene::start().await else { return };
    let raw: &[u8] = b"\xffno JSON";
    scene.server.command(&[&b"RPUSH"[..], b"resque:queue:main", raw]);
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    assert_eq!(taken[0].job.kind.as_str(), "A");
    let entry: Value = serde_json::from_str(&scene.ask(&["LINDEX", "resque:failed", "0"])).expect("JSON");
    assert_eq!(entry["payload"]["class"], json!("Tidegate::Unreadable"));
    assert_eq!(entry["queue"], json!("main"));
}

#[tokio::test]
async fn attempts_are_counted_beside_the_job_and_its_bytes_stay() {
    let Some(scene) = Scene::start().await else { return };
    let raw = r#"{"class":"A","args":["x"]}"#;
    scene.push(NewJob::new("A", r#"["x"]"#).queue("main")).await;
    for attempt in 1..=3 {
        let taken = scene.take(1, &["main"]).await;
        assert_eq!(taken[0].attempt, attempt);
        scene.settle(&taken[0], AT_ONCE, "again").await;
        assert_eq!(scene.ask(&["LRANGE", "resque:queue:main", "0", "-1"]), raw);
    }
    let counts: Vec<String> =
        scene.keys().into_iter().filter(|key| key.starts_with("resque:tidegate:tried:")).collect();
    assert_eq!(counts.len(), 1);
    assert_eq!(scene.ask(&["GET", &counts[0]]), "3");
    let ttl: i64 = scene.ask(&["TTL", &counts[0]]).parse().expect("a number");
    assert!((259_000..=259_200).contains(&ttl), "{ttl}");
    let taken = scene.take(1, &["main"]).await;
    scene.settle(&taken[0], Settlement::Retry { after: Duration::from_millis(1500) }, "later").await;
    assert!(!scene.keys().contains(&counts[0]), "it is with the job that waits");
    assert_eq!(scene.ask(&["ZCARD", "resque:tidegate:retry"]), "1");
    let taken = scene.take(1, &["main"]).await;
    assert_eq!(taken[0].attempt, 5);
    scene.settle(&taken[0], Settlement::Ack, "").await;
    assert!(!scene.keys().contains(&counts[0]), "it is done");
    // Another of the same bytes begins anew.
    scene.push(NewJob::new("A", r#"["x"]"#).queue("main")).await;
    assert_eq!(scene.take(1, &["main"]).await[0].attempt, 1);
}

#[tokio::test]
async fn two_jobs_of_the_same_bytes_wait_beside_each_other() {
    let Some(scene) = Scene::start().await else { return };
    for _ in 0..2 {
        scene.push(NewJob::new("A", "[]").queue("main")).await;
    }
    for delivery in scene.take(2, &["main"]).await {
        scene.settle(&delivery, Settlement::Retry { after: Duration::from_millis(300) }, "later").await;
    }
    assert_eq!(scene.ask(&["ZCARD", "resque:tidegate:retry"]), "2");
    let mut taken = scene.take(2, &["main"]).await;
    if taken.len() == 1 {
        taken.extend(scene.take(1, &["main"]).await);
    }
    assert_eq!(taken.len(), 2);
}

#[tokio::test]
async fn a_delayed_job_stands_as_node_resque_puts_it_there() {
    let Some(scene) = Scene::start().await else { return };
    let second = 4_000_000_000_u64;
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(second * 1000 - 400);
    scene.push(NewJob::new("A", "[1]").queue("main").at(at)).await;
    let raw = r#"{"class":"A","queue":"main","args":[1]}"#;
    let list = format!("resque:delayed:{second}");
    assert_eq!(scene.ask(&["LRANGE", &list, "0", "-1"]), raw);
    assert_eq!(scene.ask(&["SMEMBERS", &format!("resque:timestamps:{raw}")]), format!("delayed:{second}"));
    let schedule = ["ZRANGE", "resque:delayed_queue_schedule", "0", "-1", "WITHSCORES"];
    assert_eq!(scene.ask(&schedule), format!("{second}\n{second}"));
    assert_eq!(scene.keys().len(), 3, "{:?}", scene.keys());
    // And nothing is left of it once it is gone.
    let backend = scene.redis.backend();
    let wanted = tidegate::JobQuery::new(tidegate::JobState::Delayed, 9);
    let waiting = backend.inspect().expect("it can").list(&wanted).await.expect("listed");
    assert_eq!(waiting[0].job.queue.as_str(), "main");
    assert!(backend.manage().expect("it can").delete(&waiting[0].job.id).await.expect("asked"));
    assert_eq!(scene.keys(), [""; 0]);
}

#[tokio::test]
async fn a_job_whose_queue_is_something_else_waits_on() {
    let Some(scene) = Scene::start().await else { return };
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let taken = scene.take(1, &["main"]).await;
    scene.ask(&["SET", "resque:queue:main", "somebody's"]);
    scene.settle(&taken[0], AT_ONCE, "again").await;
    assert_eq!(scene.ask(&["ZCARD", "resque:tidegate:retry"]), "1");
    assert_eq!(scene.ask(&["EXISTS", "resque:failed"]), "0");
}

#[tokio::test]
async fn apisonators_queues_go_by_their_order_and_its_bytes_come_through() {
    let Some(scene) = Scene::start().await else { return };
    let report: &[u8] = b"{\"class\":\"ThreeScale::Backend::Transactor::ReportJob\",\"args\":[\"1001\",{\"0\":{\"app_id\":\"a1\",\"usage\":{\"hits\":1},\"log\":{\"code\":\"caf\xe9\"}}},1795248284.0871332,{\"request\":{\"extensions\":{}}}]}";
    let notify: &[u8] = b"{\"class\":\"ThreeScale::Backend::Transactor::NotifyJob\",\"args\":[\"key\",{\"transactions\":1},\"2026-11-21 08:04:00 UTC\",1795248284.1]}";
    for (queue, raw) in [(&b"stats"[..], notify), (b"main", notify), (b"priority", report)] {
        scene.server.command(&[&b"SADD"[..], b"resque:queues", queue]);
        scene.server.command(&[&b"RPUSH"[..], &[b"resque:queue:", queue].concat(), raw]);
    }
    let taken = scene.take(9, &["priority", "main", "stats"]).await;
    let queues: Vec<&str> = taken.iter().map(|delivery| delivery.job.queue.as_str()).collect();
    assert_eq!(queues, ["priority", "main", "stats"]);
    assert_eq!(taken[0].job.kind.as_str(), "ThreeScale::Backend::Transactor::ReportJob");
    let args = report.iter().position(|byte| *byte == b'[').expect("it has arguments");
    assert_eq!(&taken[0].job.payload[..], &report[args..report.len() - 1]);
    scene.settle(&taken[0], AT_ONCE, "again").await;
    let back = scene.server.command(&["LINDEX", "resque:queue:priority", "0"]);
    assert_eq!(back, crate::redis::Reply::Bulk(report.to_vec()), "byte for byte");
}

#[tokio::test]
async fn what_resque_has_no_place_for_is_refused_by_name_and_nothing_is_added() {
    let Some(scene) = Scene::start().await else { return };
    let job = || NewJob::new("A", "[]");
    for (job, name) in [
        (job().priority(1), "priorit"),
        (job().max_attempts(2), "max_attempts"),
        (job().timeout(Duration::from_secs(1)), "timeout"),
        (job().unique(tidegate::Unique::until_done("k")), "unique"),
    ] {
        let error = scene.redis.enqueue(vec![NewJob::new("B", "[]"), job]).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(scene.keys(), [""; 0]);
}

#[tokio::test]
async fn of_all_queues_those_of_apisonator_come_first_and_in_its_order() {
    let Some(scene) = Scene::start().await else { return };
    queues_of_apisonator_first(&scene).await;
}

#[tokio::test]
async fn a_waiting_job_can_be_cancelled_where_no_dead_ones_are_kept() {
    let Some(scene) = Scene::with(|builder| builder.max_dead(0)).await else { return };
    let ids = scene.redis.enqueue(vec![NewJob::new("A", "[1]").queue("main")]).await.expect("enqueued");
    let backend = scene.redis.backend();
    let manage = backend.manage().expect("it can");
    assert!(manage.cancel(ids[0].id()).await.expect("cancelled"));
    let left: Vec<String> = scene.keys().into_iter().filter(|key| key.starts_with("resque:")).collect();
    assert_eq!(left, ["resque:queues"]);
}

/// How many scripts the server has run.
fn scripts(scene: &Scene) -> u64 {
    let calls = scene.server.info("cmdstat_evalsha").unwrap_or_default();
    let calls = calls.split(',').find_map(|part| part.strip_prefix("calls="));
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

/// So that nobody else waits long, a script looks at a bounded number of jobs and of seconds, however many wait for the same.
#[tokio::test]
async fn however_many_wait_no_script_looks_at_more_than_a_part() {
    let Some(scene) = Scene::start().await else { return };
    let after = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000 + seconds);
    let job =
        |number: u64, second: u64| NewJob::new("A", format!("[{number}]")).queue("main").at(after(second));
    let in_one = (0..2_500).map(|number| job(number, 5));
    let in_each = (2_500..5_000).map(|number| job(number, number));
    scene.redis.enqueue(in_one.chain(in_each).collect()).await.expect("enqueued");
    scene.push(NewJob::new("A", "[]").queue("main")).await;
    let backend = scene.redis.backend();
    let inspect = backend.inspect().expect("it can");
    let counts = inspect.counts().await.expect("counted");
    assert_eq!((counts.ready, counts.delayed), (1, 5_000));
    let before = scripts(&scene);
    assert_eq!(inspect.counts().await.expect("counted").delayed, 5_000);
    assert!(scripts(&scene) - before >= 4, "2,501 seconds in {} calls", scripts(&scene) - before);
    let before = scripts(&scene);
    let wanted = tidegate::JobQuery::new(tidegate::JobState::Delayed, 9_000);
    let listed = inspect.list(&wanted).await.expect("listed");
    assert!(scripts(&scene) - before >= 5, "5,000 jobs in {} calls", scripts(&scene) - before);
    let numbers: Vec<_> = listed.iter().map(|it| String::from_utf8_lossy(&it.job.payload)).collect();
    assert_eq!(numbers, (0..5_000).map(|number| format!("[{number}]")).collect::<Vec<_>>());
    // In the middle of those of one second, and at the end.
    let manage = backend.manage().expect("it can");
    for place in [1_700, 4_999] {
        let id = &listed[place].job.id;
        assert_eq!(
            inspect.find(id).await.expect("looked").map(|found| found.job.id.clone()).as_ref(),
            Some(id)
        );
        assert!(manage.delete(id).await.expect("asked"));
    }
    assert_eq!(inspect.counts().await.expect("counted").delayed, 4_998);
}
