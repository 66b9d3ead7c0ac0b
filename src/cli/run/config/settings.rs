//! All settings but those of the kinds, as they are read and with what is meant when they are not set.

use std::time::Duration;

use super::problem::Problem;
use super::retry::Retry;
use super::source::Source;
use super::table::Table;
use super::tree::{Key, Node, Value};
use crate::backend::sqlite::Durability;
use crate::backend::{self, MAX_LEASE_TTL, MAX_RUN_ON};
use crate::cli::room;
use crate::cli::run::log::{Format, Level};
use crate::job::Queue;
use crate::limit::Queues;
use crate::reschedule::Turn;
use crate::worker::{MAX_CONCURRENT_JOBS, ReconnectPolicy, UnknownKind};

/// What a configuration says of everything but the kinds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) sqlite: SqliteSettings,
    pub(crate) redis: RedisSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) log: LogSettings,
}

/// `[sqlite]`. What is not set is as [`SqliteBuilder`](crate::backend::sqlite::SqliteBuilder) has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SqliteSettings {
    pub(crate) durability: Option<Durability>,
    pub(crate) lease_ttl: Option<Duration>,
    pub(crate) max_dead: Option<usize>,
    pub(crate) keep_done: Option<Duration>,
    pub(crate) max_done: Option<usize>,
    pub(crate) crash_limit: Option<u32>,
    pub(crate) busy_timeout: Option<Duration>,
    pub(crate) watch_every: Option<Duration>,
    pub(crate) adopt: Option<bool>,
}

/// `[redis]`. What is not set is as [`Presence`](crate::service::Presence) and the backend have it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RedisSettings {
    /// Whether dashboards are shown the worker, and may steer it.
    pub(crate) presence: bool,
    pub(crate) tag: Option<String>,
    pub(crate) labels: Vec<String>,
    /// How often failed jobs are put back, if they are.
    pub(crate) reschedule: Option<Duration>,
    /// How often each at most.
    pub(crate) reschedule_times: u32,
    /// Times are written as Sidekiq 7 and older do.
    pub(crate) times_in_seconds: bool,
    /// Jobs are written as node-resque does.
    pub(crate) node_resque_style: bool,
    pub(crate) lease_ttl: Option<Duration>,
    pub(crate) run_on: Option<Duration>,
    pub(crate) crash_limit: Option<u32>,
}

/// `[worker]`. The defaults are those of [`WorkerBuilder`](crate::WorkerBuilder).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerSettings {
    pub(crate) name: String,
    pub(crate) max_concurrent_jobs: usize,
    pub(crate) prefetch: usize,
    pub(crate) shutdown_deadline: Duration,
    pub(crate) job_timeout: Option<Duration>,
    pub(crate) cancel_grace: Duration,
    pub(crate) fetch_wait: Duration,
    pub(crate) max_payload: usize,
    pub(crate) queues: Queues,
    pub(crate) unknown_kind: UnknownKind,
    pub(crate) retry: Retry,
    pub(crate) reconnect: ReconnectPolicy,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) level: Level,
    pub(crate) format: Format,
}

impl Settings {
    /// Reads the outermost table but for its kinds.
    pub(super) fn read(root: &mut Table<'_>) -> Self {
        let source = Source::read(root);
        let given = root.table("sqlite");
        if let Some(table) = given.as_ref().filter(|_| !source.is_sqlite()) {
            let what = "[sqlite] has no meaning when the source is no SQLite file: leave it out";
            root.reading().note(Problem::new(table.origin(), what));
        }
        let sqlite = given.map(SqliteSettings::read).unwrap_or_default();
        let redis = RedisSettings::read(root, &source);
        let worker = WorkerSettings::read(root.table("worker"), Retry::of(&source));
        let (busy, call) = (sqlite.busy_timeout.unwrap_or_default(), worker.reconnect.call_timeout);
        if !busy.is_zero() && busy >= call {
            let what = format!(
                "sqlite.busy_timeout ({busy:?}) must be below worker.reconnect.call_timeout ({call:?}): a worker would \
                 take a file that is locked for long for one that is gone"
            );
            root.reading().note(Problem::new(root.origin(), what));
        }
        let log = LogSettings::read(root.table("log"));
        Self { source, sqlite, redis, worker, log }
    }
}

