//! Failed jobs that are put back, and those that stay.

use std::time::Duration;

use tidegate::backend::redis::{Fetch, Layout, Redis};
use tidegate::reschedule::{Rescheduled, Turn};
use tidegate::service::Rescheduler;
use tidegate::{Context, Outcome, Queues, Registry, RetryPolicy, Shutdown, Worker};

use crate::fixture::{Scene, until_async};
use crate::redis::{APISONATOR_MAY, Options, RedisServer};

const LOCK: &str = "resque:threescale::backend::failedjobsscheduler:lock";

fn turn(times: u32) -> Turn {
    let mut turn = Turn::DEFAULT;
    turn.max_times = times;
    turn
}

/// A handle for plain pop, as a user who may do what apisonator's list allows.
fn plainly() -> Option<(RedisServer, Redis)> {
    let server = Options::new().user(&format!("app on >secret ~resque:* {APISONATOR_MAY}")).start()?;
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let redis =
        Redis::builder(&url).layout(Layout::Resque).fetch(Fetch::PlainPop).open().expect("good settings");
    Some((server, redis))
}

/// As Resque writes one, with the bytes of apisonator's job.
fn entry(payload: &str) -> String {
    format!(
        r#"{{"failed_at":"2026/11/21 08:04:45 UTC","payload":{payload},"exception":"RuntimeError","error":"boom","backtrace":[],"worker":"","queue":"main"}}"#
    )
}

fn fail(server: &RedisServer, payload: &str) {
    server.command(&["RPUSH", "resque:failed", &entry(payload)]);
}

