//! For a program of ours that has a queue of the file to itself (`tidegate each --db`).

use super::Sqlite;
use super::store::Standing;
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::job::Queue;

impl Sqlite {
    /// Takes back everything that is out of `queue`, and says how that stands. Only for whoever knows that nobody else
    /// serves it.
    pub(crate) async fn take_over(&self, queue: &Queue) -> Result<Standing, Error> {
        let queue = queue.clone();
        self.pass("taking over a queue", move |txn, now| {
            txn.take_back(now, &queue)?;
            txn.standing(now, &queue)
        })
        .await
    }

    /// How `queue` stands.
    pub(crate) async fn standing(&self, queue: &Queue) -> Result<Standing, Error> {
        let queue = queue.clone();
        self.pass("counting a queue", move |txn, now| txn.standing(now, &queue)).await
    }

    /// What was noted under this name.
    pub(crate) async fn note(&self, name: &'static str) -> Result<Option<String>, Error> {
        self.pass("reading a note", move |txn, _| txn.note(name)).await
    }

    /// Enqueues, and notes a text under a name, both or neither.
    pub(crate) async fn enqueue_and_note(
        &self,
        jobs: Vec<NewJob>,
        name: &'static str,
        text: String,
    ) -> Result<(), Error> {
        jobs.iter().try_for_each(|job| job.validate(self.0.max_payload_bytes))?;
        self.pass("enqueueing jobs", move |txn, now| {
            txn.enqueue(now, &jobs)?;
            txn.set_note(name, &text)
        })
        .await
    }
}
