//! Secrets in what a handler says: [`Hidden`] takes them out before anything is logged, kept or shown. Pure.
//!
//! A command that fails prints what it was given, and an endpoint repeats what it was asked. So each value that a
//! handler has from the environment or a file, or that is a credential by its name, is replaced by [`MARK`] wherever it
//! stands in an output, byte by byte: an output need not be text.
//!
//! | | |
//! |---|---|
//! | searched for | the value without the white space around it; each of its lines; what follows its first space (the token after `Bearer`); the password in it, if it is a URL |
//! | overlapping | all bytes that belong to any occurrence of any value go |
//! | cut | where an output was cut, a part of a value that stands at the cut goes too |
//! | short | what has fewer than [`MIN`] bytes stays: it stands in too many words |
//! | other forms | what is escaped, encoded, hashed or printed in pieces is not found |
//!
//! What is hidden is never longer than it was, so the bounds of what is kept hold.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::secret::Secret;

/// What stands in the place of a secret. Shorter than the shortest of them, so that it holds none and makes nothing
/// longer.
const MARK: &[u8] = b"***";

/// The fewest bytes that are searched for, in whole values and in parts at a cut.
const MIN: usize = 4;

/// What is in the name of a variable or header whose value is a credential.
const TELLING: [&str; 10] = [
    "authorization",
    "cookie",
    "credential",
    "key",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "secret",
    "token",
];

/// Values that may not be seen, in all their forms.
#[derive(Default)]
pub(crate) struct Values(BTreeSet<Vec<u8>>);

impl Values {
    /// The value of `secret`, whose name is `name`: unless it stands in the configuration's file under a name that says
    /// nothing, such as `LANG` or `Accept`.
    pub(crate) fn add_secret(&mut self, name: &str, secret: &Secret, value: &str) {
        if !secret.is_plain() || tells(name) {
            self.add(value);
        }
    }

    /// The query of a URL: the whole, and the values of what is a credential by its name.
    pub(crate) fn add_query(&mut self, query: &str) {
        self.add_form(query);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if tells(name) {
                self.add(value);
            }
        }
    }

    fn add(&mut self, value: &str) {
        self.add_form(value);
        for line in value.lines() {
            self.add_form(line);
            if let Some((_, rest)) = line.trim().split_once(char::is_whitespace) {
                self.add_form(rest);
            }
            if let Some(password) = password(line) {
                self.add_form(password);
            }
        }
    }

    fn add_form(&mut self, form: &str) {
        let form = form.trim();
        if form.len() >= MIN {
            self.0.insert(form.as_bytes().to_vec());
        }
    }
}

/// Whether a value is a credential by its name.
fn tells(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    TELLING.iter().any(|word| name.contains(word))
}

/// That of a URL, as it is written there.
fn password(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (user, _) = authority.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

/// Where what is looked through may be a part of something longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nowhere.
    No,
    /// There may have been more behind it.
    Back,
    /// There was more before it, and there may have been more behind it.
    Both,
}

/// What takes values out of outputs.
pub(crate) struct Hidden {
    values: Vec<Vec<u8>>,
    /// `None` if there are no values.
    search: Option<AhoCorasick>,
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({} values)", self.values.len())
    }
}

