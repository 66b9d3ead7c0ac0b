//! What can be set, and what a URL says.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::Redis;
use super::codec::resque::Style;
use super::codec::sidekiq::Times;
use super::exchange::Terms;
use super::keys::Keys;
use super::layout::{Fetch, Layout};
use super::link::{Dial, Host, Way};
use super::sentinel::Sentinels;
use crate::backend::{MAX_RUN_ON, check_leases};
use crate::error::Error;

/// How to reach a server, and how jobs stand there. Made by [`Redis::builder`].
///
/// All workers on one server should agree on the lease's time and the limits: each goes by its own.
#[derive(Clone)]
#[must_use]
pub struct RedisBuilder {
    url: String,
    pub(super) lease_ttl: Duration,
    doubt: Duration,
    pub(super) crash_limit: u32,
    pub(super) layout: Layout,
    pub(super) fetch: Fetch,
    pub(super) prefix: Option<String>,
    max_dead: Option<usize>,
    pub(super) dead_for: Duration,
    pub(super) max_payload_bytes: usize,
    pub(super) times: Times,
    pub(super) style: Style,
    timeout: Duration,
    ca_file: Option<PathBuf>,
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may hold a password.
        f.debug_struct("RedisBuilder")
            .field("lease_ttl", &self.lease_ttl)
            .field("crash_limit", &self.crash_limit)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            lease_ttl: Duration::from_secs(30),
            doubt: Duration::from_secs(300),
            crash_limit: 3,
            layout: Layout::Sidekiq,
            fetch: Fetch::Reliable,
            prefix: None,
            max_dead: None,
            dead_for: Duration::from_secs(180 * 86_400),
            max_payload_bytes: 16 << 20,
            times: Times::Millis,
            style: Style::Resque,
            timeout: Duration::from_secs(5),
            ca_file: None,
        }
    }

    /// For how long a job belongs to a worker that does not renew its lease; up to a year. Default 30 s: a worker
    /// renews after a third of it, and a job is tried again within half a minute of its worker's end.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = ttl;
        self
    }

    /// For how long jobs run on, and what they came to is kept, though their lease may have run out, while it can't be
    /// renewed; up to a day. Default five minutes, longer than a server usually takes to be started again and read its data: an outage
    /// undoes nothing. Leases that ran out while the server was away (no worker was seen for half a lease's time, at least 3 s) stay
    /// good for 5 s more, in which the workers come back, renew and settle. While a worker's heartbeat gets no answer, its exchanges
    /// renew what it holds, if it makes any. The price is that a worker which alone is cut off runs a job on that has been given
    /// to another; what it settles then is refused. With zero a job is cancelled as soon as its lease may have run out, and an outage
    /// that is longer than a lease undoes what was running. For leases of 6 s or more, and the same for all workers on one server.
    pub fn run_on(mut self, time: Duration) -> Self {
        self.doubt = time;
        self
    }

    /// How often the lease of a job may run out, within three days, before it goes to the dead ones: then it is taken
    /// for one that kills its workers. Default 3, as Sidekiq Pro has it. That is so for every job, however often it may
    /// fail; and since each lapsed lease counts as an attempt, one that may be tried only twice ends sooner.
    pub fn crash_limit(mut self, lapses: u32) -> Self {
        self.crash_limit = lapses;
        self
    }

    /// Whose keys and payloads jobs have. Default Sidekiq's. What the URL says goes before this.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// How jobs are taken. Default [`Fetch::Reliable`]. What the URL says goes before this.
    pub fn fetch(mut self, fetch: Fetch) -> Self {
        self.fetch = fetch;
        self
    }

    /// What all keys begin with: queues, unique keys, workers and all else of one prefix are nothing to those of another.
    /// Default nothing in Sidekiq's layout, which allows nothing else since its version 7, and `resque:` in Resque's. The
    /// namespace `NAME` of an older Sidekiq is the prefix `NAME:`. What the URL says goes before this.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// How many dead jobs are kept; the oldest go. Default 10,000 in Sidekiq's layout, and all in Resque's, as these
    /// have it.
    pub fn max_dead(mut self, jobs: usize) -> Self {
        self.max_dead = Some(jobs);
        self
    }

    /// For how long dead jobs are kept in Sidekiq's layout. Default 180 days, as Sidekiq has it. In Resque's, for ever.
    pub fn dead_for(mut self, time: Duration) -> Self {
        self.dead_for = time;
        self
    }

    /// How large a payload may be that is enqueued here. Default 16 MiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = bytes;
        self
    }

    /// Writes times as Sidekiq 7 and older do, in seconds with a fraction, for workers and dashboards of these. Default:
    /// as Sidekiq 8 does, in whole milliseconds. Both are read, and what is there keeps its own. In Sidekiq's layout only.
    /// What the URL says goes before this.
    pub fn times_in_seconds(mut self) -> Self {
        self.times = Times::Seconds;
        self
    }

    /// Writes every job as node-resque does, with its queue: `{"class":…,"queue":…,"args":…}`, so that its producers find jobs
    /// of ours by their bytes (`queue.del`, for a job that is to run at once). Default: as Resque does, without; jobs that
    /// wait for a time are written so anyway. Both are read. In Resque's layout only. What the URL says goes before this.
    pub fn node_resque_style(mut self) -> Self {
        self.style = Style::NodeResque;
        self
    }

    /// How long connecting may take, and the answer to a producer or an operator. Default 5 s. (What a worker asks for
    /// is given up after the worker's own `call_timeout`.)
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// The certificates (PEM) of the only authorities that may have signed the server's, and a sentinel's: for
    /// `rediss:` URLs. Default: those that the system trusts, or that `SSL_CERT_FILE` names.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Makes the handle. Nothing is connected yet.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a URL or a setting that makes no sense. The URL is never
    /// repeated: it may hold a password.
    pub fn open(mut self) -> Result<Redis, Error> {
        if self.timeout.is_zero() {
            return Err(Error::invalid("timeout is 0: it must be above zero"));
        }
        self.url = take_options(&mut self)?;
        check_leases(self.lease_ttl, self.crash_limit)?;
        if self.doubt > MAX_RUN_ON {
            return Err(Error::invalid(format!("run_on is {:?}: it must be at most a day", self.doubt)));
        }
        if self.fetch == Fetch::PlainPop && self.layout != Layout::Resque {
            return Err(Error::invalid(
                "plain pop is there in Resque's layout only: say layout=resque, or leave plain pop out (Sidekiq sends \
                 scripts itself, so a server that it works on allows them)",
            ));
        }
        if self.times == Times::Seconds && self.layout != Layout::Sidekiq {
            return Err(Error::invalid(
                "times are written in Sidekiq's layout only: leave out that they are to be in seconds, or the layout",
            ));
        }
        if self.style == Style::NodeResque && self.layout != Layout::Resque {
            return Err(Error::invalid(
                "the style of node-resque is there in Resque's layout only: say layout=resque, or leave the style out",
            ));
        }
        let ca = self.authorities()?;
        let (way, target) = if Sentinels::are_in(&self.url) {
            let (sentinels, target) = Sentinels::read(&self.url, ca).ok_or_else(nonsense)?;
            (Way::Sentinels(Box::new(sentinels)), target)
        } else {
            let info = self.url.as_str().into_connection_info().map_err(|_| nonsense())?;
            let target = target(&info);
            (Way::Straight(Box::new(Host::new(info, ca.as_deref())?)), target)
        };
        Ok(Redis::from_parts(&self, Dial::new(way, target, self.timeout, &self.keys())))
    }

    /// What the file of authorities says, if there is one.
    fn authorities(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        if !self.url.starts_with("rediss") {
            return Err(Error::invalid(
                "ca_file is set, but the URL is not one of TLS: it must begin with `rediss`",
            ));
        }
        let unusable = |why: &str| Error::invalid(format!("ca_file {}: {why}", path.display()));
        let read = std::fs::read(path).map_err(|error| unusable("it can't be read").caused_by(error))?;
        // What has none in it would leave nobody to be trusted, which is found late.
        let some = read.windows(BEGIN.len()).any(|part| part == BEGIN);
        if some { Ok(Some(read)) } else { Err(unusable("there is no certificate (PEM) in it")) }
    }

    pub(super) fn terms(&self) -> Terms {
        let max_dead = self.max_dead.or((self.layout == Layout::Sidekiq).then_some(10_000));
        Terms { lease_ttl: self.lease_ttl, doubt: self.doubt, max_dead, dead_for: self.dead_for }
    }

    pub(super) fn keys(&self) -> Keys {
        Keys::new(self.layout, self.prefix.as_deref().unwrap_or(self.layout.prefix()))
    }
}

