use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::enqueue::{Unique, UniqueKey, Window};
use crate::error::ErrorKind;

const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

fn at_millis(millis: u64) -> SystemTime {
    EPOCH + Duration::from_millis(millis)
}

fn now() -> SystemTime {
    at_millis(1_795_248_285_250)
}

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn understood(text: impl AsRef<[u8]>) -> Read {
    read(&bytes(text)).expect("it is a job")
}

fn failure(reason: &str, attempt: u32) -> Failure<'_> {
    Failure { reason, now: now(), attempt, queue: None, times: Times::Millis }
}

const EIGHT: &str = r#"{"retry":true,"queue":"images","class":"ThumbnailJob","args":[42, "cat.png", {"w":80.0}],"jid":"b4a577edbccf1d805744efa9","created_at":1795248280000,"enqueued_at":1795248281500}"#;
const SEVEN: &str = r#"{"retry":5,"queue":"default","class":"HardJob","args":["bob",5],"jid":"9e5a1c1b7d1d0c8f3f2a6b11","created_at":1700000000.25,"error_message":"boom \"x\"","error_class":"RuntimeError","failed_at":1700000010.5,"retry_count":1,"enqueued_at":1700000030.75,"retried_at":1700000031.0}"#;
const SIX: &str = r#"{"class":"LegacyWorker","args":[],"retry":false,"queue":"low","backtrace":true,"jid":"0123456789abcdef01234567","created_at":1500000000.1234567,"enqueued_at":1500000000.12346}"#;
const ACTIVE_JOB: &str = r#"{"retry":true,"queue":"mailers","class":"Sidekiq::ActiveJob::Wrapper","wrapped":"WelcomeMailJob","args":[{"job_class":"WelcomeMailJob","job_id":"7b5f","arguments":[{"_aj_globalid":"gid://app/User/1"}]}],"jid":"aaaaaaaaaaaaaaaaaaaaaaaa","created_at":1795248280000,"enqueued_at":1795248280001}"#;

