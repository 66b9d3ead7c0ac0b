//! Sessions that are counted: [`Maker`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use tidegate::{
    Connect, Delivery, Error, ErrorKind, FetchRequest, Renew, Renewal, Settled, Source, Stale, Tag,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Makes sessions of one source (or renewer) and counts them: those that were made, those that are alive,
/// and the attempts. Fails by script.
pub(crate) struct Maker<T: ?Sized> {
    inner: Arc<T>,
    script: Mutex<VecDeque<ErrorKind>>,
    attempts: Mutex<Vec<Instant>>,
    made: AtomicUsize,
    sessions: Mutex<Vec<Weak<Session<T>>>>,
    connecting: AtomicUsize,
    most_connecting: AtomicUsize,
}

/// One session: passes all on.
pub(crate) struct Session<T: ?Sized>(Arc<T>);

impl<T: ?Sized + Send + Sync + 'static> Maker<T> {
    pub(crate) fn of(inner: Arc<T>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            script: Mutex::default(),
            attempts: Mutex::default(),
            made: AtomicUsize::new(0),
            sessions: Mutex::default(),
            connecting: AtomicUsize::new(0),
            most_connecting: AtomicUsize::new(0),
        })
    }

    /// The next attempts fail so, one each.
    pub(crate) fn fail_next(&self, errors: impl IntoIterator<Item = ErrorKind>) {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).extend(errors);
    }

    /// When each attempt to make a session began.
    pub(crate) fn attempts(&self) -> Vec<Instant> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many sessions were made.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// How many of them are alive.
    pub(crate) fn alive(&self) -> usize {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().filter(|session| session.strong_count() > 0).count()
    }

    /// The most attempts that were under way at once.
    pub(crate) fn most_connecting(&self) -> usize {
        self.most_connecting.load(Ordering::SeqCst)
    }

    async fn make(&self) -> Result<Arc<Session<T>>, Error> {
        let now = self.connecting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_connecting.fetch_max(now, Ordering::SeqCst);
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        tokio::task::yield_now().await; // a connection is never made within one poll
        self.connecting.fetch_sub(1, Ordering::SeqCst);
        if let Some(kind) = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            return Err(Error::new(kind, "connecting failed by script"));
        }
        self.made.fetch_add(1, Ordering::SeqCst);
        let session = Arc::new(Session(self.inner.clone()));
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        Ok(session)
    }
}

#[async_trait]
impl Connect<dyn Source> for Maker<dyn Source> {
    async fn connect(&self) -> Result<Arc<dyn Source>, Error> {
        Ok(self.make().await?)
    }

    fn target(&self) -> String {
        "a test".to_owned()
    }
}

#[async_trait]
impl Connect<dyn Renew> for Maker<dyn Renew> {
    async fn connect(&self) -> Result<Arc<dyn Renew>, Error> {
        Ok(self.make().await?)
    }

    fn target(&self) -> String {
        "a test".to_owned()
    }
}

#[async_trait]
impl Source for Session<dyn Source> {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.0.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.0.settle(settled).await
    }
}

#[async_trait]
impl Renew for Session<dyn Renew> {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        self.0.renew(tags).await
    }
}
