use std::time::SystemTime;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::job::{JobId, Kind};

fn job(id: &str, max_attempts: Option<u32>) -> Job {
    let mut job = Job::new(JobId::new(id), Kind::new("work"), Bytes::new(), SystemTime::UNIX_EPOCH);
    job.max_attempts = max_attempts;
    job
}

/// A time of up to about a year, in which short ones are as likely as long ones.
fn time() -> impl Strategy<Value = Duration> {
    (0u32..55, any::<u64>()).prop_map(|(bits, nanos)| Duration::from_nanos(nanos % (1 << bits)))
}

fn policy() -> impl Strategy<Value = RetryPolicy> {
    (time(), time(), part(1.0, 100.0), part(0.0, 1.0), 1u32.., proptest::option::of(time())).prop_map(
        |(one, other, factor, jitter, max_attempts, max_age)| RetryPolicy {
            formula: RetryFormula::Exponential,
            initial: one.min(other),
            factor,
            cap: one.max(other),
            jitter,
            max_attempts,
            max_age,
        },
    )
}

/// Anything from `least` to `most`; each of them often.
fn part(least: f64, most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(least), 1 => Just(most), 3 => least..=most]
}

fn attempt() -> impl Strategy<Value = u32> {
    prop_oneof![1u32..20, 1u32..3000, 1u32.., Just(u32::MAX)]
}

proptest! {
    #[test]
    fn a_wait_lies_within_its_jitter_and_under_the_cap(
        policy in policy(), attempt in attempt(), seed in any::<u64>(), id in "[a-z0-9]{0,30}",
    ) {
        prop_assert!(policy.validate().is_ok());
        let wait = policy.wait(&job(&id, None), attempt, seed);
        let whole = backoff(policy.initial, policy.factor, policy.cap, attempt);
        prop_assert!(policy.initial <= whole && whole <= policy.cap, "{:?} of {:?}", whole, policy);
        prop_assert!(wait <= whole, "{wait:?} is more than {whole:?}");
        let least = whole.as_secs_f64() * (1.0 - policy.jitter);
        prop_assert!(wait.as_secs_f64() >= least - 1e-6, "{wait:?} is less than {least} s");
    }

    #[test]
    fn the_whole_wait_never_shrinks_from_one_attempt_to_the_next(policy in policy(), attempt in attempt()) {
        let whole = |attempt| backoff(policy.initial, policy.factor, policy.cap, attempt);
        prop_assert!(whole(attempt) <= whole(attempt.saturating_add(1)));
    }

    #[test]
    fn the_same_failure_always_waits_the_same_time(
        policy in policy(), attempt in attempt(), seed in any::<u64>(), id in "[a-z0-9]{0,30}",
    ) {
        let again = RetryPolicy { ..policy.clone() };
        prop_assert_eq!(policy.wait(&job(&id, None), attempt, seed), again.wait(&job(&id, Some(3)), attempt, seed));
    }

    #[test]
    fn no_initial_wait_is_no_wait_at_any_attempt(mut policy in policy(), attempt in attempt(), seed in any::<u64>()) {
        policy.initial = Duration::ZERO;
        prop_assert_eq!(policy.wait(&job("a", None), attempt, seed), Duration::ZERO);
    }

    #[test]
    fn no_policy_and_no_attempt_overflows(
        initial in 0u64.., cap in 0u64.., nanos in 0u32..1_000_000_000, mut policy in policy(),
        attempt in any::<u32>(), seed in any::<u64>(),
    ) {
        policy.initial = Duration::new(initial.min(cap), 0);
        policy.cap = Duration::new(initial.max(cap), nanos);
        prop_assert!(policy.wait(&job("a", None), attempt, seed) <= policy.cap);
        policy.cap = Duration::MAX;
        prop_assert!(policy.wait(&job("a", None), attempt, seed) <= Duration::MAX);
    }

    #[test]
    fn a_failure_is_retried_until_its_attempts_or_its_age_are_used_up(
        policy in policy(), attempt in attempt(), own in proptest::option::of(attempt()), age in time(),
        after in proptest::option::of(time()), seed in any::<u64>(),
    ) {
        let job = job("a", own);
        let outcome = Outcome::Fail { error: "no".into(), after };
        let settlement = policy.settle(&job, attempt, age, &outcome, seed);
        let allowed = own.unwrap_or(policy.max_attempts);
        let is_too_old = policy.max_age.is_some_and(|limit| age >= limit);
        if attempt >= allowed || is_too_old {
            prop_assert_eq!(settlement, Settlement::Reject);
        } else {
            let after = after.unwrap_or_else(|| policy.wait(&job, attempt, seed));
            prop_assert_eq!(settlement, Settlement::Retry { after });
        }
    }

    #[test]
    fn what_is_no_failure_is_settled_as_it_says_whatever_the_attempt_and_the_age(
        policy in policy(), attempt in attempt(), age in time(), snooze in time(), seed in any::<u64>(),
    ) {
        let settle = |outcome: Outcome| policy.settle(&job("a", Some(1)), attempt, age, &outcome, seed);
        prop_assert_eq!(settle(Outcome::Done), Settlement::Ack);
        prop_assert_eq!(settle(Outcome::reject("never")), Settlement::Reject);
        prop_assert_eq!(settle(Outcome::Snooze(snooze)), Settlement::Release { after: snooze });
    }

    #[test]
    fn a_wait_of_sidekiq_lies_within_its_jitter_and_is_always_the_same(
        attempt in attempt(), seed in any::<u64>(), id in "[a-z0-9]{0,30}", cap in time(),
    ) {
        let policy = RetryPolicy::sidekiq();
        let wait = policy.wait(&job(&id, None), attempt, seed);
        prop_assert_eq!(wait, RetryPolicy::sidekiq().wait(&job(&id, Some(3)), attempt, seed));
        let count = u128::from(attempt - 1);
        let least = count.pow(4) + 15;
        let bounds = least.min(u64::MAX.into())..(least + 10 * (count + 1)).min(u128::from(u64::MAX) + 1);
        prop_assert!(bounds.contains(&u128::from(wait.as_secs())), "{wait:?} is not in {bounds:?}");
        prop_assert_eq!(wait.subsec_nanos(), 0);
        prop_assert_eq!(policy.cap(cap).wait(&job(&id, None), attempt, seed), wait.min(cap));
    }

    #[test]
    fn chance_is_from_0_to_just_under_1(key in any::<(u64, u32)>()) {
        prop_assert!((0.0..1.0).contains(&unit_random(key)));
    }
}