#[test]
fn a_job_of_sidekiq_8_is_understood() {
    let raw = bytes(EIGHT);
    let read = read(&raw).expect("it is a job");
    assert_eq!(read.job.kind.as_str(), "ThumbnailJob");
    assert_eq!(read.job.queue.as_str(), "images");
    assert_eq!(read.job.id.as_str(), "b4a577edbccf1d805744efa9");
    assert_eq!(&read.job.payload[..], br#"[42, "cat.png", {"w":80.0}]"#, "as it stands");
    assert_eq!(read.job.enqueued_at, at_millis(1_795_248_281_500));
    assert_eq!((read.job.max_attempts, read.keep_dead, read.failures), (None, true, 0));
    assert!(raw.as_ptr_range().contains(&read.job.payload.as_ptr()), "nothing is copied");
}

#[test]
fn a_job_of_sidekiq_7_that_failed_is_understood() {
    let read = understood(SEVEN);
    assert_eq!(read.job.max_attempts, Some(6));
    assert_eq!(read.failures, 2);
    assert_eq!(read.last_error.as_deref(), Some("boom \"x\""));
    assert_eq!(read.first_failed_at, Some(at_millis(1_700_000_010_500)));
    assert_eq!(read.failed_at, Some(at_millis(1_700_000_031_000)));
    assert_eq!(read.enqueued_at, Some(at_millis(1_700_000_000_250)), "and not when it was tried again");
}

#[test]
fn a_job_that_is_not_to_be_retried_goes_nowhere_when_it_dies() {
    let read = understood(SIX);
    assert_eq!((read.job.max_attempts, read.keep_dead), (Some(1), false));
    assert_eq!(&read.job.payload[..], b"[]");
    assert!(!understood(r#"{"class":"A","dead":false}"#).keep_dead);
    assert!(understood(r#"{"class":"A","dead":null}"#).keep_dead);
}

#[test]
fn the_kind_of_an_active_job_is_the_class_inside() {
    assert_eq!(understood(ACTIVE_JOB).job.kind.as_str(), "WelcomeMailJob");
    let old = ACTIVE_JOB.replace("Sidekiq::ActiveJob::Wrapper", ACTIVE_JOB_WRAPPERS[1]);
    assert_eq!(understood(&old).job.kind.as_str(), "WelcomeMailJob");
    let without = old.replace(r#""wrapped":"WelcomeMailJob","#, "");
    assert_eq!(understood(without).job.kind.as_str(), "WelcomeMailJob", "as the argument says");
    let other = r#"{"class":"Plain","wrapped":"Inner","args":[]}"#;
    assert_eq!(understood(other).job.kind.as_str(), "Plain");
    let bare = format!(r#"{{"class":"{}","wrapped":7,"args":[7]}}"#, ACTIVE_JOB_WRAPPERS[0]);
    assert_eq!(understood(bare).job.kind.as_str(), ACTIVE_JOB_WRAPPERS[0]);
}

#[test]
fn strings_that_are_no_utf_8_come_through() {
    let raw = b"{\"class\":\"A\",\"args\":[\"caf\xe9\", \"\xff\xfe\"],\"x\":\"\xc3\",\"jid\":\"j\xff\"}";
    let read = understood(raw);
    assert_eq!(&read.job.payload[..], b"[\"caf\xe9\", \"\xff\xfe\"]");
    assert_eq!(read.job.id, stable_id(raw), "an id must be exact");
    let retried = retried(raw, &failure("no", 1)).expect("it is an object");
    let again = understood(&retried);
    assert_eq!(again.job.payload, read.job.payload);
    assert_eq!(again.job.id, read.job.id, "the id that it was given");
    assert!(retried.windows(7).any(|part| part == b"\"x\":\"\xc3\""));
}

#[test]
fn hostile_fields_are_answered_as_sidekiq_would() {
    let attempts = |retry: &str| understood(format!(r#"{{"class":"A","retry":{retry}}}"#)).job.max_attempts;
    assert_eq!(attempts("0"), Some(1));
    assert_eq!(attempts("-7"), Some(1));
    assert_eq!(attempts("4294967295"), Some(u32::MAX));
    assert_eq!(attempts("99999999999999999999999999"), Some(u32::MAX));
    for other in ["null", "true", "3.0", "1e999", "\"5\"", "[]", "{}"] {
        assert_eq!(attempts(other), None, "{other}");
    }
    let failures = |count: &str| understood(format!(r#"{{"class":"A","retry_count":{count}}}"#)).failures;
    assert_eq!([failures("0"), failures("-1"), failures("-9"), failures("2.0")], [1, 0, 0, 3]);
    assert_eq!([failures("1e999"), failures("9223372036854775807")], [u32::MAX, u32::MAX]);
    assert_eq!([failures("null"), failures("\"3\""), failures("[1]")], [0, 0, 0]);
    let retry_for = |seconds: &str| {
        let read = understood(format!(r#"{{"class":"A","retry_for":{seconds}}}"#));
        assert_eq!(read.job.max_attempts, read.retry_for.map(|_| u32::MAX));
        read.retry_for.map(|time| time.as_secs())
    };
    assert_eq!([retry_for("3600"), retry_for("60.5"), retry_for("-1")], [Some(3600), Some(60), Some(0)]);
    assert_eq!(
        [retry_for("1e999"), retry_for("null"), retry_for("\"1\"")],
        [Some(1_000_000_000), None, None]
    );
}

#[test]
fn times_that_make_no_sense_are_not_there() {
    for time in ["1e999", "-1", "99999999999999999999", "\"2026\"", "null", "{}"] {
        let read = understood(format!(r#"{{"class":"A","enqueued_at":{time},"failed_at":{time}}}"#));
        assert_eq!((read.enqueued_at, read.failed_at, read.job.enqueued_at), (None, None, EPOCH), "{time}");
        let read = understood(format!(r#"{{"class":"A","created_at":1000,"enqueued_at":{time}}}"#));
        assert_eq!(read.enqueued_at, Some(at_millis(1000)), "{time}");
    }
}

#[test]
fn of_several_fields_of_a_name_the_last_counts() {
    let read = understood(r#"{"class":"A","args":[1],"cl\u0061ss":"B","args":[2],"jid":"x","jid":"y"}"#);
    assert_eq!((read.job.kind.as_str(), &read.job.payload[..]), ("B", &b"[2]"[..]));
    let out = retried(br#"{"class":"A","retry_count":5,"retry_count":1,"jid":"x"}"#, &failure("e", 3));
    assert_eq!(understood(out.expect("an object")).failures, 3);
}

#[test]
fn what_is_no_job_is_an_error_that_names_what_is_wrong_and_shows_nothing() {
    for (raw, says) in [
        ("", "no object"),
        ("s3cret", "no object"),
        ("[\"s3cret\"]", "no object"),
        (r#"{"class":"s3cret""#, "neither `,` nor `}`"),
        (r#"{"class":"s3cret"} x"#, "behind the end"),
        (r#"{"class":"s3cret",}"#, "no key"),
        (r#"{"args":["s3cret"]}"#, "no `class`"),
        (r#"{"class":null,"args":["s3cret"]}"#, "no `class`"),
        (r#"{"class":7,"args":["s3cret"]}"#, "`class` is no text"),
        (r#"{"class":"","args":["s3cret"]}"#, "`class` is empty"),
        (r#"{"class":"s3cret\ud800"}"#, "`class` is no text"),
        (r#"{"class":"s3cret","queue":["s3cret"]}"#, "`queue` is no text"),
        (r#"{"class":"s3cret","tidegate":"s3cret"}"#, "`tidegate` is no object"),
        (r#"{"class":"s3cret","tidegate":{"payload":"s3cret"}}"#, "`tidegate.payload`"),
        (r#"{"class":"s3cret","tidegate":{"payload":"value"},"args":["s3cret",2]}"#, "`args`"),
        (r#"{"class":"s3cret","tidegate":{"payload":"value"}}"#, "`args`"),
        (r#"{"class":"s3cret","tidegate":{"payload":"base64"},"args":["s3cret!"]}"#, "Base64"),
        (r#"{"class":"s3cret","tidegate":{"timeout_ms":-1}}"#, "timeout_ms"),
        (r#"{"class":"s3cret","tidegate":{"timeout_ms":1.5}}"#, "timeout_ms"),
        (r#"{"class":"s3cret","tidegate":{"unique":{}}}"#, "tidegate.unique.key"),
        (r#"{"class":"s3cret","tidegate":{"unique":{"key":"s3cret"}}}"#, "window"),
        (r#"{"class":"s3cret","tidegate":{"unique":{"key":"s3cret","window":"s3cret"}}}"#, "window"),
        (r#"{"class":"s3cret","tidegate":{"unique":{"key":"s3cret","window":1,"clash":0}}}"#, "clash"),
    ] {
        let error = read(&bytes(raw)).expect_err(raw);
        assert_eq!(error.kind(), ErrorKind::Decode, "{raw}");
        for changed in
            [enqueued(raw.as_bytes(), now(), Times::Millis), revived(raw.as_bytes(), now(), Times::Millis)]
        {
            assert_eq!(changed.expect_err(raw).kind(), ErrorKind::Decode, "{raw}");
        }
        let text = format!("{error} {error:?}");
        assert!(text.contains(says), "{raw}: {text}");
        assert!(!text.contains("s3cret"), "{raw}: {text}");
    }
}

#[test]
fn a_new_job_has_the_fields_of_sidekiq_8_in_their_order() {
    let job = NewJob::new("ThumbnailJob", r#"[42,"cat.png"]"#).queue("images").max_attempts(4);
    let id = JobId::new("b4a577edbccf1d805744efa9");
    let written = write(&job, &id, at_millis(1_795_248_280_000), Times::Millis, false);
    let expected = r#"{"retry":3,"queue":"images","class":"ThumbnailJob","args":[42,"cat.png"],"jid":"b4a577edbccf1d805744efa9","created_at":1795248280000,"enqueued_at":1795248280000}"#;
    assert_eq!(String::from_utf8_lossy(&written), expected);
    let job = NewJob::new("A", "[]");
    let written = write(&job, &id, at_millis(1_795_248_280_500), Times::Seconds, true);
    let expected = r#"{"retry":true,"queue":"default","class":"A","args":[],"jid":"b4a577edbccf1d805744efa9","created_at":1795248280.5}"#;
    assert_eq!(String::from_utf8_lossy(&written), expected);
}

#[test]
fn what_sidekiq_does_not_know_stands_first() {
    let job = NewJob::new("A", r#"{"file":"cat.png"}"#)
        .timeout(Duration::from_secs(5))
        .unique(Unique::while_queued("k\"1"));
    let written = write(&job, &JobId::new("j"), EPOCH, Times::Millis, false);
    let expected = r#"{"tidegate":{"unique":{"key":"k\"1","window":"queued","clash":"first"},"timeout_ms":5000,"payload":"value"},"retry":true,"queue":"default","class":"A","args":[{"file":"cat.png"}],"jid":"j","created_at":0,"enqueued_at":0}"#;
    assert_eq!(String::from_utf8_lossy(&written), expected);
    let bare = write(&NewJob::new("A", ""), &JobId::new("j"), EPOCH, Times::Millis, true);
    assert!(bare.starts_with(br#"{"tidegate":{"payload":"base64"},"retry""#), "{bare:?}");
}

#[test]
fn a_first_failure_is_written_as_sidekiq_does() {
    let out = retried(EIGHT.as_bytes(), &failure("no \"disk\"\n", 1)).expect("it is an object");
    let added = r#","error_message":"no \"disk\"\n","error_class":"Tidegate::JobFailed","failed_at":1795248285250,"retry_count":0}"#;
    let expected = EIGHT.strip_suffix('}').expect("an object").to_owned() + added;
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

#[test]
fn a_later_failure_changes_what_stands_there() {
    let raw = SEVEN
        .replace(r#","retry_count""#, r#","error_backtrace":"eJyL","retry_queue":"again","retry_count""#);
    let out = retried(raw.as_bytes(), &Failure { queue: Some(&Queue::new("x")), ..failure("bang", 4) });
    let expected = SEVEN
        .replace(r#"boom \"x\""#, "bang")
        .replace("RuntimeError", ERROR_CLASS)
        .replace(r#""queue":"default""#, r#""queue":"again""#)
        .replace(r#","retry_count":1"#, r#","retry_queue":"again","retry_count":3"#)
        .replace(r#""retried_at":1700000031.0"#, r#""retried_at":1795248285.25"#);
    assert_eq!(String::from_utf8_lossy(&out.expect("an object")), expected);
}

#[test]
fn a_job_goes_back_to_the_queue_that_it_was_taken_from() {
    let queue = Queue::new("images \"1\"");
    let out = retried(br#"{"class":"A","jid":"j"}"#, &Failure { queue: Some(&queue), ..failure("e", 1) });
    let (named, _) = enqueued(&out.expect("an object"), now(), Times::Millis).expect("it is an object");
    assert_eq!(named, queue);
}

#[test]
fn a_dead_job_says_since_when_where_sidekiq_8_does() {
    let out = String::from_utf8(dead(EIGHT.as_bytes(), &failure("e", 26))).expect("it is text");
    assert!(out.ends_with(r#""retry_count":25,"discarded_at":1795248285250}"#), "{out}");
    assert_eq!(understood(&out).failed_at, Some(now()));
    let out = String::from_utf8(dead(SEVEN.as_bytes(), &failure("e", 6))).expect("it is text");
    assert!(!out.contains("discarded_at"), "{out}");
    for raw in [&b"no JSON"[..], b"", b"[1]", b"\xff{\"class\":"] {
        assert_eq!(dead(raw, &failure("e", 1)), raw);
    }
}

#[test]
fn a_job_whose_time_has_come_is_as_if_just_pushed() {
    let raw = r#"{ "at":1.5, "retry":true,"queue":"low","class":"A","args":[1],"jid":"j","created_at":1795248280000 }"#;
    let (queue, out) = enqueued(raw.as_bytes(), now(), Times::Millis).expect("it is an object");
    assert_eq!(queue.as_str(), "low");
    let expected = r#"{ "retry":true,"queue":"low","class":"A","args":[1],"jid":"j","created_at":1795248280000,"enqueued_at":1795248285250 }"#;
    assert_eq!(String::from_utf8_lossy(&out), expected);
    let (queue, out) = enqueued(SEVEN.as_bytes(), now(), Times::Millis).expect("it is an object");
    assert_eq!(queue.as_str(), "default");
    assert_eq!(String::from_utf8_lossy(&out), SEVEN.replace("1700000030.75", "1795248285.25"));
}

#[test]
fn a_job_that_has_no_time_yet_gets_those_of_the_settings() {
    let raw = br#"{"class":"A","args":[],"jid":"j"}"#;
    for (times, written, discarded) in
        [(Times::Millis, "1795248285250", true), (Times::Seconds, "1795248285.25", false)]
    {
        let failure = Failure { times, ..failure("e", 1) };
        let text = |raw: Vec<u8>| String::from_utf8(raw).expect("it is text");
        for pushed in [enqueued(raw, now(), times), revived(raw, now(), times)] {
            let pushed = text(pushed.expect("it is a job").1);
            assert!(pushed.contains(&format!(r#""enqueued_at":{written}"#)), "{pushed}");
        }
        let failed = text(retried(raw, &failure).expect("it is a job"));
        assert!(failed.contains(&format!(r#""failed_at":{written}"#)), "{failed}");
        let died = text(dead(raw, &failure));
        assert!(died.contains(&format!(r#""failed_at":{written}"#)), "{died}");
        assert_eq!(died.contains(r#""discarded_at""#), discarded, "{died}");
    }
    // What has one keeps its form.
    let (_, out) = enqueued(SEVEN.as_bytes(), now(), Times::Millis).expect("it is a job");
    assert!(String::from_utf8_lossy(&out).contains(r#""enqueued_at":1795248285.25"#));
}

#[test]
fn an_operator_gives_a_dead_job_all_its_attempts() {
    let dead = dead(EIGHT.as_bytes(), &failure("e", 26));
    let (queue, out) = revived(&dead, now(), Times::Millis).expect("it is an object");
    assert_eq!(queue.as_str(), "images");
    assert_eq!(String::from_utf8_lossy(&out), EIGHT.replace("1795248281500", "1795248285250"));
    let read = understood(&out);
    assert_eq!((read.failures, read.last_error, read.failed_at), (0, None, None));
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"\n\\\u{0}".to_owned()),
        "[a-zA-Z:]{1,20}",
        "\\PC{1,200}",
        "[\u{1f980}é\"\\\\\n\t\u{7f}]{1,9}"
    ]
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "[ \n]{0,2}\\[(1|\"a\"|\\{\"b\":null\\})?[ ]?\\][ \n]{0,2}".prop_map(String::into_bytes),
        "[ \n]{0,2}(1e9|null|\"x\\\\n\"|\\{\"a\":\\[1\\]\\}|tru|1,2|\\]\\[)[ \n]{0,2}"
            .prop_map(String::into_bytes),
        (1_usize..200).prop_map(|depth| ["[".repeat(depth), "]".repeat(depth)].concat().into_bytes()),
    ]
}

fn windows() -> impl Strategy<Value = Window> {
    prop_oneof![
        Just(Window::WhileQueued),
        Just(Window::UntilDone),
        (0..u64::MAX / 2).prop_map(|millis| Window::For(Duration::from_millis(millis))),
    ]
}

fn jobs() -> impl Strategy<Value = NewJob> {
    let unique = (names(), windows(), any::<bool>()).prop_map(|(key, window, replace)| {
        let unique = Unique { key: UniqueKey::new(key), window, ..Unique::while_queued("") };
        if replace { unique.replace_payload() } else { unique }
    });
    let timeout = (0..u64::MAX / 2).prop_map(Duration::from_millis);
    let attempts = proptest::option::of(1_u32..);
    let parts =
        (names(), names(), payloads(), attempts, proptest::option::of(timeout), proptest::option::of(unique));
    parts.prop_map(|(kind, queue, payload, max_attempts, timeout, unique)| {
        let job = NewJob::new(kind, payload).queue(queue);
        NewJob { max_attempts, timeout, unique, ..job }
    })
}

proptest! {
    #[test]
    fn every_job_is_read_as_it_was_written(job in jobs(), id in names(), seconds in any::<bool>(), scheduled in any::<bool>()) {
        let times = if seconds { Times::Seconds } else { Times::Millis };
        let raw = Bytes::from(write(&job, &JobId::new(&id), now(), times, scheduled));
        serde_json::from_slice::<serde::de::IgnoredAny>(&raw).expect("others can read it");
        let read = read(&raw).expect("it is a job");
        prop_assert_eq!(&read.job.kind, &job.kind);
        prop_assert_eq!(&read.job.queue, &job.queue);
        prop_assert_eq!(&read.job.payload, &job.payload);
        prop_assert_eq!(read.job.id.as_str(), id);
        prop_assert_eq!(read.job.max_attempts, job.max_attempts);
        prop_assert_eq!(read.job.timeout, job.timeout);
        prop_assert_eq!(&read.unique, &job.unique);
        prop_assert_eq!(read.job.enqueued_at, now());
        prop_assert_eq!((read.failures, read.keep_dead), (0, true));

        let failure = Failure { queue: Some(&job.queue), ..failure("e", 7) };
        let failed = retried(&raw, &failure).expect("it is an object");
        let again = self::read(&Bytes::from(failed.clone())).expect("it is a job");
        prop_assert_eq!(again.failures, 7);
        prop_assert_eq!(&again.job.payload, &job.payload);
        prop_assert_eq!(&again.unique, &job.unique);
        let (queue, back) = revived(&dead(&failed, &failure), now(), Times::Millis).expect("it is an object");
        prop_assert_eq!(&queue, &job.queue);
        if !scheduled {
            prop_assert_eq!(back, &raw[..], "a job that died and is revived is what it was");
        }
    }
}
