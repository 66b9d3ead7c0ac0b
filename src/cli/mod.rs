//! The program `tidegate`: the command line, and one room for each of its commands.
//!
//! Not an interface for other crates: what it takes and answers is `tidegate help`.

mod args;
pub(crate) mod child;
mod complete;
pub(crate) mod each;
pub(crate) mod enqueue;
mod excerpt;
mod jobs;
mod records;
mod room;
pub(crate) mod run;
mod signals;
mod stats;
mod stdout;
mod store;
mod table;
mod text;
mod times;
mod values;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};

/// How the program ends. The numbers are listed in the help of each command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All that was asked for is done.
    Done,
    /// Some of it failed for good.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// The input can't be read.
    Input,
    /// The command can't be started.
    Command,
    /// The output can't be written.
    Output,
    /// What the work needs is not there, or does not work any more.
    Unavailable,
    /// Something that should not happen did.
    Internal,
    /// The configuration makes no sense.
    Config,
    /// Nobody reads standard output any more: as a shell reports a program that SIGPIPE ended.
    Pipe,
    /// Stopped by this signal before the end: as a shell reports a program that it ended.
    Signal(u8),
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Input => 3,
            Self::Command => 4,
            Self::Output => 5,
            // Those of sysexits.h, which systemd shows by their names.
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Config => 78,
            Self::Pipe => 128 + 13,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let exit = match Cli::try_parse() {
        Ok(Cli { command: Command::Each(args) }) => each::run(*args),
        Ok(Cli { command: Command::Run(args) }) => run::run(&args),
        Ok(Cli { command: Command::Enqueue(args) }) => enqueue::run(&args),
        Ok(Cli { command: Command::Jobs(args) }) => jobs::run(&args),
        Ok(Cli { command: Command::Stats(args) }) => stats::run(&args),
        Ok(Cli { command: Command::Completions(args) }) => complete::run(&args),
        Err(error) => {
            // That nobody reads the help is no failure.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Done }
        }
    };
    ExitCode::from(exit.code())
}

/// Says on standard error what is wrong, and returns how to end.
pub(crate) fn refuse(exit: Exit, what: impl std::fmt::Display) -> Exit {
    // When nobody can read it there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "tidegate: {what}");
    exit
}
