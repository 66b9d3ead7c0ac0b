//! Waiting for a job with a blocking pop, which whoever stops ends at once and without losing what comes late.
//!
//! Beside the queues, `BLPOP` waits for a list of the session's own. To end a wait, something is put into that: the
//! server then answers at once, with it or with a job that came before. So the answer is always heard, and a connection
//! is never closed on one. The command stays under way if whoever waits here goes, and the next one hears of it.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backend::redis::exchange::{array, bytes};
use crate::backend::redis::failure::nonsense;
use crate::backend::redis::keys::Keys;
use crate::backend::redis::link::{Dial, send};
use crate::error::Error;
use crate::job::Queue;

const DOING: &str = "waiting for jobs";

/// How long the server waits before it answers with nothing, so that a connection whose other end is gone is noticed by
/// its silence; and how much later than that, or than it was asked to end, the answer may come.
const SPELL: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_secs(5);

type Popping = Pin<Box<dyn Future<Output = Result<(MultiplexedConnection, Value), Error>> + Send>>;

/// The connection that waits.
pub(super) struct Blocking {
    dial: Arc<Dial>,
    keys: Arc<Keys>,
    bell: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    resting: Option<MultiplexedConnection>,
    popping: Option<Popping>,
}

impl Blocking {
    pub(super) fn new(dial: Arc<Dial>, keys: Arc<Keys>) -> Self {
        let bell = format!("{}{:016x}", keys.wake, RandomState::new().hash_one(0));
        Self { dial, keys, bell, state: Mutex::default() }
    }

    /// The list that ends a wait.
    pub(super) fn bell(&self) -> &str {
        &self.bell
    }

    /// Waits for a job of these queues until then, or until `ended` is, which `wake` tells the server by putting
    /// something into [`bell`](Self::bell). What is answered may be of a queue of an earlier call.
    ///
    /// # Cancel safety
    /// What was under way stays so, and its job is the answer to the next call.
    pub(super) async fn pop<W>(
        &self,
        queues: &[Queue],
        until: Instant,
        ended: impl Future<Output = ()>,
        wake: impl FnOnce() -> W,
    ) -> Result<Option<(Queue, Bytes)>, Error>
    where
        W: Future<Output = Result<(), Error>>,
    {
        let over = async {
            tokio::select! {
                () = ended => {}
                () = sleep_until(until) => {}
            }
        };
        let mut over = std::pin::pin!(over);
        let mut state = tokio::select! {
            biased;
            state = self.state.lock() => state,
            () = &mut over => return Ok(None),
        };
        // One that an earlier call has left waits for other queues, and for longer.
        let left = state.popping.is_some();
        if !left {
            let connection = state.resting.take();
            let patience = until.saturating_duration_since(Instant::now()).min(SPELL);
            state.popping = Some(self.begin(queues, patience, connection));
        }
        if !left {
            tokio::select! {
                biased;
                answer = state.go_on() => return self.understand(answer?),
                () = &mut over => {}
            }
        }
        wake().await?;
        let silent = |_| Error::timeout(format!("{DOING} failed: the server fell silent"));
        let answer = timeout(LATE, state.go_on()).await.map_err(silent)??;
        self.understand(answer)
    }

    fn begin(
        &self,
        queues: &[Queue],
        patience: Duration,
        connection: Option<MultiplexedConnection>,
    ) -> Popping {
        let mut pop = redis::cmd("BLPOP");
        for queue in queues {
            pop.arg(self.keys.of_queue(queue));
        }
        // None is for ever.
        pop.arg(&self.bell).arg(patience.as_secs_f64().max(0.001));
        let dial = self.dial.clone();
        Box::pin(async move {
            let mut connection = match connection {
                Some(connection) => connection,
                None => dial.connect().await?,
            };
            let silent = |_| Error::timeout(format!("{DOING} failed: the server fell silent"));
            let answer =
                timeout(SPELL + LATE, send(&mut connection, DOING, &pop)).await.map_err(silent)??;
            Ok((connection, answer))
        })
    }

    fn understand(&self, answer: Value) -> Result<Option<(Queue, Bytes)>, Error> {
        if answer == Value::Nil {
            return Ok(None);
        }
        let read = || {
            let [key, raw] = <[Value; 2]>::try_from(array(answer)?).ok()?;
            Some((String::from_utf8_lossy(&bytes(key)?).into_owned(), Bytes::from(bytes(raw)?)))
        };
        let (key, raw) = read().ok_or_else(|| nonsense(DOING))?;
        if key == self.bell {
            return Ok(None);
        }
        let queue = key.strip_prefix(&self.keys.queue).ok_or_else(|| nonsense(DOING))?;
        Ok(Some((Queue::new(queue), raw)))
    }
}

impl State {
    /// Goes on with the command that is under way. If whoever waits here goes, it stays under way.
    async fn go_on(&mut self) -> Result<Value, Error> {
        let answer = std::future::poll_fn(|context| match &mut self.popping {
            Some(popping) => popping.as_mut().poll(context),
            None => unreachable!("it was begun"),
        });
        let answer = answer.await;
        self.popping = None; // what has answered is not polled again
        let (connection, value) = answer?;
        self.resting = Some(connection);
        Ok(value)
    }
}
