//! Who only looks writes nothing, waits for nobody who writes, and keeps nobody waiting.

use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use tidegate::backend::sqlite::{Clock, Durability, Sqlite, SqliteBuilder};
use tidegate::{
    AttemptEnd, Enqueue, Inspect, JobId, JobQuery, JobState, Manage, NewJob, Settled, Settlement, Source,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::file::at_once;
use crate::folder::Folder;

const TTL: Duration = Duration::from_secs(30);

fn paused(folder: &Folder) -> SqliteBuilder {
    let builder = Sqlite::builder(folder.file("jobs.sqlite")).clock(Clock::Tokio).lease_ttl(TTL);
    builder.durability(Durability::Normal)
}

async fn push(jobs: &Sqlite, job: NewJob) -> JobId {
    jobs.enqueue(vec![job]).await.expect("enqueued").remove(0).id().clone()
}

#[tokio::test]
async fn whoever_looks_does_not_wait_for_whoever_writes() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = Sqlite::builder(&file).busy_timeout(Duration::ZERO).open().expect("a new file");
    let id = push(&jobs, NewJob::new("kind", "payload")).await;
    let writer = Connection::open(&file).expect("it is there");
    writer.execute_batch("BEGIN IMMEDIATE; UPDATE tidegate_jobs SET kind = 'other'").expect("locked");
    assert_eq!(jobs.counts().await.expect("counted").ready, 1);
    let listed = jobs.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed");
    assert_eq!(listed[0].job.kind.as_str(), "kind", "what is not committed is not seen");
    assert!(jobs.find(&id).await.expect("asked").is_some());
    assert_eq!(jobs.history(&id).await.expect("asked"), []);
    assert!(jobs.cancel(&id).await.is_err(), "it is locked");
    writer.execute_batch("COMMIT").expect("unlocked");
    assert_eq!(jobs.find(&id).await.expect("asked").expect("there").job.kind.as_str(), "other");
}

