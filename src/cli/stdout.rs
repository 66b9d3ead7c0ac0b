//! Standard output: written whole, and with the answer of how to end when nobody takes it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::excerpt::is_unruly;
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

/// `value` as JSON on a line of its own, which does not drive a terminal either: JSON's own rules leave some control
/// characters as they are.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_string(value).unwrap_or_default();
    if line.contains(is_unruly) {
        let mut units = [0; 2];
        let mut tamed = String::with_capacity(line.len() + 16);
        for char in line.chars() {
            if is_unruly(char) {
                // It stands in a string: nothing else in JSON is made of such characters. Writing to one can't fail.
                for unit in char.encode_utf16(&mut units) {
                    let _ = write!(tamed, "\\u{unit:04x}");
                }
            } else {
                tamed.push(char);
            }
        }
        line = tamed;
    }
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_shown_says_the_same_and_drives_no_terminal() {
        let text = "\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{e0001}\u{feff} ünï 漢字 \" \\ \n";
        let line = String::from_utf8(json_line(&text)).expect("UTF-8");
        assert!(!line.trim_end_matches('\n').contains(is_unruly), "{line:?}");
        assert!(line.contains("ünï 漢字") && line.contains("\\udb40\\udc01"), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), text);
    }
}
