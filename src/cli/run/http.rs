//! The handler `http`: a POST for each job, with the payload as its body.
//!
//! | the answer | becomes |
//! |---|---|
//! | 2xx, whole or longer than [`HttpSpec::max_response`] | done |
//! | 408, 425, 429, 5xx | failed; tried again no sooner than `Retry-After` says (at most [`HttpSpec::max_retry_after`]) and than the kind's policy says |
//! | any other 4xx | rejected: to the dead letters at once |
//! | 3xx and anything else | failed. A redirect is not followed: the payload and the secrets are for the address that the operator gave, and few who answer a POST with one mean the POST |
//! | none: no connection, no time left, not HTTP, a 2xx that breaks off | failed, with the whole chain of causes |
//!
//! Each request has `Idempotency-Key` and `Tidegate-Job-Id` (the job's id), `Tidegate-Kind`, `Tidegate-Queue`,
//! `Tidegate-Attempt` and, if the attempt has a timeout, `Tidegate-Deadline` (seconds since 1970). In the first four,
//! bytes other than visible ASCII, and `%`, are written `%XX`. Status and body of an answer are kept with the attempt.
//!
//! Connections are kept for the next job. When one that was kept turns out to have been closed by the endpoint, the
//! request is sent once more on a new one: it may come twice then, as any job may (P4), and the key tells.
//!
//! A job that is told to stop drops its request, and the connection with it, at once.
//!
//! Must not: follow a redirect or ask a proxy; show a query, a header or a payload in a log or an error. An answer that
//! repeats a secret is kept, and shown, without it (`hidden`).

mod address;
mod answer;
mod connect;
mod pool;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use self::address::Address;
pub(crate) use self::answer::MAX_RESPONSE;
use self::answer::{Extent, Verdict, account, encoded, redirected_to, retry_after};
use self::connect::Connector;
use self::pool::{Connection, Pool};
use super::clock::{deadline, wall_clock};
use super::hidden::{Cut, Hidden, Values};
use super::secret::Secret;
use crate::cli::excerpt::head;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::handler::Handler;
use crate::outcome::Outcome;
use crate::retry::RetryPolicy;

/// The most characters of an answer's body in the reason of a failure: a few lines of a terminal.
const REASON_CHARS: usize = 300;

/// Headers that say how a message is carried, or that the handler sets itself.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "expect",
    "idempotency-key",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// How the jobs of a kind become requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpSpec {
    /// Where to: `http` or `https`. No user name or password in it: those belong in a header that is a secret. Its
    /// query is never shown.
    pub(crate) url: String,
    /// Headers besides those that every job has. Read once, when the handler is made. `Host` and `User-Agent` take the
    /// place of ours.
    pub(crate) headers: BTreeMap<String, Secret>,
    /// The payload's type; the config's default is `application/json`.
    pub(crate) content_type: String,
    /// How long it may take to come to a connection: name, TCP and TLS.
    pub(crate) connect_timeout: Duration,
    /// How long it may take in all, to the last byte of the answer.
    pub(crate) timeout: Duration,
    /// Certificates in PEM that are trusted besides those that the system trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// How many bytes of an answer's body are read, and kept with the attempt; at most [`MAX_RESPONSE`].
    pub(crate) max_response: usize,
    /// The longest `Retry-After` that is honoured; a longer one is cut to it.
    pub(crate) max_retry_after: Duration,
    /// The kind's policy: a `Retry-After` that is shorter than its wait does not shorten it, or an endpoint that says
    /// "in a second" all day would use up a job's attempts in seconds.
    pub(crate) retry: RetryPolicy,
}

impl HttpSpec {
    /// The handler, with a pool of connections of its own, which goes with it.
    ///
    /// # Errors
    /// When the address, a header or a file makes no sense. No secret is in what is said.
    pub(crate) fn handler(self) -> Result<impl Handler + use<>, String> {
        let endpoint = Arc::new(Endpoint::new(self)?);
        Ok(move |context: Context| {
            let endpoint = endpoint.clone();
            async move {
                tokio::select! {
                    biased;
                    () = context.cancelled() => Outcome::fail("told to stop before the answer had come"),
                    outcome = endpoint.run(&context) => outcome,
                }
            }
        })
    }
}

