//! Reading a table: each key is asked for by name, in its range; what nobody has asked for in the end is a mistake.
//!
//! Nothing is refused here on the spot: what is wrong is noted in [`Reading`], so that all of it is told at once.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Place;
use super::problem::{Origin, Problem, one_of};
use super::tree::{Key, Node, Value};
use crate::cli::values::{size, size_or_none, time, time_or_none};

/// A configuration that is being read: where it is, and what is wrong with it so far.
#[derive(Debug)]
pub(super) struct Reading<'p> {
    place: &'p Place,
    found: RefCell<Vec<Problem>>,
    unknown: RefCell<Vec<Unknown>>,
    /// The keys of all tables but those of kinds, each with the table's path.
    known: RefCell<Vec<(String, &'static str)>>,
}

/// A key that nobody has asked for.
#[derive(Debug)]
struct Unknown {
    origin: Origin,
    name: String,
    /// Where it stands, and what could stand there.
    path: String,
    known: Vec<&'static str>,
}

impl<'p> Reading<'p> {
    pub(super) fn new(place: &'p Place) -> Self {
        Self { place, found: RefCell::default(), unknown: RefCell::default(), known: RefCell::default() }
    }

    /// Where a path begins that was said there.
    pub(super) fn base(&self, origin: &Origin) -> &'p Path {
        self.place.base(origin)
    }

    pub(super) fn note(&self, problem: Problem) {
        self.found.borrow_mut().push(problem);
    }

    /// All of them, the unknown keys included.
    pub(super) fn into_all(self) -> Vec<Problem> {
        let Self { found, unknown, known, .. } = self;
        let (mut found, known) = (found.into_inner(), known.into_inner());
        found.extend(unknown.into_inner().iter().map(|key| key.problem(&known)));
        found
    }
}

impl Unknown {
    fn problem(&self, everywhere: &[(String, &'static str)]) -> Problem {
        let Self { origin, name, path, known } = self;
        let place = if path.is_empty() { String::new() } else { format!(" in [{path}]") };
        let elsewhere: Vec<&str> = everywhere
            .iter()
            .filter(|(other, key)| key == name && other != path)
            .map(|(other, _)| other.as_str())
            .collect();
        let close = closest(name, known.iter().copied());
        let advice = match (elsewhere.as_slice(), close) {
            ([], Some(close)) => match origin {
                Origin::Variable(variable) => {
                    let table = variable.rfind("__").map_or("TIDEGATE_", |at| &variable[..at + 2]);
                    format!("did you mean {table}{}?", close.to_uppercase())
                }
                _ => format!("did you mean `{close}`?"),
            },
            ([], None) => format!("there may be {}", one_of(known.iter().copied())),
            ([""], _) => "it stands above all tables".to_owned(),
            (tables, _) => {
                let tables: Vec<String> = tables.iter().map(|table| format!("[{table}]")).collect();
                format!("it stands in {}", one_of(tables.iter().map(String::as_str)))
            }
        };
        Problem::new(origin, format!("unknown key `{}`{place}: {advice}", name.escape_debug()))
    }
}

/// The one of `known` that is most like `name`, if one is like it at all.
pub(super) fn closest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Only so much of a name can be a typing mistake.
    let name: String = fold(name).chars().take(64).collect();
    let far = |known: &str| {
        let distance = strsim::osa_distance(&name, known);
        let part = name.len() >= 4 && (known.contains(name.as_str()) || name.contains(known));
        if part { distance.min(1) } else { distance }
    };
    let near = |(distance, known): &(usize, &str)| *distance <= known.len().max(name.len()) / 3;
    known
        .into_iter()
        .map(|known| (far(known), known))
        .filter(near)
        .min_by_key(|(far, _)| *far)
        .map(|(_, known)| known)
}

/// A name as an environment variable can carry it, small: `mail.send` and `MAIL_SEND` are the same.
pub(super) fn fold(name: &str) -> String {
    name.chars().map(|char| if char.is_alphanumeric() { char.to_ascii_lowercase() } else { '_' }).collect()
}

/// A table that is being read.
#[derive(Debug)]
pub(crate) struct Table<'n> {
    path: String,
    origin: Origin,
    entries: &'n [(Key, Node)],
    asked: Vec<&'static str>,
    reading: &'n Reading<'n>,
}

impl<'n> Table<'n> {
    /// The table at `path`, which is empty for the outermost.
    pub(super) fn new(path: impl Into<String>, node: &'n Node, reading: &'n Reading<'n>) -> Self {
        let path = path.into();
        let entries = node.entries().unwrap_or_else(|| {
            let what = format!("{path} must be a table, and is {}", node.sort());
            reading.note(Problem::new(&node.origin, what));
            &[]
        });
        Self { path, origin: node.origin.clone(), entries, asked: Vec::new(), reading }
    }

