//! What there is to be said of a child: how it ended, or why it did not start. Pure.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::Signal;

/// What a status means: `exited with status 1`, `was ended by signal 9 (KILL)`.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}{}", signal_name(signal)),
        (None, None) => status.to_string(),
    }
}

/// The names of the signals that end commands in practice.
fn signal_name(signal: i32) -> &'static str {
    let names = [
        (Signal::HUP, " (HUP)"),
        (Signal::INT, " (INT)"),
        (Signal::QUIT, " (QUIT)"),
        (Signal::ILL, " (ILL)"),
        (Signal::ABORT, " (ABRT)"),
        (Signal::BUS, " (BUS)"),
        (Signal::FPE, " (FPE)"),
        (Signal::KILL, " (KILL)"),
        (Signal::SEGV, " (SEGV)"),
        (Signal::PIPE, " (PIPE)"),
        (Signal::TERM, " (TERM)"),
        (Signal::XCPU, " (XCPU)"),
        (Signal::XFSZ, " (XFSZ)"),
    ];
    names.iter().find(|(known, _)| known.as_raw() == signal).map_or("", |(_, name)| name)
}

/// Why `program` can't be started. `errno` is the error's, unless it is known to say nothing about the program.
pub(crate) fn start_error(program: &str, error: &io::Error, errno: Option<Errno>) -> String {
    let hint = match errno {
        Some(Errno::NOEXEC) => " (a script needs a first line such as #!/bin/sh)",
        Some(Errno::NOENT) => " (of a script: what its first line names is not there)",
        _ => "",
    };
    format!("{program} can't be started: {error}{hint}")
}

/// Whether it is for want of something that is given back when others end: memory, processes, descriptors.
pub(crate) fn is_shortage(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_as_what_happened() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exited with status 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by signal 9 (KILL)");
        assert_eq!(describe(ExitStatus::from_raw(40)), "was ended by signal 40");
    }
}
