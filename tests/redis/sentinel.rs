//! A master, its replicas and three sentinels that watch it: [`Sentinels`].

use std::fs;
use std::process::Command;

use super::client::Client;
use super::process::{Folder, Process, free_port, until};
use super::server::{Options, RedisServer};

/// What the sentinels call the master.
pub(crate) const MASTER: &str = "main";

/// Servers and sentinels; all end when it is dropped.
///
/// A master that does not answer is replaced after about three seconds.
#[derive(Debug)]
pub(crate) struct Sentinels {
    // Dropped in this order: who watches ends before who is watched.
    sentinels: Vec<Sentinel>,
    /// All servers; the first began as the master.
    pub(crate) servers: Vec<RedisServer>,
}

#[derive(Debug)]
struct Sentinel {
    process: Process,
    port: u16,
    _folder: Folder,
}

impl Sentinels {
    /// A master with so many replicas, and three sentinels. `None` where there is no `redis-server`, which has
    /// been said then.
    ///
    /// It takes about two seconds until the sentinels know each other and the replicas.
    pub(crate) fn start(replicas: usize) -> Option<Self> {
        let master = Options::new().line("repl-diskless-sync-delay 0").start()?;
        let follows = format!("replicaof 127.0.0.1 {}", master.port());
        let mut servers = vec![master];
        for _ in 0..replicas {
            servers.push(Options::new().line("repl-diskless-sync-delay 0").line(&follows).start()?);
        }
        for replica in &servers[1..] {
            until("the replica is in step", || replica.info("master_link_status").as_deref() == Some("up"));
        }
        let sentinels = (0..3).map(|_| Sentinel::start(servers[0].port())).collect();
        let group = Self { sentinels, servers };
        until("the sentinels know each other and the replicas", || {
            let knows = |sentinel: &Sentinel| {
                sentinel.field("num-other-sentinels") == Some("2".to_owned())
                    && sentinel.field("num-slaves") == Some(replicas.to_string())
            };
            group.sentinels.iter().all(knows)
        });
        Some(group)
    }

    /// The ports of the sentinels.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// What the sentinels call the master.
    pub(crate) fn name(&self) -> &'static str {
        MASTER
    }

    /// The server that most sentinels take for the master, by its place in `servers`.
    pub(crate) fn master(&self) -> Option<usize> {
        let told: Vec<u16> = self.sentinels.iter().filter_map(Sentinel::master).collect();
        let votes = |port: u16| told.iter().filter(|it| **it == port).count();
        self.servers.iter().position(|server| votes(server.port()) * 2 > self.sentinels.len())
    }

    /// Has the sentinels put a replica in the place of a master that is well, and waits until it is there; its
    /// place in `servers`.
    pub(crate) fn failover(&self) -> usize {
        let before = self.master().expect("there is a master");
        // Refused while a replica counts as not yet good enough to be promoted.
        until("the sentinels begin", || self.sentinels[0].ask(&["SENTINEL", "FAILOVER", MASTER]).is_ok());
        self.new_master(before)
    }

    /// Waits until most sentinels name another master than the one at `before`, and it says so itself; its place in
    /// `servers`.
    pub(crate) fn new_master(&self, before: usize) -> usize {
        let mut now = None;
        until("there is a new master", || {
            now = self.master().filter(|place| {
                *place != before && self.servers[*place].info("role").as_deref() == Some("master")
            });
            now.is_some()
        });
        now.expect("it has been waited for")
    }

    /// Kills the sentinel at `place`.
    pub(crate) fn kill_sentinel(&mut self, place: usize) {
        self.sentinels[place].process.kill();
    }
}

impl Sentinel {
    fn start(master: u16) -> Self {
        let folder = Folder::new();
        let (mut port, mut started) = (0, None);
        until("a sentinel answers", || {
            port = free_port();
            fs::write(folder.file("sentinel.conf"), configuration(&folder, port, master))
                .expect("it is there");
            let mut command = Command::new("redis-server");
            command.arg(folder.file("sentinel.conf")).arg("--sentinel");
            let process = started.insert(Process::start(&mut command, &folder.file("output")));
            let mut ended = false;
            until("it ends or answers", || {
                ended = process.ended().is_some();
                ended || ask(port, &["PING"]).is_ok()
            });
            assert!(!ended || process.output().contains("Address already in use"), "{}", process.output());
            !ended
        });
        Self { process: started.expect("it has been waited for"), port, _folder: folder }
    }

    fn ask(&self, parts: &[&str]) -> Result<Vec<String>, String> {
        ask(self.port, parts)
    }

    /// The port of the server that this one takes for the master.
    fn master(&self) -> Option<u16> {
        let address = self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).ok()?;
        address.get(1)?.parse().ok()
    }

    /// What this one knows of the master.
    fn field(&self, name: &str) -> Option<String> {
        let known = self.ask(&["SENTINEL", "MASTER", MASTER]).ok()?;
        known.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone())
    }
}

fn ask(port: u16, parts: &[&str]) -> Result<Vec<String>, String> {
    let reply =
        Client::tcp(port).and_then(|mut client| client.call(parts)).map_err(|error| error.to_string())?;
    match reply.error() {
        Some(error) => Err(error.to_owned()),
        None => Ok(reply.text().lines().map(str::to_owned).collect()),
    }
}

fn configuration(folder: &Folder, port: u16, master: u16) -> String {
    format!(
        "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 1000\n\
         sentinel parallel-syncs {MASTER} 1\n",
        folder.path().display()
    )
}
