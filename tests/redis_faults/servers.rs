//! The server is started again, cuts its clients, pauses them, and sleeps.

use std::time::Duration;

use crate::books::{Books, size};
use crate::crew::{TTL, crew, dismiss, drained, open, processed, settled_once, until_ran};
use crate::redis::{Options, RedisServer};

/// As many jobs as the promise names, or a few.
fn jobs() -> u64 {
    size(8_000, 100_000)
}

/// Runs jobs through three workers, and as many faults in the midst of them, each when its share of the jobs is done.
async fn suffering(
    what: &str,
    mut server: RedisServer,
    faults: u64,
    mut fault: impl AsyncFnMut(&mut RedisServer, u64),
) {
    let jobs = jobs();
    let (store, books) = (open(&server.url()), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let crew = crew(&server.url(), &books);
    for number in 0..faults {
        until_ran(&books, (jobs * (number + 1) / (faults + 1)) as usize).await;
        fault(&mut server, number).await;
    }
    assert!(books.balance().lost > 0, "all was done before the last fault: this shows nothing");
    drained(&store).await;
    let stale = dismiss(crew).await;
    let balance = settled_once(&server, &books, what);
    println!("{what}: {stale} settlements came too late or twice, and changed nothing");
    assert_eq!(processed(&server), jobs as i64, "each job is settled once");
    assert_eq!(
        balance.unexplained, 0,
        "what ran twice did so because of a lease that had run out: {balance:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_is_killed_and_started_again() {
    let Some(server) = Options::new().append_only().start() else { return };
    suffering("server restarts", server, size(3, 10), async |server, _| {
        // In between, nobody can enqueue; who tries hears of it.
        server.kill();
        server.restart();
    })
    .await;
}

/// By then the workers have given up what they had, finished or not begun, and nobody else has taken it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_is_away_for_longer_than_a_lease() {
    let Some(server) = Options::new().append_only().start() else { return };
    suffering("server away for longer than a lease", server, size(2, 10), async |server, number| {
        server.kill();
        let away = if number % 2 == 0 { TTL + TTL / 3 } else { TTL };
        tokio::time::sleep(away).await;
        server.restart();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_clients_are_cut() {
    let Some(server) = Options::new().start() else { return };
    suffering("clients cut", server, size(30, 200), async |server, _| {
        server.cut_clients();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_clients_are_paused() {
    let Some(server) = Options::new().start() else { return };
    suffering("clients paused", server, size(4, 10), async |server, number| {
        // Shorter than a lease, and longer.
        let time = if number % 2 == 0 { "300" } else { "4000" };
        let how = if number % 4 < 2 { "ALL" } else { "WRITE" };
        server.command(&["CLIENT", "PAUSE", time, how]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_sleeps() {
    let Some(server) = Options::new().start() else { return };
    suffering("server asleep", server, size(3, 10), async |server, number| {
        let time = if number % 2 == 0 { "0.5" } else { "4" };
        let mut client = server.client().expect("it is there");
        client.send(&["DEBUG", "SLEEP", time]).expect("sent");
        // It sleeps on, whoever asked for it.
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await;
}

/// Enqueued while the server comes and goes: what was acknowledged is run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_run_though_the_server_is_killed_meanwhile() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    let (store, books) = (open(&server.url()), Books::default());
    let crew = crew(&server.url(), &books);
    let mut from = 0;
    for restart in 0..size(3, 10) {
        let enqueue = async {
            for batch in 0..10 {
                books.enqueue(&store, from + batch * 100..from + (batch + 1) * 100).await;
            }
        };
        let before = books.balance().accepted;
        let kill = async {
            crate::crew::until("some are accepted", async || books.balance().accepted > before).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.restart();
            });
        };
        tokio::join!(enqueue, kill);
        from += 1_000 * (restart + 1);
    }
    drained(&store).await;
    dismiss(crew).await;
    let balance = settled_once(&server, &books, "enqueued while the server was killed");
    assert_eq!(balance.unexplained, 0, "{balance:?}");
}
