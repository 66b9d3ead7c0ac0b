//! Control blocks that have served and may serve again, so that a job need not allocate one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::context::Run;
use crate::job::{Job, JobId, Kind};
use crate::source::Delivery;

/// The most that are kept: enough for what finishes and starts at once; about 50 KiB.
const MAX_SPARE: usize = 256;

/// The most elements that an emptied vector keeps room for.
const MAX_ROOM: usize = 1024;

/// Gives back the memory of an emptied vector if it is one of a burst (P2).
pub(crate) fn let_burst_go<T>(room: &mut Vec<T>) {
    debug_assert!(room.is_empty(), "it is emptied before");
    if room.capacity() > MAX_ROOM {
        *room = Vec::new();
    }
}

#[derive(Debug)]
pub(crate) struct Spare {
    blocks: Vec<Arc<Run>>,
    nobody: Arc<Job>,
}

impl Spare {
    pub(crate) fn new() -> Self {
        let nobody = Job::new(JobId::new(""), Kind::new(""), Bytes::new(), SystemTime::UNIX_EPOCH);
        Self { blocks: Vec::new(), nobody: Arc::new(nobody) }
    }

    /// A block for an attempt at `delivery`.
    pub(crate) fn take(&mut self, delivery: Delivery, timeout: Option<Duration>) -> Arc<Run> {
        if let Some(mut block) = self.blocks.pop()
            && let Some(run) = Arc::get_mut(&mut block)
        {
            run.occupy(delivery, timeout);
            return block;
        }
        Arc::new(Run::new(delivery, timeout))
    }

    /// Takes a block back, unless somebody still holds it: a handler that kept its context, say.
    pub(crate) fn put_back(&mut self, mut block: Arc<Run>) {
        if self.blocks.len() < MAX_SPARE
            && let Some(run) = Arc::get_mut(&mut block)
        {
            run.vacate(&self.nobody);
            self.blocks.push(block);
        }
    }
}
