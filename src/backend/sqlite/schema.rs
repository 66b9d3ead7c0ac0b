//! The file: how a connection to it is opened, what it must be, and what is in it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::config::Durability;
use super::failure::failed;
use crate::error::{Error, ErrorKind};

/// Says whose file it is (`PRAGMA application_id`): "TIDG".
const APPLICATION_ID: i64 = 0x5449_4447;

/// One step for each version (`PRAGMA user_version`), from the one before it. Never changed once released.
const STEPS: &[&str] = &[STEP_1, STEP_NOTES];

/// States are numbers: 0 ready, 1 delayed, 2 with a worker, 3 dead. Times are nanoseconds since 1970. `rank` is
/// the negative priority, so that every index runs upwards. What `due` means depends on the state: when a delayed
/// job becomes ready, when a lease runs out.
const STEP_1: &str = "
    CREATE TABLE counters (seq INTEGER NOT NULL, done INTEGER NOT NULL, dropped_dead INTEGER NOT NULL) STRICT;
    INSERT INTO counters VALUES (0, 0, 0);
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        queue TEXT NOT NULL,
        kind TEXT NOT NULL,
        rank INTEGER NOT NULL,
        ord INTEGER NOT NULL,
        due INTEGER NOT NULL,
        entered INTEGER NOT NULL,
        since INTEGER NOT NULL,
        enqueued_at INTEGER NOT NULL,
        max_attempts INTEGER,
        timeout INTEGER,
        attempts INTEGER NOT NULL,
        lapses INTEGER NOT NULL,
        token INTEGER NOT NULL,
        cancelled INTEGER NOT NULL,
        unique_key TEXT,
        window INTEGER,
        last_error TEXT,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX jobs_ready ON jobs (queue, kind, rank, ord) WHERE state = 0;
    CREATE INDEX jobs_delayed ON jobs (due, ord) WHERE state = 1;
    CREATE INDEX jobs_leased ON jobs (due, id) WHERE state = 2;
    CREATE INDEX jobs_dead ON jobs (entered) WHERE state = 3;
    CREATE TABLE unique_keys (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        seq INTEGER NOT NULL,
        job INTEGER NOT NULL,
        until INTEGER,
        PRIMARY KEY (kind, key, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX unique_keys_until ON unique_keys (until) WHERE until IS NOT NULL;
";

/// What a program that has a queue to itself wants to be committed together with its jobs.
const STEP_NOTES: &str =
    "CREATE TABLE notes (name TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;";

/// How many statements a connection keeps prepared: more than there are.
const STATEMENTS: usize = 64;

/// How long the WAL may be, in bytes, when it is not in use: it is cut back to this after a checkpoint.
const WAL_BYTES: i64 = 16 << 20;

/// Opens the file, which is made if it is not there, and brings it to the newest version.
pub(super) fn open(path: &Path, durability: Durability, busy: Duration) -> Result<Connection, Error> {
    let doing = |what: &str| format!("{what} {}", path.display());
    // No mutex of SQLite's own: ours lets one in at a time.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(|error| failed(doing("opening"), error))?;
    set_up(&connection, durability, busy).map_err(|error| failed(doing("opening"), error))?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

fn set_up(connection: &Connection, durability: Durability, busy: Duration) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_timeout(busy)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let synchronous = match durability {
        Durability::Full => "full",
        Durability::Normal => "normal",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let doing = || format!("preparing {}", path.display());
    let sql = |error| failed(doing(), error);
    if version(connection).map_err(sql)? == (APPLICATION_ID, STEPS.len() as i64) {
        return Ok(());
    }
    // Under the write lock, so that of several processes that open a new file one prepares it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let (application, version) = version(&transaction).map_err(sql)?;
    let empty: bool =
        transaction.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0)).map_err(sql)?;
    if application != APPLICATION_ID && !empty {
        let text = format!("{} is a database of some other program: name another file", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let newest = STEPS.len() as i64;
    if version > newest {
        let text = format!(
            "{} is of version {version}, made by a newer Tidegate: this one knows up to {newest}; upgrade it",
            path.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let done = usize::try_from(version).unwrap_or_default();
    for step in &STEPS[done..] {
        transaction.execute_batch(step).map_err(sql)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
    transaction.pragma_update(None, "user_version", newest).map_err(sql)?;
    transaction.commit().map_err(sql)
}

fn version(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}
