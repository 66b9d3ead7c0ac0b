//! What is to be done: [`Job`] and the names that it goes by.
//!
//! Plain data. A job does not change once it has been enqueued (but for [`Clash::ReplacePayload`](crate::Clash), which
//! makes a waiting one anew); what changes from one hand-over to the next
//! (the attempt, the lease) stands in [`Delivery`](crate::Delivery).

use std::borrow::Borrow;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use compact_str::CompactString;

/// The identity of a job within its source.
///
/// Opaque text, chosen by whoever enqueued the job or by the backend: 24 hexadecimal digits from Sidekiq, say. Up to 24 bytes are kept in place without allocation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(CompactString);

impl JobId {
    /// An id from its text. No form is required: ids come from outside.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(CompactString::new(text))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An immutable name, compared by its text. Up to 24 bytes are kept in place: no allocation, and a clone is a copy.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(CompactString);

        impl $name {
            /// A name from its text.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(CompactString::new(text))
            }

            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(CompactString::from(text))
            }
        }

        impl From<&$name> for $name {
            fn from(name: &$name) -> Self {
                name.clone()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// What sort of job it is: the name under which its handler is registered.
    Kind
}

name! {
    /// The name of the line that a job waits in.
    Queue
}

impl Queue {
    /// The queue that a job goes to when none is named, `default`, as in Sidekiq and River.
    pub const DEFAULT: &'static str = "default";
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

/// The handle of one [`Delivery`](crate::Delivery), by which its source knows it again.
///
/// Three numbers whose meaning is the source's own. A tag of a dead session, or with an old fencing token,
/// is stale: settling it changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Which session handed it out.
    pub session: u64,
    /// Which of the session's deliveries, or which row.
    pub key: u64,
    /// The fencing token: grows with each hand-over of the same job.
    pub token: u64,
}

/// One thing to be done, as it was enqueued.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Job {
    /// Its identity within the source.
    pub id: JobId,
    /// Which handler runs it.
    pub kind: Kind,
    /// The line that it waits in.
    pub queue: Queue,
    /// Its arguments, as bytes: they need not be text, and they are hostile until decoded.
    pub payload: Bytes,
    /// Greater runs sooner within its queue. Default 0.
    pub priority: i16,
    /// When the producer handed it over, by the wall clock (shown to people, used for the age limit).
    pub enqueued_at: SystemTime,
    /// How many attempts it may have in all; `None` leaves it to the worker's
    /// [`RetryPolicy`](crate::RetryPolicy).
    pub max_attempts: Option<u32>,
    /// How long one attempt may take; `None` leaves it to the kind's or the worker's setting.
    pub timeout: Option<Duration>,
}

impl Job {
    /// A job with the given identity, kind and payload, in the default queue, enqueued at `enqueued_at`.
    pub fn new(id: JobId, kind: Kind, payload: Bytes, enqueued_at: SystemTime) -> Self {
        Self {
            id,
            kind,
            queue: Queue::default(),
            payload,
            priority: 0,
            enqueued_at,
            max_attempts: None,
            timeout: None,
        }
    }
}
