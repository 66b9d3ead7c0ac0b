//! The body of the fuzz target `job_line`: from a line of JSON to a job.

use super::draft::{Draft, MAX_PAYLOAD_BYTES};
use super::line::draft;
use crate::cli::excerpt::escaped;
use crate::cli::text::{base64, from_base64};

/// Reads the line with and without a kind from the command line, and the bytes as Base64 too.
///
/// # Panics
/// If anything that should hold does not.
pub(crate) fn line(bytes: &[u8]) {
    let defaults = Draft { kind: Some("kind".to_owned()), ..Draft::default() };
    for defaults in [Draft::default(), defaults] {
        match draft(bytes).and_then(|line| line.or(&defaults).job()) {
            Ok(job) => assert!(job.validate(MAX_PAYLOAD_BYTES).is_ok(), "what passes is taken"),
            Err(why) => assert!(!why.is_empty() && !escaped(&why).contains(char::is_control), "{why:?}"),
        }
    }
    let text = String::from_utf8_lossy(bytes);
    if let Some(decoded) = from_base64(&text) {
        let coded = base64(&decoded);
        assert_eq!(coded.trim_end_matches('='), text.trim_end_matches('='), "there and back again");
    }
}