    /// Where it begins, as far as that is known.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn reading(&self) -> &'n Reading<'n> {
        self.reading
    }

    pub(super) fn entries(&self) -> &'n [(Key, Node)] {
        self.entries
    }

    /// What a key is called in messages.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'n Node> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.entries.iter().find(|(there, _)| there.name == key).map(|(_, node)| node)
    }

    /// Something is wrong with `node`, in which a secret may stand, under `key`.
    pub(crate) fn refuse_secretly(&self, key: &str, node: &Node, why: &str) {
        self.reading.note(Problem::new(&node.origin, format!("{}: {why}", self.name(key))));
    }

    /// Something is wrong with the value of `key`, which is no secret.
    pub(super) fn refuse(&self, key: &str, node: &Node, why: impl AsRef<str>) {
        let what = format!("{} {}", self.name(key), why.as_ref());
        self.reading.note(Problem::new(&node.origin, what).harmless());
    }

    fn wrong_sort(&self, key: &str, node: &Node, wanted: &str, hint: &str) {
        self.refuse(key, node, format!("must be {wanted}, and is {}{hint}", node.sort()));
    }

    pub(crate) fn table(&mut self, key: &'static str) -> Option<Table<'n>> {
        let node = self.get(key)?;
        Some(Table::new(self.name(key), node, self.reading))
    }

    /// Text that is not empty.
    pub(crate) fn text(&mut self, key: &'static str, wanted: &str) -> Option<&'n str> {
        let node = self.get(key)?;
        match node.text() {
            Some("") => self.refuse(key, node, format!("is empty: it must be {wanted}")),
            Some(text) => return Some(text),
            None => self.wrong_sort(key, node, wanted, " (write it in quotes)"),
        }
        None
    }

    /// A path that is not empty. A relative one begins where it was said.
    pub(crate) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.text(key, "a path")?;
        self.get(key).map(|node| self.reading.base(&node.origin).join(path))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let node = self.get(key)?;
        let names = || words.iter().map(|(word, _)| *word);
        let text = node.text().unwrap_or_default();
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let close = closest(text, names()).map(|close| format!("; did you mean `{close}`?"));
            let close = close.unwrap_or_default();
            self.refuse(key, node, format!("must be {}{close}", one_of(names())));
        }
        found
    }

    /// True or false.
    pub(crate) fn truth(&mut self, key: &'static str) -> Option<bool> {
        let node = self.get(key)?;
        match node.value {
            Value::Truth(truth) => return Some(truth),
            _ => self.wrong_sort(key, node, "true or false", " (write it without quotes)"),
        }
        None
    }

    /// A whole number from `least` to `most`.
    pub(super) fn count(&mut self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let node = self.get(key)?;
        let wanted = format!("a whole number from {least} to {most}");
        match node.value {
            Value::Whole(number) => match u64::try_from(number) {
                Ok(number) if (least..=most).contains(&number) => return Some(number),
                _ => self.refuse(key, node, format!("is {number}: it must be {wanted}")),
            },
            Value::Text(_) => self.wrong_sort(key, node, &wanted, unquote(node)),
            _ => self.wrong_sort(key, node, &wanted, ""),
        }
        None
    }

    /// A number from `least` to `most`.
    pub(super) fn number(&mut self, key: &'static str, least: f64, most: f64) -> Option<f64> {
        let node = self.get(key)?;
        let number = match node.value {
            Value::Whole(whole) => whole as f64,
            Value::Number(number) => number,
            _ => {
                self.wrong_sort(key, node, &format!("a number from {least} to {most}"), unquote(node));
                return None;
            }
        };
        if (least..=most).contains(&number) {
            return Some(number);
        }
        self.refuse(key, node, format!("is {number}: it must be from {least} to {most}"));
        None
    }

    /// A time above 0.
    pub(crate) fn time(&mut self, key: &'static str) -> Option<Duration> {
        let node = self.get(key)?;
        self.measure(key, node, time, "a time such as \"30s\"")
    }

    /// A time from 0.
    pub(crate) fn time_or_zero(&mut self, key: &'static str) -> Option<Duration> {
        let node = self.get(key)?;
        self.measure(key, node, time_or_none, "a time such as \"30s\"")
    }

    /// A time above 0, or the word `none`, which is `Some(None)`.
    pub(crate) fn time_or_word(&mut self, key: &'static str) -> Option<Option<Duration>> {
        let node = self.get(key)?;
        if node.text() == Some("none") {
            return Some(None);
        }
        self.measure(key, node, time, "a time such as \"30s\", or \"none\"").map(Some)
    }

    /// A number of bytes from 1.
    pub(crate) fn size(&mut self, key: &'static str) -> Option<usize> {
        let node = self.get(key)?;
        self.measure(key, node, size, "a size such as \"16KiB\"")
    }

    /// A number of bytes from 0 to `most`.
    pub(crate) fn size_up_to(&mut self, key: &'static str, most: usize) -> Option<usize> {
        let node = self.get(key)?;
        let bytes = self.measure(key, node, size_or_none, "a size such as \"16KiB\"")?;
        if bytes > most {
            self.refuse(key, node, format!("is {bytes} B: it must be at most {most} B"));
        }
        Some(bytes.min(most))
    }

    fn measure<T>(
        &self,
        key: &str,
        node: &Node,
        read: fn(&str) -> Result<T, String>,
        wanted: &str,
    ) -> Option<T> {
        match node.text().map(read) {
            Some(Ok(value)) => return Some(value),
            Some(Err(why)) => self.refuse(key, node, format!("makes no sense: {why}")),
            None => self.wrong_sort(key, node, wanted, " (write it in quotes, with its unit)"),
        }
        None
    }

    /// Says that there are no further keys.
    pub(super) fn end(self) {
        let Self { path, entries, asked, reading, .. } = self;
        let unknown = entries.iter().filter(|(key, _)| !asked.contains(&key.name.as_str()));
        reading.unknown.borrow_mut().extend(unknown.map(|(key, _)| Unknown {
            origin: key.origin.clone(),
            name: key.name.clone(),
            path: path.clone(),
            known: asked.clone(),
        }));
        // A kind's keys are never meant to stand elsewhere, and there may be very many kinds.
        if !path.starts_with("kinds.") {
            reading.known.borrow_mut().extend(asked.into_iter().map(|key| (path.clone(), key)));
        }
    }
}

/// What helps who has put a number in quotes.
fn unquote(node: &Node) -> &'static str {
    match &node.value {
        Value::Text(text) if text.trim().parse::<f64>().is_ok() => " (write it without quotes)",
        _ => "",
    }
}
