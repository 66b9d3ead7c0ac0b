//! Times and numbers in payloads.
//!
//! Sidekiq 8 writes whole milliseconds since the epoch, Sidekiq 7 and before seconds with a fraction. Which it is shows
//! only in the form of the number: with a point or an exponent it is seconds.

use std::time::{Duration, SystemTime};

use super::json::Value;

/// How times are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Times {
    /// Whole milliseconds: Sidekiq 8.
    #[default]
    Millis,
    /// Seconds with a fraction: Sidekiq 7 and before.
    Seconds,
}

/// The last moment that is believed, the end of the year 9999. What claims to be later is taken for no time at all, so
/// that nobody who reckons with it comes to the end of what the clock's own type can hold.
pub(super) const LAST_SECOND: u64 = 253_402_300_799;

impl Times {
    /// `moment` as a number; before the epoch it is 0.
    pub(super) fn write(self, moment: SystemTime) -> String {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match self {
            Self::Millis => since.as_millis().to_string(),
            Self::Seconds => {
                let micros = format!("{:06}", since.subsec_micros());
                let fraction = micros.trim_end_matches('0');
                // Always with a point: without, it would be milliseconds.
                format!("{}.{}", since.as_secs(), if fraction.is_empty() { "0" } else { fraction })
            }
        }
    }

    /// How the first of `values` that is a number has it; `None` if none is.
    pub(super) fn of<'a>(values: impl IntoIterator<Item = Option<Value<'a>>>) -> Option<Self> {
        let mut numbers = values.into_iter().flatten().filter_map(Value::number);
        numbers.next().map(|number| if number.is_whole() { Self::Millis } else { Self::Seconds })
    }
}

/// A number, told apart by its form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// Digits only. What does not fit is the least or the greatest that does.
    Whole(i64),
    /// With a point or an exponent; infinite if it does not fit.
    Fraction(f64),
}

impl Number {
    fn is_whole(self) -> bool {
        matches!(self, Self::Whole(_))
    }
}

impl Value<'_> {
    /// The number, if it is one.
    pub(super) fn number(self) -> Option<Number> {
        let first = self.0.first()?;
        if !(first.is_ascii_digit() || *first == b'-') {
            return None;
        }
        let text = std::str::from_utf8(self.0).ok()?;
        if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
            return text.parse().ok().map(Number::Fraction);
        }
        let limit = if *first == b'-' { i64::MIN } else { i64::MAX };
        Some(Number::Whole(text.parse().unwrap_or(limit)))
    }

    /// The moment, if it is one that can be believed: not before the epoch and not after [`LAST_SECOND`].
    pub(super) fn moment(self) -> Option<SystemTime> {
        let since = match self.number()? {
            Number::Whole(millis) => Duration::from_millis(u64::try_from(millis).ok()?),
            Number::Fraction(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        };
        if since.as_secs() > LAST_SECOND { None } else { SystemTime::UNIX_EPOCH.checked_add(since) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> Option<Duration> {
        let moment = Value(text.as_bytes()).moment();
        moment.map(|moment| moment.duration_since(SystemTime::UNIX_EPOCH).expect("not before the epoch"))
    }

    #[test]
    fn whole_numbers_are_milliseconds_and_others_seconds() {
        assert_eq!(moment("1763721885123"), Some(Duration::from_millis(1_763_721_885_123)));
        assert_eq!(moment("1763721885.5"), Some(Duration::from_millis(1_763_721_885_500)));
        assert_eq!(moment("17637218855e-1"), Some(Duration::from_millis(1_763_721_885_500)));
        assert_eq!(moment("0"), Some(Duration::ZERO));
        assert_eq!(moment("-0.0"), Some(Duration::ZERO));
    }

    #[test]
    fn what_no_clock_shows_is_no_time() {
        let huge = "9".repeat(400);
        for text in [
            "-1",
            "-0.5",
            "1e999",
            "-1e999",
            "1e300",
            "253402300800.0",
            "253402300800000",
            &huge,
            "null",
            "\"1\"",
        ] {
            assert_eq!(moment(text), None, "{text}");
        }
        assert!(moment("253402300799999").is_some());
    }

    #[test]
    fn a_time_is_read_as_it_was_written() {
        for micros in [0, 1, 999_999, 1_763_721_885_120_000, 1_763_721_885_000_000, 1_763_721_885_123_456] {
            let since = Duration::from_micros(micros);
            let seconds = Times::Seconds.write(SystemTime::UNIX_EPOCH + since);
            assert!(seconds.contains('.'), "{seconds}");
            let read = moment(&seconds).expect("it is a time");
            assert!(read.abs_diff(since) < Duration::from_micros(1), "{seconds}");
            let millis = Times::Millis.write(SystemTime::UNIX_EPOCH + since);
            assert_eq!(moment(&millis), Some(Duration::from_millis(micros / 1000)));
        }
        assert_eq!(Times::Millis.write(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "0");
    }
}
