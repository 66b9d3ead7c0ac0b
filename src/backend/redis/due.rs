//! Jobs that wait for a time, and what else is asked of the server beside an exchange.

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::codec::sidekiq;
use super::exchange::{array, bytes, int};
use super::failure::nonsense;
use super::keys::Keys;
use super::link::{DUE, send};
use crate::backend::wall_clock;
use crate::error::Error;
use crate::job::Queue;

/// How many are moved at a time: an exchange is held up by no more.
const BATCH: usize = 200;

const DOING: &str = "bringing jobs whose time has come into their queues";

/// Brings jobs whose time has come by `now_ms` into their queues, of each set the first [`BATCH`]. Says how many.
///
/// It is decided in one step whether a job still waits and where it goes, so that none is lost or doubled, whoever
/// does this at the same time.
pub(super) async fn move_due(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    now_ms: u64,
) -> Result<usize, Error> {
    let mut moves = DUE.call(&[&keys.queues, &keys.dead]);
    moves.arg(&keys.queue).arg(keys.ends.back);
    let mut any = false;
    let until = format!("{}.{:03}", now_ms / 1000, now_ms % 1000);
    for set in [&keys.retry, &keys.schedule] {
        let mut ask = redis::cmd("ZRANGEBYSCORE");
        ask.arg(set).arg("-inf").arg(&until).arg("LIMIT").arg(0).arg(BATCH);
        let members = array(send(connection, DOING, &ask).await?).ok_or_else(|| nonsense(DOING))?;
        for member in members {
            let raw = bytes(member).ok_or_else(|| nonsense(DOING))?;
            any = true;
            moves.arg(set).arg(&raw[..]);
            match sidekiq::enqueued(&raw, wall_clock()) {
                Ok((queue, element)) => moves.arg(queue.as_str()).arg(element),
                Err(_) => moves.arg("").arg(""),
            };
        }
    }
    if !any {
        return Ok(0);
    }
    let moved = DUE.send(connection, DOING, &moves).await?;
    int(&moved).and_then(|moved| usize::try_from(moved).ok()).ok_or_else(|| nonsense(DOING))
}

/// The queues that there are, by their names.
pub(super) async fn all_queues(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
) -> Result<Vec<Queue>, Error> {
    const DOING: &str = "asking for the queues";
    let answer = send(connection, DOING, redis::cmd("SMEMBERS").arg(&keys.queues)).await?;
    queues_in(answer).ok_or_else(|| nonsense(DOING))
}

pub(super) fn queues_in(answer: Value) -> Option<Vec<Queue>> {
    let mut queues = Vec::new();
    for name in array(answer)? {
        queues.push(Queue::new(String::from_utf8_lossy(&bytes(name)?)));
    }
    queues.sort();
    Some(queues)
}
