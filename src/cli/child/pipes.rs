//! What goes into a child and comes out of it: [`Feed`] and [`Capture`], one pipe each.
//!
//! Our ends are non-blocking and known to the event loop; the child's ends are ordinary ones.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use rustix::io::ioctl_fionbio;
use tokio::net::unix::pipe::{Receiver, Sender};

/// How much is read at once: what a pipe holds by default.
const READ_BYTES: usize = 64 << 10;

/// How often at most a pipe is read when its child is over. By then it holds what fits into it (a megabyte at
/// the most, unless the administrator has allowed more), but a stranger who still has the other end could go
/// on writing for ever.
const LAST_READS: usize = 64;

thread_local! {
    /// Read into, and copied from: a child that says nothing costs no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// How many bytes of an output are kept: of its beginning, and of its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// What was kept of an output.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Captured {
    /// Its beginning: all of it, if that is no more than was to be kept.
    pub(crate) bytes: Vec<u8>,
    /// How many bytes followed that were not kept.
    pub(crate) dropped: u64,
    /// Its end, after those.
    pub(crate) last: Vec<u8>,
}

/// Our end of a pipe that a child writes to.
#[derive(Debug)]
pub(crate) struct Capture {
    /// `None` once its end has been reached.
    pipe: Option<Receiver>,
    kept: Captured,
    keep: Keeping,
}

impl Capture {
    /// A pipe of whose contents so much is kept, and the end for the child.
    pub(crate) fn new(keep: Keeping) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = pipe()?;
        ioctl_fionbio(&reader, true)?;
        let pipe = Receiver::from_owned_fd_unchecked(reader.into())?;
        Ok((Self { pipe: Some(pipe), kept: Captured::default(), keep }, writer))
    }

    /// Reads what there is and, unless the end has been reached, has the task woken when there is more.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        while let Some(pipe) = &self.pipe {
            let Poll::Ready(ready) = pipe.poll_read_ready(cx) else { return };
            let answer = ready.and_then(|()| self.kept.take(self.keep, |buffer| pipe.try_read(buffer)));
            // A false alarm: the next look has the task woken.
            if matches!(&answer, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                continue;
            }
            if is_end(&answer) {
                self.pipe = None;
            }
        }
    }

    /// What has come out by now. Reads what is still in the pipe, but does not wait for its end: somebody
    /// who has left the child's group may hold the other end for ever.
    pub(crate) fn finish(mut self) -> Captured {
        // Not through the event loop, which may not have heard yet that there is something.
        if let Some(Ok(pipe)) = self.pipe.take().map(Receiver::into_nonblocking_fd) {
            let mut pipe = File::from(pipe);
            for _ in 0..LAST_READS {
                if is_end(&self.kept.take(self.keep, |buffer| pipe.read(buffer))) {
                    break;
                }
            }
        }
        self.kept.trim(self.keep.last);
        self.kept
    }
}

/// Whether there is nothing more to be read, now or ever.
fn is_end(answer: &io::Result<usize>) -> bool {
    match answer {
        Ok(length) => *length == 0,
        Err(error) => error.kind() != ErrorKind::Interrupted,
    }
}

impl Captured {
    /// Reads once, and keeps what fits.
    fn take(
        &mut self,
        keep: Keeping,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        BUFFER.with_borrow_mut(|buffer| {
            let length = read(buffer)?;
            self.add(keep, &buffer[..length]);
            Ok(length)
        })
    }

    fn add(&mut self, keep: Keeping, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(keep.first - self.bytes.len()));
        self.bytes.extend_from_slice(first);
        let (over, last) = rest.split_at(rest.len().saturating_sub(keep.last));
        self.dropped += over.len() as u64;
        self.last.extend_from_slice(last);
        // Not at every read: moving what is kept costs as much as reading it.
        if self.last.len() > 2 * keep.last {
            self.trim(keep.last);
        }
    }

    /// Lets go of what is no longer the end.
    fn trim(&mut self, last: usize) {
        let over = self.last.len().saturating_sub(last);
        self.last.drain(..over);
        self.dropped += over as u64;
    }
}

/// Our end of a pipe that a child reads from, with what is still to be written.
#[derive(Debug)]
pub(crate) struct Feed {
    pipe: Sender,
    rest: Bytes,
}

impl Feed {
    /// A pipe that `bytes` go through, and the end for the child. What fits into the pipe is written at once,
    /// and usually that is all.
    pub(crate) fn new(mut bytes: Bytes) -> io::Result<(PipeReader, Option<Self>)> {
        let (reader, mut writer) = pipe()?;
        ioctl_fionbio(&writer, true)?;
        while !bytes.is_empty() {
            match writer.write(&bytes) {
                Ok(length) => bytes.advance(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if bytes.is_empty() {
            return Ok((reader, None));
        }
        let pipe = Sender::from_owned_fd_unchecked(writer.into())?;
        Ok((reader, Some(Self { pipe, rest: bytes })))
    }

    /// Ready when all is written, or when the child does not want any more, which is its right.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.rest.is_empty() {
            if ready!(self.pipe.poll_write_ready(cx)).is_err() {
                break;
            }
            match self.pipe.try_write(&self.rest) {
                Ok(length) => self.rest.advance(length),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn beginning_and_end_are_kept_and_the_rest_is_counted(
            first in 0usize..20, last in 0usize..20, blocks in proptest::collection::vec(0usize..50, 0..20),
        ) {
            let keep = Keeping { first, last };
            let (mut kept, mut whole) = (Captured::default(), Vec::new());
            for length in blocks {
                let block: Vec<u8> = (whole.len()..whole.len() + length).map(|at| at as u8).collect();
                kept.add(keep, &block);
                whole.extend(block);
                prop_assert!(kept.bytes.len() + kept.last.len() <= first + 2 * last);
            }
            kept.trim(last);
            let Captured { bytes, dropped, last } = kept;
            prop_assert!(whole.starts_with(&bytes) && whole.ends_with(&last));
            prop_assert_eq!(bytes.len() as u64 + dropped + last.len() as u64, whole.len() as u64);
            prop_assert_eq!(dropped, whole.len().saturating_sub(keep.first + keep.last) as u64);
        }
    }
}
