//! What an idle worker waits for that was told of no queues, on a server where there are none yet.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use tidegate::backend::redis::{Fetch, Layout, Redis, RedisBuilder};
use tidegate::{Delivery, Enqueue as _, FetchRequest, NewJob};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::redis::{RedisServer, until};
use crate::rig::PATIENCE;

/// As a client of Sidekiq 8 writes it.
const OF_SIDEKIQ: &str = r#"{"retry":true,"queue":"default","args":[1],"class":"First","jid":"0123456789abcdef01234567","created_at":1763683200000,"enqueued_at":1763683200000}"#;

/// As a client of Resque writes it.
const OF_RESQUE: &str = r#"{"class":"First","args":[1]}"#;

/// Runs it on a thread, where time stands still: nothing is looked at again there after a while, so that what is noticed
/// was told by the server. (An idle runtime sets a paused clock forward, unless it waits for a blocking task.)
fn without_time<T: Send + 'static>(
    body: impl Future<Output = T> + Send + 'static,
) -> (Receiver<T>, thread::JoinHandle<()>) {
    let (tell, told) = sync_channel(1);
    let run = move || {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let (release, held) = sync_channel::<()>(1);
            let held = tokio::task::spawn_blocking(move || held.recv());
            let _ = tell.send(body.await);
            drop(release);
            let _ = held.await;
        });
    };
    let thread = thread::Builder::new().name("timeless".to_owned()).spawn(run).expect("a thread");
    (told, thread)
}

/// A fetch of one job of any queue, by a worker that has been idle for as long as it likes.
async fn fetch(redis: Redis) -> Vec<Delivery> {
    let source = redis.intake().source.connect().await.expect("a source");
    let wanted = FetchRequest::new(NonZeroUsize::MIN, Duration::from_secs(3600));
    source.fetch(&wanted, &CancellationToken::new()).await.expect("fetched")
}

fn kinds(taken: &[Delivery]) -> Vec<(&str, &str)> {
    taken.iter().map(|delivery| (delivery.job.queue.as_str(), delivery.job.kind.as_str())).collect()
}

/// What an idle worker takes without the help of a clock, after `push` on a server that was empty.
fn picks_up(layout: Layout, push: impl FnOnce(&RedisServer), expected: (&str, &str)) {
    let Some(server) = RedisServer::start() else { return };
    let redis = Redis::builder(&server.url()).layout(layout).open().expect("good settings");
    let (taken, thread) = without_time(fetch(redis));
    until("it waits", || server.clients().iter().any(|client| client.contains("cmd=blmove")));
    let there = server.command(&["KEYS", "*"]).texts();
    assert!(there.iter().all(|key| key.ends_with("tidegate:seen")), "no queue is there yet: {there:?}");
    push(&server);
    let taken = taken.recv_timeout(PATIENCE).expect("it is woken");
    assert_eq!(kinds(&taken), [expected]);
    thread.join().expect("it does not panic");
}

#[test]
fn the_first_job_of_a_sidekiq_client_wakes_who_serves_all_queues() {
    let push = |server: &RedisServer| {
        server.command(&["SADD", "queues", "default"]);
        server.command(&["LPUSH", "queue:default", OF_SIDEKIQ]);
    };
    picks_up(Layout::Sidekiq, push, ("default", "First"));
}

#[test]
fn the_first_job_of_a_resque_client_wakes_who_serves_all_queues() {
    let push = |server: &RedisServer| {
        server.command(&["SADD", "resque:queues", "default"]);
        server.command(&["RPUSH", "resque:queue:default", OF_RESQUE]);
    };
    picks_up(Layout::Resque, push, ("default", "First"));
}

#[test]
fn what_is_waited_for_is_taken_even_if_no_list_of_queues_names_it() {
    let push = |server: &RedisServer| drop(server.command(&["LPUSH", "queue:default", OF_SIDEKIQ]));
    picks_up(Layout::Sidekiq, push, ("default", "First"));
}

fn plainly(builder: RedisBuilder) -> Redis {
    builder.layout(Layout::Resque).fetch(Fetch::PlainPop).open().expect("good settings")
}

/// Reads what the server is asked until it is this.
fn hears(server: &mut crate::redis::Client, asked: &str) {
    until(asked, || server.receive().expect("the server goes on").text().contains(asked));
}

#[test]
fn the_pop_that_an_idle_worker_waits_with_names_the_queue_of_the_first_job() {
    let Some(server) = RedisServer::start() else { return };
    let mut monitor = server.client().expect("the server is there");
    monitor.call(&["MONITOR"]).expect("the server is there");
    let (taken, thread) = without_time(fetch(plainly(Redis::builder(&server.url()))));
    hears(&mut monitor, r#""BLPOP" "resque:queue:default" "resque:tidegate:wake:"#);
    server.command(&["SADD", "resque:queues", "default"]);
    server.command(&["RPUSH", "resque:queue:default", OF_RESQUE]);
    let taken = taken.recv_timeout(PATIENCE).expect("it is woken");
    assert_eq!(kinds(&taken), [("default", "First")]);
    thread.join().expect("it does not panic");
}

#[test]
fn a_pop_is_ended_for_the_first_job_of_a_queue_that_is_enqueued_by_the_same_handle() {
    let Some(server) = RedisServer::start() else { return };
    let mut monitor = server.client().expect("the server is there");
    monitor.call(&["MONITOR"]).expect("the server is there");
    let redis = plainly(Redis::builder(&server.url()));
    let (taken, thread) = without_time(fetch(redis.clone()));
    hears(&mut monitor, "BLPOP");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let job = NewJob::new("First", "[1]").queue("new");
    runtime.block_on(redis.enqueue(vec![job])).expect("enqueued");
    hears(&mut monitor, r#""RPUSH" "resque:tidegate:wake:"#);
    let taken = taken.recv_timeout(PATIENCE).expect("it is woken");
    assert_eq!(kinds(&taken), [("new", "First")]);
    thread.join().expect("it does not panic");
}
