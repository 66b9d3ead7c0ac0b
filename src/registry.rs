//! Which handler runs which kind: [`Registry`], with per-kind [`KindOptions`] and tower layers.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tower_layer::Layer;

use crate::context::Context;
use crate::error::{BoxError, Error};
use crate::handler::{Handler, HandlerService};
use crate::job::Kind;
use crate::outcome::{IntoOutcome, Outcome};
use crate::retry::RetryPolicy;

/// The handlers of a worker, by kind.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{Context, KindOptions, Registry};
///
/// #[derive(serde::Deserialize)]
/// struct Mail { to: String }
///
/// let registry = Registry::new()
///     // Typed: the payload is decoded as JSON; what can't be goes to the dead letters.
///     .handle("mail", |mail: Mail, _: Context| async move {
///         if mail.to.is_empty() { Err("nobody to write to") } else { Ok(()) }
///     })
///     // Raw: the payload is bytes.
///     .handle_raw("ping", |context: Context| async move { assert!(context.payload().len() < 99) })
///     // Blocking: runs on threads of its own and still counts against the bound.
///     .handle_blocking("hash", |bytes: Vec<u8>, _: Context| { let _ = bytes.len(); })
///     .options("mail", KindOptions::new().timeout(Duration::from_secs(30)).max_concurrent_jobs(5));
/// ```
#[derive(Default)]
pub struct Registry {
    handlers: HashMap<Kind, HandlerService>,
    options: HashMap<Kind, KindOptions>,
    layers: Vec<Box<dyn Fn(HandlerService) -> HandlerService + Send>>,
    twice: Vec<Kind>,
}

/// What differs for one kind. What is not set is as the worker says.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct KindOptions {
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) max_concurrent_jobs: Option<usize>,
    pub(crate) retry: Option<RetryPolicy>,
}

impl KindOptions {
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long one attempt may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(Some(timeout));
        self
    }

    /// Attempts of this kind may take for ever. Then nothing but shutdown or a lost lease ends a hang.
    pub fn no_timeout(mut self) -> Self {
        self.timeout = Some(None);
        self
    }

    /// At most so many of this kind at once in this worker, within the worker's own bound. From 1.
    pub fn max_concurrent_jobs(mut self, jobs: usize) -> Self {
        self.max_concurrent_jobs = Some(jobs);
        self
    }

    /// How its failures are retried.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }
}

impl Registry {
    /// No handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers an async handler whose arguments are decoded from the payload's JSON.
    ///
    /// A handler that blocks its thread keeps it from all that waits there. Register it with
    /// [`handle_blocking`](Self::handle_blocking) instead.
    #[must_use]
    pub fn handle<A, F, Fut, R>(self, kind: impl Into<Kind>, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        F: Fn(A, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        self.insert(kind.into(), HandlerService::typed(handler))
    }

    /// Registers an async handler of the raw payload.
    #[must_use]
    pub fn handle_raw(self, kind: impl Into<Kind>, handler: impl Handler) -> Self {
        self.insert(kind.into(), HandlerService::raw(handler))
    }

    /// Registers a function that blocks its thread (CPU-bound work, synchronous drivers), with arguments
    /// decoded from the payload's JSON. It runs on a pool of threads and can't be aborted: let it look at
    /// [`Context::is_cancelled`] from time to time.
    #[must_use]
    pub fn handle_blocking<A, F, R>(self, kind: impl Into<Kind>, handler: F) -> Self
    where
        A: DeserializeOwned + 'static,
        F: Fn(A, Context) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.insert(kind.into(), HandlerService::blocking_typed(handler))
    }

    /// Registers a function of the raw payload that blocks its thread.
    #[must_use]
    pub fn handle_blocking_raw<F, R>(self, kind: impl Into<Kind>, handler: F) -> Self
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.insert(kind.into(), HandlerService::blocking(handler))
    }

    /// Sets what differs for one kind.
    #[must_use]
    pub fn options(mut self, kind: impl Into<Kind>, options: KindOptions) -> Self {
        self.options.insert(kind.into(), options);
        self
    }

    /// Puts a tower layer around every handler, whether registered before or after. The layer added last is
    /// the outermost. An error of the layer's service counts as a failed attempt.
    #[must_use]
    pub fn layer<L, S>(mut self, layer: L) -> Self
    where
        L: Layer<HandlerService, Service = S> + Send + 'static,
        S: tower_service::Service<Context, Response = Outcome> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError> + Send,
        S::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |inner| HandlerService::layered(layer.layer(inner))));
        self
    }

    /// The kinds that have a handler.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.handlers.keys()
    }

    fn insert(mut self, kind: Kind, handler: HandlerService) -> Self {
        if self.handlers.insert(kind.clone(), handler).is_some() {
            self.twice.push(kind);
        }
        self
    }

    /// Checks it, and puts the layers around the handlers.
    ///
    /// # Errors
    /// When it is empty, a kind was registered twice, or options name a kind without a handler or make no
    /// sense.
    pub(crate) fn into_parts(self) -> Result<Vec<(Kind, HandlerService, KindOptions)>, Error> {
        if let Some(kind) = self.twice.first() {
            return Err(Error::invalid(format!("kind {kind:?} has two handlers: which of them should run?")));
        }
        if self.handlers.is_empty() {
            return Err(Error::invalid("the registry is empty: register a handler for at least one kind"));
        }
        let Self { handlers, mut options, layers, .. } = self;
        if let Some(kind) = options.keys().find(|kind| !handlers.contains_key(*kind)) {
            return Err(Error::invalid(format!(
                "options were given for kind {kind:?}, which has no handler"
            )));
        }
        for (kind, options) in &options {
            if options.max_concurrent_jobs == Some(0) {
                return Err(Error::invalid(format!(
                    "max_concurrent_jobs of kind {kind:?} is 0: it must be at least 1"
                )));
            }
            if options.timeout == Some(Some(Duration::ZERO)) {
                return Err(Error::invalid(format!(
                    "the timeout of kind {kind:?} is 0: no job could finish"
                )));
            }
            if let Some(retry) = &options.retry {
                retry.validate().map_err(|error| Error::invalid(format!("kind {kind:?}: {error}")))?;
            }
        }
        let layered = |handler| layers.iter().fold(handler, |inner, layer| layer(inner));
        Ok(handlers
            .into_iter()
            .map(|(kind, handler)| {
                let options = options.remove(&kind).unwrap_or_default();
                (kind, layered(handler), options)
            })
            .collect())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("kinds", &self.handlers.keys()).finish_non_exhaustive()
    }
}
