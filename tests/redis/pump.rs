//! How bytes get from one side of the proxy to the other, late, never, or not all of them.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::proxy::{Fault, Faults, Line, Shared, Spring, Way};

/// How many pieces, of at most so many bytes, are under way at once: then it is the sender's turn to wait.
const PIECES: usize = 64;
const PIECE: usize = 16 * 1024;

/// No limit to the bytes of replies.
const ALL: usize = usize::MAX;

/// What both ways of a connection need.
pub(super) struct Pumps<'a> {
    pub(super) shared: &'a Shared,
    pub(super) line: &'a Line,
}

/// What was read, and when it may go on. Nothing was read at the end.
struct Piece {
    bytes: Vec<u8>,
    due: Instant,
}

/// Why a connection ends before both sides have ended it.
enum Cut {
    Reset,
    Close,
}

/// Forwards both ways until both sides have ended, or it is cut. True if what is left is to be reset.
pub(super) async fn between(pumps: &Pumps<'_>, client: &mut TcpStream, server: &mut TcpStream) -> bool {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (left, all) = (AtomicUsize::new(ALL), AtomicUsize::new(ALL));
    let (requests, requests_out) = channel(PIECES);
    let (replies, replies_out) = channel(PIECES);
    let both = async {
        tokio::try_join!(
            pumps.read(Way::ToServer, from_client, requests, &left),
            pumps.write(Way::ToServer, requests_out, to_server, &all),
            pumps.read(Way::ToClient, from_server, replies, &left),
            pumps.write(Way::ToClient, replies_out, to_client, &left),
        )
    };
    tokio::select! {
        biased;
        () = pumps.line.reset.cancelled() => true,
        () = pumps.line.close.cancelled() => false,
        ended = both => matches!(ended, Err(Cut::Reset)),
    }
}

impl Pumps<'_> {
    /// Reads until the end. A trap may set what is `left` of the replies.
    async fn read(
        &self,
        way: Way,
        mut from: ReadHalf<'_>,
        pieces: Sender<Piece>,
        left: &AtomicUsize,
    ) -> Result<(), Cut> {
        let mut faults = self.shared.faults.subscribe();
        let mut lost = false;
        loop {
            let mut bytes = vec![0; PIECE];
            let read = tokio::select! {
                read = from.read(&mut bytes) => read,
                () = healed(&mut faults, way), if lost => return Err(Cut::Reset),
            };
            let fault = self.fault(way);
            if fault.swallowed {
                lost = true;
                if read.map_or(0, |count| count) == 0 {
                    self.shared.lost_ends.fetch_add(1, Ordering::SeqCst);
                    healed(&mut faults, way).await;
                    return Err(Cut::Reset);
                }
                continue;
            }
            let count = read.map_err(|_| Cut::Reset)?;
            bytes.truncate(count);
            match way {
                Way::ToServer => match self.shared.sprung(&bytes) {
                    Some(Spring::Request) => return Err(Cut::Close),
                    Some(Spring::Reply(bytes)) => left.store(bytes, Ordering::SeqCst),
                    None => {}
                },
                Way::ToClient if count > 0 => {
                    if let Some(bytes) = self.shared.next_reply().take() {
                        left.store(bytes, Ordering::SeqCst);
                    }
                }
                Way::ToClient => {}
            }
            let piece = Piece { bytes, due: Instant::now() + fault.delay };
            // Who writes has ended only if the connection has.
            if pieces.send(piece).await.is_err() {
                return pending().await;
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// Writes each piece when it is due and the way is free, but no more bytes than are `left`.
    async fn write(
        &self,
        way: Way,
        mut pieces: Receiver<Piece>,
        mut to: WriteHalf<'_>,
        left: &AtomicUsize,
    ) -> Result<(), Cut> {
        let mut faults = self.shared.faults.subscribe();
        while let Some(Piece { bytes, due }) = pieces.recv().await {
            sleep_until(due).await;
            let free = faults.wait_for(|faults| !faults.of(way).held).await.is_ok();
            assert!(free, "the proxy outlives its connections");
            if bytes.is_empty() {
                // The other side may have gone.
                let _ = to.shutdown().await;
                return Ok(());
            }
            let may = left.load(Ordering::SeqCst);
            let written = to.write_all(&bytes[..bytes.len().min(may)]).await;
            // That the other side has gone is told the other way.
            if written.is_err() && !self.fault(way.back()).swallowed {
                return Err(Cut::Reset);
            }
            if may != ALL {
                if bytes.len() >= may.max(1) {
                    return Err(Cut::Close);
                }
                left.fetch_sub(bytes.len(), Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn fault(&self, way: Way) -> Fault {
        *self.shared.faults.borrow().of(way)
    }
}

/// Waits until nothing that goes this way is swallowed any more.
async fn healed(faults: &mut watch::Receiver<Faults>, way: Way) {
    let free = faults.wait_for(|faults| !faults.of(way).swallowed).await.is_ok();
    assert!(free, "the proxy outlives its connections");
}
