//! Standard output: written whole, and with the answer of how to end when nobody takes it.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::{Exit, refuse};

/// Writes `bytes` to standard output now. When that can't be done, says so, and returns how to end.
pub(super) fn print(bytes: &[u8]) -> Result<(), Exit> {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    match stdout.and_then(|stdout| write_whole(&stdout, bytes)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Exit::Pipe),
        Err(error) => Err(refuse(Exit::Output, format!("standard output can't be written: {error}"))),
    }
}

/// Writes all of `bytes`, also where somebody has made the other end non-blocking.
pub(super) fn write_whole(mut to: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `value` as JSON on a line of its own.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}
