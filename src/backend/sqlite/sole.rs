//! For a program of ours that has a queue of the file to itself (`tidegate each --db`).

use super::Sqlite;
use super::failure::failed;
use super::store::Standing;
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::job::Queue;
use crate::sync::lock;

impl Sqlite {
    /// Takes back everything that is out of `queue`. Only for whoever knows that nobody else serves it.
    pub(crate) async fn take_over(&self, queue: &Queue) -> Result<(), Error> {
        let queue = queue.clone();
        self.pass("taking over a queue", move |txn, now| txn.take_back(now, &queue)).await
    }

    /// How `queue` stands.
    pub(crate) async fn standing(&self, queue: &Queue) -> Result<Standing, Error> {
        let queue = queue.clone();
        self.pass("counting a queue", move |txn, now| txn.standing(now, &queue)).await
    }

    /// Whether anything of `queue` is ready, delayed or with a worker.
    pub(crate) async fn has_open(&self, queue: &Queue) -> Result<bool, Error> {
        let queue = queue.clone();
        self.pass("looking into a queue", move |txn, now| txn.has_open(now, &queue)).await
    }

    /// Whether something was noted under this name. Blocks for as long as the disk takes.
    pub(crate) fn has_note(&self, name: &str) -> Result<bool, Error> {
        let connection = lock(&self.0.gate.connection);
        let found = connection
            .prepare_cached("SELECT 1 FROM tidegate_notes WHERE name = ?1")
            .and_then(|mut statement| statement.exists([name]));
        found.map_err(|error| failed("reading a note".to_owned(), error))
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
