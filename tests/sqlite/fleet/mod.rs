//! P4 and P5 from outside: worker processes on one file are killed, and stopped and woken, at random moments.
//!
//! What is claimed is claimed of each job and each attempt by name: see [`Trail::check`](trail::Trail::check).

mod across;
mod killed;
mod process;
mod stopped;
mod trail;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate::backend::sqlite::Sqlite;
use tidegate::{Enqueue, NewJob};
use tokio::time::Instant;

use self::process::{Manner, Process, Waits};
use self::trail::Trail;
use crate::folder::Folder;

/// How long anything may take before a test gives up on it: never waited for when all is well.
const LIMIT: Duration = Duration::from_secs(120);

/// How much later than the end of its lease a job may begin again.
const GRACE: Duration = Duration::from_secs(5);

/// A file with jobs, those who work on it, and what is known of both.
struct Fleet {
    file: PathBuf,
    ttl: Duration,
    /// How many worker processes there have been.
    generations: u32,
    trail: Trail,
    /// The numbers of all jobs.
    jobs: Vec<i64>,
    _folder: Folder,
}

impl Fleet {
    /// A file with so many jobs, of which nobody takes care yet. Leases will last for `ttl`.
    async fn with_jobs(count: usize, ttl: Duration, folder: Folder) -> Self {
        let file = folder.file("jobs.sqlite");
        let jobs = enqueue(&file, count).await;
        let trail = Trail::of(&file, ttl);
        Self { file, ttl, generations: 0, trail, jobs, _folder: folder }
    }

    /// A further worker process, whose jobs take this long.
    fn start(&mut self, job: Duration, waits: Waits) -> Process {
        self.generations += 1;
        Process::start(&self.file, Manner { generation: self.generations, ttl: self.ttl, job, waits })
    }
}

/// No handle is left when this returns: whatever is done with leases from then on is done by the workers.
async fn enqueue(file: &Path, count: usize) -> Vec<i64> {
    let jobs = Sqlite::open(file).expect("the file");
    let mut numbers = Vec::new();
    for batch in (0..count).collect::<Vec<_>>().chunks(1_000) {
        let batch = batch.iter().map(|number| NewJob::new("kind", format!("{number}")));
        let enqueued = jobs.enqueue(batch.collect()).await.expect("enqueued");
        numbers.extend(enqueued.iter().map(|job| job.id().as_str().parse::<i64>().expect("a number")));
    }
    numbers
}

/// In memory, if the system has such a place: for what must not wait for a disk that is busy with something else.
fn in_memory() -> Folder {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { Folder::within(memory) } else { Folder::new() }
}

/// Waits for something that no event tells of.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Some number below this one, different each time.
fn random(below: usize) -> usize {
    use std::hash::{BuildHasher as _, RandomState};
    (RandomState::new().hash_one(0) % below as u64) as usize
}

/// The system's clock, by which leases run out, in nanoseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "it is about several processes, in real time")]
fn wall_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_nanos()).expect("before 2554")
}
