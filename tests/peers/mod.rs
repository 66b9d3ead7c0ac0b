//! Real Sidekiq, a Resque for Node and BullMQ, to run beside Tidegate on one Redis.
//!
//! A test binary takes this in with `#[path = "peers/mod.rs"] mod peers;`, and `redis` too: see there.
//!
//! | to have | take |
//! |---|---|
//! | a script of `sidekiq/` | [`Ruby::run`], [`Ruby::json`] |
//! | a Sidekiq process with the jobs of `sidekiq/jobs.rb` | [`Sidekiq`] |
//! | Sidekiq's pages, and their buttons | [`SidekiqWeb`] |
//! | a script of `node/` | [`Node::run`], [`Node::json`] |
//! | a worker of node-resque with the jobs of `node/work.js` | [`NodeWorker`] |
//!
//! A test asks first whether they are there, which is one visible line if not, and under CI a panic:
//!
//! ```ignore
//! let (true, Some(server)) = (Ruby::is_there(), RedisServer::start()) else { return };
//! ```

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of it")]

mod node;
mod ruby;
mod web;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::redis::{Folder, Process};

pub(crate) use node::{Node, NodeWorker};
pub(crate) use ruby::{Ruby, Sidekiq};
pub(crate) use web::{Page, SidekiqWeb};

/// How long a script may take: a benchmark is one too.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program that finds Redis at `url`, in the folder of these scripts that is named.
fn command(program: &str, folder: &str, url: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(scripts(folder)).env("REDIS_URL", url);
    // What a user's own settings would change.
    for name in ["REDIS_PROVIDER", "RUBYOPT", "NODE_OPTIONS", "NOTIFY_SOCKET", "RAILS_ENV", "RACK_ENV"] {
        command.env_remove(name);
    }
    command
}

fn scripts(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(folder)
}

/// What it prints; fails with what it says about errors if it does not end well.
fn printed_by(command: &mut Command) -> String {
    let folder = Folder::new();
    let (output, errors) = (folder.file("output"), folder.file("errors"));
    let ended = Process::start_apart(command, &output, &errors).wait_for(PATIENCE);
    let text = |path| String::from_utf8_lossy(&fs::read(path).expect("a file of ours")).into_owned();
    assert!(ended.success(), "{command:?}: {ended}\n{}", text(errors));
    text(output)
}
