//! From an address to a stream of bytes: the name, TCP and TLS, each within the time for connecting.
//!
//! No proxy is asked, whatever the environment says: what is called is an endpoint that the operator named, most often
//! within the same network, and a variable that was meant for another program must not carry its payloads elsewhere.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::Address;
use crate::error::{Error, ErrorKind as Kind};

/// The most addresses of one name that are tried, so that each gets a fair part of the time.
const MAX_ADDRESSES: usize = 8;

/// A connection's bytes, in clear or through TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Stream for T {}

/// Makes connections to one address.
pub(super) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// How long it may take in all.
    timeout: Duration,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port, tls) = (&self.host, self.port, self.tls.is_some());
        f.debug_struct("Connector").field("host", host).field("port", &port).field("tls", &tls).finish()
    }
}

impl Connector {
    /// For `address`; over TLS with the certificates that the system trusts and those in `ca_file`.
    ///
    /// # Errors
    /// When there are no certificates to trust, or the file makes no sense.
    pub(super) fn new(address: &Address, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, String> {
        let (host, port) = (address.host.clone(), address.port);
        let tls = if address.tls { Some((trusting(ca_file)?, server_name(&host)?)) } else { None };
        Ok(Self { host, port, tls, timeout })
    }

    /// Connects, by `deadline` at the latest.
    ///
    /// # Errors
    /// Says what was tried, and what went wrong.
    ///
    /// # Cancel safety
    /// Dropped early, no connection is left. A look-up of the name that the system has begun goes on in its own thread
    /// until the system gives up.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Box<dyn Stream>, Error> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        let Self { host, port, .. } = self;
        let addresses: Vec<SocketAddr> = in_time(deadline, lookup_host((host.as_str(), *port)))
            .await
            .map_err(|error| failed(format!("looking up {host}"), error))?
            .take(MAX_ADDRESSES)
            .collect();
        let stream = connect_any(&addresses, deadline).await?;
        // Each request is written at once, so there is nothing to wait for. Where it can't be set it is only slower.
        let _ = stream.set_nodelay(true);
        let Some((tls, name)) = &self.tls else { return Ok(Box::new(stream)) };
        let secured = in_time(deadline, tls.connect(name.clone(), stream)).await;
        Ok(Box::new(
            secured.map_err(|error| failed(format!("securing the connection to {host} (TLS)"), error))?,
        ))
    }
}

/// Connects to the first address that answers. One that does not gets its part of the time and no more.
async fn connect_any(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Error> {
    let mut last = failed("connecting".to_owned(), io::Error::other("the name has no address"));
    for (at, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let part = deadline.saturating_duration_since(now) / (addresses.len() - at) as u32;
        match in_time(now + part, TcpStream::connect(address)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(format!("connecting to {address}"), error),
        }
    }
    Err(last)
}

async fn in_time<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(ErrorKind::TimedOut, "the time for connecting is over");
    timeout_at(deadline, work).await.map_err(late)?
}

fn failed(what: String, error: io::Error) -> Error {
    Error::new(Kind::Connection, what).caused_by(error)
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|_| format!("no certificate can be for the host {host:?}"))
}

/// TLS 1.2 and 1.3, as a client that shows no certificate of its own.
fn trusting(ca_file: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // A system's store often has some that nobody can read any more; the others serve.
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca_file {
        add(&mut roots, path)?;
    }
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!("this system trusts no certificates{why}: install them, or name a ca_file"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS can't be set up: {error}"))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let shown = path.display();
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates =
        certificates.map_err(|error| format!("the certificates in {shown} can't be read: {error}"))?;
    if certificates.is_empty() {
        return Err(format!("{shown} has no certificate: it must have at least one, in PEM"));
    }
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate in {shown} makes no sense: {error}"))?;
    }
    Ok(())
}
