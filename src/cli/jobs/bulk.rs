//! `tidegate jobs requeue-dead` and `delete-dead`: many dead jobs at once, page by page.
//!
//! Only jobs that were dead when it began are touched, and no more than there were: one that is requeued, run and dead
//! again meanwhile is not requeued a second time.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::SystemTime;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::args::{BulkArgs, DeleteArgs};
use super::change::{AT_ONCE, Change};
use super::pages::Pages;
use crate::cli::excerpt::escaped;
use crate::cli::stdout::{json_line, print};
use crate::cli::store::{Store, failed, said};
use crate::cli::text::count;
use crate::cli::times::now;
use crate::cli::{Exit, refuse};
use crate::error::Error;
use crate::inspect::{Inspect, JobQuery, JobState, Manage, StoredJob};
use crate::job::JobId;

/// How many of those with which it was not done are named; a list of the dead has them all.
const NAMED: usize = 20;

/// What became of them.
#[derive(Debug, Default, PartialEq)]
struct Swept {
    /// How many were done, or would be.
    done: u64,
    stayed: u64,
    /// The first of those that stayed.
    named: Vec<JobId>,
}

/// The same as `--json` shows it.
#[derive(Serialize)]
struct Line {
    ok: bool,
    result: &'static str,
    jobs: u64,
    stayed: u64,
    dry_run: bool,
}

/// Requeues the dead jobs that `args` describe.
pub(super) fn requeue(store: &Store, args: &BulkArgs, json: bool) -> Result<Exit, Exit> {
    carry_out(store, args, Change::Retry, json)
}

/// Deletes them, if somebody agrees.
pub(super) fn delete(store: &Store, args: &DeleteArgs, json: bool) -> Result<Exit, Exit> {
    if !args.yes && !args.bulk.dry_run && !agreed(store, &args.bulk)? {
        return Err(refuse(Exit::Failed, "nothing is deleted"));
    }
    carry_out(store, &args.bulk, Change::Delete, json)
}

/// Asks whoever sits at the terminal.
fn agreed(store: &Store, args: &BulkArgs) -> Result<bool, Exit> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refuse(Exit::Usage, "--yes is needed to delete jobs where nobody can be asked"));
    }
    let mut swept = Swept::default();
    sweep(store, args, None, &mut swept)?;
    if swept.done == 0 {
        return Ok(true);
    }
    let (jobs, which) = (jobs(swept.done), escaped(&args.filter.words()));
    // When the question can't be written, nobody answers it.
    let _ = write!(io::stderr().lock(), "Delete {jobs}{which} for good? [y/N] ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| refuse(Exit::Input, format!("standard input can't be read: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn carry_out(store: &Store, args: &BulkArgs, change: Change, json: bool) -> Result<Exit, Exit> {
    let mut swept = Swept::default();
    let asked = (!args.dry_run).then_some(change);
    sweep(store, args, asked, &mut swept)?;
    let result = done_in_bulk(change);
    let Swept { done, stayed, named } = swept;
    if json {
        let (ok, dry_run) = (stayed == 0, args.dry_run);
        print(&json_line(&Line { ok, result, jobs: done, stayed, dry_run }))?;
    } else {
        let would = if args.dry_run { "would be " } else { "" };
        let which = escaped(&args.filter.words());
        print(format!("{}{which} {would}{result}\n", jobs(done)).as_bytes())?;
        let why = match change {
            Change::Retry => "another job has its unique key, or somebody else was quicker",
            Change::Cancel | Change::Delete => "somebody else was quicker",
        };
        for id in &named {
            refuse(Exit::Failed, format!("job {} was not {result}: {why}", escaped(id.as_str())));
        }
        if stayed > named.len() as u64 {
            let more = count(stayed - named.len() as u64);
            refuse(Exit::Failed, format!("and {more} more for the same reason"));
        }
    }
    Ok(if stayed == 0 { Exit::Done } else { Exit::Failed })
}

fn done_in_bulk(change: Change) -> &'static str {
    if change == Change::Retry { "requeued" } else { change.done() }
}

fn jobs(number: u64) -> String {
    if number == 1 { "1 dead job".to_owned() } else { format!("{} dead jobs", count(number)) }
}

/// Goes through them; without a change it only counts.
fn sweep(store: &Store, args: &BulkArgs, change: Option<Change>, swept: &mut Swept) -> Result<(), Exit> {
    let inspect = &**store.inspect().map_err(|error| failed(&error))?;
    let manage = &**store.manage().map_err(|error| failed(&error))?;
    let query = args.filter.query(JobState::Dead, usize::MAX);
    store.wait(through(inspect, manage, query, change, now(), swept)).map_err(|error| {
        let (done, why) = (jobs(swept.done), said(&error));
        let before = change.map(|change| format!(" ({done} {} before that)", done_in_bulk(change)));
        refuse(Exit::Unavailable, format!("{why}{}", before.unwrap_or_default()))
    })
}

