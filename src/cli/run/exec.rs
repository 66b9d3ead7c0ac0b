//! The handler `exec`: a command for each job, with the payload on its standard input and no shell in between.
//!
//! | the command | becomes |
//! |---|---|
//! | exits with 0 | done |
//! | exits with 75 (`EX_TEMPFAIL`) | later: again after [`ExecSpec::later`], and the attempt is not counted |
//! | exits with 65 (`EX_DATAERR`) | rejected: to the dead letters at once |
//! | exits with anything else, or is ended by a signal | failed, with the end of its standard error as the reason |
//! | is told to stop | not done, whatever it exits with: what it counts as is said by why it was told to |
//!
//! It gets this process's environment (but for what systemd says to this process alone), what the spec adds, and
//! `TIDEGATE_JOB_ID`, `TIDEGATE_KIND`, `TIDEGATE_QUEUE`, `TIDEGATE_ATTEMPT` and, if the attempt has a timeout,
//! `TIDEGATE_DEADLINE` (seconds since 1970). The beginning and the end of both outputs are kept with the attempt,
//! whatever it comes to. Secrets that the spec gives the command are not to be seen in them, nor in a reason (`hidden`).
//!
//! Its process group ends before the job is settled (P6). A process that has left the group (a daemon, `setsid`) goes
//! on: this process becomes its parent, and takes it away when it has ended.
//!
//! Must not: hand anything of a job to a shell, or make a part of the command of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::clock::deadline;
use super::hidden::{Cut, Hidden, Values};
use super::secret::{Revealed, Secret};
use crate::cli::child::exec::{Ended, Launcher, Task, find_program, running};
use crate::cli::child::orphans::{adopt, bury};
use crate::cli::child::pipes::{Captured, Keeping};
use crate::cli::child::words::{describe, is_shortage, start_error};
use crate::cli::excerpt::tail;
use crate::context::Context;
use crate::handler::Handler;
use crate::outcome::Outcome;
use crate::source::MAX_OUTPUT_BYTES;
use crate::sync::{Mutex, lock};

/// The exit statuses of `sysexits.h` that mean something here.
const EX_DATAERR: i32 = 65;
const EX_TEMPFAIL: i32 = 75;

/// The most that may be kept of each output: both of them, and what is said about them, fit into what is kept with an
/// attempt.
pub(crate) const MAX_OUTPUT: usize = (MAX_OUTPUT_BYTES - 512) / 2;

/// The most characters of standard error in the reason of a failure: a few lines of a terminal.
const REASON_CHARS: usize = 300;

/// After which time a job comes again whose command the system had no room for. Long enough for some that run to end.
const SHORTAGE_WAIT: Duration = Duration::from_secs(5);

/// The time between two looks for orphans that have ended: few enough come together in it.
const BURY_EVERY: Duration = Duration::from_secs(1);

/// What systemd says to this process alone: a child that took it for its own would speak to systemd in our name.
const OURS: &[&str] =
    &["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How the jobs of a kind become commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecSpec {
    /// The program and its arguments. No shell reads them.
    pub(crate) argv: Vec<String>,
    /// What is added to the environment. Read once, when the handler is made.
    pub(crate) env: BTreeMap<String, Secret>,
    /// Where it runs; without it, where this process does. A program whose name has a slash is looked for from here,
    /// any other in this process's PATH.
    pub(crate) folder: Option<PathBuf>,
    /// The time between TERM and KILL for a command that is to stop. The worker's `cancel_grace` has to be longer by
    /// some seconds: when that is over the handler is aborted, and the group gets its KILL at once. When the worker
    /// stops, half of what its shutdown deadline keeps in reserve (2.5 s by default) is all the time there is.
    pub(crate) grace: Duration,
    /// How many bytes are kept of each of the two outputs, half of them of its beginning and half of its end; at most
    /// [`MAX_OUTPUT`]. All is read, so that the command never waits for us.
    pub(crate) max_output: usize,
    /// After which time a job comes again whose command exited with 75.
    pub(crate) later: Duration,
}

impl ExecSpec {
    /// The handler.
    ///
    /// # Errors
    /// When the program or the folder is not there, a secret can't be read, or a setting makes no sense.
    pub(crate) fn handler(self) -> Result<impl Handler + use<>, String> {
        let commands = Arc::new(Commands::new(self)?);
        Ok(move |context: Context| {
            let commands = commands.clone();
            async move { commands.run(&context).await }
        })
    }
}

