//! The backend **redis**: jobs on a Redis or Valkey server, as Sidekiq or Resque keep them ([`Layout`]), for many workers
//! on many machines.
//!
//! | promise | |
//! |---|---|
//! | layout | Sidekiq's or Resque's keys and payloads, byte for byte: their producers, workers and pages work on the same server unchanged |
//! | durable | as the server is: what `appendonly yes` with `appendfsync always` acknowledges survives it; a failover loses what the replica had not got |
//! | order | within a queue as its list: first in, first out; one handed back with no delay goes to the front |
//! | queues | strictly in the order of the request; without any, all that there are, by their names, in Resque's layout `priority`, `main` and `stats` before others |
//! | bounds | dead jobs and payload sizes, by [`RedisBuilder`]; jobs, by the server's memory |
//! | leases | run out by the server's clock; any live worker puts their jobs back to the front; what is settled after that changes nothing |
//! | unique keys | decided in the step that takes the job in, and kept up by our own workers |
//! | poison | a job whose lease has run out three times goes to the dead ones ([`crash_limit`](RedisBuilder::crash_limit)) |
//! | waking | at once, by blocking commands; for what another process made wait, within a second of its time; for the first job of a queue that was neither named nor there, and is not `default`, within a second |
//!
//! A job is moved from its queue into `tidegate:held` and given a lease in one step, so that whatever dies, it is in
//! one of the two. Settlements and the next fetch share one exchange. The server must be Redis 6.2 or newer, or Valkey,
//! and no cluster.

// `exchange` is what is said to the server and what it answers; `link` is how; `source` is a worker's session; `watch`
// waits; `presence` tells Sidekiq's pages of a worker; `held` is what is in hand; `due` moves what has waited; `look` and `change` are for people.

mod change;
mod clock;
pub(crate) mod codec;
mod config;
mod due;
mod enqueue;
mod exchange;
mod failure;
mod held;
mod keys;
mod layout;
mod link;
mod look;
mod parked;
mod plain;
mod presence;
mod renew;
mod reschedule;
mod roll;
mod sentinel;
mod source;
mod watch;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use async_trait::async_trait;
use tokio::sync::Notify;

use self::codec::resque::Style;
use self::codec::sidekiq::Times;
pub use self::config::RedisBuilder;
use self::enqueue::Ids;
use self::exchange::Terms;
use self::held::Hands;
use self::keys::Keys;
pub use self::layout::{Fetch, Layout};
use self::link::{Dial, Lane};
use self::plain::{Plain, PlainSession};
use self::renew::Renewer;
use self::roll::Roll;
use self::source::Session;
use super::Backend;
use crate::enqueue::Enqueue;
use crate::error::Error;
use crate::lease::Renew;
use crate::source::{Connect, Intake, RetryFormula, Source};

/// The schemes of its URLs.
pub(super) const SCHEMES: [&str; 5] = [SCHEME, "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel"];

const SCHEME: &str = "redis";

/// Jobs on a server.
///
/// A handle: clones are cheap and are the same. Workers make their own connections from it ([`intake`](Self::intake));
/// what producers and people ask goes over one that is made when it is needed and made anew after it was lost. Nothing
/// runs in the background, but for what the driver needs to read from a connection while there is one.
///
/// All verbs must be called within a tokio runtime. Dropping one of their futures does not undo what it has begun.
///
/// ```no_run
/// # async fn example() -> Result<(), tidegate::Error> {
/// use tidegate::backend::redis::Redis;
/// use tidegate::{Context, Enqueue, NewJob, Registry, Shutdown, Worker};
///
/// let jobs = Redis::open("redis://127.0.0.1/")?;
/// jobs.enqueue(vec![NewJob::json("HardJob", &(1, "two"))?]).await?;
/// let registry = Registry::new().handle("HardJob", |(number, text): (i64, String), _: Context| async move {
///     println!("{number} {text}");
/// });
/// Worker::builder(jobs.intake(), registry).build()?.run(Shutdown::new()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

/// What all clones of a handle share.
struct Shared {
    dial: Arc<Dial>,
    /// For producers and people.
    lane: Lane,
    layout: Layout,
    fetch: Fetch,
    plain: Plain,
    keys: Arc<Keys>,
    /// At which place of the failed jobs the next turn goes on that puts some back.
    rescheduled_to: AtomicUsize,
    /// Who we are to those who look at the list of workers.
    roll: Roll,
    hands: Hands,
    /// A renewal, or connecting for one, was begun and has not been answered. It may never be.
    renewal_waits: AtomicBool,
    /// Rung when something was enqueued through this handle, which may be due sooner than what is waited for.
    bell: Notify,
    terms: Terms,
    crash_limit: u32,
    max_payload_bytes: usize,
    times: Times,
    style: Style,
    ids: Ids,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("target", &self.0.dial.target).finish_non_exhaustive()
    }
}

