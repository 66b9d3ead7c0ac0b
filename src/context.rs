//! What a handler is given: [`Context`], and the control block behind it.

use std::future::Future;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::inspect::Progress;
use crate::job::{Job, Tag};
use crate::outcome::Outcome;
use crate::scope::Scope;
use crate::source::{Delivery, MAX_OUTPUT_BYTES, truncate};
use crate::sync::{Mutex, lock};

/// The longest note that is kept with a [`Progress`]: one line on a screen.
const MAX_NOTE_BYTES: usize = 256;

/// One attempt at a job, as its handler sees it. Cheap to clone.
///
/// A clone may outlive the job, but then says nothing new: keep none.
#[derive(Clone, Debug)]
pub struct Context {
    run: Arc<Run>,
}

impl Context {
    pub(crate) fn new(run: Arc<Run>) -> Self {
        Self { run }
    }

    /// The job.
    pub fn job(&self) -> &Arc<Job> {
        &self.run.delivery.job
    }

    /// The job's payload, as raw bytes.
    pub fn payload(&self) -> &Bytes {
        &self.run.delivery.job.payload
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.run.delivery.attempt
    }

    /// The handle by which the source knows this attempt: for handlers that speak to the source's store themselves.
    pub fn tag(&self) -> Tag {
        self.run.delivery.tag
    }

    /// When the attempt will be cancelled; `None` if it has no timeout.
    pub fn deadline(&self) -> Option<Instant> {
        self.run.deadline()
    }

    /// Resolves, at once from then on, when the job should stop. See [`Context::cancel_reason`] for why.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn cancelled(&self) {
        self.run.extras().token.cancelled().await;
    }

    /// Whether the job should stop. For loops without an await point, and for blocking handlers.
    pub fn is_cancelled(&self) -> bool {
        self.run.cancel_reason().is_some()
    }

    /// Why the job should stop, once it should.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.run.cancel_reason()
    }

    /// A token that is cancelled when the job should stop: to hand to libraries. Cancelling it yourself has
    /// no effect on the job.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.run.extras().token.child_token()
    }

    /// A scope for at most `limit` child tasks at once, which is cancelled with the job. The job is not
    /// settled before every child has ended (P6). Call [`Scope::join`] to wait for them; dropping the scope
    /// cancels them.
    pub fn scope(&self, limit: usize) -> Scope {
        let extras = self.run.extras();
        Scope::within(limit, &extras.children, extras.scopes.child_token())
    }

    /// Says how far the job has got: `done` steps of `total` (if known), and a word for a person (cut to 256
    /// bytes). Shown by [`WorkerHandle::jobs`](crate::WorkerHandle::jobs); the last report wins.
    pub fn progress<'a>(&self, done: u64, total: impl Into<Option<u64>>, note: impl Into<Option<&'a str>>) {
        let note = note.into().map(|note| Arc::from(truncate(note, MAX_NOTE_BYTES)));
        let progress = Progress { done, total: total.into(), note };
        *lock(&self.run.extras().progress) = Some((progress, Instant::now()));
    }

    /// Leaves `output` to be kept with this attempt by sources that keep account of attempts, whatever it comes to;
    /// cut to [`MAX_OUTPUT_BYTES`]. The last call wins. For what a person wants to see who asks why a job failed: what
    /// a child process printed, a server's answer.
    pub fn keep_output(&self, output: &[u8]) {
        let output = &output[..output.len().min(MAX_OUTPUT_BYTES)];
        *lock(&self.run.extras().output) = Some(Arc::from(output));
    }

    pub(crate) fn run(&self) -> &Arc<Run> {
        &self.run
    }
}

/// Why a job should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CancelReason {
    /// The worker is stopping and its time to drain is over. Unless the job finishes yet, it is handed back.
    Shutdown,
    /// Its timeout has passed. Counts as a failed attempt.
    Timeout,
    /// Its lease is lost: another worker may be running it by now. Whatever it returns is not settled.
    LeaseLost,
    /// Somebody asked for this job to be cancelled. Not tried again.
    Requested,
}

impl CancelReason {
    const ALL: [Self; 4] = [Self::Shutdown, Self::Timeout, Self::LeaseLost, Self::Requested];

