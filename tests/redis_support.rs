//! The tests' own Redis servers, the proxy before them and the peers beside them do what the tests ask of them.

#[path = "peers/mod.rs"]
mod peers;
#[path = "redis_support/peers.rs"]
mod peers_among_themselves;
#[path = "redis_support/proxy.rs"]
mod proxy;
#[path = "redis/mod.rs"]
mod redis;
#[path = "redis_support/server.rs"]
mod server;
