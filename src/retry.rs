//! What a failure costs: [`RetryPolicy`] turns a job's [`Outcome`] into a [`Settlement`].
//!
//! Pure and reproducible: the jitter is a function of the seed, the job's id and the attempt, so that the
//! same failure always waits the same time, and two workers with different seeds never march in step.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use crate::error::Error;
use crate::job::Job;
use crate::outcome::Outcome;
use crate::source::{RetryFormula, Settlement};

/// How often, how soon and for how long a failing job is tried again.
///
/// By default, the wait before attempt *n* + 1 is `initial × factor^(n−1)`, at most `cap`, of which a random part of up
/// to `jitter` is taken off. The defaults (1 s, 2, 1 h, a quarter, 20 attempts) spread a job's attempts over
/// about nine hours: an outage overnight is survived, and a job that can't succeed is in the dead letters
/// the next day.
///
/// [`sidekiq`](Self::sidekiq) is another formula. It is what a worker goes by that was given no policy and takes jobs in
/// Sidekiq's layout.
///
/// ```
/// use std::time::Duration;
/// use tidegate::RetryPolicy;
///
/// let policy = RetryPolicy::default().max_attempts(5).cap(Duration::from_secs(60));
/// assert!(policy.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    formula: RetryFormula,
    initial: Duration,
    factor: f64,
    cap: Duration,
    jitter: f64,
    max_attempts: u32,
    max_age: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            formula: RetryFormula::Exponential,
            initial: Duration::from_secs(1),
            factor: 2.0,
            cap: Duration::from_secs(3600),
            jitter: 0.25,
            max_attempts: 20,
            max_age: None,
        }
    }
}

impl RetryPolicy {
    /// One attempt and no more: a failure goes to the dead letters at once.
    pub fn never() -> Self {
        Self::default().max_attempts(1)
    }

    /// As Sidekiq 8 retries (`sidekiq/sidekiq`, `lib/sidekiq/job_retry.rb`): with *n* failures before this one, the wait is
    /// *n*⁴ + 15 s, and a whole number of seconds below 10 × (*n* + 1) that chance adds. (Sidekiq 7 adds about the same,
    /// in steps of *n* + 1 seconds.) 26 attempts in all, which is 25 retries, spread over about three weeks.
    ///
    /// A job's own `retry` and `retry_for` go before this, as a job's own number of attempts always does.
    ///
    /// [`cap`](Self::cap), [`max_attempts`](Self::max_attempts) and [`max_age`](Self::max_age) may be set, and there is no
    /// cap by default. [`initial`](Self::initial), [`factor`](Self::factor) and [`jitter`](Self::jitter) have no place in
    /// this formula: set to anything but their default they are refused by [`validate`](Self::validate).
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tidegate::{Job, JobId, Kind, RetryPolicy};
    ///
    /// let job = Job::new(JobId::new("1"), Kind::new("HardJob"), "[]".into(), SystemTime::now());
    /// let wait = RetryPolicy::sidekiq().wait(&job, 3, 7);
    /// let least = Duration::from_secs(2u64.pow(4) + 15);
    /// assert!(wait >= least && wait < least + Duration::from_secs(30));
    /// ```
    pub fn sidekiq() -> Self {
        let (formula, cap) = (RetryFormula::Sidekiq, Duration::MAX);
        Self { formula, cap, max_attempts: 1 + SIDEKIQ_RETRIES, ..Self::default() }
    }

    /// The wait after the first failure. Default 1 s.
    #[must_use]
    pub fn initial(mut self, wait: Duration) -> Self {
        self.initial = wait;
        self
    }

    /// By what the wait grows with each failure; from 1 (constant) to 100. Default 2.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// The longest wait. Default one hour; with Sidekiq's formula none.
    #[must_use]
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// The greatest part of a wait that chance may take off, from 0 (none) to 1. Default 0.25.
    #[must_use]
    pub fn jitter(mut self, part: f64) -> Self {
        self.jitter = part;
        self
    }

    /// How many attempts a job has in all, from 1; a job that carries its own number keeps it. Default
    /// 20; with Sidekiq's formula 26.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Give a failing job up when it was enqueued longer ago than this. Default: no limit.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// How many attempts a job has that brings no number of its own.
    pub(crate) fn attempts(&self) -> u32 {
        self.max_attempts
    }

    /// Checks the ranges given at each setting.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its value and its range.
    pub fn validate(&self) -> Result<(), Error> {
        if !(1.0..=100.0).contains(&self.factor) {
            return Err(Error::invalid(format!("retry factor is {}: it must be from 1 to 100", self.factor)));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(Error::invalid(format!("retry jitter is {}: it must be from 0 to 1", self.jitter)));
        }
        if self.max_attempts == 0 {
            return Err(Error::invalid("retry max_attempts is 0: it must be at least 1 (1 means no retry)"));
        }
        if self.formula == RetryFormula::Sidekiq {
            return self.validate_sidekiq();
        }
        if self.initial > self.cap {
            return Err(Error::invalid(format!(
                "retry initial wait {:?} is longer than its cap {:?}",
                self.initial, self.cap
            )));
        }
        Ok(())
    }

