//! Bytes and figures as text for people and shells: pure.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cli::excerpt::head;

/// The most characters of a record that are shown to a person: one line of a terminal, with room for what
/// stands before it.
pub(super) const EXCERPT_CHARS: usize = 60;

/// The beginning of a record on one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    head(bytes, EXCERPT_CHARS)
}

/// One word of a command as a POSIX shell reads it; bytes that are not printable text need bash's `$'…'`.
pub(super) fn quote(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_^".contains(byte);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut quoted = "$'".to_owned();
            for byte in word {
                match byte {
                    b'\'' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
                    b' '..=b'~' => quoted.push(char::from(*byte)),
                    _ => {
                        let _ = write!(quoted, "\\x{byte:02x}");
                    }
                }
            }
            quoted.push('\'');
            quoted
        }
    }
}

/// A count with its thousands set apart: `20,000`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time as a person says it: `0.25 s`, `12.3 s`, `4 min 5 s`, `2 h 3 min`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.2} s", time.as_secs_f64()),
        10..100 => format!("{:.1} s", time.as_secs_f64()),
        100..6000 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// For how long something has been so, in a few characters: `12s`, `3m`, `5h`, `40d`.
pub(super) fn age(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// How many a second: one decimal below ten.
pub(super) fn rate(number: u64, time: Duration) -> String {
    let rate = number as f64 / time.as_secs_f64().max(1e-9);
    if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{}/s", count(rate.round() as u64)) }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648, with padding), for bytes that a JSON string can't hold.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().enumerate().fold(0, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for digit in 0..4 {
            let six = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[six as usize]) } else { '=' });
        }
    }
    text
}

/// The bytes that [`base64`] has coded; the padding may be left out. `None` for anything else.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let padding = text.len() - text.trim_end_matches('=').len();
    let digits = &text.as_bytes()[..text.len() - padding];
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for four in digits.chunks(4) {
        let mut bits = 0;
        for (at, digit) in four.iter().enumerate() {
            bits |= u32::from(six(*digit)?) << (18 - 6 * at);
        }
        let length = four.len() * 6 / 8;
        let coded = bits.to_be_bytes();
        // What the last digit has beyond the last byte says nothing, and must not seem to.
        if coded[1 + length..].iter().any(|rest| *rest != 0) {
            return None;
        }
        bytes.extend_from_slice(&coded[1..1 + length]);
    }
    Some(bytes)
}

/// What a digit of Base64 stands for: its place among [`DIGITS`].
fn six(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_few_characters() {
        let ages = [0, 59, 60, 3599, 3600, 172_799, 172_800, 86_400 * 400];
        let ages = ages.map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d", "400d"]);
    }

    #[test]
    fn a_quoted_word_reads_back_as_itself() {
        for (word, quoted) in [
            (&b"plain-1.txt"[..], "plain-1.txt"),
            (b"", "''"),
            (b"two words", "'two words'"),
            (b"it's", r"'it'\''s'"),
            (b"$HOME `x` \"y\"", "'$HOME `x` \"y\"'"),
            ("naïve".as_bytes(), "'naïve'"),
            (b"line\nbreak", r"$'line\x0abreak'"),
            (b"a'\\\xff", r"$'a\'\\\xff'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
    }

    #[test]
    fn figures_read_as_a_person_writes_them() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        let spans = [0.25, 12.34, 245.0, 7380.0].map(|seconds| span(Duration::from_secs_f64(seconds)));
        assert_eq!(spans, ["0.25 s", "12.3 s", "4 min 5 s", "2 h 3 min"]);
        assert_eq!(rate(5, Duration::from_secs(2)), "2.5/s");
        assert_eq!(rate(20_000, Duration::from_secs(10)), "2,000/s");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).as_deref(), Some(plain.as_bytes()), "{coded}");
            assert_eq!(
                from_base64(coded.trim_end_matches('=')).as_deref(),
                Some(plain.as_bytes()),
                "{coded}"
            );
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
        assert_eq!(from_base64("//79"), Some(vec![0xff, 0xfe, 0xfd]));
        for text in ["Z", "Zg=", "Zg===", "Z===", "=", "Zh==", "Zm9=", "Zm 9", "Zm9v\n", "-_79", "Zg==Zg=="] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }
}