#[test]
fn workers_of_different_seeds_and_jobs_of_one_worker_do_not_march_in_step() {
    let policy = RetryPolicy::default().initial(Duration::from_secs(1000)).jitter(1.0);
    let spread = |waits: Vec<Duration>| {
        let mean = waits.iter().map(Duration::as_secs_f64).sum::<f64>() / waits.len() as f64;
        assert!((450.0..550.0).contains(&mean), "the mean is {mean} s");
        let quarters = waits.iter().map(|wait| (wait.as_secs() / 250).min(3)).collect::<Vec<_>>();
        for quarter in 0..4 {
            let share = quarters.iter().filter(|found| **found == quarter).count();
            assert!((200..300).contains(&share), "{share} of 1000 waits lie in quarter {quarter}");
        }
    };
    spread((0..1000).map(|seed| policy.wait(&job("a", None), 1, seed)).collect());
    spread((0..1000).map(|id| policy.wait(&job(&id.to_string(), None), 1, 7)).collect());
}

#[test]
fn the_waits_of_the_default_are_those_that_are_documented() {
    let policy = RetryPolicy::default().jitter(0.0);
    let waits: Vec<u64> = (1..20).map(|attempt| policy.wait(&job("a", None), attempt, 0).as_secs()).collect();
    assert_eq!(waits[..12], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]);
    assert!(waits[12..].iter().all(|wait| *wait == 3600));
    let hours = waits.iter().sum::<u64>() / 3600;
    assert_eq!(hours, 8, "about nine hours less a part of the jitter");
}

