//! Jobs that wait for a time, and what else is asked of the server beside an exchange.

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use super::codec::sidekiq::Times;
use super::exchange::{array, bytes, int};
use super::failure::nonsense;
use super::keys::Keys;
use super::layout::{Layout, Place};
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
    layout: Layout,
    times: Times,
    now_ms: u64,
) -> Result<usize, Error> {
    let mut moves =
        DUE.call(&[&keys.queues, &keys.dead, &keys.schedule, &keys.retry, &keys.token, &keys.ours]);
    moves.arg(&keys.queue).arg(keys.ends.back).arg(keys.dead_in);
    moves.arg(&keys.delayed).arg(&keys.timestamps).arg(&keys.tried);
    let mut any = false;
    for (place, set) in [(Place::Retry, &keys.retry), (Place::Schedule, &keys.schedule)] {
        for member in due_of(connection, set, now_ms).await? {
            any = true;
            if place == Place::Retry || keys.delayed.is_empty() {
                moves.arg("zset").arg(set).arg(&member[..]);
                add_move(&mut moves, layout, times, place, &member);
                continue;
            }
            let list = [keys.delayed.as_bytes(), &member].concat();
            let mut ask = redis::cmd("LRANGE");
            ask.arg(list).arg(0).arg(BATCH - 1);
            let waiting = send(connection, DOING, &ask).await?;
            let waiting = parts_of(waiting).ok_or_else(|| nonsense(DOING))?;
            if waiting.is_empty() {
                moves.arg("gone").arg(&member[..]).arg("").arg("").arg("").arg(0);
            }
            for raw in waiting {
                moves.arg("delayed").arg(&member[..]).arg(&raw[..]);
                add_move(&mut moves, layout, times, place, &raw);
            }
        }
    }
    if !any {
        return Ok(0);
    }
    let moved = DUE.send(connection, DOING, &moves).await?;
    int(&moved).and_then(|moved| usize::try_from(moved).ok()).ok_or_else(|| nonsense(DOING))
}

/// The first members of a set whose time has come.
async fn due_of(connection: &mut MultiplexedConnection, set: &str, now_ms: u64) -> Result<Vec<Bytes>, Error> {
    let mut ask = redis::cmd("ZRANGEBYSCORE");
    ask.arg(set).arg("-inf").arg(format!("{}.{:03}", now_ms / 1000, now_ms % 1000));
    ask.arg("LIMIT").arg(0).arg(BATCH);
    parts_of(send(connection, DOING, &ask).await?).ok_or_else(|| nonsense(DOING))
}

fn parts_of(answer: Value) -> Option<Vec<Bytes>> {
    array(answer)?.into_iter().map(|part| bytes(part).map(Bytes::from)).collect()
}

/// Where it goes, in which form, and what is counted beside it.
fn add_move(moves: &mut Cmd, layout: Layout, times: Times, place: Place, raw: &Bytes) {
    let now = wall_clock();
    match layout.due(place, raw, now, times) {
        Ok((queue, element, attempts)) => moves.arg(queue.as_str()).arg(element).arg(attempts),
        Err(_) => {
            let stood = layout.unwrap(place, raw);
            moves.arg("").arg(layout.unreadable(&stood.raw, &Queue::default(), "", now)).arg(0)
        }
    };
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

/// The queues that are served by who was told of none: those that there are, and [`Queue::default`], which is to be
/// waited for before there is one, since the first job on a server mostly comes there. In the order in which they are
/// taken from.
pub(super) async fn served(connection: &mut MultiplexedConnection, keys: &Keys) -> Result<Vec<Queue>, Error> {
    let mut queues = all_queues(connection, keys).await?;
    let usual = Queue::default();
    if let Err(place) = queues.binary_search(&usual) {
        queues.insert(place, usual);
    }
    let place = |queue: &Queue| keys.first.iter().position(|first| *first == queue.as_str());
    queues.sort_by_key(|queue| place(queue).unwrap_or(keys.first.len()));
    Ok(queues)
}

pub(super) fn queues_in(answer: Value) -> Option<Vec<Queue>> {
    let mut queues = Vec::new();
    for name in array(answer)? {
        queues.push(Queue::new(String::from_utf8_lossy(&bytes(name)?)));
    }
    queues.sort();
    Some(queues)
}
