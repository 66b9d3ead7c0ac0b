//! What an answer comes to, and what of it is kept: pure.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{StatusCode, Uri};

use crate::error::Error;
use crate::source::MAX_OUTPUT_BYTES;

/// The most that may be kept of a body: it, and what is said about it, fit into what is kept with an attempt.
pub(crate) const MAX_RESPONSE: usize = MAX_OUTPUT_BYTES - 512;

/// What a status means for the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// It may well go another time; the endpoint may say when.
    Retry,
    /// It can never succeed.
    Reject,
    /// It is not what an endpoint should say: a person has to look, and the job is kept meanwhile.
    Odd,
}

impl Verdict {
    pub(super) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Done,
            // The request took too long, came too early, was one too many.
            408 | 425 | 429 | 500..=599 => Self::Retry,
            400..=499 => Self::Reject,
            _ => Self::Odd,
        }
    }
}

/// When the endpoint wants to be asked again: from `Retry-After`, in seconds or as a date. `None` if it does not say,
/// or nothing that makes sense.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than can be counted is for ever.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The host that a redirect leads to, if it says one: the rest of the address may hold a secret.
pub(super) fn redirected_to(headers: &HeaderMap) -> Option<String> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    // Of an address without a scheme the host is not told from the path.
    let location: Uri = match location.starts_with("//") {
        true => format!("http:{location}").parse().ok()?,
        false => location.parse().ok()?,
    };
    Some(location.host().unwrap_or("the same host").to_owned())
}

/// How much of an answer's body came.
#[derive(Debug)]
pub(super) enum Extent {
    Whole,
    /// There was more than is kept.
    Cut,
    /// It ended before its end.
    Broken(Error),
}

/// An answer as a person may want to see it.
pub(super) fn account(status: StatusCode, body: &[u8], extent: &Extent) -> Vec<u8> {
    let mut text = format!("HTTP {status}\n").into_bytes();
    if !body.is_empty() {
        text.push(b'\n');
        text.extend_from_slice(body);
    }
    match extent {
        Extent::Whole => {}
        Extent::Cut => text.extend_from_slice(b"\n[the rest is left out]\n"),
        Extent::Broken(_) => text.extend_from_slice(b"\n[it broke off here]\n"),
    }
    text
}

/// A job's id, kind or queue as the value of a header: bytes other than visible ASCII, and `%` itself, are written
/// `%XX`, so that any text can be sent, none can end the header, and what was meant can be read back.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_status_says_what_becomes_of_the_job() {
        for (statuses, verdict) in [
            (&[200, 201, 202, 204, 299][..], Verdict::Done),
            (&[408, 425, 429, 500, 501, 502, 503, 504, 599], Verdict::Retry),
            (&[400, 401, 403, 404, 405, 409, 410, 422, 451, 499], Verdict::Reject),
            (&[101, 300, 301, 302, 304, 307, 308, 600, 999], Verdict::Odd),
        ] {
            for status in statuses {
                assert_eq!(
                    Verdict::of(StatusCode::from_u16(*status).expect("in range")),
                    verdict,
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn a_wait_is_read_in_seconds_or_as_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:50:37 GMT", None),
            ("\u{e4}", None),
        ] {
            let value = HeaderValue::from_bytes(text.as_bytes()).expect("a header can hold it");
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn of_a_redirect_only_the_host_is_named() {
        for (location, host) in [
            ("https://b.example/login?key=hunter2", Some("b.example")),
            ("//c.example/login", Some("c.example")),
            ("/elsewhere", Some("the same host")),
            ("//", None),
            ("\u{e4}", None),
        ] {
            let value = HeaderValue::from_bytes(location.as_bytes()).expect("a header can hold it");
            let headers = HeaderMap::from_iter([(LOCATION, value)]);
            assert_eq!(redirected_to(&headers).as_deref(), host, "{location}");
        }
    }

    proptest! {
        #[test]
        fn any_name_can_be_sent_and_read_back(name in "\\PC{0,40}|[\\x00-\\xff]{0,40}") {
            let sent = encoded(&name);
            prop_assert!(HeaderValue::from_str(&sent).is_ok());
            prop_assert!(sent.bytes().all(|byte| byte.is_ascii_graphic()));
            let mut bytes = sent.bytes();
            let mut read = Vec::new();
            while let Some(byte) = bytes.next() {
                read.push(if byte == b'%' {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                } else {
                    byte
                });
            }
            prop_assert_eq!(read, name.as_bytes());
        }

        #[test]
        fn any_header_is_read_or_passed_over(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(RETRY_AFTER, value.clone()), (LOCATION, value)]);
                let _ = (retry_after(&headers, UNIX_EPOCH), redirected_to(&headers));
            }
        }
    }

    #[test]
    fn ordinary_names_are_sent_as_they_are() {
        assert_eq!(encoded("01J9Z-a_b.c:d/e"), "01J9Z-a_b.c:d/e");
        assert_eq!(encoded("50 % of\r\nä"), "50%20%25%20of%0D%0A%C3%A4");
    }

    #[test]
    fn an_account_fits_into_what_is_kept() {
        let body = vec![b'x'; MAX_RESPONSE];
        for extent in [Extent::Whole, Extent::Cut, Extent::Broken(Error::timeout(""))] {
            let status = StatusCode::NETWORK_AUTHENTICATION_REQUIRED;
            assert!(account(status, &body, &extent).len() <= MAX_OUTPUT_BYTES);
        }
        assert_eq!(account(StatusCode::NO_CONTENT, b"", &Extent::Whole), b"HTTP 204 No Content\n");
    }
}
