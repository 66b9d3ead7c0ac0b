//! From the input's bytes to records: the splitting, which is pure, and the thread that reads.
//!
//! The thread reads a block only when it is asked for one, so that no more of the input is consumed than has
//! slots to run in, up to the end of the block. It blocks in `read` (standard input may be a file, which no
//! event loop can wait for, and its other end must not find it made non-blocking), so it can't be told to
//! stop there: a thread that still waits for input ends with the process.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::mpsc::{Receiver as Demands, SyncSender, sync_channel};
use std::thread;
use std::time::SystemTime;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;

/// How much is read at once. A pipe holds as much by default, so a larger block would rarely be filled.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// How much is kept of a record that is too long, to tell it by.
const START_BYTES: usize = 256;

/// One piece of the input.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    /// A record, without its separator.
    Record {
        /// Which of the input's lines (or pieces between NULs) it is, from 1.
        number: u64,
        bytes: Bytes,
    },
    /// A record that is longer than allowed: only its beginning is kept.
    TooLong { number: u64, start: Bytes, length: u64 },
}

/// How the input is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) separator: u8,
    /// Whether a piece without a byte counts as a record.
    pub(super) keep_empty: bool,
    /// The most bytes of a record.
    pub(super) max_bytes: usize,
}

/// Cuts blocks of any size into records.
#[derive(Debug)]
pub(super) struct Splitter {
    format: Format,
    /// The record that no separator has ended yet, as much of it as is allowed.
    partial: Vec<u8>,
    /// How long that record is by now.
    length: u64,
    /// How many pieces came before it.
    number: u64,
}

impl Splitter {
    pub(super) fn new(format: Format) -> Self {
        Self { format, partial: Vec::new(), length: 0, number: 0 }
    }

    /// Takes the next block and appends to `items` what it completes.
    pub(super) fn push(&mut self, block: &[u8], items: &mut Vec<Item>) {
        let separator = self.format.separator;
        let mut pieces = block.split(|byte| *byte == separator);
        // There is always a last piece, perhaps empty: what follows the last separator.
        let Some(mut piece) = pieces.next() else { return };
        for next in pieces {
            self.extend(piece);
            items.extend(self.complete());
            piece = next;
        }
        self.extend(piece);
    }

    /// The input has ended: what no separator follows is a record too, unless it is empty.
    pub(super) fn finish(&mut self) -> Option<Item> {
        if self.length == 0 { None } else { self.complete() }
    }

    fn extend(&mut self, piece: &[u8]) {
        let room = self.format.max_bytes - self.partial.len();
        self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
        self.length += piece.len() as u64;
    }

    fn complete(&mut self) -> Option<Item> {
        self.number += 1;
        let (number, length) = (self.number, std::mem::take(&mut self.length));
        let item = if length > self.format.max_bytes as u64 {
            let start = Bytes::copy_from_slice(&self.partial[..self.partial.len().min(START_BYTES)]);
            Some(Item::TooLong { number, start, length })
        } else if length > 0 || self.format.keep_empty {
            Some(Item::Record { number, bytes: Bytes::copy_from_slice(&self.partial) })
        } else {
            None
        };
        self.partial.clear();
        // A long record should not hold its memory for ever.
        self.partial.shrink_to(BLOCK_BYTES);
        item
    }
}

/// What records are read from.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    name: String,
    size: Option<u64>,
}

impl Input {
    /// Opens a file, or takes over what standard input was: `-`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let (mut file, name) = if path == Path::new("-") {
            (File::from(io::stdin().as_fd().try_clone_to_owned()?), "standard input".to_owned())
        } else {
            (File::open(path)?, path.display().to_string())
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        let at = if metadata.is_file() { file.stream_position().unwrap_or(0) } else { 0 };
        let size = metadata.is_file().then(|| metadata.len().saturating_sub(at));
        Ok(Self { file, name, size })
    }

    /// What to call it in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes are still to come, if it is a regular file.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads on until there is at least one item or the input has ended.
    pub(super) fn read(&mut self, splitter: &mut Splitter, buffer: &mut [u8]) -> Block {
        let mut items = Vec::new();
        let mut end = None;
        while items.is_empty() && end.is_none() {
            match self.file.read(buffer) {
                Ok(0) => {
                    items.extend(splitter.finish());
                    end = Some(Ok(()));
                }
                Ok(length) => splitter.push(&buffer[..length], &mut items),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody else who holds the other end made it so.
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(),
                Err(error) => end = Some(Err(error)),
            }
        }
        Block { items, end, read_at: now() }
    }

    fn wait(&self) {
        // If waiting fails, the next read says why.
        let _ = poll(&mut [PollFd::new(&self.file, PollFlags::IN)], None);
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge: when a record came in, by the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// What was read at once.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) items: Vec<Item>,
    /// Set when nothing will follow: the input has ended, or can't be read any further.
    pub(super) end: Option<io::Result<()>>,
    pub(super) read_at: SystemTime,
}

