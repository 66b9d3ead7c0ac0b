//! For a program that has a queue of the file to itself, and knows that nobody else serves it: taking over what the one
//! before it has left, and notes that are committed together with jobs.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, params};

use super::{DEAD, DELAYED, LEASED, READY, Stand, Time, Txn, stand};
use crate::job::{Queue, Tag};
use crate::source::{Settled, Settlement};

/// How a queue stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Ready, delayed or with a worker.
    pub(crate) open: u64,
    pub(crate) dead: u64,
}

impl Txn<'_> {
    /// Takes back everything that is out of a queue, whoever had it: whoever it was has ended. The attempts are not
    /// counted, as they have not come to their end.
    pub(in super::super) fn take_back(&mut self, now: Time, queue: &Queue) -> rusqlite::Result<()> {
        self.advance(now)?;
        let out = {
            let mut statement = self.connection.prepare_cached(concat!(
                "SELECT ",
                stand_columns!(),
                " FROM tidegate_jobs WHERE state = 2 AND queue = ?1 ORDER BY due, id"
            ))?;
            let rows = statement.query_map([queue.as_str()], stand)?;
            rows.collect::<rusqlite::Result<Vec<Stand>>>()?
        };
        let nobody = Tag { session: 0, key: 0, token: 0 };
        let released = Settled::new(nobody, Settlement::Release { after: Duration::ZERO });
        out.iter().try_for_each(|job| self.settle_one(job, &released, now))
    }

    pub(in super::super) fn standing(&mut self, now: Time, queue: &Queue) -> rusqlite::Result<Standing> {
        self.advance(now)?;
        let [ready, delayed, leased, dead] = [READY, DELAYED, LEASED, DEAD].map(|state| {
            // The state is part of the text, so that its index is used.
            self.connection
                .prepare_cached(&format!(
                    "SELECT count(*) FROM tidegate_jobs WHERE state = {state} AND queue = ?1"
                ))?
                .query_row([queue.as_str()], |row| row.get(0).map(i64::unsigned_abs))
        });
        Ok(Standing { open: ready? + delayed? + leased?, dead: dead? })
    }

    /// Whether anything of a queue is ready, delayed or with a worker: a look at the first of each, however many.
    pub(in super::super) fn has_open(&mut self, now: Time, queue: &Queue) -> rusqlite::Result<bool> {
        self.advance(now)?;
        for state in [READY, DELAYED, LEASED] {
            let found = self
                .connection
                .prepare_cached(&format!(
                    "SELECT 1 FROM tidegate_jobs WHERE state = {state} AND queue = ?1 LIMIT 1"
                ))?
                .exists([queue.as_str()])?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(in super::super) fn note(&self, name: &str) -> rusqlite::Result<Option<String>> {
        self.connection
            .prepare_cached("SELECT text FROM tidegate_notes WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    }

    pub(in super::super) fn set_note(&mut self, name: &str, text: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO tidegate_notes VALUES (?1, ?2) ON CONFLICT DO UPDATE SET text = ?2")?
            .execute(params![name, text])
            .map(|_| ())
    }
}