#[test]
fn the_waits_of_sidekiq_are_those_of_its_formula() {
    // Of `count` from 0 to 24, what (count ** 4) + 15 is in Ruby.
    const LEAST: [u64; 25] = [
        15, 16, 31, 96, 271, 640, 1311, 2416, 4111, 6576, 10_015, 14_656, 20_751, 28_576, 38_431, 50_640,
        65_551, 83_536, 104_991, 130_336, 160_015, 194_496, 234_271, 279_856, 331_791,
    ];
    let policy = RetryPolicy::sidekiq();
    assert!(policy.validate().is_ok());
    let mut whole = 0;
    for (count, least) in (0..).zip(LEAST) {
        let jitters: Vec<u64> =
            (0..20_000).map(|seed| policy.wait(&job("a", None), count + 1, seed).as_secs() - least).collect();
        // rand(10 * (count + 1)): each whole number of seconds below that.
        let most = 10 * (u64::from(count) + 1);
        let mut seen: Vec<u64> = jitters.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..most).collect::<Vec<_>>(), "count {count}");
        let mean = jitters.iter().sum::<u64>() as f64 / jitters.len() as f64;
        let expected = (most - 1) as f64 / 2.0;
        assert!((mean / expected - 1.0).abs() < 0.05, "the mean for count {count} is {mean}");
        whole += least + most / 2;
        // The 25 retries after the first attempt; the failure of the 26th is the end.
        let fail = Outcome::fail("no");
        let settled = policy.settle(&job("a", None), count + 1, Duration::MAX, &fail, 0);
        assert!(matches!(settled, Settlement::Retry { .. }), "{settled:?} after count {count}");
    }
    assert_eq!(
        policy.settle(&job("a", None), 26, Duration::ZERO, &Outcome::fail("no"), 0),
        Settlement::Reject
    );
    assert_eq!(whole / 86_400, 20, "about three weeks");
}

#[test]
fn what_is_set_for_exponential_waits_is_refused_with_sidekiqs() {
    let second = Duration::from_secs(1);
    for (name, policy) in [
        ("initial", RetryPolicy::sidekiq().initial(2 * second)),
        ("factor", RetryPolicy::sidekiq().factor(3.0)),
        ("jitter", RetryPolicy::sidekiq().jitter(0.0)),
    ] {
        let error = policy.validate().expect_err(name);
        assert!(error.is_invalid_input() && error.to_string().contains(name), "{error}");
    }
    let policy = RetryPolicy::sidekiq().cap(second).max_attempts(3).max_age(second);
    assert!(policy.validate().is_ok());
    assert_eq!(policy.wait(&job("a", None), 9, 0), second);
}

#[test]
fn a_jitter_is_the_same_in_every_build() {
    // A change of these numbers makes workers of two releases wait differently for the same failure.
    assert_eq!(splitmix(0), 0xe220_a839_7b1d_cdaf);
    let mut hasher = Fnv::default();
    hasher.write(b"foobar");
    assert_eq!(hasher.finish(), 0x8594_4171_f739_67e8);
}

#[test]
fn settings_out_of_range_are_refused_by_name_and_value() {
    let refuse = |policy: RetryPolicy| policy.validate().expect_err("it makes no sense").to_string();
    assert!(refuse(RetryPolicy::default().factor(0.99)).contains("factor is 0.99"));
    assert!(refuse(RetryPolicy::default().factor(f64::INFINITY)).contains("factor"));
    assert!(refuse(RetryPolicy::default().factor(f64::NAN)).contains("factor"));
    assert!(refuse(RetryPolicy::default().jitter(-0.1)).contains("jitter is -0.1"));
    assert!(refuse(RetryPolicy::default().jitter(f64::NAN)).contains("jitter"));
    assert!(refuse(RetryPolicy::default().max_attempts(0)).contains("max_attempts is 0"));
    assert!(refuse(RetryPolicy::default().initial(Duration::from_secs(7200))).contains("7200s"));
}
