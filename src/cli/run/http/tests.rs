//! Requests as handlers, against servers that behave and servers that don't.

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
async fn a_slow_answer_is_waited_for() {
    let server = Server::start(|_, mut stream| async move {
        receive(&mut stream).await;
        for byte in answer("200 OK", "x-filler: y\r\n", "slow").bytes() {
            stream.write_u8(byte).await.expect("the client waits");
            stream.flush().await.expect("the client waits");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let (outcome, _, output) = post(spec(server.url("/"))).await;
    assert!(matches!(outcome, Outcome::Done));
    assert_eq!(output, "HTTP 200 OK\n\nslow");
}

#[tokio::test]
async fn all_ways_to_end_an_answer_are_understood() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\ntrailer: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi",
        "HTTP/1.0 200 OK\r\n\r\nhi",
    ] {
        let (outcome, reason, output) = told(bytes).await;
        assert!(matches!(outcome, Outcome::Done), "{bytes:?}: {reason}");
        assert_eq!(output, "HTTP 200 OK\n\nhi", "{bytes:?}");
    }
}

#[tokio::test]
async fn garbage_is_a_failure_that_names_its_cause() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(5000));
    for bytes in [
        &b""[..],
        b"\0",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx\0y: z\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let shown = excerpt(bytes);
        let (outcome, reason, output) = told(bytes).await;
        assert!(matches!(outcome, Outcome::Fail { after: None, .. }), "{shown}: {outcome:?}");
        let (start, cause) = reason.split_once(": no answer in HTTP: ").expect(&reason);
        assert!(start.starts_with("POST http://127.0.0.1:") && !cause.is_empty(), "{reason}");
        assert!(!reason.contains('\n') && reason.len() < 300, "{reason}");
        assert_eq!(output, "", "{shown}");
    }
}

fn excerpt(bytes: &[u8]) -> String {
    crate::cli::excerpt::head(bytes, 40)
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_success_and_is_kept_as_far_as_it_came() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\nxyz\r\n",
    ] {
        let (outcome, reason, output) = told(bytes).await;
        assert!(matches!(outcome, Outcome::Fail { .. }), "{bytes:?}");
        assert!(reason.contains(" was answered with 200 OK: the answer broke off: "), "{reason}");
        assert_eq!(output, "HTTP 200 OK\n\nhel\n[it broke off here]\n");
    }
    // Of another status nothing more is needed than itself.
    let (outcome, reason, _) = told("HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhel").await;
    assert!(matches!(outcome, Outcome::Reject(_)) && reason.ends_with("404 Not Found: hel"), "{reason}");
}

