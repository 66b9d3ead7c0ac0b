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
mod tests;
