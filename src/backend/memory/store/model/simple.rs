//! The model: what the store is to do, without a thought for how fast.

use super::super::tests::settings;
use crate::enqueue::{Clash, NewJob, Start, Unique, Window};
use crate::job::{JobId, Kind, Tag};
use crate::lease::Renewal;
use crate::source::{FetchRequest, Settlement};

/// A job as the model sees it. Whole seconds since the beginning.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) id: JobId,
    pub(super) new: NewJob,
    pub(super) state: Is,
    /// The lower the sooner.
    pub(super) order: u64,
    /// When it came into its state, counted in moves: lists are in this order.
    pub(super) moved: u64,
    pub(super) attempts: u32,
    /// Which job has taken its place, if it is with a worker.
    pub(super) superseded_by: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Is {
    Ready,
    Delayed(u64),
    /// `granted` counts grants and renewals: of leases that end together, the one granted first ends first.
    Leased {
        tag: Tag,
        until: u64,
        granted: u64,
        cancelled: bool,
    },
    Dead,
    Gone,
}

/// A hold on a key: of which kind, which, by which job (its place in the vector), and until when if for a
/// period. The first of several stands for all.
type Taken = (Kind, String, usize, Option<u64>);

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) jobs: Vec<Seen>,
    taken: Vec<Taken>,
    pub(super) tags: Vec<Tag>,
    pub(super) now: u64,
    count: u64,
    pub(super) done: u64,
    pub(super) superseded: u64,
}

impl Model {
    pub(super) fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub(super) fn count(&self, is: impl Fn(&Is) -> bool) -> usize {
        self.jobs.iter().filter(|job| is(&job.state)).count()
    }

    pub(super) fn unfinished(&self) -> usize {
        self.count(|is| matches!(is, Is::Ready | Is::Delayed(_) | Is::Leased { .. }))
    }

    pub(super) fn holder(&self, new: &NewJob) -> Option<usize> {
        let unique = new.unique.as_ref()?;
        let same = |taken: &&Taken| taken.0 == new.kind && taken.1 == unique.key.as_str();
        self.taken.iter().find(same).map(|taken| taken.2)
    }

    pub(super) fn become_(&mut self, job: usize, state: Is) {
        let moved = self.next();
        let new = self.jobs[job].new.clone();
        (self.jobs[job].state, self.jobs[job].moved) = (state, moved);
        if state == Is::Dead {
            self.jobs[job].superseded_by = None;
        }
        let window = new.unique.as_ref().map(|unique| unique.window);
        let frees = match window {
            Some(Window::WhileQueued) => matches!(state, Is::Leased { .. } | Is::Dead | Is::Gone),
            Some(Window::UntilDone) => matches!(state, Is::Dead | Is::Gone),
            _ => false,
        };
        if frees {
            self.taken.retain(|taken| taken.2 != job);
        }
        let takes = matches!(window, Some(Window::WhileQueued | Window::UntilDone))
            && matches!(state, Is::Ready | Is::Delayed(_));
        if takes && !self.taken.iter().any(|taken| taken.2 == job) {
            let key = new.unique.expect("it has a window").key;
            self.taken.push((new.kind, key.as_str().to_owned(), job, None));
        }
        if self.count(|is| *is == Is::Dead) > settings().max_dead {
            let oldest = self.listed(|is| *is == Is::Dead)[0];
            self.become_(oldest, Is::Gone);
        }
    }

    pub(super) fn listed(&self, is: impl Fn(&Is) -> bool) -> Vec<usize> {
        let mut jobs: Vec<usize> = (0..self.jobs.len()).filter(|job| is(&self.jobs[*job].state)).collect();
        jobs.sort_by_key(|job| self.jobs[*job].moved);
        jobs
    }

    pub(super) fn wait(&mut self, job: usize, after: u64, order: u64) {
        if self.jobs[job].superseded_by.is_some() {
            return self.end_superseded(job);
        }
        self.jobs[job].order = order;
        self.become_(job, if after == 0 { Is::Ready } else { Is::Delayed(self.now + after) });
    }

    fn end_superseded(&mut self, job: usize) {
        self.become_(job, Is::Gone);
        self.superseded += 1;
    }

