//! A retry policy as it is written.

use std::time::Duration;

use super::problem::Problem;
use super::source::Source;
use super::table::Table;
use crate::error::Chain;
use crate::retry::RetryPolicy;
use crate::source::RetryFormula;

/// What is not set is as in the table above, or as [`RetryPolicy`] has it for the formula; that is the source's unless
/// something else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Retry {
    formula: RetryFormula,
    max_attempts: Option<u32>,
    initial: Option<Duration>,
    factor: Option<f64>,
    cap: Option<Duration>,
    jitter: Option<f64>,
    max_age: Option<Option<Duration>>,
}

impl Retry {
    const FORMULAS: [(&'static str, RetryFormula); 2] =
        [("exponential", RetryFormula::Exponential), ("sidekiq", RetryFormula::Sidekiq)];

    /// What holds when nothing is set.
    pub(super) fn of(source: &Source) -> Self {
        Self { formula: source.retry(), ..Self::default() }
    }

    /// Reads a table over `base`.
    pub(super) fn read(mut table: Table<'_>, base: Self) -> Self {
        let said = table.choice("formula", &Self::FORMULAS);
        let attempts = table.count("max_attempts", 1, u32::MAX.into()).map(|attempts| attempts as u32);
        let (initial, factor) = (table.time_or_zero("initial"), table.number("factor", 1.0, 100.0));
        let (cap, jitter) = (table.time_or_zero("cap"), table.number("jitter", 0.0, 1.0));
        let max_age = table.time_or_word("max_age");
        let growth = ["initial", "factor", "jitter"].map(|key| (key, table.get(key)));
        let grows = growth.iter().any(|(_, node)| node.is_some());
        let formula = said.unwrap_or(if grows { RetryFormula::Exponential } else { base.formula });
        let mut read = Self {
            formula,
            max_attempts: attempts.or(base.max_attempts),
            initial: initial.or(base.initial),
            factor: factor.or(base.factor),
            cap: cap.or(base.cap),
            jitter: jitter.or(base.jitter),
            max_age: max_age.or(base.max_age),
        };
        if formula == RetryFormula::Sidekiq {
            let why =
                "has no meaning with the formula sidekiq: leave it out, or write formula = \"exponential\"";
            for (key, node) in growth.into_iter().filter_map(|(key, node)| Some((key, node?))) {
                table.refuse(key, node, why);
            }
            (read.initial, read.factor, read.jitter) = (None, None, None);
        }
        if let Err(error) = read.policy().validate() {
            let what = format!("{}: {}", table.name("").trim_end_matches('.'), Chain(&error));
            table.reading().note(Problem::new(table.origin(), what));
        }
        table.end();
        read
    }

    pub(crate) fn policy(&self) -> RetryPolicy {
        let mut policy = RetryPolicy::from(self.formula);
        policy = self.max_attempts.map_or(policy.clone(), |attempts| policy.max_attempts(attempts));
        policy = self.initial.map_or(policy.clone(), |wait| policy.initial(wait));
        policy = self.factor.map_or(policy.clone(), |factor| policy.factor(factor));
        policy = self.cap.map_or(policy.clone(), |wait| policy.cap(wait));
        policy = self.jitter.map_or(policy.clone(), |part| policy.jitter(part));
        self.max_age.flatten().map_or(policy.clone(), |age| policy.max_age(age))
    }
}
