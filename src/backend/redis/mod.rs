//! Jobs in a Redis server, in the layouts of Sidekiq and Resque.

#[allow(dead_code, reason = "the session that reads and writes with it comes next")]
pub(crate) mod codec;
