//! What is laid over the file: environment variables, and over those the flags of the command line.
//!
//! `TIDEGATE_WORKER__MAX_CONCURRENT_JOBS` is `max_concurrent_jobs` in `[worker]`: two underscores stand between a
//! table and what is in it. A variable that could only be meant for this, and is for nothing, is refused.

use std::ffi::OsString;
use std::sync::Arc;

use super::problem::{Origin, Problem, one_of};
use super::table::{Reading, closest, fold};
use super::tree::{Key, Node, Value, parse_variable};

/// With what the name of a variable begins.
const PREFIX: &str = "TIDEGATE_";

/// Variables that are for something else: those of a job's command, and the one that names the file.
const OTHERS: &[&str] = &["JOB_ID", "KIND", "QUEUE", "ATTEMPT", "DEADLINE", "CONFIG"];

/// What may be set outside of all tables, and the tables.
const SINGLE: &[&str] = &["source"];
const TABLES: &[&str] = &["sqlite", "redis", "worker", "log", "kinds"];

/// The variables and flags of this process. They stay what they were at the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) variables: Vec<(String, OsString)>,
    pub(crate) flags: Vec<Flag>,
}

/// A flag that was given, and what it sets.
#[derive(Clone, Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// The table, and the key in it. Without a table it stands above all of them.
    pub(crate) table: Option<&'static str>,
    pub(crate) key: &'static str,
    pub(crate) value: FlagValue,
}

#[derive(Clone, Debug)]
pub(crate) enum FlagValue {
    Text(String),
    Count(u32),
}

impl Overrides {
    /// The variables of this process that may be meant for it, and these flags.
    pub(crate) fn of_process(flags: Vec<Flag>) -> Self {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let mut variables: Vec<_> = std::env::vars_os().filter_map(named).collect();
        variables.retain(|(name, _)| name.starts_with(PREFIX));
        variables.sort();
        Self { variables, flags }
    }

    /// Lays them over `root`.
    pub(super) fn lay_over(&self, root: &mut Node, reading: &Reading<'_>) {
        for (name, value) in &self.variables {
            let variable: Arc<str> = name.as_str().into();
            if let Err(what) = lay_variable(root, &variable, value) {
                reading.note(Problem::new(&Origin::Variable(variable), what));
            }
        }
        for Flag { name, table, key, value } in &self.flags {
            let value = match value {
                FlagValue::Text(text) => Value::Text(text.clone()),
                FlagValue::Count(number) => Value::Whole((*number).into()),
            };
            let node = Node::new(Origin::Flag(name), value);
            let path: Vec<&str> = table.iter().copied().chain([*key]).collect();
            // Where no table stands in the file, that is said when it is read.
            let _ = put(root, &path, node);
        }
    }
}

/// Lays one variable over `root`, unless it is for something else.
fn lay_variable(root: &mut Node, name: &Arc<str>, value: &OsString) -> Result<(), String> {
    let rest = &name[PREFIX.len()..];
    if OTHERS.contains(&rest) {
        return Ok(());
    }
    let parts: Vec<&str> = rest.split("__").collect();
    let first = fold(parts[0]);
    match parts.as_slice() {
        [_] if SINGLE.contains(&first.as_str()) => {}
        [_] if TABLES.contains(&first.as_str()) => {
            return Err(format!("names a whole table: name a key in it, as in {name}__KEY"));
        }
        // Whoever else it is for: it is no key of ours, unless it was to be one.
        [_] => {
            let Some(close) = closest(&first, SINGLE.iter().copied()) else { return Ok(()) };
            return Err(format!("is not known; did you mean {PREFIX}{}?", close.to_uppercase()));
        }
        _ if !TABLES.contains(&first.as_str()) => {
            let close = closest(&first, TABLES.iter().copied()).map(str::to_uppercase);
            let close = close.map(|close| format!("; did you mean {PREFIX}{close}__…?")).unwrap_or_default();
            return Err(format!("names no table: there are {}{close}", one_of(TABLES.iter().copied())));
        }
        _ if parts.iter().any(|part| part.is_empty()) => {
            return Err(
                "two underscores stand between a table and what is in it, and nowhere else".to_owned()
            );
        }
        _ => {}
    }
    let value = value.to_str().ok_or("is not UTF-8")?;
    let path = resolve(root, &parts)?;
    put(root, &path, parse_variable(name, value))
}

/// The keys that the parts of a variable's name stand for: those that are there, if they are the same but for what a
/// variable's name can't carry.
fn resolve<'p>(root: &'p Node, parts: &[&'p str]) -> Result<Vec<String>, String> {
    let mut path: Vec<String> = Vec::with_capacity(parts.len());
    let mut node = Some(root);
    for part in parts {
        let entries = node.and_then(Node::entries).unwrap_or_default();
        let mut same = entries.iter().filter(|(key, _)| fold(&key.name) == fold(part));
        let name = match (same.next(), same.next()) {
            (Some((one, _)), None) => one.name.clone(),
            (Some((one, _)), Some((other, _))) => {
                return Err(format!("may mean `{}` or `{}`: change it in the file", one.name, other.name));
            }
            (None, _) => match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["kinds"] => {
                    let kinds = entries.iter().map(|(key, _)| key.name.as_str());
                    let kinds = if entries.is_empty() { "none".to_owned() } else { one_of(kinds) };
                    return Err(format!("names no kind of the file (it has {kinds}), and can't add one"));
                }
                // Names that are not ours are taken as they are.
                ["kinds", _, "env" | "headers"] => (*part).to_owned(),
                _ => fold(part),
            },
        };
        node = entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node);
        path.push(name);
    }
    Ok(path)
}

/// Puts `node` in its place, and makes the tables on the way there.
fn put(root: &mut Node, path: &[impl AsRef<str>], node: Node) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *root = node;
        return Ok(());
    };
    let Value::Table(entries) = &mut root.value else {
        return Err(format!("has no place for `{}`: above it stands {}", first.as_ref(), root.sort()));
    };
    let at = entries.iter().position(|(key, _)| key.name == first.as_ref()).unwrap_or_else(|| {
        let key = Key { name: first.as_ref().to_owned(), origin: node.origin.clone() };
        entries.push((key, Node::new(node.origin.clone(), Value::Table(Vec::new()))));
        entries.len() - 1
    });
    put(&mut entries[at].1, rest, node)
}
