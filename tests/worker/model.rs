//! A small model: whatever jobs do, however the bound is changed and whenever the worker is stopped, nothing
//! is lost, nothing runs twice without a cause, the bound holds and the books balance (S1 to S11).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tidegate::{
    Context, Dispatcher, ErrorKind, Intake, Outcome, Report, RetryPolicy, Settlement, Shutdown, Worker,
};

use crate::support::{
    Dice, Feed, Flaky, Inside, Leftovers, Recording, SlowToSettle, job_with, number, panics, patience,
    registry_of,
};

/// What one attempt does, after a time.
#[derive(Clone, Copy, Debug)]
enum Act {
    Finish,
    Fail,
    Reject,
    Snooze,
    Panic,
    /// Never ends by itself, and ends when it is told to.
    Wait,
    /// Never ends, whatever it is told.
    Hang,
}

#[derive(Clone, Debug)]
struct Script {
    /// What each attempt does; the last one for ever.
    acts: Vec<(Act, u64)>,
    children: usize,
}

#[derive(Clone, Debug)]
struct Plan {
    jobs: Vec<Script>,
    max: usize,
    prefetch: usize,
    settle_ms: u64,
    /// Every so many-th call fails.
    flaky: usize,
    /// When the bound is changed, and to what.
    changes: Vec<(u64, usize)>,
    /// When it is stopped; `None`: when all is done.
    stop_at: Option<u64>,
    deadline_ms: u64,
    leased: bool,
    seed: u64,
}

const MAX_ATTEMPTS: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(2);

fn act() -> impl Strategy<Value = (Act, u64)> {
    let acts = prop_oneof![
        6 => Just(Act::Finish),
        3 => Just(Act::Fail),
        1 => Just(Act::Reject),
        1 => Just(Act::Snooze),
        2 => Just(Act::Panic),
        1 => Just(Act::Wait),
        1 => Just(Act::Hang),
    ];
    (acts, prop_oneof![Just(0u64), 0u64..50, 0u64..3000])
}

