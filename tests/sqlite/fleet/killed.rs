//! Worker processes that are killed.

use std::time::Duration;

use rusqlite::Connection;
use tidegate::Source as _;
use tidegate::backend::sqlite::Sqlite;
use tokio_util::sync::CancellationToken;

use super::process::{SLOTS, Waits, What};
use super::trail::After;
use super::{Fleet, enqueue, in_memory, random, until, wall_clock};
use crate::file::at_once;
use crate::folder::Folder;

/// Two processes, each killed ten times, with the durability that is the default. Leases are long enough that no process
/// loses one because the machine is busy, which would be a second run too, and short enough that what was in flight at the first kills is killed with its next worker too.
#[tokio::test]
async fn nothing_is_lost_when_workers_are_killed_and_only_what_was_in_flight_runs_twice() {
    const JOBS: usize = 20_000;
    const KILLS: usize = 2 * 10;
    /// How many jobs are done between two kills, more or less: a quarter is left when the last one is killed.
    const STEP: usize = JOBS / 4 * 3 / KILLS;
    const JOB: Duration = Duration::from_millis(20);
    let mut fleet = Fleet::with_jobs(JOBS, Duration::from_secs(4), in_memory()).await;
    let mut workers = [fleet.start(JOB, Waits::Nowhere), fleet.start(JOB, Waits::Nowhere)];
    let mut cuts = Vec::new();
    for kill in 0..KILLS {
        let worker = &mut workers[kill % 2];
        let enough = STEP * kill + random(STEP);
        until("it is at work", || fleet.trail.has_had(worker.generation) && fleet.trail.done() >= enough)
            .await;
        tokio::time::sleep(Duration::from_millis(random(30) as u64)).await;
        let at = wall_clock();
        worker.kill();
        cuts.push(fleet.trail.cut(at, worker.generation));
        *worker = fleet.start(JOB, Waits::Nowhere);
    }
    assert!(fleet.trail.done() < JOBS, "all was done before the last kill: this shows nothing");
    until("all is settled", || fleet.trail.done() >= JOBS).await;
    fleet.trail.check(&fleet.jobs, &cuts, After::Death);
    let in_flight: usize = cuts.iter().map(|cut| cut.in_flight.len()).sum();
    assert!(in_flight > KILLS, "{in_flight} in flight at {KILLS} kills: this shows little");
    assert!(cuts.iter().all(|cut| cut.in_flight.len() <= SLOTS), "more was out than there are slots");
}

/// Nothing else happens on the file that could wake the other one, which waits for jobs.
#[tokio::test]
async fn what_a_killed_worker_had_runs_again_at_an_idle_one_when_its_leases_end() {
    let mut fleet = Fleet::with_jobs(SLOTS, Duration::from_secs(1), Folder::new()).await;
    let mut first = fleet.start(Duration::ZERO, Waits::InJobs);
    let begun = |fleet: &Fleet, generation| fleet.trail.lines(What::Start, generation).len();
    until("it has all", || begun(&fleet, first.generation) == SLOTS).await;
    let other = fleet.start(Duration::ZERO, Waits::Nowhere);
    // The first has no slot for it. When it is done, the other waits for more.
    fleet.jobs.extend(enqueue(&fleet.file, 1).await);
    until("the other has run it", || fleet.trail.done() == 1).await;
    let at = wall_clock();
    first.kill();
    let cut = fleet.trail.cut(at, first.generation);
    assert_eq!(cut.in_flight.len(), SLOTS, "it had all of the first jobs");
    until("all is settled", || fleet.trail.done() > SLOTS).await;
    fleet.trail.check(&fleet.jobs, &[cut], After::Death);
    assert_eq!(begun(&fleet, other.generation), SLOTS + 1);
}

#[tokio::test]
async fn a_lease_lasts_for_half_a_minute_unless_it_is_said_otherwise() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    enqueue(&file, 1).await;
    let jobs = Sqlite::open(&file).expect("the file");
    assert_eq!(jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").len(), 1);
    let connection = Connection::open(&file).expect("the file");
    let sql = "SELECT due - since FROM tidegate_jobs WHERE state = 2";
    let lasts: i64 = connection.query_row(sql, [], |row| row.get(0)).expect("it is out");
    assert_eq!(Duration::from_nanos(lasts.unsigned_abs()), Duration::from_secs(30));
}
