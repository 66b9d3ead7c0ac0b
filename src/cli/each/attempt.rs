//! What the worker runs for each record: [`Attempts`] turns a job into a child process and the child's end
//! into an outcome.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::command::Template;
use super::ledger::{Ledger, Trouble};
use crate::cli::child::exec::{Ended, Launcher, Task};
use crate::cli::child::words::{describe, is_shortage, start_error};
use crate::context::Context;
use crate::outcome::Outcome;

/// How long to wait before a child is started again that the system had no room for. Long enough for one of
/// those that run to end.
const SHORTAGE_WAIT: Duration = Duration::from_millis(500);

/// What is the same for all attempts.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) template: Template,
    pub(super) launcher: Launcher,
    /// The record goes to the child's standard input.
    pub(super) stdin: bool,
    /// What stands after it there.
    pub(super) terminator: Option<u8>,
    pub(super) ledger: Arc<Ledger>,
    /// Cancelled when children are to be stopped.
    pub(super) stop: CancellationToken,
}

impl Attempts {
    /// Runs one attempt at the record that is the job's payload.
    pub(super) async fn run(&self, context: Context) -> Outcome {
        let (id, record) = (context.job().id.as_str(), context.payload());
        // The source made it from the record's number.
        let Ok(number) = id.parse() else { return Outcome::reject("is no record of this input") };
        self.ledger.begin(number, record.clone(), context.attempt());
        let argv = match self.template.fill(record) {
            Ok(argv) => argv,
            Err(why) => return Outcome::reject(why),
        };
        let env =
            vec![("TIDEGATE_JOB_ID", id.into()), ("TIDEGATE_ATTEMPT", context.attempt().to_string().into())];
        let task = Task { argv: argv.into(), stdin: self.stdin.then(|| self.fed(record)), env };
        let stop = async {
            tokio::select! {
                () = context.cancelled() => {}
                () = self.stop.cancelled() => {}
            }
        };
        match self.launcher.run(&task, stop, |child| self.ledger.started(number, child)).await {
            Ok(ended) => {
                let outcome = self.judge(&ended, &context);
                self.ledger.ended(number, ended);
                outcome
            }
            Err(error) => self.not_started(&error),
        }
    }

    fn fed(&self, record: &Bytes) -> Bytes {
        let Some(terminator) = self.terminator else { return record.clone() };
        let mut fed = BytesMut::with_capacity(record.len() + 1);
        fed.extend_from_slice(record);
        fed.extend_from_slice(&[terminator]);
        fed.freeze()
    }

    /// A child that was told to stop has not done its work, whatever it says: many exit with 0 then.
    fn judge(&self, ended: &Ended, context: &Context) -> Outcome {
        if ended.told_to_stop && context.cancel_reason().is_none() {
            Outcome::Snooze(Duration::ZERO)
        } else if ended.status.success() && !ended.told_to_stop {
            Outcome::Done
        } else {
            Outcome::fail(describe(ended.status))
        }
    }

    fn not_started(&self, error: &io::Error) -> Outcome {
        let errno = Errno::from_io_error(error);
        match errno {
            Some(Errno::TOOBIG) => {
                return Outcome::reject("makes the argument list longer than the system allows: use --stdin");
            }
            // What our own children have taken they will give back.
            _ if is_shortage(errno) && self.ledger.in_hand() > 1 => return Outcome::Snooze(SHORTAGE_WAIT),
            _ => {}
        }
        let unfit = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
        let unfit =
            unfit || matches!(errno, Some(Errno::NOEXEC | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR));
        match self.template.program() {
            Some(program) if unfit => {
                let message = start_error(&program.to_string_lossy(), error, errno);
                self.ledger.trouble(Trouble::Command(message.clone()));
                Outcome::reject(message)
            }
            // The record names it, so it may well be that which is not there.
            _ if unfit => {
                Outcome::reject(start_error("the command", error, errno.filter(|no| *no != Errno::NOENT)))
            }
            _ => Outcome::fail(start_error("the command", error, errno)),
        }
    }
}
