//! A part of some bytes as a person may see it: on one line, whatever they are. Pure.
//!
//! Control characters and what is not UTF-8 are escaped, so that nothing of it can steer a terminal or forge a line
//! of a log. What is left out is marked with `…`.

/// The most bytes that are shown as one character.
const MAX_CHAR: usize = 4;

/// The beginning of `bytes`, at most so many characters (escapes count as one).
pub(crate) fn head(bytes: &[u8], chars: usize) -> String {
    // This prefix holds one more than can be shown.
    let prefix = &bytes[..bytes.len().min(MAX_CHAR * (chars + 1))];
    let mut parts = parts(prefix);
    let mut text: String = parts.by_ref().take(chars).collect();
    if parts.next().is_some() {
        text.push('…');
    }
    text
}

/// The end of `bytes`, at most so many characters, without the white space after it.
pub(crate) fn tail(bytes: &[u8], chars: usize) -> String {
    let bytes = bytes.trim_ascii_end();
    let start = bytes.len().saturating_sub(MAX_CHAR * (chars + 1));
    // Where it begins in the middle of a character, the rest of that one is no text.
    let broken =
        bytes[start..].iter().take(MAX_CHAR - 1).take_while(|byte| (0x80..0xc0).contains(*byte)).count();
    let suffix = &bytes[if start > 0 { start + broken } else { 0 }..];
    let parts: Vec<String> = parts(suffix).collect();
    let shown = &parts[parts.len().saturating_sub(chars)..];
    let cut = if start > 0 || shown.len() < parts.len() { "…" } else { "" };
    format!("{cut}{}", shown.concat())
}

/// One text for each character and for each byte that is none.
fn parts(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.utf8_chunks().flat_map(|chunk| {
        let valid = chunk.valid().chars().map(|char| match is_unruly(char) {
            true => char.escape_default().collect(),
            false => String::from(char),
        });
        let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
        valid.chain(invalid).collect::<Vec<String>>()
    })
}

/// `text` on one line, with what is not for the eye escaped: whoever wrote it does not drive the terminal.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unruly(char) { shown.extend(char.escape_default()) } else { shown.push(char) }
    }
    shown
}

/// Whether a character does more than stand in its line: it controls the terminal, ends the line, turns the direction
/// of what stands around it, or can't be seen. Those that join letters (U+200C, U+200D) belong to some scripts.
pub(crate) fn is_unruly(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHARS: usize = 60;

    #[test]
    fn a_beginning_fits_one_line_whatever_the_bytes() {
        let head = |bytes: &[u8]| head(bytes, CHARS);
        assert_eq!(head(b"plain text"), "plain text");
        assert_eq!(head(b"tab\tnew\nline\x1b[0m"), r"tab\tnew\nline\u{1b}[0m");
        assert_eq!(head(b"a\xff\x00b"), r"a\xff\u{0}b");
        assert_eq!(head("ä".repeat(CHARS).as_bytes()), "ä".repeat(CHARS));
        assert_eq!(head("ä".repeat(CHARS + 1).as_bytes()), format!("{}…", "ä".repeat(CHARS)));
        assert!(head("x".repeat(1 << 20).as_bytes()).ends_with("x…"));
        assert!(head(&[0xff; 1000]).ends_with("…"));
        assert!(head("€".repeat(1000).as_bytes()).ends_with("€…"));
    }

    #[test]
    fn an_end_fits_one_line_whatever_the_bytes() {
        assert_eq!(tail(b"", 3), "");
        assert_eq!(tail(b"one\ntwo\n\n", CHARS), r"one\ntwo");
        assert_eq!(tail(b"abcd", 3), "…bcd");
        assert_eq!(tail(b"abc", 3), "abc");
        assert_eq!(tail(b"\x80\xffc", 3), r"\x80\xffc");
        for text in ["x", "ä", "€", "🦀"] {
            for length in [3, 4, 5, 100, 1000] {
                let expected = format!("{}{}", if length > 3 { "…" } else { "" }, text.repeat(3));
                assert_eq!(tail(text.repeat(length).as_bytes(), 3), expected, "{length}");
            }
        }
        assert_eq!(tail(&[0x80; 1000], 3), r"…\x80\x80\x80");
    }

    #[test]
    fn text_does_not_drive_a_terminal() {
        assert_eq!(escaped("plain ünï 漢字 👍"), "plain ünï 漢字 👍");
        assert_eq!(escaped("a\x1b[2J\x07\r\n\t\x7f\u{9b}1m"), r"a\u{1b}[2J\u{7}\r\n\t\u{7f}\u{9b}1m");
        assert_eq!(escaped("\u{202e}evil\u{2066}\u{200b}\u{feff}"), r"\u{202e}evil\u{2066}\u{200b}\u{feff}");
        assert_eq!(head("\u{202e}x\x1b[0m".as_bytes(), CHARS), r"\u{202e}x\u{1b}[0m");
    }
}
