//! `tidegate run`: jobs of a queue, each handed to a command or to an HTTP endpoint.

#[allow(dead_code, reason = "the command is built beside this")]
pub(crate) mod exec;
#[cfg(feature = "http")]
#[allow(dead_code, reason = "the command is built beside this")]
pub(crate) mod http;
#[allow(dead_code, reason = "the command is built beside this")]
pub(crate) mod secret;
