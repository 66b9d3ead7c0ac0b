//! A worker as Sidekiq's Web UI and API see one (as Resque's do, it is in `roll`): in the set of processes, with what it is at, what has run, and a list
//! through which it is told to be quiet, to stop, or to say what it is at.
//!
//! All is told in one transaction, so nobody sees half of it. Sidekiq from 7 on looks for the work at `IDENTITY:work`,
//! and 6 at `IDENTITY:workers`: it stands at both. What has run goes to the minute in which it is told, in the form that
//! Sidekiq 8 draws, or with times in seconds in that of 7.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use serde_json::json;
use tokio::time::Instant;

use super::codec::dates::date;
use super::codec::sidekiq::Times;
use super::exchange::{array, bytes};
use super::failure::{failed, nonsense};
use super::layout::Layout;
use super::link::{PRUNE, send};
use super::roll::Listed;
use super::{Redis, Shared, due};
use crate::announce::{Announce, Identity, KindRuns, Notice, Request, Runs};
use crate::error::Error;
use crate::inspect::JobView;
use crate::job::Queue;
use crate::source::Connect;

const DOING: &str = "announcing the worker";

/// For how long what was told of a process stands, as in Sidekiq.
const TOLD_SECONDS: u64 = 60;

/// For how long counts by the minute and their histograms stand, and those by ten minutes: 8 hours and 3 days, as in
/// Sidekiq.
const MINUTE_SECONDS: u64 = 8 * 3600;
const TEN_MINUTES_SECONDS: u64 = 3 * 86_400;

/// The most requests that one notice takes in. Each is a button that somebody has pressed since the one before.
const MAX_REQUESTS: usize = 16;

/// The most jobs of which it is told that they run, those that have run longest first: all are sent with each notice.
const MAX_LISTED: usize = 1_000;

/// A payload that is longer is not told: a page shows its first hundred characters.
const MAX_PAYLOAD: usize = 64 << 10;

/// How often it is looked for processes that have died.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// One session in which a worker is announced.
struct Announcer {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
    pruned_at: tokio::sync::Mutex<Option<Instant>>,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("target", &self.shared.dial.target).finish_non_exhaustive()
    }
}

#[async_trait]
impl Connect<dyn Announce> for Redis {
    async fn connect(&self) -> Result<Arc<dyn Announce>, Error> {
        if self.0.layout == Layout::Resque {
            return Ok(Arc::new(Listed::connect(self.0.clone()).await?));
        }
        let connection = self.0.dial.connect().await?;
        Ok(Arc::new(Announcer { shared: self.0.clone(), connection, pruned_at: Default::default() }))
    }

    fn target(&self) -> String {
        self.0.dial.target.clone()
    }
}

#[async_trait]
impl Announce for Announcer {
    /// The payloads of jobs that were taken through another handle of this server are not known here: they are told by
    /// class and id alone.
    async fn announce(&self, notice: &Notice) -> Result<Vec<Request>, Error> {
        let mut connection = self.connection.clone();
        let sent_at = Instant::now();
        send(&mut connection, DOING, &redis::cmd("PING")).await?;
        let round_trip = sent_at.elapsed();
        let queues = match &notice.queues[..] {
            [] => due::all_queues(&mut connection, &self.shared.keys)
                .await?
                .into_iter()
                .map(|queue| (queue, 0))
                .collect(),
            queues => queues.to_vec(),
        };
        let (shared, keys) = (&*self.shared, Keys::of(&self.shared.keys.prefix, &notice.who));
        let mut all = redis::pipe();
        all.atomic();
        self.tell_work(&mut all, &keys, notice);
        tell_runs(&mut all, &notice.runs, notice.now, shared);
        all.sadd(&shared.keys.processes, &notice.who.id).ignore();
        all.cmd("HSET").arg(&keys.identity).arg("info").arg(info(notice, &queues));
        all.arg("concurrency").arg(notice.max_concurrent_jobs).arg("busy").arg(notice.running.len());
        all.arg("beat").arg(seconds(notice.now)).arg("rtt_us").arg(round_trip.as_micros() as u64);
        all.arg("quiet").arg(if notice.quiet { "true" } else { "false" });
        all.arg("rss").arg(notice.resident_kib).ignore();
        all.cmd("EXPIRE").arg(&keys.identity).arg(TOLD_SECONDS).ignore();
        all.cmd("RPOP").arg(&keys.signals).arg(MAX_REQUESTS);
        let answer = run(&mut connection, &all).await?;
        self.prune(&mut connection).await;
        requests(answer).ok_or_else(|| nonsense(DOING))
    }

    async fn withdraw(&self, who: &Identity, runs: &Runs, now: SystemTime) -> Result<(), Error> {
        let (shared, keys) = (&*self.shared, Keys::of(&self.shared.keys.prefix, who));
        let mut all = redis::pipe();
        all.atomic();
        tell_runs(&mut all, runs, now, shared);
        all.srem(&shared.keys.processes, &who.id).ignore();
        all.cmd("UNLINK").arg(&keys.identity).arg(&keys.work).arg(&keys.workers).arg(&keys.signals).ignore();
        run(&mut self.connection.clone(), &all).await.map(drop)
    }
}

