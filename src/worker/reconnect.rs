//! Heals any [`Connect`]: one owner, one reconnect at a time, capped exponential backoff with jitter.
//!
//! ```text
//! Down ─ attempt is due ─▶ Connecting ─ made ─▶ Up ─ its session failed ─▶ Down
//!                          Connecting ─ failed ─▶ Down, next attempt later
//! ```
//!
//! Invariants:
//!
//! 1. Whoever needs a session drives the reconnect under the one lock; the others wait for that lock. N calls
//!    that fail together cause one reconnect: only the first finds its session's number still current.
//! 2. When the next attempt is due is part of the state, so a driver that goes away does not shorten it.
//! 3. One log line a change of state, with the cause; the delay that is logged is the delay that is slept.
//! 4. Nothing is kept of a dead session.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;

use crate::error::{Chain, Error, ErrorKind};
use crate::lease::later;
use crate::outcome::Panicked;
use crate::retry::{backoff, less_jitter, unit_random};
use crate::source::{CALL_TIMEOUT, Connect};
use crate::telemetry::ConnectionTelemetry;

/// How a lost connection is come back to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReconnectPolicy {
    /// The wait after the first failure, above zero. Default 100 ms: most restarts of a server are over within it.
    pub initial: Duration,
    /// By what it grows with each further failure. Default 2.
    pub factor: f64,
    /// The longest wait, not below `initial`. Default 1 s, so that work resumes within 2 s of a server's return.
    pub cap: Duration,
    /// The greatest part of a wait that chance may take off, from 0 to 1. Default a half: many workers that
    /// lost the same server do not come back in step.
    pub jitter: f64,
    /// How long making a session, settling or renewing may take before it counts as failed. Default 10 s. Longer than
    /// what the source itself waits for others, such as the `busy_timeout` of a file: else the source would be given up
    /// while it is still patient.
    pub call_timeout: Duration,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            factor: 2.0,
            cap: Duration::from_secs(1),
            jitter: 0.5,
            call_timeout: CALL_TIMEOUT,
        }
    }
}

/// What can be read of a connection at any time.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// No session has been asked for yet.
    #[default]
    Idle,
    /// There is a session, since then.
    Up {
        /// Since when.
        since: Instant,
    },
    /// There is none.
    Down {
        /// Since when.
        since: Instant,
        /// How many attempts have failed in a row.
        failures: u32,
        /// Why, with causes.
        cause: Arc<str>,
    },
}

/// A source (or a renewer) that comes back.
pub(crate) struct Reconnecting<T: ?Sized> {
    connect: Arc<dyn Connect<T>>,
    what: &'static str,
    policy: ReconnectPolicy,
    seed: u64,
    owner: Mutex<Link<T>>,
    current: AtomicU64,
    proven: AtomicU64,
    state: Arc<watch::Sender<ConnectionState>>,
    lost: Notify,
    telemetry: ConnectionTelemetry,
}

struct Link<T: ?Sized> {
    session: Option<Arc<T>>,
    number: u64,
    failures: u32,
    due: Option<Instant>,
}

/// A live session and its number.
pub(crate) struct Session<T: ?Sized> {
    pub(crate) live: Arc<T>,
    number: u64,
}

