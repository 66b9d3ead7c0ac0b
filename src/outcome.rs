//! What a handler says of its job: [`Outcome`], a value and not a special error.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::error::{BoxError, Chain};
use crate::source::{MAX_REASON_BYTES, truncate};

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

    /// The same with its error turned into text: what a handler's error does when it is shown or dropped is
    /// the handler's code, and happens here, contained.
    pub(crate) fn rendered(self) -> Self {
        match self {
            Self::Fail { error, after } => Self::Fail { error: Rendered::boxed(error), after },
            Self::Reject(error) => Self::Reject(Rendered::boxed(error)),
            done => done,
        }
    }

    /// The error with its causes in one line, if there is one.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::Done | Self::Snooze(_) => None,
            Self::Fail { error, .. } | Self::Reject(error) => Some(Chain(error.as_ref()).to_string()),
        }
    }
}

/// An error that has been turned into text, its causes included.
#[derive(Debug)]
struct Rendered(String);

impl Rendered {
    fn boxed(error: BoxError) -> BoxError {
        let text = catch_unwind(AssertUnwindSafe(|| {
            let mut text = Chain(error.as_ref()).to_string();
            text.truncate(truncate(&text, MAX_REASON_BYTES).len());
            text
        }));
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(error)));
        let text = match (text, dropped) {
            (Ok(text), Ok(())) => text,
            (Ok(text), Err(panic)) => format!("{text} (dropping this error {})", Panicked::contained(panic)),
            (Err(panic), _) => format!("an error that can't be shown: it {}", Panicked::contained(panic)),
        };
        Self(text).into()
    }
}

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Rendered {}

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
    pub(crate) fn new(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a value that is not text".to_owned());
        Self(message)
    }

    /// Takes the message and drops the rest, which may itself panic.
    pub(crate) fn contained(payload: Box<dyn Any + Send>) -> Self {
        let message = Self::new(payload.as_ref());
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again); // give up on a payload that panics each time it is dropped
        }
        message
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
