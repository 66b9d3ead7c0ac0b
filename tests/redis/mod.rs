//! Real Redis servers of the tests' own: on loopback, on ports of their own, gone with the test.
//!
//! A test binary takes this in with `#[path = "redis/mod.rs"] mod redis;`.
//!
//! | to have | take |
//! |---|---|
//! | a server that can be killed, stopped, paused and started again | [`RedisServer`], [`Options`] |
//! | a master, its replicas and three sentinels | [`Sentinels`] |
//! | a network that delays, holds, swallows and cuts | [`Proxy`] |
//! | commands to it, past any proxy, password and certificate | [`RedisServer::command`], [`Client`] |
//! | a condition that comes true | [`until`] |
//! | what is no job, and what is an odd one | [`malformed`], [`odd`], [`mixed`] |
//! | another program that ends with the test | [`Process`] |
//!
//! Nothing here needs a runtime: all calls block, for milliseconds but for those that say otherwise.
//!
//! Where there is no `redis-server`, starting gives `None` after one visible line, and the test returns:
//!
//! ```ignore
//! let Some(server) = RedisServer::start() else { return };
//! ```

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of it")]

mod client;
mod malformed;
mod process;
mod proxy;
mod pump;
mod sentinel;
mod server;
mod tls;

pub(crate) use client::{Client, Reply};
pub(crate) use malformed::{malformed, mixed, odd};
pub(crate) use process::{Folder, Process, free_port, is_there, missing, until};
pub(crate) use proxy::{BOTH_WAYS, Proxy, Way};
pub(crate) use sentinel::Sentinels;
pub(crate) use server::{APISONATOR_MAY, Options, RedisServer, server_is_there};
pub(crate) use tls::Certificates;