impl Redis {
    /// The handle of a server, with the defaults of [`RedisBuilder`]. Nothing is connected yet.
    ///
    /// # Errors
    /// As [`RedisBuilder::open`].
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::builder(url).open()
    }

    /// A handle with settings of your own. The URL is one of these, where all in brackets may be left out:
    ///
    /// - `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`
    /// - `redis+unix:///PATH[?db=DATABASE&user=USER&pass=PASSWORD]`
    /// - `redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/MASTER[/DATABASE]`: the sentinels at these hosts
    ///   (port 26379 unless said otherwise) are asked for the server that they call `MASTER`, whenever a connection is
    ///   made, and it is asked whether it is one. The user and the password are the server's; those of the sentinels,
    ///   if they want any, are `?sentinel_user=USER&sentinel_pass=PASSWORD`. A master that was replaced takes what workers
    ///   say until it is told so, which may be seconds, and all of that is undone: jobs run again. With
    ///   `min-replicas-to-write 1` and a small `min-replicas-max-lag` it stops sooner.
    ///
    /// With `rediss` instead of `redis`, it is spoken in TLS, with the sentinels too, and the certificate must be good
    /// for the host: see [`ca_file`](RedisBuilder::ca_file).
    ///
    /// The query may also say `layout=resque` (or `sidekiq`), `prefix=PREFIX`, `fetch=plain-pop` (or `reliable`),
    /// `times=seconds` (or `milliseconds`, see [`times_in_seconds`](RedisBuilder::times_in_seconds)) and `style=node-resque`
    /// (or `resque`, see [`node_resque_style`](RedisBuilder::node_resque_style)), and in whole numbers `lease_ttl_ms`,
    /// `run_on_ms` and `crash_limit`, which are those of the builder.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    fn from_parts(builder: &RedisBuilder, dial: Dial) -> Self {
        Self(Arc::new(Shared {
            dial: Arc::new(dial),
            lane: Lane::default(),
            layout: builder.layout,
            fetch: builder.fetch,
            plain: Plain::default(),
            keys: Arc::new(builder.keys()),
            rescheduled_to: AtomicUsize::new(0),
            roll: Roll::default(),
            hands: Hands::new(RandomState::new().hash_one(0)),
            renewal_waits: AtomicBool::new(false),
            bell: Notify::new(),
            terms: builder.terms(),
            crash_limit: builder.crash_limit,
            max_payload_bytes: builder.max_payload_bytes,
            times: builder.times,
            style: builder.style,
            ids: Ids::default(),
        }))
    }

    #[cfg(test)]
    fn keys(&self) -> &Keys {
        &self.0.keys
    }

    #[cfg(test)]
    fn dial(&self) -> &Dial {
        &self.0.dial
    }

    /// What a worker needs to take jobs from here: two connections, and one for each queue that it waits for. In Sidekiq's
    /// layout failed jobs wait as [`RetryPolicy::sidekiq`](crate::RetryPolicy::sidekiq) has it, unless the worker or the
    /// kind is given a policy.
    pub fn intake(&self) -> Intake {
        let mut intake = Intake::new(Arc::new(self.clone()));
        if self.0.layout == Layout::Sidekiq {
            intake = intake.retried_by(RetryFormula::Sidekiq);
        }
        match self.0.fetch {
            Fetch::Reliable => intake.renewed_by(Arc::new(self.clone())),
            Fetch::PlainPop => intake,
        }
    }

    /// All its verbs. With plain pop these are few: taking, enqueueing, and what the list of workers shows.
    pub fn backend(&self) -> Backend {
        let mut backend = match self.0.fetch {
            Fetch::Reliable => Backend::complete(SCHEME, self.intake(), Arc::new(self.clone())),
            Fetch::PlainPop => {
                let enqueue: Arc<dyn Enqueue> = Arc::new(self.clone());
                Backend { enqueue: Some(enqueue), ..Backend::new(SCHEME, self.intake()) }
            }
        };
        backend.announce = Some(Arc::new(self.clone()));
        if self.0.layout == Layout::Resque {
            backend.reschedule = Some(Arc::new(self.clone()));
        }
        backend
    }
}

#[async_trait]
impl Connect<dyn Source> for Redis {
    async fn connect(&self) -> Result<Arc<dyn Source>, Error> {
        Ok(match self.0.fetch {
            Fetch::Reliable => Arc::new(Session::connect(self.0.clone()).await?),
            Fetch::PlainPop => Arc::new(PlainSession::connect(self.0.clone()).await?),
        })
    }

    fn target(&self) -> String {
        self.0.dial.target.clone()
    }
}

#[async_trait]
impl Connect<dyn Renew> for Redis {
    async fn connect(&self) -> Result<Arc<dyn Renew>, Error> {
        Ok(Arc::new(Renewer::connect(self.0.clone()).await?))
    }

    fn target(&self) -> String {
        self.0.dial.target.clone()
    }
}
