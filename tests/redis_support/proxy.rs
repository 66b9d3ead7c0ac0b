//! Each fault of the proxy, against a real server.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::{BOTH_WAYS, Client, Proxy, RedisServer, Reply, Way, until};

/// A server, a proxy before it, and a client of the proxy.
struct Scene {
    client: Client,
    proxy: Proxy,
    server: RedisServer,
}

impl Scene {
    fn set() -> Option<Self> {
        let server = RedisServer::start()?;
        let proxy = Proxy::start(server.port());
        let mut client = connect(&proxy);
        assert!(pings(&mut client));
        Some(Self { client, proxy, server })
    }

    fn says_nothing(&mut self) {
        let silence = self.client.receive().expect_err("it says nothing").kind();
        assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    }
}

/// Short of patience, so that silence is soon seen.
fn connect(proxy: &Proxy) -> Client {
    Client::tcp(proxy.port()).expect("it listens").patience(Duration::from_millis(300))
}

fn pings(client: &mut Client) -> bool {
    client.call(&["PING"]).is_ok_and(|reply| reply == Reply::Simple("PONG".to_owned()))
}

fn value(server: &RedisServer) -> String {
    server.command(&["GET", "key"]).text()
}

#[test]
fn without_a_fault_bytes_go_both_ways_and_connections_are_counted() {
    let Some(Scene { mut client, proxy, server }) = Scene::set() else { return };
    client = client.patience(Duration::from_secs(10));
    let large = "x".repeat(3_000_000);
    assert_eq!(client.call(&["SET", "key", &large]).expect("an answer").text(), "OK");
    assert_eq!(client.call(&["GET", "key"]).expect("an answer").text(), large);
    assert_eq!((proxy.opened(), proxy.open(), server.clients().len()), (1, 1, 1));
    let others: Vec<_> = (0..50).map(|_| connect(&proxy)).collect();
    until("they are there", || server.clients().len() == 51);
    assert_eq!((proxy.opened(), proxy.open()), (51, 51));
    drop((client, others));
    until("they are gone", || server.clients().is_empty() && proxy.open() == 0);
    assert_eq!(proxy.opened(), 51);
}

#[test]
fn cut_connections_end_on_both_sides_at_once_and_new_ones_are_taken() {
    let Some(mut scene) = Scene::set() else { return };
    scene.proxy.cut();
    assert_eq!(scene.client.receive().expect_err("it was cut").kind(), ErrorKind::ConnectionReset);
    until("the server has seen it", || scene.server.clients().is_empty());
    let mut client = connect(&scene.proxy);
    assert!(pings(&mut client));

    scene.proxy.close();
    assert_eq!(client.receive().expect_err("it was closed").kind(), ErrorKind::UnexpectedEof);
    assert_eq!((scene.proxy.opened(), scene.proxy.open()), (2, 0));
}

#[test]
fn new_connections_are_refused_while_the_others_stay() {
    let Some(mut scene) = Scene::set() else { return };
    for _ in 0..3 {
        scene.proxy.refuse();
        let refused = Client::tcp(scene.proxy.port()).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(pings(&mut scene.client));
        scene.proxy.accept();
        assert!(pings(&mut connect(&scene.proxy)));
    }
}

#[test]
fn each_way_can_be_made_slow() {
    const DELAY: Duration = Duration::from_millis(60);
    let Some(Scene { mut client, proxy, server: _server }) = Scene::set() else { return };
    let mut took = || {
        let asked = Instant::now();
        assert!(pings(&mut client));
        asked.elapsed()
    };
    for way in BOTH_WAYS {
        proxy.delay(way, DELAY);
        let took = took();
        assert!((DELAY..DELAY * 4).contains(&took), "{took:?}");
        proxy.delay(way, Duration::ZERO);
    }
    for way in BOTH_WAYS {
        proxy.delay(way, DELAY);
    }
    let both = took();
    assert!(both >= DELAY * 2, "{both:?}");
    proxy.heal();
    let healed = took();
    assert!(healed < DELAY, "{healed:?}");
}

#[test]
fn of_many_slow_bytes_each_is_late_only_once() {
    const DELAY: Duration = Duration::from_millis(100);
    let Some(Scene { mut client, proxy, server }) = Scene::set() else { return };
    client = client.patience(Duration::from_secs(10));
    let large = "x".repeat(3_000_000);
    server.command(&["SET", "key", &large]);
    proxy.delay(Way::ToClient, DELAY);
    let asked = Instant::now();
    assert_eq!(client.call(&["GET", "key"]).expect("an answer").text(), large);
    let took = asked.elapsed();
    assert!((DELAY..DELAY * 15).contains(&took), "{took:?}");
}

#[test]
fn swallowed_requests_never_arrive_and_swallowed_replies_are_of_requests_that_did() {
    for way in BOTH_WAYS {
        let Some(mut scene) = Scene::set() else { return };
        scene.proxy.swallow(way);
        scene.client.send(&["SET", "key", "value"]).expect("the kernel takes it");
        scene.says_nothing();
        if way == Way::ToClient {
            until("it has arrived", || value(&scene.server) == "value");
        }
        assert_eq!(value(&scene.server), if way == Way::ToClient { "value" } else { "" });
        assert_eq!((scene.proxy.open(), scene.server.clients().len()), (1, 1), "the sockets stay open");
        scene.proxy.heal();
        // It has lost bytes, so that nothing right can come of it.
        scene.client = scene.client.patience(Duration::from_secs(10));
        assert_eq!(scene.client.receive().expect_err("it was cut").kind(), ErrorKind::ConnectionReset);
        assert!(pings(&mut connect(&scene.proxy)));
    }
}

