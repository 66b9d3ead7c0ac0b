//! One opaque error for the whole crate, with predicates.
//!
//! An [`Error`] says what kind of thing went wrong, in which context, and keeps its cause. It is never
//! used for what a job's own code failed with: that travels as a boxed error in
//! [`Outcome`](crate::Outcome).

use std::borrow::Cow;
use std::fmt;

/// A boxed error of any type, as handlers fail with and as causes are kept.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong while talking to a source, or while building something from bad input.
///
/// The size of one pointer, so that `Result<(), Error>` stays cheap on the hot path. Compare with
/// [`Error::kind`], or ask a predicate such as [`Error::is_transient`].
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: Cow<'static, str>,
    source: Option<BoxError>,
}

/// The kinds of [`Error`]. More may come, so a `match` needs a wildcard arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The connection could not be made, or was lost. Transient.
    Connection,
    /// An answer did not come in time; whether the request was carried out is unknown. Transient.
    Timeout,
    /// The other side is there but can't serve just now (starting, failing over, busy). Transient.
    Unavailable,
    /// A bound was reached: the store holds as much as it may. Transient: room may come.
    Full,
    /// An argument or a setting makes no sense.
    InvalidInput,
    /// Bytes from outside could not be understood.
    Decode,
    /// What was asked for is not there.
    NotFound,
    /// This backend has no such ability; `docs/guarantees.md` lists which has which.
    Unsupported,
    /// Credentials were refused, or they do not allow this.
    Denied,
    /// The thing was closed or has ended.
    Closed,
    /// Something that should not happen did.
    Internal,
}

impl Error {
    /// An error of `kind`; `context` says what was being done and with what.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// The same error, with `cause` kept as its [`source`](std::error::Error::source).
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.0.source = Some(cause.into());
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying the same again later may succeed with nothing changed by a person.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Full
        )
    }

    /// Whether the session it came from is of no further use: a new connection is needed.
    pub fn is_disconnect(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Connection | ErrorKind::Timeout)
    }

    /// Whether an argument or a setting was at fault.
    pub fn is_invalid_input(&self) -> bool {
        self.0.kind == ErrorKind::InvalidInput
    }
}

/// Shorthands for the kinds that this crate makes itself in many places.
impl Error {
    pub(crate) fn invalid(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, context)
    }

    pub(crate) fn timeout(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Timeout, context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|cause| cause as _)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

/// Shows an error with its whole chain of causes in one line, `outer: inner: innermost`.
///
/// A cause whose text the line already ends with is left out, since many libraries repeat it. At most
/// [`MAX_CAUSES`] are looked at: whether a chain ends is up to whoever wrote the error.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

/// The most causes that are shown: more than any honest error has.
const MAX_CAUSES: usize = 32;

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut cause = self.0.source();
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { break };
            let text = error.to_string();
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_shows_every_cause_once() {
        let io = std::io::Error::other("socket closed");
        let error = Error::new(ErrorKind::Connection, "fetching from redis").caused_by(io);
        assert_eq!(Chain(&error).to_string(), "fetching from redis: socket closed");
        let outer = Error::new(ErrorKind::Internal, "worker stopped: socket closed")
            .caused_by(Error::new(ErrorKind::Connection, "socket closed"));
        assert_eq!(Chain(&outer).to_string(), "worker stopped: socket closed");
    }

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
