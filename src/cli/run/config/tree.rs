//! A configuration as a tree of values, each of which knows where it comes from. Pure.
//!
//! Depth is bounded by the parser (80 levels), size by the file's.

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Document, Origin, Problem};

/// A value, and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) value: Value,
    /// What was written, if that may be text however it looks: in an environment variable.
    pub(super) raw: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Whole(i128),
    Number(f64),
    Truth(bool),
    /// A date or a time of day, of which there is no use here.
    Date,
    List(Vec<Node>),
    Table(Vec<(Key, Node)>),
}

/// A name in a table, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(super) name: String,
    pub(crate) origin: Origin,
}

impl Node {
    pub(super) fn new(origin: Origin, value: Value) -> Self {
        Self { origin, value, raw: None }
    }

    /// What sort of value it is, for a person.
    pub(super) fn sort(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "text",
            Value::Whole(_) => "a whole number",
            Value::Number(_) => "a number",
            Value::Truth(_) => "true or false",
            Value::Date => "a date or time",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The text that it is, or that it may be taken for.
    pub(super) fn text(&self) -> Option<&str> {
        match (&self.value, &self.raw) {
            (Value::Text(text), _) => Some(text),
            (Value::List(_) | Value::Table(_), _) | (_, None) => None,
            (_, Some(raw)) => Some(raw),
        }
    }

    /// What it holds, if it is a table.
    pub(crate) fn entries(&self) -> Option<&[(Key, Node)]> {
        if let Value::Table(entries) = &self.value { Some(entries) } else { None }
    }
}

/// Reads the text of `document`, and enters into it where keys and values stand.
pub(crate) fn parse(document: &mut Document) -> Result<Node, Problem> {
    let text = std::mem::take(&mut document.text);
    let parsed = match DeTable::parse(&text) {
        Ok(root) => {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            let mut note = |span, is_key| if is_key { keys.push(span) } else { values.push(span) };
            let root = table(root.get_ref(), Origin::File(root.span()), &mut note);
            // A table may be added to further down.
            keys.sort_by_key(|key| key.start);
            values.sort_by_key(|value| value.start);
            (document.keys, document.values) = (keys, values);
            Ok(root)
        }
        Err(error) => {
            let end = text.trim_end().len();
            Err(Problem::syntax(error.span().unwrap_or(end..end), error.message()))
        }
    };
    document.text = text;
    parsed
}

/// Reads the value of an environment variable: as TOML, or else as plain text.
pub(super) fn parse_variable(name: &Arc<str>, raw: &str) -> Node {
    let origin = || Origin::Variable(name.clone());
    let mut node = match DeValue::parse(raw) {
        Ok(value) => at(&origin(), convert(value.get_ref(), value.span(), &mut |_, _| {})),
        Err(_) => Node::new(origin(), Value::Text(raw.to_owned())),
    };
    node.raw = Some(raw.into());
    node
}

/// The same values, all of them from `origin`.
fn at(origin: &Origin, node: Node) -> Node {
    let value = match node.value {
        Value::List(nodes) => Value::List(nodes.into_iter().map(|node| at(origin, node)).collect()),
        Value::Table(entries) => {
            let moved = |(key, node): (Key, Node)| (Key { origin: origin.clone(), ..key }, at(origin, node));
            Value::Table(entries.into_iter().map(moved).collect())
        }
        plain => plain,
    };
    Node::new(origin.clone(), value)
}

/// Is told where each key stands, and each value that holds no others.
type Note<'a> = &'a mut dyn FnMut(Range<usize>, bool);

fn table(entries: &DeTable<'_>, origin: Origin, note: Note<'_>) -> Node {
    let mut found: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = entries.iter().collect();
    found.sort_by_key(|(key, _)| key.span().start);
    let mut entry = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        note(key.span(), true);
        let name = key.get_ref().clone().into_owned();
        (Key { name, origin: Origin::File(key.span()) }, convert(value.get_ref(), value.span(), note))
    };
    let entries = found.into_iter().map(&mut entry).collect();
    Node::new(origin, Value::Table(entries))
}

fn convert(value: &DeValue<'_>, span: Range<usize>, note: Note<'_>) -> Node {
    let origin = Origin::File(span.clone());
    let plain = match value {
        DeValue::Table(entries) => return table(entries, origin, note),
        DeValue::Array(values) => {
            let nodes = values.iter().map(|value| convert(value.get_ref(), value.span(), note)).collect();
            return Node::new(origin, Value::List(nodes));
        }
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(digits) => {
            // What is larger than this is too large for anything.
            Value::Whole(i128::from_str_radix(digits.as_str(), digits.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(digits) => Value::Number(digits.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Truth(*truth),
        DeValue::Datetime(_) => Value::Date,
    };
    note(span, false);
    Node::new(origin, plain)
}
