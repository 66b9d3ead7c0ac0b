//! The body of the fuzz target `each_record`: from the bytes of an input to the arguments of commands.

use std::ffi::OsString;

use super::command::{Rules, Template};
use crate::cli::records::{Format, Item, Splitter};

/// Small, so that the fuzzer finds what is too long.
const MAX_BYTES: usize = 64;

/// Cuts the input in two ways, which must agree, and fills a command of text and one of JSON fields with each
/// record. The first byte says where the block ends.
///
/// # Panics
/// If anything that should hold does not.
pub(crate) fn records(data: &[u8]) {
    let Some((cut, input)) = data.split_first() else { return };
    for (separator, keep_empty) in [(b'\n', false), (0, true)] {
        let format = Format { separator, keep_empty, max_bytes: MAX_BYTES };
        let whole = split(format, &[input]);
        let (first, second) = input.split_at(usize::from(*cut).min(input.len()));
        assert_eq!(whole, split(format, &[first, second]), "where a block ends makes no difference");
        let bytes = |item: &Item| match item {
            Item::Record { bytes, .. } => bytes.len() as u64,
            Item::TooLong { length, .. } => *length,
        };
        let separators = input.iter().filter(|byte| **byte == separator).count() as u64;
        assert_eq!(whole.iter().map(bytes).sum::<u64>() + separators, input.len() as u64, "no byte is lost");
        for item in &whole {
            if let Item::Record { bytes, .. } = item {
                fill(bytes);
            }
        }
    }
    template(input);
}

fn split(format: Format, blocks: &[&[u8]]) -> Vec<Item> {
    let (mut splitter, mut items) = (Splitter::new(format), Vec::new());
    for block in blocks {
        splitter.push(block, &mut items);
    }
    items.extend(splitter.finish());
    items
}

/// A record either fills the command or is refused with a reason.
fn fill(record: &[u8]) {
    for (words, json) in [(["echo", "-{}-"], false), (["echo", "{.a.b} {.c}"], true)] {
        let rules = Rules { replace: "{}", json, stdin: false, shell: false };
        let template = Template::parse(&words.map(OsString::from), &rules).expect("the command makes sense");
        match template.fill(record) {
            Ok(arguments) => assert!(arguments.len() >= 2),
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}

/// A command of any text makes sense or is refused with a reason.
fn template(word: &[u8]) {
    let word = String::from_utf8_lossy(word).into_owned();
    let rules = Rules { replace: "{}", json: true, stdin: true, shell: false };
    match Template::parse(&["echo".into(), word.into()], &rules) {
        Ok(template) => assert!(template.program().is_some()),
        Err(reason) => assert!(!reason.is_empty()),
    }
}
