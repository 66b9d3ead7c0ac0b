//! What the server and the driver say when something fails, in the words of this crate.

use redis::{ErrorKind as Driver, RedisError};

use crate::error::{Error, ErrorKind};

/// The same failure as an [`Error`]: of the kind that tells whether it may pass, and saying what to do.
///
/// The codes that pass by themselves are those of a server that starts, fails over or is cut off (`docs/redis.md`).
pub(super) fn failed(doing: &'static str, error: RedisError) -> Error {
    let (kind, advice) = judge(&error);
    let context =
        if advice.is_empty() { format!("{doing} failed") } else { format!("{doing} failed: {advice}") };
    Error::new(kind, context).caused_by(error)
}

fn judge(error: &RedisError) -> (ErrorKind, &'static str) {
    if error.is_timeout() {
        return (ErrorKind::Timeout, "the server did not answer in time");
    }
    if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() {
        return (ErrorKind::Connection, "there is no connection to the server");
    }
    if let Some(code) = error.code() {
        return by_code(code, error.detail().unwrap_or_default());
    }
    match error.kind() {
        Driver::AuthenticationFailed => (ErrorKind::Denied, "the server refused the name or the password"),
        Driver::InvalidClientConfig => (ErrorKind::InvalidInput, "the URL or its options make no sense"),
        // What comes after an answer that could not be read is not to be trusted either.
        Driver::Parse => (ErrorKind::Connection, "the server does not speak its protocol"),
        Driver::MasterNameNotFoundBySentinel
        | Driver::NoValidReplicasFoundBySentinel
        | Driver::ClusterConnectionNotFound => (ErrorKind::Unavailable, "the sentinels know no master now"),
        _ => (ErrorKind::Internal, ""),
    }
}

fn by_code(code: &str, detail: &str) -> (ErrorKind, &'static str) {
    match code {
        "LOADING" => (ErrorKind::Unavailable, "the server is reading its data and will be there soon"),
        "MASTERDOWN" | "READONLY" | "NOREPLICAS" | "UNBLOCKED" | "TRYAGAIN" | "CLUSTERDOWN" | "FAILOVER" => {
            // A new connection finds the new master.
            (ErrorKind::Connection, "the server fails over, or has become a replica")
        }
        "BUSY" => (ErrorKind::Unavailable, "the server is busy with somebody's script"),
        "OOM" => (ErrorKind::Full, "the server has no memory left for this"),
        "MISCONF" => (ErrorKind::Unavailable, "the server can't write its data to its disk"),
        "NOAUTH" => (ErrorKind::Denied, "the server wants a password: put it in the URL"),
        "WRONGPASS" => (ErrorKind::Denied, "the server refused the name or the password"),
        "NOPERM" => (ErrorKind::Denied, "the user in the URL may not do this (`ACL SETUSER` allows it)"),
        "WRONGTYPE" => (ErrorKind::InvalidInput, "a key of the queue holds something else"),
        "CROSSSLOT" | "MOVED" | "ASK" => {
            (ErrorKind::Unsupported, "a cluster is not supported: name a server of its own")
        }
        "ERR" if detail.contains("max number of clients") => {
            (ErrorKind::Unavailable, "the server has as many clients as it may")
        }
        "ERR" if detail.contains("DB index") => {
            (ErrorKind::InvalidInput, "there is no database of this number")
        }
        "ERR" if detail.contains("nknown") => {
            (ErrorKind::Unsupported, "the server is too old: it must be Redis 6.2 or newer, or Valkey")
        }
        _ => (ErrorKind::Internal, ""),
    }
}

/// An answer of another form than the server gives to this.
pub(super) fn nonsense(doing: &'static str) -> Error {
    Error::new(ErrorKind::Internal, format!("{doing} failed: the server's answer makes no sense"))
}
