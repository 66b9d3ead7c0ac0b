//! A long list, part by part.

use crate::error::Error;
use crate::inspect::{Inspect, JobQuery, StoredJob};

/// The first part. Payloads may be large, and are not known yet.
const FIRST: usize = 16;

/// The largest part.
const MOST: usize = 1_000;

/// Parts grow while their payloads are fewer bytes than this, and shrink when they are more.
const BYTES: usize = 16 << 20;

/// Goes through the jobs that a query describes, however many, and whatever becomes meanwhile of those that came.
#[derive(Debug)]
pub(super) struct Pages {
    query: JobQuery,
    /// How many may still come.
    left: usize,
    size: usize,
}

impl Pages {
    /// All that `query` describes, up to its maximum.
    pub(super) fn of(query: JobQuery) -> Self {
        Self { left: query.max, query, size: FIRST }
    }

    /// The next part; empty at the end.
    pub(super) async fn next(&mut self, inspect: &dyn Inspect) -> Result<Vec<StoredJob>, Error> {
        self.query.max = self.size.min(self.left);
        if self.query.max == 0 {
            return Ok(Vec::new());
        }
        let jobs = inspect.list(&self.query).await?;
        self.left -= jobs.len().min(self.left);
        self.query.skip = 0;
        self.query.after = jobs.last().map(|last| last.position);
        if jobs.len() < self.query.max {
            self.left = 0;
        }
        let bytes: usize = jobs.iter().map(|job| job.job.payload.len()).sum();
        self.size = if bytes > BYTES { (self.size / 2).max(1) } else { (self.size * 2).min(MOST) };
        Ok(jobs)
    }
}
