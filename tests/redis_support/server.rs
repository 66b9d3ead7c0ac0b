//! Servers that are killed, stopped, paused, started again and replaced.

use std::io::ErrorKind;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::redis::{Client, Options, Process, RedisServer, Reply, Sentinels, until};

fn set(server: &RedisServer, key: &str, value: &str) {
    assert_eq!(server.command(&["SET", key, value]), Reply::Simple("OK".to_owned()));
}

fn get(server: &RedisServer, key: &str) -> Reply {
    server.command(&["GET", key])
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

/// True as long as there is a process of this number, be it only one that nobody has waited for.
fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_server_answers_on_its_port_and_goes_with_its_folder() {
    let Some(server) = RedisServer::start() else { return };
    let (pid, folder) = (server.pid(), server.folder().path().to_owned());
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    let mut client = Client::tcp(server.port()).expect("it listens");
    assert_eq!(client.call(&["PING"]).expect("an answer"), Reply::Simple("PONG".to_owned()));
    assert!(server.output().contains("Ready to accept connections"), "{}", server.output());
    drop(server);
    assert!(!alive(pid) && !folder.exists());
}

#[test]
fn a_server_goes_with_a_test_that_panics() {
    let Some(server) = RedisServer::start() else { return };
    let (pid, folder) = (server.pid(), server.folder().path().to_owned());
    let panicked = std::panic::catch_unwind(move || {
        let _server = server;
        // Not `panic!`, which would tell of it.
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.is_err() && !alive(pid) && !folder.exists());
}

/// Not a test but a test program with a server, unless [`WHERE`] is not set.
#[test]
fn test_program_with_a_server() {
    let Some(path) = std::env::var_os(WHERE) else { return };
    let server = RedisServer::start().expect("there is one");
    std::fs::write(path, server.pid().to_string()).expect("the folder is there");
    loop {
        std::thread::park();
    }
}

/// The file into which a test program writes the pid of its server.
const WHERE: &str = "TIDEGATE_TEST_WHERE";

#[test]
fn a_server_goes_with_a_test_program_that_is_killed() {
    let Some(server) = RedisServer::start() else { return };
    let path = server.folder().file("pid");
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", "server::test_program_with_a_server"]).env(WHERE, &path);
    // Its folder is left behind, so it stands in ours.
    command.env("TMPDIR", server.folder().path());
    let mut program = Process::start(&mut command, &server.folder().file("program"));
    let mut pid = None;
    until("its server is there", || {
        pid = std::fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
        pid.is_some()
    });
    program.kill();
    // Whoever inherits it may take its time to fetch the end of a process.
    let gone =
        |pid| !alive(pid) || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it.is_empty());
    until("its server is gone", || pid.is_some_and(gone));
}

#[test]
fn servers_that_are_started_at_once_are_each_their_own() {
    let servers: Vec<_> = (0..4).map_while(|_| RedisServer::start()).collect();
    for (server, number) in servers.iter().zip(0..) {
        set(server, "number", &format!("{number}"));
    }
    for (server, number) in servers.iter().zip(0..) {
        assert_eq!(get(server, "number"), bulk(&format!("{number}")));
    }
}

#[test]
fn a_killed_server_has_lost_everything_and_with_a_log_nothing() {
    let (Some(mut forgetful), Some(mut durable)) =
        (RedisServer::start(), Options::new().append_only().start())
    else {
        return;
    };
    for server in [&mut forgetful, &mut durable] {
        set(server, "key", "value");
        let (port, pid) = (server.port(), server.pid());
        server.kill();
        assert!(!alive(pid));
        assert_eq!(Client::tcp(port).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
        server.restart();
        assert_eq!(server.port(), port);
    }
    assert_eq!(get(&forgetful, "key"), Reply::Nil);
    assert_eq!(get(&durable, "key"), bulk("value"));
}

#[test]
fn a_server_waits_for_its_port_as_long_as_somebody_else_has_it() {
    let Some(mut server) = RedisServer::start() else { return };
    server.kill();
    let (port, output) = (server.port(), server.folder().file("output"));
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it is free now");
    std::thread::scope(|scope| {
        scope.spawn(|| server.restart());
        let tried = || std::fs::read_to_string(&output).is_ok_and(|it| it.contains("Address already in use"));
        until("it has tried", tried);
        drop(other);
    });
    assert_eq!(Client::tcp(port).and_then(|mut it| it.call(&["PING"])).expect("an answer").text(), "PONG");
}

#[test]
fn a_stopped_server_has_ended_and_can_be_started_again() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    set(&server, "key", "value");
    let pid = server.pid();
    server.stop();
    assert!(!alive(pid) && server.output().contains("Redis is now ready to exit"), "{}", server.output());
    server.restart();
    assert_eq!(get(&server, "key"), bulk("value"));
}

#[test]
fn a_paused_server_answers_when_it_goes_on() {
    let Some(mut server) = RedisServer::start() else { return };
    server.pause();
    // The kernel still takes the connection and the command.
    let mut client = Client::tcp(server.port()).expect("the port is open");
    client = client.patience(Duration::from_millis(200));
    client.send(&["PING"]).expect("the kernel takes it");
    let silence = client.receive().expect_err("it is paused");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    client = client.patience(Duration::from_secs(10));
    server.resume();
    assert_eq!(client.receive().expect("it goes on"), Reply::Simple("PONG".to_owned()));
}

#[test]
fn a_password_is_asked_for_and_stands_in_the_url() {
    let Some(server) = Options::new().password("secret").start() else { return };
    assert_eq!(server.url(), format!("redis://:secret@127.0.0.1:{}", server.port()));
    let mut client = Client::tcp(server.port()).expect("it listens");
    let refusal = client.call(&["PING"]).expect("an answer");
    assert!(refusal.error().is_some_and(|it| it.starts_with("NOAUTH")), "{refusal:?}");
    assert_eq!(client.call(&["AUTH", "secret"]).expect("an answer").text(), "OK");
    set(&server, "key", "value");
}

#[test]
fn users_may_do_what_their_rules_say() {
    let rules = "alice on >wonder ~jobs:* -@all +get +set";
    let Some(server) = Options::new().user(rules).user("default off").start() else { return };
    let mut client = Client::tcp(server.port()).expect("it listens");
    let mut call = |parts: &[&str]| client.call(parts).expect("an answer");
    assert!(call(&["GET", "jobs:1"]).error().is_some_and(|it| it.starts_with("NOAUTH")));
    assert_eq!(call(&["AUTH", "alice", "wonder"]).text(), "OK");
    assert_eq!(call(&["GET", "jobs:1"]), Reply::Nil);
    assert!(call(&["GET", "other"]).error().is_some_and(|it| it.starts_with("NOPERM")));
    assert!(call(&["LPUSH", "jobs:1", "x"]).error().is_some_and(|it| it.starts_with("NOPERM")));
    // The tests themselves may do all.
    assert_eq!(server.command(&["LPUSH", "other", "x"]).number(), 1);
}

#[test]
fn under_tls_the_port_wants_to_see_a_certificate_or_not() {
    let (Some(open), Some(closed)) =
        (Options::new().tls().start(), Options::new().tls_both_ways().password("secret").start())
    else {
        return;
    };
    assert_eq!(open.url(), format!("rediss://127.0.0.1:{}", open.port()));
    let answer = ping_with_tls(&open, false);
    assert!(answer.contains("PONG"), "{answer}");
    let refused = ping_with_tls(&closed, false);
    assert!(!refused.contains("PONG"), "{refused}");
    let answer = ping_with_tls(&closed, true);
    assert!(answer.contains("PONG"), "{answer}");
    let mut plain = Client::tcp(open.port()).expect("it listens");
    assert!(plain.call(&["PING"]).is_err(), "no TLS, no answer");
}

/// What Redis's own client says, which speaks TLS and comes with the server.
fn ping_with_tls(server: &RedisServer, shown: bool) -> String {
    let certificates = server.certificates();
    let mut command = Command::new("redis-cli");
    command.args(["--no-auth-warning", "--tls", "--cacert"]).arg(&certificates.ca);
    if shown {
        command.arg("--cert").arg(&certificates.client.0).arg("--key").arg(&certificates.client.1);
    }
    // It takes a URL, but reads one without a user's name as one with an empty name.
    command.env("REDISCLI_AUTH", "secret").args(["-p", &server.port().to_string(), "PING"]);
    let output = command.output().expect("it comes with the server");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn lines_of_configuration_are_taken_as_they_stand() {
    let Some(server) = Options::new().line("maxmemory 1mb").line("maxmemory-policy noeviction").start()
    else {
        return;
    };
    let full = server.command(&["SET", "key", &"x".repeat(2 << 20)]);
    let refused = |reply: &Reply| reply.error().is_some_and(|it| it.starts_with("OOM"));
    assert!(refused(&full) || refused(&server.command(&["SET", "key", "value"])), "{full:?}");
}

#[test]
fn connections_are_listed_counted_and_cut() {
    let Some(server) = RedisServer::start() else { return };
    let mut clients: Vec<_> = (0..3).map(|_| Client::tcp(server.port()).expect("it listens")).collect();
    for client in &mut clients {
        client.call(&["PING"]).expect("an answer");
    }
    assert_eq!(server.clients().len(), 3, "without the tests' own");
    assert!(server.clients().iter().all(|line| line.contains("cmd=ping")), "{:?}", server.clients());
    assert_eq!(server.cut_clients(), 3);
    for client in &mut clients {
        assert!(client.call(&["PING"]).is_err(), "it has been cut");
    }
    until("the server has forgotten them", || server.clients().is_empty());
    assert!(server.info("total_connections_received").is_some_and(|it| it.parse::<u64>().unwrap_or(0) > 3));
}

#[test]
fn a_server_can_be_told_to_sleep() {
    let Some(server) = RedisServer::start() else { return };
    let mut sleeper = server.client().expect("it listens");
    sleeper.send(&["DEBUG", "SLEEP", "0.3"]).expect("it takes the command");
    assert_eq!(sleeper.receive().expect("an answer").text(), "OK");
}

#[test]
fn the_sentinels_put_another_master_in_place_when_asked_and_when_one_dies() {
    let Some(mut group) = Sentinels::start(2) else { return };
    assert_eq!(group.master(), Some(0));
    set(&group.servers[0], "key", "value");
    until("the replicas have it", || group.servers.iter().all(|server| has(server, "value")));

    let second = group.failover();
    assert_ne!(second, 0);
    set(&group.servers[second], "key", "changed");
    let other = 3 - second;
    until("the other replica follows", || has(&group.servers[other], "changed"));

    group.servers[second].kill();
    let third = group.new_master(second);
    assert!(third != second && has(&group.servers[third], "changed"));
}

/// A server that is given another role cuts its clients, so there may be no answer.
fn has(server: &RedisServer, value: &str) -> bool {
    server.try_command(&["GET", "key"]).is_ok_and(|reply| reply == bulk(value))
}

/// Redis leaves a part of it in its file, and carries that out with the next one when it reads the file once more.
#[test]
fn half_a_transaction_that_a_killed_server_left_is_not_carried_out() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    server.command(&["RPUSH", "queue", "first", "second", "third"]);
    server.kill();
    let files =
        ["appendonlydir/appendonly.aof.1.incr.aof", "appendonly.aof"].map(|name| server.folder().file(name));
    let file = files.iter().find(|file| file.exists()).expect("what it has written");
    let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("a file");
    file.write_all(b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nLPOP\r\n$5\r\nqueue\r\n*4\r\n$4\r\nHSET\r\n$4\r\nhel")
        .expect("written");
    server.restart();
    let take = "redis.call('HSET', 'held', redis.call('LPOP', 'queue'), 1)";
    server.command(&["EVAL", take, "0"]);
    server.kill();
    server.restart();
    let left = server.command(&["LRANGE", "queue", "0", "-1"]).texts();
    assert_eq!(
        (left, server.command(&["HKEYS", "held"]).texts()),
        (vec!["second".to_owned(), "third".to_owned()], vec!["first".to_owned()])
    );
}