/// Takes what is ours out of the URL's query; what is left is for the driver.
fn take_options(builder: &mut RedisBuilder) -> Result<String, Error> {
    let Some((address, query)) = builder.url.split_once('?') else { return Ok(builder.url.clone()) };
    let (address, query) = (address.to_owned(), query.to_owned());
    let by_socket = address.starts_with("redis+unix:");
    let by_sentinels = Sentinels::are_in(&address);
    let mut left = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "layout" => builder.layout = layout_of(value)?,
            "fetch" => builder.fetch = fetch_of(value)?,
            "prefix" => builder.prefix = Some(plain(value)?),
            "times" => builder.times = times_of(value)?,
            "style" => builder.style = style_of(value)?,
            "lease_ttl_ms" => builder.lease_ttl = millis(name, value)?,
            "run_on_ms" => builder.doubt = millis(name, value)?,
            "crash_limit" => builder.crash_limit = count(name, value)?,
            "db" | "user" | "pass" if by_socket => left.push(pair),
            "sentinel_user" | "sentinel_pass" if by_sentinels => left.push(pair),
            // Without its name, which may be a part of a password that should have been escaped.
            _ => {
                return Err(Error::invalid(
                    "the URL of a Redis server has a query that is not known: it may have layout=sidekiq|resque, \
                     prefix=PREFIX, fetch=reliable|plain-pop, times=milliseconds|seconds, style=resque|node-resque, lease_ttl_ms, run_on_ms and crash_limit, by a socket db, user and pass, and by sentinels sentinel_user and sentinel_pass",
                ));
            }
        }
    }
    Ok(if left.is_empty() { address } else { format!("{address}?{}", left.join("&")) })
}

