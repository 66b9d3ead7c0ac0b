//! A run from beginning to end: the worker set going, steered by signals, and what is answered when it is over.
//!
//! Nothing here blocks: the configuration is read again on a thread of its own, and a signal to stop is obeyed
//! meanwhile.

use std::io::{self, IsTerminal as _};
use std::process;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::config::{Config, RedisSettings, Refused, Settings};
use super::log::Log;
use super::{Asked, kinds, store};
use crate::cli::signals::{self, Signals, Stop};
use crate::cli::{Exit, room};
use crate::error::{Chain, Error};
use crate::inspect::JobView;
use crate::registry::Registry;
use crate::service::{Presence, Rescheduler};
use crate::shutdown::{Phase, Shutdown};
use crate::source::Intake;
use crate::worker::{Report, StopCause, Worker, WorkerHandle};

/// How many jobs in hand are listed: a few screens.
const LISTED: usize = 100;

/// Why nothing is run: how to end, and what to say.
pub(super) type Refusal = (Exit, String);

/// The daemon before it runs: from here on HUP does not end it.
pub(super) struct Daemon {
    runtime: Runtime,
    signals: Signals,
}

impl Daemon {
    /// To be made before anything else.
    pub(super) fn new() -> Result<Self, Refusal> {
        // One thread for the jobs, which wait for commands and answers; the worker has its own. It is the main thread,
        // so that it is the parent of all commands.
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| cant("the system gives no runtime", error))?;
        let signals = {
            let _within = runtime.enter();
            Signals::listen_to_hup().map_err(|error| cant("the system gives no signals", error))?
        };
        Ok(Self { runtime, signals })
    }

    /// Runs the worker that `config` describes, until it is told to stop.
    pub(super) fn carry_out(self, asked: Asked, config: Config) -> Result<Exit, Refusal> {
        let Self { runtime, signals } = self;
        let jobs = config.settings.worker.max_concurrent_jobs;
        room::make_for(jobs as u64)
            .map_err(|why| (Exit::Config, format!("worker.max_concurrent_jobs ({jobs}) {why}")))?;
        let log = Log::start(config.settings.log).map_err(|error| cant("the log can't be started", error))?;
        let exit = runtime.block_on(run(asked, config, &log, signals));
        runtime.shutdown_background();
        Ok(exit)
    }
}

fn cant(what: &str, error: io::Error) -> Refusal {
    (Exit::Internal, format!("{what}: {error}"))
}

async fn run(asked: Asked, config: Config, log: &Log, mut signals: Signals) -> Exit {
    if let Err(error) = signals.listen_to_all() {
        tracing::error!(%error, "the system gives no signals");
        return Exit::Internal;
    }
    let Config { settings, registry } = config;
    let names = kinds(&registry);
    let (worker, beside) = match open(&settings, registry) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(source = %settings.source, error = %Chain(&error), "the source can't be opened");
            return if error.is_invalid_input() { Exit::Config } else { Exit::Unavailable };
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        source = %settings.source,
        kinds = names,
        max_concurrent_jobs = settings.worker.max_concurrent_jobs,
        pid = process::id(),
        "started"
    );
    let mut steering = Steering {
        handle: worker.handle(),
        shutdown: Shutdown::new(),
        signals,
        log,
        asked,
        settings,
        beside: JoinSet::new(),
        reading: false,
        read_again: false,
    };
    let mut seen = JoinSet::new();
    if let Some(presence) = beside.presence {
        seen.spawn(presence.run(steering.shutdown.clone()));
    }
    if let Some(rescheduler) = beside.rescheduler {
        seen.spawn(rescheduler.run(steering.shutdown.clone()));
    }
    let report = steering.run(worker).await;
    // They end with the worker, within half a second.
    while seen.join_next().await.is_some() {}
    end(&report)
}

/// What runs beside the worker, if anything does.
struct Services {
    presence: Option<Presence>,
    rescheduler: Option<Rescheduler>,
}