#[test]
fn a_client_that_gives_up_in_a_dead_network_is_still_there_for_the_server() {
    let Some(Scene { mut client, proxy, server }) = Scene::set() else { return };
    client.send(&["BLPOP", "list", "0"]).expect("it is taken");
    until("it waits", || server.clients().iter().any(|line| line.contains("cmd=blpop")));
    for way in BOTH_WAYS {
        proxy.swallow(way);
    }
    drop(client);
    until("its end is lost", || proxy.lost_ends() == 1);
    // Now a job is popped and goes nowhere.
    assert_eq!(server.command(&["RPUSH", "list", "job"]).number(), 1);
    until("it was popped", || server.command(&["LLEN", "list"]).number() == 0);
    assert_eq!((proxy.open(), server.clients().len()), (1, 1));
    proxy.heal();
    until("the server hears of it", || server.clients().is_empty());
}

#[test]
fn what_is_held_comes_later_and_nothing_is_lost() {
    for way in BOTH_WAYS {
        let Some(mut scene) = Scene::set() else { return };
        scene.proxy.hold(way);
        scene.client.send(&["PING"]).expect("it is taken");
        scene.says_nothing();
        scene.proxy.release(way);
        scene.client = scene.client.patience(Duration::from_secs(10));
        assert_eq!(scene.client.receive().expect("now it comes").text(), "PONG");
    }
}

#[test]
fn a_reply_is_lost_whole_though_its_request_was_done() {
    let Some(mut scene) = Scene::set() else { return };
    scene.proxy.cut_reply_after(0);
    let lost = scene.client.call(&["SET", "key", "value"]).expect_err("no reply");
    assert_eq!((lost.kind(), scene.proxy.traps()), (ErrorKind::UnexpectedEof, 0));
    assert_eq!(value(&scene.server), "value");
    assert!(pings(&mut connect(&scene.proxy)), "once only");
}

#[test]
fn a_reply_is_lost_to_what_was_asked_long_ago() {
    let Some(Scene { client, proxy, server }) = Scene::set() else { return };
    let mut client = client.patience(Duration::from_secs(10));
    client.send(&["BLPOP", "list", "0"]).expect("it is taken");
    until("it waits", || server.clients().iter().any(|line| line.contains("cmd=blpop")));
    proxy.cut_reply_after(0);
    assert_eq!(server.command(&["RPUSH", "list", "job"]).number(), 1);
    assert_eq!(client.receive().expect_err("no reply").kind(), ErrorKind::UnexpectedEof);
    assert_eq!((server.command(&["LLEN", "list"]).number(), proxy.traps()), (0, 0));
}

#[test]
fn a_reply_is_lost_in_its_middle() {
    let Some(scene) = Scene::set() else { return };
    scene.server.command(&["SET", "key", "0123456789"]);
    scene.proxy.cut_reply_after(8);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, scene.proxy.port())).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a good time");
    stream.write_all(b"GET key\r\n").expect("it is taken");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("up to its end");
    assert_eq!(reply, "$10\r\n012");
}

#[test]
fn of_many_requests_the_one_that_is_named_loses_its_reply_or_does_not_arrive() {
    let Some(mut scene) = Scene::set() else { return };
    let mut other = connect(&scene.proxy);
    scene.proxy.lose_reply_to("incr", 0);
    scene.proxy.lose_request("DECR");
    assert!(pings(&mut scene.client) && pings(&mut other));
    assert!(scene.client.call(&["INCR", "key"]).is_err());
    assert_eq!(value(&scene.server), "1");
    assert!(pings(&mut other) && scene.proxy.traps() == 1);
    assert!(other.call(&["DECR", "key"]).is_err());
    assert_eq!(value(&scene.server), "1");
    let mut third = connect(&scene.proxy);
    assert_eq!(third.call(&["INCR", "key"]).expect("once only").number(), 2);
    assert_eq!(third.call(&["DECR", "key"]).expect("once only").number(), 1);
}

#[test]
fn connections_follow_the_server_through_its_death_and_to_another() {
    let Some(mut scene) = Scene::set() else { return };
    scene.server.kill();
    assert!(!pings(&mut scene.client));
    assert!(!pings(&mut connect(&scene.proxy)), "taken, and reset");
    scene.server.restart();
    assert!(pings(&mut connect(&scene.proxy)));

    let Some(second) = RedisServer::start() else { return };
    scene.proxy.forward_to(second.port());
    assert_eq!(connect(&scene.proxy).call(&["SET", "key", "second"]).expect("an answer").text(), "OK");
    assert_eq!((value(&scene.server).as_str(), value(&second).as_str()), ("", "second"));
}

#[test]
fn the_proxy_ends_with_all_its_connections() {
    let Some(Scene { mut client, proxy, server }) = Scene::set() else { return };
    for way in BOTH_WAYS {
        proxy.hold(way);
    }
    let port = proxy.port();
    drop(proxy);
    assert!(!pings(&mut client) && Client::tcp(port).is_err());
    until("the server sees it", || server.clients().is_empty());
}
