//! P3: a free slot is filled at once, and one slow job idles no other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::{Context, Dispatcher, Worker};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{
    Feed, Gate, Inside, Leftovers, during, job, job_with, jobs, number, registry_of, until,
};

const SLOTS: usize = 20;

/// One job in twenty takes fifty times as long.
fn skewed_milliseconds(number: usize) -> u64 {
    if number % 20 == 7 { 500 } else { 10 }
}

fn share_of_busy_slots(jobs: usize, took: Duration) -> f64 {
    let work: u64 = (0..jobs).map(skewed_milliseconds).sum();
    Duration::from_millis(work).as_secs_f64() / (took.as_secs_f64() * SLOTS as f64)
}

async fn in_batches(jobs: usize) -> Duration {
    let began = Instant::now();
    for first in (0..jobs).step_by(SLOTS) {
        let mut batch = JoinSet::new();
        for number in first..first + SLOTS {
            batch.spawn(tokio::time::sleep(Duration::from_millis(skewed_milliseconds(number))));
        }
        while batch.join_next().await.is_some() {}
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn slots_stay_busy_beside_slow_jobs_where_batches_idle() {
    const JOBS: usize = 8000;
    let feed = Feed::generated(JOBS, |number| job_with(number, skewed_milliseconds(number))).shared();
    let registry = registry_of(|context: Context| async move {
        tokio::time::sleep(Duration::from_millis(number(&context))).await;
    });
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(SLOTS)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = Instant::now();
    let (report, took) = during(worker, async {
        feed.drained().await;
        began.elapsed()
    })
    .await;
    assert_eq!(report.stats.done, JOBS as u64);

    let (ours, batches) =
        (share_of_busy_slots(JOBS, took), share_of_busy_slots(JOBS, in_batches(JOBS).await));
    assert!(ours >= 0.95, "only {:.1} % of the slots' time was busy", ours * 100.0);
    assert!(batches <= 0.15, "batches should have idled; they were {:.1} % busy", batches * 100.0);
    Leftovers::only_mine("the feed", &feed).await;
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_refilled_in_the_instant_in_which_it_is_freed() {
    const JOBS: usize = 200;
    let times: Arc<Mutex<Vec<(Instant, Instant)>>> = Arc::default();
    let feed = Feed::generated(JOBS, |number| job_with(number, 3 + (number * 7) % 11)).shared();
    let registry = registry_of({
        let times = times.clone();
        move |context: Context| {
            let times = times.clone();
            async move {
                let began = Instant::now();
                tokio::time::sleep(Duration::from_millis(number(&context))).await;
                times.lock().expect("no test thread panicked").push((began, Instant::now()));
            }
        }
    });
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(SLOTS)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    during(worker, feed.drained()).await;

    let times = times.lock().expect("no test thread panicked");
    let mut begins: Vec<Instant> = times.iter().map(|(began, _)| *began).collect();
    let mut ends: Vec<Instant> = times.iter().map(|(_, ended)| *ended).collect();
    begins.sort();
    ends.sort();
    // The first twenty fill the slots; each further one begins when another has ended, and not later.
    assert_eq!(begins.len(), JOBS);
    for (begun, freed) in begins[SLOTS..].iter().zip(&ends) {
        assert_eq!(begun, freed, "a slot stood empty for {:?}", begun.duration_since(*freed));
    }
}

crate::support::under_both! {
    async fn every_slot_is_filled_although_a_fetch_brings_one_job_at_a_time(dispatcher) {
        let (inside, gate) = (Inside::default(), Gate::shut());
        let feed = Feed::new().at_most(1).with(jobs(SLOTS)).shared();
        let registry = registry_of({
            let (inside, gate) = (inside.clone(), gate.clone());
            move |_: Context| {
                let (stay, gate) = (inside.enter(), gate.clone());
                async move {
                    gate.pass().await;
                    drop(stay);
                }
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(SLOTS)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, async {
            until("all slots are taken", || inside.now() == SLOTS).await;
            gate.open();
            feed.drained().await;
        })
        .await;
    }

    async fn a_job_that_comes_while_another_runs_begins_at_once(dispatcher) {
        let gate = Gate::shut();
        let inside = Inside::default();
        let feed = Feed::new().shared();
        let registry = registry_of({
            let (inside, gate) = (inside.clone(), gate.clone());
            move |_: Context| {
                let (stay, gate) = (inside.enter(), gate.clone());
                async move {
                    gate.pass().await;
                    drop(stay);
                }
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(SLOTS)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, async {
            for number in 0..SLOTS {
                feed.push(job(number));
                until("it runs beside the others", || inside.now() == number + 1).await;
            }
            gate.open();
            feed.drained().await;
        })
        .await;
    }
}

/// On its own thread the loop goes on when the runtime's threads are blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_blocks_its_thread_idles_no_other_slot() {
    const JOBS: usize = 500;
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let released = Arc::new(Mutex::new(released));
    let feed =
        Feed::new().with([job_with("slow", 1)]).with((0..JOBS).map(|number| job_with(number, 0))).shared();
    let registry = registry_of({
        move |context: Context| {
            let released = released.clone();
            async move {
                if number(&context) == 1 {
                    tokio::task::yield_now().await;
                    let _ = released.lock().expect("no test thread panicked").recv();
                }
            }
        }
    });
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(4)
        .build()
        .expect("the settings make sense");
    let (report, ()) = during(worker, async {
        feed.finished(JOBS).await;
        drop(release);
        feed.drained().await;
    })
    .await;
    assert_eq!(report.stats.done, JOBS as u64 + 1);
}
