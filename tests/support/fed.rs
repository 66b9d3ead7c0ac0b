//! A program that is run to its end with something on its standard input.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::thread;

/// Runs `command` to its end with `input` on its standard input, and returns all that it has said.
pub(crate) fn fed(mut command: Command, input: impl AsRef<[u8]>) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is built");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.as_ref().to_vec();
    // It may end before it has read everything.
    let feeder = thread::Builder::new().name("feeder".to_owned());
    let feeder = feeder.spawn(move || drop(stdin.write_all(&input))).expect("a thread");
    let output = child.wait_with_output().expect("it ends");
    feeder.join().expect("no panic");
    output
}
