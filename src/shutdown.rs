//! Stopping: [`Shutdown`] and its [`Phase`]s, drain → cancel → abort.

use std::sync::Arc;

use tokio::sync::watch;

/// How far stopping has got. Only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not stopping.
    Running,
    /// No new job starts; those that run may finish.
    Drain,
    /// Running jobs are told to stop.
    Cancel,
    /// Running jobs are ended at their next await point.
    Abort,
}

/// The switch that stops a worker: clone it, keep one, give the other to [`Worker::run`](crate::Worker::run).
///
/// The first [`stop`](Shutdown::stop) begins to drain; each further one shortens: cancel, then abort. The
/// worker moves on by itself as its shutdown deadline draws near (P7), so one call is enough. Dropping it
/// does nothing: a worker whose switch is gone simply goes on.
///
/// Not a cancellation token: it has an order of phases and can't be taken back. One switch may stop several
/// workers.
#[derive(Clone, Debug)]
pub struct Shutdown {
    asked: Arc<watch::Sender<Phase>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A switch that has not been used.
    pub fn new() -> Self {
        Self { asked: Arc::new(watch::Sender::new(Phase::Running)) }
    }

    /// Asks to stop; asked again, sooner. Returns the phase that is now asked for.
    pub fn stop(&self) -> Phase {
        let mut phase = Phase::Running;
        self.asked.send_modify(|asked| {
            *asked = match *asked {
                Phase::Running => Phase::Drain,
                Phase::Drain => Phase::Cancel,
                Phase::Cancel | Phase::Abort => Phase::Abort,
            };
            phase = *asked;
        });
        phase
    }

    /// Asks for `phase` at the least.
    pub fn escalate(&self, phase: Phase) {
        self.asked.send_if_modified(|asked| {
            let more = phase > *asked;
            *asked = (*asked).max(phase);
            more
        });
    }

    /// What has been asked for so far.
    pub fn phase(&self) -> Phase {
        *self.asked.borrow()
    }

    /// Whether stopping has been asked for.
    pub fn is_stopping(&self) -> bool {
        self.phase() > Phase::Running
    }

    /// Waits until `phase` or a later one has been asked for.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn reached(&self, phase: Phase) {
        let mut asked = self.asked.subscribe();
        // The sender is held by `self`, so waiting can't fail.
        let _ = asked.wait_for(|now| *now >= phase).await;
    }

    /// A view that tells of each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Phase> {
        self.asked.subscribe()
    }
}
