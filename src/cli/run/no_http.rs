//! A kind whose jobs are requests, in a program that was built without them: refused, with what to do about it.

use super::config::{Common, Node, Table};
use crate::registry::Registry;

/// What such a table may have.
const KEYS: &[&str] =
    &["headers", "content_type", "connect_timeout", "ca_file", "max_response", "max_retry_after"];

/// Says that it can't be done.
pub(super) fn register(
    registry: Registry,
    _: &str,
    node: &Node,
    table: &mut Table<'_>,
    _: &mut Common,
) -> Registry {
    table.refuse_secretly("http", node, "this build has no http: build it with --features http");
    for key in KEYS {
        table.get(key);
    }
    registry
}