impl SqliteSettings {
    fn read(mut table: Table<'_>) -> Self {
        let durability = [("full", Durability::Full), ("normal", Durability::Normal)];
        let read = Self {
            durability: table.choice("durability", &durability),
            lease_ttl: lease_ttl(&mut table),
            max_dead: table.count("max_dead", 0, u32::MAX.into()).map(|jobs| jobs as usize),
            keep_done: table.time_or_zero("keep_done"),
            max_done: table.count("max_done", 0, u32::MAX.into()).map(|jobs| jobs as usize),
            crash_limit: crash_limit(&mut table),
            busy_timeout: table.time_or_zero("busy_timeout"),
            watch_every: table.time("watch_every"),
            adopt: table.truth("adopt"),
        };
        table.end();
        read
    }
}

impl RedisSettings {
    fn read(root: &mut Table<'_>, source: &Source) -> Self {
        let reschedule_times = Turn::DEFAULT.max_times;
        let mut read = Self {
            presence: true,
            tag: None,
            labels: Vec::new(),
            reschedule: None,
            reschedule_times,
            times_in_seconds: false,
            node_resque_style: false,
            lease_ttl: None,
            run_on: None,
            crash_limit: None,
        };
        let Some(mut table) = root.table("redis") else { return read };
        if !source.is_redis() {
            let what = "[redis] has no meaning when the source is no Redis server: leave it out";
            table.reading().note(Problem::new(table.origin(), what));
        }
        read.presence = table.truth("presence").unwrap_or(read.presence);
        read.tag = table.text("tag", "a name").map(str::to_owned);
        read.labels = labels(&mut table);
        read.reschedule = reschedule(&mut table);
        let times = table.count("reschedule_times", 0, u32::MAX.into()).map(|times| times as u32);
        read.reschedule_times = times.unwrap_or(read.reschedule_times);
        [read.times_in_seconds, read.node_resque_style] =
            WRITTEN.map(|written| is_written(&mut table, source, written));
        read.lease_ttl = lease_ttl(&mut table);
        read.run_on = run_on(&mut table);
        read.crash_limit = crash_limit(&mut table);
        table.end();
        read
    }

    /// The URL of `source`, with what is said here of how it is written to, and of leases.
    pub(crate) fn url(&self, source: &Source) -> String {
        let mut options = written_as([self.times_in_seconds, self.node_resque_style]);
        let mut say =
            |name, value: Option<u128>| options.extend(value.map(|value| format!("{name}={value}")));
        say("lease_ttl_ms", self.lease_ttl.map(|time| time.as_millis()));
        say("run_on_ms", self.run_on.map(|time| time.as_millis()));
        say("crash_limit", self.crash_limit.map(u128::from));
        url(source, &options)
    }

    /// The URL with what concerns who only writes, by a configuration of which the rest is not looked at.
    pub(super) fn url_in(root: &mut Table<'_>, source: &Source) -> String {
        let Some(mut table) = root.table("redis") else { return source.url().to_owned() };
        url(source, &written_as(WRITTEN.map(|written| is_written(&mut table, source, written))))
    }
}

/// What says how a server is written to: here, and in its URL.
const WRITTEN: [(&str, &str); 2] =
    [("times_in_seconds", "times=seconds"), ("node_resque_style", "style=node-resque")];

fn written_as(wanted: [bool; WRITTEN.len()]) -> Vec<String> {
    let options = WRITTEN.iter().zip(wanted).filter(|(_, wanted)| *wanted);
    options.map(|((_, option), _)| (*option).to_owned()).collect()
}

