//! A proxy between a client and a server, where the network goes wrong as a test wishes: [`Proxy`].
//!
//! It has one thread with a runtime of its own, so that neither a paused clock nor a blocked thread of the test
//! holds it up, and that no task of it is counted there. What it holds is bounded: so many connections, and so many
//! bytes each way of each.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::process::{free_port, until};
use super::pump::{self, Pumps};

/// More connections than any test makes; further ones wait until one has gone.
const MAX_CONNECTIONS: usize = 1_000;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Requests.
    ToServer,
    /// Replies.
    ToClient,
}

impl Way {
    pub(super) fn back(self) -> Self {
        match self {
            Self::ToServer => Self::ToClient,
            Self::ToClient => Self::ToServer,
        }
    }
}

/// Both ways, for faults that are the same for both.
pub(crate) const BOTH_WAYS: [Way; 2] = [Way::ToServer, Way::ToClient];

/// What goes wrong with the bytes that go one way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fault {
    pub(super) delay: Duration,
    pub(super) held: bool,
    pub(super) swallowed: bool,
}

/// What goes wrong on every connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults([Fault; 2]);

impl Faults {
    pub(super) fn of(&self, way: Way) -> &Fault {
        &self.0[way as usize]
    }
}

/// Which request, and what becomes of it, once.
#[derive(Clone, Debug)]
pub(super) struct Trap {
    /// A part of it, in lower case.
    pub(super) request: Vec<u8>,
    pub(super) spring: Spring,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spring {
    /// The connection is cut before the request goes on.
    Request,
    /// The connection is cut when so many bytes of what the server says after the request have gone on.
    Reply(usize),
}

/// A port of the loopback behind which there is the server, as long as nothing is made to go wrong.
///
/// Faults hold for the connections that there are and for new ones. Ends, with all connections, when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the test and the proxy's thread have in common.
#[derive(Debug)]
pub(super) struct Shared {
    port: u16,
    server: AtomicU16,
    refusing: watch::Sender<bool>,
    listening: AtomicBool,
    pub(super) faults: watch::Sender<Faults>,
    traps: Mutex<Vec<Trap>>,
    next_reply: Mutex<Option<usize>>,
    connections: Mutex<HashMap<usize, Line>>,
    opened: AtomicUsize,
    pub(super) lost_ends: AtomicUsize,
    end: CancellationToken,
}

/// How a connection is ended from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) reset: CancellationToken,
    pub(super) close: CancellationToken,
}

impl Proxy {
    /// Forwards to `server`, a port of the loopback.
    pub(crate) fn start(server: u16) -> Self {
        let shared = Arc::new(Shared {
            port: free_port(),
            server: AtomicU16::new(server),
            refusing: watch::Sender::new(false),
            listening: AtomicBool::new(false),
            faults: watch::Sender::default(),
            traps: Mutex::default(),
            next_reply: Mutex::default(),
            connections: Mutex::default(),
            opened: AtomicUsize::new(0),
            lost_ends: AtomicUsize::new(0),
            end: CancellationToken::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mine = shared.clone();
        let thread = Builder::new().name("fault-proxy".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve(mine))).expect("a thread");
        let proxy = Self { shared, thread: Some(thread) };
        proxy.until_listening(true);
        proxy
    }

    pub(crate) fn port(&self) -> u16 {
        self.shared.port
    }

    /// New connections go to another server.
    pub(crate) fn forward_to(&self, server: u16) {
        self.shared.server.store(server, Ordering::SeqCst);
    }

    /// How many connections there have been.
    pub(crate) fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.shared.connections().len()
    }

    /// Resets every connection that there is, on both sides.
    pub(crate) fn cut(&self) {
        self.end_all(|line| &line.reset);
    }

    /// Resets the connection that was made last, if it is still there.
    pub(crate) fn cut_newest(&self) {
        let newest = self.opened() - 1;
        if let Some(line) = self.shared.connections().get(&newest) {
            line.reset.cancel();
        }
        until("the connection is cut", || !self.shared.connections().contains_key(&newest));
    }

    /// Closes every connection that there is, on both sides, in order.
    pub(crate) fn close(&self) {
        self.end_all(|line| &line.close);
    }

    /// Nobody listens any more: whoever connects is refused. Connections that there are stay.
    pub(crate) fn refuse(&self) {
        self.shared.refusing.send_replace(true);
        self.until_listening(false);
    }

    /// Takes connections again, on the same port.
    pub(crate) fn accept(&self) {
        self.shared.refusing.send_replace(false);
        self.until_listening(true);
    }

    /// From now on, each byte that goes this way takes so much longer.
    pub(crate) fn delay(&self, way: Way, delay: Duration) {
        self.change(way, |fault| fault.delay = delay);
    }

    /// Keeps what goes this way, and an end too, until [`release`](Self::release): a network that is away for a while.
    pub(crate) fn hold(&self, way: Way) {
        self.change(way, |fault| fault.held = true);
    }

    /// What was held goes on, and nothing is lost.
    pub(crate) fn release(&self, way: Way) {
        self.change(way, |fault| fault.held = false);
    }

