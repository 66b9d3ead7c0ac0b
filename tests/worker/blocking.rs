//! Handlers that block their thread: bounded, contained and told to stop like all others.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tidegate::{CancelReason, Context, Intake, Outcome, Registry, Settlement, Worker};

use crate::support::{
    Feed, Inside, KIND, Leftovers, Recording, during, job, job_with, jobs, panics, under_both_in_real_time,
    until,
};

/// A door for threads.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    fn open(&self) {
        *self.open.lock().expect("no test thread panicked") = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().expect("no test thread panicked");
        drop(self.changed.wait_while(open, |open| !*open).expect("no test thread panicked"));
    }
}

/// Blocks until it sees that it should stop, and says why.
fn until_cancelled(context: &Context) -> CancelReason {
    loop {
        if let Some(reason) = context.cancel_reason() {
            assert!(context.is_cancelled());
            return reason;
        }
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_jobs_count_against_the_bound_and_block_no_thread_of_the_runtime() {
    let (door, inside) = (Arc::new(Door::default()), Inside::default());
    let feed = Feed::new().with(jobs(12)).shared();
    let recording = Recording::around(feed.clone());
    let registry = Registry::new().handle_blocking_raw(KIND, {
        let (door, inside) = (door.clone(), inside.clone());
        move |_: Context| {
            let _stay = inside.enter();
            door.pass();
        }
    });
    // More than there are threads, so that blocking them would show.
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(5)
        .build()
        .expect("the settings make sense");
    let left = Leftovers::before();
    let (report, ()) = during(worker, async {
        until("five run at once", || inside.now() == 5).await;
        door.open();
        feed.drained().await;
    })
    .await;
    assert_eq!((report.stats.done, inside.most(), recording.most_held()), (12, 5, 5));
    left.none().await;
}

under_both_in_real_time! {
    async fn a_blocking_handlers_answer_is_its_outcome(dispatcher) {
        let feed = Feed::new().with([job_with("fine", 1), job_with("bad", 2), job_with("odd", "\"text\"")]).shared();
        let recording = Recording::around(feed.clone());
        let registry = Registry::new().handle_blocking(KIND, |number: u32, _: Context| match number {
            1 => Outcome::Done,
            _ => Outcome::reject("not one"),
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await;
        assert_eq!(recording.told_of("fine")[0].settlement, Settlement::Ack);
        assert_eq!(recording.told_of("bad")[0].reason.as_deref(), Some("not one"));
        let odd = recording.told_of("odd")[0].reason.clone().expect("it can't be decoded");
        assert!(odd.contains(KIND) && odd.contains("expected u32"), "{odd}");
    }

    async fn a_panic_in_a_blocking_handler_is_a_failed_attempt_and_is_counted(dispatcher) {
        let feed = Feed::new().with([job("a")]).shared();
        let recording = Recording::around(feed);
        let registry = Registry::new().handle_blocking_raw(KIND, |_: Context| panics("on a thread of its own"));
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, recording.has_been_told(1)).await;
        let told = &recording.told()[0];
        assert!(matches!(told.settlement, Settlement::Retry { .. }));
        assert_eq!(told.reason.as_deref(), Some("panicked: on a thread of its own"));
        assert_eq!((report.stats.failed, report.stats.panicked), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_sees_that_it_should_stop_and_keeps_its_slot_until_it_does() {
    let (door, inside) = (Arc::new(Door::default()), Inside::default());
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let feed = Feed::new().with([job("a")]).shared();
    let recording = Recording::around(feed.clone());
    let registry = Registry::new().handle_blocking_raw(KIND, {
        let (door, inside, reasons) = (door.clone(), inside.clone(), reasons.clone());
        move |context: Context| {
            let _stay = inside.enter();
            let reason = until_cancelled(&context);
            reasons.lock().expect("no test thread panicked").push(reason);
            door.pass();
            Err::<(), _>("stopped")
        }
    });
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(1)
        .job_timeout(Duration::from_millis(20))
        .cancel_grace(Duration::from_millis(20))
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let (report, ()) = during(worker, async {
        until("its future was dropped", || handle.stats().aborted == 1).await;
        assert_eq!(
            (inside.now(), handle.stats().running, recording.told().len()),
            (1, 1, 0),
            "its thread still runs"
        );
        door.open();
        recording.has_been_told(1).await;
        assert_eq!(inside.now(), 0);
    })
    .await;
    assert_eq!(*reasons.lock().expect("no test thread panicked"), [CancelReason::Timeout]);
    assert_eq!((report.stats.timed_out, report.stats.retried), (1, 1));
    assert!(recording.told()[0].reason.as_deref().is_some_and(|reason| reason.contains("timed out")));
}