    /// What says how exponential waits grow is not to stand there in vain.
    fn validate_sidekiq(&self) -> Result<(), Error> {
        let usual = Self::default();
        let set = [
            ("initial", self.initial != usual.initial),
            ("factor", self.factor != usual.factor),
            ("jitter", self.jitter != usual.jitter),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(Error::invalid(format!(
                "retry {name} is set, and has no meaning in Sidekiq's formula: leave it out, or take exponential waits"
            ))),
            None => Ok(()),
        }
    }

    /// How long to wait after the failure of `attempt` (from 1), under `seed`.
    pub fn wait(&self, job: &Job, attempt: u32, seed: u64) -> Duration {
        let chance = unit_random((seed, &job.id, attempt));
        match self.formula {
            RetryFormula::Exponential => {
                less_jitter(backoff(self.initial, self.factor, self.cap, attempt), self.jitter, chance)
            }
            RetryFormula::Sidekiq => sidekiq(attempt, chance).min(self.cap),
        }
    }

    /// What becomes of `job` after its `attempt`-th run ended in `outcome`, `age` after it was enqueued.
    pub fn settle(&self, job: &Job, attempt: u32, age: Duration, outcome: &Outcome, seed: u64) -> Settlement {
        match outcome {
            Outcome::Done => Settlement::Ack,
            Outcome::Reject(_) => Settlement::Reject,
            Outcome::Snooze(wait) => Settlement::Release { after: *wait },
            Outcome::Fail { after, .. } => {
                let attempts = job.max_attempts.unwrap_or(self.max_attempts);
                if attempt >= attempts || self.max_age.is_some_and(|limit| age >= limit) {
                    return Settlement::Reject;
                }
                let after = after.unwrap_or_else(|| self.wait(job, attempt, seed));
                Settlement::Retry { after }
            }
        }
    }
}

impl From<RetryFormula> for RetryPolicy {
    /// The policy of that formula, with its defaults.
    fn from(formula: RetryFormula) -> Self {
        match formula {
            RetryFormula::Exponential => Self::default(),
            RetryFormula::Sidekiq => Self::sidekiq(),
        }
    }
}

/// How often Sidekiq retries a job that does not say it.
const SIDEKIQ_RETRIES: u32 = 25;

/// Sidekiq's wait after the failure of `attempt` (from 1), by a `random` from 0 to just under 1; never overflows. What
/// Sidekiq calls the count is 0 at the first failure.
fn sidekiq(attempt: u32, random: f64) -> Duration {
    let count = u64::from(attempt.saturating_sub(1));
    let jitter = (random * (10 * (count + 1)) as f64) as u64;
    Duration::from_secs(count.saturating_pow(4).saturating_add(15).saturating_add(jitter))
}

/// `initial × factor^(step − 1)`, at most `cap`; never overflows.
pub(crate) fn backoff(initial: Duration, factor: f64, cap: Duration, step: u32) -> Duration {
    if initial.is_zero() {
        return Duration::ZERO; // nought times an endless factor is still no wait
    }
    let power = factor.powi(step.saturating_sub(1).min(1 << 20) as i32);
    let seconds = initial.as_secs_f64() * power;
    if seconds.is_finite() && seconds < cap.as_secs_f64() {
        Duration::from_secs_f64(seconds).min(cap)
    } else {
        cap
    }
}

/// `whole` with a part of up to `jitter` taken off, as `random` (from 0 to 1) says.
pub(crate) fn less_jitter(whole: Duration, jitter: f64, random: f64) -> Duration {
    let part = 1.0 - jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
    // The longest duration can't be multiplied even by one without rounding up past the longest.
    Duration::try_from_secs_f64(whole.as_secs_f64() * part).unwrap_or(whole).min(whole)
}

/// A number from 0 (included) to 1 (excluded) that is a fixed function of `key`.
pub(crate) fn unit_random(key: impl Hash) -> f64 {
    let mut hasher = Fnv::default();
    key.hash(&mut hasher);
    (splitmix(hasher.finish()) >> 11) as f64 / (1u64 << 53) as f64
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): spreads every input bit over the output.
pub(crate) fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, whose result, unlike the standard library's hasher's, is the same in every build and release. Made
/// from what another has [finished](Hasher::finish) with, it goes on from there.
#[derive(Debug)]
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
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
        let waits: Vec<u64> =
            (1..20).map(|attempt| policy.wait(&job("a", None), attempt, 0).as_secs()).collect();
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
            let jitters: Vec<u64> = (0..20_000)
                .map(|seed| policy.wait(&job("a", None), count + 1, seed).as_secs() - least)
                .collect();
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
}
