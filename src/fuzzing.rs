//! The bodies of the fuzz targets: the targets themselves are three lines each, and these run in
//! `cargo test` too.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::backend::redis::codec::sidekiq::Times;
use crate::backend::redis::codec::{Failure, resque, sidekiq};
use crate::error::ErrorKind;
use crate::handler::decode_json;
use crate::job::Queue;

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

/// A failure with text that has to be escaped.
fn failure() -> Failure<'static> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_248_285_250);
    Failure { reason: "no \"disk\"\n\u{1}é", now, attempt: 3, queue: None, times: Times::Millis }
}

/// The bytes of a job in the layout of Sidekiq: understood or answered; and whatever a failure, the passing of time or
/// an operator makes of it is the same job. What is JSON is what `serde_json` takes for it, but for the depth.
pub fn sidekiq_payload(bytes: &[u8]) {
    let raw = Bytes::copy_from_slice(bytes);
    let failure = failure();
    let dead = sidekiq::dead(bytes, &failure);
    let retried = sidekiq::retried(bytes, &failure);
    if retried.is_err() {
        assert_eq!(dead, bytes, "what is not understood is kept as it is");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let is_object =
            text.trim_ascii_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
        let too_deep = retried.as_ref().is_err_and(|error| error.to_string().contains("too deep"));
        assert!(is_object == retried.is_ok() || too_deep, "{text:?}");
    }
    let read = match sidekiq::read(&raw) {
        Ok(read) => read,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Decode);
            return;
        }
    };
    assert!(!read.job.kind.as_str().is_empty() && !read.job.queue.as_str().is_empty());
    let (queue, pushed) = sidekiq::enqueued(bytes, failure.now, failure.times).expect("it was understood");
    assert_eq!(queue, read.job.queue);
    let (_, revived) = sidekiq::revived(&dead, failure.now, failure.times).expect("it was understood");
    for (later, failures) in [
        (retried.expect("it was understood"), failure.attempt),
        (dead, failure.attempt),
        (pushed, read.failures),
        (revived, 0),
    ] {
        let again = sidekiq::read(&Bytes::from(later)).expect("it is the same job");
        assert_eq!(again.failures, failures);
        assert_eq!(again.job.id, read.job.id);
        assert_eq!(again.job.kind, read.job.kind);
        assert_eq!(again.job.payload, read.job.payload);
        assert_eq!((again.job.max_attempts, again.job.timeout), (read.job.max_attempts, read.job.timeout));
        assert_eq!((again.keep_dead, again.retry_for), (read.keep_dead, read.retry_for));
        assert_eq!(again.unique, read.unique);
    }
}

/// The bytes of a job, or of an entry of the failed ones, in the layout of Resque: understood or answered; and as a
/// failed job they come back byte for byte.
pub fn resque_payload(bytes: &[u8]) {
    let raw = Bytes::copy_from_slice(bytes);
    let queue = Queue::new("priority");
    for error in [resque::read(&raw, &queue).err(), resque::read_failed(&raw).err()].into_iter().flatten() {
        assert_eq!(error.kind(), ErrorKind::Decode);
    }
    let entry = Bytes::from(resque::failed_entry(bytes, &queue, "host:1:priority", &failure()));
    let failed = resque::read_failed(&entry).expect("we wrote it");
    assert_eq!((failed.payload, failed.queue), (raw, queue));
    assert_eq!(failed.error.as_deref(), Some(failure().reason));
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
            sidekiq_payload(&bytes);
            resque_payload(&bytes);
        }

        #[test]
        fn any_object_of_fields_is_a_job_or_answered(
            fields in proptest::collection::vec((
                "class|args|queue|jid|retry|retry_count|retry_for|retry_queue|dead|wrapped|created_at|enqueued_at|failed_at|retried_at|error_message|error_backtrace|at|tidegate|payload|cl\\\\u0061ss",
                "null|true|false|-?[0-9]{1,20}|[0-9]{1,9}\\.[0-9]e[0-9]{1,3}|\"[a-z0-9= :]{0,9}\"|\"\\\\ud8[0-9]{2}(\\\\ude00)?\"|\\[[ ]?(1|\"QQ==\")?\\]|\\{\\}|\\{\"payload\":\"(value|base64|spaced)\"\\}|\\{\"unique\":\\{\"key\":\"k\",\"window\":(5|\"done\"),\"clash\":\"first\"\\}\\}",
                "[ \n]?",
            ), 0..12),
            class in "(\"class\":\"(A|Sidekiq::ActiveJob::Wrapper)\",)?",
            byte in proptest::num::u8::ANY,
            at in proptest::num::usize::ANY,
        ) {
            let fields = fields.iter().map(|(name, value, space)| format!("{space}\"{name}\":{value}{space}"));
            let fields = fields.chain(["\"x\":\"0123456789\"".to_owned()]);
            let mut object = format!("{{{class}{}}}", fields.collect::<Vec<_>>().join(",")).into_bytes();
            sidekiq_payload(&object);
            resque_payload(&object);
            let at = at % object.len();
            object[at] = byte;
            sidekiq_payload(&object);
            resque_payload(&object);
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
        sidekiq_payload(r#"{"args":["#.repeat(1 << 18).as_bytes());
        resque_payload("[".repeat(1 << 20).as_bytes());
        for depth in [100, 119, 120, 121, 127, 128, 129] {
            let nested = format!("{{\"class\":\"A\",\"args\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
            sidekiq_payload(nested.as_bytes());
            resque_payload(nested.as_bytes());
        }
        config(format!("a = {}", "[".repeat(1 << 16)).as_bytes());
        config(format!("a = {}", "{a=".repeat(1 << 16)).as_bytes());
        config(format!("{}a = 1", "a.".repeat(1 << 12)).as_bytes());
    }
}
