//! The handler `http`: a POST for each job, with the payload as its body.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::context::Context;
use crate::handler::Handler;
use crate::outcome::Outcome;
use crate::retry::RetryPolicy;

/// How the jobs of a kind become requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpSpec {
    /// Where to: `http` or `https`. No user name or password in it: those belong in a header that is a secret.
    pub(crate) url: String,
    /// Headers besides those that every job has.
    pub(crate) headers: BTreeMap<String, Secret>,
    /// The payload's type; the config's default is `application/json`.
    pub(crate) content_type: String,
    /// How long it may take to come to a connection: name, TCP and TLS.
    pub(crate) connect_timeout: Duration,
    /// How long it may take in all, to the last byte of the answer.
    pub(crate) timeout: Duration,
    /// Certificates in PEM that are trusted besides those that the system trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// How many bytes of an answer's body are read, and kept with the attempt.
    pub(crate) max_response: usize,
    /// The longest `Retry-After` that is honoured; a longer one is cut to it.
    pub(crate) max_retry_after: Duration,
    /// The kind's policy: a `Retry-After` does not make a wait shorter than this makes it.
    pub(crate) retry: RetryPolicy,
}

impl HttpSpec {
    /// The handler, with a pool of connections of its own.
    ///
    /// # Errors
    /// When the address, a header or a file makes no sense.
    pub(crate) fn handler(self) -> Result<impl Handler + use<>, String> {
        if self.url.is_empty() {
            return Err("url is empty".to_owned());
        }
        Ok(move |_: Context| async move { Outcome::fail("it is being built") })
    }
}
