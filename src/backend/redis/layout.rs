//! Whose layout it is: which functions of the codec read and write it.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::codec::resque::{self, Style};
use super::codec::sidekiq::{self, Times};
use super::codec::{Failure, Read};
use super::parked::Parked;
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::job::{JobId, Queue};

/// Whose keys and payloads jobs have on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Those of Sidekiq: its producers, its workers and its Web UI work on the same server unchanged.
    #[default]
    Sidekiq,
    /// Those of Resque, which node-resque and apisonator share. Jobs have no identity, no time and no count of attempts
    /// there: two jobs of the same bytes are the same to it, and what is counted of them is counted beside them, for
    /// three days. Jobs wait for a time as those of node-resque do, to the second. Priorities, unique keys, timeouts
    /// and numbers of attempts are refused. Dead jobs are the list `failed`, which has no bounds unless
    /// [`max_dead`](super::RedisBuilder::max_dead) sets one.
    ///
    /// With a [`Presence`](crate::service::Presence) a worker stands in the list of workers while it runs, always as
    /// idle: what a busy one does is entered there by its name, of which it has one, and it does many things at once.
    /// And Resque counts a job that is entered there as failed when the worker is gone, while it has long been with
    /// another.
    Resque,
}

/// How jobs are taken, named for what it promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fetch {
    /// A job is moved from its queue into the jobs in flight, under a lease with a fencing token, in one step of the server:
    /// a script. Whatever dies, another worker runs it again.
    #[default]
    Reliable,
    /// A job is popped, and gone from the server before it runs, as with Resque's and apisonator's own workers: with the
    /// commands alone that apisonator's access list allows, for servers that allow no scripts. In Resque's layout only.
    ///
    /// **A crash of the process loses what is in flight**, and so does a connection that is lost while the answer to a
    /// pop is on its way: the server has given the job away, and nobody has it. Nobody sees that it happened. A stop loses
    /// nothing, and what a server refuses is tried again. When the connection is lost while something is written, it may
    /// be there twice: a job that was handed back, an entry of a failed one.
    ///
    /// There are no leases, no delays, no cancellation, and nothing is shown: whoever asks is refused. A job that is to be
    /// tried again later goes to the list of failed ones at once, from where a person or a
    /// [`Rescheduler`](crate::service::Rescheduler) brings it back; its attempts are counted on. One that is put off goes
    /// to the back of its queue, and no job is taken for 50 ms then, so that it does not go round and round.
    PlainPop,
}

/// What stands somewhere, understood.
pub(super) struct Stood {
    /// As it stood in its queue.
    pub(super) raw: Bytes,
    /// The queue that it is of, if that is not said by where it stands.
    pub(super) queue: Option<Queue>,
    /// What is known beside it of its attempts.
    pub(super) attempts: u32,
    pub(super) last_error: Option<Arc<str>>,
    pub(super) failed_at: Option<SystemTime>,
}

/// What stands for a job where it waits or is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Queue,
    Schedule,
    Retry,
    Dead,
    Held,
}

impl Layout {
    /// What it is called in errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sidekiq => "Sidekiq",
            Self::Resque => "Resque",
        }
    }

    /// What its keys begin with, unless it is said.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Sidekiq => "",
            Self::Resque => "resque:",
        }
    }

    /// Understands what stood in this queue.
    pub(super) fn read(self, raw: &Bytes, queue: &Queue) -> Result<Read, Error> {
        match self {
            Self::Sidekiq => sidekiq::read(raw),
            Self::Resque => resque::read(raw, queue),
        }
    }

    /// Unwraps what stands at a place other than a queue.
    pub(super) fn unwrap(self, place: Place, value: &Bytes) -> Stood {
        let plain = |queue| {
            let raw = value.clone();
            Stood { raw, queue, attempts: 0, last_error: None, failed_at: None }
        };
        match (self, place) {
            (Self::Sidekiq, _) | (Self::Resque, Place::Queue | Place::Held) => plain(None),
            (Self::Resque, Place::Schedule) => plain(resque::queue_of(value)),
            (Self::Resque, Place::Retry) => match Parked::read(value) {
                Some(Parked { attempts, queue, reason, raw, .. }) => {
                    let last_error = Some(reason).filter(|reason| !reason.is_empty());
                    Stood { raw, queue: Some(queue), attempts, last_error, failed_at: None }
                }
                None => plain(None),
            },
            (Self::Resque, Place::Dead) => match resque::read_failed(value) {
                Ok(entry) => Stood {
                    raw: entry.payload,
                    queue: Some(entry.queue),
                    attempts: 0,
                    last_error: entry.error,
                    failed_at: entry.failed_at,
                },
                Err(_) => plain(None),
            },
        }
    }

    /// A job of our own as it goes into a queue, or to wait if it is `scheduled`.
    pub(super) fn write(
        self,
        job: &NewJob,
        id: &JobId,
        now: SystemTime,
        times: Times,
        style: Style,
        scheduled: bool,
    ) -> Result<Vec<u8>, Error> {
        match self {
            Self::Sidekiq => Ok(sidekiq::write(job, id, now, times, scheduled)),
            // What waits has to say for which queue, as in node-resque.
            Self::Resque => resque::write(job, if scheduled { Style::NodeResque } else { style }),
        }
    }

    /// What is to stand in its queue for what has waited at `place`: with its queue and its failed attempts.
    pub(super) fn due(
        self,
        place: Place,
        value: &Bytes,
        now: SystemTime,
        times: Times,
    ) -> Result<(Queue, Vec<u8>, u32), Error> {
        match self {
            Self::Sidekiq => sidekiq::enqueued(value, now, times).map(|(queue, raw)| (queue, raw, 0)),
            Self::Resque => {
                let stood = self.unwrap(place, value);
                let queue = stood.queue.ok_or_else(|| Error::invalid("it names no queue"))?;
                Ok((queue, stood.raw.to_vec(), stood.attempts))
            }
        }
    }

    /// What is to stand in its queue for a dead job that begins anew.
    pub(super) fn revived(
        self,
        value: &Bytes,
        now: SystemTime,
        times: Times,
    ) -> Result<(Queue, Vec<u8>), Error> {
        match self {
            Self::Sidekiq => sidekiq::revived(value, now, times),
            Self::Resque => self.due(Place::Dead, value, now, times).map(|(queue, raw, _)| (queue, raw)),
        }
    }

    /// How a job is kept with the dead ones that `worker` gave up.
    pub(super) fn dead(self, raw: &[u8], worker: &str, failure: &Failure<'_>) -> Vec<u8> {
        match self {
            Self::Sidekiq => sidekiq::dead(raw, failure),
            Self::Resque => {
                let unknown = Queue::default();
                resque::failed_entry(raw, failure.queue.unwrap_or(&unknown), worker, failure)
            }
        }
    }

    /// How what can't be understood is kept with the dead ones.
    pub(super) fn unreadable(self, raw: &[u8], queue: &Queue, worker: &str, now: SystemTime) -> Vec<u8> {
        match self {
            Self::Sidekiq => raw.to_vec(),
            Self::Resque => {
                let reason = "this is no job in the layout of Resque";
                let times = Times::default();
                self.dead(raw, worker, &Failure { reason, now, attempt: 1, queue: Some(queue), times })
            }
        }
    }
}
