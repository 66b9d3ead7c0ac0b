//! Plain pop promises less: what was in flight when a worker died is lost, and so is what an answer carried that never
//! arrived. Here it is shown that this is all, and that nothing runs twice.

use std::path::Path;

use tidegate::backend::redis::{Fetch, Layout, Redis};
use tidegate::{Shutdown, Worker};
use tokio::signal::unix::{SignalKind, signal};

use crate::books::{Balance, Books, size};
use crate::crew::{dismiss, drained, registry, start, until, until_ran};
use crate::fleet::{told_to_work, works};
use crate::redis::{Options, Process, RedisServer};

const SLOTS: usize = 20;

/// One that only puts jobs there, and looks.
fn producer(server: &RedisServer) -> Redis {
    Redis::builder(&server.url()).layout(Layout::Resque).open().expect("good settings")
}

fn popping(url: &str) -> Redis {
    Redis::builder(url).layout(Layout::Resque).fetch(Fetch::PlainPop).open().expect("good settings")
}

/// Not a test but a worker process that ends well at SIGTERM, unless it is told of no server.
#[test]
fn popping_process() {
    let Some((url, registry)) = told_to_work(false) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        let worker = Worker::builder(popping(&url).intake(), registry).max_concurrent_jobs(SLOTS).build();
        let shutdown = Shutdown::new();
        let told = async {
            terminate.recv().await;
            shutdown.stop();
        };
        let (report, ()) = tokio::join!(worker.expect("good settings").run(shutdown.clone()), told);
        assert!(report.held.is_empty(), "{report}");
    });
}

fn process(server: &RedisServer, log: &Path) -> Process {
    Process::start(&mut works("plain::popping_process", server, log), &server.folder().file("worker"))
}

fn processed(server: &RedisServer) -> u64 {
    server.command(&["GET", "resque:stat:processed"]).text().parse().unwrap_or(0)
}

/// Nothing ran that was not enqueued, nothing twice, and no more is lost than may be.
fn no_more_than_promised(books: &Books, what: &str, most: usize) -> Balance {
    let balance = books.balance();
    println!("{what}: {balance:?}, {most} may be lost");
    assert_eq!((balance.unexpected, balance.again), (0, 0), "{what}: {balance:?}");
    assert!(balance.lost <= most, "{what}: {balance:?}, and {most} may be lost");
    balance
}

#[tokio::test]
async fn killed_workers_lose_what_was_in_flight_under_plain_pop_and_nothing_else() {
    let (jobs, kills) = size((20_000, 6), (100_000, 20));
    let Some(server) = Options::new().start() else { return };
    let (store, books) = (producer(&server), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let log = server.folder().file("runs");
    let mut workers: Vec<Process> = (0..3).map(|_| process(&server, &log)).collect();
    for kill in 1..=kills {
        until("jobs are settled", async || processed(&server) >= jobs * kill / (kills + 1)).await;
        let doomed = &mut workers[kill as usize % 3];
        doomed.kill();
        *doomed = process(&server, &log);
    }
    assert!(processed(&server) < jobs, "all was done before the last kill: this shows nothing");
    drained(&store).await;
    for mut worker in workers {
        let ended = worker.stop();
        assert!(ended.success(), "{ended}: {}", worker.output());
    }
    books.take_in(&log);
    let most = kills as usize * SLOTS;
    let balance = no_more_than_promised(&books, "workers killed under plain pop", most);
    assert!(balance.lost > 0, "no worker had a job when it was killed: this shows nothing");
    let (ran, settled) = (balance.accepted - balance.lost, processed(&server) as usize);
    assert!(settled <= ran && ran <= settled + most, "{ran} ran, {settled} are counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_no_more_than_their_answers_under_plain_pop() {
    const ROOM: [(usize, usize); 3] = [(20, 0), (20, 20), (3, 0)];
    let (jobs, cuts) = size((8_000, 30), (100_000, 200));
    let Some(server) = Options::new().start() else { return };
    let (store, books) = (producer(&server), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let worker = |(slots, prefetch): (usize, usize)| {
        let worker = Worker::builder(popping(&server.url()).intake(), registry(&books));
        start(worker.max_concurrent_jobs(slots).prefetch(prefetch))
    };
    let crew: Vec<_> = ROOM.into_iter().map(worker).collect();
    for cut in 1..=cuts {
        until_ran(&books, (jobs * cut / (cuts + 1)) as usize).await;
        server.cut_clients();
    }
    assert!(books.balance().lost > 0, "all was done before the last cut: this shows nothing");
    drained(&store).await;
    dismiss(crew).await;
    let room: usize = ROOM.iter().map(|(slots, prefetch)| slots + prefetch).sum();
    no_more_than_promised(&books, "connections cut under plain pop", cuts as usize * room);
}
