//! What the server and the driver say when something fails, in the words of this crate.

use redis::{ErrorKind as Driver, RedisError};

use crate::error::{Error, ErrorKind};

/// The same failure as an [`Error`]: of the kind that tells whether it may pass, and saying what to do.
///
/// The codes that pass by themselves are those of a server that starts, fails over or is cut off (`docs/redis.md`).
pub(super) fn failed(doing: &'static str, error: RedisError) -> Error {
    let (kind, advice) = judge(&error);
    let mut context = format!("{doing} failed");
    if !advice.is_empty() {
        context = format!("{context}: {advice}");
    }
    // As the server has it, for who looks it up: the driver has names of its own.
    if let Some(code) = error.code().filter(|code| *code != "ERR") {
        context = format!("{context} ({code})");
    }
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
        let detail = error.detail().unwrap_or_default();
        let (code, detail) = in_script(code, detail).unwrap_or((code, detail));
        return by_code(code, detail);
    }
    match error.kind() {
        Driver::InvalidClientConfig => (ErrorKind::InvalidInput, "the URL or its options make no sense"),
        // What comes after an answer that could not be read is not to be trusted either.
        Driver::Parse => (ErrorKind::Connection, "the server does not speak its protocol"),
        _ => (ErrorKind::Internal, ""),
    }
}

const NO_PASSWORD: &str = "the server wants a password: put it in the URL";
const NOT_ALLOWED: &str = "the user in the URL may not do this (`ACL SETUSER` allows it)";

/// The code and the text of what went wrong in a script, as servers before 7.0 have it: in the text of another.
fn in_script<'a>(code: &str, detail: &'a str) -> Option<(&'a str, &'a str)> {
    let said = detail.strip_prefix("Error running script").filter(|_| code == "ERR")?;
    said.rsplit_once(": ")?.1.trim_start_matches('-').split_once(' ')
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
        "NOAUTH" => (ErrorKind::Denied, NO_PASSWORD),
        // The same, said to a command of many parts.
        "ERR" if detail.contains("unauthenticated") => (ErrorKind::Denied, NO_PASSWORD),
        "WRONGPASS" => (ErrorKind::Denied, "the server refused the name or the password"),
        "NOPERM" => (ErrorKind::Denied, NOT_ALLOWED),
        "WRONGTYPE" => (ErrorKind::InvalidInput, "a key of the queue holds something else"),
        "CROSSSLOT" | "MOVED" | "ASK" => {
            (ErrorKind::Unsupported, "a cluster is not supported: name a server of its own")
        }
        // A script's commands are refused in other words than commands.
        "ERR" if detail.contains("user executing the script") || detail.contains("ACL failure in script") => {
            (ErrorKind::Denied, NOT_ALLOWED)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_in_a_script_is_known_from_every_server() {
        let before_7 = "Error running script (call to f_6b1b): @user_script:12: ";
        for (code, detail, kind) in [
            (
                "READONLY",
                "You can't write against a read only replica. script: 6b1b, on @user_script:12.",
                ErrorKind::Connection,
            ),
            (
                "ERR",
                &format!("{before_7}-READONLY You can't write against a read only replica."),
                ErrorKind::Connection,
            ),
            ("ERR", &format!("{before_7}WRONGTYPE Operation against a key"), ErrorKind::InvalidInput),
            ("ERR", "The user executing the script can't run this command or subcommand", ErrorKind::Denied),
            (
                "ERR",
                "ACL failure in script: User ada has no permissions to run the 'rpop' command",
                ErrorKind::Denied,
            ),
            (
                "ERR",
                "Error running script (call to f_6b1b): @user_script:12: attempt to index",
                ErrorKind::Internal,
            ),
        ] {
            let (code, detail) = in_script(code, detail).unwrap_or((code, detail));
            assert_eq!(by_code(code, detail).0, kind, "{code} {detail}");
        }
    }
}
