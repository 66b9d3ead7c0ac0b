//! A `redis-server` of the test's own: [`RedisServer`].

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;

use super::client::{Client, Reply};
use super::process::{Folder, Process, free_port, is_there, missing, until};
use super::tls::Certificates;

/// The user through which the tests themselves talk to a server that has an ACL file.
const HARNESS: &str = "harness";

/// Says whether there is a `redis-server`; if not, in one visible line, and under CI with a panic.
pub(crate) fn server_is_there() -> bool {
    let there = version().is_some();
    if !there {
        missing("redis-server", "apt-get install redis-server");
    }
    there
}

/// The version of `redis-server`: major and minor.
fn version() -> Option<(u32, u32)> {
    static VERSION: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *VERSION.get_or_init(|| {
        if !is_there("redis-server") {
            return None;
        }
        let output = Command::new("redis-server").arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = said.split("v=").nth(1)?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

/// How a server is set up. Without persistence, password and TLS unless said otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    append_only: bool,
    password: Option<String>,
    users: Vec<String>,
    tls: Option<bool>,
    lines: Vec<String>,
}

/// The commands that apisonator asks an access list for, as that has them.
pub(crate) const APISONATOR_MAY: &str = "-@all +blpop +llen +lpop +lpush +lrange +ltrim +rpush +sadd +scan +scard +sismember +smembers +srem +sscan +del \
     +exists +expire +get +mget +set +setex +zadd +zcard +zremrangebyscore +zrevrange +hset +incr +incrby +select +role \
     +lindex +lrem +lset";

impl Options {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Each write is on the disk before it is answered, so that [`RedisServer::kill`] loses nothing.
    pub(crate) fn append_only(mut self) -> Self {
        self.append_only = true;
        self
    }

    /// The password of the default user.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A line of the ACL file, without `user`: `"alice on >secret ~jobs:* +@all"`, or `"default off"`.
    pub(crate) fn user(mut self, rules: &str) -> Self {
        self.users.push(rules.to_owned());
        self
    }

    /// Its port speaks TLS only.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = Some(false);
        self
    }

    /// Its port speaks TLS only, and only to who shows [`Certificates::client`].
    pub(crate) fn tls_both_ways(mut self) -> Self {
        self.tls = Some(true);
        self
    }

    /// A line of its configuration, as it stands: `"maxmemory 1mb"`.
    pub(crate) fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Starts it and waits until it answers. `None` where there is no `redis-server`, which has been said then.
    pub(crate) fn start(self) -> Option<RedisServer> {
        server_is_there().then(|| RedisServer::set_up(self))
    }

    fn configuration(&self, folder: &Folder, port: u16, certificates: Option<&Certificates>) -> String {
        let mut lines = format!("bind 127.0.0.1\nport {}\n", if self.tls.is_some() { 0 } else { port });
        let mut add = |line: String| writeln!(lines, "{line}").expect("a text takes it");
        add(format!("unixsocket {}\ndir {}", socket_in(folder).display(), folder.path().display()));
        add("save \"\"".to_owned());
        if self.append_only {
            add("appendonly yes\nappendfsync always".to_owned());
        }
        if version() >= Some((7, 0)) {
            add("enable-debug-command yes".to_owned());
        }
        if let (Some(both_ways), Some(made)) = (self.tls, certificates) {
            let (certificate, key) = &made.server;
            add(format!("tls-port {port}\ntls-ca-cert-file {}", made.ca.display()));
            add(format!("tls-cert-file {}\ntls-key-file {}", certificate.display(), key.display()));
            add(format!("tls-auth-clients {}", if both_ways { "yes" } else { "no" }));
        }
        if !self.users.is_empty() {
            add(format!("aclfile {}", folder.file("users.acl").display()));
        } else if let Some(password) = &self.password {
            add(format!("requirepass {password}"));
        }
        self.lines.iter().cloned().for_each(add);
        lines
    }

    /// With a user for the tests themselves. An ACL file goes before `requirepass`, so the password stands here.
    fn access_list(&self) -> String {
        let mut lines = format!("user {HARNESS} on >{HARNESS} ~* &* +@all\n");
        if let Some(password) = &self.password {
            lines += &format!("user default on >{password} ~* &* +@all\n");
        }
        self.users.iter().for_each(|rules| lines += &format!("user {rules}\n"));
        lines
    }
}

/// A server on a port of its own, in a folder of its own. Both go when it is dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    // Dropped in this order: the process ends before its folder goes.
    process: Process,
    port: u16,
    options: Options,
    certificates: Option<Certificates>,
    folder: Folder,
}

impl RedisServer {
    /// Without persistence, password and TLS. `None` where there is no `redis-server`, which has been said then.
    pub(crate) fn start() -> Option<Self> {
        Options::new().start()
    }

    fn set_up(options: Options) -> Self {
        let folder = Folder::new();
        let certificates = options.tls.map(|_| Certificates::make(&folder));
        let (process, port) = until_some("a port stays free", || {
            let port = free_port();
            let configuration = options.configuration(&folder, port, certificates.as_ref());
            fs::write(folder.file("redis.conf"), configuration).expect("the folder is there");
            fs::write(folder.file("users.acl"), options.access_list()).expect("the folder is there");
            Some((launch(&folder, &options)?, port))
        });
        Self { process, port, options, certificates, folder }
    }

