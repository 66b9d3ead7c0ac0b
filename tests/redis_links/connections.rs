//! Sockets, databases, users, TLS; how many connections there are; and what a stop does to a wait.

use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Inspect as _, Queues};

use crate::redis::{Certificates, Folder, Options, RedisServer};
use crate::rig::{Counted, open, push, until, whole};

/// A worker on this URL runs a job.
async fn works(jobs: &Redis) {
    let worker = Counted::start(jobs);
    worker.runs_a_job(jobs, "default").await;
    worker.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_and_a_database_of_a_number() {
    let Some(server) = Options::new().password("a&b+c").start() else { return };
    let socket = server.socket();
    let jobs = open(&format!("redis+unix://{}?db=3&pass=a%26b%2Bc", socket.display()));
    works(&jobs).await;
    assert!(server.info("db3").is_some(), "what it has stands in the third");
    assert_eq!(server.command(&["EXISTS", "stat:processed"]).number(), 0, "and not in the first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_password_and_a_database() {
    let Some(server) = Options::new().user("default off").user("ada on >p%40ss ~* &* +@all").start() else {
        return;
    };
    let jobs = open(&format!("redis://ada:p%2540ss@127.0.0.1:{}/5", server.port()));
    let worker = Counted::start(&jobs);
    worker.runs_a_job(&jobs, "default").await;
    // One that is being made has said who it is, and not yet where it goes.
    let is_ours = |client: &String| client.contains("user=ada") && client.contains(" db=5 ");
    until("all are of the user, in the database", async || server.clients().iter().all(is_ours)).await;
    worker.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_that_is_named() {
    let Some(server) = Options::new().tls().password("secret").start() else { return };
    let ca = server.certificates().ca.clone();
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("rediss://:secret@{host}:{}", server.port());
        works(&Redis::builder(&url).ca_file(&ca).open().expect("good settings")).await;
    }
    // Without TLS nothing is said that could be understood.
    let plain = push(&open(&format!("redis://:secret@127.0.0.1:{}", server.port())), "default").await;
    assert!(plain.is_err_and(|error| error.is_transient()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused_and_named() {
    let Some(server) = Options::new().tls().start() else { return };
    let folder = Folder::new();
    let stranger = Certificates::make(&folder).ca;
    for jobs in [
        Redis::builder(&server.url()).ca_file(&stranger).open().expect("good settings"),
        // The system knows it as little.
        open(&server.url()),
    ] {
        let error = push(&jobs, "default").await.expect_err("it is not to be trusted");
        let said = whole(&error);
        assert!(said.contains("certificate"), "{said}");
        assert_eq!(server.command(&["EXISTS", "queue:default"]).number(), 0);
    }
}

#[tokio::test]
async fn a_file_of_authorities_that_is_of_no_use_is_refused_by_its_name() {
    let folder = Folder::new();
    let (missing, empty) = (folder.file("missing.pem"), folder.file("empty.pem"));
    std::fs::write(&empty, "no certificate\n").expect("the folder is there");
    for (url, file) in [("rediss://localhost", &missing), ("rediss+sentinel://localhost/main", &empty)] {
        let error = Redis::builder(url).ca_file(file).open().expect_err("of no use");
        assert!(error.is_invalid_input() && whole(&error).contains(&file.display().to_string()), "{error}");
    }
    let error = Redis::builder("redis://localhost").ca_file(&empty).open().expect_err("no TLS");
    assert!(error.is_invalid_input() && error.to_string().contains("ca_file"), "{error}");
}

/// As the documentation of [`Redis::intake`] says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_keeps_two_connections_and_one_for_each_queue_and_leaves_none() {
    let Some(server) = RedisServer::start() else { return };
    let jobs =
        Redis::builder(&server.url()).lease_ttl(Duration::from_millis(300)).open().expect("good settings");
    for round in 0..10 {
        let queues = 1 + round % 4;
        let names: Vec<String> = (0..queues).map(|number| format!("queue-{number}")).collect();
        // One that renews leases at once.
        let worker = Counted::start_with(&jobs, |worker| worker.queues(Queues::strict(names.clone())));
        for name in &names {
            worker.runs_a_job(&jobs, name).await;
        }
        // One of the producer's, too.
        let most = 1 + 2 + queues;
        until("it waits for each queue", async || {
            let clients = server.clients();
            assert!(
                clients.len() <= most,
                "{} connections, and {most} are enough: {clients:?}",
                clients.len()
            );
            clients.iter().filter(|client| client.contains("cmd=blmove")).count() == queues
        })
        .await;
        // What is not waited for any more is let go.
        worker.running.handle.set_queues(Queues::strict(["another"])).expect("a good name");
        until("it waits for the other alone", async || {
            let clients = server.clients();
            clients.len() <= 4 && clients.iter().filter(|client| client.contains("cmd=blmove")).count() == 1
        })
        .await;
        worker.running.stop().await;
        until("only the producer's is left", async || server.clients().len() == 1).await;
    }
    drop(jobs);
    until("none is left", async || server.clients().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_interrupts_a_wait_at_once_and_loses_nothing() {
    let Some(server) = RedisServer::start() else { return };
    let (jobs, mut ran, mut pushed) = (open(&server.url()), 0, 0);
    for round in 0..30 {
        let worker = Counted::start(&jobs);
        worker.runs_a_job(&jobs, "default").await;
        pushed += 1;
        until("it waits", async || server.clients().iter().any(|client| client.contains("cmd=blmove"))).await;
        // In every other round a job comes in the same moment.
        if round % 2 == 0 {
            push(&jobs, "default").await.expect("accepted");
            pushed += 1;
        }
        let counted = worker.ran();
        let ended = worker.running.stop().await;
        assert!(ended.took < Duration::from_secs(1), "round {round}: {:?}", ended.took);
        let stats = ended.report.stats;
        assert_eq!((stats.lost, stats.stale), (0, 0), "{}", ended.report);
        assert!(stats.done >= counted, "{}", ended.report);
        ran += stats.done;
        let counts = jobs.counts().await.expect("counted");
        assert_eq!(counts.leased, 0, "round {round}: nothing is kept from others");
        assert_eq!(ran + counts.ready, pushed, "round {round}: run or still there");
    }
}