#[tokio::test]
async fn of_an_endless_answer_the_beginning_is_kept_and_the_connection_is_closed() {
    for head in ["content-length: 1000000000000", "transfer-encoding: chunked", "connection: close"] {
        let (tell, mut closed) = mpsc::channel(1);
        let server = Server::start(move |_, mut stream| {
            let tell = tell.clone();
            async move {
                receive(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.expect("the client waits");
                while stream.write_all(b"a\r\nxxxxxxxxxx\r\n").await.is_ok() {}
                tell.try_send(()).expect("it is waited for");
            }
        })
        .await;
        let (outcome, reason, output) = post(spec(server.url("/"))).await;
        assert!(matches!(outcome, Outcome::Done), "{head}: {reason}");
        assert!(output.ends_with("\n[the rest is left out]\n"), "{output}");
        assert_eq!(output.len(), "HTTP 200 OK\n\n".len() + 1000 + "\n[the rest is left out]\n".len());
        tokio::time::timeout(LIMIT, closed.recv()).await.expect("in time").expect("the server is told");
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_its_time_and_no_more() {
    let short = Duration::from_millis(100);
    for (begin, what) in [
        ("", "no answer within 100ms"),
        ("HTTP/1.1 200 OK\r\n", "no answer within 100ms"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh", "no end of the answer within 100ms"),
    ] {
        let (tell, mut closed) = mpsc::channel(1);
        let server = Server::start(move |_, mut stream| {
            let tell = tell.clone();
            async move {
                receive(&mut stream).await;
                stream.write_all(begin.as_bytes()).await.expect("the client waits");
                assert_eq!(stream.read(&mut [0]).await.ok(), Some(0), "it hangs up");
                tell.try_send(()).expect("it is waited for");
            }
        })
        .await;
        let mut rig = Rig::start(
            HttpSpec { timeout: short, ..spec(server.url("/x")) }.handler().expect("a good spec"),
            |worker| worker.retry(policy()),
        );
        rig.push("payload");
        let told = rig.told().await;
        assert_eq!(
            told.settlement,
            Settlement::Retry { after: Duration::from_secs(1) },
            "as the policy says"
        );
        let reason = told.reason.expect("there is one");
        assert!(
            reason.starts_with(&format!("POST {}", server.url("/x"))) && reason.ends_with(what),
            "{reason}"
        );
        tokio::time::timeout(LIMIT, closed.recv()).await.expect("in time").expect("the server is told");
        rig.end().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_or_never_speaks_tls_is_a_failure_to_connect() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = closed.local_addr().expect("it is bound");
    drop(closed);
    let (outcome, reason, _) = post(spec(format!("http://{address}/x?key=hunter2"))).await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    let expected =
        format!("POST http://{address}/x: connecting to {address}: Connection refused (os error 111)");
    assert_eq!(reason, expected);

    let (outcome, reason, _) = post(spec("http://no-such-host.invalid/".to_owned())).await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    let start = "POST http://no-such-host.invalid/: looking up no-such-host.invalid: ";
    assert!(reason.starts_with(start) && reason.len() > start.len(), "{reason}");

    let folder = Folder::new();
    let ca_file = Some(folder.write("ca.pem", Authority::new().pem()));
    let server = Server::start(|_, mut stream| async move {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    let url = format!("https://{}/", server.address);
    let connect_timeout = Duration::from_millis(100);
    let (_, reason, _) = post(HttpSpec { connect_timeout, ca_file, ..spec(url) }).await;
    let end = "securing the connection to 127.0.0.1 (TLS): the time for connecting is over";
    assert!(reason.ends_with(end), "{reason}");
}

#[tokio::test]
async fn jobs_share_connections_and_no_more_than_run_at_once() {
    for jobs in [1, 5] {
        let server = Server::answering(|_| answer("200 OK", "", "x")).await;
        let handler = spec(server.url("/")).handler().expect("a good spec");
        let mut rig = Rig::start(handler, |worker| worker.max_concurrent_jobs(jobs));
        (0..50).for_each(|_| rig.push("payload"));
        for _ in 0..50 {
            assert_eq!(rig.told().await.settlement, Settlement::Ack);
        }
        rig.end().await;
        assert!((1..=jobs).contains(&server.connections()), "{} for {jobs}", server.connections());
    }
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_not_used_again() {
    let server = Server::start(|_, mut stream| async move {
        receive(&mut stream).await;
        let answer = answer("200 OK", "", "x");
        stream.write_all(answer.as_bytes()).await.expect("the client waits");
    })
    .await;
    let handler = spec(server.url("/")).handler().expect("a good spec");
    for number in 1..=20 {
        let (outcome, reason, _) = outcome_of(&handler, attempt(job("payload"), None)).await;
        assert!(matches!(outcome, Outcome::Done), "{reason}");
        assert_eq!(server.connections(), number);
    }
}

#[tokio::test]
async fn a_request_on_a_kept_connection_that_the_server_closes_is_sent_once_more() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = keys.clone();
    // Answers the first request of each connection, and hangs up at the second.
    let server = Server::start(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            for answered in [true, false] {
                let Some(request) = receive(&mut stream).await else { return };
                lock(&seen).push(request.header("idempotency-key").expect("a key").to_owned());
                if answered {
                    let answer = answer("200 OK", "", "x");
                    stream.write_all(answer.as_bytes()).await.expect("the client waits");
                }
            }
        }
    })
    .await;
    let handler = spec(server.url("/")).handler().expect("a good spec");
    for number in 1..=3 {
        let mut job = job("payload");
        job.id = JobId::new(number.to_string());
        let (outcome, reason, _) = outcome_of(&handler, attempt(job, None)).await;
        assert!(matches!(outcome, Outcome::Done), "{reason}");
    }
    assert_eq!(*lock(&keys), ["1", "2", "2", "3", "3"]);
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_request_on_a_new_connection_is_sent_once() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let server = Server::start(move |_, mut stream| {
        let count = count.clone();
        async move {
            receive(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let (outcome, _, _) = post(spec(server.url("/"))).await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn idle_connections_are_closed_when_they_are_old_or_the_server_has_closed_them() {
    for server_closes in [false, true] {
        let (tell, mut closed) = mpsc::channel(1);
        let server = Server::start(move |_, mut stream| {
            let tell = tell.clone();
            async move {
                receive(&mut stream).await;
                let answer = answer("200 OK", "", "x");
                stream.write_all(answer.as_bytes()).await.expect("the client waits");
                if server_closes {
                    stream.shutdown().await.expect("the client is there");
                }
                assert_eq!(stream.read(&mut [0]).await.ok(), Some(0), "it hangs up");
                tell.try_send(()).expect("it is waited for");
            }
        })
        .await;
        let endpoint = Endpoint::new(spec(server.url("/"))).expect("a good spec");
        assert!(matches!(endpoint.run(&attempt(job(""), None)).await, Outcome::Done));
        // From here on time passes as soon as nothing else is to be done.
        tokio::time::pause();
        let before = Instant::now();
        tokio::time::timeout(LIMIT, closed.recv()).await.expect("in time").expect("the server is told");
        let seconds = before.elapsed().as_secs();
        assert!(if server_closes { seconds <= 2 } else { (14..=17).contains(&seconds) }, "{seconds}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_certificate_is_trusted_only_if_its_authority_is() {
    let authority = Authority::new();
    let server = Server::secured(authority.certify("127.0.0.1"), |_| answer("200 OK", "", "secret")).await;
    let spec = spec(format!("https://{}/", server.address));
    let folder = Folder::new();
    let stranger = folder.write("stranger.pem", Authority::new().pem());
    let (outcome, reason, _) = post(HttpSpec { ca_file: Some(stranger), ..spec.clone() }).await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    assert!(reason.contains("(TLS): invalid peer certificate: "), "{reason}");

    let ours = folder.write("ours.pem", authority.pem());
    let handler = HttpSpec { ca_file: Some(ours.clone()), ..spec }.handler().expect("a good spec");
    for _ in 0..3 {
        let (outcome, reason, output) = outcome_of(&handler, attempt(job("payload"), None)).await;
        assert!(matches!(outcome, Outcome::Done), "{reason}");
        assert_eq!(output, "HTTP 200 OK\n\nsecret");
    }
    assert_eq!(server.connections(), 2, "one was refused, and one is shared");

    let elsewhere = Server::secured(authority.certify("b.example"), |_| String::new()).await;
    let url = format!("https://{}/", elsewhere.address);
    let (_, reason, _) = post(HttpSpec { ca_file: Some(ours), ..self::spec(url) }).await;
    assert!(reason.contains("(TLS): invalid peer certificate: "), "{reason}");
}

#[tokio::test]
async fn without_a_ca_file_the_system_decides_and_it_knows_no_stranger() {
    let server = Server::secured(Authority::new().certify("127.0.0.1"), |_| answer("200 OK", "", "")).await;
    match spec(format!("https://{}/", server.address)).handler() {
        // Some machines trust nobody: that is said at the start.
        Err(why) => assert!(why.starts_with("this system trusts no certificates"), "{why}"),
        Ok(handler) => {
            let (outcome, reason, _) = outcome_of(&handler, attempt(job(""), None)).await;
            assert!(matches!(outcome, Outcome::Fail { .. }));
            assert!(reason.contains("(TLS): invalid peer certificate: UnknownIssuer"), "{reason}");
        }
    }
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