/// What is the same for all jobs of a kind.
#[derive(Debug)]
struct Commands {
    launcher: Launcher,
    argv: Vec<OsString>,
    env: Vec<(String, Revealed)>,
    hidden: Hidden,
    later: Duration,
    /// When it was last looked for orphans.
    buried: Mutex<Option<Instant>>,
}

impl Commands {
    fn new(spec: ExecSpec) -> Result<Self, String> {
        let ExecSpec { argv, env, folder, grace, max_output, later } = spec;
        if max_output > MAX_OUTPUT {
            return Err(format!("the most output that can be kept is {MAX_OUTPUT} bytes, not {max_output}"));
        }
        if let Some(folder) = folder.as_deref().filter(|folder| !folder.is_dir()) {
            return Err(format!("{} is not a folder: the command can't run there", folder.display()));
        }
        // By its place: what it says may be a secret.
        if let Some(at) = argv.iter().position(|argument| argument.contains('\0')) {
            let which = if at == 0 { "the program's name".to_owned() } else { format!("argument {at}") };
            return Err(format!("{which} has a NUL character, which no argument can hold"));
        }
        let program = program(argv.first().map_or("", String::as_str), folder.as_deref())?;
        let mut values = Values::default();
        let env = env.into_iter().map(|(name, secret)| variable(name, &secret, &mut values));
        let env = env.collect::<Result<_, _>>()?;
        let hidden = Hidden::new(values)?;
        let keep = Keeping { first: max_output / 2, last: max_output - max_output / 2 };
        let launcher = Launcher { program: Some(program), folder, without: OURS, grace, keep };
        let argv = argv.into_iter().map(OsString::from).collect();
        adopt();
        Ok(Self { launcher, argv, env, hidden, later, buried: Mutex::new(None) })
    }

    async fn run(&self, context: &Context) -> Outcome {
        let env = match self.env(context) {
            Ok(env) => env,
            Err(why) => return Outcome::reject(why),
        };
        let argv = Cow::Borrowed(self.argv.as_slice());
        let task = Task { argv, stdin: Some(context.payload().clone()), env };
        let ended = self.launcher.run(&task, context.cancelled(), |_| ()).await;
        self.bury();
        match ended {
            Ok(ended) => {
                let (stdout, stderr) =
                    (Said::of(&ended.stdout, &self.hidden), Said::of(&ended.stderr, &self.hidden));
                if let Some(output) = account(&stdout, &stderr) {
                    context.keep_output(&output);
                }
                self.judge(&ended, &stderr)
            }
            Err(error) => self.not_started(&error),
        }
    }

    /// The environment of one attempt; an error if the job can't be spoken of there.
    fn env(&self, context: &Context) -> Result<Vec<(&str, Cow<'_, str>)>, String> {
        let job = context.job();
        let mut env: Vec<(&str, Cow<'_, str>)> =
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str().into())).collect();
        for (name, what, value) in [
            ("TIDEGATE_JOB_ID", "id", job.id.as_str()),
            ("TIDEGATE_KIND", "kind", job.kind.as_str()),
            ("TIDEGATE_QUEUE", "queue", job.queue.as_str()),
        ] {
            if value.contains('\0') {
                return Err(format!(
                    "the job's {what} {value:?} has a NUL character, which no environment variable can hold"
                ));
            }
            env.push((name, value.to_owned().into()));
        }
        env.push(("TIDEGATE_ATTEMPT", context.attempt().to_string().into()));
        env.extend(deadline(context).map(|at| ("TIDEGATE_DEADLINE", at.to_string().into())));
        Ok(env)
    }

    /// A command that was told to stop has not done its work, whatever it says: many exit with 0 then.
    fn judge(&self, ended: &Ended, stderr: &Said<'_>) -> Outcome {
        let how = describe(ended.status);
        if ended.told_to_stop {
            return Outcome::fail(format!("{how} after it was told to stop"));
        }
        let reason = || {
            let said = tail(stderr.end(), REASON_CHARS);
            if said.is_empty() { how.clone() } else { format!("{how}: {said}") }
        };
        match ended.status.code() {
            Some(0) => Outcome::Done,
            Some(EX_TEMPFAIL) => Outcome::Snooze(self.later),
            Some(EX_DATAERR) => Outcome::reject(reason()),
            _ => Outcome::fail(reason()),
        }
    }

    /// Takes orphans away, unless that was done a moment ago.
    fn bury(&self) {
        let now = Instant::now();
        {
            let mut buried = lock(&self.buried);
            if buried.is_some_and(|before| now < before + BURY_EVERY) {
                return;
            }
            *buried = Some(now);
        }
        bury(&running());
    }

    fn not_started(&self, error: &io::Error) -> Outcome {
        let errno = Errno::from_io_error(error);
        if let Some(folder) = self.launcher.folder.as_deref().filter(|folder| !folder.is_dir()) {
            return Outcome::fail(format!("{} is no folder any more: {error}", folder.display()));
        }
        let shown = self.argv.first().map_or(Cow::Borrowed(""), |program| program.to_string_lossy());
        let what = start_error(&shown, error, errno);
        if is_shortage(errno) {
            // No fault of the job's, so it costs it no attempt; and those that run will end.
            tracing::warn!(error = what, wait = ?SHORTAGE_WAIT, "the system has no room for a command, the job waits");
            return Outcome::Snooze(SHORTAGE_WAIT);
        }
        Outcome::fail(what)
    }
}

