//! A kind whose jobs are requests: what its table may have.

use std::time::Duration;

use super::config::{Common, Node, Table, secrets};
use super::http::{HttpSpec, MAX_RESPONSE};
use crate::registry::Registry;

/// How long a request may take. A minute is what most servers and proxies give one.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take to come to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How much is kept of an answer: what a person reads of it.
const KEPT: usize = 16 << 10;

/// The longest time that a server may put a job off for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// By how much the attempt's own limit is above the request's, whose error says more.
const BACKSTOP: Duration = Duration::from_secs(5);

/// As good as no limit.
const ENDLESS: Duration = Duration::from_secs(366 * 86_400);

/// Reads the kind `name`, whose URL stands in `node`, and registers its handler if it makes sense.
pub(super) fn register(
    registry: Registry,
    name: &str,
    node: &Node,
    table: &mut Table<'_>,
    common: &mut Common,
) -> Registry {
    let timeout = if common.own_timeout { common.timeout.unwrap_or(ENDLESS) } else { TIMEOUT };
    common.limit(timeout + BACKSTOP);
    let url = table.text("http", "a URL such as \"http://127.0.0.1:8080/jobs\"");
    let content_type = table.text("content_type", "a type such as \"application/json\"");
    let spec = HttpSpec {
        url: url.unwrap_or_default().to_owned(),
        headers: secrets(table, "headers", |name| !name.is_empty()),
        content_type: content_type.unwrap_or("application/json").to_owned(),
        connect_timeout: table.time("connect_timeout").unwrap_or(CONNECT_TIMEOUT),
        timeout,
        ca_file: table.path("ca_file"),
        max_response: table.size_up_to("max_response", MAX_RESPONSE).unwrap_or(KEPT),
        max_retry_after: table.time_or_zero("max_retry_after").unwrap_or(MAX_RETRY_AFTER),
        retry: common.retry.clone(),
    };
    if spec.url.is_empty() {
        return registry;
    }
    match spec.handler() {
        Ok(handler) => registry.handle_raw(name, handler),
        Err(why) => {
            table.refuse_secretly("http", node, &why);
            registry
        }
    }
}