fn millis(name: &str, value: &str) -> Result<Duration, Error> {
    count(name, value).map(Duration::from_millis)
}

fn count<T: FromStr>(name: &str, value: &str) -> Result<T, Error> {
    let wrong =
        |_| Error::invalid(format!("{name} in the URL of a Redis server is no whole number in its range"));
    value.parse().map_err(wrong)
}

fn layout_of(value: &str) -> Result<Layout, Error> {
    match value {
        "sidekiq" => Ok(Layout::Sidekiq),
        "resque" => Ok(Layout::Resque),
        _ => Err(Error::invalid("the layout in the URL of a Redis server is none: it is sidekiq or resque")),
    }
}

fn fetch_of(value: &str) -> Result<Fetch, Error> {
    match value {
        "reliable" => Ok(Fetch::Reliable),
        "plain-pop" => Ok(Fetch::PlainPop),
        _ => {
            Err(Error::invalid("the fetch in the URL of a Redis server is none: it is reliable or plain-pop"))
        }
    }
}

fn times_of(value: &str) -> Result<Times, Error> {
    match value {
        "milliseconds" => Ok(Times::Millis),
        "seconds" => Ok(Times::Seconds),
        _ => Err(Error::invalid(
            "the times in the URL of a Redis server are none: they are in milliseconds or seconds",
        )),
    }
}

fn style_of(value: &str) -> Result<Style, Error> {
    match value {
        "resque" => Ok(Style::Resque),
        "node-resque" => Ok(Style::NodeResque),
        _ => {
            Err(Error::invalid("the style in the URL of a Redis server is none: it is resque or node-resque"))
        }
    }
}

/// Undoes the escapes of a URL.
fn plain(value: &str) -> Result<String, Error> {
    let wrong = || Error::invalid("the prefix in the URL of a Redis server is not escaped as it should be");
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| wrong())
}

/// What a certificate begins with.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn nonsense() -> Error {
    Error::invalid(
        "the URL of a Redis server makes no sense: it is redis://USER:PASSWORD@HOST:PORT/DATABASE, of which all but \
         the host may be left out, or redis+unix:///PATH?db=DATABASE&user=USER&pass=PASSWORD, or \
         redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/MASTER/DATABASE; with rediss instead of redis for TLS",
    )
}