    /// Drops silently what goes this way, and an end too; the sockets stay open. See [`heal`](Self::heal).
    ///
    /// After [`Way::ToServer`] a client that gives up is still there for the server.
    pub(crate) fn swallow(&self, way: Way) {
        self.change(way, |fault| fault.swallowed = true);
    }

    /// How many ends of connections were swallowed so far.
    pub(crate) fn lost_ends(&self) -> usize {
        self.shared.lost_ends.load(Ordering::SeqCst)
    }

    /// Nothing goes wrong any more: no delay, nothing held, no traps, new connections taken. A connection whose
    /// bytes were swallowed is reset.
    pub(crate) fn heal(&self) {
        self.shared.traps().clear();
        *self.shared.next_reply() = None;
        self.shared.faults.send_replace(Faults::default());
        self.accept();
    }

    /// Closes the connection on which the server says something next, after so many bytes of it and of what is under
    /// way before it.
    ///
    /// With 0 the request has arrived, perhaps long ago, and its reply never does.
    pub(crate) fn cut_reply_after(&self, bytes: usize) {
        *self.shared.next_reply() = Some(bytes);
    }

    /// The same for what the server says after the next request that contains `request`, in whatever case: a command,
    /// a key, a payload. Under TLS there is none.
    pub(crate) fn lose_reply_to(&self, request: &str, bytes: usize) {
        self.set(request, Spring::Reply(bytes));
    }

    /// Closes the connection on which the next request comes that contains `request`, in whatever case. The server
    /// sees nothing of it, unless it had come in parts.
    pub(crate) fn lose_request(&self, request: &str) {
        self.set(request, Spring::Request);
    }

    /// How many of `lose_…` and `cut_reply_after` wait for their moment.
    pub(crate) fn traps(&self) -> usize {
        self.shared.traps().len() + usize::from(self.shared.next_reply().is_some())
    }

    fn set(&self, request: &str, spring: Spring) {
        assert!(!request.is_empty(), "which request?");
        self.shared.traps().push(Trap { request: request.to_ascii_lowercase().into_bytes(), spring });
    }

    fn change(&self, way: Way, change: impl FnOnce(&mut Fault)) {
        self.shared.faults.send_modify(|faults| change(&mut faults.0[way as usize]));
    }

    fn end_all(&self, how: impl Fn(&Line) -> &CancellationToken) {
        let there: Vec<usize> = {
            let connections = self.shared.connections();
            connections.values().for_each(|line| how(line).cancel());
            connections.keys().copied().collect()
        };
        until("the connections are cut", || {
            let connections = self.shared.connections();
            there.iter().all(|number| !connections.contains_key(number))
        });
    }

    fn until_listening(&self, listening: bool) {
        until("the proxy does so", || self.shared.listening.load(Ordering::SeqCst) == listening);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the proxy panicked");
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<usize, Line>> {
        self.connections.lock().expect("nothing panics under this lock")
    }

    fn traps(&self) -> MutexGuard<'_, Vec<Trap>> {
        self.traps.lock().expect("nothing panics under this lock")
    }

    pub(super) fn next_reply(&self) -> MutexGuard<'_, Option<usize>> {
        self.next_reply.lock().expect("nothing panics under this lock")
    }

    /// The trap that this request springs, which is none any more then.
    pub(super) fn sprung(&self, request: &[u8]) -> Option<Spring> {
        let mut traps = self.traps();
        if traps.is_empty() {
            return None;
        }
        let request = request.to_ascii_lowercase();
        let within = |part: &[u8]| request.windows(part.len()).any(|it| it == part);
        let place = traps.iter().position(|trap| within(&trap.request))?;
        Some(traps.remove(place).spring)
    }
}

/// Takes connections until the end; then all are dropped.
async fn serve(shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut refusing = shared.refusing.subscribe();
    let mut listener = None;
    loop {
        if *refusing.borrow_and_update() {
            listener = None;
        } else if listener.is_none() {
            // Fails for as long as somebody else has the port.
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, shared.port)).await.ok();
        }
        shared.listening.store(listener.is_some(), Ordering::SeqCst);
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.end.cancelled() => return,
            _ = refusing.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(10)), if listener.is_none() => {}
            Some(ended) = connections.join_next() => ended.expect("no connection panics"),
            Ok((client, _)) = accept, if connections.len() < MAX_CONNECTIONS => {
                let number = shared.opened.fetch_add(1, Ordering::SeqCst);
                let line = Line::default();
                shared.connections().insert(number, line.clone());
                connections.spawn(connection(shared.clone(), number, line, client));
            }
        }
    }
}

/// One connection, until one side ends it, a fault does, or the test.
async fn connection(shared: Arc<Shared>, number: usize, line: Line, mut client: TcpStream) {
    let port = shared.server.load(Ordering::SeqCst);
    let reset = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(mut server) => {
            let pumps = Pumps { shared: &shared, line: &line };
            let reset = pump::between(&pumps, &mut client, &mut server).await;
            end(server, reset);
            reset
        }
        // As near to a refusal as can be, now that the connection was taken.
        Err(_) => true,
    };
    end(client, reset);
    shared.connections().remove(&number);
}

fn end(stream: TcpStream, reset: bool) {
    if reset {
        // Else the other side is gone already.
        let _ = stream.set_zero_linger();
    }
    drop(stream);
}
