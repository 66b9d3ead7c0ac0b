//! `tidegate jobs retry`, `cancel` and `delete`: one by one, by their ids.

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::list::missing;
use super::view::state_name;
use crate::cli::excerpt::escaped;
use crate::cli::stdout::{json_line, print};
use crate::cli::store::{Store, failed};
use crate::cli::{Exit, refuse};
use crate::error::Error;
use crate::inspect::{Inspect, JobState, Manage, StoredJob};
use crate::job::JobId;

/// How many changes are asked for at once: those that meet share a transaction.
pub(super) const AT_ONCE: usize = 128;

/// What is to be done with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Retry,
    Cancel,
    Delete,
}

impl Change {
    /// Asks for it; `false` if it can't be done.
    pub(super) async fn ask(self, manage: &dyn Manage, id: &JobId) -> Result<bool, Error> {
        match self {
            Self::Retry => manage.requeue(id).await,
            Self::Cancel => manage.cancel(id).await,
            Self::Delete => manage.delete(id).await,
        }
    }

    /// What has been done.
    pub(super) fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Cancel => "cancelled",
            Self::Delete => "deleted",
        }
    }

    /// Why it was not done with this job.
    fn refused(self, job: &StoredJob) -> String {
        let (id, state) = (escaped(job.job.id.as_str()), state_name(job.state));
        match (self, job.state) {
            (Self::Retry, JobState::Dead) => format!("job {id} stays dead: another job has its unique key"),
            (Self::Retry, _) => format!("job {id} is {state}: only dead and delayed ones can be retried"),
            (Self::Cancel, _) => format!("job {id} is {state}: there is nothing to cancel"),
            (Self::Delete, _) => format!("job {id} is {state}: cancel it first, or wait for its end"),
        }
    }
}

/// What became of a job, as `--json` shows it.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Does it with all of them, and says of each what became of it.
pub(super) fn change(store: &Store, change: Change, ids: &[String], json: bool) -> Result<Exit, Exit> {
    let inspect = &**store.inspect().map_err(|error| failed(&error))?;
    let manage = &**store.manage().map_err(|error| failed(&error))?;
    let mut exit = Exit::Done;
    for ids in ids.chunks(AT_ONCE) {
        let answers = stream::iter(ids).map(|id| one(inspect, manage, change, JobId::new(id)));
        let answers: Vec<_> =
            store.wait(answers.buffered(AT_ONCE).try_collect()).map_err(|error| failed(&error))?;
        for (id, answer) in answers {
            let (result, error) = match &answer {
                Ok(done) => (Some(*done), None),
                Err(why) => (None, Some(why.as_str())),
            };
            if error.is_some() {
                exit = Exit::Failed;
            }
            match (json, error) {
                (true, _) => {
                    print(&json_line(&Line { id: id.as_str(), ok: error.is_none(), result, error }))?
                }
                (false, None) => {
                    let done = result.unwrap_or_default();
                    print(format!("{}\t{done}\n", escaped(id.as_str())).as_bytes())?;
                }
                (false, Some(why)) => {
                    refuse(exit, why);
                }
            }
        }
    }
    Ok(exit)
}

/// What became of it: done in one word, or why not.
async fn one(
    inspect: &dyn Inspect,
    manage: &dyn Manage,
    change: Change,
    id: JobId,
) -> Result<(JobId, Result<&'static str, String>), Error> {
    let done = change.ask(manage, &id).await?;
    if done && change != Change::Cancel {
        return Ok((id, Ok(change.done())));
    }
    let found = inspect.find(&id).await?;
    let answer = match found {
        // Its worker has yet to be told.
        Some(job) if done && job.state == JobState::Leased => Ok("cancelling"),
        _ if done => Ok(change.done()),
        Some(job) => Err(change.refused(&job)),
        None => Err(missing(&id)),
    };
    Ok((id, answer))
}
