//! Where the loop is polled: by its own thread, or in place by a task that has just finished a job.
//!
//! The own thread answers to everything that wakes the loop: timers, sockets, signals, settings. A finished
//! job does not wake it; the job's task polls the loop itself. A job that blocks its thread cannot be in the
//! way of either: who polls in place has finished, and the own thread runs no jobs.
//!
//! Invariants:
//!
//! 1. One poller at a time. Who comes while another polls leaves a mark and goes; the poller looks once more
//!    before it leaves, so no wake-up is lost.
//! 2. Whoever polls, the loop's timers and sockets belong to the own thread's runtime, and its waker wakes
//!    the own thread.
//! 3. A poller in place goes round at most `MAX_ROUNDS` times, then leaves the rest to the own thread: no job
//!    runtime's thread is kept by a busy loop.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

use crate::completions::PollInPlace;
use crate::sync::{Mutex, lock};

/// Nobody polls.
const IDLE: u8 = 0;
/// Somebody polls.
const POLLING: u8 = 1;
/// Somebody polls, and has to look once more.
const AGAIN: u8 = 2;

/// How often a poller in place looks again for those who came meanwhile.
const MAX_ROUNDS: usize = 32;

type Body<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The loop's future, shared by those who poll it.
pub(crate) struct Stage<T> {
    state: AtomicU8,
    body: Mutex<Option<Body<T>>>,
    output: Mutex<Option<Result<T, Box<dyn Any + Send>>>>,
    own: Handle,
    waker: OnceLock<Waker>,
}

impl<T: Send + 'static> Stage<T> {
    /// A stage for `body` on the runtime that this is called in.
    pub(crate) fn new(body: impl Future<Output = T> + Send + 'static) -> Arc<Self> {
        // The budget of whichever task polls it is not the loop's.
        let body = Box::pin(tokio::task::unconstrained(body));
        Arc::new(Self {
            state: AtomicU8::new(IDLE),
            body: Mutex::new(Some(body)),
            output: Mutex::new(None),
            own: Handle::current(),
            waker: OnceLock::new(),
        })
    }

    /// The own thread's part: polls whenever it is woken, until the loop has ended.
    ///
    /// Panics if the loop did, with the same payload.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        self.waker.get_or_init(|| cx.waker().clone());
        self.poll_in_place();
        match lock(&self.output).take() {
            None => Poll::Pending,
            Some(Ok(output)) => Poll::Ready(output),
            Some(Err(panic)) => resume_unwind(panic),
        }
    }

    /// Marks that somebody wants to poll. Whether it is us who do.
    fn enter(&self) -> bool {
        let next = |state| Some(if state == IDLE { POLLING } else { AGAIN });
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) == Ok(IDLE)
    }

    /// Leaves, unless somebody has come meanwhile.
    fn leave(&self) -> bool {
        self.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn poll_once(&self, waker: &Waker) {
        let mut body = lock(&self.body);
        let Some(live) = body.as_mut() else { return };
        let polled = catch_unwind(AssertUnwindSafe(|| live.as_mut().poll(&mut Context::from_waker(waker))));
        let output = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        *body = None;
        *lock(&self.output) = Some(output);
        waker.wake_by_ref();
    }
}

impl<T: Send + 'static> PollInPlace for Stage<T> {
    fn poll_in_place(&self) {
        // Before the own thread's first poll there is no job to finish either.
        let Some(waker) = self.waker.get() else { return };
        if !self.enter() {
            return;
        }
        let _context = self.own.enter();
        for _ in 0..MAX_ROUNDS {
            self.poll_once(waker);
            if self.leave() {
                return;
            }
            self.state.store(POLLING, Ordering::Release);
        }
        self.state.store(IDLE, Ordering::Release);
        waker.wake_by_ref();
    }
}