async fn through(
    inspect: &dyn Inspect,
    manage: &dyn Manage,
    mut query: JobQuery,
    change: Option<Change>,
    begun: SystemTime,
    swept: &mut Swept,
) -> Result<(), Error> {
    query.max = usize::try_from(inspect.counts().await?.dead).unwrap_or(usize::MAX);
    let mut pages = Pages::of(query);
    loop {
        let mut page = pages.next(inspect).await?;
        let length = page.len();
        // Those that have died since stand behind those that were dead before.
        page.retain(|job| job.since <= begun);
        match change {
            None => swept.done += page.len() as u64,
            Some(change) => all(manage, &page, change, swept).await?,
        }
        if page.len() < length || length == 0 {
            return Ok(());
        }
    }
}

/// Does it with a page of them.
async fn all(
    manage: &dyn Manage,
    page: &[StoredJob],
    change: Change,
    swept: &mut Swept,
) -> Result<(), Error> {
    let asked = stream::iter(page).map(|job| async {
        let id = &job.job.id;
        change.ask(manage, id).await.map(|done| (id, done))
    });
    let mut answers = asked.buffered(AT_ONCE);
    while let Some((id, done)) = answers.try_next().await? {
        if done {
            swept.done += 1;
            continue;
        }
        swept.stayed += 1;
        if swept.named.len() < NAMED {
            swept.named.push(id.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::inspect::{Counts, Position};
    use crate::job::{Job, Kind};
    use crate::sync::{Mutex, lock};

    /// Dead jobs that die again as soon as they are requeued; those with an odd number can't be.
    struct Restless {
        dead: Mutex<Vec<StoredJob>>,
        asked: Mutex<Vec<String>>,
        /// How many there are, with those that the query leaves out.
        counted: u64,
        /// When they die again.
        then: SystemTime,
    }

    /// The job with this number, which is the so many'th that has died.
    fn dead(number: u64, nth: u64, since: SystemTime) -> StoredJob {
        let id = JobId::new(number.to_string());
        let job = Job::new(id, Kind::new("kind"), Bytes::new(), SystemTime::UNIX_EPOCH);
        let mut job = StoredJob::new(Arc::new(job), JobState::Dead, 1, since);
        job.position = Position::new([nth, 0, 0]);
        job
    }

    #[async_trait]
    impl Inspect for Restless {
        async fn counts(&self) -> Result<Counts, Error> {
            Ok(Counts { dead: self.counted, ..Counts::default() })
        }

        async fn find(&self, _id: &JobId) -> Result<Option<StoredJob>, Error> {
            Ok(None)
        }

        async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
            let after = wanted.after.map_or(0, |after| after.parts()[0]);
            let jobs = lock(&self.dead);
            Ok(jobs.iter().filter(|job| job.position.parts()[0] > after).take(wanted.max).cloned().collect())
        }
    }

    #[async_trait]
    impl Manage for Restless {
        async fn cancel(&self, _id: &JobId) -> Result<bool, Error> {
            Ok(false)
        }

        async fn requeue(&self, id: &JobId) -> Result<bool, Error> {
            let mut asked = lock(&self.asked);
            asked.push(id.to_string());
            assert!(asked.len() <= 10_000, "it never ends");
            let number: u64 = id.as_str().parse().expect("a number");
            if number % 2 == 1 {
                return Ok(false);
            }
            let mut jobs = lock(&self.dead);
            jobs.retain(|job| job.job.id != *id);
            let nth = jobs.iter().map(|job| job.position.parts()[0]).max().unwrap_or_default() + 1;
            jobs.push(dead(number, nth, self.then));
            Ok(true)
        }

        async fn delete(&self, _id: &JobId) -> Result<bool, Error> {
            Ok(false)
        }
    }

    #[tokio::test]
    async fn a_job_that_dies_again_is_requeued_only_once() {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        // The time tells, and where the clock was set back the number.
        for (then, counted) in [(begun + Duration::from_secs(1), 1_000_000), (begun, 2_500)] {
            let jobs = (0..2_500).map(|number| dead(number, number + 1, begun)).collect();
            let store = Restless { dead: Mutex::new(jobs), asked: Mutex::default(), counted, then };
            let mut swept = Swept::default();
            let query = JobQuery::new(JobState::Dead, usize::MAX);
            through(&store, &store, query, Some(Change::Retry), begun, &mut swept).await.expect("no error");
            let mut asked = std::mem::take(&mut *lock(&store.asked));
            let number = asked.len();
            asked.sort();
            asked.dedup();
            assert_eq!((asked.len(), number), (2_500, 2_500));
            assert_eq!((swept.done, swept.stayed, swept.named.len()), (1_250, 1_250, NAMED));
        }
    }
}
