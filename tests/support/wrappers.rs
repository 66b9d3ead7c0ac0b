//! Sources that wrap sources, each with one fault of its own.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate::{Delivery, Error, ErrorKind, FetchRequest, Renew, Renewal, Settled, Source, Stale, Tag};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::signals::Gate;

/// Holds each batch of settlements back, at a gate or for a time, before it passes it on.
pub(crate) struct SlowToSettle {
    inner: Arc<dyn Source>,
    until: Until,
    waiting: AtomicUsize,
}

enum Until {
    Gate(Arc<Gate>),
    Time(Duration),
}

impl SlowToSettle {
    /// Each batch passes the gate.
    pub(crate) fn at(gate: &Arc<Gate>, inner: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { inner, until: Until::Gate(gate.clone()), waiting: AtomicUsize::new(0) })
    }

    /// Each batch takes this long on tokio's clock.
    pub(crate) fn by(time: Duration, inner: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { inner, until: Until::Time(time), waiting: AtomicUsize::new(0) })
    }

    /// How many settlements wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Source for SlowToSettle {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.waiting.fetch_add(settled.len(), Ordering::SeqCst);
        match &self.until {
            Until::Gate(gate) => gate.pass().await,
            Until::Time(time) => tokio::time::sleep(*time).await,
        }
        self.waiting.fetch_sub(settled.len(), Ordering::SeqCst);
        self.inner.settle(settled).await
    }
}

type SettleScript = Box<dyn FnMut(usize, &[Settled]) -> Option<ErrorKind> + Send>;
type FetchScript = Box<dyn FnMut(usize) -> Option<ErrorKind> + Send>;

/// Fails by script: a function is told which call it is, from 0, and may name an error.
pub(crate) struct Flaky {
    inner: Arc<dyn Source>,
    fetches: Mutex<(usize, FetchScript)>,
    settles: Mutex<(usize, SettleScript)>,
    after_acting: AtomicBool,
}

impl Flaky {
    pub(crate) fn around(inner: Arc<dyn Source>) -> Self {
        Self {
            inner,
            fetches: Mutex::new((0, Box::new(|_| None))),
            settles: Mutex::new((0, Box::new(|_, _| None))),
            after_acting: AtomicBool::new(false),
        }
    }

    pub(crate) fn on_fetch(self, script: impl FnMut(usize) -> Option<ErrorKind> + Send + 'static) -> Self {
        Self { fetches: Mutex::new((0, Box::new(script))), ..self }
    }

    pub(crate) fn on_settle(
        self,
        script: impl FnMut(usize, &[Settled]) -> Option<ErrorKind> + Send + 'static,
    ) -> Self {
        Self { settles: Mutex::new((0, Box::new(script))), ..self }
    }

    /// A settlement fails after it was applied: only the answer is lost.
    pub(crate) fn after_acting(self) -> Self {
        Self { after_acting: AtomicBool::new(true), ..self }
    }

