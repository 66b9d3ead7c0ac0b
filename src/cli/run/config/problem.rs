//! What is wrong with a configuration: [`Problem`]s, each with its place, and the text that shows them: [`Refused`].
//!
//! Any value of the file may be a secret, and so may a word in a comment. Of the line that a problem stands on are
//! shown the keys, and the one value that the problem is about if whoever found it says that it is harmless.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

use crate::source::truncate;

/// How many problems are shown; most files have fewer, and who has mended these sees the others.
const SHOWN: usize = 20;

/// How many characters of a line are shown.
const WIDTH: usize = 100;

/// How many of them at least stand before the place, in a line that is longer.
const BEFORE: usize = 40;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration as a whole.
    Whole,
    /// These bytes of the file.
    File(Range<usize>),
    /// This environment variable.
    Variable(Arc<str>),
    /// This flag of the command line.
    Flag(&'static str),
}

/// Something that makes no sense.
#[derive(Debug)]
pub(crate) struct Problem {
    origin: Origin,
    what: String,
    shown: Shown,
}

/// How much of the line may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Its keys.
    Keys,
    /// Its keys, and what stands at the place.
    Place,
    /// What can be told of a file that can't be understood: the first key, and the punctuation.
    Shape,
}

impl Problem {
    /// `what` is wrong at `origin`, where a secret may stand.
    pub(crate) fn new(origin: &Origin, what: impl Into<String>) -> Self {
        Self { origin: origin.clone(), what: what.into(), shown: Shown::Keys }
    }

    /// What stands at the place may be seen.
    pub(super) fn harmless(mut self) -> Self {
        self.shown = Shown::Place;
        self
    }

    /// The file is no TOML.
    pub(crate) fn syntax(place: Range<usize>, what: impl Into<String>) -> Self {
        Self { origin: Origin::File(place), what: what.into(), shown: Shown::Shape }
    }
}

/// A file, as far as it is needed to show where something stands.
#[derive(Debug)]
pub(crate) struct Document {
    /// What it is called.
    name: String,
    pub(super) text: String,
    /// Where its keys stand, in order.
    pub(super) keys: Vec<Range<usize>>,
    /// Where its values stand, but for tables and lists, in order.
    pub(super) values: Vec<Range<usize>>,
}

/// A configuration that is refused. Shown, it has a line or three for each problem.
#[derive(Debug)]
pub(crate) struct Refused {
    document: Document,
    problems: Vec<Problem>,
}

impl Refused {
    pub(crate) fn new(document: Document, mut problems: Vec<Problem>) -> Self {
        let place = |problem: &Problem| match &problem.origin {
            Origin::Whole => (0, 0),
            Origin::Variable(_) | Origin::Flag(_) => (1, 0),
            Origin::File(place) => (2, place.start),
        };
        problems.sort_by_key(place);
        Self { document, problems }
    }

    /// One line for each problem: where, and what. With the line of the file, if it stands in one.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (String, Option<String>)> {
        let listed = self.problems.iter().take(SHOWN);
        listed.map(|problem| (self.line(problem), self.excerpt(problem).map(|excerpt| excerpt.line)))
    }

    fn line(&self, problem: &Problem) -> String {
        let (name, what) = (&self.document.name, &problem.what);
        match (&problem.origin, self.excerpt(problem)) {
            (Origin::Variable(variable), _) => format!("{variable}: {what}"),
            (Origin::Flag(flag), _) => format!("{flag}: {what}"),
            (_, Some(Excerpt { number, column, .. })) => format!("{name}:{number}:{column}: {what}"),
            _ => format!("{name}: {what}"),
        }
    }

    fn excerpt(&self, problem: &Problem) -> Option<Excerpt> {
        let Origin::File(place) = &problem.origin else { return None };
        Some(self.document.excerpt(place, problem.shown))
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is refused")?;
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n{}", self.line(problem))?;
            if let Some(Excerpt { number, line, before, marked, .. }) = self.excerpt(problem) {
                write!(f, "\n{number:>5} | {line}\n      | {:before$}{:^<marked$}", "", "")?;
            }
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// A line of the file as it is shown, and what is to be marked in it.
struct Excerpt {
    /// Both from 1.
    number: usize,
    column: usize,
    line: String,
    /// How many characters of `line` come before what is marked, and how many are marked.
    before: usize,
    marked: usize,
}

impl Document {
    pub(crate) fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), keys: Vec::new(), values: Vec::new() }
    }

    fn excerpt(&self, place: &Range<usize>, shown: Shown) -> Excerpt {
        let text = &self.text;
        let start = truncate(text, place.start).len();
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line = text[line_start..line_end].trim_end();
        let mut chars = match shown {
            Shown::Shape => shape(line, line_start, is_in_string(&text[..line_start])),
            Shown::Keys => self.masked(line, line_start, None),
            Shown::Place => self.masked(line, line_start, Some(place)),
        };
        let before = chars.iter().take_while(|(at, _)| *at < start).count();
        let marked = chars.iter().filter(|(at, _)| place.contains(at)).count();
        let cut = if chars.len() > WIDTH { before.saturating_sub(BEFORE) } else { 0 };
        chars.drain(..cut);
        let mut line = String::with_capacity(WIDTH);
        line.extend((cut > 0).then_some('…'));
        line.extend(chars.iter().take(WIDTH).map(|(_, char)| *char));
        line.extend((chars.len() > WIDTH).then_some('…'));
        let before = before - cut + usize::from(cut > 0);
        let marked = marked.clamp(1, WIDTH.saturating_sub(before).max(1));
        let number = text[..line_start].matches('\n').count() + 1;
        Excerpt { number, column: text[line_start..start].chars().count() + 1, line, before, marked }
    }

    /// The characters of the line and where they stand, with each value but the one in `clear` as one character, and
    /// without a comment.
    fn masked(&self, line: &str, line_start: usize, clear: Option<&Range<usize>>) -> Vec<(usize, char)> {
        let within = |ranges: &[Range<usize>], at| {
            let after = ranges.partition_point(|range| range.start <= at);
            ranges[..after].last().filter(|range| range.contains(&at)).cloned()
        };
        let mut shown: Vec<(usize, char)> = Vec::with_capacity(line.len());
        let mut hidden = None;
        for (at, char) in line.char_indices().map(|(at, char)| (line_start + at, char)) {
            match within(&self.values, at).filter(|value| clear.is_none_or(|clear| clear != value)) {
                Some(value) if hidden.as_ref() == Some(&value) => {}
                Some(value) => {
                    hidden = Some(value);
                    shown.push((at, '…'));
                }
                None if char == '#'
                    && within(&self.values, at).is_none()
                    && within(&self.keys, at).is_none() =>
                {
                    let code = shown.iter().rposition(|(_, char)| *char != ' ').map_or(0, |last| last + 1);
                    shown.truncate(code);
                    break;
                }
                None => shown.push((at, printable(char))),
            }
        }
        shown
    }
}

