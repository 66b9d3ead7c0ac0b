//! Connections: shared, kept, closed by either side, and trusted.

use super::*;

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
