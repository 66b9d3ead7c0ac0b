//! Getting a turn at the file while other processes write to it.
//!
//! SQLite lets in whoever comes first, in no order. Who writes one transaction after the other leaves a gap of some
//! microseconds between two of them, and SQLite's own way to wait sleeps for up to 100 ms between two looks: it meets such a
//! gap once in seconds, if at all. A worker would lose its leases while another process is busy. So looks are taken here
//! more often, and never in step with anything.

use std::thread::sleep;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

/// Between one look and the next, in microseconds, over and over. A look costs some microseconds, so that to wait
/// takes about one hundredth of a processor.
const PAUSES: [u64; 5] = [300, 700, 1_100, 900, 500];

/// Begins a transaction that writes, and waits for that as long as `patience` says, more or less.
pub(super) fn begin(connection: &Connection, patience: Duration) -> rusqlite::Result<()> {
    let begin = || connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop);
    connection.busy_timeout(Duration::ZERO)?;
    let (mut pauses, mut waited) = (PAUSES.iter().cycle(), Duration::ZERO);
    let begun = loop {
        match begin() {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < patience => {
                let pause = pauses.next().map_or(Duration::ZERO, |pause| Duration::from_micros(*pause));
                // Without a clock, as SQLite has it: a test's may stand still. The thread is one of those that may block.
                sleep(pause);
                waited += pause;
            }
            begun => break begun,
        }
    };
    connection.busy_timeout(patience)?;
    begun
}