/// What is the same for all jobs of a kind.
#[derive(Debug)]
struct Endpoint {
    address: Address,
    headers: HeaderMap,
    hidden: Hidden,
    timeout: Duration,
    max_response: usize,
    max_retry_after: Duration,
    retry: RetryPolicy,
    pool: Arc<Pool>,
}

impl Endpoint {
    fn new(spec: HttpSpec) -> Result<Self, String> {
        let HttpSpec { url, headers, content_type, connect_timeout, timeout, .. } = spec;
        let HttpSpec { ca_file, max_response, max_retry_after, retry, .. } = spec;
        if max_response > MAX_RESPONSE {
            return Err(format!(
                "the most of an answer that can be kept is {MAX_RESPONSE} bytes, not {max_response}"
            ));
        }
        let address = Address::parse(&url)?;
        if ca_file.is_some() && !address.tls {
            return Err("a ca_file is given, and the URL does not begin with https://".to_owned());
        }
        let mut values = Values::default();
        values.add_query(address.target.query().unwrap_or_default());
        let headers = standing_headers(&address, &content_type, headers, &mut values)?;
        let hidden = Hidden::new(values)?;
        let pool = Pool::new(Connector::new(&address, ca_file.as_deref(), connect_timeout)?);
        Ok(Self { address, headers, hidden, timeout, max_response, max_retry_after, retry, pool })
    }

    async fn run(&self, context: &Context) -> Outcome {
        let until = Instant::now() + self.timeout;
        let (response, connection) = match self.answer(context, until).await {
            Ok(answered) => answered,
            Err(error) => {
                let what = format!("POST {}", self.address.shown);
                return Outcome::fail(Error::new(error.kind(), what).caused_by(error));
            }
        };
        let (head, body) = response.into_parts();
        let (body, extent) = self.body(body, connection, until).await;
        // Many endpoints say what they were asked.
        let cut = if matches!(extent, Extent::Whole) { Cut::No } else { Cut::Back };
        let body = self.hidden.hide(&body, cut);
        context.keep_output(&account(head.status, &body, &extent));
        self.judge(context, head.status, &head.headers, &body, extent)
    }

    /// The head of the answer, and the connection that the rest of it comes through.
    async fn answer(
        &self,
        context: &Context,
        until: Instant,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        let late = |_| self.late("no answer");
        let not_http = |error| Error::new(ErrorKind::Connection, "no answer in HTTP").caused_by(error);
        if let Some(mut kept) = self.pool.take() {
            match timeout_at(until, kept.send(self.request(context))).await.map_err(late)? {
                Ok(response) => return Ok((response, kept)),
                Err(error) if error.is_parse() => return Err(not_http(error)),
                // The endpoint closed it just now.
                Err(_) => {}
            }
        }
        let mut new = self.pool.connect(until).await?;
        let answer = timeout_at(until, new.send(self.request(context))).await.map_err(late)?;
        Ok((answer.map_err(not_http)?, new))
    }