/// Where the program is, by an absolute path: a child looks for it from its own folder.
fn program(name: &str, folder: Option<&Path>) -> Result<PathBuf, String> {
    let found = match folder {
        Some(folder) if name.contains('/') => find_program(folder.join(name).as_os_str())?,
        _ => find_program(name.as_ref())?,
    };
    path::absolute(&found).map_err(|error| format!("{}: {error}", found.display()))
}

/// A variable for the command; its value is among those that may not be seen, unless it is no secret.
fn variable(name: String, secret: &Secret, hidden: &mut Values) -> Result<(String, Revealed), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("{name:?} can't be the name of an environment variable"));
    }
    if name.starts_with("TIDEGATE_") {
        return Err(format!(
            "{name} can't be set: names that begin with TIDEGATE_ tell the command of its job"
        ));
    }
    let value = secret.read().map_err(|why| format!("the value of {name}: {why}"))?;
    if value.as_str().contains('\0') {
        return Err(format!(
            "the value of {name} has a NUL character, which no environment variable can hold"
        ));
    }
    hidden.add_secret(&name, secret, value.as_str());
    Ok((name, value))
}

/// What was kept of an output, as people may see it: without the secrets that the command was given.
struct Said<'a> {
    /// How long the whole of it was.
    length: u64,
    dropped: u64,
    /// All of it, unless something is left out.
    first: Cow<'a, [u8]>,
    /// What stands behind what is left out.
    last: Cow<'a, [u8]>,
}

impl<'a> Said<'a> {
    fn of(captured: &'a Captured, hidden: &Hidden) -> Self {
        let Captured { bytes, dropped, last } = captured;
        let length = bytes.len() as u64 + dropped + last.len() as u64;
        // A command that was ended may have said half a word.
        let (first, last) = match dropped {
            0 if last.is_empty() => (hidden.hide(bytes, Cut::Back), Cow::default()),
            0 => (
                hidden.hide(&[bytes.as_slice(), last].concat(), Cut::Back).into_owned().into(),
                Cow::default(),
            ),
            _ => (hidden.hide(bytes, Cut::Back), hidden.hide(last, Cut::Both)),
        };
        Self { length, dropped: *dropped, first, last }
    }

    /// The last of it that is in one piece.
    fn end(&self) -> &[u8] {
        if self.dropped == 0 { &self.first } else { &self.last }
    }
}

/// What a command said, for a person; `None` if it said nothing.
fn account(stdout: &Said<'_>, stderr: &Said<'_>) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    for (name, said) in [("stdout", stdout), ("stderr", stderr)] {
        let Said { length, dropped, first, last } = said;
        if *length == 0 {
            continue;
        }
        text.extend_from_slice(format!("[{name}, {length} bytes]\n").as_bytes());
        text.extend_from_slice(first);
        if *dropped > 0 {
            text.extend_from_slice(format!("\n[{dropped} bytes left out]\n").as_bytes());
        }
        text.extend_from_slice(last);
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    if text.is_empty() { None } else { Some(text) }
}

#[cfg(test)]
mod tests;
