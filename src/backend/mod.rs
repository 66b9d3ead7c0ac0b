//! The edges: where jobs are kept. [`open`] turns a URL into a [`Backend`], which says what it can do.
//!
//! A backend is a bundle of verbs, each a trait in the file of its own rule. Not every store can do all;
//! what is missing is refused with an error that names the backend and the verb, never done by halves.

pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::announce::Announce;
use crate::enqueue::Enqueue;
use crate::error::{Error, ErrorKind};
use crate::inspect::{Inspect, Manage};
use crate::lease::Reclaim;
use crate::reschedule::Reschedule;
use crate::source::{Connect, Intake};
use memory::Memory;

/// Where jobs are kept, as the verbs that it has.
///
/// A verb that is `None` is one that this backend can't do. The method of the same name gives the verb or
/// says so in an error, for callers that can't do without.
///
/// Cheap to clone: all clones are the same store. Not a connection: `intake` makes these as needed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tidegate::Error> {
/// use tidegate::{NewJob, backend};
///
/// let backend = backend::open("memory:")?;
/// backend.enqueue()?.enqueue(vec![NewJob::new("greet", "Ada")]).await?;
/// assert_eq!(backend.inspect()?.counts().await?.ready, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Backend {
    /// What it is called in errors and logs: the scheme of its URL.
    pub name: &'static str,
    /// What a worker needs: sources, and what renews their leases.
    pub intake: Intake,
    /// Takes jobs from producers.
    pub enqueue: Option<Arc<dyn Enqueue>>,
    /// Takes back the jobs of workers that died. `None` where leases end by themselves, or there are none.
    pub reclaim: Option<Arc<dyn Reclaim>>,
    /// Shows what it holds.
    pub inspect: Option<Arc<dyn Inspect>>,
    /// Changes what it holds.
    pub manage: Option<Arc<dyn Manage>>,
    /// Puts failed jobs back from time to time; see [`Rescheduler`](crate::service::Rescheduler). `None` where retries see
    /// to that.
    pub reschedule: Option<Arc<dyn Reschedule>>,
    /// Tells dashboards of the store's own world of a worker; see [`Presence`](crate::service::Presence). `None` where
    /// there are none.
    pub announce: Option<Arc<dyn Connect<dyn Announce>>>,
}

impl Backend {
    /// A backend from which jobs can be taken, and that can do nothing else yet: set the other verbs' fields.
    pub fn new(name: &'static str, intake: Intake) -> Self {
        Self {
            name,
            intake,
            enqueue: None,
            reclaim: None,
            inspect: None,
            manage: None,
            reschedule: None,
            announce: None,
        }
    }

    /// A backend that has all verbs.
    fn complete<T>(name: &'static str, intake: Intake, store: Arc<T>) -> Self
    where
        T: Enqueue + Reclaim + Inspect + Manage,
    {
        Self {
            enqueue: Some(store.clone()),
            reclaim: Some(store.clone()),
            inspect: Some(store.clone()),
            manage: Some(store),
            ..Self::new(name, intake)
        }
    }

    /// The verb of the producer.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when this backend does not take jobs.
    pub fn enqueue(&self) -> Result<&Arc<dyn Enqueue>, Error> {
        self.verb(self.enqueue.as_ref(), "enqueue jobs")
    }

    /// The verb of the rescuer.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when this backend can't take jobs back.
    pub fn reclaim(&self) -> Result<&Arc<dyn Reclaim>, Error> {
        self.verb(self.reclaim.as_ref(), "reclaim jobs whose lease has run out")
    }

    /// Looking at what it holds.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when this backend does not show it.
    pub fn inspect(&self) -> Result<&Arc<dyn Inspect>, Error> {
        self.verb(self.inspect.as_ref(), "inspect what it holds")
    }

    /// Changing what it holds.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when this backend does not allow it.
    pub fn manage(&self) -> Result<&Arc<dyn Manage>, Error> {
        self.verb(self.manage.as_ref(), "manage (cancel, requeue, delete) what it holds")
    }

    /// Putting failed jobs back.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when this backend does not do that.
    pub fn reschedule(&self) -> Result<&Arc<dyn Reschedule>, Error> {
        self.verb(self.reschedule.as_ref(), "put failed jobs back from time to time")
    }

    fn verb<'a, T: ?Sized>(&self, verb: Option<&'a Arc<T>>, what: &str) -> Result<&'a Arc<T>, Error> {
        verb.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("the backend {} can't {what}", self.name))
        })
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .field("intake", &self.intake)
            .field("enqueues", &self.enqueue.is_some())
            .field("reclaims", &self.reclaim.is_some())
            .field("inspects", &self.inspect.is_some())
            .field("manages", &self.manage.is_some())
            .field("reschedules", &self.reschedule.is_some())
            .field("announces", &self.announce.is_some())
            .finish()
    }
}

