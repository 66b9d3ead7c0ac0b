//! The handler `exec`: a command for each job, with the payload on its standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::context::Context;
use crate::handler::Handler;
use crate::outcome::Outcome;

/// How the jobs of a kind become commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecSpec {
    /// The program and its arguments. No shell reads them.
    pub(crate) argv: Vec<String>,
    /// What is added to the environment.
    pub(crate) env: BTreeMap<String, Secret>,
    /// Where it runs; without it, where this process does. A program with a slash in its name is looked for from here.
    pub(crate) folder: Option<PathBuf>,
    /// The time between TERM and KILL. To be below the worker's `cancel_grace`.
    pub(crate) grace: Duration,
    /// How many bytes are kept of each of the two outputs.
    pub(crate) max_output: usize,
    /// After which time a job comes again whose command exited with 75.
    pub(crate) later: Duration,
}

impl ExecSpec {
    /// The handler.
    ///
    /// # Errors
    /// When the program is not there, or the environment makes no sense.
    pub(crate) fn handler(self) -> Result<impl Handler + use<>, String> {
        if self.argv.is_empty() {
            return Err("the command is empty: there is nothing to run".to_owned());
        }
        Ok(move |_: Context| async move { Outcome::fail("it is being built") })
    }
}
