use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::enqueue::Unique;

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn queue() -> Queue {
    Queue::new("priority")
}

fn understood(text: impl AsRef<[u8]>) -> Read {
    read(&bytes(text), &queue()).expect("it is a job")
}

fn failure(reason: &str) -> Failure<'_> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_248_285_250);
    Failure { reason, now, attempt: 1, queue: None, times: Default::default() }
}

const REPORT: &[u8] = b"{\"class\":\"ThreeScale::Backend::Transactor::ReportJob\",\"args\":[\"1001\",{\"0\":{\"app_id\":\"a1\",\"usage\":{\"hits\":1},\"log\":{\"code\":\"caf\xe9\"}}},1795248284.0871332,{\"request\":{\"extensions\":{}}}]}";

#[test]
fn a_job_of_resque_is_understood() {
    let raw = bytes(r#"{"class":"Archive","args":[35,"pull"]}"#);
    let read = read(&raw, &queue()).expect("it is a job");
    assert_eq!((read.job.kind.as_str(), read.job.queue.as_str()), ("Archive", "priority"));
    assert_eq!(&read.job.payload[..], br#"[35,"pull"]"#);
    assert!(raw.as_ptr_range().contains(&read.job.payload.as_ptr()), "nothing is copied");
    assert_eq!((read.enqueued_at, read.failures, read.keep_dead), (None, 0, true));
    assert_eq!(read.job.id, stable_id(&raw));
}

#[test]
fn a_job_of_node_resque_is_of_the_queue_that_it_came_from() {
    let read = understood(r#"{"class":"add","queue":"math","args":[1,2]}"#);
    assert_eq!((read.job.kind.as_str(), read.job.queue), ("add", queue()));
}

#[test]
fn a_job_of_apisonator_comes_through_with_bytes_that_are_no_utf_8() {
    let read = understood(REPORT);
    assert_eq!(read.job.kind.as_str(), "ThreeScale::Backend::Transactor::ReportJob");
    let args = REPORT.iter().position(|byte| *byte == b'[').expect("it has arguments");
    assert_eq!(&read.job.payload[..], &REPORT[args..REPORT.len() - 1]);
}

#[test]
fn the_kind_of_an_active_job_is_the_class_inside() {
    let raw =
        format!(r#"{{"class":"{}","args":[{{"job_class":"Mail","arguments":[]}}]}}"#, ACTIVE_JOB_WRAPPERS[2]);
    assert_eq!(understood(raw).job.kind.as_str(), "Mail");
}

#[test]
fn a_job_without_arguments_has_an_empty_array() {
    for raw in [r#"{"class":"A"}"#, r#"{"class":"A","args":null}"#] {
        assert_eq!(&understood(raw).job.payload[..], b"[]");
    }
}

#[test]
fn what_is_no_job_is_an_error_that_shows_nothing() {
    for raw in [
        "",
        "s3cret",
        "[]",
        "{\"args\":[\"s3cret\"]}",
        "{\"class\":{\"s3cret\":1}}",
        "{\"class\":\"s3cret\"",
        "7",
    ] {
        let error = read(&bytes(raw), &queue()).expect_err(raw);
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn a_new_job_has_the_fields_of_either_in_their_order() {
    let job = NewJob::new("A::\"B\"", "[1]").queue("q");
    let text = |style| String::from_utf8(write(&job, style).expect("it can be kept")).expect("it is text");
    assert_eq!(text(Style::Resque), r#"{"class":"A::\"B\"","args":[1]}"#);
    assert_eq!(text(Style::NodeResque), r#"{"class":"A::\"B\"","queue":"q","args":[1]}"#);
    let job = NewJob::new("A", "{}");
    let written = write(&job, Style::Resque).expect("it can be kept");
    assert_eq!(written, br#"{"tidegate":{"payload":"value"},"class":"A","args":[{}]}"#);
}

#[test]
fn what_the_layout_can_t_keep_is_refused_by_its_name() {
    let job = || NewJob::new("A", "[]");
    for (job, name) in [
        (job().priority(1), "priority"),
        (job().max_attempts(3), "max_attempts"),
        (job().timeout(Duration::from_secs(1)), "timeout"),
        (job().unique(Unique::while_queued("k")), "unique key"),
    ] {
        let error = write(&job, Style::Resque).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_failed_job_has_the_fields_of_resque_in_their_order() {
    let raw = br#"{"class":"Archive","args":[35, "pull"]}"#;
    let entry = failed_entry(raw, &queue(), "host:7:priority,main", &failure("no \"disk\""));
    let expected = r#"{"failed_at":"2026/11/21 08:04:45 UTC","payload":{"class":"Archive","args":[35, "pull"]},"exception":"Tidegate::JobFailed","error":"no \"disk\"","backtrace":[],"worker":"host:7:priority,main","queue":"priority"}"#;
    assert_eq!(String::from_utf8_lossy(&entry), expected);
    let read = read_failed(&Bytes::from(entry)).expect("it is an entry");
    assert_eq!((&read.payload[..], read.queue), (&raw[..], queue()));
    assert_eq!(read.error.as_deref(), Some("no \"disk\""));
    assert_eq!(read.failed_at, Some(failure("").now - Duration::from_millis(250)), "to the second");
    assert_eq!(read.retried_at, None);
}

#[test]
fn what_is_no_object_is_kept_as_base64_that_dashboards_can_show() {
    let entry = failed_entry(b"\xffno JSON", &queue(), "w", &failure("e"));
    let text = String::from_utf8(entry.clone()).expect("it is text");
    assert!(text.contains(r#""payload":{"class":"Tidegate::Unreadable","args":["/25vIEpTT04="]}"#), "{text}");
    assert!(text.ends_with(r#""tidegate":{"payload":"base64"}}"#), "{text}");
    assert_eq!(&read_failed(&Bytes::from(entry)).expect("it is an entry").payload[..], b"\xffno JSON");
}

#[test]
fn entries_that_others_wrote_are_understood() {
    let resque = r#"{"failed_at":"2026/11/21 03:04:45 -0500","payload":{"class":"A","args":[1]},"exception":"RuntimeError","error":"boom","backtrace":["a.rb:1"],"worker":"","queue":"main","retried_at":"2026/11/21 08:05:00"}"#;
    let read = read_failed(&bytes(resque)).expect("it is an entry");
    assert_eq!((&read.payload[..], read.queue.as_str()), (&br#"{"class":"A","args":[1]}"#[..], "main"));
    assert_eq!(
        (read.error.as_deref(), read.failed_at.is_some(), read.retried_at.is_some()),
        (Some("boom"), true, true)
    );
    let node = r#"{"worker":"host:1","queue":"math","payload":{"class":"add","queue":"math","args":[1,2]},"exception":"Error","error":"broken","backtrace":null,"failed_at":"Sat Nov 21 2026 09:04:45 GMT+0100 (Central European Standard Time)"}"#;
    let read = read_failed(&bytes(node)).expect("it is an entry");
    assert_eq!(read.failed_at, Some(failure("").now - Duration::from_millis(250)));
    let without = node.replacen(r#""queue":"math","#, "", 1);
    assert_eq!(
        read_failed(&bytes(without)).expect("it is an entry").queue.as_str(),
        "math",
        "as its payload says"
    );
}

#[test]
fn what_is_no_entry_is_an_error_that_shows_nothing() {
    for entry in [
        "",
        "17",
        "s3cret",
        r#"{"queue":"s3cret"}"#,
        r#"{"payload":{"class":"s3cret"}}"#,
        r#"{"payload":{"class":"s3cret"},"queue":["s3cret"]}"#,
        r#"{"payload":{"args":["s3cret!"]},"queue":"s3cret","tidegate":{"payload":"base64"}}"#,
    ] {
        let error = read_failed(&bytes(entry)).expect_err(entry);
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

fn raws() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        // Among them those that look as if we had coded them.
        "[ \n]?\\{(\"tidegate\":\\{\"payload\":\"(base64|spaced|value)\"\\},)?\"class\":\"A\",\"args\":\\[(\"QQ==\")?\\]\\}[ \n]?".prop_map(String::into_bytes),
        (1_usize..140).prop_map(|depth| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes()),
    ]
}

proptest! {
    #[test]
    fn the_payload_of_a_failed_job_comes_back_byte_for_byte(raw in raws(), name in "\\PC{1,30}", worker in "\\PC{0,30}", reason in "\\PC{0,60}|\"\n\u{0}") {
        let queue = Queue::new(name);
        let entry = Bytes::from(failed_entry(&raw, &queue, &worker, &failure(&reason)));
        let read = read_failed(&entry).expect("it is an entry");
        prop_assert_eq!(&read.payload[..], &raw[..]);
        prop_assert_eq!(read.queue, queue);
        prop_assert_eq!(read.error.as_deref(), Some(&*reason));
        if std::str::from_utf8(&raw).is_ok() {
            serde_json::from_slice::<serde::de::IgnoredAny>(&entry).expect("others can read it");
        }
    }

    #[test]
    fn every_job_is_read_as_it_was_written(
        kind in "\\PC{1,200}|\"\n\\\\",
        payload in prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), "[ ]?\\[1?\\][ ]?|null|\\{\\}".prop_map(String::into_bytes)],
        node in any::<bool>(),
    ) {
        let job = NewJob::new(kind, payload).queue("q");
        let raw = write(&job, if node { Style::NodeResque } else { Style::Resque }).expect("it can be kept");
        let read = understood(raw);
        prop_assert_eq!(&read.job.kind, &job.kind);
        prop_assert_eq!(&read.job.payload, &job.payload);
    }
}
