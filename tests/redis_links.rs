//! How a worker reaches its server: sockets, logins, TLS and sentinels; how many connections it keeps; and what it makes
//! of each thing that a server may refuse.

mod faults;
#[path = "redis/mod.rs"]
mod redis;

#[path = "redis_links/connections.rs"]
mod connections;
#[path = "redis_links/errors.rs"]
mod errors;
#[path = "redis_links/fake.rs"]
mod fake;
#[path = "redis_links/idle.rs"]
mod idle;
#[path = "redis_links/rig.rs"]
mod rig;
#[path = "redis_links/sentinel.rs"]
mod sentinel;
