//! Values on the command line: times and sizes, each with its range. Pure.

use std::time::Duration;

/// Units of time, the longest name first where one begins with another.
const TIMES: &[(&str, f64)] = &[("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

/// Units of size. Those of a thousand and those of 1,024 are told apart, as everywhere else.
const SIZES: &[(&str, f64)] = &[
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("B", 1.0),
];

/// The longest time that may be given. More than that is no limit at all: leave the option out.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// The largest size that may be given.
const LARGEST: usize = 1 << 30;

/// A time from 0.
pub(crate) fn time_or_none(text: &str) -> Result<Duration, String> {
    let seconds =
        number(text, TIMES, 1.0).ok_or("write a number and ms, s, m, h or d, such as 500ms, 1.5s or 2m")?;
    if seconds > LONGEST.as_secs_f64() {
        return Err("it must be at most 366d".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time that is not 0.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let time = time_or_none(text)?;
    if time < Duration::from_millis(1) { Err("it must be at least 1ms".to_owned()) } else { Ok(time) }
}

/// A number of bytes from 0 to 1 GiB.
pub(crate) fn size_or_none(text: &str) -> Result<usize, String> {
    let bytes =
        number(text, SIZES, 1.0).ok_or("write a number and B, KiB, MiB, kB or MB, such as 64KiB or 1MiB")?;
    if bytes > LARGEST as f64 {
        return Err("it must be at most 1GiB".to_owned());
    }
    Ok(bytes as usize)
}

/// A number of bytes from 1 to 1 GiB.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let bytes = size_or_none(text)?;
    if bytes == 0 { Err("it must be at least 1B".to_owned()) } else { Ok(bytes) }
}

/// `1.5s` with its unit's worth; a bare number has the worth `bare`.
fn number(text: &str, units: &[(&str, f64)], bare: f64) -> Option<f64> {
    let unit = units.iter().find(|(name, _)| text.ends_with(name));
    let (digits, worth) =
        unit.map_or((text, bare), |(name, worth)| (&text[..text.len() - name.len()], *worth));
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { digits.parse().ok().map(|number: f64| number * worth) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("1.5s", 1500),
            ("2", 2000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("0", 0),
        ] {
            assert_eq!(time_or_none(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "1 s", "1x", "1e3", "inf", "NaN", "400d", "1.2.3", "+1", "ten"] {
            assert!(time_or_none(text).is_err(), "{text}");
        }
        assert_eq!(time("0"), Err("it must be at least 1ms".to_owned()));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in
            [("0", 0), ("7B", 7), ("64KiB", 65_536), ("1.5MiB", 1_572_864), ("2kB", 2000), ("1GiB", 1 << 30)]
        {
            assert_eq!(size_or_none(text), Ok(bytes), "{text}");
        }
        for text in ["", "1K", "1M", "-1", "2GiB", "0x10", "1 MiB"] {
            assert!(size_or_none(text).is_err(), "{text}");
        }
        assert_eq!(size("0"), Err("it must be at least 1B".to_owned()));
    }
}
