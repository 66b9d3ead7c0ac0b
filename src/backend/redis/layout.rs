//! Whose layout it is: which functions of the codec read and write it.

use std::time::SystemTime;

use bytes::Bytes;

use super::codec::sidekiq::{self, Times};
use super::codec::{Failure, Read};
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::job::{JobId, Queue};

/// Whose keys and payloads jobs have on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Those of Sidekiq.
    #[default]
    Sidekiq,
}

impl Layout {
    /// What it is called in errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sidekiq => "Sidekiq",
        }
    }

    /// Understands what stood in this queue.
    pub(super) fn read(self, raw: &Bytes, _queue: &Queue) -> Result<Read, Error> {
        match self {
            Self::Sidekiq => sidekiq::read(raw),
        }
    }

    /// A job of our own as it goes into a queue, or to wait if it is `scheduled`.
    pub(super) fn write(
        self,
        job: &NewJob,
        id: &JobId,
        now: SystemTime,
        times: Times,
        scheduled: bool,
    ) -> Result<Vec<u8>, Error> {
        match self {
            Self::Sidekiq => Ok(sidekiq::write(job, id, now, times, scheduled)),
        }
    }

    /// How a job is kept with the dead ones.
    pub(super) fn dead(self, raw: &[u8], failure: &Failure<'_>) -> Vec<u8> {
        match self {
            Self::Sidekiq => sidekiq::dead(raw, failure),
        }
    }

    /// How what can't be understood is kept with the dead ones.
    pub(super) fn unreadable(self, raw: &[u8]) -> Vec<u8> {
        match self {
            Self::Sidekiq => raw.to_vec(),
        }
    }
}
