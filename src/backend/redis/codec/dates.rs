//! Dates as text, in the entries of Resque's failed jobs.
//!
//! Resque writes `2026/11/21 08:04:45 UTC`, with the name of the zone that its machine is in (its version 2 leaves that
//! away in `retried_at`); node-resque writes as JavaScript does, `Sat Nov 21 2026 08:04:45 GMT+0100 (…)`. Both are
//! read, and so is ISO 8601. We write the first, in UTC. A zone that is neither UTC, GMT nor a number of hours is
//! taken for UTC, and so is a missing one: names of zones mean nothing without a table of them. The time is then off by
//! hours, and it is for people only.

use std::time::{Duration, SystemTime};

use super::times::LAST_SECOND;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const DAY: u64 = 86_400;

/// `moment` as Resque writes it, in UTC. Before the epoch it is the epoch.
pub(super) fn write(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().min(LAST_SECOND);
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The same as ISO 8601, as Resque has heartbeats.
pub(crate) fn iso(moment: SystemTime) -> String {
    write(moment).replace('/', "-").replace(" UTC", "Z").replace(' ', "T")
}

/// The same as Ruby shows a time, as Resque has the starts of workers.
pub(crate) fn ruby(moment: SystemTime) -> String {
    write(moment).replace('/', "-").replace(" UTC", " +0000")
}

/// The moment that `text` says, if it is a date between the years 1970 and 9999 in one of the forms.
pub(super) fn read(text: &str) -> Option<SystemTime> {
    let text = text.trim_ascii();
    let (days, rest) = if text.starts_with(|first: char| first.is_ascii_digit()) {
        let (date, rest) = text.split_at_checked(10)?;
        let mut parts = date.split(['/', '-']);
        let mut part = || number(parts.next()?);
        let (year, month, day) = (part()?, part()?, part()?);
        (days(year, month, day)?, rest.strip_prefix([' ', 'T'])?)
    } else {
        // The name of the day says nothing that the date does not.
        let mut parts = text.splitn(5, ' ').skip(1);
        let name = parts.next()?;
        let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
        let day = number(parts.next()?)?;
        let year = number(parts.next()?)?;
        (days(year, month, day)?, parts.next()?)
    };
    let (time, zone) = rest.split_at_checked(8)?;
    let mut parts = time.split(':');
    let mut part = |limit: u64| number(parts.next()?).filter(|part| *part < limit);
    // A leap second is the next one's first.
    let (hour, minute, second) = (part(24)?, part(60)?, part(61)?);
    let local = days * DAY + hour * 3600 + minute * 60 + second;
    let seconds = local.checked_add_signed(-east(zone))?;
    if seconds > LAST_SECOND { None } else { Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)) }
}

/// How many seconds a zone is ahead of UTC: 0 for what is not known.
fn east(zone: &str) -> i64 {
    // A fraction of a second may stand before it, in ISO 8601.
    let zone = zone.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit()).trim_ascii_start();
    let zone = zone.strip_prefix("GMT").or_else(|| zone.strip_prefix("UTC")).unwrap_or(zone);
    let sign = match zone.as_bytes().first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return 0,
    };
    let digits: String = zone[1..].chars().filter(|c| *c != ':').take(4).collect();
    let Some(offset) = number(&digits).filter(|offset| digits.len() == 4 && *offset < 2400) else { return 0 };
    sign * (offset / 100 * 3600 + offset % 100 * 60) as i64
}

/// A number of digits only.
fn number(text: &str) -> Option<u64> {
    if text.len() > 4 || !text.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// How many days after the epoch a date is. The years are reckoned from March, so that a leap day is a year's last.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let years = if month > 2 { year } else { year - 1 };
    let before = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    // 719,468 days are between the first of March of the year 0 and the epoch.
    let days = years * 365 + years / 4 - years / 100 + years / 400 + before - 719_468;
    // A day that the month does not have comes back as another.
    (date(days) == (year, month, day)).then_some(days)
}

/// The date so many days after the epoch: year, month and day.
pub(in super::super) fn date(days: u64) -> (u64, u64, u64) {
    // In eras of 400 years, each of 146,097 days.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<u64> {
        read(text).map(|moment| moment.duration_since(SystemTime::UNIX_EPOCH).expect("after it").as_secs())
    }

    #[test]
    fn the_forms_of_all_three_are_read() {
        for text in [
            "2026/11/21 08:04:45 UTC",
            "2026/11/21 08:04:45 GMT",
            "2026/11/21 08:04:45",
            "2026/11/21 03:04:45 -0500",
            "2026-11-21T08:04:45Z",
            "2026-11-21T08:04:45.123Z",
            "2026-11-21 09:04:45+01:00",
            "Sat Nov 21 2026 09:04:45 GMT+0100 (Central European Standard Time)",
            "Sat Nov 21 2026 08:04:45 GMT+0000 (Coordinated Universal Time)",
        ] {
            assert_eq!(seconds(text), Some(1_795_248_285), "{text}");
        }
    }

    #[test]
    fn a_zone_that_only_a_table_knows_is_taken_for_utc() {
        assert_eq!(seconds("2026/11/21 08:04:45 CET"), Some(1_795_248_285));
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            " ",
            "2026",
            "2026/11/21",
            "2026/02/30 00:00:00",
            "2026/13/01 00:00:00",
            "1969/12/31 23:59:59",
            "2026/11/21 24:00:00",
            "2026/11/21 08-04-45",
            "99999/1/1 00:00:00",
            "1970/01/01 00:00:00 +0100",
            "9999/12/31 23:59:59 -0100",
            "Sat Nox 21 2026 08:04:45",
            "Sat Nov 21",
            "é026/11/21 08:04:45",
            "2026/11/2é 08:04:45",
            "2026/11/21 08:04:4é",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_is_written_as_it_is_read() {
        let last = LAST_SECOND / DAY;
        for day in (0..40_000).chain((40_000..last).step_by(97)).chain([last]) {
            let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY + day % DAY);
            let text = write(moment);
            assert_eq!(read(&text), Some(moment), "{text}");
        }
        assert_eq!(write(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970/01/01 00:00:00 UTC");
        assert_eq!(
            write(SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400)),
            "2000/02/29 00:00:00 UTC"
        );
    }
}