fn script() -> impl Strategy<Value = Script> {
    (proptest::collection::vec(act(), 1..4), 0usize..3).prop_map(|(mut acts, children)| {
        // So that every job comes to an end.
        if matches!(acts.last(), Some((Act::Snooze, _))) {
            acts.push((Act::Finish, 0));
        }
        Script { acts, children }
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let jobs = proptest::collection::vec(script(), 0..40);
    let changes = proptest::collection::vec((0u64..2000, 1usize..9), 0..5);
    let stop = proptest::option::of(0u64..5000);
    (
        jobs,
        1usize..7,
        0usize..4,
        0u64..20,
        2usize..9,
        changes,
        stop,
        100u64..8000,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(
            |(jobs, max, prefetch, settle_ms, flaky, changes, stop_at, deadline_ms, leased, seed)| Plan {
                jobs,
                max,
                prefetch,
                settle_ms,
                flaky,
                changes,
                stop_at,
                deadline_ms,
                leased,
                seed,
            },
        )
}

/// What happened, as the handlers saw it.
#[derive(Default)]
struct Seen {
    starts: HashMap<usize, Vec<u32>>,
    children: Inside,
}

fn handler(plan: &Plan, seen: &Arc<Mutex<Seen>>, inside: &Inside) -> tidegate::Registry {
    let (scripts, seen, inside) = (Arc::new(plan.jobs.clone()), seen.clone(), inside.clone());
    registry_of(move |context: Context| {
        let stay = inside.enter();
        let id = usize::try_from(number(&context)).expect("ids are small");
        let (run, children) = {
            let mut seen = seen.lock().expect("no test thread panicked");
            let starts = seen.starts.entry(id).or_default();
            starts.push(context.attempt());
            (starts.len() - 1, seen.children.clone())
        };
        let script = scripts[id].clone();
        let (act, ms) = script.acts[run.min(script.acts.len() - 1)];
        async move {
            let _stay = stay;
            let scope = context.scope(2);
            for _ in 0..script.children {
                let child = children.enter();
                let forever = async move {
                    let _child = child;
                    std::future::pending::<Result<(), std::io::Error>>().await
                };
                let _ = scope.spawn(forever).await;
            }
            tokio::time::sleep(Duration::from_millis(ms)).await;
            match act {
                Act::Finish => Outcome::Done,
                Act::Fail => Outcome::fail("as planned"),
                Act::Reject => Outcome::reject("as planned"),
                Act::Snooze => Outcome::Snooze(Duration::from_millis(7)),
                Act::Panic => {
                    panics("as planned");
                    Outcome::Done
                }
                Act::Wait => {
                    context.cancelled().await;
                    Outcome::fail("told to stop")
                }
                Act::Hang => std::future::pending().await,
            }
        }
    })
}

struct World {
    feed: Arc<Feed>,
    recording: Arc<Recording>,
    inside: Inside,
    seen: Arc<Mutex<Seen>>,
    report: Report,
    greatest: usize,
}

/// Runs the plan; and checks while it runs what must hold at every instant.
async fn run(plan: &Plan, dispatcher: Dispatcher) -> World {
    let feed = if plan.leased { Feed::new().leased(Duration::from_secs(9)) } else { Feed::new() };
    let all = (0..plan.jobs.len()).map(|id| job_with(id, id));
    let feed = feed.with(all).shared();
    let recording = Recording::around(feed.clone());
    let slow = SlowToSettle::by(Duration::from_millis(plan.settle_ms), recording.clone());
    let every = plan.flaky;
    let kinds = [ErrorKind::Unavailable, ErrorKind::Connection, ErrorKind::Internal];
    let flaky = Flaky::around(slow)
        .on_settle(move |call, _| (call % every == 1).then(|| kinds[call % 3]))
        .on_fetch(move |call| (call % every == 0).then(|| kinds[call % 2]))
        .shared();
    let (seen, inside) = (Arc::<Mutex<Seen>>::default(), Inside::default());
    let mut intake = Intake::fixed(flaky);
    if plan.leased {
        intake = intake.renewed_by_fixed(feed.clone());
    }
    let worker = Worker::builder(intake, handler(plan, &seen, &inside))
        .max_concurrent_jobs(plan.max)
        .prefetch(plan.prefetch)
        .job_timeout(TIMEOUT)
        .cancel_grace(Duration::from_millis(100))
        .retry(RetryPolicy::default().initial(Duration::from_millis(20)).max_attempts(MAX_ATTEMPTS))
        .shutdown_deadline(Duration::from_millis(plan.deadline_ms))
        .seed(plan.seed)
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let shutdown = Shutdown::new();
    let mut greatest = plan.max;
    let scenario = async {
        let began = tokio::time::Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let steer = async {
            let mut changes = plan.changes.clone();
            changes.sort_unstable();
            for (ms, max) in changes {
                tokio::time::sleep_until(at(ms)).await;
                greatest = greatest.max(max);
                handle.set_max_concurrent_jobs(max).expect("it is in the range");
            }
        };
        let stop = async {
            match plan.stop_at {
                Some(ms) => tokio::time::sleep_until(at(ms)).await,
                None => feed.drained().await,
            }
            shutdown.stop();
        };
        let watch = async {
            while handle.stats().state != tidegate::State::Ended {
                assert_books(&handle.stats());
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        let ((), (), ()) = tokio::join!(steer, stop, watch);
    };
    let both = async { tokio::join!(worker.run(shutdown.clone()), scenario) };
    let (report, ()) = tokio::time::timeout(patience(), both).await.expect("it ends");
    World { feed, recording, inside, seen, report, greatest }
}

fn assert_books(stats: &tidegate::Stats) {
    let ended = stats.done
        + stats.retried
        + stats.rejected
        + stats.snoozed
        + stats.released
        + stats.lost
        + stats.stale;
    assert_eq!(stats.fetched, ended + stats.in_flight, "S11: {stats:?}");
    assert!(stats.running <= stats.in_flight, "{stats:?}");
}

fn check(plan: &Plan, world: &World, slack: Duration) {
    let World { feed, recording, inside, seen, report, greatest } = world;
    let stats = &report.stats;
    let count = plan.jobs.len();

    // S1, S5: every job is in exactly one place.
    let (done, dead, waiting) = (feed.done(), feed.dead(), feed.waiting());
    let mut places: Vec<String> = done.iter().map(ToString::to_string).collect();
    places.extend(dead.iter().map(|dead| dead.job.id.to_string()));
    places.extend(waiting.iter().map(|(id, _)| id.to_string()));
    let held: Vec<String> = report.held.iter().map(|view| view.id.to_string()).collect();
    assert_eq!(places.len() + feed.out(), count, "S1: {report}");
    let mut once = places.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), places.len(), "S5: a job is in two places");
    assert!(
        feed.out() <= held.len() && held.len() as u64 <= stats.lost,
        "what is left out there is reported"
    );

    // S2, S3: what ran was enqueued, and each run has a cause: a hand-over of its own.
    let seen = seen.lock().expect("no test thread panicked");
    assert_eq!(seen.starts.values().map(Vec::len).sum::<usize>() as u64, stats.started);
    for (id, starts) in &seen.starts {
        assert!(*id < count);
        let id = id.to_string();
        let deliveries =
            recording.delivered().iter().filter(|(delivered, _)| delivered.as_str() == id).count();
        assert!(
            starts.len() <= deliveries,
            "S3: job {id} ran {} times in {deliveries} hand-overs",
            starts.len()
        );
        // S6: no attempt is counted twice, and none beyond the limit is run.
        assert!(
            starts.windows(2).all(|pair| pair[0] <= pair[1]) && starts.iter().all(|run| *run <= MAX_ATTEMPTS)
        );
        // Each settlement that gives a job back is the cause of at most one further hand-over.
        let back = recording.told_of(&id).iter().filter(|told| gives_back(told.settlement)).count();
        assert!(deliveries <= 1 + back + feed.expired(), "S3: job {id}");
    }

    // S7: the bound.
    assert!(recording.most_held() <= greatest + plan.prefetch, "S7: {} held", recording.most_held());
    assert!(inside.most() <= *greatest, "S7: {} ran", inside.most());

    // S8: acknowledged is what finished.
    for told in recording.told().iter().filter(|told| told.settlement == Settlement::Ack) {
        let id: usize = told.id.as_str().parse().expect("ids are numbers");
        let acts = &plan.jobs[id].acts;
        let run = seen.starts[&id].len() - 1;
        assert!(matches!(acts[run.min(acts.len() - 1)].0, Act::Finish), "S8: job {id}");
    }

    // S9, S10, S11: nothing runs any more, and the books are closed.
    assert_eq!((inside.now(), seen.children.now()), (0, 0), "S10");
    assert_books(stats);
    assert_eq!((stats.in_flight, stats.running, stats.stale), (0, 0, 0));
    let limit = Duration::from_millis(plan.deadline_ms) + slack;
    assert!(report.stopping_took <= limit, "P7: {:?}", report.stopping_took);
    if plan.stop_at.is_none() {
        assert_eq!((done.len() + dead.len(), held.len()), (count, 0), "S1: all are done or dead");
        for dead in &dead {
            assert!(dead.reason.is_some(), "P10: the reason is kept");
        }
    }
}

fn gives_back(settlement: Settlement) -> bool {
    matches!(settlement, Settlement::Retry { .. } | Settlement::Release { .. })
}

fn run_plan(plan: &Plan) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let left = Leftovers::before();
        let world = run(plan, Dispatcher::Shared).await;
        check(plan, &world, Duration::from_millis(10));
        left.none().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_ends_with_every_job_accounted_for(plan in plan()) {
        run_plan(&plan);
    }
}

/// One long plan with everything in it, to be sure that the short ones leave nothing untried.
#[test]
fn a_long_plan_with_everything_in_it_ends_with_every_job_accounted_for() {
    let mut dice = Dice(99);
    let acts = [Act::Finish, Act::Fail, Act::Reject, Act::Snooze, Act::Panic, Act::Wait, Act::Hang];
    let mut script = |_: usize| {
        let mut acts: Vec<(Act, u64)> =
            (0..3).map(|_| (acts[usize::try_from(dice.roll(7)).expect("below 7")], dice.roll(100))).collect();
        acts.push((Act::Finish, 1));
        Script { acts, children: 1 }
    };
    let plan = Plan {
        jobs: (0..600).map(&mut script).collect(),
        max: 20,
        prefetch: 5,
        settle_ms: 5,
        flaky: 7,
        changes: vec![(100, 3), (1000, 30), (3000, 1), (3500, 12)],
        stop_at: None,
        deadline_ms: 25_000,
        leased: true,
        seed: 3,
    };
    run_plan(&plan);
}

/// The same on real threads, with times that a real clock can stand: where the order of things is not ours.
async fn run_on_threads(plan: &Plan) {
    let left = Leftovers::before();
    let world = run(plan, Dispatcher::OwnThread).await;
    check(plan, &world, Duration::from_secs(2));
    left.none().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_plan_on_threads_ends_with_every_job_accounted_for() {
    let acts = [Act::Finish, Act::Finish, Act::Finish, Act::Fail, Act::Reject, Act::Snooze, Act::Panic];
    let mut dice = Dice(5);
    let mut script = |_: usize| {
        let mut acts: Vec<(Act, u64)> =
            (0..2).map(|_| (acts[usize::try_from(dice.roll(7)).expect("below 7")], dice.roll(3))).collect();
        acts.push((Act::Finish, 0));
        Script { acts, children: usize::try_from(dice.roll(2)).expect("below 2") }
    };
    let plan = Plan {
        jobs: (0..1000).map(&mut script).collect(),
        max: 12,
        prefetch: 4,
        settle_ms: 1,
        flaky: 23,
        changes: vec![(20, 2), (60, 20), (120, 7)],
        stop_at: None,
        deadline_ms: 10_000,
        leased: true,
        seed: 3,
    };
    run_on_threads(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_on_threads_that_are_stopped_anywhere_lose_nothing() {
    let acts = [Act::Finish, Act::Finish, Act::Fail, Act::Snooze, Act::Panic, Act::Wait, Act::Hang];
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let mut script = |_: usize| {
            let act = acts[usize::try_from(dice.roll(7)).expect("below 7")];
            Script {
                acts: vec![(act, dice.roll(4))],
                children: usize::try_from(dice.roll(2)).expect("below 2"),
            }
        };
        let plan = Plan {
            jobs: (0..200).map(&mut script).collect(),
            max: 6,
            prefetch: 3,
            settle_ms: 1,
            flaky: 11,
            changes: vec![(5, 3), (10, 9)],
            stop_at: Some(dice.roll(30)),
            deadline_ms: 300,
            leased: seed % 2 == 0,
            seed,
        };
        run_on_threads(&plan).await;
    }
}