    fn code(self) -> NonZeroU8 {
        match self {
            Self::Shutdown => const { NonZeroU8::new(1).unwrap() },
            Self::Timeout => const { NonZeroU8::new(2).unwrap() },
            Self::LeaseLost => const { NonZeroU8::new(3).unwrap() },
            Self::Requested => const { NonZeroU8::new(4).unwrap() },
        }
    }
}

/// Nobody has been first yet.
const NOT_BEGUN: u8 = 0;
/// The handler has been called.
const STARTED: u8 = 1;
/// The attempt has been taken back.
const REVOKED: u8 = 2;

/// The control block of one attempt: shared by its handler, its task, the worker's loop and the heartbeat.
///
/// Everything but the delivery is made only when it is asked for: a job that returns at once pays for none.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) delivery: Delivery,
    pub(crate) timeout: Option<Duration>,
    /// Set when its handler is called: waiting for a slot or for a thread costs an attempt none of its time.
    started: OnceLock<Instant>,
    /// Who was first: the handler that starts, or the loop that takes the attempt back before it could.
    begun: AtomicU8,
    cancel: AtomicU8,
    abort: AtomicBool,
    task: AtomicWaker,
    extras: OnceLock<Box<Extras>>,
}

/// What only some handlers ask for, made when the first thing of it is asked for.
#[derive(Debug)]
struct Extras {
    token: CancellationToken,
    /// Of the scopes: cancelled when the handler has ended, so that none that outlives it starts anything more.
    scopes: CancellationToken,
    children: TaskTracker,
    progress: Mutex<Option<(Progress, Instant)>>,
    /// What is to be kept with the attempt.
    output: Mutex<Option<Arc<[u8]>>>,
    /// What a blocking handler came to when nobody waited for it any more.
    late: Mutex<Option<Late>>,
}

/// What a blocking handler returned, or its panic.
pub(crate) type Late = std::thread::Result<Outcome>;

impl Default for Extras {
    fn default() -> Self {
        let token = CancellationToken::new();
        let scopes = token.child_token();
        Self {
            token,
            scopes,
            children: TaskTracker::new(),
            progress: Mutex::default(),
            output: Mutex::default(),
            late: Mutex::default(),
        }
    }
}

impl Run {
    pub(crate) fn new(delivery: Delivery, timeout: Option<Duration>) -> Self {
        Self {
            delivery,
            timeout,
            started: OnceLock::new(),
            begun: AtomicU8::new(NOT_BEGUN),
            cancel: AtomicU8::new(0),
            abort: AtomicBool::new(false),
            task: AtomicWaker::new(),
            extras: OnceLock::new(),
        }
    }

    /// Lets go of all that belonged to the attempt, so that the block can serve another: no payload is kept
    /// for longer than its job. `nobody` takes the job's place meanwhile.
    pub(crate) fn vacate(&mut self, nobody: &Arc<Job>) {
        self.delivery.job = nobody.clone();
        self.started = OnceLock::new();
        *self.begun.get_mut() = NOT_BEGUN;
        *self.cancel.get_mut() = 0;
        *self.abort.get_mut() = false;
        drop(self.task.take());
        self.extras.take();
    }

    /// Serves another attempt, after [`vacate`](Self::vacate).
    pub(crate) fn occupy(&mut self, delivery: Delivery, timeout: Option<Duration>) {
        self.delivery = delivery;
        self.timeout = timeout;
    }

