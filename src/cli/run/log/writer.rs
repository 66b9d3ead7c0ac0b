//! The thread that writes the log: [`Writer`].

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// How many lines may wait: a burst, not an outage. With lines of usual length some hundred KiB.
const QUEUE: usize = 1024;

/// How much is written at once.
const BATCH_BYTES: usize = 64 << 10;

/// How long the end waits for the last lines to be written: who reads at all needs no more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long it waits at the end for room in the queue before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Lines on their way to standard error.
pub(super) struct Writer {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// All that came before this is to be written; then this is let go.
    End(#[expect(dead_code, reason = "it says what it says by being dropped")] SyncSender<()>),
}

impl Writer {
    /// Starts the thread. It lives as long as the process. `about_dropped` makes the line that says how many were.
    pub(super) fn start(about_dropped: impl Fn(u64) -> Vec<u8> + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        let run = move || run(&lines, &counted, about_dropped);
        thread::Builder::new().name("tidegate-log".to_owned()).spawn(run)?;
        Ok(Self { queue, dropped })
    }

    /// Writes a line soon, or drops it when too many wait.
    pub(super) fn write(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written, but not for ever.
    pub(super) fn end(&self) {
        let until = Instant::now() + LAST_WORDS;
        let (written, is_written) = sync_channel(0);
        let mut message = Message::End(written);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(LOOK_AGAIN);
        }
        let left = until.saturating_duration_since(Instant::now());
        let answer: Result<(), RecvTimeoutError> = is_written.recv_timeout(left);
        debug_assert!(answer.is_err(), "nothing is ever sent");
    }
}

fn run(lines: &Receiver<Message>, dropped: &AtomicU64, about_dropped: impl Fn(u64) -> Vec<u8>) {
    let mut batch = Vec::new();
    while let Ok(message) = lines.recv() {
        let mut ends = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                end => ends.push(end),
            }
            next = if batch.len() < BATCH_BYTES { lines.try_recv().ok() } else { None };
        }
        // What was dropped came after all of these.
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            batch.extend_from_slice(&about_dropped(lost));
        }
        // Whoever was to read it has gone, or the disk is full: there is nobody left to tell.
        let _ = io::stderr().lock().write_all(&batch);
        batch.clear();
    }
}
