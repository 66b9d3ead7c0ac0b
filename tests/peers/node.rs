//! Scripts for Node, and workers of node-resque.

use std::process::ExitStatus;

use serde_json::Value;

use super::{command, printed_by, scripts};
use crate::redis::{Folder, Process, is_there, missing};

/// The scripts of `node/`; each says at its top what it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node;

impl Node {
    /// Says whether there is Node with the packages; if not, in one visible line, and under CI with a panic.
    pub(crate) fn is_there() -> bool {
        let packages = ["bullmq", "ioredis", "node-resque"];
        if !is_there("node") {
            missing("Node", "apt-get install nodejs npm");
        } else if !packages.iter().all(|name| scripts("node/node_modules").join(name).exists()) {
            missing("node-resque", "npm ci --omit=dev --ignore-scripts, in tests/peers/node");
        } else {
            return true;
        }
        false
    }

    /// What `script` prints, with Redis at `url`; fails if it does not end well.
    pub(crate) fn run(script: &str, args: &[&str], url: &str) -> String {
        printed_by(command("node", "node", url).arg(script).args(args))
    }

    /// The same for a script that prints JSON.
    pub(crate) fn json(script: &str, args: &[&str], url: &str) -> Value {
        let printed = Self::run(script, args, url);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{script}: {error}: {printed}"))
    }

    /// Enqueues a job of `class` for each list of arguments.
    pub(crate) fn enqueue(url: &str, queue: &str, class: &str, args: &Value) {
        Self::json("enqueue.js", &[queue, class, &args.to_string()], url);
    }

    /// What node-resque says of everything: `failed.js show`.
    pub(crate) fn show(url: &str) -> Value {
        Self::json("failed.js", &["show"], url)
    }
}

/// A worker of node-resque with the jobs of `node/work.js`, and its scheduler. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct NodeWorker {
    process: Process,
    _folder: Folder,
}

impl NodeWorker {
    /// Starts it and waits until it looks for jobs.
    pub(crate) fn start(url: &str, queues: &[&str]) -> Self {
        let folder = Folder::new();
        let mut program = command("node", "node", url);
        let mut process = Process::start(program.arg("work.js").args(queues), &folder.file("output"));
        process.says("ready");
        Self { process, _folder: folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// SIGTERM, and waits until it has ended its job and itself.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.process.stop()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }
}
