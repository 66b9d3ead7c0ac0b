//! Scripts in Ruby, and Sidekiq processes.

use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

use rustix::process::Signal;
use serde_json::Value;

use super::{command, printed_by};
use crate::redis::{Folder, Process, missing};

/// The scripts of `sidekiq/`; each says at its top what it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruby;

impl Ruby {
    /// Says whether there is Ruby with Sidekiq 6 and what its pages need; if not, in one visible line, and under CI
    /// with a panic.
    pub(crate) fn is_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        let there = *THERE.get_or_init(|| {
            let needs = r#"%w[sidekiq/web rack/session/cookie puma].each { |it| require it }
                exit Sidekiq::VERSION.start_with?("6.")"#;
            let asked = Command::new("ruby").args(["-e", needs]).output();
            asked.is_ok_and(|output| output.status.success())
        });
        if !there {
            missing("Sidekiq 6 with its pages", "apt-get install ruby-sidekiq puma");
        }
        there
    }

    /// What `script` prints, with Redis at `url`; fails if it does not end well.
    pub(crate) fn run(script: &str, args: &[&str], url: &str) -> String {
        printed_by(command("ruby", "sidekiq", url).arg(script).args(args))
    }

    /// The same for a script that prints JSON.
    pub(crate) fn json(script: &str, args: &[&str], url: &str) -> Value {
        let printed = Self::run(script, args, url);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{script}: {error}: {printed}"))
    }

    /// Enqueues a job of `class` for each list of arguments; gives the ids. For `options` see `enqueue.rb`.
    pub(crate) fn enqueue(url: &str, class: &str, args: &Value, options: &Value) -> Vec<String> {
        let ids = Self::json("enqueue.rb", &[class, &args.to_string(), &options.to_string()], url);
        serde_json::from_value(ids).expect("a list of ids")
    }

    /// What Sidekiq's own API says of everything: `api.rb show`.
    pub(crate) fn show(url: &str) -> Value {
        Self::json("api.rb", &["show"], url)
    }
}

/// A Sidekiq process with the jobs of `sidekiq/jobs.rb`. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Sidekiq {
    process: Process,
    _folder: Folder,
}

impl Sidekiq {
    /// Starts it and waits until Redis knows it. `args` are those of the program `sidekiq`:
    /// `&["-c", "3", "-q", "default", "-q", "high", "-t", "5"]`.
    pub(crate) fn start(url: &str, args: &[&str]) -> Self {
        let folder = Folder::new();
        let mut program = command("sidekiq", "sidekiq", url);
        program.args(["-r", "./jobs.rb"]).args(args);
        let mut process = Process::start(&mut program, &folder.file("output"));
        process.says("registered");
        Self { process, _folder: folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// SIGTSTP: it takes no more jobs.
    pub(crate) fn quiet(&mut self) {
        self.process.signal(Signal::TSTP);
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.process.stop()
    }

    /// SIGKILL: what it is at is lost.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until it has ended, for whatever reason.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }
}
