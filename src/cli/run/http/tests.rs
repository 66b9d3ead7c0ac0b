//! Requests as handlers, against servers that behave and servers that don't: what is sent, what the status means, and
//! what is refused beforehand.

mod answers;
mod connections;
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use self::server::{Authority, Received, Server, answer, receive};
use super::*;
use crate::cli::run::testing::{Folder, LIMIT, Rig, attempt, job, outcome_of};
use crate::context::CancelReason;
use crate::job::JobId;
use crate::source::Settlement;
use crate::sync::{Mutex, lock};

/// As the default, and without chance.
fn policy() -> RetryPolicy {
    RetryPolicy::default().jitter(0.0)
}

fn spec(url: String) -> HttpSpec {
    HttpSpec {
        url,
        headers: BTreeMap::new(),
        content_type: "application/json".to_owned(),
        connect_timeout: LIMIT,
        timeout: LIMIT,
        ca_file: None,
        max_response: 1000,
        max_retry_after: Duration::from_secs(3600),
        retry: policy(),
    }
}

/// Runs one attempt at an ordinary job.
async fn post(spec: HttpSpec) -> (Outcome, String, String) {
    let handler = spec.handler().expect("a good spec");
    outcome_of(&handler, attempt(job("payload"), None)).await
}

/// Runs one attempt against a server that says these bytes to whatever it is sent, and hangs up.
async fn told(bytes: impl Into<Vec<u8>>) -> (Outcome, String, String) {
    let bytes = bytes.into();
    let server = Server::start(move |_, mut stream| {
        let bytes = bytes.clone();
        async move {
            receive(&mut stream).await;
            // A client that has heard enough hangs up first.
            let _ = stream.write_all(&bytes).await;
        }
    })
    .await;
    post(spec(server.url("/"))).await
}

#[tokio::test]
async fn a_request_carries_the_payload_and_tells_of_the_job() {
    let (tell, mut received) = mpsc::channel(2);
    let server = Server::answering(move |request| {
        tell.try_send(request.clone()).expect("there is room");
        answer("200 OK", "", "thanks")
    })
    .await;
    let authorization = BTreeMap::from([("Authorization".to_owned(), Secret::from("Bearer hunter2"))]);
    let spec = HttpSpec { headers: authorization, ..spec(server.url("/in?key=k")) };
    let handler = spec.handler().expect("a good spec");
    let (outcome, _, output) = outcome_of(&handler, attempt(job("{\"a\":1}"), None)).await;
    assert!(matches!(outcome, Outcome::Done));
    assert_eq!(output, "HTTP 200 OK\n\nthanks");
    let Received { line, headers, body } = received.recv().await.expect("a request");
    assert_eq!((line.as_str(), body.as_slice()), ("POST /in?key=k HTTP/1.1", &b"{\"a\":1}"[..]));
    let host = format!("host: {}", server.address);
    let agent = concat!("user-agent: tidegate/", env!("CARGO_PKG_VERSION"));
    let expected = [
        "authorization: Bearer hunter2",
        "content-length: 7",
        "content-type: application/json",
        host.as_str(),
        "idempotency-key: job-7",
        "tidegate-attempt: 1",
        "tidegate-job-id: job-7",
        "tidegate-kind: work",
        "tidegate-queue: default",
        agent,
    ];
    assert_eq!(headers, expected);

    let mut odd = job("");
    (odd.id, odd.queue) = (JobId::new("a\r\nX-Evil: 1"), "nächtlich 50%".into());
    outcome_of(&handler, attempt(odd, Some(Duration::from_secs(1000)))).await;
    let request = received.recv().await.expect("a request");
    assert_eq!(request.header("idempotency-key"), Some("a%0D%0AX-Evil:%201"));
    assert_eq!(request.header("tidegate-queue"), Some("n%C3%A4chtlich%2050%25"));
    assert_eq!(request.header("content-length"), Some("0"));
    let deadline: u64 =
        request.header("tidegate-deadline").expect("a header").parse().expect("whole seconds");
    let now = wall_clock().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!((now + 900..=now + 1000).contains(&deadline), "{deadline}");
}