/// Where it leads to, without credentials.
fn target(info: &ConnectionInfo) -> String {
    let database = info.redis_settings().db();
    match info.addr() {
        ConnectionAddr::Unix(path) => format!("redis+unix://{}?db={database}", path.display()),
        ConnectionAddr::TcpTls { host, port, .. } => format!("rediss://{host}:{port}/{database}"),
        ConnectionAddr::Tcp(host, port) => format!("redis://{host}:{port}/{database}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RetryFormula;

    #[test]
    fn a_url_is_never_repeated_with_its_password() {
        let redis = RedisBuilder::new("redis://ada:secret@127.0.0.1:7000/3").open().expect("a good URL");
        assert_eq!(redis.dial().target, "redis://127.0.0.1:7000/3");
        for bad in [
            "redis://ada:secret@",
            "redis://ada:secret@h:port",
            "ftp://secret",
            "redis://h/secret",
            "redis+sentinel://ada:secret@h",
        ] {
            let error = RedisBuilder::new(bad).open().map(drop).expect_err(bad);
            assert!(error.is_invalid_input() && !format!("{error:?}").contains("secret"), "{error:?}");
        }
        assert!(!format!("{redis:?}").contains("secret"));
    }

    #[test]
    fn the_query_of_a_url_says_layout_and_prefix_and_nothing_else() {
        let open = |url: &str| RedisBuilder::new(url).open();
        let redis = open("redis://127.0.0.1:7000/3?layout=resque&prefix=a%3Ab:").expect("a good URL");
        assert_eq!(redis.dial().target, "redis://127.0.0.1:7000/3");
        assert_eq!(redis.keys().queues, "a:b:queues");
        assert_eq!(open("redis://h?layout=resque").expect("a good URL").keys().queues, "resque:queues");
        assert_eq!(open("redis://h?layout=sidekiq&prefix=x:").expect("a good URL").keys().queues, "x:queues");
        let keys = &open("redis://h?prefix=x:").expect("a good URL").0.keys;
        assert_eq!([&keys.ours, &keys.processes], ["x:tidegate:", "x:processes"]);
        let times = |query: &str| open(&format!("redis://h?{query}")).expect("a good URL").0.times;
        assert_eq!((times("times=seconds"), times("times=milliseconds")), (Times::Seconds, Times::Millis));
        assert_eq!(times("times=seconds&times=milliseconds"), Times::Millis, "the last counts");
        let style =
            |query: &str| open(&format!("redis://h?layout=resque{query}")).expect("a good URL").0.style;
        assert_eq!((style(""), style("&style=resque")), (Style::Resque, Style::Resque));
        assert_eq!(style("&style=node-resque"), Style::NodeResque);
        let plain = open("redis://h?layout=resque&fetch=plain-pop").expect("a good URL").backend();
        assert!(plain.intake.renew.is_none() && plain.reclaim.is_none());
        let socket = open("redis+unix:///s?db=2&layout=resque").expect("a good URL");
        assert_eq!(socket.dial().target, "redis+unix:///s?db=2");
        let terms = |query: &str| open(&format!("redis://h?{query}")).expect("a good URL").0;
        let leases = terms("lease_ttl_ms=1500&run_on_ms=0&crash_limit=7");
        assert_eq!(leases.terms.lease_ttl, Duration::from_millis(1500));
        assert_eq!((leases.terms.doubt, leases.crash_limit), (Duration::ZERO, 7));
        assert_eq!(terms("run_on_ms=86400000").terms.doubt, MAX_RUN_ON);
        assert_eq!(terms("").terms.doubt, Duration::from_secs(300));
        for bad in [
            "?lease_ttl_ms=0",
            "?lease_ttl_ms=30s",
            "?run_on_ms=-1",
            "?run_on_ms=86400001",
            "?crash_limit=0",
            "?crash_limit=4294967296",
            "?layout=bull",
            "?layout",
            "?fetch=pop",
            "?fetch=plain-pop",
            "?fetch=plain-pop&layout=sidekiq",
            "?times=hours",
            "?times=seconds&layout=resque",
            "?style=bull&layout=resque",
            "?style=node-resque",
            "?secret=1",
            "?db=1",
            "?prefix=%zz",
            "?prefix=%ff",
            "?protocol=resp3",
        ] {
            let error = open(&format!("redis://h{bad}")).map(drop).expect_err(bad);
            assert!(error.is_invalid_input() && !format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn jobs_of_sidekiq_are_retried_by_its_formula_and_others_by_the_usual_one() {
        let formula = |query: &str| {
            let open = RedisBuilder::new(&format!("redis://h{query}")).open().expect("a good URL");
            open.backend().intake.retry
        };
        assert_eq!(formula(""), RetryFormula::Sidekiq);
        assert_eq!(formula("?layout=resque"), RetryFormula::Exponential);
        assert_eq!(formula("?layout=resque&fetch=plain-pop"), RetryFormula::Exponential);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let builder = || RedisBuilder::new("redis://127.0.0.1");
        for bad in
            [builder().lease_ttl(Duration::ZERO), builder().crash_limit(0), builder().timeout(Duration::ZERO)]
        {
            assert!(bad.open().is_err_and(|error| error.is_invalid_input()));
        }
    }
}