impl Announcer {
    fn tell_work(&self, all: &mut Pipeline, keys: &Keys, notice: &Notice) {
        all.cmd("UNLINK").arg(&keys.work).arg(&keys.workers).ignore();
        if notice.running.is_empty() {
            return;
        }
        let mut running: Vec<&JobView> = notice.running.iter().collect();
        running.sort_by_key(|job| std::cmp::Reverse(job.age));
        all.cmd("HSET").arg(&keys.work);
        for job in running.into_iter().take(MAX_LISTED) {
            let began = notice.now.checked_sub(job.age).unwrap_or(notice.now);
            let (queue, payload) = (job.queue.as_str(), self.payload(job));
            let work = json!({ "queue": queue, "payload": payload, "run_at": seconds(began) as u64 });
            all.arg(base36(job.tag.token)).arg(work.to_string());
        }
        all.ignore();
        all.cmd("COPY").arg(&keys.work).arg(&keys.workers).ignore();
        for key in [&keys.work, &keys.workers] {
            all.cmd("EXPIRE").arg(key).arg(TOLD_SECONDS).ignore();
        }
    }

    /// The job as it stood in its queue.
    fn payload(&self, job: &JobView) -> String {
        match self.shared.hands.get(job.tag).filter(|hand| hand.raw.len() <= MAX_PAYLOAD) {
            Some(hand) => String::from_utf8_lossy(&hand.raw).into_owned(),
            None => {
                let (class, jid, queue) = (job.kind.as_str(), job.id.as_str(), job.queue.as_str());
                json!({ "class": class, "jid": jid, "queue": queue, "args": ["(not shown)"] }).to_string()
            }
        }
    }

    /// That it fails matters to nobody: what was to be told was told, and somebody else will see to it.
    async fn prune(&self, connection: &mut MultiplexedConnection) {
        let mut pruned_at = self.pruned_at.lock().await;
        if pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
            *pruned_at = Some(Instant::now());
            let keys = &self.shared.keys;
            let mut call = PRUNE.call(&[&keys.processes, &keys.process_cleanup]);
            call.arg(&keys.prefix);
            let _ = PRUNE.send(connection, DOING, &call).await;
        }
    }
}

/// The keys of one process.
struct Keys {
    identity: String,
    work: String,
    workers: String,
    signals: String,
}

impl Keys {
    fn of(prefix: &str, who: &Identity) -> Self {
        let identity = format!("{prefix}{}", who.id);
        let [work, workers, signals] =
            [":work", ":workers", "-signals"].map(|what| format!("{identity}{what}"));
        Self { identity, work, workers, signals }
    }
}

/// Sends a transaction, and gives what was answered to those of its commands whose answers count.
async fn run(connection: &mut MultiplexedConnection, all: &Pipeline) -> Result<Value, Error> {
    all.query_async(connection).await.map_err(|error| failed(DOING, error))
}

/// What is asked of the process. What is no request that is known, is none.
fn requests(answer: Value) -> Option<Vec<Request>> {
    let [popped] = <[Value; 1]>::try_from(array(answer)?).ok()?;
    if popped == Value::Nil {
        return Some(Vec::new());
    }
    let request = |signal: Value| match &bytes(signal)?[..] {
        b"TSTP" => Some(Request::Quiet),
        b"TERM" => Some(Request::Stop),
        b"TTIN" => Some(Request::Report),
        _ => None,
    };
    Some(array(popped)?.into_iter().filter_map(request).collect())
}

/// What does not change from notice to notice, or seldom. Sidekiq up to 8.1.1 reads the concurrency here, and later
/// ones beside it.
fn info(notice: &Notice, queues: &[(Queue, u32)]) -> String {
    let Notice { who, max_concurrent_jobs, .. } = notice;
    let names: Vec<&str> = queues.iter().map(|(queue, _)| queue.as_str()).collect();
    let weights: BTreeMap<&str, u32> =
        queues.iter().map(|(queue, weight)| (queue.as_str(), *weight)).collect();
    let mode = match queues.iter().map(|(_, weight)| *weight).max() {
        None | Some(0) => "strict",
        Some(1) => "random",
        Some(_) => "weighted",
    };
    let capsule = json!({ "concurrency": max_concurrent_jobs, "mode": mode, "weights": weights });
    let info = json!({
        "hostname": who.host,
        "started_at": seconds(who.started_at),
        "pid": who.pid,
        "tag": who.tag,
        "concurrency": max_concurrent_jobs,
        "capsules": { "default": capsule },
        "queues": names,
        "weights": [weights],
        "labels": who.labels,
        "identity": who.id,
        "version": env!("CARGO_PKG_VERSION"),
        "embedded": false,
    });
    info.to_string()
}