impl From<&Backend> for Intake {
    fn from(backend: &Backend) -> Self {
        backend.intake.clone()
    }
}

impl From<Backend> for Intake {
    fn from(backend: Backend) -> Self {
        backend.intake
    }
}

/// The schemes that this build knows, with the form of their URLs.
const SCHEMES: &[(&str, &str)] = &[
    (memory::SCHEME, "memory:"),
    #[cfg(feature = "redis")]
    ("redis", "redis://HOST:PORT/DATABASE"),
    #[cfg(feature = "redis")]
    ("rediss", "rediss://HOST:PORT/DATABASE"),
    #[cfg(feature = "redis")]
    ("redis+unix", "redis+unix:///PATH"),
    #[cfg(feature = "redis")]
    ("redis+sentinel", "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE"),
    #[cfg(feature = "sqlite")]
    (sqlite::SCHEME, "sqlite:PATH"),
];

/// Opens the backend that `url` names.
///
/// | URL | backend |
/// |---|---|
/// | `memory:` | a new, empty [`Memory`] with its defaults; each call makes another |
/// | `redis://HOST:PORT/DATABASE` | the jobs on this Redis or Valkey server, in Sidekiq's layout, or with `?layout=resque` in Resque's (feature `redis`); `rediss:` with TLS, `redis+unix:///PATH` by a socket, `redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE` by asking sentinels |
/// | `sqlite:PATH` | the jobs in this file, which is made if it is not there (feature `sqlite`); `sqlite:///PATH` too |
///
/// Opening connects to no server yet: that one can't be reached is found when the backend is used. A file is opened.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) when this build knows no such scheme (the error lists those
/// that it knows), or when the rest of the URL makes no sense for it. The error never repeats the rest of
/// the URL, where credentials may be.
pub fn open(url: &str) -> Result<Backend, Error> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(Error::invalid(format!("a backend's URL begins with a scheme and a colon; {}", known())));
    };
    match scheme {
        memory::SCHEME => {
            if !matches!(rest, "" | "//") {
                return Err(Error::invalid(
                    "nothing may follow `memory:` in a backend's URL: it has no place and no options",
                ));
            }
            Ok(Memory::new().backend())
        }
        #[cfg(feature = "redis")]
        _ if redis::SCHEMES.contains(&scheme) => Ok(redis::Redis::open(url)?.backend()),
        #[cfg(feature = "sqlite")]
        sqlite::SCHEME => {
            let path = path_in(rest).ok_or_else(|| {
                Error::invalid(
                    "the path of a file must follow `sqlite:` in a backend's URL: sqlite:jobs.sqlite",
                )
            })?;
            Ok(sqlite::Sqlite::open(path)?.backend())
        }
        _ => Err(Error::invalid(format!("{scheme:?} is no backend that this build knows; {}", known()))),
    }
}

/// The file that `url` names, if it is one of the backend `sqlite`.
#[cfg(feature = "cli")]
pub(crate) fn sqlite_path(url: &str) -> Option<&str> {
    url.split_once(':').filter(|(scheme, _)| *scheme == sqlite::SCHEME).and_then(|(_, rest)| path_in(rest))
}

/// What follows `sqlite:` is a path; of `sqlite:///PATH` the first two slashes are none of it. (What SQLite takes for
/// a database in memory is none either: it would be another one for each connection.)
#[cfg(feature = "sqlite")]
fn path_in(rest: &str) -> Option<&str> {
    let path = rest.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(rest);
    (!path.is_empty() && !path.starts_with("//") && path != ":memory:").then_some(path)
}

fn known() -> String {
    let forms: Vec<&str> = SCHEMES.iter().map(|(_, form)| *form).collect();
    format!("it knows: {}", forms.join(", "))
}

/// The longest lease: a year. A lease is there to run out.
pub(crate) const MAX_LEASE_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The most of how long jobs run on in an outage: what is with a worker that is cut off is to come back some day.
#[cfg(any(feature = "redis", feature = "cli"))]
pub(crate) const MAX_RUN_ON: Duration = Duration::from_secs(24 * 3600);

/// Checks what every backend with leases is told about them.
fn check_leases(lease_ttl: Duration, crash_limit: u32) -> Result<(), Error> {
    if lease_ttl.is_zero() || lease_ttl > MAX_LEASE_TTL {
        return Err(Error::invalid(format!(
            "lease_ttl is {lease_ttl:?}: it must be above zero and at most a year"
        )));
    }
    if crash_limit == 0 {
        return Err(Error::invalid("crash_limit is 0: it must be at least 1"));
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the edge, where the clock is read: the stores are told the time"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
