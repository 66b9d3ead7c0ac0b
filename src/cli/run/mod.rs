//! `tidegate run`: the daemon. It takes jobs from a queue, and hands each to a command or to an HTTP endpoint.
//!
//! ```text
//!  file, environment, flags ──▶ config ──▶ registry: kinds ──▶ exec, http ──┐
//!                                 │  settings                             ▼
//!                     signals ──▶ steer ──────────────────────────────▶ worker ◀── store
//!                                 │                                       │
//!                                 └───────────▶ log ◀─────────────────────┘
//! ```
//!
//! This file checks what was asked for; `steer` runs it.

mod args;
mod clock;
#[cfg_attr(not(feature = "http"), allow(dead_code, unused_imports, reason = "what only `http_kind` needs"))]
pub(crate) mod config;
pub(crate) mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "what only `http` needs"))]
mod hidden;
#[cfg(feature = "http")]
pub(crate) mod http;
#[cfg(feature = "http")]
mod http_kind;
#[cfg(not(feature = "http"))]
#[path = "no_http.rs"]
mod http_kind;
mod log;
pub(crate) mod secret;
mod steer;
mod store;
#[cfg(test)]
mod testing;

use std::io::{self, Write as _};

pub(crate) use self::args::{EXITS, MORE, RunArgs};
use self::config::{Config, Overrides, Place, Refused};
use super::{Exit, refuse, room};
use crate::registry::Registry;

/// What is needed to read the configuration, and to read it again.
#[derive(Clone, Debug)]
struct Asked {
    place: Place,
    overrides: Overrides,
}

impl Asked {
    fn load(&self) -> Result<Config, Refused> {
        config::load(&self.place, &self.overrides)
    }
}

/// Does what `args` ask for.
pub(crate) fn run(args: &RunArgs) -> Exit {
    let done = if args.check {
        prepare(args).map(|(_, config)| approve(args, &config))
    } else {
        steer::Daemon::new().and_then(|daemon| {
            let (asked, config) = prepare(args)?;
            daemon.carry_out(asked, config)
        })
    };
    done.unwrap_or_else(|(exit, what)| refuse(exit, what))
}

/// Reads the configuration.
fn prepare(args: &RunArgs) -> Result<(Asked, Config), steer::Refusal> {
    let no = |why: String| (Exit::Config, why);
    let place =
        Place::new(args.config()).map_err(|error| no(format!("the current folder is gone: {error}")))?;
    let asked = Asked { place, overrides: Overrides::of_process(args.flags()) };
    let config = asked.load().map_err(|refused| no(refused.to_string()))?;
    let jobs = config.settings.worker.max_concurrent_jobs;
    room::is_there_for(jobs as u64)
        .map_err(|why| no(format!("worker.max_concurrent_jobs ({jobs}) {why}")))?;
    Ok((asked, config))
}

fn approve(args: &RunArgs, config: &Config) -> Exit {
    let Config { settings, registry } = config;
    let (file, jobs) = (args.config().display(), settings.worker.max_concurrent_jobs);
    let what =
        format!("{file} makes sense: {}, {jobs} jobs at once, kinds: {}", settings.source, kinds(registry));
    match writeln!(io::stdout().lock(), "{what}") {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Pipe,
        Err(error) => refuse(Exit::Output, format!("standard output can't be written: {error}")),
    }
}

/// The kinds by name, in one line.
fn kinds(registry: &Registry) -> String {
    let mut names: Vec<&str> = registry.kinds().map(|kind| kind.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}
