//! The backend `redis` in Resque's layout: what stands on the server, byte for byte, and node-resque beside it.

#![cfg(feature = "redis")]

#[path = "resque/bytes.rs"]
mod bytes;
#[path = "resque/fixture.rs"]
mod fixture;
#[path = "resque/malformed.rs"]
mod malformed;
#[path = "resque/node.rs"]
mod node;
#[path = "peers/mod.rs"]
mod peers;
#[path = "resque/plain.rs"]
mod plain;
#[cfg(feature = "cli")]
#[path = "resque/program.rs"]
mod program;
#[path = "redis/mod.rs"]
mod redis;
#[path = "resque/reschedule.rs"]
mod reschedule;
#[path = "resque/workers.rs"]
mod workers;