/// The near end of the reading thread.
#[derive(Debug)]
pub(super) struct Reader {
    demand: SyncSender<()>,
    blocks: mpsc::Receiver<Block>,
    asked: bool,
}

impl Reader {
    pub(super) fn start(mut input: Input, format: Format) -> io::Result<Self> {
        let (demand, demands) = sync_channel(1);
        let (send, blocks) = mpsc::channel(1);
        let work = move || {
            let (mut splitter, mut buffer) = (Splitter::new(format), vec![0; BLOCK_BYTES]);
            serve(&demands, &send, || input.read(&mut splitter, &mut buffer));
        };
        // Not joined: see the head of this file.
        thread::Builder::new().name("tidegate-input".to_owned()).stack_size(256 << 10).spawn(work)?;
        Ok(Self { demand, blocks, asked: false })
    }

    /// The next block; `None` after the last.
    ///
    /// Cancel safe: a block that was asked for is there for the next call.
    pub(super) async fn next(&mut self) -> Option<Block> {
        if !self.asked {
            self.demand.try_send(()).ok()?;
            self.asked = true;
        }
        let block = self.blocks.recv().await;
        self.asked = false;
        block
    }
}

/// One block for each demand, until the last or until nobody demands any more.
fn serve(demands: &Demands<()>, send: &mpsc::Sender<Block>, mut read: impl FnMut() -> Block) {
    while demands.recv().is_ok() {
        let block = read();
        let last = block.end.is_some();
        if send.blocking_send(block).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: Format = Format { separator: b'\n', keep_empty: false, max_bytes: 8 };

    fn record(number: u64, text: &str) -> Item {
        Item::Record { number, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    /// The same whatever the size of the blocks.
    fn split(format: Format, input: &str) -> Vec<Item> {
        let in_blocks = |size: usize| {
            let mut splitter = Splitter::new(format);
            let mut items = Vec::new();
            for block in input.as_bytes().chunks(size) {
                splitter.push(block, &mut items);
                assert!(splitter.partial.len() <= format.max_bytes);
            }
            items.extend(splitter.finish());
            items
        };
        let whole = in_blocks(input.len().max(1));
        for size in 1..input.len() {
            assert_eq!(in_blocks(size), whole, "in blocks of {size}");
        }
        whole
    }

    #[test]
    fn lines_become_records_with_the_numbers_of_their_lines() {
        assert_eq!(split(LINES, "a\nbc\n"), [record(1, "a"), record(2, "bc")]);
        assert_eq!(split(LINES, "a\nlast"), [record(1, "a"), record(2, "last")]);
        assert_eq!(split(LINES, "\n\na\n\nb\r\n\n"), [record(3, "a"), record(5, "b\r")]);
        assert_eq!(split(LINES, ""), []);
        assert_eq!(split(LINES, "12345678\n12345678"), [record(1, "12345678"), record(2, "12345678")]);
    }

    #[test]
    fn pieces_between_nuls_may_be_empty_and_hold_newlines() {
        let nul = Format { separator: 0, keep_empty: true, max_bytes: 8 };
        assert_eq!(split(nul, "a\nb\0\0c\0"), [record(1, "a\nb"), record(2, ""), record(3, "c")]);
        assert_eq!(split(nul, "a\0b"), [record(1, "a"), record(2, "b")]);
    }

    #[test]
    fn a_record_that_is_too_long_is_named_and_skipped() {
        let long =
            |number, length: u64| Item::TooLong { number, start: Bytes::from_static(b"12345678"), length };
        assert_eq!(split(LINES, "123456789\nb\n"), [long(1, 9), record(2, "b")]);
        assert_eq!(split(LINES, "a\n1234567890123456789012345"), [record(1, "a"), long(2, 25)]);
        assert_eq!(split(LINES, "\n1234567890\n\n1234567890\n"), [long(2, 10), long(4, 10)]);
    }

    #[tokio::test]
    async fn nothing_is_read_before_it_is_asked_for() {
        let (send, mut blocks) = mpsc::channel(1);
        let (demand, demands) = sync_channel(1);
        let reads = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = reads.clone();
        let thread = thread::Builder::new().spawn(move || {
            serve(&demands, &send, || {
                let number = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Block {
                    items: Vec::new(),
                    end: (number == 2).then_some(Ok(())),
                    read_at: SystemTime::UNIX_EPOCH,
                }
            });
        });
        for asked in 1..=3 {
            demand.send(()).expect("the thread waits for it");
            let block = blocks.recv().await.expect("one block");
            assert_eq!(block.end.is_some(), asked == 3);
            assert_eq!(reads.load(std::sync::atomic::Ordering::SeqCst), asked);
        }
        assert!(blocks.recv().await.is_none(), "nothing follows the last");
        thread.expect("a thread").join().expect("no panic");
    }
}
