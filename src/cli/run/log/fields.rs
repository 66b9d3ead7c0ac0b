//! The values of an event or a span: [`Fields`], each of bounded length.

use std::error::Error;
use std::fmt::{self, Write as _};

use serde::Serialize;
use tracing::field::{Field, Visit};

use crate::error::Chain;
use crate::source::truncate;

/// The longest text that is kept of a value: a reason with all its causes has at most 4 KiB.
const MAX_BYTES: usize = 8 << 10;

/// A value as JSON can hold it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Natural(u64),
    Number(f64),
    Truth(bool),
}

/// What was said, and the values beside it in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    pub(super) message: String,
    pub(super) values: Vec<(&'static str, Value)>,
}

impl Fields {
    /// Takes over the values that have no namesake here.
    pub(super) fn add_missing(&mut self, others: &Self) {
        for (name, value) in &others.values {
            if self.values.iter().all(|(there, _)| there != name) {
                self.values.push((name, value.clone()));
            }
        }
    }

    pub(super) fn put(&mut self, name: &'static str, value: Value) {
        match self.values.iter_mut().find(|(there, _)| *there == name) {
            Some((_, there)) => *there = value,
            None => self.values.push((name, value)),
        }
    }

    fn put_text(&mut self, field: &Field, text: fmt::Arguments<'_>) {
        let mut kept = Bounded::default();
        // That it does not fit is no failure: what fits is kept.
        let _ = kept.write_fmt(text);
        match field.name() {
            "message" => self.message = kept.text,
            name => self.put(name, Value::Text(kept.text)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put_text(field, format_args!("{}", Chain(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), Value::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), Value::Natural(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), Value::Number(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), Value::Truth(value));
    }
}

/// A text that stops growing, at a character's boundary.
#[derive(Default)]
struct Bounded {
    text: String,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX_BYTES.saturating_sub(self.text.len());
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        self.text.push_str(truncate(more, room));
        self.text.push('…');
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_up_to_its_bound() {
        let mut bounded = Bounded::default();
        assert!(bounded.write_str(&"ä".repeat(MAX_BYTES)).is_err());
        assert_eq!(bounded.text, format!("{}…", "ä".repeat(MAX_BYTES / 2)));
    }

    #[test]
    fn what_an_event_says_itself_comes_before_what_its_span_says() {
        let (mut event, mut span) = (Fields::default(), Fields::default());
        event.put("id", Value::Text("1".to_owned()));
        span.put("id", Value::Text("2".to_owned()));
        span.put("queue", Value::Text("mail".to_owned()));
        event.add_missing(&span);
        let expected = [("id", Value::Text("1".to_owned())), ("queue", Value::Text("mail".to_owned()))];
        assert_eq!(event.values, expected);
    }
}
