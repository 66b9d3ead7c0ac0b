//! Settings that change while the worker runs: its queues, and its handlers with their options.
//!
//! Whoever changes one leaves it at the handle; the loop takes it at its next turn. Of several of one sort that come
//! before that, the last counts. Deliveries in hand keep the handler and the options that they came with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::handler::HandlerService;
use crate::job::Kind;
use crate::limit::{KindCaps, Queues};
use crate::registry::{KindOptions, Registry};
use crate::retry::RetryPolicy;
use crate::sync::{Mutex, lock};
use crate::telemetry::KindTelemetry;
use crate::worker::config::{Kinds, KnownKind};
use crate::worker::flight::Stage;
use crate::worker::run::Loop;
use crate::worker::tally::Tallies;

/// What kinds have that were given no options of their own, and the numbers that they get.
#[derive(Debug)]
pub(crate) struct KindDefaults {
    worker: String,
    timeout: Option<Duration>,
    retry: RetryPolicy,
    /// The number of the next kind. Never given twice, so that a task is given no attempt of a handler that has
    /// taken the place of its own.
    numbers: AtomicUsize,
    pub(crate) tallies: Tallies,
}

/// A registry, checked, as the loop uses it.
pub(crate) struct Registered {
    pub(crate) kinds: Kinds,
    pub(crate) caps: Vec<(Kind, usize)>,
    /// The numbers of the kinds: from here on, as many as there are kinds.
    pub(crate) first: usize,
}

impl KindDefaults {
    pub(crate) fn new(worker: String, timeout: Option<Duration>, retry: RetryPolicy) -> Self {
        Self { worker, timeout, retry, numbers: AtomicUsize::new(0), tallies: Tallies::default() }
    }

    pub(crate) fn register(&self, registry: Registry) -> Result<Registered, Error> {
        let parts = registry.into_parts()?;
        let first = self.numbers.fetch_add(parts.len(), Ordering::Relaxed);
        let mut registered = Registered { kinds: Kinds::default(), caps: Vec::new(), first };
        for (number, (kind, handler, options)) in (first..).zip(parts) {
            registered.caps.extend(options.max_concurrent_jobs.map(|cap| (kind.clone(), cap)));
            let known = self.known(number, &kind, Some(handler), options);
            registered.kinds.insert(kind, Arc::new(known));
        }
        Ok(registered)
    }

    /// What stands for all kinds that have no handler.
    pub(crate) fn unknown(&self) -> KnownKind {
        self.known(usize::MAX, &Kind::new("(unknown)"), None, KindOptions::new())
    }

    fn known(
        &self,
        number: usize,
        kind: &Kind,
        handler: Option<HandlerService>,
        options: KindOptions,
    ) -> KnownKind {
        KnownKind {
            number,
            handler,
            timeout: options.timeout.unwrap_or(self.timeout),
            retry: options.retry.unwrap_or_else(|| self.retry.clone()),
            telemetry: KindTelemetry::register(&self.worker, kind),
            tally: self.tallies.of(kind),
        }
    }
}

/// What was changed since the loop looked last.
#[derive(Default)]
pub(crate) struct Changes {
    /// There is something. Set after it was put there.
    any: AtomicBool,
    queues: Mutex<Option<Queues>>,
    registered: Mutex<Option<Registered>>,
}

impl Changes {
    pub(crate) fn queues(&self, queues: Queues) {
        *lock(&self.queues) = Some(queues);
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn registered(&self, registered: Registered) {
        *lock(&self.registered) = Some(registered);
        self.any.store(true, Ordering::Release);
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Loop {
    /// Goes by what was changed from now on. Called before deliveries are asked for and before they are taken in, so
    /// that a job that was enqueued after a change runs by it.
    pub(crate) fn take_changes(&mut self) {
        let changes = &self.control.changes;
        if !changes.any.load(Ordering::Relaxed) || !changes.any.swap(false, Ordering::Acquire) {
            return;
        }
        let (queues, registered) = (lock(&changes.queues).take(), lock(&changes.registered).take());
        if let Some(queues) = queues {
            self.limits.queues = queues;
        }
        if let Some(Registered { kinds, caps, first }) = registered {
            self.completions.know(first, kinds.len());
            self.kinds = kinds;
            self.caps = KindCaps::new(caps);
            // What has been taken in and not ended counts against the new caps.
            for (_, flight) in self.flights.iter() {
                if !matches!(flight.stage, Stage::Settling(_)) {
                    self.caps.count(&flight.run.delivery.job.kind);
                }
            }
        }
        self.fetcher.interrupt();
    }
}
