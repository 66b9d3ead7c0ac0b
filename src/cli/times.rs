//! Moments as people and programs write them; local time is the system's.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// What the system's clock shows.
#[expect(clippy::disallowed_methods, reason = "the edge: what is shown is as old as it is now")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

/// A moment from its text: RFC 3339, or local time with or without seconds.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    moment_in(text, &TimeZone::system())
}

fn moment_in(text: &str, zone: &TimeZone) -> Result<SystemTime, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment.into());
    }
    // Of a time that a change of the clocks leaves out, the one as much later; of one that comes twice, the first.
    let local = text.parse::<DateTime>().ok().and_then(|time| time.to_zoned(zone.clone()).ok());
    local.map(|local| local.timestamp().into()).ok_or_else(|| {
        "write a moment as in RFC 3339, such as 2030-01-31T14:05:00Z, or in local time, such as \
         '2030-01-31 14:05'"
            .to_owned()
    })
}

/// `2030-01-31 14:05:06 +01:00`: local time for people.
pub(super) fn local(moment: SystemTime) -> String {
    local_in(moment, TimeZone::system())
}

fn local_in(moment: SystemTime, zone: TimeZone) -> String {
    timestamp(moment).to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// `2030-01-31T13:05:06.123Z`: RFC 3339 for programs.
pub(super) fn utc(moment: SystemTime) -> String {
    timestamp(moment).to_string()
}

/// How long ago `moment` was; nothing if it is still to come.
pub(super) fn since(moment: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(moment).unwrap_or_default()
}

/// Ten thousand years from now is as good as ever.
fn timestamp(moment: SystemTime) -> Timestamp {
    let beyond = if moment > SystemTime::UNIX_EPOCH { Timestamp::MAX } else { Timestamp::MIN };
    Timestamp::try_from(moment).unwrap_or(beyond)
}

#[cfg(test)]
mod tests {
    use jiff::tz::{Offset, offset};

    use super::*;

    fn seconds(text: &str, zone: Offset) -> Result<u64, String> {
        let moment = moment_in(text, &zone.to_time_zone())?;
        Ok(moment.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs())
    }

    #[test]
    fn a_moment_is_read_in_local_time_unless_it_says_otherwise() {
        let noon = 1_769_774_400; // 2026-01-30T12:00:00Z
        for text in ["2026-01-30T12:00:00Z", "2026-01-30T13:00:00+01:00", "2026-01-30 07:00:00-05:00"] {
            assert_eq!(seconds(text, offset(9)), Ok(noon), "{text}");
        }
        for text in ["2026-01-30 21:00", "2026-01-30T21:00", "2026-01-30 21:00:00"] {
            assert_eq!(seconds(text, offset(9)), Ok(noon), "{text}");
        }
        assert_eq!(seconds("2026-01-30", offset(0)), Ok(noon - 12 * 3600), "a day begins at midnight");
        for text in [
            "",
            "tomorrow",
            "12:00",
            "2026-13-01 00:00",
            "2026-02-30 00:00",
            "1769774400",
            "2026-01-30 25:00",
        ] {
            let error = seconds(text, offset(0)).expect_err(text);
            assert!(error.contains("RFC 3339") && error.contains("local time"), "{error}");
        }
    }

    #[test]
    fn a_moment_is_written_for_people_and_for_programs() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_774_400_250);
        assert_eq!(local_in(moment, offset(-5).to_time_zone()), "2026-01-30 07:00:00 -05:00");
        assert_eq!(utc(moment), "2026-01-30T12:00:00.25Z");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert!(local_in(far, TimeZone::UTC).starts_with("9999-"), "{}", utc(far));
        assert_eq!(since(far, moment), Duration::ZERO);
    }
}
