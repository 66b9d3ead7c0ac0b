//! What SQLite says when it fails, in the words of this crate.

use rusqlite::ErrorCode;

use crate::error::{Error, ErrorKind};

pub(super) const READ_ONLY: &str =
    "the file, its -wal or -shm, or its folder is read-only: this program must be able to write them all";

/// The same failure as an [`Error`]: of the kind that tells whether it may pass, and saying what to do.
pub(super) fn failed(doing: impl Into<String>, error: rusqlite::Error) -> Error {
    let (kind, advice) = judge(&error);
    let doing = doing.into();
    let context =
        if advice.is_empty() { format!("{doing} failed") } else { format!("{doing} failed: {advice}") };
    Error::new(kind, context).caused_by(error)
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
