//! The file: how a connection to it is opened, whose it must be, and how it comes to the newest version.
//!
//! The version stands in a table of ours and not in `PRAGMA user_version`, which belongs to whoever keeps tables of
//! their own beside ours.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionBehavior};

use super::config::Durability;
use super::failure::{READ_ONLY, failed};
use crate::error::{Error, ErrorKind};

/// Marks a file that was made by us (`PRAGMA application_id`): "TIDG".
const APPLICATION_ID: i64 = 0x5449_4447;

/// What [`NEW`] makes.
const NEWEST: i64 = 3;

/// What `PRAGMA user_version` is in a file of ours, whatever its version: those of version 1 look there, and leave alone
/// what is newer.
const NOT_FIRST: i64 = 2;

/// The tables of the newest version.
const NEW: &str = include_str!("schema/new.sql");

/// Views and triggers by which others write to them.
const DOORS: &str = include_str!("schema/doors.sql");

/// From version 1, which stood in `PRAGMA user_version`, after [`NEW`].
const FROM_1: &str = include_str!("schema/from_1.sql");

/// From version 2, whose tables stay. Never changed once released.
const FROM_2: &str = include_str!("schema/from_2.sql");

/// How many statements a connection keeps prepared: more than there are.
const STATEMENTS: usize = 128;

/// How long the WAL may be, in bytes, when it is not in use: it is cut back to this after a checkpoint.
const WAL_BYTES: i64 = 16 << 20;

/// After how many pages of WAL a commit copies them into the database, and waits for the disk twice. SQLite's own default
/// is 1,000; a worker that is idle but for a job now and then meets it half as often so, and [`WAL_BYTES`] still
/// hold them.
const CHECKPOINT_PAGES: i64 = 2_000;

/// What a database is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Empty,
    Ours(i64),
    Others,
}

/// What of the settings concerns the file.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) durability: Durability,
    pub(super) busy_timeout: Duration,
    /// Our tables may go into a database of another program's.
    pub(super) adopt: bool,
}

/// Opens the file, which is made if it is not there, and brings it to the newest version.
pub(super) fn open(path: &Path, how: &How) -> Result<Connection, Error> {
    let sql = |error| failed(format!("opening {}", path.display()), error);
    // No mutex of SQLite's own: ours lets one in at a time.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    connection.busy_timeout(how.busy_timeout).map_err(sql)?;
    // SQLite is content to read. What comes later would fail, job by job.
    if connection.is_readonly(MAIN_DB).map_err(sql)? {
        let text = format!("{} can't be used: {READ_ONLY}", path.display());
        return Err(Error::new(ErrorKind::Denied, text));
    }
    // Before anything is changed.
    let found = usable(found(&connection).map_err(sql)?, path, how)?;
    let encoding: String = connection.pragma_query_value(None, "encoding", |row| row.get(0)).map_err(sql)?;
    if encoding != "UTF-8" {
        let text = format!("the texts in {} are {encoding}: they must be UTF-8", path.display());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    set_up(&connection, how.durability).map_err(sql)?;
    if found != Found::Ours(NEWEST) {
        migrate(&mut connection, path, how)?;
    }
    Ok(connection)
}

/// Opens a file that is there so that nothing in it can be changed. One that is at rest (`immutable`) is read without
/// locks: whoever does that must see to it that nobody changes it meanwhile.
pub(super) fn open_to_read(
    path: &Path,
    busy_timeout: Duration,
    at_rest: bool,
) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = match at_rest {
        false => Connection::open_with_flags(path, flags)?,
        true => Connection::open_with_flags(immutable(path), flags)?,
    };
    connection.busy_timeout(busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// The URI by which SQLite takes a file for one that nobody changes.
fn immutable(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte))
            }
            _ => _ = write!(uri, "%{byte:02x}"),
        }
    }
    uri + "?immutable=1"
}

/// Whether what was found is of the newest version; an error if it can't be used at all.
pub(super) fn is_newest(found: Found, path: &Path, how: &How) -> Result<bool, Error> {
    usable(found, path, how).map(|found| found == Found::Ours(NEWEST))
}

/// Leaves word in the file of the bound that its triggers go by, if one was set. Returns what counts.
pub(super) fn bound_payloads(
    connection: &Connection,
    path: &Path,
    set: Option<usize>,
) -> Result<usize, Error> {
    let sql = |error| failed(format!("preparing {}", path.display()), error);
    let stands: i64 =
        connection.query_row("SELECT max_payload FROM tidegate_meta", [], |row| row.get(0)).map_err(sql)?;
    let bytes = set.map_or(stands, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // To write would mean to wait for others.
    if bytes != stands {
        connection.execute("UPDATE tidegate_meta SET max_payload = ?1", [bytes]).map_err(sql)?;
    }
    Ok(usize::try_from(bytes).unwrap_or_default())
}

fn set_up(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Plans must not depend on what is bound: SQLite would else parse a statement anew for each LIMIT that it is given,
    // which is three quarters of what a small transaction takes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let synchronous = match durability {
        Durability::Full => "full",
        Durability::Normal => "normal",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn migrate(connection: &mut Connection, path: &Path, how: &How) -> Result<(), Error> {
    let sql = |error| failed(format!("preparing {}", path.display()), error);
    // Under the write lock, so that of several processes that open a new file one prepares it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let found = usable(found(&transaction).map_err(sql)?, path, how)?;
    if found == Found::Ours(NEWEST) {
        return Ok(());
    }
    let steps: &[&str] = match found {
        Found::Ours(2) => &[FROM_2, DOORS],
        // Its tables have other names, and what is in them is moved anyway: at once to the newest.
        Found::Ours(_) => &[NEW, FROM_1, DOORS],
        Found::Empty | Found::Others => &[NEW, DOORS],
    };
    for step in steps {
        transaction.execute_batch(step).map_err(sql)?;
    }
    // From version 2 on these may be the user's.
    if matches!(found, Found::Empty | Found::Ours(1)) {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        transaction.pragma_update(None, "user_version", NOT_FIRST).map_err(sql)?;
    }
    transaction.commit().map_err(sql)
}

/// Refuses what we must not touch.
fn usable(found: Found, path: &Path, how: &How) -> Result<Found, Error> {
    match found {
        Found::Others if !how.adopt => {
            let text = format!(
                "{} is a database of some other program: name another file, or say that jobs may be kept in this \
                 one (`adopt`)",
                path.display()
            );
            Err(Error::new(ErrorKind::InvalidInput, text))
        }
        Found::Ours(version) if version > NEWEST => {
            let text = format!(
                "{} is of version {version}, made by a newer Tidegate: this one knows up to {NEWEST}; upgrade it",
                path.display()
            );
            Err(Error::new(ErrorKind::Unsupported, text))
        }
        _ => Ok(found),
    }
}

pub(super) fn found(connection: &Connection) -> rusqlite::Result<Found> {
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    if ask("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'tidegate_meta'")? > 0 {
        return ask("SELECT version FROM tidegate_meta").map(Found::Ours);
    }
    let [application, version] = [ask("PRAGMA application_id")?, ask("PRAGMA user_version")?];
    if application == APPLICATION_ID && version > 0 {
        return Ok(Found::Ours(version));
    }
    let empty = ask("SELECT count(*) = 0 FROM sqlite_schema")? == 1;
    Ok(if empty { Found::Empty } else { Found::Others })
}