fn url(source: &Source, options: &[String]) -> String {
    if options.is_empty() { source.url().to_owned() } else { source.with_option(&options.join("&")) }
}

/// Whether it is to be written so, which must make sense for the source.
fn is_written(table: &mut Table<'_>, source: &Source, (key, option): (&'static str, &str)) -> bool {
    let wanted = table.truth(key).unwrap_or(false);
    if wanted
        && source.is_redis()
        && let Err(error) = backend::open(&source.with_option(option))
        && let Some(node) = table.get(key)
    {
        table.refuse(key, node, format!("makes no sense: {error}"));
    }
    wanted
}

/// Time enough for a turn.
fn reschedule(table: &mut Table<'_>) -> Option<Duration> {
    let least = Duration::from_secs(1);
    let time = table.time("reschedule")?;
    if time < least {
        let what = format!("redis.reschedule is {time:?}: it must be at least {least:?}");
        table.reading().note(Problem::new(table.origin(), what));
    }
    Some(time)
}

fn labels(table: &mut Table<'_>) -> Vec<String> {
    let Some(node) = table.get("labels") else { return Vec::new() };
    let texts = match &node.value {
        Value::List(labels) => labels.iter().map(|label| label.text().map(str::to_owned)).collect(),
        _ => None,
    };
    texts.unwrap_or_else(|| {
        table.refuse("labels", node, "must be a list of texts");
        Vec::new()
    })
}

/// A lease is there to run out.
fn lease_ttl(table: &mut Table<'_>) -> Option<Duration> {
    let ttl = table.time("lease_ttl")?;
    if ttl > MAX_LEASE_TTL {
        let node = table.get("lease_ttl")?;
        table.refuse("lease_ttl", node, format!("must be at most {} days", MAX_LEASE_TTL.as_secs() / 86_400));
    }
    Some(ttl)
}

fn run_on(table: &mut Table<'_>) -> Option<Duration> {
    let time = table.time_or_zero("run_on")?;
    if time > MAX_RUN_ON {
        let node = table.get("run_on")?;
        table.refuse("run_on", node, format!("must be at most {} hours", MAX_RUN_ON.as_secs() / 3600));
    }
    Some(time)
}

fn crash_limit(table: &mut Table<'_>) -> Option<u32> {
    table.count("crash_limit", 1, u32::MAX.into()).map(|limit| limit as u32)
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            max_concurrent_jobs: 20,
            prefetch: 0,
            shutdown_deadline: Duration::from_secs(25),
            job_timeout: Some(Duration::from_secs(30 * 60)),
            cancel_grace: Duration::from_secs(5),
            fetch_wait: Duration::from_secs(10),
            max_payload: 16 << 20,
            queues: Queues::All,
            unknown_kind: UnknownKind::Retry,
            retry: Retry::default(),
            reconnect: ReconnectPolicy::default(),
        }
    }
}

impl WorkerSettings {
    fn read(table: Option<Table<'_>>, retry: Retry) -> Self {
        let base = Self { retry, ..Self::default() };
        let Some(mut table) = table else { return base };
        let most = MAX_CONCURRENT_JOBS as u64;
        let unknown = [
            ("retry", UnknownKind::Retry),
            ("reject", UnknownKind::Reject),
            ("release", UnknownKind::Release),
        ];
        let read = Self {
            name: name(&mut table).unwrap_or(base.name),
            max_concurrent_jobs: jobs(&mut table).unwrap_or(base.max_concurrent_jobs),
            prefetch: table.count("prefetch", 0, most).map_or(base.prefetch, |jobs| jobs as usize),
            shutdown_deadline: table.time_or_zero("shutdown_deadline").unwrap_or(base.shutdown_deadline),
            job_timeout: table.time_or_word("job_timeout").unwrap_or(base.job_timeout),
            cancel_grace: table.time_or_zero("cancel_grace").unwrap_or(base.cancel_grace),
            fetch_wait: table.time("fetch_wait").unwrap_or(base.fetch_wait),
            max_payload: table.size("max_payload").unwrap_or(base.max_payload),
            queues: queues(&mut table),
            unknown_kind: table.choice("unknown_kind", &unknown).unwrap_or(base.unknown_kind),
            retry: table.table("retry").map_or(base.retry, |retry| Retry::read(retry, base.retry)),
            reconnect: table.table("reconnect").map(reconnect).unwrap_or(base.reconnect),
        };
        table.end();
        read
    }
}

