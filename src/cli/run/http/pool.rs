//! Connections to one endpoint, kept to be used again: [`Pool`], and [`Connection`], which carries one request at a
//! time.
//!
//! Invariants:
//!
//! 1. A connection is in one job's hands or idle in the pool; its bytes are moved by the job that holds it. So no task
//!    is behind it, and a job that is dropped takes its connection with it.
//! 2. There are never more connections than jobs at once in the last [`IDLE_FOR`]: a job puts back what it took, and
//!    only if nothing of its exchange is left in it.
//! 3. One task, while any are idle, closes those that have become too old or that the endpoint has closed. It ends
//!    with the last of them, and with the pool.

use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::connect::{Connector, Stream};
use crate::error::Error;
use crate::sync::{Mutex, lock};

/// How long an idle connection is kept. Endpoints keep theirs for some 5 s (Node.js, Apache) to 75 s (nginx); one that
/// is closed at the very moment of its use costs a second try and no more.
const IDLE_FOR: Duration = Duration::from_secs(15);

/// The time between two looks at the idle connections.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest head of an answer: no honest one comes near.
const MAX_HEAD: usize = 64 << 10;

/// The connections to one endpoint.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The one that was used last stands last and is taken first, so that those that aren't needed grow old.
    idle: Vec<(Connection, Instant)>,
    /// Whether the sweeper looks after them.
    swept: bool,
    sweeper: JoinSet<()>,
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, state: Mutex::default() })
    }

    /// An idle connection, if there is one that is still open.
    pub(super) fn take(&self) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let (mut connection, since) = lock(&self.state).idle.pop()?;
            if now < since + IDLE_FOR && connection.is_open() {
                return Some(connection);
            }
        }
    }

    /// Makes a new one, by `deadline` at the latest.
    ///
    /// # Errors
    /// Those of connecting.
    ///
    /// # Cancel safety
    /// Dropped early, no connection is left.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Connection, Error> {
        Connection::new(self.connector.connect(deadline).await?).await
    }

    /// Takes back a connection whose exchange is over, if it can carry another.
    pub(super) fn put_back(self: &Arc<Self>, mut connection: Connection) {
        if !connection.is_free() {
            return;
        }
        let mut state = lock(&self.state);
        state.idle.push((connection, Instant::now()));
        if !state.swept {
            state.swept = true;
            while state.sweeper.try_join_next().is_some() {}
            state.sweeper.spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes those that nobody should take any more. Whether any are left.
    fn look(&self) -> bool {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.idle.retain_mut(|(connection, since)| now < *since + IDLE_FOR && connection.is_open());
        state.swept = !state.idle.is_empty();
        state.swept
    }
}

async fn sweep(pool: Weak<Pool>) {
    loop {
        sleep(LOOK_EVERY).await;
        if !pool.upgrade().is_some_and(|pool| pool.look()) {
            return;
        }
    }
}

/// A connection that carries one exchange at a time.
#[derive(Debug)]
pub(super) struct Connection {
    send: SendRequest<Full<Bytes>>,
    /// What moves the bytes; `None` when it has ended.
    mover: Option<Mover>,
}

type Mover = http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>;

impl Connection {
    async fn new(stream: Box<dyn Stream>) -> Result<Self, Error> {
        let mut settings = http1::Builder::new();
        settings.max_buf_size(MAX_HEAD);
        let (send, mover) = settings.handshake(TokioIo::new(stream)).await.map_err(|error| {
            Error::new(crate::error::ErrorKind::Connection, "beginning to speak HTTP").caused_by(error)
        })?;
        Ok(Self { send, mover: Some(mover) })
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Cancel safety
    /// Dropped early, the connection is of no more use.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let answer = self.send.send_request(request);
        self.moving(answer).await
    }

    /// Waits for `work`, and moves the connection's bytes meanwhile: nothing else does.
    ///
    /// # Cancel safety
    /// That of `work`.
    pub(super) async fn moving<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            self.move_on(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// An error of the connection reaches whoever waits for something of it, so it needs no second way.
    fn move_on(&mut self, cx: &mut Context<'_>) {
        if let Some(mover) = &mut self.mover
            && Pin::new(mover).poll(cx).is_ready()
        {
            self.mover = None;
        }
    }

    /// Whether the other side has not closed it, nor sent anything that was not asked for.
    fn is_open(&mut self) -> bool {
        self.moving(std::future::ready(())).now_or_never();
        self.mover.is_some()
    }

    /// Whether it is ready for another request, now.
    fn is_free(&mut self) -> bool {
        let ready = std::future::poll_fn(|cx| {
            self.move_on(cx);
            match self.send.poll_ready(cx) {
                Poll::Ready(ready) => Poll::Ready(ready.is_ok()),
                Poll::Pending => Poll::Pending,
            }
        });
        ready.now_or_never().unwrap_or(false)
    }
}
