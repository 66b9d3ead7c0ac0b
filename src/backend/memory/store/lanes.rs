//! The jobs that are ready: one lane for each queue, kind and priority, and the choice between them.
//!
//! Pure. Invariants:
//!
//! 1. A lane is sorted by `order`; a job that was handed back goes to its old place.
//! 2. The heads of all lanes that are not empty, and no others, stand in `heads` and in that of their line,
//!    the best first. Only a [`Run`] may be behind with it, until it is finished.
//! 3. Choosing looks at heads and never at the jobs behind them, and passes over only such kinds as are not
//!    wanted.
//! 4. At most [`SPARE_LANES`] empty lanes are kept, so that a queue which is drained and refilled for each
//!    job costs no allocation; the rest go as they become empty (P2).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};

use slab::Slab;

use super::KEPT_CAPACITY;
use crate::job::{Kind, Queue};

/// How many empty lanes are kept. A service has a few dozen kinds; each empty lane costs some 100 bytes.
const SPARE_LANES: usize = 64;

/// All that is ready.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Slab<Lane>,
    by_name: HashMap<Name, usize>,
    /// The lane that was last asked for by name; perhaps gone, or another by now. Jobs come in runs of one
    /// kind, and two names are compared sooner than hashed.
    last: usize,
    lines: Slab<Line>,
    by_queue: HashMap<Queue, usize>,
    heads: Heads,
    /// How many lanes are empty.
    spare: usize,
    /// How many jobs are ready.
    len: usize,
}

/// The first jobs of lanes, the best first: greatest priority, then lowest order; then which lane.
type Heads = BTreeSet<(Reverse<i16>, u64, usize)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    queue: Queue,
    kind: Kind,
    priority: i16,
}

/// Jobs of one queue, kind and priority: `(order, key)`, the next one first.
#[derive(Debug)]
struct Lane {
    name: Name,
    line: usize,
    waiting: VecDeque<(u64, usize)>,
}

/// The lanes of one queue.
#[derive(Debug, Default)]
struct Line {
    heads: Heads,
    /// How many there are in all.
    lanes: usize,
}

/// Jobs of one lane that are the best one after the other. Must be finished with [`Lanes::finish`].
#[derive(Debug)]
pub(super) struct Run {
    lane: usize,
    /// The order of the lane's head when the run began.
    head: u64,
    /// Here the head of another lane of the same priority comes in between.
    rival: u64,
}

impl Lanes {
    /// How many jobs are ready.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The line of `queue`, if any job of it was there lately.
    pub(super) fn line(&self, queue: &Queue) -> Option<usize> {
        self.by_queue.get(queue).copied()
    }

    /// Puts a job in its place, and says in which lane that is.
    pub(super) fn push(
        &mut self,
        queue: &Queue,
        kind: &Kind,
        priority: i16,
        order: u64,
        key: usize,
    ) -> usize {
        let lane = self.lane(queue, kind, priority);
        let waiting = &mut self.lanes[lane].waiting;
        let head = waiting.front().map(|(order, _)| *order);
        if waiting.back().is_none_or(|(last, _)| *last < order) {
            waiting.push_back((order, key));
        } else {
            let at = waiting.partition_point(|(other, _)| *other < order);
            waiting.insert(at, (order, key));
        }
        self.len += 1;
        self.spare -= usize::from(head.is_none());
        self.update_head(lane, head);
        lane
    }

    /// Takes out the job that was put in `lane` with `order`.
    pub(super) fn remove(&mut self, lane: usize, order: u64) {
        let waiting = &mut self.lanes[lane].waiting;
        let head = waiting.front().map(|(order, _)| *order);
        if let Ok(at) = waiting.binary_search_by_key(&order, |(order, _)| *order) {
            waiting.remove(at);
            self.len -= 1;
            self.update_head(lane, head);
        }
    }

    /// The best jobs of `line`, or of all lines, among the kinds that are wanted; with their kind.
    pub(super) fn best(&self, line: Option<usize>, wants: impl Fn(&Kind) -> bool) -> Option<(Run, &Kind)> {
        let heads = line.map_or(&self.heads, |line| &self.lines[line].heads);
        let kind = |lane: usize| &self.lanes[lane].name.kind;
        let mut wanted = heads.iter().filter(|(.., lane)| wants(kind(*lane)));
        let &(priority, head, lane) = wanted.next()?;
        let rival = wanted.next().filter(|(other, ..)| *other == priority);
        Some((Run { lane, head, rival: rival.map_or(u64::MAX, |(_, order, _)| *order) }, kind(lane)))
    }

    /// Takes out the next job of a run.
    pub(super) fn next(&mut self, run: &Run) -> Option<usize> {
        let waiting = &mut self.lanes[run.lane].waiting;
        let (_, key) = *waiting.front().filter(|(order, _)| *order < run.rival)?;
        waiting.pop_front();
        self.len -= 1;
        Some(key)
    }

    /// Ends a run, in which at least one job was taken out.
    pub(super) fn finish(&mut self, run: Run) {
        self.update_head(run.lane, Some(run.head));
    }

    /// The lane of that name; a new one is empty, and counted as spare.
    fn lane(&mut self, queue: &Queue, kind: &Kind, priority: i16) -> usize {
        let same = |name: &Name| name.priority == priority && name.kind == *kind && name.queue == *queue;
        if self.lanes.get(self.last).is_some_and(|lane| same(&lane.name)) {
            return self.last;
        }
        let name = Name { queue: queue.clone(), kind: kind.clone(), priority };
        if let Some(lane) = self.by_name.get(&name) {
            self.last = *lane;
            return *lane;
        }
        let line = match self.by_queue.get(queue) {
            Some(line) => *line,
            None => {
                let line = self.lines.insert(Line::default());
                self.by_queue.insert(queue.clone(), line);
                line
            }
        };
        self.lines[line].lanes += 1;
        self.spare += 1;
        let lane = self.lanes.insert(Lane { name: name.clone(), line, waiting: VecDeque::new() });
        self.by_name.insert(name, lane);
        lane
    }