impl<T: ?Sized + Send + Sync + 'static> Reconnecting<T> {
    pub(crate) fn new(
        connect: Arc<dyn Connect<T>>,
        what: &'static str,
        policy: ReconnectPolicy,
        seed: u64,
        state: Arc<watch::Sender<ConnectionState>>,
        telemetry: ConnectionTelemetry,
    ) -> Self {
        let link = Link { session: None, number: 0, failures: 0, due: None };
        Self {
            connect,
            what,
            policy,
            seed,
            owner: Mutex::new(link),
            current: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            state,
            lost: Notify::new(),
            telemetry,
        }
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.policy.call_timeout
    }

    /// The live session, or a new one once the backoff is over.
    ///
    /// Only an error that is not transient is returned; otherwise it goes on for ever.
    ///
    /// Cancel safe: dropped at any point, the next caller goes on where it stood (invariant 2). So a stop is
    /// never made to wait: race it.
    pub(crate) async fn session(&self) -> Result<Session<T>, Error> {
        let mut link = match self.owner.try_lock() {
            Ok(link) => link,
            Err(_) => self.owner.lock().await,
        };
        loop {
            if let Some(live) = &link.session {
                return Ok(Session { live: live.clone(), number: link.number });
            }
            if let Some(due) = link.due {
                tokio::time::sleep_until(due).await;
            }
            match self.within(self.policy.call_timeout, self.connect.connect()).await {
                Ok(live) => self.went_up(&mut link, live),
                Err(error) if error.is_transient() => self.went_down(&mut link, &error),
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells that a call on `session` succeeded: from now on its loss is a new outage, not one more failure of
    /// the last. (A server that accepts and then hangs up is still backed off from.)
    pub(crate) fn succeeded(&self, session: &Session<T>) {
        if self.proven.load(Ordering::Relaxed) != session.number {
            self.proven.store(session.number, Ordering::Relaxed);
        }
    }

    /// Tells that a call on `session` failed. If that was the current session and its failure is one that a
    /// new session may heal, the next call makes one.
    pub(crate) async fn failed(&self, session: &Session<T>, error: &Error) {
        if !error.is_disconnect() || self.current.load(Ordering::Relaxed) != session.number {
            return;
        }
        let mut link = self.owner.lock().await;
        if link.number == session.number && link.session.take().is_some() {
            self.went_down(&mut link, error);
            self.current.store(0, Ordering::Relaxed);
            self.lost.notify_waiters();
        }
    }

    /// Resolves when `session` is no longer the current one.
    pub(crate) async fn given_up(&self, session: &Session<T>) {
        let mut lost = std::pin::pin!(self.lost.notified());
        loop {
            lost.as_mut().enable();
            if self.current.load(Ordering::Relaxed) != session.number {
                return;
            }
            lost.as_mut().await;
            lost.set(self.lost.notified());
        }
    }

    /// `call`, or a time-out after `limit`. A panic of the driver's is an error like any other.
    pub(crate) async fn within<R>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        let call = AssertUnwindSafe(call).catch_unwind().map(|answer| {
            answer.unwrap_or_else(|panic| {
                let what = format!("the {} at {} panicked", self.what, self.connect.target());
                Err(Error::new(ErrorKind::Internal, what).caused_by(Panicked::contained(panic)))
            })
        });
        let mut call = std::pin::pin!(call);
        // Most calls of a source in this process are answered at once: those cost no timer.
        if let Poll::Ready(answer) = futures_util::poll!(call.as_mut()) {
            return answer;
        }
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::timeout(format!(
                "no answer from the {} at {} within {limit:?}",
                self.what,
                self.connect.target()
            ))),
        }
    }

    fn went_up(&self, link: &mut Link<T>, live: Arc<T>) {
        link.session = Some(live);
        link.number += 1;
        self.current.store(link.number, Ordering::Relaxed);
        self.telemetry.connected.set(1.0);
        let (failures, number) = (link.failures, link.number);
        link.due = None;
        let since = Instant::now();
        let before = self.state.send_replace(ConnectionState::Up { since });
        let target = self.connect.target();
        match before {
            ConnectionState::Down { since: down, .. } => {
                self.telemetry.reconnects.increment(u64::from(number > 1));
                let outage = since.duration_since(down);
                tracing::info!(connection = self.what, %target, ?outage, failures, "connection is back");
            }
            _ => tracing::debug!(connection = self.what, %target, "connected"),
        }
    }

    fn went_down(&self, link: &mut Link<T>, error: &Error) {
        if link.number > 0 && self.proven.load(Ordering::Relaxed) == link.number {
            self.proven.store(0, Ordering::Relaxed);
            link.failures = 0;
        }
        link.failures = link.failures.saturating_add(1);
        let whole = backoff(self.policy.initial, self.policy.factor, self.policy.cap, link.failures);
        let wait =
            less_jitter(whole, self.policy.jitter, unit_random((self.seed, link.number, link.failures)));
        let now = Instant::now();
        link.due = Some(later(now, wait));
        self.telemetry.connected.set(0.0);
        let cause: Arc<str> = Chain(error).to_string().into();
        let (target, failures) = (self.connect.target(), link.failures);
        self.state.send_modify(|state| {
            let since = match state {
                ConnectionState::Down { since, .. } => *since,
                _ => {
                    tracing::warn!(connection = self.what, %target, %cause, ?wait, "connection is down, retrying");
                    now
                }
            };
            tracing::debug!(connection = self.what, %target, %cause, ?wait, failures, "next attempt after this wait");
            *state = ConnectionState::Down { since, failures, cause: cause.clone() };
        });
    }
}
