//! P2, P4, P5 and P8 on real Redis servers: workers are killed and put to sleep, servers restarted, paused and replaced,
//! connections cut, delayed and half-opened; every job is settled, and what ran twice is explained.
//!
//! The sizes suit a test run of a few minutes. With `TIDEGATE_TEST_FULL` set, they are those of the promise: 100,000
//! jobs, hundreds of faults, outages of a minute.

mod faults;
#[path = "support/heap.rs"]
mod heap;
#[path = "redis/mod.rs"]
mod redis;

#[path = "redis_faults/alone.rs"]
mod alone;
#[path = "redis_faults/books.rs"]
mod books;
#[path = "redis_faults/crew.rs"]
mod crew;
#[path = "redis_faults/failover.rs"]
mod failover;
#[path = "redis_faults/flat.rs"]
mod flat;
#[path = "redis_faults/fleet.rs"]
mod fleet;
#[path = "redis_faults/network.rs"]
mod network;
#[path = "redis_faults/outages.rs"]
mod outages;
#[path = "redis_faults/plain.rs"]
mod plain;
#[path = "redis_faults/servers.rs"]
mod servers;
#[path = "redis_faults/stalls.rs"]
mod stalls;
#[path = "redis_faults/steps.rs"]
mod steps;
