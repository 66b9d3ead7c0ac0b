//! The tests' own Redis servers do what the tests ask of them.

#[path = "redis/mod.rs"]
mod redis;
#[path = "redis_support/server.rs"]
mod server;
