//! What was enqueued and what was run, by the number of each job; and what that shows.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tidegate::backend::redis::Redis;
use tidegate::{Enqueue as _, NewJob};

pub(crate) const KIND: &str = "kind";

/// True if the sizes are to be those of the promise.
pub(crate) fn full() -> bool {
    std::env::var_os("TIDEGATE_TEST_FULL").is_some()
}

/// A size that suits every test run, or that of the promise.
pub(crate) fn size<T>(small: T, promised: T) -> T {
    if full() { promised } else { small }
}

/// The number of a job, from its payload.
pub(crate) fn number(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).expect("digits in brackets");
    text.trim_matches(['[', ']']).parse().expect("a number")
}

/// One set of books. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Books(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    /// Tried to enqueue: who was told of an error does not know whether it was done.
    attempted: HashSet<u64>,
    accepted: HashSet<u64>,
    /// Which job, and the number of the attempt.
    runs: Vec<(u64, u32)>,
}

/// What the books show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) accepted: usize,
    /// Accepted and never run.
    pub(crate) lost: usize,
    /// Run and never enqueued.
    pub(crate) unexpected: usize,
    /// Runs of a job beyond its first.
    pub(crate) again: usize,
    /// Of these, those in an attempt that was run before: an attempt is counted anew when a lease has run out, so
    /// that nothing else explains another run.
    pub(crate) unexplained: usize,
    /// Runs after a lease had run out.
    pub(crate) lapsed: usize,
}

impl Books {
    /// Enqueues the jobs of these numbers, a hundred at a time, and notes which were accepted.
    pub(crate) async fn enqueue(&self, jobs: &Redis, numbers: std::ops::Range<u64>) {
        for batch in numbers.collect::<Vec<_>>().chunks(100) {
            self.entries(|entries| entries.attempted.extend(batch));
            let new = batch.iter().map(|number| NewJob::new(KIND, format!("[{number}]"))).collect();
            match jobs.enqueue(new).await {
                Ok(_) => self.entries(|entries| entries.accepted.extend(batch)),
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        }
    }

    pub(crate) fn ran(&self, number: u64, attempt: u32) {
        self.entries(|entries| entries.runs.push((number, attempt)));
    }

    /// Takes in the lines of a log, each a number and an attempt.
    pub(crate) fn take_in(&self, log: &Path) {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        for line in log.lines() {
            let (number, attempt) = line.split_once(' ').expect("two numbers");
            self.ran(number.parse().expect("a number"), attempt.parse().expect("an attempt"));
        }
    }

    /// How many runs there have been.
    pub(crate) fn runs(&self) -> usize {
        self.entries(|entries| entries.runs.len())
    }

    pub(crate) fn balance(&self) -> Balance {
        self.entries(|entries| {
            let mut times: HashMap<u64, usize> = HashMap::new();
            let mut attempts: HashMap<(u64, u32), usize> = HashMap::new();
            for run in &entries.runs {
                *times.entry(run.0).or_default() += 1;
                *attempts.entry(*run).or_default() += 1;
            }
            Balance {
                accepted: entries.accepted.len(),
                lost: entries.accepted.iter().filter(|number| !times.contains_key(number)).count(),
                unexpected: times.keys().filter(|number| !entries.attempted.contains(number)).count(),
                again: times.values().map(|times| times - 1).sum(),
                unexplained: attempts.values().map(|times| times - 1).sum(),
                lapsed: entries.runs.iter().filter(|(_, attempt)| *attempt > 1).count(),
            }
        })
    }

    /// What was accepted and never run, in order.
    pub(crate) fn never_run(&self) -> Vec<u64> {
        self.entries(|entries| {
            let ran: HashSet<u64> = entries.runs.iter().map(|run| run.0).collect();
            let mut lost: Vec<u64> = entries.accepted.difference(&ran).copied().collect();
            lost.sort_unstable();
            lost
        })
    }

    /// How many attempts were run again, though their run before was not one of `undone`, by the numbers of the runs.
    pub(crate) fn unexplained_beyond(&self, undone: &[std::ops::Range<usize>]) -> usize {
        self.entries(|entries| {
            let (mut last, mut count) = (HashMap::new(), 0);
            for (at, run) in entries.runs.iter().enumerate() {
                let before: Option<usize> = last.insert(*run, at);
                count +=
                    usize::from(before.is_some_and(|at| !undone.iter().any(|undone| undone.contains(&at))));
            }
            count
        })
    }

    fn entries<T>(&self, look: impl FnOnce(&mut Entries) -> T) -> T {
        look(&mut self.0.lock().expect("nothing panics under this lock"))
    }
}

impl fmt::Debug for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.balance().fmt(f)
    }
}

#[test]
fn books_tell_what_was_lost_unexpected_and_run_again() {
    let books = Books::default();
    books.entries(|entries| {
        entries.attempted.extend(0..6);
        entries.accepted.extend(0..5);
    });
    // The first is well, the second came again after its lease, the third for no reason, the fifth never.
    for (number, attempt) in [(0, 1), (1, 1), (1, 2), (2, 1), (2, 1), (3, 1), (9, 1)] {
        books.ran(number, attempt);
    }
    let shown = Balance { accepted: 5, lost: 1, unexpected: 1, again: 2, unexplained: 1, lapsed: 1 };
    assert_eq!(books.balance(), shown);
    assert_eq!((books.unexplained_beyond(&[0..2, 2..3]), books.unexplained_beyond(&[3..4, 4..9])), (1, 0));
}
