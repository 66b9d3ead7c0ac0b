//! What SQLite says when it fails, in the words of this crate.

use std::fs::File;
use std::path::Path;

use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;

use crate::error::{BoxError, Error, ErrorKind};

pub(super) const READ_ONLY: &str =
    "the file, its -wal or -shm, or its folder is read-only: this program must be able to write them all";

const FULL: &str = "the disk is full: make room; nothing was changed";

/// The same failure as an [`Error`]: of the kind that tells whether it may pass, and saying what to do.
pub(super) fn failed(doing: impl Into<String>, error: rusqlite::Error) -> Error {
    let (kind, advice) = judge(&error);
    let doing = doing.into();
    let context =
        if advice.is_empty() { format!("{doing} failed") } else { format!("{doing} failed: {advice}") };
    Error::new(kind, context).caused_by(said(error))
}

/// What SQLite itself says, once: the driver's error says it, and its cause says it again.
fn said(error: rusqlite::Error) -> BoxError {
    let code = match &error {
        rusqlite::Error::SqliteFailure(code, _) => code.extended_code,
        rusqlite::Error::SqlInputError { error: code, .. } => code.extended_code,
        _ => return error.into(),
    };
    let words = match &error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.as_str(),
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        _ => rusqlite::ffi::code_to_str(code),
    };
    format!("{words} (SQLite error {code})").into()
}

/// The file can't be read without making others beside it, which this program may not.
pub(super) fn unreadable(doing: &str, path: &Path, error: rusqlite::Error) -> Error {
    let advice = match File::open(path) {
        Ok(_) => {
            "SQLite needs the -wal and -shm files beside it, which this program may not make or read: let somebody \
             who may write the folder look at it once, or copy it with its -wal file to a folder that you may write, \
             and look at the copy"
        }
        Err(_) => "the file must be there, and this program must be able to read it",
    };
    Error::new(ErrorKind::Denied, format!("{doing} failed: {advice}")).caused_by(said(error))
}

fn judge(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    let Some(code) = error.sqlite_error_code() else {
        return (ErrorKind::Internal, "");
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            (ErrorKind::Unavailable, "another process has kept the file locked for too long")
        }
        ErrorCode::DiskFull => (ErrorKind::Full, FULL),
        ErrorCode::ReadOnly => (ErrorKind::Denied, READ_ONLY),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => (
            ErrorKind::Denied,
            "the folder must be there with room for another file in it, and this program must be able to write it and \
             the file",
        ),
        ErrorCode::DatabaseCorrupt => (
            ErrorKind::Decode,
            "the file is corrupt: stop all programs that use it, copy it with its -wal file, and recover it \
             with `sqlite3 FILE .recover`",
        ),
        ErrorCode::NotADatabase => (ErrorKind::Decode, "the file is no SQLite database: name another one"),
        // The index of the WAL could not be made as long as it must be, which is all that this ever means.
        ErrorCode::SystemIoFailure if error.sqlite_extended_error_code() == Some(SQLITE_IOERR_SHMSIZE) => {
            (ErrorKind::Full, FULL)
        }
        ErrorCode::SystemIoFailure => (
            ErrorKind::Unavailable,
            "the system could not read or write the file: its log may say why, and a quota or a limit on the size of files \
             may be reached",
        ),
        ErrorCode::TooBig => (ErrorKind::InvalidInput, "it is larger than SQLite can hold"),
        ErrorCode::OutOfMemory => (ErrorKind::Unavailable, "there is no memory left"),
        _ => (ErrorKind::Internal, ""),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::error::Chain;

    #[test]
    fn what_sqlite_says_is_said_once() {
        let connection = Connection::open_in_memory().expect("memory");
        let wrong = |sql: &str| connection.execute_batch(sql).expect_err("it makes no sense");
        let said = |error| Chain(&failed("counting", error)).to_string();
        assert_eq!(
            said(wrong("SELECT * FROM missing")),
            "counting failed: no such table: missing (SQLite error 1)"
        );
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        for text in [None, Some("database is locked".to_owned())] {
            assert_eq!(
                said(rusqlite::Error::SqliteFailure(busy, text)),
                "counting failed: another process has kept the file locked for too long: database is locked \
                 (SQLite error 5)"
            );
        }
        assert_eq!(said(rusqlite::Error::InvalidQuery), "counting failed: Query is not read-only");
    }
}
