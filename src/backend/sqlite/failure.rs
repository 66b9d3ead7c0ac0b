//! What SQLite says when it fails, in the words of this crate.

use std::fs::File;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::{Error, ErrorKind};

pub(super) const READ_ONLY: &str =
    "the file or its folder is read-only: this program must be able to write both";

/// The same failure as an [`Error`]: of the kind that tells whether it may pass, and saying what to do.
pub(super) fn failed(doing: impl Into<String>, error: rusqlite::Error) -> Error {
    let (kind, advice) = judge(&error);
    let doing = doing.into();
    let context =
        if advice.is_empty() { format!("{doing} failed") } else { format!("{doing} failed: {advice}") };
    Error::new(kind, context).caused_by(error)
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
    Error::new(ErrorKind::Denied, format!("{doing} failed: {advice}")).caused_by(error)
}

fn judge(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    let Some(code) = error.sqlite_error_code() else {
        return (ErrorKind::Internal, "");
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            (ErrorKind::Unavailable, "another process has kept the file locked for too long")
        }
        ErrorCode::DiskFull => (ErrorKind::Full, "the disk is full: make room; nothing was changed"),
        ErrorCode::ReadOnly => (ErrorKind::Denied, READ_ONLY),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => (
            ErrorKind::Denied,
            "the folder must be there, and this program must be able to write it and the file",
        ),
        ErrorCode::DatabaseCorrupt => (
            ErrorKind::Decode,
            "the file is corrupt: stop all programs that use it, copy it with its -wal file, and recover it \
             with `sqlite3 FILE .recover`",
        ),
        ErrorCode::NotADatabase => (ErrorKind::Decode, "the file is no SQLite database: name another one"),
        ErrorCode::SystemIoFailure => (ErrorKind::Unavailable, "the system could not read or write the file"),
        ErrorCode::TooBig => (ErrorKind::InvalidInput, "it is larger than SQLite can hold"),
        ErrorCode::OutOfMemory => (ErrorKind::Unavailable, "there is no memory left"),
        _ => (ErrorKind::Internal, ""),
    }
}
