//! What would be run, shown and not run.

use std::os::unix::ffi::OsStrExt as _;

use super::command::Template;
use super::ledger::too_long;
use crate::cli::records::{BLOCK_BYTES, Format, Input, Item, Splitter};
use crate::cli::stdout::print;
use crate::cli::text::{excerpt, quote};
use crate::cli::{Exit, refuse};

/// Writes the argument list of each record on a line of its own, as a shell would read it.
pub(super) fn dry_run(mut input: Input, format: Format, template: &Template, stdin: bool) -> Exit {
    let (mut splitter, mut buffer) = (Splitter::new(format), vec![0; BLOCK_BYTES]);
    let mut exit = Exit::Done;
    loop {
        let block = input.read(&mut splitter, &mut buffer);
        let mut lines = Vec::new();
        for item in block.items {
            let (number, record, argv) = match item {
                Item::Record { number, bytes } => {
                    let argv = template.fill(&bytes);
                    (number, bytes, argv)
                }
                Item::TooLong { number, start, length } => {
                    (number, start, Err(too_long(length, format.max_bytes)))
                }
            };
            match argv {
                Ok(argv) => {
                    let words: Vec<String> = argv.iter().map(|word| quote(word.as_bytes())).collect();
                    lines.extend_from_slice(words.join(" ").as_bytes());
                    if stdin {
                        lines.extend_from_slice(format!(" <<< {}", quote(&record)).as_bytes());
                    }
                    lines.push(b'\n');
                }
                Err(why) => {
                    exit = refuse(Exit::Failed, format!("record {number} {why}: {}", excerpt(&record)))
                }
            }
        }
        if let Err(exit) = print(&lines) {
            return exit;
        }
        match block.end {
            None => {}
            Some(Ok(())) => return exit,
            Some(Err(error)) => {
                return refuse(Exit::Input, format!("{} can't be read: {error}", input.name()));
            }
        }
    }
}