    /// When its time is over if it is started at `now`. A timeout beyond what the clock can count is as good as none.
    pub(crate) fn deadline_from(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.timeout?)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline_from(self.started_at()?)
    }

    /// When its handler was called.
    pub(crate) fn started_at(&self) -> Option<Instant> {
        self.started.get().copied()
    }

    /// The handler is about to be called, at `now`: from now on its timeout runs. Not if this is `false`: the attempt
    /// has been taken back.
    pub(crate) fn start(&self, now: Instant) -> bool {
        // Before anybody can see that it has started. Only one task ever starts it.
        let _ = self.started.set(now);
        self.begin(STARTED)
    }

    /// Takes the attempt back, if its handler has not been called: it never will be, then.
    pub(crate) fn revoke(&self) -> bool {
        self.begin(REVOKED)
    }

    fn begin(&self, how: u8) -> bool {
        self.begun.compare_exchange(NOT_BEGUN, how, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn has_started(&self) -> bool {
        self.begun.load(Ordering::Acquire) == STARTED
    }

    /// Whether it was started, and nobody told it to stop.
    pub(crate) fn was_left_alone(&self) -> bool {
        self.has_started() && self.cancel_reason().is_none()
    }

    /// Tells the handler to stop. The first reason stands, except that a lost lease overrides any: it
    /// forbids the settlement.
    pub(crate) fn cancel(&self, reason: CancelReason) {
        let code = reason.code().get();
        if self.cancel.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst).is_err()
            && reason == CancelReason::LeaseLost
        {
            self.cancel.store(code, Ordering::SeqCst);
        }
        // Pairs with the fence in `extras`, which makes the token and then looks at `cancel`: one of the two
        // sees what the other wrote, so a token made at this very moment is cancelled too.
        fence(Ordering::SeqCst);
        if let Some(extras) = self.extras.get() {
            extras.token.cancel();
        }
    }

    pub(crate) fn cancel_reason(&self) -> Option<CancelReason> {
        let code = self.cancel.load(Ordering::SeqCst);
        CancelReason::ALL.into_iter().find(|reason| reason.code().get() == code)
    }

    fn extras(&self) -> &Extras {
        let extras = self.extras.get_or_init(Box::default);
        fence(Ordering::SeqCst);
        if self.cancel.load(Ordering::SeqCst) != 0 {
            extras.token.cancel();
        }
        extras
    }

    /// Ends the handler's future at its next await point.
    pub(crate) fn abort(&self) {
        self.abort.store(true, Ordering::SeqCst);
        self.task.wake();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::SeqCst)
    }

    /// Polls with `poll` until it is ready or the run is aborted; `None` then.
    pub(crate) fn until_abort<T>(
        &self,
        mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>,
    ) -> impl Future<Output = Option<T>> {
        std::future::poll_fn(move |cx| {
            if self.is_aborted() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(value) = poll(cx) {
                return Poll::Ready(Some(value));
            }
            // Register, then look again: an abort between the two looks is not missed.
            self.task.register(cx.waker());
            if self.is_aborted() { Poll::Ready(None) } else { Poll::Pending }
        })
    }

    /// Waits until every child task has ended; they are cancelled first, and scopes start no more.
    pub(crate) async fn end_children(&self) {
        let Some(Extras { token, scopes, children, .. }) = self.extras.get().map(Box::as_ref) else { return };
        scopes.cancel();
        if !children.is_empty() {
            token.cancel();
        }
        children.close();
        children.wait().await;
    }

    /// Whether children are left.
    pub(crate) fn has_children(&self) -> bool {
        self.extras.get().is_some_and(|extras| !extras.children.is_empty())
    }

    /// What the handler left to be kept with the attempt.
    pub(crate) fn take_output(&self) -> Option<Arc<[u8]>> {
        lock(&self.extras.get()?.output).take()
    }

    /// Keeps what a blocking handler came to, whose attempt was aborted meanwhile.
    pub(crate) fn come_late(&self, late: Late) {
        *lock(&self.extras().late) = Some(late);
    }

    /// What a blocking handler came to all the same. Asked when its children have ended.
    pub(crate) fn take_late(&self) -> Option<Late> {
        lock(&self.extras.get()?.late).take()
    }

    /// Counts something as a child of this job until the token is dropped.
    pub(crate) fn child(&self) -> TaskTrackerToken {
        self.extras().children.token()
    }

    pub(crate) fn last_progress(&self) -> Option<(Progress, Instant)> {
        lock(&self.extras.get()?.progress).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::job::{JobId, Kind, Tag};

    fn run(timeout: Option<Duration>) -> Arc<Run> {
        let job = Job::new(
            JobId::new("a"),
            Kind::new("work"),
            Bytes::from_static(b"payload"),
            SystemTime::UNIX_EPOCH,
        );
        let tag = Tag { session: 0, key: 0, token: 0 };
        Arc::new(Run::new(Delivery { job: Arc::new(job), attempt: 3, tag, lease: None }, timeout))
    }

    proptest! {
        #[test]
        fn the_first_reason_stands_but_a_lost_lease_overrides_any(reasons in proptest::collection::vec(0usize..4, 0..6)) {
            let run = run(None);
            let reasons: Vec<CancelReason> = reasons.into_iter().map(|at| CancelReason::ALL[at]).collect();
            for reason in &reasons {
                run.cancel(*reason);
            }
            let lost = reasons.contains(&CancelReason::LeaseLost).then_some(CancelReason::LeaseLost);
            prop_assert_eq!(run.cancel_reason(), lost.or(reasons.first().copied()));
        }

        #[test]
        fn a_note_is_cut_at_a_character(note in "\\PC{0,300}") {
            let context = Context::new(run(None));
            context.progress(1, 2, note.as_str());
            let (progress, _) = context.run().last_progress().expect("it was reported");
            let kept = progress.note.expect("there is one");
            prop_assert!(note.starts_with(&*kept) && kept.len() <= MAX_NOTE_BYTES);
            prop_assert!(kept.len() > MAX_NOTE_BYTES - 4 || *kept == *note);
        }
    }

    #[test]
    fn a_token_is_cancelled_whether_it_was_made_before_or_after() {
        let context = Context::new(run(None));
        let before = context.cancellation_token();
        assert!(!before.is_cancelled() && !context.is_cancelled());
        assert!(context.cancelled().now_or_never().is_none());
        context.run().cancel(CancelReason::Timeout);
        assert!(before.is_cancelled() && context.cancellation_token().is_cancelled());
        assert!(context.cancelled().now_or_never().is_some());
        assert_eq!(context.cancel_reason(), Some(CancelReason::Timeout));
    }

    /// Threads race to cancel and to make the token: whatever the order, the token ends up cancelled.
    #[test]
    fn a_token_that_is_made_at_the_moment_of_cancelling_is_cancelled() {
        for _ in 0..300 {
            let context = Context::new(run(None));
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    start.wait();
                    context.run().cancel(CancelReason::Requested);
                });
                start.wait();
                let token = context.cancellation_token();
                while context.cancel_reason().is_none() {
                    std::hint::spin_loop();
                }
                while !token.is_cancelled() {
                    std::hint::spin_loop(); // a token that was missed spins for ever
                }
            });
        }
    }

    #[test]
    fn an_abort_ends_what_is_polled_and_what_is_polled_next() {
        let run = run(None);
        let mut waiting = Box::pin(run.until_abort(|_| Poll::<()>::Pending));
        assert!(waiting.as_mut().now_or_never().is_none());
        run.abort();
        assert_eq!(waiting.as_mut().now_or_never(), Some(None));
        assert_eq!(
            run.until_abort(|_| Poll::Ready(1)).now_or_never(),
            Some(None),
            "it is not polled any more"
        );
    }

    #[test]
    fn an_abort_wakes_the_task() {
        let (run, waker) = (run(None), Arc::new(Woken::default()));
        let mut waiting = Box::pin(run.until_abort(|_| Poll::<()>::Pending));
        let task = std::task::Waker::from(waker.clone());
        assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(&task)).is_pending());
        run.abort();
        assert!(waker.0.load(Ordering::SeqCst));
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_deadline_is_counted_from_the_start_and_only_once() {
        let (run, now) = (run(Some(Duration::from_secs(5))), Instant::now());
        assert_eq!(run.deadline(), None, "it has not been started");
        assert!(run.start(now));
        assert!(!run.start(now + Duration::from_secs(9)));
        assert_eq!(run.deadline(), Some(now + Duration::from_secs(5)));
        for timeless in [super::tests::run(Some(Duration::MAX)), super::tests::run(None)] {
            assert!(timeless.start(now));
            assert_eq!(timeless.deadline(), None, "beyond the clock is never");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn children_are_cancelled_and_waited_for_and_none_is_no_wait() {
        let context = Context::new(run(None));
        assert!(context.run().end_children().now_or_never().is_some(), "there are none");
        let scope = context.scope(2);
        for _ in 0..2 {
            scope.spawn(std::future::pending::<Result<(), std::io::Error>>()).await.expect("there is room");
        }
        context.run().end_children().await;
        assert!(scope.is_empty());
        assert_eq!(context.cancel_reason(), None, "the job itself was not told to stop");
    }
}
