//! Who only looks writes nothing, waits for nobody who writes, and keeps nobody waiting.

use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use tidegate::backend::sqlite::{COMPLETE_SQL, Clock, Durability, Sqlite, SqliteBuilder};
use tidegate::{
    AttemptEnd, Enqueue, Inspect, JobId, JobQuery, JobState, Manage, NewJob, Settled, Settlement, Source,
    Unique,
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

/// All that is shown of a file, job by job, but since when.
async fn shown(jobs: &Sqlite) -> ([u64; 7], Vec<Shown>) {
    let mut all = Vec::new();
    for state in [JobState::Ready, JobState::Delayed, JobState::Leased, JobState::Dead, JobState::Done] {
        let listed = jobs.list(&JobQuery::new(state, 99)).await.expect("listed");
        assert!(listed.iter().all(|job| job.state == state));
        for one in listed {
            let found = jobs.find(&one.job.id).await.expect("asked").expect("there");
            assert_eq!((found.state, found.due, found.since), (one.state, one.due, one.since));
            let past = jobs.history(&one.job.id).await.expect("asked");
            all.push(Shown {
                id: one.job.id.clone(),
                state: one.state,
                attempts: one.attempts,
                last_error: one.last_error.as_deref().map(str::to_owned),
                due: one.due,
                superseded_by: one.superseded_by,
                past: past.into_iter().map(|past| (past.attempt, past.end, past.superseded_by)).collect(),
            });
        }
    }
    all.sort_by_key(|one| one.id.as_str().to_owned());
    let counts = jobs.counts().await.expect("counted");
    let counts = [
        counts.ready,
        counts.delayed,
        counts.leased,
        counts.dead,
        counts.done,
        counts.kept,
        counts.superseded,
    ];
    (counts, all)
}

#[derive(Clone, Debug, PartialEq)]
struct Shown {
    id: JobId,
    state: JobState,
    attempts: u32,
    last_error: Option<String>,
    due: Option<SystemTime>,
    superseded_by: Option<JobId>,
    past: Vec<(u32, AttemptEnd, Option<JobId>)>,
}

fn assert_same(mut now: ([u64; 7], Vec<Shown>), before: ([u64; 7], Vec<Shown>)) {
    for (now, before) in now.1.iter_mut().zip(&before.1) {
        // A timer may fire a little late, and until when a job is kept counts from what is written down then.
        let due = now.due.zip(before.due);
        if due.is_some_and(|(now, before)| now.duration_since(before).is_ok_and(|late| late.as_millis() < 10))
        {
            now.due = before.due;
        }
    }
    assert_eq!(now, before);
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
    let before = states(&folder);
    let seen = shown(&jobs).await;
    assert_eq!(seen.0, [3, 0, 0, 2, 0, 0, 0]);
    let lapsed = vec![(1, AttemptEnd::Lapsed, None)];
    let of = |id: &JobId| seen.1.iter().find(|one| one.id == *id).expect("listed").clone();
    assert_eq!((of(&ready).state, of(&delayed).state), (JobState::Ready, JobState::Ready));
    assert_eq!((of(&again).state, of(&again).past), (JobState::Ready, lapsed.clone()));
    assert_eq!((of(&last).state, of(&last).past), (JobState::Dead, lapsed));
    assert_eq!(of(&cancelled).last_error.as_deref(), Some("cancelled"));
    // Since when, is told as it was, and not as of the first who looked.
    let since = async |id| jobs.find(id).await.expect("asked").expect("there").since;
    assert_eq!((since(&again).await, since(&delayed).await), (leased_until, delayed_until));
    assert_eq!(states(&folder), before, "who looks changes nothing");
    write_down(&jobs).await;
    assert_ne!(states(&folder), before);
    assert_same(shown(&jobs).await, seen);
}

/// What stands in the file, whatever is shown of it.
fn states(folder: &Folder) -> String {
    let file = Connection::open(folder.file("jobs.sqlite")).expect("it is there");
    let rows = file.query_row("SELECT group_concat(state) FROM tidegate_jobs", [], |row| row.get(0));
    rows.expect("read")
}

/// Lets time have its effect, by something that has none of its own.
async fn write_down(jobs: &Sqlite) {
    assert!(!jobs.delete(&JobId::new("9999")).await.expect("asked"), "it was never there");
}

/// A newer job has taken their place: those with a worker end with their leases, if they do not die of that, and those
/// that wait have ended already.
#[tokio::test(start_paused = true)]
async fn a_superseded_job_is_shown_ended_before_anybody_has_written_it_down() {
    for keep in [Duration::ZERO, TTL * 100] {
        let folder = Folder::new();
        let jobs = paused(&folder).crash_limit(2).keep_done(keep).open().expect("a new file");
        let theirs = Connection::open(folder.file("jobs.sqlite")).expect("it is there");
        let stop = CancellationToken::new();
        let key = |key: &'static str| NewJob::new("kind", key).unique(Unique::while_queued(key));
        let lapses = push(&jobs, key("lapses")).await;
        let dies = push(&jobs, key("dies").max_attempts(1)).await;
        let cancelled = push(&jobs, key("cancelled")).await;
        let completed = push(&jobs, key("completed")).await;
        let held = jobs.fetch(&at_once(9), &stop).await.expect("fetched");
        assert!(jobs.cancel(&cancelled).await.expect("asked"));
        // One waits once more, beside another that has its key.
        let beside = push(&jobs, key("beside")).await;
        let taken = jobs.fetch(&at_once(1), &stop).await.expect("fetched").remove(0);
        let first = push(&jobs, key("beside")).await;
        let retry = Settled::new(taken.tag, Settlement::Retry { after: Duration::ZERO });
        assert!(jobs.settle(&[retry]).await.expect("settled").0.is_empty());
        let mut newer = Vec::new();
        for name in ["lapses", "dies", "cancelled", "completed"] {
            let newest = NewJob::new("kind", "new").unique(Unique::while_queued(name).replace_payload());
            newer.push(push(&jobs, newest).await);
        }
        // From now on nobody writes but by doors.
        let (job, token) = (held[3].tag.key.cast_signed(), held[3].tag.token.cast_signed());
        theirs.execute(COMPLETE_SQL, [job, token]).expect("completed");
        let sql = "INSERT INTO tidegate_enqueue (kind, unique_key, on_clash) VALUES ('kind', 'beside', 'replace_payload')";
        theirs.execute(sql, []).expect("enqueued");
        let kept = u64::from(!keep.is_zero());
        assert_eq!(shown(&jobs).await.0, [5, 0, 4, 0, 0, kept, 1]);
        sleep(TTL).await;
        let before = states(&folder);
        let seen = shown(&jobs).await;
        assert_eq!(seen.0, [5, 0, 0, 2, 1, 1 + 2 * kept, 2]);
        let of = |id: &JobId| seen.1.iter().find(|one| one.id == *id);
        for (id, by, past) in [
            (&lapses, &newer[0], (1, AttemptEnd::Superseded, Some(newer[0].clone()))),
            (&beside, &first, (1, AttemptEnd::Retried, None)),
        ] {
            assert_eq!(of(id).is_some(), kept == 1);
            assert_eq!(jobs.find(id).await.expect("asked").is_some(), kept == 1);
            assert_eq!(jobs.history(id).await.expect("asked").len() as u64, kept);
            if let Some(ended) = of(id) {
                assert_eq!((ended.state, ended.superseded_by.as_ref()), (JobState::Done, Some(by)));
                assert_eq!(ended.past, [past]);
            }
        }
        for (id, state) in
            [(&dies, JobState::Dead), (&cancelled, JobState::Dead), (&completed, JobState::Done)]
        {
            let ended = of(id).expect("it is there");
            assert_eq!((ended.state, &ended.superseded_by), (state, &None), "this comes first");
        }
        let ready = jobs.list(&JobQuery::new(JobState::Ready, 9)).await.expect("listed");
        let oldest = ready.iter().map(|job| job.since).min();
        assert_eq!(jobs.counts().await.expect("counted").ready_since, oldest);
        assert_eq!(states(&folder), before, "who looks changes nothing");
        write_down(&jobs).await;
        assert_ne!(states(&folder), before);
        assert_same(shown(&jobs).await, seen);
    }
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
