//! A server that says what a test wants, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A listener on a port of its own, and what it does with each connection. Ends when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    /// Does `serve` with each connection, which is told its number, from 1.
    pub(super) async fn start<F>(serve: impl Fn(usize, TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                serving.spawn(serve(count.fetch_add(1, Ordering::SeqCst) + 1, stream));
            }
        });
        Self { address, connections, _task: task }
    }

    /// Answers every request on every connection with what `answer` says to it.
    pub(super) async fn answering(answer: impl Fn(&Received) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::start(move |_, stream| serve(stream, answer.clone())).await
    }

    /// The same, over TLS.
    pub(super) async fn secured(
        acceptor: TlsAcceptor,
        answer: impl Fn(&Received) -> String + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Self::start(move |_, stream| {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            async move {
                // A client who does not trust us hangs up.
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, answer).await;
                }
            }
        })
        .await
    }

    /// How many connections there have been.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Arc<impl Fn(&Received) -> String>) {
    while let Some(received) = receive(&mut stream).await {
        let answer = answer(&received);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// The first line.
    pub(super) line: String,
    /// The others, sorted.
    pub(super) headers: Vec<String>,
    pub(super) body: Vec<u8>,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Reads one request; `None` when the client has hung up.
pub(super) async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head is ASCII");
    let mut lines = head.trim_end().split("\r\n").map(str::to_owned);
    let line = lines.next().expect("a first line");
    let mut headers: Vec<String> = lines.collect();
    headers.sort();
    let mut received = Received { line, headers, body: Vec::new() };
    let length = received.header("content-length").expect("a length").parse().expect("a number");
    received.body.resize(length, 0);
    stream.read_exact(&mut received.body).await.ok()?;
    Some(received)
}

/// An answer with a body.
pub(super) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

/// An authority for certificates, which nobody knows.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("it signs itself"))
    }

    /// Its own certificate, in PEM.
    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// What a server needs that is certified to be `host`.
    pub(super) fn certify(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("it signs");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual ones")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they fit");
        TlsAcceptor::from(Arc::new(config))
    }
}
