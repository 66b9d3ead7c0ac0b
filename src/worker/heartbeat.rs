//! The heartbeat: renews what is due, and nothing else (P9).
//!
//! It runs on a thread of its own with a runtime of its own, and makes its own connection there, so that
//! neither a blocked runtime thread nor a slow settlement can delay it. It writes no status and no log line
//! while all is well: nothing less important may stand before a renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{CancelReason, Run};
use crate::error::{Chain, Error, ErrorKind};
use crate::job::Tag;
use crate::lease::{Renew, Renewal};
use crate::retry::backoff;
use crate::telemetry::{Telemetry, seconds};
use crate::worker::bell::Bell;
use crate::worker::leases::{Beat, Leases};
use crate::worker::reconnect::Reconnecting;

/// How long to wait after the first renewal that failed: long enough not to spin, short enough for several
/// tries within the third of a short lease.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// The longest wait after many failures in a row, each of which made it twice as long; of a short lease no more than a
/// sixth.
const AFTER_FAILURES: Duration = Duration::from_secs(1);

pub(crate) struct Heartbeat {
    pub(crate) leases: Arc<Leases<Arc<Run>>>,
    /// `None`: leases are watched, but there is nobody to renew them with.
    pub(crate) renew: Option<Reconnecting<dyn Renew>>,
    /// Tells the loop that a run was cancelled.
    pub(crate) cancelled: Arc<Bell>,
    pub(crate) telemetry: Telemetry,
    /// How many renewals have failed in a row.
    pub(crate) failures: AtomicU32,
    /// A log line has said so: what is logged is the change.
    pub(crate) told: AtomicBool,
}

impl Heartbeat {
    /// Beats until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.beat() => {}
        }
    }

    async fn beat(&self) {
        loop {
            let now = Instant::now();
            self.tell_lost(self.leases.expire(now));
            match (self.leases.beat(now), &self.renew) {
                (Beat::Sleep, _) => self.leases.wait(None).await,
                (Beat::Wait(due_at), _) => self.leases.wait(Some(due_at)).await,
                (Beat::Renew(due, due_at), Some(renew)) => {
                    self.telemetry.renewal_lateness.record(seconds(now.duration_since(due_at)));
                    if !self.watch_losses(self.renew(renew, &due)).await {
                        let failures = self.failures.load(Ordering::Relaxed);
                        let most = self
                            .leases
                            .patience()
                            .map_or(AFTER_FAILURES, |third| AFTER_FAILURES.min(third / 2));
                        let wait = backoff(AFTER_FAILURE.min(most), 2.0, most, failures);
                        self.watch_losses(tokio::time::sleep(wait)).await;
                    }
                }
                // Nobody to renew with: all that is left is to notice the end.
                (Beat::Renew(..), None) => self.leases.wait(self.leases.wait_for_loss()).await,
            }
        }
    }

    /// Waits for `call`, and meanwhile ends the trust in leases whose time runs out: a renewal that hangs
    /// must not keep that from being noticed.
    async fn watch_losses<T>(&self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        loop {
            let loss = self.leases.wait_for_loss();
            tokio::select! {
                biased;
                answer = &mut call => return answer,
                () = self.leases.wait(loss) => self.tell_lost(self.leases.expire(Instant::now())),
            }
        }
    }

    /// Renews a batch. Returns whether it was answered.
    async fn renew(&self, renew: &Reconnecting<dyn Renew>, due: &[(usize, Tag)]) -> bool {
        let tags: Vec<Tag> = due.iter().map(|(_, tag)| *tag).collect();
        let session = match renew.session().await {
            Ok(session) => session,
            Err(error) => return self.renewal_failed(&error),
        };
        let sent_at = Instant::now();
        let limit =
            self.leases.patience().map_or(renew.call_timeout(), |limit| limit.min(renew.call_timeout()));
        match renew.within(limit, session.live.renew(&tags)).await {
            Ok(answers) => {
                renew.succeeded(&session);
                if answers.len() != tags.len() {
                    let (asked, got) = (tags.len(), answers.len());
                    let what = format!("{asked} leases were to be renewed, and {got} answers came");
                    return self.renewal_failed(&Error::new(ErrorKind::Internal, what));
                }
                self.failures.store(0, Ordering::Relaxed);
                if self.told.swap(false, Ordering::Relaxed) {
                    tracing::info!("leases are renewed again");
                }
                let kept = answers.iter().filter(|answer| **answer != Renewal::Lost).count();
                self.telemetry.renewals.increment(kept as u64);
                let answers: Vec<_> =
                    due.iter().zip(answers).map(|((place, tag), answer)| (*place, *tag, answer)).collect();
                for (run, answer) in self.leases.renewed(&answers, sent_at) {
                    match answer {
                        Renewal::Lost => self.tell_lost(vec![run]),
                        _ => self.tell(&run, CancelReason::Requested),
                    }
                }
                true
            }
            Err(error) => {
                renew.failed(&session, &error).await;
                self.renewal_failed(&error)
            }
        }
    }

    fn renewal_failed(&self, error: &Error) -> bool {
        self.telemetry.renewal_failures.increment(1);
        self.failures.fetch_add(1, Ordering::Relaxed);
        // Of a lost connection the reconnecting session says so.
        if !error.is_disconnect() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %Chain(error), "leases could not be renewed, trying on until trust in them ends");
        }
        false
    }

    fn tell_lost(&self, runs: Vec<Arc<Run>>) {
        for run in runs {
            self.telemetry.leases_lost.increment(1);
            let job = &run.delivery.job;
            tracing::warn!(id = %job.id, kind = %job.kind, attempt = run.delivery.attempt, "lease lost");
            self.tell(&run, CancelReason::LeaseLost);
        }
    }

    fn tell(&self, run: &Run, reason: CancelReason) {
        run.cancel(reason);
        self.cancelled.ring();
    }
}
