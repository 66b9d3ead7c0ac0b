//! Plain pop: a worker's session on a server that allows no scripts. What is taken is gone from the server, and stands in
//! this process alone until it is settled: a crash loses it, as it does with Resque's and apisonator's own workers.
//!
//! It sends commands of apisonator's list and no others. Jobs are taken many at a time, with settlements in the same
//! pipeline where these write nothing that matters; `block` waits for more, and `write` is what settlements leave.

mod block;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::block::Blocking;
use super::codec::stable_id;
use super::exchange::{MOST, array, bytes, int, text};
use super::failure::{failed, nonsense};
use super::held::Hand;
use super::{Shared, due};
use crate::backend::wall_clock;
use crate::error::Error;
use crate::job::{Queue, Tag};
use crate::lease::later;
use crate::source::{Delivery, FetchRequest, Settled, Source, Stale};
use crate::sync::{Mutex, lock};

const DOING: &str = "popping jobs";

/// How long a wait goes on before it is looked again whether workers are paused.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How often it is looked for what nobody waits for: the end of a pause, and, by who takes from all queues, a new one.
const NEWS: Duration = Duration::from_secs(1);

/// A job that is popped has no lease that runs out.
const NEVER: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// What the sessions of a handle share, from one to the next.
#[derive(Debug, Default)]
pub(super) struct Plain {
    token: AtomicU64,
    warned: AtomicBool,
    /// Entries for the list of failed jobs that could not be written yet: see [`MOST_OWED`].
    owed: Mutex<Vec<Vec<u8>>>,
    /// Jobs that could not be put back yet, as they were popped. No session pops more while there are any, so these are no
    /// more than each has popped at once.
    kept: Mutex<Vec<(Queue, Bytes)>>,
    /// It was said that there are some of either.
    said: AtomicBool,
    /// Whose turn it is to write them.
    paying: tokio::sync::Mutex<()>,
    /// What was settled beside something that was refused, so that the worker does not know yet. It tries these again:
    /// they are no more than it holds.
    unheard: Mutex<HashSet<Tag>>,
}

/// So many entries are owed at most, and as many as are popped at once.
const MOST_OWED: usize = MOST;

impl Plain {
    /// How many jobs, and how many entries, stand here and not on the server.
    fn debts(&self) -> (usize, usize) {
        (lock(&self.kept).len(), lock(&self.owed).len())
    }

    /// No more is to be popped.
    fn owes_much(&self) -> bool {
        let (kept, owed) = self.debts();
        kept > 0 || owed >= MOST_OWED
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let (jobs, entries) = self.debts();
        if (jobs, entries) != (0, 0) {
            tracing::error!(
                jobs,
                entries,
                "plain pop: what could not be written to the server until the end is lost: jobs that were not to run, and \
                 entries of what is no job"
            );
        }
    }
}

/// One session of a worker.
pub(super) struct PlainSession {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
    blocking: Blocking,
    /// No job is taken before, since some were put off that would come again at once.
    rest: Mutex<Option<Instant>>,
    /// All workers were paused when the server was last asked.
    paused: AtomicBool,
}

