//! The master that sentinels name: found, checked, and found anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tidegate::ErrorKind;

use crate::fake::Fake;
use crate::redis::{Options, RedisServer, Sentinels, free_port};
use crate::rig::{Counted, open, push, until, whole};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_is_found_by_its_name_though_sentinels_are_gone_and_found_anew() {
    let Some(mut group) = tokio::task::block_in_place(|| Sentinels::start(1)) else { return };
    let nobody = free_port();
    let ports: Vec<String> = group.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = |name: &str| format!("redis+sentinel://127.0.0.1:{nobody},{}/{name}/2", ports.join(","));
    let jobs = open(&url(group.name()));
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    let before = group.master().expect("there is one");
    assert!(group.servers[before].info("db2").is_some(), "in its second database");
    let error = push(&open(&url("other")), "default").await.expect_err("nobody is called so");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "it may be known soon");
    assert!(whole(&error).contains("\"other\""), "{}", whole(&error));
    // Gone for good, and a sentinel too.
    let after = tokio::task::block_in_place(|| {
        group.servers[before].kill();
        let after = group.new_master(before);
        group.kill_sentinel(0);
        after
    });
    worker.runs_a_job(&jobs, "default").await;
    assert!(group.servers[after].clients().iter().any(|client| client.contains("cmd=evalsha")));
    worker.running.stop().await;
}

/// A sentinel that has not yet heard of it names a master that is none any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_no_master_is_not_taken_for_one() {
    let Some(master) = RedisServer::start() else { return };
    let follows = format!("replicaof 127.0.0.1 {}", master.port());
    let Some(replica) = Options::new().line(&follows).start() else { return };
    let named = Arc::new(AtomicU16::new(replica.port()));
    let names = named.clone();
    let sentinel = Fake::start(move |request| {
        if !request.contains("get-master-addr-by-name") {
            return "+OK".to_owned();
        }
        let port = names.load(Ordering::SeqCst).to_string();
        format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}", port.len())
    });
    let jobs = open(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port()));
    let error = push(&jobs, "default").await.expect_err("it is a replica");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", whole(&error));
    assert!(whole(&error).contains("no master"), "{}", whole(&error));
    let worker = Counted::start(&jobs);
    named.store(master.port(), Ordering::SeqCst);
    worker.runs_a_job(&jobs, "default").await;
    worker.running.stop().await;
    until("nobody is left at the replica", async || {
        replica.clients().iter().all(|client| client.contains("flags=M"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_and_sentinels_have_passwords_of_their_own() {
    let Some(server) = Options::new().user("default off").user("ada on >one ~* &* +@all").start() else {
        return;
    };
    let port = server.port().to_string();
    let sentinel = Fake::start(move |request| match request {
        "AUTH eve two" => "+OK".to_owned(),
        _ if request.starts_with("AUTH") => "-WRONGPASS invalid username-password pair".to_owned(),
        _ if request.contains("get-master") => {
            format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}", port.len())
        }
        _ => "+OK".to_owned(),
    });
    let url = |password: &str| {
        let at = sentinel.port();
        open(&format!(
            "redis+sentinel://ada:one@127.0.0.1:{at}/main?sentinel_user=eve&sentinel_pass={password}"
        ))
    };
    push(&url("two"), "default").await.expect("both let it in");
    let error = push(&url("three"), "default").await.expect_err("the sentinel does not");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", whole(&error));
}