fn job(number: u32) -> String {
    format!(r#"{{"class":"Report","args":[ {number} ]}}"#)
}

fn list(server: &RedisServer, key: &str) -> Vec<String> {
    server.command(&["LRANGE", key, "0", "-1"]).texts()
}

async fn go(redis: &Redis, times: u32) -> Rescheduled {
    redis.backend().reschedule().expect("it can").reschedule(&turn(times)).await.expect("asked")
}

/// The turn that was taken is over.
fn next_turn(server: &RedisServer) {
    assert_eq!(server.command(&["DEL", "resque:tidegate:reschedule:turn"]).number(), 1);
}

/// What is put back stands at its queue's end byte for byte, in the order in which it failed, and what can't go back stays.
async fn all_that_can_goes_back(server: &RedisServer, redis: &Redis) {
    let retried = entry(&job(7))
        .replace("}}", "}")
        .replace(r#""queue":"main""#, r#""queue":"main","retried_at":"2026/11/21 09:00:00 UTC""#);
    let staying = ["no JSON".to_owned(), retried, entry(r#"{"no":"job"}"#)];
    server.command(&["RPUSH", "resque:queue:main", "before"]);
    let expected: Vec<String> = std::iter::once("before".to_owned()).chain((0..250).map(job)).collect();
    for number in 0..250 {
        if number % 100 == 0 {
            server.command(&["RPUSH", "resque:failed", &staying[number as usize / 100]]);
        }
        fail(server, &job(number));
    }
    let done = go(redis, 5).await;
    assert_eq!((done.put_back, done.stay, done.not_now), (250, 3, false));
    assert!(done.given_up.is_empty());
    assert_eq!(list(server, "resque:queue:main"), expected);
    assert_eq!(list(server, "resque:failed"), staying);
    assert_eq!(server.command(&["SISMEMBER", "resque:queues", "main"]).number(), 1);
    assert_eq!(server.command(&["EXISTS", LOCK]).number(), 0, "the lock is given back");
}

#[tokio::test]
async fn failed_jobs_go_back_as_they_were_and_what_can_not_stays() {
    let Some(scene) = Scene::start().await else { return };
    all_that_can_goes_back(&scene.server, &scene.redis).await;
}

#[tokio::test]
async fn with_plain_pop_the_commands_of_apisonators_list_suffice_for_it() {
    let Some((server, redis)) = plainly() else { return };
    all_that_can_goes_back(&server, &redis).await;
    assert!(server.command(&["ACL", "LOG"]).items().is_empty());
}

#[tokio::test]
async fn a_job_at_its_cap_stays_among_the_failed_ones_and_is_named_once() {
    let Some(scene) = Scene::start().await else { return };
    for round in 0..5 {
        fail(&scene.server, &job(1));
        let done = go(&scene.redis, 2).await;
        next_turn(&scene.server);
        let named: Vec<_> = done.given_up.iter().map(|job| (job.kind.as_str(), job.queue.as_str())).collect();
        if round < 2 {
            assert_eq!((done.put_back, done.stay), (1, 0), "round {round}");
            assert!(named.is_empty());
        } else {
            assert_eq!((done.put_back, done.stay), (0, round - 1), "round {round}");
            assert_eq!(named, if round == 2 { vec![("Report", "main")] } else { vec![] }, "round {round}");
        }
    }
    assert_eq!(list(&scene.server, "resque:failed"), [entry(&job(1)), entry(&job(1)), entry(&job(1))]);
    // It holds up nobody behind it.
    fail(&scene.server, &job(2));
    assert_eq!(go(&scene.redis, 2).await.put_back, 1);
}

/// What came of a turn with this limit: how many were put back, and how many stay.
async fn at_most(scene: &Scene, jobs: usize) -> (usize, usize) {
    let mut turn = turn(5);
    turn.max_jobs = jobs;
    let backend = scene.redis.backend();
    let done = backend.reschedule().expect("it can").reschedule(&turn).await.expect("asked");
    next_turn(&scene.server);
    (done.put_back, done.stay)
}

#[tokio::test]
async fn however_many_stay_those_behind_them_have_their_turn() {
    let Some(scene) = Scene::start().await else { return };
    let stays = |number: usize| {
        for _ in 0..number {
            scene.ask(&["RPUSH", "resque:failed", "no JSON"]);
        }
    };
    stays(250);
    (0..5).for_each(|number| fail(&scene.server, &job(number)));
    stays(1);
    fail(&scene.server, &job(5));
    // Each goes on where the one before has ended, and the next one begins again.
    for expected in [(2, 250), (2, 0), (2, 1), (0, 251), (0, 251)] {
        assert_eq!(at_most(&scene, 2).await, expected);
    }
    assert_eq!(list(&scene.server, "resque:queue:main"), (0..6).map(job).collect::<Vec<_>>());
    // What a person takes out meanwhile makes others come later, but not never.
    (6..10).for_each(|number| fail(&scene.server, &job(number)));
    assert_eq!(at_most(&scene, 2).await, (2, 251));
    scene.ask(&["LTRIM", "resque:failed", "251", "-1"]);
    assert_eq!(at_most(&scene, 2).await, (2, 0));
    assert_eq!(list(&scene.server, "resque:failed"), [""; 0]);
}

/// A queue whose key is something else can't take its job, which stays, and holds up nobody behind it.
async fn what_its_queue_refuses_stays(server: &RedisServer, redis: &Redis) {
    let odd = entry(&job(1)).replace("main", "odd");
    server.command(&["SET", "resque:queue:odd", "no list"]);
    server.command(&["RPUSH", "resque:failed", &odd]);
    fail(server, &job(2));
    let done = go(redis, 5).await;
    assert_eq!((done.put_back, done.stay), (1, 1));
    assert_eq!(list(server, "resque:failed"), [odd]);
    assert_eq!(list(server, "resque:queue:main"), [job(2)]);
}

#[tokio::test]
async fn a_job_whose_queue_refuses_it_stays_among_the_failed_ones() {
    let Some(scene) = Scene::start().await else { return };
    what_its_queue_refuses_stays(&scene.server, &scene.redis).await;
    let Some((server, redis)) = plainly() else { return };
    what_its_queue_refuses_stays(&server, &redis).await;
    assert!(server.command(&["ACL", "LOG"]).items().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_do_it_at_once_one_does_and_no_job_comes_twice() {
    let Some(scene) = Scene::start().await else { return };
    for number in 0..2_000 {
        fail(&scene.server, &job(number));
    }
    let one = || go(&scene.redis, 5);
    let (first, second, third) = tokio::join!(one(), one(), one());
    let all = [first, second, third];
    assert_eq!(all.iter().filter(|done| !done.not_now).count(), 1, "{all:?}");
    assert_eq!(list(&scene.server, "resque:queue:main"), (0..2_000).map(job).collect::<Vec<_>>());
    // And while apisonator's own does it, nobody.
    next_turn(&scene.server);
    scene.ask(&["SET", LOCK, "123", "NX", "EX", "30"]);
    fail(&scene.server, &job(1));
    assert!(go(&scene.redis, 5).await.not_now);
    assert_eq!(scene.ask(&["GET", LOCK]), "123", "another's lock is not ours to give back");
    assert_eq!(list(&scene.server, "resque:failed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_job_ends_among_the_failed_ones_beside_a_worker_with_plain_pop() {
    let Some((server, redis)) = plainly() else { return };
    server.command(&["RPUSH", "resque:queue:main", &job(1)]);
    let registry = Registry::new().handle("Report", |_: (u32,), _: Context| async { Outcome::fail("boom") });
    let worker = Worker::builder(redis.intake(), registry)
        .queues(Queues::strict(["main"]))
        .retry(RetryPolicy::default().max_attempts(1))
        .build()
        .expect("good settings");
    let store = redis.backend().reschedule().expect("it can").clone();
    let rescheduler = Rescheduler::new(store, worker.handle()).times(2);
    let rescheduler = rescheduler.every(Duration::from_secs(1)).expect("a good time");
    let shutdown = Shutdown::new();
    let both = async { tokio::join!(worker.run(shutdown.clone()), rescheduler.run(shutdown.clone())) };
    let look = async {
        let count = "resque:tidegate:rescheduled:*";
        let named = || match &server.command(&["KEYS", count]).texts()[..] {
            [key] => server.command(&["GET", key]).text() == "2 named",
            _ => false,
        };
        until_async("it was named", named).await;
        shutdown.stop();
    };
    let ((report, ()), ()) = tokio::join!(both, look);
    assert_eq!(report.stats.rejected, 3, "once, and twice more");
    assert_eq!(list(&server, "resque:failed").len(), 1);
}