impl Hidden {
    /// # Errors
    /// When there are more values than can be searched for at once: gigabytes.
    pub(crate) fn new(values: Values) -> Result<Self, String> {
        let values: Vec<Vec<u8>> = values.0.into_iter().collect();
        // Of the ways to search, one whose memory goes by the length of the values and not by 256 times that.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let search = match values.as_slice() {
            [] => None,
            values => {
                let search = AhoCorasick::builder().kind(kind).build(values);
                Some(search.map_err(|error| format!("its secrets can't be searched for: {error}"))?)
            }
        };
        Ok(Self { values, search })
    }

    /// `text` without them. Looks through it once.
    pub(crate) fn hide<'a>(&self, text: &'a [u8], cut: Cut) -> Cow<'a, [u8]> {
        let Some(search) = &self.search else { return text.into() };
        let mut spans: Vec<Range<usize>> =
            search.find_overlapping_iter(text).map(|found| found.range()).collect();
        spans.extend(self.begun(text).filter(|_| cut != Cut::No));
        spans.extend(self.ended(text).filter(|_| cut == Cut::Both));
        if spans.is_empty() {
            return text.into();
        }
        spans.sort_unstable_by_key(|span| span.start);
        let (mut shown, mut at) = (Vec::with_capacity(text.len()), 0);
        for span in spans {
            // Those that touch have one mark.
            if span.start > at || shown.is_empty() {
                shown.extend_from_slice(&text[at..span.start]);
                shown.extend_from_slice(MARK);
            }
            at = at.max(span.end);
        }
        shown.extend_from_slice(&text[at..]);
        shown.into()
    }

    /// The longest beginning of a value at the end of `text`.
    fn begun(&self, text: &[u8]) -> Option<Range<usize>> {
        let longest = |value: &Vec<u8>| {
            let most = text.len().min(value.len());
            (MIN..=most).rev().find(|length| text.ends_with(&value[..*length]))
        };
        let length = self.values.iter().filter_map(longest).max()?;
        Some(text.len() - length..text.len())
    }

    /// The longest end of a value at the beginning of `text`.
    fn ended(&self, text: &[u8]) -> Option<Range<usize>> {
        let longest = |value: &Vec<u8>| {
            let most = text.len().min(value.len());
            (MIN..=most).rev().find(|length| text.starts_with(&value[value.len() - length..]))
        };
        self.values.iter().filter_map(longest).max().map(|length| 0..length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hidden(values: &[&str]) -> Hidden {
        let mut all = Values::default();
        values.iter().for_each(|value| all.add(value));
        Hidden::new(all).expect("a few")
    }

    #[track_caller]
    fn hides(values: &[&str], text: &str, cut: Cut, expected: &str) {
        let shown = hidden(values).hide(text.as_bytes(), cut).into_owned();
        assert_eq!(String::from_utf8_lossy(&shown), expected, "{text}");
    }

    #[test]
    fn a_value_is_hidden_wherever_it_stands() {
        for (values, text, expected) in [
            (&[][..], "hunter2", "hunter2"),
            (&["hunter2"], "", ""),
            (&["hunter2"], "hunter2", "***"),
            (&["hunter2"], "key=hunter2, hunter2\n", "key=***, ***\n"),
            (&["hunter2"], "hunter2hunter2", "***"),
            (&["hunter2"], "hunter hunter1 Hunter2", "hunter hunter1 Hunter2"),
            // The longer one, and what they share.
            (&["hunter2", "hunter22"], "a hunter22 b hunter2 c", "a *** b *** c"),
            (&["abcdef", "defghi"], "-abcdefghi-", "-***-"),
            (&["abcdefgh", "cdef"], "-abcdefgh-cdef-", "-***-***-"),
            (&["aaaa"], "aaaaaaa b aaa", "*** b aaa"),
            // Too short to be told from other words.
            (&["abc", "", " ab "], "abc ab", "abc ab"),
            (&["a\u{20ac}"], "(a\u{20ac})", "(***)"),
        ] {
            hides(values, text, Cut::No, expected);
        }
        assert_eq!(hidden(&["hunter2"]).hide(b"\xff\0hunter2\xfe", Cut::No)[..], b"\xff\0***\xfe"[..]);
    }

    #[test]
    fn a_value_is_hidden_in_the_forms_that_it_is_used_in() {
        for (value, text, expected) in [
            (" hunter2\n\n", "hunter2", "***"),
            ("Bearer hunter2", "Bearer hunter2, hunter2", "***, ***"),
            ("first line\n  second\r\n", "second, first line", "***, ***"),
            ("postgres://me:hunter2@db/jobs", "me, hunter2, db", "me, ***, db"),
            ("redis://:hunter2@db", "hunter2", "***"),
            ("https://db/x:y@z", "x:y@z", "x:y@z"),
        ] {
            hides(&[value], text, Cut::No, expected);
        }
    }

    #[test]
    fn where_an_output_was_cut_a_part_of_a_value_is_hidden_too() {
        for (cut, text, expected) in [
            (Cut::No, "ter2 hunter2 hunt", "ter2 *** hunt"),
            (Cut::Back, "ter2 hunter2 hunt", "ter2 *** ***"),
            (Cut::Both, "ter2 hunter2 hunt", "*** *** ***"),
            (Cut::Both, "unter2hunter", "***"),
            (Cut::Both, "er2 hun", "er2 hun"),
            (Cut::Both, "ter2", "***"),
            (Cut::Both, " ter2 hunt ", " ter2 hunt "),
            (Cut::Both, "", ""),
        ] {
            hides(&["hunter2"], text, cut, expected);
        }
    }

    #[test]
    fn what_is_a_credential_is_told_by_where_it_comes_from_or_by_its_name() {
        let elsewhere: Secret = serde_json::from_str(r#"{"env":"PATH"}"#).expect("a form");
        let mut values = Values::default();
        for (name, secret, value) in [
            ("A", &elsewhere, "from elsewhere"),
            ("B", &Secret::laid(""), "from a variable"),
            ("PGPASSWORD", &Secret::from(""), "password"),
            ("x-api-key", &Secret::from(""), "api-key"),
            ("LANG", &Secret::from(""), "language"),
        ] {
            values.add_secret(name, secret, value);
        }
        values.add_query("format=json&api_key=hunter2&v=1");
        let values: Vec<String> =
            values.0.into_iter().map(|value| String::from_utf8_lossy(&value).into_owned()).collect();
        assert_eq!(
            values,
            [
                "a variable",
                "api-key",
                "elsewhere",
                "format=json&api_key=hunter2&v=1",
                "from a variable",
                "from elsewhere",
                "hunter2",
                "password",
            ]
        );
    }

    fn within(text: &[u8], value: &[u8]) -> bool {
        text.windows(value.len()).any(|window| window == value)
    }

    proptest! {
        /// Few letters, so that values overlap each other, themselves, and the places where the text is cut.
        #[test]
        fn no_value_ever_remains_nor_a_part_at_a_cut(
            values in proptest::collection::vec("[ab]{4,9}", 0..4),
            text in "[abc]{0,60}",
            at in 0usize..60,
            lost in 0usize..5,
        ) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let (hidden, text) = (hidden(&values), text.as_bytes());
            let whole = hidden.hide(text, Cut::No);
            let first = &text[..at.min(text.len())];
            let last = &text[(at + lost).min(text.len())..];
            let (first, last) = (hidden.hide(first, Cut::Back), hidden.hide(last, Cut::Both));
            for value in values.iter().map(|value| value.as_bytes()) {
                prop_assert!(![&whole, &first, &last].iter().any(|shown| within(shown, value)));
                for length in MIN..value.len() {
                    prop_assert!(!first.ends_with(&value[..length]) && !last.ends_with(&value[..length]));
                    prop_assert!(!last.starts_with(&value[value.len() - length..]));
                }
            }
            prop_assert!(whole.len() <= text.len());
            // Nothing but what belongs to a value is missing, and of that nothing is left.
            let begins = |at: usize, value: &str| text[at..].starts_with(value.as_bytes());
            let covered = |at: usize| {
                values.iter().any(|value| (0..value.len().min(at + 1)).any(|back| begins(at - back, value)))
            };
            let mut naive = Vec::new();
            for (at, byte) in text.iter().enumerate() {
                match (covered(at), at > 0 && covered(at - 1)) {
                    (true, false) => naive.extend_from_slice(MARK),
                    (true, true) => {}
                    (false, _) => naive.push(*byte),
                }
            }
            prop_assert_eq!(String::from_utf8_lossy(&whole), String::from_utf8_lossy(&naive));
        }
    }
}