    /// All that are with a worker or hold the key make way for this one, which has the newest payload.
    fn supersede(&mut self, by: usize) {
        let same = |new: &NewJob| {
            let key = |new: &NewJob| new.unique.as_ref().map(|unique| unique.key.clone());
            new.kind == self.jobs[by].new.kind && key(new) == key(&self.jobs[by].new)
        };
        let older: Vec<usize> =
            (0..self.jobs.len()).filter(|at| *at != by && same(&self.jobs[*at].new)).collect();
        for job in older {
            match self.jobs[job].state {
                Is::Leased { .. } => self.jobs[job].superseded_by = Some(by),
                Is::Ready | Is::Delayed(_) if self.taken.iter().any(|taken| taken.2 == job) => {
                    self.end_superseded(job);
                }
                _ => {}
            }
        }
    }

    pub(super) fn ripen(&mut self) {
        self.taken.retain(|taken| taken.3.is_none_or(|until| until > self.now));
        let mut due: Vec<(u64, u64, usize)> = Vec::new();
        for (at, job) in self.jobs.iter().enumerate() {
            if let Is::Delayed(time) = job.state
                && time <= self.now
            {
                due.push((time, job.order, at));
            }
        }
        due.sort();
        for (_, _, job) in due {
            let order = self.next();
            self.wait(job, 0, order);
        }
    }

    pub(super) fn lapse(&mut self, max: usize) -> usize {
        let mut over: Vec<(u64, u64, usize, bool)> = Vec::new();
        for (at, job) in self.jobs.iter().enumerate() {
            if let Is::Leased { until, granted, cancelled, .. } = job.state
                && until <= self.now
            {
                over.push((until, granted, at, cancelled));
            }
        }
        over.sort();
        over.truncate(max);
        for (_, _, job, cancelled) in &over {
            let Seen { new, attempts, order, .. } = &self.jobs[*job];
            let most = new.max_attempts.unwrap_or(settings().crash_limit);
            if *cancelled || attempts >= &most {
                self.become_(*job, Is::Dead);
            } else {
                self.wait(*job, 0, *order);
            }
        }
        over.len()
    }

    pub(super) fn advance(&mut self) {
        self.ripen();
        self.lapse(usize::MAX);
    }

    /// What is to be answered, with numbers instead of ids: those of jobs in the vector. `None`: full.
    pub(super) fn enqueue(&mut self, jobs: &[NewJob]) -> Option<Vec<(&'static str, usize)>> {
        let before = (self.jobs.clone(), self.taken.clone(), self.superseded);
        let unfinished = self.unfinished();
        let mut answers = Vec::new();
        for new in jobs {
            answers.push(match self.holder(new) {
                Some(holder) => self.clash(new, holder),
                None => ("created", self.create(new)),
            });
        }
        let periods = self.taken.iter().filter(|taken| taken.3.is_some()).count();
        let more = self.jobs.len() - before.0.len();
        let more_periods = periods > before.1.iter().filter(|taken| taken.3.is_some()).count();
        let max = settings().max_jobs;
        // There must be room for all of them before any makes way.
        if (more > 0 && unfinished + more > max) || (more_periods && periods > max) {
            (self.jobs, self.taken, self.superseded) = before;
            return None;
        }
        Some(answers)
    }

    pub(super) fn clash(&mut self, new: &NewJob, holder: usize) -> (&'static str, usize) {
        let replaces = new.unique.as_ref().is_some_and(|unique| unique.clash == Clash::ReplacePayload);
        let holding = &mut self.jobs[holder];
        if replaces && matches!(holding.state, Is::Ready | Is::Delayed(_)) {
            holding.new.payload = new.payload.clone();
            self.supersede(holder);
            return ("replaced", holder);
        }
        ("duplicate", holder)
    }

    pub(super) fn create(&mut self, new: &NewJob) -> usize {
        let job = self.jobs.len();
        let order = self.next();
        self.jobs.push(Seen {
            id: JobId::new(""), // until the store has said it
            new: new.clone(),
            state: Is::Gone,
            order,
            moved: 0,
            attempts: 0,
            superseded_by: None,
        });
        if new.unique.as_ref().is_some_and(|unique| unique.clash == Clash::ReplacePayload) {
            self.supersede(job);
        }
        if let Some(Unique { key, window: Window::For(time), .. }) = &new.unique
            && !time.is_zero()
        {
            self.taken.push((
                new.kind.clone(),
                key.as_str().to_owned(),
                job,
                Some(self.now + time.as_secs()),
            ));
        }
        let Start::After(delay) = new.start else { panic!("all are made with a delay") };
        self.wait(job, delay.as_secs(), order);
        job
    }

