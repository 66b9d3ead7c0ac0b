//! A server to lose: a [`Memory`] behind connections that can be refused, cut, silenced and slowed down.
//!
//! What it holds outlives its connections, as with Redis or PostgreSQL: a lease that was granted through one
//! session is renewed and settled through the next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tidegate::{
    Connect, Delivery, Error, ErrorKind, FetchRequest, Intake, Memory, Renew, Renewal, Settled, Source,
    Stale, Tag,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    /// The source's connection is made.
    Connect,
    /// The heartbeat's connection is made.
    ConnectHeartbeat,
    Fetch,
    Settle,
    Renew,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is never answered, and a fetch does not look at its `stop`.
    Hang,
    /// It is refused, and nothing was done.
    Fail(ErrorKind),
    /// It is refused, but only after this time, and a fetch does not look at its `stop` until then.
    FailLate(Duration, ErrorKind),
    /// It is carried out, and the answer is lost with the connection.
    ReplyLost,
    /// It is carried out only after this time, and a fetch does not look at its `stop` until then.
    Late(Duration),
    /// It blocks its thread for this time first.
    Block(Duration),
}

/// One call, as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) at: Instant,
    pub(crate) thread: String,
    /// Which session it came through, from 1; 0 for the making of one.
    pub(crate) session: usize,
    /// The deliveries that it is about.
    pub(crate) tags: Vec<Tag>,
}

/// A handle to the server: clones are the same.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Memory,
    state: Mutex<State>,
    calls: watch::Sender<Vec<Call>>,
    recording: bool,
    /// Each session holds one.
    alive: Arc<()>,
}

#[derive(Default)]
struct State {
    next: HashMap<Verb, VecDeque<Option<Fault>>>,
    standing: HashMap<Verb, Fault>,
    /// Cancelled when the connections are cut.
    line: CancellationToken,
    sessions: usize,
}

impl Server {
    pub(crate) fn new(memory: Memory) -> Self {
        Self::build(memory, true)
    }

    /// One that keeps no record, for runs that are long.
    pub(crate) fn forgetful(memory: Memory) -> Self {
        Self::build(memory, false)
    }

    fn build(memory: Memory, recording: bool) -> Self {
        let (state, calls) = (Mutex::default(), watch::Sender::default());
        Self { shared: Arc::new(Shared { memory, state, calls, recording, alive: Arc::new(()) }) }
    }

    /// What a worker needs to take jobs from here.
    pub(crate) fn intake(&self) -> Intake {
        Intake::new(Arc::new(self.clone())).renewed_by(Arc::new(self.clone()))
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// From now on, until it is mended, each call of `verb` goes wrong like this.
    pub(crate) fn breaks(&self, verb: Verb, fault: Fault) {
        self.state().standing.insert(verb, fault);
    }

    /// Calls of `verb` go well again.
    pub(crate) fn mends(&self, verb: Verb) {
        self.state().standing.remove(&verb);
    }

    /// The next calls of `verb` go like this, one after the other; `None` is a call that goes well.
    pub(crate) fn next(&self, verb: Verb, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().next.entry(verb).or_default().extend(faults);
    }

    /// Cuts all connections: every call on them, under way or to come, fails. New ones can be made at once.
    pub(crate) fn cut(&self) {
        let line = std::mem::take(&mut self.state().line);
        line.cancel();
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) fn goes_down(&self) {
        self.breaks(Verb::Connect, Fault::Fail(ErrorKind::Connection));
        self.breaks(Verb::ConnectHeartbeat, Fault::Fail(ErrorKind::Connection));
        self.cut();
    }

    /// Accepts connections again.
    pub(crate) fn comes_back(&self) {
        self.mends(Verb::Connect);
        self.mends(Verb::ConnectHeartbeat);
    }

    /// How many session objects there are.
    pub(crate) fn sessions_alive(&self) -> usize {
        Arc::strong_count(&self.shared.alive) - 1
    }

    /// The calls of `verb` so far.
    pub(crate) fn calls(&self, verb: Verb) -> Vec<Call> {
        self.shared.calls.borrow().iter().filter(|call| call.verb == verb).cloned().collect()
    }

    /// Waits until there were `count` calls of `verb`.
    pub(crate) async fn called(&self, verb: Verb, count: usize) {
        let mut calls = self.shared.calls.subscribe();
        let enough = |calls: &Vec<Call>| calls.iter().filter(|call| call.verb == verb).count() >= count;
        calls.wait_for(enough).await.expect("the server is held");
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("nothing panics under this lock")
    }

    /// A call begins: what goes wrong with it?
    fn begin(&self, verb: Verb, session: usize, tags: Vec<Tag>) -> Option<Fault> {
        if self.shared.recording {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            let call = Call { verb, at: Instant::now(), thread, session, tags };
            self.shared.calls.send_modify(|calls| calls.push(call));
        }
        let mut state = self.state();
        match state.next.get_mut(&verb).and_then(VecDeque::pop_front) {
            Some(scripted) => scripted,
            None => state.standing.get(&verb).copied(),
        }
    }

    async fn session(&self, verb: Verb) -> Result<Session, Error> {
        let fault = self.begin(verb, 0, Vec::new());
        let made = async {
            let mut state = self.state();
            state.sessions += 1;
            let (line, number) = (state.line.clone(), state.sessions);
            Ok(Session { server: self.clone(), line, number, _alive: self.shared.alive.clone() })
        };
        go(fault, made).await
    }
}

#[async_trait]
impl Connect<dyn Source> for Server {
    async fn connect(&self) -> Result<Arc<dyn Source>, Error> {
        Ok(Arc::new(self.session(Verb::Connect).await?))
    }

    fn target(&self) -> String {
        "the server".to_owned()
    }
}

#[async_trait]
impl Connect<dyn Renew> for Server {
    async fn connect(&self) -> Result<Arc<dyn Renew>, Error> {
        Ok(Arc::new(self.session(Verb::ConnectHeartbeat).await?))
    }

    fn target(&self) -> String {
        "the server".to_owned()
    }
}

/// One connection.
struct Session {
    server: Server,
    line: CancellationToken,
    number: usize,
    _alive: Arc<()>,
}

impl Session {
    async fn call<T>(
        &self,
        verb: Verb,
        tags: Vec<Tag>,
        act: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let fault = self.server.begin(verb, self.number, tags);
        tokio::select! {
            biased;
            () = self.line.cancelled() => Err(Error::new(ErrorKind::Connection, "the connection was cut")),
            answer = go(fault, act) => answer,
        }
    }
}

#[async_trait]
impl Source for Session {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.call(Verb::Fetch, Vec::new(), self.server.shared.memory.fetch(wanted, stop)).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let tags = settled.iter().map(|settled| settled.tag).collect();
        self.call(Verb::Settle, tags, self.server.shared.memory.settle(settled)).await
    }
}

#[async_trait]
impl Renew for Session {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        self.call(Verb::Renew, tags.to_vec(), self.server.shared.memory.renew(tags)).await
    }
}

async fn go<T>(fault: Option<Fault>, act: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match fault {
        None => {}
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Fail(kind)) => return Err(Error::new(kind, "the server says no")),
        Some(Fault::FailLate(wait, kind)) => {
            tokio::time::sleep(wait).await;
            return Err(Error::new(kind, "the server says no, late"));
        }
        Some(Fault::ReplyLost) => {
            act.await?;
            return Err(Error::new(ErrorKind::Connection, "the connection was lost before the answer"));
        }
        Some(Fault::Late(wait)) => tokio::time::sleep(wait).await,
        Some(Fault::Block(time)) => std::thread::sleep(time),
    }
    act.await
}