fn open(settings: &Settings, registry: Registry) -> Result<(Worker, Services), Error> {
    let set = &settings.worker;
    let backend = store::open(settings)?;
    let worker = Worker::builder(Intake::from(&backend), registry)
        .name(&set.name)
        .max_concurrent_jobs(set.max_concurrent_jobs)
        .prefetch(set.prefetch)
        .shutdown_deadline(set.shutdown_deadline)
        .job_timeout(set.job_timeout)
        .cancel_grace(set.cancel_grace)
        .fetch_wait(set.fetch_wait)
        .max_payload_bytes(set.max_payload)
        .queues(set.queues.clone())
        .retry(set.retry.policy())
        .unknown_kind(set.unknown_kind)
        .reconnect(set.reconnect.clone())
        .build()?;
    let RedisSettings { presence, tag, labels, reschedule, reschedule_times, .. } = &settings.redis;
    let rescheduler = match (reschedule, &backend.reschedule) {
        (None, _) => None,
        (Some(every), Some(store)) => {
            Some(Rescheduler::new(store.clone(), worker.handle()).times(*reschedule_times).every(*every)?)
        }
        (Some(_), None) => {
            let what =
                "redis.reschedule is for Resque's layout (`?layout=resque` in the source): leave it out";
            return Err(Error::invalid(what));
        }
    };
    let presence = backend.announce.filter(|_| *presence).map(|announce| {
        let presence = Presence::new(announce, worker.handle()).labels(labels.clone());
        match tag {
            Some(tag) => presence.tag(tag),
            None => presence,
        }
    });
    Ok((worker, Services { presence, rescheduler }))
}

/// Says what came of it.
fn end(report: &Report) -> Exit {
    let stats = report.stats;
    let (exit, cause) = match &report.cause {
        StopCause::Failed(error) => {
            tracing::error!(error = %Chain(error), "the source failed");
            (Exit::Unavailable, "the source failed")
        }
        StopCause::SourceEnded => (Exit::Done, "the source has ended"),
        StopCause::Shutdown => (Exit::Done, "asked to"),
    };
    tracing::info!(
        cause,
        done = stats.done,
        retried = stats.retried,
        rejected = stats.rejected,
        snoozed = stats.snoozed,
        released = stats.released,
        lost = stats.lost,
        stale = stats.stale,
        held = report.held.len(),
        took = ?report.stopping_took,
        "stopped"
    );
    if exit == Exit::Done && !report.held.is_empty() { Exit::Failed } else { exit }
}

/// The hand on the worker while it runs.
struct Steering<'l> {
    handle: WorkerHandle,
    shutdown: Shutdown,
    signals: Signals,
    log: &'l Log,
    asked: Asked,
    /// Those of the start, of which some can't be changed.
    settings: Settings,
    beside: JoinSet<Beside>,
    /// The configuration is being read, and has to be read once more.
    reading: bool,
    read_again: bool,
}

/// What was done beside.
enum Beside {
    Read(Box<Result<Config, Refused>>),
    Listed(Vec<JobView>),
}

