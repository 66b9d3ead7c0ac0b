//! Jobs, a tally of those that began, and a gate that blocks threads.

use std::sync::{Arc, Condvar, Mutex};

use tidegate::{Context, Dispatcher, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::sync::watch;

/// The kind of every job here.
pub(crate) const KIND: &str = "job";

/// Puts `count` jobs into `memory`, with their number as payload.
pub(crate) fn push(memory: &Memory, count: usize) {
    for number in 0..count {
        memory.push(NewJob::new(KIND, number.to_string())).expect("there is room");
    }
}

/// Which attempts have begun: (payload, attempt), in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<watch::Sender<Vec<(String, u32)>>>);

impl Tally {
    /// An attempt begins.
    pub(crate) fn begins(&self, context: &Context) {
        let payload = String::from_utf8_lossy(context.payload()).into_owned();
        self.0.send_modify(|begun| begun.push((payload, context.attempt())));
    }

    pub(crate) fn begun(&self) -> Vec<(String, u32)> {
        self.0.borrow().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Waits until `count` have begun.
    pub(crate) async fn reaches(&self, count: usize) {
        self.0.subscribe().wait_for(|begun| begun.len() >= count).await.expect("the tally is held");
    }
}

/// Runs a second worker on `memory` until nothing is left there. What it began.
pub(crate) async fn finish_elsewhere(memory: &Memory) -> Vec<(String, u32)> {
    let tally = Tally::default();
    let begun = tally.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        async {}
    });
    let worker = Worker::builder(memory.intake(), registry).name("second").dispatcher(Dispatcher::Shared);
    let shutdown = Shutdown::new();
    let run = worker.build().expect("the settings are good").run(shutdown.clone());
    let (report, ()) = tokio::join!(run, async {
        memory.drained().await;
        shutdown.stop();
    });
    super::running::balanced(&report.stats);
    assert!(report.held.is_empty(), "{report}");
    tally.begun()
}

/// A gate that threads can be held up at. Opens when it is dropped, so that a test that fails does not hang.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

/// Opens its gate when it is dropped.
pub(crate) struct Opener(Gate);

impl Gate {
    /// Blocks this thread until the gate is opened.
    pub(crate) fn block(&self) {
        let (open, opened) = &*self.0;
        let closed = open.lock().expect("nothing panics under this lock");
        drop(opened.wait_while(closed, |open| !*open).expect("nothing panics under this lock"));
    }

    pub(crate) fn open(&self) {
        let (open, opened) = &*self.0;
        *open.lock().expect("nothing panics under this lock") = true;
        opened.notify_all();
    }

    /// Keep this: when it goes, the gate opens.
    pub(crate) fn opener(&self) -> Opener {
        Opener(self.clone())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.open();
    }
}