    fn request(&self, context: &Context) -> Request<Full<Bytes>> {
        let job = context.job();
        let mut request = Request::new(Full::new(job.payload.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.address.target.clone();
        let mut headers = self.headers.clone();
        let id = named(job.id.as_str());
        headers.insert("idempotency-key", id.clone());
        headers.insert("tidegate-job-id", id);
        headers.insert("tidegate-kind", named(job.kind.as_str()));
        headers.insert("tidegate-queue", named(job.queue.as_str()));
        headers.insert("tidegate-attempt", context.attempt().into());
        if let Some(deadline) = deadline(context) {
            headers.insert("tidegate-deadline", deadline.into());
        }
        // Said even if it is 0, which some endpoints insist on.
        headers.insert(CONTENT_LENGTH, job.payload.len().into());
        *request.headers_mut() = headers;
        request
    }

    /// Reads as much of the body as is kept. Only after the whole of it can the connection be used again.
    async fn body(&self, mut body: Incoming, mut connection: Connection, until: Instant) -> (Bytes, Extent) {
        let mut kept = BytesMut::new();
        let extent = loop {
            let frame = match timeout_at(until, connection.moving(body.frame())).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break Extent::Whole,
                Ok(Some(Err(error))) => {
                    let what = "the answer broke off";
                    break Extent::Broken(Error::new(ErrorKind::Connection, what).caused_by(error));
                }
                Err(_) => break Extent::Broken(self.late("no end of the answer")),
            };
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            let room = self.max_response - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                break Extent::Cut;
            }
        };
        if matches!(extent, Extent::Whole) {
            self.pool.put_back(connection);
        }
        (kept.freeze(), extent)
    }

    fn judge(
        &self,
        context: &Context,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        extent: Extent,
    ) -> Outcome {
        let what = format!("POST {} was answered with {status}", self.address.shown);
        let said = || match head(body.trim_ascii_start(), REASON_CHARS) {
            nothing if nothing.is_empty() => what.clone(),
            said => format!("{what}: {said}"),
        };
        match (Verdict::of(status), extent) {
            (Verdict::Done, Extent::Broken(error)) => {
                Outcome::fail(Error::new(error.kind(), what).caused_by(error))
            }
            (Verdict::Done, _) => Outcome::Done,
            (Verdict::Reject, _) => Outcome::reject(said()),
            (Verdict::Retry, _) => match retry_after(headers, wall_clock()) {
                Some(wait) => {
                    let usual = self.retry.wait(context.job(), context.attempt(), 0);
                    Outcome::fail_for(said(), wait.min(self.max_retry_after).max(usual))
                }
                None => Outcome::fail(said()),
            },
            (Verdict::Odd, _) => Outcome::fail(match redirected_to(headers) {
                Some(host) => {
                    let host = self.hidden.hide(host.as_bytes(), Cut::No);
                    let host = String::from_utf8_lossy(&host);
                    format!("{what}, which leads to {host}: redirects are not followed, give its URL")
                }
                None => said(),
            }),
        }
    }

    fn late(&self, what: &str) -> Error {
        Error::timeout(format!("{what} within {:?}", self.timeout))
    }
}

/// A name of the job's as the value of a header.
fn named(text: &str) -> HeaderValue {
    encoded(text).try_into().expect("what is encoded is visible ASCII")
}

/// The headers that are the same for all jobs; those of their values that are secrets come to `hidden`. No error repeats a value.
fn standing_headers(
    address: &Address,
    content_type: &str,
    added: BTreeMap<String, Secret>,
    hidden: &mut Values,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let host = address.authority.parse().map_err(|_| "the URL's host can't be sent as a header")?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION"))));
    let content_type =
        content_type.parse().map_err(|_| "the content type has characters that no header can hold")?;
    headers.insert(CONTENT_TYPE, content_type);
    let mut seen = Vec::new();
    for (text, secret) in added {
        let name: HeaderName = text.parse().map_err(|_| format!("{text:?} can't be the name of a header"))?;
        if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("tidegate-") {
            let hint = if name == CONTENT_TYPE { " (it has a setting of its own)" } else { "" };
            return Err(format!("the header {name} can't be set{hint}"));
        }
        if seen.contains(&name) {
            return Err(format!("the header {name} is given twice"));
        }
        let value = secret.read().map_err(|why| format!("the value of the header {name}: {why}"))?;
        hidden.add_secret(&text, &secret, value.as_str());
        let mut value: HeaderValue = value
            .as_str()
            .parse()
            .map_err(|_| format!("the value of the header {name} has characters that no header can hold"))?;
        value.set_sensitive(true);
        seen.push(name.clone());
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
