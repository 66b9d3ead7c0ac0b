//! The list of workers that Resque's pages show: who stands in it, and for how long.
//!
//! Resque takes a worker for dead whose heartbeat is five minutes old, and one whose host is its own, whose queues are
//! its own and whose process is none of Resque's. So ours beats every minute, and what stands for its host is no host of
//! Resque's. Its jobs are not entered there: they have leases.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::Shared;
use super::codec::dates;
use super::exchange::{array, text};
use super::failure::nonsense;
use super::keys::Keys;
use super::layout::Fetch;
use super::link::send;
use crate::announce::{Announce, Identity, Notice, Request, Runs};
use crate::backend::wall_clock;
use crate::error::Error;
use crate::job::Queue;
use crate::sync::{Mutex, lock};

/// As often as Resque's own workers.
const BEAT: Duration = Duration::from_secs(60);

/// When Resque takes a worker for dead.
const DEAD_AFTER: Duration = Duration::from_secs(300);

/// What the host of each of our workers ends with, before a number of its own.
const MARK: &str = "-tidegate-";

const DOING: &str = "entering the list of workers";

/// Who we are there. A handle is one worker, whatever takes jobs through it.
#[derive(Default)]
pub(super) struct Roll(Mutex<State>);

#[derive(Default)]
struct State {
    name: String,
    beaten: Option<Instant>,
}

impl Roll {
    /// `HOST:PID:QUEUES`; nothing as long as it is not known what is to be taken from.
    pub(super) fn name(&self) -> String {
        lock(&self.0).name.clone()
    }

    /// The same while it stands in the list. What is counted under the name of another would stay there for ever.
    pub(super) fn entered(&self) -> String {
        let state = lock(&self.0);
        if state.beaten.is_some() { state.name.clone() } else { String::new() }
    }

    /// From now on it takes from these queues; none are all. Only the first call counts.
    pub(super) fn takes_from<'q>(&self, queues: impl IntoIterator<Item = &'q Queue>, number: u64) {
        let mut state = lock(&self.0);
        if state.name.is_empty() {
            let names: Vec<&str> = queues.into_iter().map(Queue::as_str).collect();
            let queues = if names.is_empty() { "*".to_owned() } else { names.join(",") };
            state.name = format!("{}{MARK}{number:08x}:{}:{queues}", host(), std::process::id());
        }
    }

    /// Beats if it is time, and enters the list at the first time.
    async fn beat(&self, connection: &mut MultiplexedConnection, shared: &Shared) -> Result<(), Error> {
        let keys = &shared.keys;
        let (name, beaten) = {
            let state = lock(&self.0);
            (state.name.clone(), state.beaten)
        };
        let now = Instant::now();
        if beaten.is_some_and(|beaten| now.duration_since(beaten) < BEAT) {
            return Ok(());
        }
        match shared.fetch {
            Fetch::Reliable => enter(connection, keys, &name, beaten.is_none()).await?,
            Fetch::PlainPop => enter_plainly(connection, keys, &name, beaten.is_none()).await?,
        }
        lock(&self.0).beaten = Some(now);
        Ok(())
    }

    /// Leaves the list; whoever takes jobs through this handle again enters it again.
    async fn leave(&self, connection: &mut MultiplexedConnection, shared: &Shared) -> Result<(), Error> {
        let name = {
            let mut state = lock(&self.0);
            state.beaten = None;
            std::mem::take(&mut state.name)
        };
        match shared.fetch {
            _ if name.is_empty() => Ok(()),
            Fetch::Reliable => leave(connection, &shared.keys, &name).await,
            Fetch::PlainPop => leave_plainly(connection, &shared.keys, &name).await,
        }
    }
}

/// One session in which a worker stands in the list.
pub(super) struct Listed {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
}

impl Listed {
    pub(super) async fn connect(shared: Arc<Shared>) -> Result<Self, Error> {
        let connection = shared.dial.connect().await?;
        Ok(Self { shared, connection })
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed").field("target", &self.shared.dial.target).finish_non_exhaustive()
    }
}

#[async_trait]
impl Announce for Listed {
    /// Of the notice it tells the queues. Nothing is ever asked: Resque's pages have no buttons for that.
    async fn announce(&self, notice: &Notice) -> Result<Vec<Request>, Error> {
        let Shared { roll, hands, .. } = &*self.shared;
        roll.takes_from(notice.queues.iter().map(|(queue, _)| queue), hands.session() >> 32);
        roll.beat(&mut self.connection.clone(), &self.shared).await?;
        Ok(Vec::new())
    }

    /// What has run was counted as it was settled.
    async fn withdraw(&self, _who: &Identity, _runs: &Runs, _now: SystemTime) -> Result<(), Error> {
        self.shared.roll.leave(&mut self.connection.clone(), &self.shared).await
    }
}

