//! A line of JSON as the draft of a job: pure.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::value::RawValue;

use super::draft::{Draft, While};
use crate::cli::text::from_base64;
use crate::cli::times::moment;
use crate::cli::values::{time, time_or_none};
use crate::enqueue::{Start, Window};

/// The fields of a line. One that is null is as if it were not there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    kind: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    payload_base64: Option<String>,
    queue: Option<String>,
    priority: Option<i16>,
    r#in: Option<Span>,
    at: Option<String>,
    max_attempts: Option<u32>,
    timeout: Option<Span>,
    unique: Option<String>,
    unique_for: Option<Span>,
    unique_while: Option<While>,
    replace: Option<bool>,
}

/// A time as on the command line, or as a number of seconds: its text.
struct Span(String);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spans;
        impl Visitor<'_> for Spans {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as \"10m\", or a number of seconds")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                Ok(Span(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Span, E> {
                Ok(Span(seconds.to_string()))
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Span, E> {
                Ok(Span(seconds.to_string()))
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Span, E> {
                Ok(Span(seconds.to_string()))
            }
        }
        deserializer.deserialize_any(Spans)
    }
}

/// What the line says of a job, or what of it makes no sense.
pub(super) fn draft(line: &[u8]) -> Result<Draft, String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    // A list would be taken for the fields in the order in which they stand above.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".to_owned());
    }
    let line: Line<'_> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let what = without_line(error.inner());
        if matches!(field.as_str(), "." | "?") { what } else { format!("{field}: {what}") }
    })?;
    json.end().map_err(|error| without_line(&error))?;
    line.draft()
}

/// There is but one line, and its number has been said.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

impl Line<'_> {
    fn draft(self) -> Result<Draft, String> {
        let start = match (&self.r#in, &self.at) {
            (Some(_), Some(_)) => return Err("`in` and `at` exclude each other".to_owned()),
            (Some(wait), None) => Some(Start::After(span("in", wait, time_or_none)?)),
            (None, Some(at)) => Some(Start::At(moment(at).map_err(|why| format!("at: {why}"))?)),
            (None, None) => None,
        };
        let window = match (&self.unique_for, self.unique_while) {
            (Some(_), Some(_)) => return Err("`unique_for` and `unique_while` exclude each other".to_owned()),
            (Some(period), None) => Some(Window::For(span("unique_for", period, time_or_none)?)),
            (None, given) => given.map(Window::from),
        };
        let timeout = self.timeout.as_ref().map(|timeout| span("timeout", timeout, time)).transpose()?;
        Ok(Draft {
            payload: payload(self.payload, self.payload_base64.as_deref())?,
            kind: self.kind,
            queue: self.queue,
            priority: self.priority,
            start,
            max_attempts: self.max_attempts,
            timeout,
            unique: self.unique,
            window,
            replace: self.replace,
        })
    }
}

fn span(
    name: &str,
    Span(text): &Span,
    read: fn(&str) -> Result<Duration, String>,
) -> Result<Duration, String> {
    read(text).map_err(|why| format!("{name}: {why}"))
}