impl PlainSession {
    pub(super) async fn connect(shared: Arc<Shared>) -> Result<Self, Error> {
        let connection = shared.dial.connect().await?;
        if !shared.plain.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target = shared.dial.target,
                "plain pop: jobs are taken off the server before they run, so a crash of this process loses what is in \
                 flight, and so does a connection that is lost while a popped job is on its way"
            );
        }
        let blocking = Blocking::new(shared.dial.clone(), shared.keys.clone());
        Ok(Self { shared, connection, blocking, rest: Mutex::default(), paused: AtomicBool::new(false) })
    }

    /// Sends all at once. An answer may be an error of its own command.
    async fn send(&self, doing: &'static str, all: &Pipeline) -> Result<Vec<Value>, Error> {
        let answers = self.connection.clone().send_packed_commands(all, 0, all.len()).await;
        let answers = answers.map_err(|error| failed(doing, error))?;
        if answers.len() == all.len() { Ok(answers) } else { Err(nonsense(doing)) }
    }

    async fn queues(&self, wanted: &FetchRequest) -> Result<Vec<Queue>, Error> {
        if !wanted.queues.is_empty() {
            return Ok(wanted.queues.clone());
        }
        due::served(&mut self.connection.clone(), &self.shared.keys).await
    }

    /// Takes up to `most`, from the first of these queues first. `before` goes with it, and its answers are not looked
    /// at.
    async fn take(&self, queues: &[Queue], most: usize, before: Pipeline) -> Result<Taken, Error> {
        let keys = &self.shared.keys;
        let skip = before.len();
        let mut all = before;
        all.cmd("GET").arg(&keys.pause);
        // While they are paused nothing is popped, as it would have to be put back.
        let was_paused = self.paused.load(Ordering::Relaxed);
        let queues = if was_paused { &[] } else { queues };
        if let [first, others @ ..] = queues {
            all.cmd("LPOP").arg(keys.of_queue(first)).arg(most);
            for queue in others {
                all.cmd("LLEN").arg(keys.of_queue(queue));
            }
        }
        all.cmd("EXISTS").arg(&keys.tried);
        let mut answers = self.send(DOING, &all).await?.into_iter().skip(skip);
        let mut taken = Taken { paused: says_true(answers.next()), ..Taken::default() };
        self.paused.store(taken.paused, Ordering::Relaxed);
        let Some(first) = queues.first() else {
            taken.look_again = was_paused && !taken.paused;
            return Ok(taken);
        };
        taken.add(first, answers.next());
        let (mut room, mut more, mut asked) =
            (most.saturating_sub(taken.jobs.len()), redis::pipe(), Vec::new());
        for queue in &queues[1..] {
            let there =
                answers.next().map(|there| there.extract_error().map_err(|error| failed(DOING, error)));
            let there = match there {
                Some(Ok(there)) => usize::try_from(int(&there).unwrap_or(0)).unwrap_or(0).min(room),
                Some(Err(error)) => {
                    taken.error.get_or_insert(error);
                    break;
                }
                None => 0,
            };
            if there > 0 && !taken.paused {
                room -= there;
                more.cmd("LPOP").arg(keys.of_queue(queue)).arg(there);
                asked.push(queue);
            }
        }
        taken.tried = answers.next_back().as_ref().and_then(int) == Some(1);
        if !asked.is_empty() {
            match self.send(DOING, &more).await {
                Ok(answers) => asked.iter().zip(answers).for_each(|(queue, got)| taken.add(queue, Some(got))),
                Err(error) => taken.error = Some(error),
            }
        }
        if taken.paused {
            self.give_back(std::mem::take(&mut taken.jobs)).await?;
        }
        Ok(taken)
    }

    /// Makes deliveries of what was taken, and adds them.
    async fn deliver(&self, taken: Taken, to: &mut Vec<Delivery>) -> Result<(), Error> {
        let tries = if taken.tried { self.tries(&taken.jobs).await } else { Vec::new() };
        for (place, (queue, raw)) in taken.jobs.into_iter().enumerate() {
            let layout = self.shared.layout;
            match layout.read(&raw, &queue) {
                Ok(read) => {
                    let tries = tries.get(place).copied().unwrap_or(0);
                    let mut job = read.job;
                    job.queue = queue.clone();
                    if read.enqueued_at.is_none() {
                        job.enqueued_at = wall_clock();
                    }
                    to.push(self.hand_over(job, queue, raw, tries));
                }
                Err(_) => {
                    let entry = layout.unreadable(&raw, &queue, &self.shared.roll.name(), wall_clock());
                    lock(&self.shared.plain.owed).push(entry);
                }
            }
        }
        // What can't be written now is with the next call.
        match self.pay().await {
            Err(error) if to.is_empty() => Err(taken.error.unwrap_or(error)),
            _ => match taken.error {
                Some(error) if to.is_empty() => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn hand_over(&self, job: crate::job::Job, queue: Queue, raw: Bytes, tries: u32) -> Delivery {
        let now = Instant::now();
        let attempt = tries.saturating_add(1);
        let hand = Hand {
            token: self.shared.plain.token.fetch_add(1, Ordering::Relaxed) + 1,
            raw,
            queue,
            attempt,
            marked: tries > 0,
            give_up_at: None,
            keep_dead: true,
            until: later(now, NEVER),
            overdue_at: later(now, NEVER),
        };
        Delivery { job: Arc::new(job), attempt, tag: self.shared.hands.add(hand, now), lease: None }
    }

    /// How many attempts of each have failed. Who can't tell says none: the jobs are there and are to run.
    async fn tries(&self, jobs: &[(Queue, Bytes)]) -> Vec<u32> {
        let mut ask = redis::cmd("MGET");
        for (_, raw) in jobs {
            ask.arg(write::tried_key(&self.shared.keys, raw));
        }
        let answer = match jobs {
            [] => return Vec::new(),
            _ => self.connection.clone().send_packed_command(&ask).await.ok().and_then(array),
        };
        let count = |answer| text(answer)?.parse().ok();
        answer.into_iter().flatten().map(|answer| count(answer).unwrap_or(0)).collect()
    }

    /// Waits for one job until then, or until `ended` is.
    async fn wait_for_one(
        &self,
        queues: &[Queue],
        until: Instant,
        ended: impl Future<Output = ()>,
    ) -> Result<Taken, Error> {
        let wake = || async {
            let mut ring = redis::pipe();
            ring.cmd("RPUSH").arg(self.blocking.bell()).arg("");
            ring.cmd("EXPIRE").arg(self.blocking.bell()).arg(60);
            self.send(DOING, &ring).await.map(drop)
        };
        let popped = self.blocking.pop(queues, until, ended, wake).await?;
        let Some((queue, raw)) = popped else { return Ok(Taken::default()) };
        if queues.contains(&queue) {
            // Whether attempts of it have failed is not known yet.
            return Ok(Taken { jobs: vec![(queue, raw)], tried: true, ..Taken::default() });
        }
        self.give_back(vec![(queue, raw)]).await?;
        Ok(Taken::default())
    }

    /// Takes what is there. The next fetch meets what goes wrong.
    async fn look(&self, wanted: &FetchRequest) -> Vec<Delivery> {
        let mut deliveries = wanted.room();
        if let Ok(queues) = self.queues(wanted).await
            && let Ok(taken) = self.take(&queues, wanted.max.get().min(MOST), redis::pipe()).await
        {
            let _ = self.deliver(taken, &mut deliveries).await;
        }
        deliveries
    }

    /// Until when no job is to be taken, since some were put off.
    fn rests(&self) -> Option<Instant> {
        let mut rest = lock(&self.rest);
        *rest = rest.filter(|until| *until > Instant::now());
        *rest
    }
}

/// What was popped.
#[derive(Debug, Default)]
struct Taken {
    jobs: Vec<(Queue, Bytes)>,
    /// Of some job it is noted that attempts of it have failed.
    tried: bool,
    /// No jobs are to be taken. What was popped has been put back.
    paused: bool,
    /// Nothing was popped since they were to be paused, and they no longer are.
    look_again: bool,
    /// What went wrong after something was taken.
    error: Option<Error>,
}

impl Taken {
    fn add(&mut self, queue: &Queue, popped: Option<Value>) {
        match popped.map(Value::extract_error) {
            Some(Ok(popped)) => {
                let popped = array(popped).unwrap_or_default().into_iter().filter_map(bytes);
                self.jobs.extend(popped.map(|raw| (queue.clone(), Bytes::from(raw))));
            }
            Some(Err(error)) => {
                self.error.get_or_insert(failed(DOING, error));
            }
            None => {}
        }
    }
}

fn says_true(answer: Option<Value>) -> bool {
    answer.and_then(text).is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
}

#[async_trait]
impl Source for PlainSession {
    /// # Cancel safety
    /// What a dropped fetch had popped may be lost; of a wait that it leaves, the next fetch hears.
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let deadline = later(Instant::now(), wanted.wait);
        let mut deliveries = wanted.room();
        self.shared.roll.takes_from(&wanted.queues, self.shared.hands.session() >> 32);
        loop {
            let now = Instant::now();
            // While much is owed to the server nothing is popped.
            self.pay().await?;
            if stop.is_cancelled() {
                return Ok(deliveries);
            }
            if let Some(until) = self.rests() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep_until(until) => {}
                }
                continue;
            }
            let bell = self.shared.bell.notified();
            let queues = self.queues(wanted).await?;
            let taken = self.take(&queues, wanted.max.get().min(MOST), redis::pipe()).await?;
            let (paused, look_again) = (taken.paused, taken.look_again);
            self.deliver(taken, &mut deliveries).await?;
            if look_again {
                continue;
            }
            if !deliveries.is_empty() || now >= deadline {
                return Ok(deliveries);
            }
            if paused {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep_until(deadline.min(now + NEWS)) => {}
                }
                continue;
            }
            let all = wanted.queues.is_empty();
            let again = if all { NEWS } else { LOOK_AGAIN };
            let ended = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    // It may be the first job of a queue that nobody waits for yet.
                    () = bell, if all => {}
                }
            };
            let taken = self.wait_for_one(&queues, deadline.min(now + again), ended).await?;
            self.deliver(taken, &mut deliveries).await?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.write(settled).await
    }

    fn fuses(&self) -> bool {
        true
    }

    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        let waits = self.owes() || self.rests().is_some();
        let done = if waits { None } else { self.only_done(settled) };
        let Some((tally, stale)) = done else {
            // What has to be written is not sent with a pop: if it is refused, nobody asks for what was popped.
            let stale = self.write(settled).await?;
            let waits = self.rests().is_some() || self.shared.plain.owes_much();
            return Ok((stale, if waits { Vec::new() } else { self.look(wanted).await }));
        };
        let mut deliveries = wanted.room();
        let queues = self.queues(wanted).await?;
        let taken = self.take(&queues, wanted.max.get().min(MOST), self.counted(tally)).await?;
        self.shared.hands.remove(settled.iter().map(|settled| settled.tag));
        // What is settled is settled; the next fetch meets what went wrong.
        let _ = self.deliver(taken, &mut deliveries).await;
        Ok((stale, deliveries))
    }
}
