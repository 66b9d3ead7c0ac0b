//! Strings of JSON: written, and read with their escapes undone.

use std::borrow::Cow;

use super::json::Value;

/// The key of a field. Most have no escapes and are compared as they stand.
#[derive(Debug)]
pub(super) struct Key<'a>(Cow<'a, [u8]>);

impl<'a> Key<'a> {
    pub(super) fn new(in_quotes: &'a [u8], escaped: bool) -> Self {
        Self(if escaped { unescape(in_quotes).0 } else { Cow::Borrowed(in_quotes) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is(&self, name: &str) -> bool {
        *self.0 == *name.as_bytes()
    }
}

impl<'a> Value<'a> {
    /// The text of a string; `None` if it is none, or if it can't be had exactly: bytes that are no UTF-8, or half of
    /// a surrogate pair.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match unescape(self.in_quotes()?) {
            (Cow::Borrowed(bytes), _) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            (Cow::Owned(bytes), true) => String::from_utf8(bytes).ok().map(Cow::Owned),
            (Cow::Owned(_), false) => None,
        }
    }

    /// The text of a string for people to read: what is no text in it is U+FFFD.
    pub(super) fn readable(self) -> Option<String> {
        self.in_quotes().map(|bytes| String::from_utf8_lossy(&unescape(bytes).0).into_owned())
    }
}

/// Undoes the escapes of what stood between quotes and is known to be well formed; whether nothing was replaced. (Half
/// of a surrogate pair is: it is no character.)
fn unescape(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    let Some(first) = bytes.iter().position(|byte| *byte == b'\\') else {
        return (Cow::Borrowed(bytes), true);
    };
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(&bytes[..first]);
    let (mut rest, mut exact) = (&bytes[first..], true);
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let Some((escape, behind)) = rest.split_first() else { break };
        rest = behind;
        match escape {
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (character, behind) = unicode(rest);
                rest = behind;
                exact &= character.is_some();
                let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => out.push(*other),
        }
    }
    (Cow::Owned(out), exact)
}

/// The character of the four digits that follow `\u`, and of the second half if there is one; and what is behind.
fn unicode(bytes: &[u8]) -> (Option<char>, &[u8]) {
    let Some((unit, behind)) = unit(bytes) else { return (None, bytes) };
    if !(0xd800..0xdc00).contains(&unit) {
        return (char::from_u32(unit), behind);
    }
    let low = behind.strip_prefix(b"\\u").and_then(self::unit);
    match low.filter(|(low, _)| (0xdc00..0xe000).contains(low)) {
        Some((low, behind)) => (char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)), behind),
        None => (None, behind),
    }
}

fn unit(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, behind) = bytes.split_at_checked(4)?;
    let digits = std::str::from_utf8(digits).ok()?;
    Some((u32::from_str_radix(digits, 16).ok()?, behind))
}

/// Writes `text` as a string of JSON.
pub(super) fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// `text` as a string of JSON.
pub(super) fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    quote(&mut out, text);
    out
}

#[cfg(test)]
mod tests {
    use super::super::json::Value;
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_is_quoted_as_serde_reads_it_and_read_back(text in "\\PC*|[\\x00-\\x7f]{0,40}|(\u{1f980}|é|\"|\\\\){0,9}") {
            let quoted = quoted(&text);
            proptest::prop_assert_eq!(&serde_json::from_slice::<String>(&quoted).expect("it is a string"), &text);
            let (value, _) = Value::of(&quoted).expect("it is JSON");
            proptest::prop_assert_eq!(value.text().expect("it is text"), text);
        }

        #[test]
        fn escapes_are_undone_as_serde_undoes_them(inner in "([a-zé\u{1f980}]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}|\\\\u[dD][89abAB][0-9]{2}\\\\u[dD][c-fC-F][0-9]{2}){0,12}") {
            let quoted = format!("\"{inner}\"");
            let (value, _) = Value::of(quoted.as_bytes()).expect("it is JSON");
            let expected = serde_json::from_str::<String>(&quoted).ok();
            proptest::prop_assert_eq!(value.text().map(Cow::into_owned), expected);
        }
    }

    #[test]
    fn what_is_no_text_is_readable_but_not_exact() {
        for bytes in [&b"\"a\xff\""[..], b"\"a\\ud800\"", b"\"a\\udc00\"", b"\"a\\n\xff\""] {
            let (value, _) = Value::of(bytes).expect("it is JSON");
            assert_eq!(value.text(), None, "{bytes:?}");
            let readable = value.readable().expect("it is a string");
            assert!(readable.starts_with('a') && readable.ends_with('\u{fffd}'), "{readable:?}");
        }
    }
}
