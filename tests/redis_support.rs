//! The tests' own Redis servers do what the tests ask of them.

#[path = "redis_support/proxy.rs"]
mod proxy;
#[path = "redis/mod.rs"]
mod redis;
#[path = "redis_support/server.rs"]
mod server;