/// A text is the payload itself, anything else is one as it is written.
fn payload(json: Option<&RawValue>, coded: Option<&str>) -> Result<Option<Bytes>, String> {
    match (json, coded) {
        (Some(_), Some(_)) => Err("`payload` and `payload_base64` exclude each other".to_owned()),
        (None, None) => Ok(None),
        (None, Some(coded)) => from_base64(coded)
            .map(|bytes| Some(bytes.into()))
            .ok_or_else(|| "payload_base64: it is no Base64".to_owned()),
        (Some(json), None) if json.get().starts_with('"') => {
            let text: String = serde_json::from_str(json.get())
                .map_err(|error| format!("payload: {}", without_line(&error)))?;
            Ok(Some(text.into()))
        }
        (Some(json), None) => Ok(Some(Bytes::copy_from_slice(json.get().as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn said(line: &str) -> Draft {
        draft(line.as_bytes()).expect(line)
    }

    fn payload_of(line: &str) -> Option<Bytes> {
        said(line).payload
    }

    #[test]
    fn a_line_says_what_it_says_and_no_more() {
        assert_eq!(said("{}"), Draft::default());
        assert_eq!(said(r#" {"kind":null,"payload":null,"in":null,"unique":null} "#), Draft::default());
        let all = said(
            r#"{"kind":"k","payload":"p","queue":"q","priority":-7,"in":"5m","max_attempts":3,"timeout":1.5,
                "unique":"u","unique_for":60,"replace":true}"#,
        );
        assert_eq!(
            all,
            Draft {
                kind: Some("k".into()),
                payload: Some("p".into()),
                queue: Some("q".into()),
                priority: Some(-7),
                start: Some(Start::After(Duration::from_secs(300))),
                max_attempts: Some(3),
                timeout: Some(Duration::from_millis(1500)),
                unique: Some("u".into()),
                window: Some(Window::For(Duration::from_secs(60))),
                replace: Some(true),
            }
        );
        assert_eq!(said(r#"{"at":"1970-01-01T00:00:00Z"}"#).start, Some(Start::At(SystemTime::UNIX_EPOCH)));
        assert_eq!(said(r#"{"unique_while":"unfinished"}"#).window, Some(Window::UntilDone));
    }

    #[test]
    fn a_payload_is_the_text_or_the_json_as_it_is_written() {
        for (json, bytes) in [
            (r#""a\n\u00e9\"""#, "a\né\""),
            (r#"{"b" : 1.50, "a":[ ]}"#, r#"{"b" : 1.50, "a":[ ]}"#),
            ("12345678901234567890123", "12345678901234567890123"),
            ("false", "false"),
            (r#""null""#, "null"),
        ] {
            let line = format!(r#"{{"payload":{json}}}"#);
            assert_eq!(payload_of(&line).as_deref(), Some(bytes.as_bytes()), "{line}");
        }
        assert_eq!(payload_of(r#"{"payload_base64":"/w=="}"#).as_deref(), Some(&[0xff][..]));
        assert_eq!(payload_of(r#"{"payload":"","payload_base64":null}"#).as_deref(), Some(&[][..]));
        let deep = format!(r#"{{"payload":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(payload_of(&deep).map(|payload| payload.len()), Some(200_000));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_answered_with_the_field_and_the_column() {
        for (line, why) in [
            ("", "it is no JSON object"),
            (r#"["k"]"#, "it is no JSON object"),
            ("kind", "it is no JSON object"),
            (r#"{"kind":"k""#, "EOF while parsing an object at column 11"),
            (r#"{"kind":"k"} {}"#, "trailing characters at column 14"),
            (r#"{"kind":"k","kind":"l"}"#, "duplicate field `kind` at column 18"),
            (r#"{"kin":"k"}"#, "kin: unknown field `kin`, expected one of `kind`, `payload`,"),
            (r#"{"kind":7}"#, "kind: invalid type: integer `7`, expected a string at column 9"),
            (r#"{"priority":40000}"#, "priority: invalid value: integer `40000`, expected i16"),
            (r#"{"max_attempts":-1}"#, "max_attempts: invalid value: integer `-1`, expected u32"),
            (r#"{"in":"soon"}"#, "in: write a number and ms, s, m, h or d"),
            (r#"{"in":-1}"#, "in: write a number and ms, s, m, h or d"),
            (r#"{"in":[1]}"#, "in: invalid type: sequence, expected a time such as \"10m\""),
            (r#"{"timeout":0}"#, "timeout: it must be at least 1ms"),
            (r#"{"unique_for":"400d"}"#, "unique_for: it must be at most 366d"),
            (r#"{"at":"noon"}"#, "at: write a moment as in RFC 3339"),
            (r#"{"at":"2030-01-01","in":1}"#, "`in` and `at` exclude each other"),
            (
                r#"{"unique_for":1,"unique_while":"queued"}"#,
                "`unique_for` and `unique_while` exclude each other",
            ),
            (
                r#"{"unique_while":"done"}"#,
                "unique_while: unknown variant `done`, expected `queued` or `unfinished`",
            ),
            (r#"{"payload":1,"payload_base64":"AA=="}"#, "`payload` and `payload_base64` exclude each other"),
            (r#"{"payload_base64":"no base64"}"#, "payload_base64: it is no Base64"),
            (r#"{"payload":"\ud800"}"#, "payload: "),
        ] {
            let said = draft(line.as_bytes()).expect_err(line);
            assert!(said.starts_with(why), "{line}: {said}");
        }
        assert!(draft(b"{\"kind\":\"\xff\"}").is_err());
    }
}
