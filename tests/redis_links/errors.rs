//! What passes by itself is waited out; what a person must mend ends the worker and is named.

use std::num::NonZeroUsize;
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Error, ErrorKind, FetchRequest, Queue};
use tokio_util::sync::CancellationToken;

use crate::fake::Fake;
use crate::redis::{Options, RedisServer, free_port};
use crate::rig::{Counted, open, push, until, whole};

/// What a fetch comes to.
async fn fetch(jobs: &Redis) -> Result<usize, Error> {
    let source = jobs.intake().source.connect().await?;
    let mut request = FetchRequest::new(NonZeroUsize::MIN, Duration::ZERO);
    request.queues = vec![Queue::new("default")];
    source.fetch(&request, &CancellationToken::new()).await.map(|taken| taken.len())
}

/// A worker lives through what `provoke` does to its server, is told of it as a failure that passes and has `code` in
/// it, and works again after `mend`.
async fn passes(server: &RedisServer, code: &str, provoke: &[&[&str]], mend: &[&[&str]]) {
    let jobs = open(&server.url());
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    for command in provoke {
        server.command(command);
    }
    let error = fetch(&jobs).await.expect_err(code);
    assert!(error.is_transient() && whole(&error).contains(code), "{}", whole(&error));
    // A worker that ended would have done so by then.
    let failing = tokio::time::sleep(Duration::from_millis(1_500));
    failing.await;
    assert_eq!(worker.running.handle.stats().done, 1);
    for command in mend {
        server.command(command);
    }
    worker.runs_a_job(&jobs, "default").await;
    worker.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_become_a_replica_is_waited_for() {
    let Some(server) = RedisServer::start() else { return };
    let nowhere = free_port().to_string();
    passes(&server, "READONLY", &[&["REPLICAOF", "127.0.0.1", &nowhere]], &[&["REPLICAOF", "NO", "ONE"]])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_master_is_waited_for() {
    let Some(server) = RedisServer::start() else { return };
    let nowhere = free_port().to_string();
    passes(
        &server,
        "MASTERDOWN",
        &[&["CONFIG", "SET", "replica-serve-stale-data", "no"], &["REPLICAOF", "127.0.0.1", &nowhere]],
        &[&["REPLICAOF", "NO", "ONE"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_its_replicas_is_waited_for() {
    let Some(server) = RedisServer::start() else { return };
    passes(
        &server,
        "NOREPLICAS",
        &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
        &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_reads_its_data_is_waited_for() {
    let slowly = Options::new().line("key-load-delay 500").line("loading-process-events-interval-bytes 1024");
    let Some(mut server) = slowly.start() else { return };
    let jobs = Redis::builder(&server.url()).open().expect("a good URL");
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    server.command(&["DEBUG", "POPULATE", "4000"]);
    server.command(&["SAVE"]);
    server.kill();
    let loading = async {
        let mut told = None;
        until("it says that it is loading", async || {
            told = fetch(&jobs).await.err().filter(|error| whole(error).contains("LOADING"));
            told.is_some()
        })
        .await;
        told.expect("it has been waited for")
    };
    let restart = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let error = loading.await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", whole(&error));
    let _server = restart.await.expect("restarted");
    worker.runs_a_job(&jobs, "default").await;
    worker.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_somebody_ends_is_begun_again() {
    let Some(server) = RedisServer::start() else { return };
    let jobs = open(&server.url());
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    for how in ["ERROR", "TIMEOUT"] {
        let mut id = None;
        until("it waits", async || {
            let clients = server.clients();
            let waiting = clients.iter().find(|client| client.contains("cmd=blmove"));
            id = waiting.and_then(|line| line.strip_prefix("id=")?.split(' ').next().map(str::to_owned));
            let id = id.as_deref().unwrap_or("0");
            server.command(&["CLIENT", "UNBLOCK", id, how]).number() == 1
        })
        .await;
        worker.runs_a_job(&jobs, "default").await;
    }
    worker.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_or_says_nothing_is_waited_for() {
    let Some(mut server) = RedisServer::start() else { return };
    let nowhere = fetch(&open(&format!("redis://127.0.0.1:{}", free_port()))).await;
    assert_eq!(nowhere.expect_err("refused").kind(), ErrorKind::Connection);
    let no_socket = fetch(&open("redis+unix:///nowhere/redis.sock")).await;
    assert_eq!(no_socket.expect_err("no such file").kind(), ErrorKind::Connection);
    let brief =
        |url: &str| Redis::builder(url).timeout(Duration::from_millis(500)).open().expect("a good URL");
    let no_name = fetch(&brief("redis://no-such-host.invalid:6379")).await.expect_err("no such host");
    assert!(no_name.is_transient(), "{}", whole(&no_name));
    let silent = brief(&server.url());
    push(&silent, "default").await.expect("accepted");
    server.pause();
    let error = push(&silent, "default").await.expect_err("it says nothing");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{}", whole(&error));
    let error = fetch(&silent).await.expect_err("nor to a new connection");
    assert!(error.is_transient(), "{}", whole(&error));
    server.resume();
    until("it answers again", async || push(&silent, "default").await.is_ok()).await;
}

/// As a proxy, a firewall or a service mesh may: what comes is no answer, or none that fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_answers_of_servers_that_fail_over_are_waited_for() {
    for said in [
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-CLUSTERDOWN The cluster is down",
        "-BUSY Redis is busy running a script.",
        "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "-OOM command not allowed when used memory > 'maxmemory'.",
        "-ERR max number of clients reached",
        "HTTP/1.1 502 Bad Gateway",
    ] {
        let fake =
            Fake::start(move |request| if request.contains("EVALSHA") { said.into() } else { "+OK".into() });
        let error = fetch(&open(&fake.url())).await.expect_err(said);
        assert!(error.is_transient(), "{said}: {}", whole(&error));
    }
}

/// The same when the first thing that is said to it is a login, to which it answers as to anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_clients_are_no_refused_login() {
    let full = "-ERR max number of clients reached";
    let fake = Fake::start(move |request| if request.contains("AUTH") { full.into() } else { "+OK".into() });
    let error = fetch(&open(&format!("redis://:right@127.0.0.1:{}", fake.port()))).await.expect_err(full);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", whole(&error));
    // A real one hangs up before what it says has been read, now and then.
    let Some(server) = Options::new().password("right").line("maxclients 12").start() else { return };
    let jobs = open(&server.url());
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    let mut crowd = Vec::new();
    until("there is no room", async || {
        crowd.extend(crate::redis::Client::tcp(server.port()));
        crowd.last_mut().is_some_and(|last| {
            last.call(&["PING"])
                .map_or(true, |said| said.error().is_some_and(|said| said.contains("max number")))
        })
    })
    .await;
    let error = fetch(&jobs).await.expect_err("there is no room");
    assert!(error.is_transient(), "{}", whole(&error));
    drop(crowd);
    worker.runs_a_job(&jobs, "default").await;
    worker.running.stop().await;
}

/// A worker on this URL ends by itself, with an error of this kind that has all of `parts` in it.
async fn is_final(jobs: &Redis, kind: ErrorKind, parts: &[&str]) {
    let error = Counted::start(jobs).fails().await;
    let said = whole(&error);
    assert!(error.kind() == kind && !error.is_transient(), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is not named: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_refused_ends_the_worker_and_is_named() {
    let Some(server) = Options::new().password("right").start() else { return };
    let at = |login: &str| open(&format!("redis://{login}127.0.0.1:{}", server.port()));
    is_final(&at(":secret@"), ErrorKind::Denied, &["WRONGPASS", "refused the name or the password"]).await;
    is_final(&at("eve:secret@"), ErrorKind::Denied, &["WRONGPASS"]).await;
    is_final(&at(""), ErrorKind::Denied, &["the server wants a password"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_do_it_ends_the_worker_and_is_named() {
    let users = Options::new()
        .user("no-scripts on >secret ~* +@all -evalsha")
        .user("no-pops on >secret ~* +@all -rpop")
        .user("other-keys on >secret ~other:* +@all")
        .user(
            "other-queues on >secret ~tidegate:* ~queues ~schedule ~retry ~dead ~stat:* ~queue:other +@all",
        );
    let Some(server) = users.start() else { return };
    for user in ["no-scripts", "no-pops", "other-keys", "other-queues"] {
        let jobs = open(&format!("redis://{user}:secret@127.0.0.1:{}", server.port()));
        let worker =
            Counted::start_with(&jobs, |worker| worker.queues(tidegate::Queues::strict(["default"])));
        let error = worker.fails().await;
        let said = whole(&error);
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {said}");
        assert!(said.contains("ACL SETUSER") && !said.contains("secret"), "{user}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_ends_the_worker_and_is_named() {
    let Some(server) = RedisServer::start() else { return };
    server.command(&["SET", "queue:default", "a string"]);
    server.command(&["SADD", "queues", "default"]);
    let jobs = open(&server.url());
    is_final(&jobs, ErrorKind::InvalidInput, &["WRONGTYPE", "holds something else"]).await;
    let error = push(&jobs, "default").await.expect_err("no list");
    assert!(whole(&error).contains("queue:default"), "{}", whole(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_mended_by_waiting_is_named() {
    let Some(server) = RedisServer::start() else { return };
    let error = fetch(&open(&format!("{}/99", server.url()))).await.expect_err("there are 16");
    assert!(!error.is_transient() && whole(&error).contains("database"), "{}", whole(&error));
    for (said, kind) in [
        ("-MOVED 3999 127.0.0.1:6381", ErrorKind::Unsupported),
        ("-CROSSSLOT Keys in request don't hash to the same slot", ErrorKind::Unsupported),
        ("-ERR unknown command `EVALSHA`", ErrorKind::Unsupported),
    ] {
        let fake =
            Fake::start(move |request| if request.contains("EVALSHA") { said.into() } else { "+OK".into() });
        let error = fetch(&open(&fake.url())).await.expect_err(said);
        assert_eq!(error.kind(), kind, "{said}: {}", whole(&error));
    }
}