    /// `redis://…`, or `rediss://…` under TLS; with the password of the default user if there is one.
    pub(crate) fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The same through another port: that of a proxy.
    pub(crate) fn url_through(&self, port: u16) -> String {
        let scheme = if self.certificates.is_some() { "rediss" } else { "redis" };
        let login = self.options.password.as_ref().map(|it| format!(":{it}@")).unwrap_or_default();
        format!("{scheme}://{login}127.0.0.1:{port}")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its unix socket, which it always has.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(&self.folder)
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("it was started with TLS")
    }

    /// A folder that goes with it.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has written, over all its lives.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// SIGKILL: it ends at once, and keeps what is on the disk.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Starts it again on the same port, with what its folder has; ends it before if it still runs.
    ///
    /// What it was about to write when it was killed is taken off first, as `docs/redis.md` says: of half a transaction at
    /// the end, Redis itself leaves a part there, which is then carried out with the next one.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        if self.options.append_only {
            mend(&self.folder);
        }
        self.process = until_some("its port is free again", || launch(&self.folder, &self.options));
    }

    /// SIGSTOP: it answers nothing, and its connections stay open.
    pub(crate) fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// A command on a connection of its own, through the unix socket and as a user who may do all.
    ///
    /// Fails where there is no answer; an error that the server answers with is a [`Reply`].
    pub(crate) fn command<A: AsRef<[u8]>>(&self, parts: &[A]) -> Reply {
        self.try_command(parts).unwrap_or_else(|error| {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            panic!("the server gives no answer: {error}\n{last}")
        })
    }

    /// The same for a server that may be down, paused, or about to get another role.
    pub(crate) fn try_command<A: AsRef<[u8]>>(&self, parts: &[A]) -> io::Result<Reply> {
        self.client()?.call(parts)
    }

    /// A connection through the unix socket, as a user who may do all.
    pub(crate) fn client(&self) -> io::Result<Client> {
        log_in(&self.folder, &self.options)
    }

    /// A field of INFO; nothing if there is no such field, or no answer.
    pub(crate) fn info(&self, field: &str) -> Option<String> {
        let all = self.try_command(&["INFO", "everything"]).ok()?.text();
        let mut lines = all.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| *name == field).map(|(_, value)| value.to_owned())
    }

    /// The lines of CLIENT LIST, without the tests' own.
    pub(crate) fn clients(&self) -> Vec<String> {
        let own = format!("addr={}:0", self.socket().display());
        let all = self.command(&["CLIENT", "LIST"]).text();
        all.lines().filter(|line| !line.contains(&own)).map(str::to_owned).collect()
    }

    /// Cuts the connections of all clients but the tests' own; how many those were.
    pub(crate) fn cut_clients(&self) -> i64 {
        self.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).number()
    }
}

/// Starts it and waits until it answers; `None` if somebody has taken its port.
fn launch(folder: &Folder, options: &Options) -> Option<Process> {
    let (conf, output) = (folder.file("redis.conf"), folder.file("output"));
    let written = fs::metadata(&output).map_or(0, |file| file.len());
    // What is left of a server that was killed.
    let _ = fs::remove_file(socket_in(folder));
    let mut process = Process::start(Command::new("redis-server").arg(conf), &output);
    let mut ended = false;
    until("redis-server answers", || {
        ended = process.ended().is_some();
        let pong = || log_in(folder, options)?.call(&["PING"]);
        ended || pong().is_ok_and(|reply| reply.error().is_none())
    });
    if !ended {
        return Some(process);
    }
    let said = process.output().split_off(usize::try_from(written).expect("a short file"));
    assert!(said.contains("Address already in use"), "redis-server does not start:\n{said}");
    None
}

/// Takes half a transaction off the end of the append only file.
fn mend(folder: &Folder) {
    let files = ["appendonlydir/appendonly.aof.manifest", "appendonly.aof"];
    let Some(file) = files.into_iter().map(|name| folder.file(name)).find(|file| file.exists()) else {
        return;
    };
    let mut check = Command::new("redis-check-aof");
    let mut check = check
        .arg("--fix")
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it is there");
    // It asks first, if there is anything to take off; if not, it may have ended by now.
    let _ = check.stdin.take().expect("a pipe").write_all(b"y\n");
    let ended = check.wait().expect("a child of ours");
    assert!(ended.success(), "redis-check-aof: {ended}");
}

fn log_in(folder: &Folder, options: &Options) -> io::Result<Client> {
    let mut client = Client::unix(&socket_in(folder))?;
    let refused = if !options.users.is_empty() {
        client.call(&["AUTH", HARNESS, HARNESS])?
    } else if let Some(password) = &options.password {
        client.call(&["AUTH", password])?
    } else {
        return Ok(client);
    };
    match refused.error() {
        Some(error) => Err(io::Error::other(error.to_owned())),
        None => Ok(client),
    }
}

fn socket_in(folder: &Folder) -> PathBuf {
    folder.file("redis.sock")
}

/// Tries until there is something; fails naming `what` if there is nothing within half a minute.
fn until_some<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = attempt();
        found.is_some()
    });
    found.expect("it has been waited for")
}