/// The same is shown before anybody has put it into the file, and after.
#[tokio::test(start_paused = true)]
async fn what_time_has_done_is_shown_before_anybody_has_written_it_down() {
    let folder = Folder::new();
    let jobs = paused(&folder).crash_limit(2).open().expect("a new file");
    let stop = CancellationToken::new();
    let new = |payload: &'static str| NewJob::new("kind", payload);
    let delayed = push(&jobs, new("delayed").delay(Duration::from_secs(10))).await;
    let again = push(&jobs, new("again")).await;
    let last = push(&jobs, new("last").max_attempts(1)).await;
    let cancelled = push(&jobs, new("cancelled")).await;
    let held = jobs.fetch(&at_once(9), &stop).await.expect("fetched");
    assert_eq!(held.len(), 3);
    assert!(jobs.cancel(&cancelled).await.expect("asked"));
    let ready = push(&jobs, new("ready")).await;
    let leased_until = jobs.find(&again).await.expect("asked").expect("there").due.expect("a lease");
    let delayed_until = jobs.find(&delayed).await.expect("asked").expect("there").due.expect("a time");
    sleep(TTL).await;
    let other = Connection::open(folder.file("jobs.sqlite")).expect("it is there");
    let states = || {
        let rows = other.query_row("SELECT group_concat(state) FROM tidegate_jobs", [], |row| row.get(0));
        rows.expect("read")
    };
    let before: String = states();
    let shown = async || {
        let counts = jobs.counts().await.expect("counted");
        let mut all = Vec::new();
        for state in [JobState::Ready, JobState::Delayed, JobState::Leased, JobState::Dead, JobState::Done] {
            let listed = jobs.list(&JobQuery::new(state, 9)).await.expect("listed");
            assert!(listed.iter().all(|job| job.state == state));
            for one in listed {
                let found = jobs.find(&one.job.id).await.expect("asked").expect("there");
                assert_eq!((found.state, found.due, found.since), (one.state, one.due, one.since));
                let past: Vec<_> = jobs.history(&one.job.id).await.expect("asked");
                let past: Vec<_> = past.iter().map(|past| (past.attempt, past.end)).collect();
                all.push((one.job.id.clone(), one.state, one.attempts, one.last_error, one.due, past));
            }
        }
        (counts.ready, counts.delayed, counts.leased, counts.dead, all)
    };
    let seen = shown().await;
    let lapsed = vec![(1, AttemptEnd::Lapsed)];
    assert_eq!((seen.0, seen.1, seen.2, seen.3), (3, 0, 0, 2));
    let of = |id: &JobId| seen.4.iter().find(|one| one.0 == *id).expect("listed").clone();
    assert_eq!((of(&ready).1, of(&delayed).1), (JobState::Ready, JobState::Ready));
    assert_eq!((of(&again).1, of(&again).5), (JobState::Ready, lapsed.clone()));
    assert_eq!((of(&last).1, of(&last).5), (JobState::Dead, lapsed));
    assert_eq!(of(&cancelled).3.as_deref(), Some("cancelled"));
    // Since when, is told as it was, and not as of the first who looked.
    let since = async |id| jobs.find(id).await.expect("asked").expect("there").since;
    assert_eq!((since(&again).await, since(&delayed).await), (leased_until, delayed_until));
    assert_eq!(states(), before, "who looks changes nothing");
    // Whoever writes next writes it down.
    push(&jobs, new("later")).await;
    assert!(jobs.delete(&JobId::new("11")).await.is_ok());
    assert_ne!(states(), before);
    let after = shown().await;
    let mut expected = seen.4.clone();
    expected.sort_by_key(|one| one.0.as_str().to_owned());
    let mut found: Vec<_> =
        after.4.into_iter().filter(|one| seen.4.iter().any(|old| old.0 == one.0)).collect();
    found.sort_by_key(|one| one.0.as_str().to_owned());
    assert_eq!(found, expected);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_ready_job_is_known_whatever_became_of_it_before() {
    let folder = Folder::new();
    let jobs = paused(&folder).open().expect("a new file");
    let stop = CancellationToken::new();
    assert_eq!(jobs.counts().await.expect("counted").ready_since, None);
    let oldest = async || {
        let all = jobs.list(&JobQuery::new(JobState::Ready, 99)).await.expect("listed");
        let since: Option<SystemTime> = all.iter().map(|job| job.since).min();
        assert_eq!(jobs.counts().await.expect("counted").ready_since, since);
        since.expect("one is ready")
    };
    push(&jobs, NewJob::new("a", "handed back").queue("x")).await;
    sleep(Duration::from_secs(1)).await;
    push(&jobs, NewJob::new("b", "stays").queue("y").priority(-5)).await;
    let first = oldest().await;
    let taken = jobs.fetch(&at_once(1), &stop).await.expect("fetched").remove(0);
    let second = oldest().await;
    assert!(second > first);
    sleep(Duration::from_secs(1)).await;
    // It has its old place in the queue, but has only just come back.
    let release = Settled::new(taken.tag, Settlement::Release { after: Duration::ZERO });
    jobs.settle(&[release]).await.expect("settled");
    assert_eq!(oldest().await, second);
    let all = jobs.fetch(&at_once(9), &stop).await.expect("fetched");
    assert_eq!(&all[0].job.payload[..], b"handed back");
    sleep(TTL).await;
    // Nobody has taken them back yet; they are ready since their leases ended.
    oldest().await;
}

/// Jobs that came by all ways into all states, in lanes of all sorts: in parts of any size the list is the same as
/// whole, in its order, and its filters leave out what they should.
#[tokio::test(start_paused = true)]
async fn a_list_in_parts_is_the_list_as_a_whole() {
    let folder = Folder::new();
    let jobs = paused(&folder).keep_done(TTL * 100).open().expect("a new file");
    let stop = CancellationToken::new();
    let mut dice = 7_u32;
    let mut roll = move |sides: u32| {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (dice >> 16) % sides
    };
    for _ in 0..300 {
        let job = NewJob::new(["a", "b", "c"][roll(3) as usize], "").queue(["x", "y"][roll(2) as usize]);
        let job = job.priority(roll(3) as i16).max_attempts(3);
        push(&jobs, if roll(4) == 0 { job.delay(Duration::from_secs(roll(60).into())) } else { job }).await;
        sleep(Duration::from_millis(roll(2_000).into())).await;
        if roll(2) == 0 {
            continue;
        }
        let after = Duration::from_secs(roll(3).into()) * 20;
        let settled =
            jobs.fetch(&at_once(2), &stop).await.expect("fetched").into_iter().filter_map(|taken| {
                Some(match roll(6) {
                    0 => Settled::new(taken.tag, Settlement::Ack),
                    1 => Settled::new(taken.tag, Settlement::Retry { after }),
                    2 => Settled::new(taken.tag, Settlement::Reject),
                    3 | 4 => Settled::new(taken.tag, Settlement::Release { after }),
                    _ => return None, // its lease will run out
                })
            });
        let settled: Vec<_> = settled.collect();
        jobs.settle(&settled).await.expect("settled");
    }
    assert!(jobs.fetch(&at_once(9), &stop).await.expect("fetched").len() > 5);
    sleep(TTL / 2).await; // time has done something that nobody has written down
    let counts = jobs.counts().await.expect("counted");
    for (state, number) in [
        (JobState::Ready, counts.ready),
        (JobState::Delayed, counts.delayed),
        (JobState::Leased, counts.leased),
        (JobState::Dead, counts.dead),
        (JobState::Done, counts.kept),
    ] {
        let whole = jobs.list(&JobQuery::new(state, usize::MAX)).await.expect("listed");
        assert_eq!(whole.len() as u64, number, "{state:?}");
        assert!(number > 5, "{number} {state:?} show nothing");
        for kind in [None, Some("b")] {
            for queue in [None, Some("y")] {
                let mut query = JobQuery::new(state, usize::MAX);
                query.kind = kind.map(Into::into);
                query.queue = queue.map(Into::into);
                let expected = whole.iter().filter(|job| query.takes(&job.job)).map(|job| job.job.id.clone());
                let expected: Vec<_> = expected.collect();
                for (part, skip) in [(1, 0), (7, 0), (1_000, 0), (3, 2)] {
                    let mut seen = Vec::new();
                    let mut query = {
                        let mut part_of = query.clone();
                        part_of.max = part;
                        part_of.skip(skip)
                    };
                    loop {
                        let listed = jobs.list(&query).await.expect("listed");
                        let Some(last) = listed.last() else { break };
                        query = query.skip(0).after(last);
                        seen.extend(listed.iter().map(|job| job.job.id.clone()));
                    }
                    assert_eq!(seen, expected[skip.min(expected.len())..], "{query:?}");
                }
            }
        }
        // What is written down comes first; each of the two in its order.
        let by = |job: &tidegate::StoredJob| match state {
            JobState::Delayed | JobState::Done => job.due.expect("a time"),
            _ => job.since,
        };
        let falls = whole.windows(2).filter(|two| by(&two[0]) > by(&two[1])).count();
        assert!(falls <= 2, "{falls} are out of order: {state:?}");
    }
}