    /// A lane has changed; before that, the order of its head was `old` (invariant 2).
    fn update_head(&mut self, lane: usize, old: Option<u64>) {
        let Lane { name, line, waiting } = &self.lanes[lane];
        let new = waiting.front().map(|(order, _)| *order);
        if new == old {
            return;
        }
        let priority = Reverse(name.priority);
        for heads in [&mut self.heads, &mut self.lines[*line].heads] {
            old.map(|old| heads.remove(&(priority, old, lane)));
            new.map(|new| heads.insert((priority, new, lane)));
        }
        if new.is_none() {
            self.retire(lane);
        }
    }

    /// A lane has become empty: keeps it for the next job, or lets it go (invariant 4).
    fn retire(&mut self, lane: usize) {
        if self.len == 0 && self.lanes.capacity() > KEPT_CAPACITY {
            *self = Self::default(); // all are empty: a burst of names gives its memory back
            return;
        }
        if self.spare < SPARE_LANES {
            self.spare += 1;
            let waiting = &mut self.lanes[lane].waiting;
            if waiting.capacity() > KEPT_CAPACITY {
                *waiting = VecDeque::new();
            }
            return;
        }
        let Lane { name, line, .. } = self.lanes.remove(lane);
        self.by_name.remove(&name);
        self.lines[line].lanes -= 1;
        if self.lines[line].lanes == 0 {
            self.lines.remove(line);
            self.by_queue.remove(&name.queue);
        }
    }
}

#[cfg(test)]
impl Lanes {
    /// Calls `see` with each job, the lane that it is in and that lane's name; panics if an invariant does
    /// not hold.
    pub(super) fn check(&self, mut see: impl FnMut((u64, usize), usize, &Queue, &Kind, i16)) {
        for (lane, Lane { name, line, waiting }) in &self.lanes {
            assert!(waiting.iter().is_sorted_by(|a, b| a.0 < b.0), "lane {name:?} is out of order");
            if let Some((order, _)) = waiting.front() {
                let head = (Reverse(name.priority), *order, lane);
                assert!(self.heads.contains(&head) && self.lines[*line].heads.contains(&head), "{name:?}");
            }
            assert_eq!(self.by_name.get(name), Some(&lane));
            assert_eq!(self.by_queue.get(&name.queue), Some(line));
            waiting.iter().for_each(|job| see(*job, lane, &name.queue, &name.kind, name.priority));
        }
        assert_eq!(self.by_name.len(), self.lanes.len());
        assert_eq!(self.by_queue.len(), self.lines.len());
        assert_eq!(self.lines.iter().map(|(_, line)| line.lanes).sum::<usize>(), self.lanes.len());
        let empty = self.lanes.iter().filter(|(_, lane)| lane.waiting.is_empty()).count();
        assert_eq!(self.spare, empty);
        assert_eq!(self.heads.len(), self.lanes.len() - empty);
        assert_eq!(self.lines.iter().map(|(_, line)| line.heads.len()).sum::<usize>(), self.heads.len());
        assert!(self.spare <= SPARE_LANES, "{} empty lanes are kept", self.spare);
        assert_eq!(self.lanes.iter().map(|(_, lane)| lane.waiting.len()).sum::<usize>(), self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lanes: &mut Lanes, queue: &str, order: u64) -> usize {
        lanes.push(&Queue::new(queue), &Kind::new("kind"), 0, order, order as usize)
    }

    fn drain(lanes: &mut Lanes) -> Vec<usize> {
        let mut drained = Vec::new();
        while let Some((run, _)) = lanes.best(None, |_| true) {
            drained.extend(lanes.next(&run));
            lanes.finish(run);
        }
        drained
    }

    #[test]
    fn no_more_than_a_few_empty_lanes_are_kept() {
        let mut lanes = Lanes::default();
        for order in 0..500 {
            push(&mut lanes, &format!("queue {order}"), order);
        }
        lanes.check(|_, _, _, _, _| {});
        assert_eq!(drain(&mut lanes).len(), 500);
        lanes.check(|_, _, _, _, _| {});
        assert_eq!(lanes.lines.len(), SPARE_LANES);
    }

    #[test]
    fn a_burst_of_names_and_jobs_gives_its_memory_back() {
        let mut lanes = Lanes::default();
        for order in 0..10_000 {
            push(&mut lanes, &format!("queue {order}"), order);
            push(&mut lanes, "busy", 10_000 + order);
        }
        drain(&mut lanes);
        lanes.check(|_, _, _, _, _| {});
        assert!(lanes.lanes.capacity() <= KEPT_CAPACITY && lanes.by_name.capacity() <= KEPT_CAPACITY * 2);
        for order in 0..10_000 {
            push(&mut lanes, "busy", order);
        }
        drain(&mut lanes);
        assert!(lanes.lanes.iter().all(|(_, lane)| lane.waiting.capacity() <= KEPT_CAPACITY));
    }

    #[test]
    fn what_is_handed_back_goes_to_its_old_place() {
        let mut lanes = Lanes::default();
        for order in [1, 2, 4, 5] {
            push(&mut lanes, "queue", order);
        }
        assert_eq!(drain(&mut lanes), [1, 2, 4, 5]);
        for order in [4, 5, 2, 6, 1] {
            push(&mut lanes, "queue", order);
        }
        lanes.check(|_, _, _, _, _| {});
        assert_eq!(drain(&mut lanes), [1, 2, 4, 5, 6]);
    }
}
