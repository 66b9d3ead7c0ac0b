//! Waiting for work without polling: on a connection of its own for each queue, a blocking command that moves nothing.
//!
//! `BLMOVE queue queue RIGHT RIGHT` waits until there is something in the list, takes its last element and puts it back
//! where it was: the server sees to it that this is one step. So whatever becomes of the connection, and of an answer
//! that comes too late for anybody, no job is lost with it. (A blocking pop would lose one.)
//!
//! The commands stay under way from one wait to the next. Nothing runs in the background: who waits drives them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;

use super::keys::Keys;
use super::link::{Dial, send};
use crate::error::Error;
use crate::job::Queue;
use crate::sync::{Mutex, lock};

/// The most queues that are watched, each by a connection; the others are looked at once a second.
const MAX_WATCHED: usize = 64;

/// How long the server waits before it answers with nothing: an answer is due by then, so that a connection whose other
/// end is gone is noticed by its silence.
const SPELL: Duration = Duration::from_secs(5);

/// How much later than that the answer may come.
const LATE: Duration = Duration::from_secs(5);

const DOING: &str = "waiting for jobs";

type Waiting = Pin<Box<dyn Future<Output = Result<MultiplexedConnection, Error>> + Send>>;

/// The connections that wait.
pub(super) struct Watch {
    dial: Arc<Dial>,
    keys: Arc<Keys>,
    lines: Mutex<HashMap<Queue, Arc<Line>>>,
}

/// The connection that waits for one queue, and who waits for it.
#[derive(Default)]
struct Line {
    state: tokio::sync::Mutex<State>,
    /// Rung when there is something.
    bell: Notify,
}

#[derive(Default)]
enum State {
    #[default]
    Unconnected,
    Resting(MultiplexedConnection),
    Waiting(Waiting),
}

impl Watch {
    pub(super) fn new(dial: Arc<Dial>, keys: Arc<Keys>) -> Self {
        Self { dial, keys, lines: Mutex::default() }
    }

    /// Waits until there may be something in one of these queues; for ever if there are none.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn ready(&self, queues: &[Queue]) -> Result<(), Error> {
        let watched = &queues[..queues.len().min(MAX_WATCHED)];
        let lines = self.lines_of(watched);
        let mut any: FuturesUnordered<_> = lines
            .iter()
            .zip(watched)
            .map(|(line, queue)| line.ready(&self.dial, self.keys.of_queue(queue)))
            .collect();
        match any.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn lines_of(&self, queues: &[Queue]) -> Vec<Arc<Line>> {
        let mut lines = lock(&self.lines);
        // What nobody waits for any more is closed.
        lines.retain(|queue, line| queues.contains(queue) || Arc::strong_count(line) > 1);
        queues.iter().map(|queue| lines.entry(queue.clone()).or_default().clone()).collect()
    }
}

impl Line {
    async fn ready(&self, dial: &Arc<Dial>, key: String) -> Result<(), Error> {
        tokio::select! {
            biased;
            // Somebody else drives: that one rings.
            () = self.bell.notified() => Ok(()),
            mut state = self.state.lock() => {
                let answer = state.wait(dial, key).await;
                self.bell.notify_waiters();
                answer
            }
        }
    }
}

impl State {
    /// Goes on with the command that is under way, or begins one. If whoever waits here goes, it stays under way.
    async fn wait(&mut self, dial: &Arc<Dial>, key: String) -> Result<(), Error> {
        let connection = match std::mem::take(self) {
            Self::Waiting(waiting) => return self.go_on(waiting).await,
            Self::Resting(connection) => Some(connection),
            Self::Unconnected => None,
        };
        self.go_on(wait(dial.clone(), key, connection)).await
    }

    async fn go_on(&mut self, waiting: Waiting) -> Result<(), Error> {
        *self = Self::Waiting(waiting);
        let answer = std::future::poll_fn(|context| match self {
            Self::Waiting(waiting) => waiting.as_mut().poll(context),
            Self::Unconnected | Self::Resting(_) => unreachable!("it was set above"),
        });
        let answer = answer.await;
        *self = Self::Unconnected; // what has answered is not polled again
        *self = Self::Resting(answer?);
        Ok(())
    }
}

fn wait(dial: Arc<Dial>, key: String, connection: Option<MultiplexedConnection>) -> Waiting {
    Box::pin(async move {
        let mut connection = match connection {
            Some(connection) => connection,
            None => dial.connect().await?,
        };
        let mut wait = redis::cmd("BLMOVE");
        wait.arg(&key).arg(&key).arg("RIGHT").arg("RIGHT").arg(SPELL.as_secs());
        loop {
            let answer = tokio::time::timeout(SPELL + LATE, send(&mut connection, DOING, &wait)).await;
            let silent = |_| Error::timeout(format!("{DOING} failed: the server fell silent"));
            if answer.map_err(silent)?? != Value::Nil {
                return Ok(connection);
            }
        }
    })
}