    /// Which jobs are to be handed out, in this order.
    pub(super) fn choose(&self, wanted: &FetchRequest) -> Vec<usize> {
        let mut ready = self.listed(|is| *is == Is::Ready);
        let turn = |job: &Seen| match wanted.queues.is_empty() {
            true => Some(0),
            false => wanted.queues.iter().position(|queue| *queue == job.new.queue),
        };
        ready.retain(|job| turn(&self.jobs[*job]).is_some());
        ready.sort_by_key(|job| {
            let job = &self.jobs[*job];
            (turn(job), -job.new.priority, job.order)
        });
        let mut chosen: Vec<usize> = Vec::new();
        for job in ready {
            let kind = &self.jobs[job].new.kind;
            let same = chosen.iter().filter(|other| self.jobs[**other].new.kind == *kind).count();
            if chosen.len() < wanted.max.get() && wanted.quota(kind).is_none_or(|quota| same < quota) {
                chosen.push(job);
            }
        }
        chosen
    }

    /// The job that runs under this tag.
    pub(super) fn leased(&self, wanted: Tag) -> Option<(usize, bool)> {
        self.jobs.iter().enumerate().find_map(|(at, job)| match job.state {
            Is::Leased { tag, cancelled, .. } if tag == wanted => Some((at, cancelled)),
            _ => None,
        })
    }

    /// Whether the settlement counts.
    pub(super) fn settle(&mut self, tag: Tag, settlement: Settlement) -> bool {
        let Some((job, cancelled)) = self.leased(tag) else { return false };
        let order = self.jobs[job].order;
        if let Settlement::Release { .. } = settlement {
            self.jobs[job].attempts -= 1;
        }
        match settlement {
            Settlement::Ack => {
                self.become_(job, Is::Gone);
                self.done += 1;
            }
            _ if cancelled => self.become_(job, Is::Dead),
            Settlement::Reject => self.become_(job, Is::Dead),
            Settlement::Retry { after } => {
                let order = self.next();
                self.wait(job, after.as_secs(), order);
            }
            Settlement::Release { after } => self.wait(job, after.as_secs(), order),
        }
        true
    }

    pub(super) fn renew(&mut self, tag: Tag) -> Renewal {
        let Some((job, is_cancelled)) = self.leased(tag) else { return Renewal::Lost };
        let (now, count) = (self.now, self.next());
        if let Is::Leased { until, granted, .. } = &mut self.jobs[job].state {
            (*until, *granted) = (now + settings().lease_ttl.as_secs(), count);
        }
        if is_cancelled { Renewal::CancelRequested } else { Renewal::Kept }
    }

    pub(super) fn cancel(&mut self, job: usize) -> bool {
        match &mut self.jobs[job].state {
            Is::Dead | Is::Gone => return false,
            Is::Leased { cancelled, .. } => *cancelled = true,
            Is::Ready | Is::Delayed(_) => self.become_(job, Is::Dead),
        }
        true
    }

    /// `None`: full.
    pub(super) fn requeue(&mut self, job: usize) -> Option<bool> {
        match self.jobs[job].state {
            Is::Ready | Is::Leased { .. } | Is::Gone => return Some(false),
            Is::Delayed(_) => {}
            Is::Dead => {
                if self.unfinished() >= settings().max_jobs {
                    return None;
                }
                let new = &self.jobs[job].new;
                let for_a_period =
                    new.unique.as_ref().is_some_and(|unique| matches!(unique.window, Window::For(_)));
                if !for_a_period && self.holder(new).is_some() {
                    return Some(false);
                }
                self.jobs[job].attempts = 0;
            }
        }
        let order = self.next();
        self.wait(job, 0, order);
        Some(true)
    }

    pub(super) fn delete(&mut self, job: usize) -> bool {
        let may = matches!(self.jobs[job].state, Is::Ready | Is::Delayed(_) | Is::Dead);
        if may {
            self.become_(job, Is::Gone);
        }
        may
    }
}