async fn enter(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    name: &str,
    first: bool,
) -> Result<(), Error> {
    let now = time(connection).await?;
    // Before it is in the list, so that nobody finds it there without one.
    let mut beat = redis::cmd("HSET");
    send(connection, DOING, beat.arg(&keys.heartbeats).arg(name).arg(dates::iso(now))).await?;
    send(connection, DOING, redis::cmd("SADD").arg(&keys.workers).arg(name)).await?;
    if first {
        let started = format!("{}{name}:started", keys.worker);
        send(connection, DOING, redis::cmd("SET").arg(started).arg(dates::ruby(now))).await?;
        remove_dead(connection, keys, now).await?;
    }
    Ok(())
}

/// Without a heartbeat, which needs `TIME`, and `HDEL` at the end: who has none is not taken for dead.
async fn enter_plainly(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    name: &str,
    first: bool,
) -> Result<(), Error> {
    for command in plain_entry(keys, name, first.then(wall_clock)) {
        send(connection, DOING, &command).await?;
    }
    Ok(())
}

/// What enters it; and says since when it has run, if it has just started.
fn plain_entry(keys: &Keys, name: &str, started: Option<SystemTime>) -> Vec<Cmd> {
    let started = started.map(|now| {
        let mut set = redis::cmd("SET");
        set.arg(format!("{}{name}:started", keys.worker)).arg(dates::ruby(now));
        set
    });
    let mut enter = redis::cmd("SADD");
    enter.arg(&keys.workers).arg(name);
    started.into_iter().chain([enter]).collect()
}

async fn time(connection: &mut MultiplexedConnection) -> Result<SystemTime, Error> {
    let answer = send(connection, DOING, &redis::cmd("TIME")).await?;
    let seconds = array(answer).and_then(|parts| text(parts.into_iter().next()?)?.parse::<u64>().ok());
    let seconds = seconds.ok_or_else(|| nonsense(DOING))?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(|| nonsense(DOING))
}

/// Removes workers of ours that were killed. (Resque removes them too, when a worker of its own starts.)
async fn remove_dead(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    now: SystemTime,
) -> Result<(), Error> {
    let answer = send(connection, DOING, redis::cmd("HGETALL").arg(&keys.heartbeats)).await?;
    let pairs = match answer {
        Value::Map(pairs) => pairs,
        other => {
            let parts = array(other).ok_or_else(|| nonsense(DOING))?;
            parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
        }
    };
    let since = dates::iso(now.checked_sub(DEAD_AFTER).unwrap_or(SystemTime::UNIX_EPOCH));
    for (name, beaten) in pairs {
        let (Some(name), Some(beaten)) = (text(name), text(beaten)) else { continue };
        // Of one form, so that the texts have the order of the times.
        if name.contains(MARK) && beaten < since {
            leave(connection, keys, &name).await?;
        }
    }
    Ok(())
}

/// Takes a worker out of the list, with all that stands there of it.
async fn leave(connection: &mut MultiplexedConnection, keys: &Keys, name: &str) -> Result<(), Error> {
    leave_plainly(connection, keys, name).await?;
    send(connection, DOING, redis::cmd("HDEL").arg(&keys.heartbeats).arg(name)).await.map(drop)
}

/// The same of one without a heartbeat.
async fn leave_plainly(connection: &mut MultiplexedConnection, keys: &Keys, name: &str) -> Result<(), Error> {
    send(connection, DOING, redis::cmd("SREM").arg(&keys.workers).arg(name)).await?;
    let mut gone = redis::cmd("DEL");
    gone.arg(format!("{}{name}:started", keys.worker));
    gone.arg(format!("{}:{name}", keys.processed)).arg(format!("{}:{name}", keys.failed));
    send(connection, DOING, &gone).await.map(drop)
}

/// The name of this machine, as Resque's workers find it, without what parts a worker's name.
fn host() -> String {
    let named = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    let named = named.unwrap_or_default();
    let name: String =
        named.trim().chars().filter(|c| !matches!(c, ':' | ',') && !c.is_whitespace()).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::redis::layout::Layout;

    #[test]
    fn who_beats_again_keeps_the_time_at_which_it_has_started() {
        let keys = Keys::new(Layout::Resque, "resque:");
        let sent = |started| -> Vec<String> {
            let commands = plain_entry(&keys, "h:1:*", started);
            let packed = commands.iter().map(Cmd::get_packed_command);
            packed.map(|command| String::from_utf8_lossy(&command).replace("\r\n", " ")).collect()
        };
        let first = sent(Some(SystemTime::UNIX_EPOCH));
        assert!(first[0].contains("SET $27 resque:worker:h:1:*:started $25 1970-01-01"), "{first:?}");
        assert_eq!(first[1..], sent(None));
        assert_eq!(sent(None), ["*3 $4 SADD $14 resque:workers $5 h:1:* "]);
    }
}
