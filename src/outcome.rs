//! What a handler says of its job: [`Outcome`], a value and not a special error.

use std::fmt;
use std::time::Duration;

use crate::error::{BoxError, Chain};

/// What became of one attempt, in the handler's own word.
///
/// Handlers rarely name it: `()` means [`Done`](Outcome::Done), and a `Result` whose error converts to a
/// [`BoxError`] means `Done` or [`Fail`](Outcome::Fail); see [`IntoOutcome`].
#[derive(Debug)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed: tried again under the [`RetryPolicy`](crate::RetryPolicy) until the attempts are used up.
    Fail {
        /// Why.
        error: BoxError,
        /// When to try again, if the handler knows better than the policy (a `Retry-After`, say).
        after: Option<Duration>,
    },
    /// It can never succeed: to the dead letters at once, with this reason.
    Reject(BoxError),
    /// Not now: again after this time, and this attempt does not count.
    Snooze(Duration),
}

impl Outcome {
    /// A failure, tried again when the policy says.
    pub fn fail(error: impl Into<BoxError>) -> Self {
        Self::Fail { error: error.into(), after: None }
    }

    /// A failure, tried again after `wait` (if any attempt is left).
    pub fn fail_for(error: impl Into<BoxError>, wait: Duration) -> Self {
        Self::Fail { error: error.into(), after: Some(wait) }
    }

    /// A rejection.
    pub fn reject(error: impl Into<BoxError>) -> Self {
        Self::Reject(error.into())
    }

    /// The error with its causes in one line, if there is one.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::Done | Self::Snooze(_) => None,
            Self::Fail { error, .. } | Self::Reject(error) => Some(Chain(error.as_ref()).to_string()),
        }
    }
}

/// What a handler may return.
pub trait IntoOutcome {
    /// The outcome that it stands for.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Done
    }
}

impl<T: IntoOutcome, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => Outcome::fail(error),
        }
    }
}

/// A handler panicked: the message that it panicked with.
#[derive(Debug)]
pub struct Panicked(pub(crate) String);

impl Panicked {
    /// From what `catch_unwind` or a `JoinError` yields. A payload that is neither `&str` nor `String` has
    /// no message to show.
    pub(crate) fn new(payload: &(dyn std::any::Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a value that is not text".to_owned());
        Self(message)
    }

    /// What it panicked with.
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}

/// An attempt took longer than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut {
    /// How long it was allowed to take.
    pub timeout: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timed out after {:?}", self.timeout)
    }
}

impl std::error::Error for TimedOut {}
