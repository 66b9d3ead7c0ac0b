//! What a server answers, or does not: slow answers, garbage, ends too soon, no end at all, silence.

use super::*;

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
    let before = Instant::now();
    let (_, reason, _) = post(HttpSpec { connect_timeout, ca_file, ..spec(url) }).await;
    assert!(before.elapsed() < LIMIT / 2, "the time for connecting is a limit of its own");
    let end = "securing the connection to 127.0.0.1 (TLS): the time for connecting is over";
    assert!(reason.ends_with(end), "{reason}");
}