impl Steering<'_> {
    async fn run(&mut self, worker: Worker) -> Report {
        let mut run = std::pin::pin!(worker.run(self.shutdown.clone()));
        loop {
            tokio::select! {
                biased;
                report = &mut run => return report,
                asked = self.signals.next() => self.obey(asked),
                Some(done) = self.beside.join_next() => match done {
                    Ok(Beside::Read(read)) => self.has_read(*read),
                    Ok(Beside::Listed(jobs)) => self.list(jobs),
                    // Its panic has been logged.
                    Err(_) => self.reading = false,
                },
            }
        }
    }

    fn obey(&mut self, asked: signals::Asked) {
        match asked {
            signals::Asked::Stop(by) => self.stop(by),
            signals::Asked::Reload => self.reload(),
            // Where Ctrl-Z comes from there is no other hand to send CONT.
            signals::Asked::Quiet if self.handle.is_quiet() && io::stderr().is_terminal() => self.resume(),
            signals::Asked::Quiet => {
                self.handle.quiet();
                tracing::info!(
                    running = self.handle.stats().running,
                    "quiet: no more jobs are taken until CONT comes"
                );
            }
            signals::Asked::Resume => self.resume(),
            signals::Asked::Report => {
                let handle = self.handle.clone();
                self.beside.spawn(async move { Beside::Listed(handle.jobs().await) });
            }
        }
    }

    fn stop(&self, by: Stop) {
        tracing::info!(signal = by.name, "asked to stop");
        if by.at_once {
            self.shutdown.escalate(Phase::Abort);
        } else {
            self.shutdown.stop();
        }
    }

    fn resume(&self) {
        if self.handle.is_quiet() {
            self.handle.resume();
            tracing::info!("going on: jobs are taken again");
        }
    }

    fn reload(&mut self) {
        if self.shutdown.is_stopping() {
            tracing::info!("stopping: the configuration is not read again");
        } else if self.reading {
            self.read_again = true;
        } else {
            self.reading = true;
            let asked = self.asked.clone();
            self.beside.spawn_blocking(move || Beside::Read(Box::new(asked.load())));
        }
    }

    fn has_read(&mut self, read: Result<Config, Refused>) {
        self.reading = false;
        if std::mem::take(&mut self.read_again) {
            return self.reload();
        }
        match read {
            Ok(config) => self.take_over(config),
            Err(refused) => {
                for (problem, line) in refused.lines() {
                    tracing::error!(problem, line, "configuration refused");
                }
                self.stay();
            }
        }
    }

    fn stay(&self) {
        tracing::error!("the configuration stays as it was: mend it, and send HUP again");
    }

    /// Goes on by `config`, as far as that is possible without a restart.
    fn take_over(&mut self, Config { settings, registry }: Config) {
        let (jobs, names) = (settings.worker.max_concurrent_jobs, kinds(&registry));
        // What can fail comes first: all of it is taken over, or nothing.
        if let Err(why) = room::make_for(jobs as u64) {
            tracing::error!(
                problem = format!("worker.max_concurrent_jobs ({jobs}) {why}"),
                "configuration refused"
            );
            return self.stay();
        }
        let queues = settings.worker.queues.clone();
        let set = self.handle.set_registry(registry).and_then(|()| self.handle.set_queues(queues));
        if let Err(error) = set.and_then(|()| self.handle.set_max_concurrent_jobs(jobs)) {
            tracing::error!(problem = %Chain(&error), "configuration refused");
            return self.stay();
        }
        self.log.change(settings.log);
        for setting in self.settings.needs_restart(&settings) {
            tracing::warn!(setting, "needs a restart: until then it stays as it was");
        }
        tracing::info!(kinds = names, max_concurrent_jobs = jobs, "configuration reloaded");
    }

    /// Logs what is in hand, the longest first.
    fn list(&self, mut jobs: Vec<JobView>) {
        jobs.sort_by_key(|job| std::cmp::Reverse(job.age));
        for job in jobs.iter().take(LISTED) {
            let JobView { id, kind, queue, attempt, phase, age, .. } = job;
            tracing::info!(%id, %kind, %queue, attempt, ?phase, ?age, "in hand");
        }
        let stats = self.handle.stats();
        tracing::info!(
            in_hand = jobs.len(),
            running = stats.running,
            max_concurrent_jobs = self.handle.max_concurrent_jobs(),
            quiet = self.handle.is_quiet(),
            fetched = stats.fetched,
            done = stats.done,
            retried = stats.retried,
            rejected = stats.rejected,
            snoozed = stats.snoozed,
            released = stats.released,
            lost = stats.lost,
            stale = stats.stale,
            timed_out = stats.timed_out,
            settle_failures = stats.settle_failures,
            "figures"
        );
    }
}