fn tell_runs(all: &mut Pipeline, runs: &Runs, now: SystemTime, shared: &Shared) {
    let mut some = runs.iter().filter(|(_, runs)| !runs.is_empty()).peekable();
    if some.peek().is_none() {
        return;
    }
    let (minute, prefix) = (Minute::of(now), &shared.keys.prefix);
    let mut counts = minute.counts(shared.times);
    for (key, _) in &mut counts {
        key.insert_str(0, prefix);
    }
    for (kind, runs) in some {
        for (key, _) in &counts {
            let mut count = |what: &str, number: u64| {
                if number > 0 {
                    all.cmd("HINCRBY").arg(key).arg(format!("{kind}|{what}")).arg(number).ignore();
                }
            };
            count("p", runs.done + runs.failed);
            count("f", runs.failed);
            count("ms", runs.run_ms);
        }
        if runs.done > 0 {
            tell_histogram(all, &format!("{prefix}{}", minute.histogram(kind.as_str())), runs);
        }
    }
    for (key, seconds) in &counts {
        all.cmd("EXPIRE").arg(key).arg(*seconds).ignore();
    }
}

fn tell_histogram(all: &mut Pipeline, key: &str, runs: &KindRuns) {
    all.cmd("BITFIELD").arg(key).arg("OVERFLOW").arg("SAT");
    for (place, number) in runs.by_time.iter().enumerate().filter(|(_, number)| **number > 0) {
        all.arg("INCRBY").arg("u16").arg(format!("#{place}")).arg(*number);
    }
    all.ignore();
    all.cmd("EXPIRE").arg(key).arg(MINUTE_SECONDS).ignore();
}

/// A minute by UTC, as keys name it.
struct Minute {
    date: (u64, u64, u64),
    hour: u64,
    minute: u64,
}

impl Minute {
    fn of(now: SystemTime) -> Self {
        let minutes = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
        Self { date: date(minutes / 1440), hour: minutes / 60 % 24, minute: minutes % 60 }
    }

    /// Where runs are counted, and for how many seconds that stands: by the minute, and in Sidekiq 8 by ten minutes too.
    fn counts(&self, times: Times) -> Vec<(String, u64)> {
        let Self { date: (year, month, day), hour, minute } = self;
        if times == Times::Seconds {
            return vec![(format!("j|{year:04}{month:02}{day:02}|{hour}:{minute}"), MINUTE_SECONDS)];
        }
        let day = format!("j|{:02}{month:02}{day:02}|{hour}", year % 100);
        let (short, long) = (format!("{day}:{minute:02}"), format!("{day}:{}", minute / 10));
        vec![(short, MINUTE_SECONDS), (long, TEN_MINUTES_SECONDS)]
    }

    fn histogram(&self, kind: &str) -> String {
        let Self { date: (_, _, day), hour, minute } = self;
        format!("h|{kind}-{day}-{hour}:{minute}")
    }
}

/// A moment as Sidekiq tells it.
fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// As Sidekiq names threads.
fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or_default());
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_minute_are_those_that_sidekiq_looks_for() {
        let keys = |seconds: u64| {
            let minute = Minute::of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            let mut keys = minute.counts(Times::Millis);
            keys.extend(minute.counts(Times::Seconds));
            let mut keys: Vec<String> = keys.into_iter().map(|(key, _)| key).collect();
            keys.push(minute.histogram("Hard"));
            keys
        };
        // 2025-02-14 08:43 and 08:03, and 2026-11-21 22:00.
        for (seconds, expected) in [
            (1_739_522_580, ["j|250214|8:43", "j|250214|8:4", "j|20250214|8:43", "h|Hard-14-8:43"]),
            (1_739_520_180, ["j|250214|8:03", "j|250214|8:0", "j|20250214|8:3", "h|Hard-14-8:3"]),
            (1_795_298_459, ["j|261121|22:00", "j|261121|22:0", "j|20261121|22:0", "h|Hard-21-22:0"]),
        ] {
            assert_eq!(keys(seconds), expected);
        }
    }

    #[test]
    fn a_number_is_told_in_base_36() {
        assert_eq!(["0", "z", "10", "3w5e11264sgsf"], [0, 35, 36, u64::MAX].map(base36));
    }

    #[test]
    fn what_is_no_known_request_is_none() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let answer = |popped| requests(Value::Array(vec![popped]));
        let pressed = ["TSTP", "KILL", "TERM", "TTIN", ""].map(bulk).to_vec();
        let understood = vec![Request::Quiet, Request::Stop, Request::Report];
        assert_eq!(answer(Value::Array(pressed)), Some(understood));
        assert_eq!((answer(Value::Nil), answer(Value::Int(7))), (Some(vec![]), None));
        assert_eq!(requests(Value::Nil), None);
    }
}
