//! One event as one line: pure, but for [`Line::now`], which reads the clock.

use std::fmt::Write as _;

use serde::ser::{SerializeMap as _, Serializer as _};
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use super::fields::{Fields, Value};

/// As long as most messages are, so that the values of several lines stand below each other.
const MESSAGE_WIDTH: usize = 28;

/// Names that a line has for itself.
const OWN: &[&str] = &["time", "level", "message"];

/// How a line for a person looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Without the date.
    pub(super) short: bool,
    pub(super) colours: bool,
}

/// An event.
#[derive(Debug)]
pub(super) struct Line {
    /// As `2026-11-21T18:30:00.123456Z`.
    time: String,
    level: Level,
    fields: Fields,
}

impl Line {
    /// Something that has just happened.
    pub(super) fn now(level: Level, fields: Fields) -> Self {
        let mut time = String::new();
        // Writing to a string can't fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        Self { time, level, fields }
    }

    /// So many lines were not written.
    pub(super) fn about_dropped(lines: u64) -> Self {
        let mut fields = Fields {
            message: "lines of the log were dropped: nobody read them in time".to_owned(),
            ..Fields::default()
        };
        fields.put("lines", Value::Natural(lines));
        Self::now(Level::WARN, fields)
    }

    /// For a program.
    pub(super) fn json(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        let level = self.level.as_str().to_ascii_lowercase();
        let written = (|| {
            let mut serializer = serde_json::Serializer::new(&mut bytes);
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry("time", &self.time)?;
            map.serialize_entry("level", &level)?;
            map.serialize_entry("message", &self.fields.message)?;
            for (name, value) in self.fields.values.iter().filter(|(name, _)| !OWN.contains(name)) {
                map.serialize_entry(name, value)?;
            }
            map.end()
        })();
        debug_assert!(written.is_ok(), "texts and numbers fit into JSON");
        bytes.push(b'\n');
        bytes
    }

    /// For a person.
    pub(super) fn human(&self, look: Look) -> Vec<u8> {
        let time = match look.short {
            true => self.time.get(11..23).unwrap_or(&self.time),
            false => &self.time,
        };
        let colour = match self.level {
            Level::ERROR => "\x1b[31m",
            Level::WARN => "\x1b[33m",
            Level::INFO => "\x1b[32m",
            Level::DEBUG | Level::TRACE => "\x1b[34m",
        };
        let (dim, colour, plain) = if look.colours { ("\x1b[2m", colour, "\x1b[0m") } else { ("", "", "") };
        let mut line = format!("{dim}{time}{plain} {colour}{:<5}{plain} ", self.level.as_str());
        put_plain(&mut line, &self.fields.message);
        let width = self.fields.message.chars().count();
        if !self.fields.values.is_empty() {
            line.extend(std::iter::repeat_n(' ', MESSAGE_WIDTH.saturating_sub(width)));
        }
        for (name, value) in &self.fields.values {
            // Writing to a string can't fail.
            let _ = write!(line, " {dim}{name}={plain}");
            match value {
                Value::Text(text) => put_value(&mut line, text),
                Value::Whole(number) => drop(write!(line, "{number}")),
                Value::Natural(number) => drop(write!(line, "{number}")),
                Value::Number(number) => drop(write!(line, "{number}")),
                Value::Truth(truth) => drop(write!(line, "{truth}")),
            }
        }
        line.push('\n');
        line.into_bytes()
    }
}

/// In quotes, unless it is plainly one word.
fn put_value(line: &mut String, text: &str) {
    let plain = |char: char| !char.is_whitespace() && !char.is_control() && !"\"=".contains(char);
    if !text.is_empty() && text.chars().all(plain) {
        return line.push_str(text);
    }
    line.push('"');
    for char in text.chars() {
        match char {
            '"' => line.push_str("\\\""),
            char => put_char(line, char),
        }
    }
    line.push('"');
}

fn put_plain(line: &mut String, text: &str) {
    text.chars().for_each(|char| put_char(line, char));
}

/// Nothing that moves the cursor, changes colours or the direction of writing.
fn put_char(line: &mut String, char: char) {
    let turns = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if char.is_control() || turns || matches!(char, '\u{2028}' | '\u{2029}') {
        line.extend(char.escape_default());
    } else {
        line.push(char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look { short: true, colours: false };

    fn line(level: Level, message: &str, values: &[(&'static str, Value)]) -> Line {
        let fields = Fields { message: message.to_owned(), values: values.to_vec() };
        Line { time: "2026-11-21T18:30:00.123456Z".to_owned(), level, fields }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_line_for_a_person_is_short_and_aligned() {
        let failed = line(
            Level::WARN,
            "job failed",
            &[("id", text("7")), ("attempt", Value::Natural(2)), ("reason", text("exited with status 1"))],
        );
        let shown = "18:30:00.123 WARN  job failed                   id=7 attempt=2 reason=\"exited with status 1\"\n";
        assert_eq!(String::from_utf8_lossy(&failed.human(PLAIN)), shown);
        let long = Look { short: false, colours: true };
        let shown = "\x1b[2m2026-11-21T18:30:00.123456Z\x1b[0m \x1b[31mERROR\x1b[0m over\n";
        assert_eq!(String::from_utf8_lossy(&line(Level::ERROR, "over", &[]).human(long)), shown);
    }

    #[test]
    fn no_value_breaks_a_line_or_reaches_the_terminal() {
        let hostile = "a\n\x1b[31m\"b\"\u{202e}=\r";
        let human =
            line(Level::INFO, hostile, &[("reason", text(hostile)), ("empty", text(""))]).human(PLAIN);
        let human = String::from_utf8(human).expect("text");
        let shown = r#"reason="a\n\u{1b}[31m\"b\"\u{202e}=\r" empty="""#;
        assert!(human.ends_with(&format!("{shown}\n")) && human.lines().count() == 1, "{human}");
        let json = line(Level::INFO, hostile, &[("reason", text(hostile))]).json();
        assert_eq!(json.iter().filter(|byte| **byte < b' ').count(), 1, "the newline at the end");
        let read: serde_json::Value = serde_json::from_slice(&json).expect("it is JSON");
        assert_eq!(read["reason"], hostile);
    }

    #[test]
    fn a_line_for_a_program_has_the_same_names_first_whatever_the_event_calls_its_values() {
        let values = [
            ("level", text("mine")),
            ("jobs", Value::Natural(3)),
            ("ok", Value::Truth(true)),
            ("share", Value::Number(f64::NAN)),
        ];
        let json = line(Level::ERROR, "over", &values).json();
        let expected = "{\"time\":\"2026-11-21T18:30:00.123456Z\",\"level\":\"error\",\"message\":\"over\",\"jobs\":3,\"ok\":true,\"share\":null}\n";
        assert_eq!(String::from_utf8_lossy(&json), expected);
    }
}