    pub(crate) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    /// How often it was told to settle.
    pub(crate) fn settles(&self) -> usize {
        self.settles.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// How often it was asked for jobs.
    pub(crate) fn fetches(&self) -> usize {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

#[async_trait]
impl Source for Flaky {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let error = {
            let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            let call = fetches.0;
            fetches.0 += 1;
            (fetches.1)(call)
        };
        match error {
            Some(kind) => Err(Error::new(kind, "fetching failed by script")),
            None => self.inner.fetch(wanted, stop).await,
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let error = {
            let mut settles = self.settles.lock().unwrap_or_else(PoisonError::into_inner);
            let call = settles.0;
            settles.0 += 1;
            (settles.1)(call, settled)
        };
        match error {
            Some(kind) => {
                if self.after_acting.load(Ordering::SeqCst) {
                    self.inner.settle(settled).await?;
                }
                Err(Error::new(kind, "settling failed by script"))
            }
            None => self.inner.settle(settled).await,
        }
    }
}

/// Stops answering while it is told to: calls then wait for ever, deaf to `stop`.
pub(crate) struct Hanging {
    inner: Arc<dyn Source>,
    fetches: AtomicBool,
    settles: AtomicBool,
    hung: AtomicUsize,
}

impl Hanging {
    pub(crate) fn around(inner: Arc<dyn Source>) -> Arc<Self> {
        let (fetches, settles) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { inner, fetches, settles, hung: AtomicUsize::new(0) })
    }

    pub(crate) fn hang_fetches(&self, hang: bool) {
        self.fetches.store(hang, Ordering::SeqCst);
    }

    pub(crate) fn hang_settles(&self, hang: bool) {
        self.settles.store(hang, Ordering::SeqCst);
    }

    /// How many calls were left without an answer.
    pub(crate) fn hung(&self) -> usize {
        self.hung.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Source for Hanging {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        if self.fetches.load(Ordering::SeqCst) {
            self.hung.fetch_add(1, Ordering::SeqCst);
            pending::<()>().await;
        }
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        if self.settles.load(Ordering::SeqCst) {
            self.hung.fetch_add(1, Ordering::SeqCst);
            pending::<()>().await;
        }
        self.inner.settle(settled).await
    }
}

type Forgets = Box<dyn Fn(&Settled) -> bool + Send + Sync>;

/// Answers as stale, and does not pass on, what a function picks.
pub(crate) struct Forgetful {
    inner: Arc<dyn Source>,
    forgets: Forgets,
}

impl Forgetful {
    pub(crate) fn of(
        inner: Arc<dyn Source>,
        forgets: impl Fn(&Settled) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, forgets: Box::new(forgets) })
    }
}

#[async_trait]
impl Source for Forgetful {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let (forgotten, passed): (Vec<_>, Vec<_>) =
            settled.iter().cloned().partition(|settled| (self.forgets)(settled));
        let Stale(mut stale) = self.inner.settle(&passed).await?;
        stale.extend(forgotten.iter().map(|settled| settled.tag));
        Ok(Stale(stale))
    }
}

/// What a [`Renewer`] does with one call: an answer for every tag, an error, or never an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    All(Renewal),
    Error(ErrorKind),
    Never,
    /// What the renewer behind it says.
    Pass,
}

/// Renews by script; without one it passes everything on. Remembers what it was asked for, and when.
pub(crate) struct Renewer {
    inner: Arc<dyn Renew>,
    script: Mutex<VecDeque<Answer>>,
    then: Answer,
    asked: Mutex<Vec<(Instant, Vec<Tag>)>>,
}

impl Renewer {
    pub(crate) fn around(inner: Arc<dyn Renew>) -> Arc<Self> {
        Self::scripted(inner, [], Answer::Pass)
    }

    /// The first calls are answered by `script`, all further ones with `then`.
    pub(crate) fn scripted(
        inner: Arc<dyn Renew>,
        script: impl IntoIterator<Item = Answer>,
        then: Answer,
    ) -> Arc<Self> {
        let script = Mutex::new(script.into_iter().collect());
        Arc::new(Self { inner, script, then, asked: Mutex::default() })
    }

    /// When it was asked, and for which deliveries.
    pub(crate) fn asked(&self) -> Vec<(Instant, Vec<Tag>)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Renew for Renewer {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), tags.to_vec()));
        let answer = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match answer.unwrap_or(self.then) {
            Answer::All(renewal) => Ok(vec![renewal; tags.len()]),
            Answer::Error(kind) => Err(Error::new(kind, "renewing failed by script")),
            Answer::Never => pending().await,
            Answer::Pass => self.inner.renew(tags).await,
        }
    }
}

/// Settles and fetches in one exchange, by doing the one after the other.
pub(crate) struct Fusing {
    inner: Arc<dyn Source>,
    exchanges: AtomicUsize,
}

impl Fusing {
    pub(crate) fn around(inner: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { inner, exchanges: AtomicUsize::new(0) })
    }

    /// How often it was told to do both.
    pub(crate) fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Source for Fusing {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.inner.settle(settled).await
    }

    fn fuses(&self) -> bool {
        true
    }

    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        self.exchanges.fetch_add(1, Ordering::SeqCst);
        let stale = self.inner.settle(settled).await?;
        let mut at_once = wanted.clone();
        at_once.wait = Duration::ZERO;
        // Settled is settled: what can't be fetched is nothing.
        let fetched = self.inner.fetch(&at_once, &CancellationToken::new()).await.unwrap_or_default();
        Ok((stale, fetched))
    }
}