/// A name that a thread can have too.
fn name(table: &mut Table<'_>) -> Option<String> {
    let name = table.text("name", "a name")?;
    if name.contains(char::is_control) {
        let node = table.get("name")?;
        table.refuse("name", node, "has a control character in it");
    }
    Some(name.to_owned())
}

/// As many as there may be open files for.
fn jobs(table: &mut Table<'_>) -> Option<usize> {
    const KEY: &str = "max_concurrent_jobs";
    let jobs = table.count(KEY, 1, MAX_CONCURRENT_JOBS as u64)?;
    if let (Err(why), Some(node)) = (room::is_there_for(jobs), table.get(KEY)) {
        table.refuse(KEY, node, format!("({jobs}) {why}"));
    }
    Some(jobs as usize)
}

/// A list of names, or a table of weights.
fn queues(table: &mut Table<'_>) -> Queues {
    let Some(node) = table.get("queues") else { return Queues::All };
    let name = |node: &Node| node.text().filter(|name| !name.is_empty()).map(Queue::from);
    let weight = |node: &Node| match node.value {
        Value::Whole(weight) => u32::try_from(weight).ok().filter(|weight| *weight > 0),
        _ => None,
    };
    let read = match &node.value {
        Value::List(names) => {
            let bad = names.iter().find(|node| name(node).is_none());
            bad.map_or_else(|| Ok(Queues::Strict(names.iter().filter_map(name).collect())), Err)
        }
        Value::Table(weights) => {
            let bad = weights.iter().map(|(_, node)| node).find(|node| weight(node).is_none());
            let pair = |(key, node): &(Key, Node)| Some((Queue::from(key.name.as_str()), weight(node)?));
            bad.map_or_else(|| Ok(Queues::Weighted(weights.iter().filter_map(pair).collect())), Err)
        }
        _ => Err(node),
    };
    match read
        .map_err(|node| (node, "must be a list of names, or a table of names with weights from 1".to_owned()))
    {
        Ok(queues) => match queues.validate() {
            Ok(()) => return queues,
            Err(error) => table.refuse("queues", node, format!("makes no sense: {error}")),
        },
        Err((bad, why)) => table.refuse("queues", bad, why),
    }
    Queues::All
}

fn reconnect(mut table: Table<'_>) -> ReconnectPolicy {
    let mut policy = ReconnectPolicy::default();
    policy.initial = table.time("initial").unwrap_or(policy.initial);
    policy.factor = table.number("factor", 1.0, 100.0).unwrap_or(policy.factor);
    policy.cap = table.time("cap").unwrap_or(policy.cap);
    policy.jitter = table.number("jitter", 0.0, 1.0).unwrap_or(policy.jitter);
    policy.call_timeout = table.time("call_timeout").unwrap_or(policy.call_timeout);
    if policy.initial > policy.cap {
        let what =
            format!("worker.reconnect: initial ({:?}) is longer than cap ({:?})", policy.initial, policy.cap);
        table.reading().note(Problem::new(table.origin(), what));
    }
    table.end();
    policy
}

impl LogSettings {
    fn read(table: Option<Table<'_>>) -> Self {
        let (mut level, mut format) = (Level::Info, Format::Auto);
        if let Some(mut table) = table {
            level = table.choice("level", Level::WORDS).unwrap_or(level);
            format = table.choice("format", Format::WORDS).unwrap_or(format);
            table.end();
        }
        Self { level, format }
    }
}

