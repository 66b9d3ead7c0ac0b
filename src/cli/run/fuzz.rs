//! The body of the fuzz target `config`: a file of any text, and what is shown of it when it is refused.

use super::config::problem::{Document, Problem, Refused};
use super::config::tree::{Node, Value, parse};

/// Stands in a secret behind whatever the file has.
const SECRET: &str = "hunter2hunter2";

/// How many places are complained about: a file may have many.
const PLACES: usize = 64;

/// Reads the text with a secret behind it, and complains of every place in it.
///
/// # Panics
/// If anything that should hold does not: no text is too much, and the secret is never shown.
pub(crate) fn config(data: &[u8]) {
    let Ok(before) = std::str::from_utf8(data) else { return };
    if before.contains("hunter2") {
        return;
    }
    let text = format!("{before}\n[kinds.a]\nenv = {{ A = \"{SECRET}\" }} # {SECRET}\n");
    let mut read = Document::new("config", text);
    let problems = match parse(&mut read) {
        Ok(root) => {
            let mut problems = Vec::new();
            complain(&root, &mut problems);
            problems
        }
        Err(problem) => vec![problem],
    };
    let count = problems.len();
    let refused = Refused::new(read, problems);
    let shown = refused.to_string();
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.lines().count() <= 2 + 3 * count, "each is shown in three lines: {shown}");
    for (line, excerpt) in refused.lines() {
        assert!(!line.contains('\n') && excerpt.is_some_and(|excerpt| !excerpt.contains(['\n', '\x1b'])));
    }
}

fn complain(node: &Node, problems: &mut Vec<Problem>) {
    if problems.len() >= PLACES {
        return;
    }
    problems.push(Problem::new(&node.origin, "is refused"));
    match &node.value {
        Value::Table(entries) => entries.iter().rev().for_each(|(_, node)| complain(node, problems)),
        Value::List(nodes) => nodes.iter().for_each(|node| complain(node, problems)),
        _ => {}
    }
}
