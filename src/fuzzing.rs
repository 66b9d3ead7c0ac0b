//! The bodies of the fuzz targets: the targets themselves are three lines each, and these run in
//! `cargo test` too.

use serde::Deserialize;

use crate::handler::decode_json;

/// A payload as a handler might ask for it, with a bit of everything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    _name: String,
    _count: Option<i64>,
    _ratio: Option<f64>,
    #[serde(default)]
    _tags: Vec<String>,
    #[serde(default)]
    _nested: Option<Box<Sample>>,
}

/// Bytes from a source, decoded as a job's arguments: never a panic, and always an error that says something.
pub fn decode_job(bytes: &[u8]) {
    if let Err(error) = decode_json::<Sample>(bytes) {
        assert!(!error.to_string().is_empty());
    }
    if let Err(error) = decode_json::<serde_json::Value>(bytes) {
        assert!(!error.to_string().is_empty());
    }
}

/// The bytes of an input of `tidegate each`, cut into records, and what commands they make: never a panic,
/// whatever is in them, and no byte lost.
pub fn each_record(bytes: &[u8]) {
    crate::cli::each::fuzz::records(bytes);
}

/// The text of a configuration of `tidegate run`, and what is shown of it when it is refused: never a panic, and
/// never a value that may be a secret.
pub fn config(bytes: &[u8]) {
    crate::cli::run::fuzz::config(bytes);
}

/// The bytes of a line of `tidegate enqueue --json-lines`: a job that a queue takes, or an error that says something.
pub fn job_line(bytes: &[u8]) {
    crate::cli::enqueue::fuzz::line(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_or_answered(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            decode_job(&bytes);
            each_record(&bytes);
            config(&bytes);
            job_line(&bytes);
        }

        #[test]
        fn any_line_of_fields_is_a_job_or_answered(
            fields in proptest::collection::vec((
                "kind|payload|payload_base64|queue|priority|in|at|max_attempts|timeout|unique|unique_for|unique_while|replace|x",
                "null|true|-?[0-9]{1,6}|[0-9]\\.[0-9]e[0-9]|\"[a-z0-9= :\u{1b}]{0,9}\"|\"queued\"|\"AAA=\"|\"5m\"|\\[1\\]|\\{\\}",
            ), 0..5),
        ) {
            let fields = fields.iter().map(|(name, value)| format!("\"{name}\":{value}"));
            job_line(format!("{{{}}}", fields.collect::<Vec<_>>().join(",")).as_bytes());
        }

        #[test]
        fn any_text_of_records_is_cut_and_filled(text in "([a{}.\":,0\\[\n\0é-]|\\{\"a\":\\{\"b\":1\\},\"c\":\"x\"\\}){0,40}") {
            each_record(text.as_bytes());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_a_configuration_shows_a_secret(text in "([a-b.=\"'#,0é\r\n\t{} \\[\\]\\\\]|\"\"\"|a = |\\[kinds\\.a\\]|\n){0,40}") {
            config(text.as_bytes());
        }
    }

    #[test]
    fn nesting_without_end_is_answered() {
        decode_job("[".repeat(1 << 20).as_bytes());
        decode_job(r#"{"_nested":"#.repeat(1 << 16).as_bytes());
        config(format!("a = {}", "[".repeat(1 << 16)).as_bytes());
        config(format!("a = {}", "{a=".repeat(1 << 16)).as_bytes());
        config(format!("{}a = 1", "a.".repeat(1 << 12)).as_bytes());
    }
}
