//! How soon a worker process hears of what another process has enqueued: nothing but the file tells it.

use std::time::Duration;

use tidegate::backend::sqlite::Sqlite;
use tidegate::{Enqueue, NewJob};

use super::process::{Waits, What};
use super::{Fleet, in_memory, until, wall_clock};

/// It looks every 45 ms whether the file has changed, and asks the file itself only every 10 s (`fetch_wait`). Between
/// the two there is room for a machine that is busy with something else; `benches/sqlite.rs` measures it.
#[tokio::test]
async fn an_idle_worker_soon_hears_of_what_another_process_enqueues() {
    const JOBS: usize = 40;
    const SOON: Duration = Duration::from_millis(500);
    let mut fleet = Fleet::with_jobs(1, Duration::from_secs(30), in_memory()).await;
    let worker = fleet.start(Duration::ZERO, Waits::Nowhere);
    until("it is at work", || fleet.trail.done() == 1).await;
    let producer = Sqlite::open(&fleet.file).expect("the file");
    let mut took = Vec::new();
    for turn in 0..JOBS {
        // Out of step with its looks, and long enough for it to have fallen asleep.
        tokio::time::sleep(Duration::from_millis(5 + turn as u64 * 7 % 40)).await;
        let before = wall_clock();
        let enqueued = producer.enqueue(vec![NewJob::new("kind", "")]).await.expect("enqueued").remove(0);
        let id: i64 = enqueued.id().as_str().parse().expect("a number");
        let started = |fleet: &Fleet| {
            fleet.trail.lines(What::Start, worker.generation).into_iter().find(|line| line.job == id)
        };
        until("it has begun", || started(&fleet).is_some()).await;
        let at = started(&fleet).expect("it has begun").at;
        took.push(Duration::from_nanos(at.saturating_sub(before)));
        let late = took.iter().filter(|took| **took > SOON).count();
        assert!(late <= JOBS / 4, "{late} of {} came later than {SOON:?}: {took:?}", took.len());
    }
    took.sort();
    println!("half within {:?}, the last after {:?}", took[JOBS / 2], took[JOBS - 1]);
    until("all is settled", || fleet.trail.done() == JOBS + 1).await;
}