#[tokio::test]
async fn the_status_says_what_becomes_of_the_job() {
    // Each payload is the answer to itself.
    let server = Server::answering(|request| String::from_utf8(request.body.clone()).expect("text")).await;
    let url = server.url("/hook");
    let handler = spec(format!("{url}?key=hunter2")).handler().expect("a good spec");
    let mut rig = Rig::start(handler, |worker| worker.retry(policy()));
    let retry = |seconds| Settlement::Retry { after: Duration::from_secs(seconds) };
    let redirect = "location: https://b.example/x?key=hunter2\r\n";
    for (status, headers, body, settlement, reason) in [
        ("200 OK", "", "fine", Settlement::Ack, None),
        ("204 No Content", "", "", Settlement::Ack, None),
        ("404 Not Found", "", "no\nsuch", Settlement::Reject, Some(r"404 Not Found: no\nsuch")),
        ("422 Unprocessable Entity", "", "", Settlement::Reject, Some("422 Unprocessable Entity")),
        ("503 Service Unavailable", "", " busy", retry(1), Some("503 Service Unavailable: busy")),
        ("429 Too Many Requests", "retry-after: 120\r\n", "", retry(120), Some("429 Too Many Requests")),
        ("503 Service Unavailable", "retry-after: 7\r\n", "", retry(7), Some("503 Service Unavailable")),
        // No shorter than the policy's own wait, and no longer than is honoured.
        ("429 Too Many Requests", "retry-after: 0\r\n", "", retry(1), Some("429 Too Many Requests")),
        ("408 Request Timeout", "retry-after: 99999\r\n", "", retry(3600), Some("408 Request Timeout")),
        ("425 Too Early", "retry-after: soon\r\n", "", retry(1), Some("425 Too Early")),
        (
            "302 Found",
            redirect,
            "gone",
            retry(1),
            Some("302 Found, which leads to b.example: redirects are not followed, give its URL"),
        ),
        ("304 Not Modified", "", "", retry(1), Some("304 Not Modified")),
    ] {
        rig.push(answer(status, headers, body));
        let told = rig.told().await;
        assert_eq!(told.settlement, settlement, "{status} {headers}");
        let reason = reason.map(|reason| format!("POST {url} was answered with {reason}"));
        assert_eq!(told.reason.as_deref(), reason.as_deref());
        let kept =
            if body.is_empty() { format!("HTTP {status}\n") } else { format!("HTTP {status}\n\n{body}") };
        assert_eq!(String::from_utf8_lossy(&told.output.expect("it is kept whatever the outcome")), kept);
    }
    rig.end().await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_wait_until_a_date_is_a_wait() {
    let date = httpdate::fmt_http_date(wall_clock() + Duration::from_secs(600));
    let bytes = answer("503 Service Unavailable", &format!("Retry-After: {date}\r\n"), "");
    let (outcome, _, _) = told(bytes).await;
    let Outcome::Fail { after: Some(wait), .. } = outcome else { panic!("{outcome:?}") };
    assert!((540..=600).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn a_short_wait_does_not_use_up_the_attempts() {
    let server = Server::answering(|_| answer("429 Too Many Requests", "retry-after: 1\r\n", "")).await;
    let retry = policy().initial(Duration::from_secs(90));
    let (outcome, _, _) = post(HttpSpec { retry, ..spec(server.url("/")) }).await;
    assert!(
        matches!(outcome, Outcome::Fail { after: Some(wait), .. } if wait.as_secs() == 90),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_job_that_is_told_to_stop_drops_its_request_at_once() {
    let (tell, mut received) = mpsc::channel(2);
    let server = Server::start(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            receive(&mut stream).await;
            tell.try_send(()).expect("it is waited for");
            assert_eq!(stream.read(&mut [0]).await.ok(), Some(0), "it hangs up");
            tell.try_send(()).expect("it is waited for");
        }
    })
    .await;
    let handler = spec(server.url("/")).handler().expect("a good spec");
    let context = attempt(job("payload"), None);
    let ((outcome, reason, _), ()) = tokio::join!(outcome_of(&handler, context.clone()), async {
        received.recv().await.expect("the request has come");
        context.run().cancel(CancelReason::LeaseLost);
    });
    assert!(matches!(outcome, Outcome::Fail { .. }));
    assert_eq!(reason, "told to stop before the answer had come");
    tokio::time::timeout(LIMIT, received.recv()).await.expect("in time").expect("the server is told");
}

#[tokio::test]
async fn a_large_payload_comes_whole_to_a_server_that_reads_slowly() {
    let payload: Vec<u8> = (0..5_000_000u32).map(|at| at.to_le_bytes()[1]).collect();
    let expected = payload.clone();
    let server = Server::answering(move |request| {
        let status = if request.body == expected { "200 OK" } else { "400 Bad Request" };
        answer(status, "", "")
    })
    .await;
    let handler = spec(server.url("/")).handler().expect("a good spec");
    let (outcome, reason, _) = outcome_of(&handler, attempt(job(payload), None)).await;
    assert!(matches!(outcome, Outcome::Done), "{reason}");
}

#[test]
fn what_is_secret_is_not_shown() {
    let headers = BTreeMap::from([("x-key".to_owned(), Secret::from("hunter2"))]);
    let spec = HttpSpec { headers, ..spec("http://127.0.0.1:1/".to_owned()) };
    assert!(!format!("{spec:?}").contains("hunter2"));
    let endpoint = Endpoint::new(spec).expect("a good spec");
    assert!(!format!("{endpoint:?}").contains("hunter2"));
}

#[test]
fn a_spec_that_makes_no_sense_is_refused_with_the_reason() {
    let folder = Folder::new();
    let good = || spec("https://a.example/".to_owned());
    let header = |name: &str, value: &str| {
        let headers = BTreeMap::from([(name.to_owned(), Secret::from(value))]);
        HttpSpec { headers, ..good() }
    };
    let twice = [("x-a", "1"), ("X-A", "2")].map(|(name, value)| (name.to_owned(), Secret::from(value)));
    let missing: Secret = serde_json::from_str(r#"{"file":"/no/such"}"#).expect("a form");
    let ca_file = |contents: &str| Some(folder.write(&contents.len().to_string(), contents));
    let ours = Authority::new().pem();
    for (spec, why) in [
        (
            HttpSpec { url: "ftp://a.example".to_owned(), ..good() },
            "the URL must begin with http:// or https://",
        ),
        (
            HttpSpec { max_response: MAX_RESPONSE + 1, ..good() },
            "the most of an answer that can be kept is 65024 bytes, not 65025",
        ),
        (
            HttpSpec { content_type: "a\nb".to_owned(), ..good() },
            "the content type has characters that no header can hold",
        ),
        (header("a b", ""), r#""a b" can't be the name of a header"#),
        (header("Content-Length", "5"), "the header content-length can't be set"),
        (header("Content-Type", "a/b"), "the header content-type can't be set (it has a setting of its own)"),
        (header("Tidegate-Kind", "x"), "the header tidegate-kind can't be set"),
        (
            header("x-key", "hunter2\r\n"),
            "the value of the header x-key has characters that no header can hold",
        ),
        (HttpSpec { headers: BTreeMap::from(twice), ..good() }, "the header x-a is given twice"),
        (
            HttpSpec { headers: BTreeMap::from([("x-key".to_owned(), missing)]), ..good() },
            "the value of the header x-key: the file /no/such can't be read: No such file or directory (os error 2)",
        ),
        (
            HttpSpec { ca_file: ca_file(&ours), url: "http://a.example/".to_owned(), ..good() },
            "a ca_file is given, and the URL does not begin with https://",
        ),
    ] {
        assert_eq!(spec.handler().err().as_deref(), Some(why));
    }
    for contents in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let why =
            HttpSpec { ca_file: ca_file(contents), ..good() }.handler().err().expect("it makes no sense");
        assert!(why.contains(folder.path().to_str().expect("ASCII")), "{why}");
    }
}
