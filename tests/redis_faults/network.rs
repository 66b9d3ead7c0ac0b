//! The network cuts, delays, holds and half-opens connections, and loses requests and replies.

use std::time::Duration;

use tidegate::{ReconnectPolicy, Worker};
use tokio::time::Instant;

use crate::books::{Books, size};
use crate::crew::{crew, dismiss, drained, open, processed, registry, settled_once, start, until, until_ran};
use crate::redis::{BOTH_WAYS, Options, Proxy, Way};

/// One thing that goes wrong, and how it ends.
async fn goes_wrong(proxy: &Proxy, number: u64) {
    let moment = Duration::from_millis(20 + number * 7 % 100);
    match number % 10 {
        0 => proxy.cut(),
        1 => proxy.close(),
        2 => proxy.lose_reply_to("evalsha", 0),
        3 => proxy.lose_reply_to("evalsha", 7),
        4 => proxy.lose_request("evalsha"),
        5 => {
            proxy.refuse();
            proxy.cut();
            tokio::time::sleep(moment).await;
            proxy.accept();
        }
        6 => {
            proxy.delay(Way::ToClient, moment);
            tokio::time::sleep(moment * 3).await;
            proxy.delay(Way::ToClient, Duration::ZERO);
        }
        7 => {
            proxy.hold(Way::ToServer);
            tokio::time::sleep(moment * 3).await;
            proxy.release(Way::ToServer);
        }
        // Half open: one side goes on, and nothing arrives. The connections are reset when it heals.
        half_open => {
            let way = BOTH_WAYS[half_open as usize % 2];
            proxy.swallow(way);
            tokio::time::sleep(moment * 3).await;
            proxy.heal();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_network_cuts_delays_and_half_opens() {
    let (jobs, faults) = size((12_000, 20), (100_000, 100));
    let Some(server) = Options::new().start() else { return };
    let proxy = Proxy::start(server.port());
    let (store, books) = (open(&server.url()), Books::default());
    books.enqueue(&store, 0..jobs).await;
    let crew = crew(&server.url_through(proxy.port()), &books);
    for number in 0..faults {
        until_ran(&books, (jobs * (number + 1) / (faults + 1)) as usize).await;
        goes_wrong(&proxy, number).await;
    }
    assert!(books.balance().lost > 0, "all was done before the last fault: this shows nothing");
    proxy.heal();
    drained(&store).await;
    let stale = dismiss(crew).await;
    let balance = settled_once(&server, &books, "network faults");
    println!("network faults: {stale} settlements came too late or twice, and changed nothing");
    assert_eq!(processed(&server), jobs as i64, "each job is settled once");
    assert_eq!(balance.unexplained, 0, "{balance:?}");
    until("no connection is left", async || proxy.open() == 0).await;
}

/// What goes to a connection whose other end is gone is answered by nobody: it is given up after its time, and a new
/// one is made, though nothing says that the old one has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_noticed_by_their_silence() {
    let Some(server) = Options::new().start() else { return };
    for way in BOTH_WAYS {
        for held in [false, true] {
            let proxy = Proxy::start(server.port());
            let (store, books) = (open(&server.url()), Books::default());
            let mut policy = ReconnectPolicy::default();
            policy.call_timeout = Duration::from_secs(1);
            let url = server.url_through(proxy.port());
            let worker = Worker::builder(open(&url).intake(), registry(&books));
            let running = start(worker.reconnect(policy).fetch_wait(Duration::from_secs(2)));
            books.enqueue(&store, 0..10).await;
            until_ran(&books, 10).await;
            let before = proxy.opened();
            if held {
                proxy.hold(way)
            } else {
                proxy.swallow(way)
            }
            let begun = Instant::now();
            until("it makes a new connection", async || proxy.opened() > before).await;
            println!("{way:?} silent (held: {held}): noticed after {:?}", begun.elapsed());
            books.enqueue(&store, 10..20).await;
            proxy.heal();
            drained(&store).await;
            dismiss(vec![running]).await;
            settled_once(&server, &books, "half-open");
        }
    }
}