/// Whether a line may lie in a text of several lines that begins somewhere in what stands `before` it.
fn is_in_string(before: &str) -> bool {
    ["\"\"\"", "'''"].iter().any(|quotes| before.matches(quotes).count() % 2 == 1)
}

/// The characters of a line of a file that is no TOML, with `*` for each that could be one of a value.
fn shape(line: &str, line_start: usize, in_string: bool) -> Vec<(usize, char)> {
    let key = |char: char| char.is_alphanumeric() || "_-. \t\"'".contains(char);
    let clear = match line.find('=').filter(|at| line[..*at].chars().all(key)) {
        _ if in_string => 0,
        Some(first) => first,
        None if line.trim_start().starts_with('[') => line.len(),
        None => 0,
    };
    let shown = |at, char: char| if at >= clear && char.is_alphanumeric() { '*' } else { printable(char) };
    line.char_indices().map(|(at, char)| (line_start + at, shown(at, char))).collect()
}

/// One column wide, and harmless to a terminal.
fn printable(char: char) -> char {
    match char {
        '\t' => ' ',
        char if char.is_control() => '\u{fffd}',
        char => char,
    }
}

/// A list in words: `a, b or c`.
pub(super) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    let mut text = String::new();
    for (at, word) in words.iter().enumerate() {
        let between = match words.len() - at {
            _ if at == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        // Writing to a string can't fail.
        let _ = write!(text, "{between}{word}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::config::tree::{Node, Value, parse};

    /// What is shown when the value of the last key is refused; it may be seen if it is `harmless`.
    fn shown(text: &str, harmless: bool) -> String {
        let mut document = Document::new("x", text);
        let problem = match parse(&mut document) {
            Ok(root) => {
                let problem = Problem::new(&last(&root).origin, "no");
                if harmless { problem.harmless() } else { problem }
            }
            Err(problem) => problem,
        };
        Refused::new(document, vec![problem]).to_string().lines().skip(2).collect::<Vec<_>>().join("\n")
    }

    fn last(node: &Node) -> &Node {
        match &node.value {
            Value::Table(entries) => entries.last().map_or(node, |(_, node)| last(node)),
            _ => node,
        }
    }

    #[test]
    fn of_a_line_only_its_keys_are_shown_and_the_value_it_is_about_if_that_is_harmless() {
        let line = "a = { b = \"#x\", 'c' = 5 } # y";
        assert_eq!(shown(line, false), "    1 | a = { b = …, 'c' = … }\n      |                    ^");
        assert_eq!(shown(line, true), "    1 | a = { b = …, 'c' = 5 }\n      |                    ^");
        let tabs = "\ta\t=\t\"ä\u{7f}é\"";
        assert_eq!(shown(&tabs.replace('\u{7f}', "x"), true), "    1 |  a = \"äxé\"\n      |      ^^^^^");
    }

    #[test]
    fn a_value_of_several_lines_is_shown_by_none_of_them() {
        assert_eq!(shown("a = \"\"\"\nbc\nde\"\"\"\n", false), "    1 | a = …\n      |     ^");
        assert_eq!(shown("a = [\n  1,\n  2\n]\n", false), "    1 | a = [\n      |     ^");
    }

    #[test]
    fn of_a_long_line_the_part_around_the_place_is_shown() {
        let text = format!("{} = 1", vec!["abcdefghi"; 40].join("."));
        let shown = shown(&text, true);
        let (line, marks) = shown.split_once('\n').expect("two lines");
        assert!(line.starts_with("   …") || line.contains("| …"), "{shown}");
        assert!(line.chars().count() < 120 && line.ends_with("= 1"), "{shown}");
        assert_eq!(
            line.chars().count(),
            marks.chars().count(),
            "the mark stands under the last character: {shown}"
        );
    }

    #[test]
    fn of_what_is_no_toml_the_shape_is_shown() {
        for (text, expected) in [
            ("[worker\n", "[worker"),
            ("token = abc1\n", "token = ****"),
            ("token = \"abc1\n", "token = \"****"),
            ("abc1\n", "****"),
            ("a = \"\"\"\nYWJj=\\q\n\"\"\"\n", "****=\\*"),
        ] {
            let shown = shown(text, false);
            assert!(
                shown.lines().next().is_some_and(|line| line.ends_with(&format!("| {expected}"))),
                "{text}: {shown}"
            );
        }
    }
}