impl Settings {
    /// What `new` says otherwise and a running daemon can't take over: the names of these settings.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let (old, new_worker) = (&self.worker, &new.worker);
        let changed = [
            ("source", self.source != new.source),
            ("sqlite.durability", self.sqlite.durability != new.sqlite.durability),
            ("sqlite.lease_ttl", self.sqlite.lease_ttl != new.sqlite.lease_ttl),
            ("sqlite.max_dead", self.sqlite.max_dead != new.sqlite.max_dead),
            ("sqlite.keep_done", self.sqlite.keep_done != new.sqlite.keep_done),
            ("sqlite.max_done", self.sqlite.max_done != new.sqlite.max_done),
            ("sqlite.crash_limit", self.sqlite.crash_limit != new.sqlite.crash_limit),
            ("sqlite.busy_timeout", self.sqlite.busy_timeout != new.sqlite.busy_timeout),
            ("sqlite.watch_every", self.sqlite.watch_every != new.sqlite.watch_every),
            ("sqlite.adopt", self.sqlite.adopt != new.sqlite.adopt),
            ("redis.presence", self.redis.presence != new.redis.presence),
            ("redis.tag", self.redis.tag != new.redis.tag),
            ("redis.labels", self.redis.labels != new.redis.labels),
            ("redis.reschedule", self.redis.reschedule != new.redis.reschedule),
            ("redis.reschedule_times", self.redis.reschedule_times != new.redis.reschedule_times),
            ("redis.times_in_seconds", self.redis.times_in_seconds != new.redis.times_in_seconds),
            ("redis.node_resque_style", self.redis.node_resque_style != new.redis.node_resque_style),
            ("redis.lease_ttl", self.redis.lease_ttl != new.redis.lease_ttl),
            ("redis.run_on", self.redis.run_on != new.redis.run_on),
            ("redis.crash_limit", self.redis.crash_limit != new.redis.crash_limit),
            ("worker.name", old.name != new_worker.name),
            ("worker.prefetch", old.prefetch != new_worker.prefetch),
            ("worker.shutdown_deadline", old.shutdown_deadline != new_worker.shutdown_deadline),
            ("worker.cancel_grace", old.cancel_grace != new_worker.cancel_grace),
            ("worker.fetch_wait", old.fetch_wait != new_worker.fetch_wait),
            ("worker.max_payload", old.max_payload != new_worker.max_payload),
            ("worker.unknown_kind", old.unknown_kind != new_worker.unknown_kind),
            ("worker.reconnect", old.reconnect != new_worker.reconnect),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::registry::Registry;
    use crate::worker::Worker;

    #[test]
    fn what_is_not_set_is_as_the_worker_has_it() {
        let WorkerSettings {
            name,
            max_concurrent_jobs,
            prefetch,
            queues,
            unknown_kind,
            retry,
            reconnect,
            ..
        } = WorkerSettings::default();
        let rest = WorkerSettings::default();
        let builder = format!("{:?}", Worker::builder(Memory::new().intake(), Registry::new()));
        for expected in [
            format!("name: {name:?}"),
            format!("max_concurrent_jobs: {max_concurrent_jobs}"),
            format!("prefetch: {prefetch}"),
            format!("shutdown_deadline: {:?}", rest.shutdown_deadline),
            format!("job_timeout: {:?}", rest.job_timeout),
            format!("cancel_grace: {:?}", rest.cancel_grace),
            format!("fetch_wait: {:?}", rest.fetch_wait),
            format!("max_payload_bytes: {}", rest.max_payload),
            format!("queues: {queues:?}"),
            format!("unknown_kind: {unknown_kind:?}"),
            format!("reconnect: {reconnect:?}"),
            format!("retry: {:?}", retry.policy()),
        ] {
            assert!(builder.contains(&expected), "{expected}: {builder}");
        }
    }
}
