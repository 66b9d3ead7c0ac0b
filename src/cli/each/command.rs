//! From the command on the command line and a record to an argument list: pure.
//!
//! A record becomes a part of one argument, or a whole one; it is never pasted into text that a shell reads.
//! With `--shell` the script is the one word in which nothing is replaced: the record reaches it as `$1`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use serde_json::value::RawValue;

use crate::cli::text::excerpt;

/// How the words of a command are to be read.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// What stands for the record, `{}` unless changed.
    pub(super) replace: &'a str,
    /// Records are JSON, and `{.field}` stands for a field.
    pub(super) json: bool,
    /// The record goes to standard input, so that a command that does not mention it gets no argument more.
    pub(super) stdin: bool,
    /// The first word is a script for `sh -c`.
    pub(super) shell: bool,
}

/// A command with places for a record in it.
#[derive(Debug)]
pub(super) struct Template {
    words: Vec<Vec<Piece>>,
    json: bool,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(Vec<u8>),
    Record,
    Field(Field),
}

/// `.user.name`, in its parts.
#[derive(Debug, PartialEq)]
struct Field {
    path: Vec<String>,
}

impl Template {
    /// Reads a command. An error says what is wrong with which word.
    pub(super) fn parse(command: &[OsString], rules: &Rules<'_>) -> Result<Self, String> {
        if rules.replace.is_empty() {
            return Err("--replace is empty: it must be the text that stands for the record".to_owned());
        }
        let mut words = Vec::with_capacity(command.len() + 4);
        let mut rest = command;
        if rules.shell {
            let (script, arguments) = command.split_first().ok_or("--shell needs a script")?;
            let fixed = [OsStr::new("sh"), OsStr::new("-c"), script, OsStr::new("sh")];
            words.extend(fixed.map(|word| vec![Piece::Text(word.as_bytes().to_vec())]));
            rest = arguments;
        }
        for word in rest {
            words.push(pieces(word.as_bytes(), rules)?);
        }
        let mentioned = words.iter().flatten().any(|piece| !matches!(piece, Piece::Text(_)));
        if !mentioned && !rules.stdin {
            words.push(vec![Piece::Record]);
        }
        Ok(Self { words, json: rules.json })
    }

    /// The program, when it is the same for every record.
    pub(super) fn program(&self) -> Option<&OsStr> {
        match self.words.first()?.as_slice() {
            [] => Some(OsStr::new("")),
            [Piece::Text(text)] => Some(OsStr::from_bytes(text)),
            _ => None,
        }
    }

    /// The argument list for one record, or why it has none.
    pub(super) fn fill(&self, record: &[u8]) -> Result<Vec<OsString>, String> {
        if self.json {
            serde_json::from_slice::<&RawValue>(record).map_err(|error| format!("is not JSON: {error}"))?;
        }
        self.words.iter().map(|word| fill(word, record)).collect()
    }
}

fn fill(word: &[Piece], record: &[u8]) -> Result<OsString, String> {
    let mut filled = Vec::new();
    for piece in word {
        match piece {
            Piece::Text(text) => filled.extend_from_slice(text),
            Piece::Record => filled.extend_from_slice(record),
            Piece::Field(field) => filled.extend_from_slice(field.of(record)?.as_bytes()),
        }
    }
    if let Some(at) = filled.iter().position(|byte| *byte == 0) {
        return Err(format!(
            "has a NUL byte (at byte {} of an argument), which no argument can hold: use --stdin",
            at + 1
        ));
    }
    Ok(OsString::from_vec(filled))
}

/// Cuts a word at what stands for the record or for a field of it.
fn pieces(word: &[u8], rules: &Rules<'_>) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = Vec::new();
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let (piece, length) = if rest.starts_with(rules.replace.as_bytes()) {
            (Piece::Record, rules.replace.len())
        } else if rules.json && rest.starts_with(b"{.") {
            let length = rest.iter().position(|byte| *byte == b'}').map_or(rest.len(), |end| end + 1);
            (Piece::Field(Field::parse(&rest[..length])?), length)
        } else {
            text.push(*first);
            rest = after;
            continue;
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(piece);
        rest = &rest[length..];
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

impl Field {
    /// From `{.user.name}`.
    fn parse(braced: &[u8]) -> Result<Self, String> {
        let whole = || format!("`{}` in the command", excerpt(braced));
        let inner = braced.strip_prefix(b"{.").and_then(|inner| inner.strip_suffix(b"}"));
        let inner =
            inner.ok_or_else(|| format!("{} is not closed: a field is written {{.name}}", whole()))?;
        let inner = std::str::from_utf8(inner).map_err(|_| format!("{} is not UTF-8", whole()))?;
        let path: Vec<String> = inner.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!(
                "{} names no field: write {{.name}}, {{.outer.inner}} or {{.list.0}}",
                whole()
            ));
        }
        Ok(Self { path })
    }

    /// The field's text: a string's contents, and of anything else the JSON as it is written in the record.
    fn of(&self, record: &[u8]) -> Result<String, String> {
        let name = || self.path.join(".");
        let not_json = |error: serde_json::Error| format!("is not JSON: {error}");
        let mut value: &RawValue = serde_json::from_slice(record).map_err(not_json)?;
        for part in &self.path {
            let inner = match value.get().as_bytes().first() {
                Some(b'{') => {
                    // A key is borrowed where it can be, and owned where it is written with escapes.
                    let fields: HashMap<Key<'_>, &RawValue> =
                        serde_json::from_str(value.get()).map_err(not_json)?;
                    fields.get(part.as_str()).copied()
                }
                Some(b'[') => {
                    let items: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(not_json)?;
                    part.parse().ok().and_then(|at: usize| items.get(at).copied())
                }
                _ => None,
            };
            value = inner.ok_or_else(|| format!("has no field `{}`", name()))?;
        }
        match value.get() {
            "null" => Err(format!("has null for its field `{}`", name())),
            text if text.starts_with('"') => serde_json::from_str(text).map_err(not_json),
            text => Ok(text.to_owned()),
        }
    }
}

/// A key of an object.
#[derive(PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::borrow::Borrow<str> for Key<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rules<'_> = Rules { replace: "{}", json: false, stdin: false, shell: false };
    const JSON: Rules<'_> = Rules { json: true, ..PLAIN };

    fn words(command: &[&str]) -> Vec<OsString> {
        command.iter().map(OsString::from).collect()
    }

    fn filled(command: &[&str], rules: &Rules<'_>, record: &[u8]) -> Result<Vec<String>, String> {
        let list = Template::parse(&words(command), rules).expect("a good command").fill(record)?;
        Ok(list.into_iter().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_command_that_does_not_mention_the_record_gets_it_as_its_last_argument() {
        assert_eq!(filled(&["echo"], &PLAIN, b"a b").unwrap(), ["echo", "a b"]);
        assert_eq!(filled(&["echo", "-n", "x"], &PLAIN, b"").unwrap(), ["echo", "-n", "x", ""]);
        assert_eq!(filled(&["wc", "-c"], &Rules { stdin: true, ..PLAIN }, b"a").unwrap(), ["wc", "-c"]);
    }

    #[test]
    fn the_record_takes_its_place_in_any_argument_and_inside_one() {
        let list = filled(&["cp", "--from={}.txt", "{}", "{}{}", "{", "}"], &PLAIN, b"$a;'").unwrap();
        assert_eq!(list, ["cp", "--from=$a;'.txt", "$a;'", "$a;'$a;'", "{", "}"]);
        assert_eq!(filled(&["{}", "x"], &PLAIN, b"ls").unwrap(), ["ls", "x"]);
        let other = Rules { replace: "%", ..PLAIN };
        assert_eq!(
            filled(&["find", "%", "-exec", "rm", "{}", ";"], &other, b".").unwrap()[1..],
            [".", "-exec", "rm", "{}", ";"]
        );
        // What the record itself says is not looked at again.
        assert_eq!(filled(&["echo", "{}", "{}"], &PLAIN, b"{}").unwrap(), ["echo", "{}", "{}"]);
    }

    #[test]
    fn a_record_that_is_not_text_arrives_byte_for_byte() {
        let template = Template::parse(&words(&["echo", "<{}>"]), &PLAIN).unwrap();
        let list = template.fill(b"\xff\n\x80").unwrap();
        assert_eq!(list[1].as_bytes(), b"<\xff\n\x80>");
    }

    #[test]
    fn a_script_is_never_touched_and_gets_the_record_as_its_first_parameter() {
        let shell = Rules { shell: true, ..PLAIN };
        let script = "echo \"$1\" {}";
        assert_eq!(filled(&[script], &shell, b"$(rm x)").unwrap(), ["sh", "-c", script, "sh", "$(rm x)"]);
        assert_eq!(
            filled(&[script, "a={}", "b"], &shell, b"r").unwrap(),
            ["sh", "-c", script, "sh", "a=r", "b"]
        );
        let stdin = Rules { shell: true, stdin: true, ..PLAIN };
        assert_eq!(filled(&["wc | tr"], &stdin, b"r").unwrap(), ["sh", "-c", "wc | tr", "sh"]);
        assert!(Template::parse(&[], &shell).is_err());
    }

    #[test]
    fn the_fields_of_a_json_record_are_found_by_their_path() {
        let record =
            br#"{"id": 12345678901234567890123, "user": {"name": "A \"B\" \u00e9", "n\u0061me2": 1.50},
            "list": [true, {"x": [1, 2]}], "none": null, "a": 1, "a": 2}"#;
        for (field, value) in [
            ("{.id}", "12345678901234567890123"),
            ("{.user.name}", "A \"B\" é"),
            ("{.user.name2}", "1.50"),
            ("{.list.0}", "true"),
            ("{.list.1.x}", "[1, 2]"),
            ("{.a}", "2"),
            ("<{.id}-{.list.0}>", "<12345678901234567890123-true>"),
        ] {
            assert_eq!(filled(&["echo", field], &JSON, record).unwrap()[1], value, "{field}");
        }
        assert_eq!(filled(&["echo"], &JSON, b" [1] ").unwrap(), ["echo", " [1] "]);
    }

    #[test]
    fn a_record_that_does_not_fit_the_command_is_told_why() {
        for (field, record, why) in [
            ("{.a}", &b"{\"b\": 1}"[..], "has no field `a`"),
            ("{.a.b}", b"{\"a\": 1}", "has no field `a.b`"),
            ("{.a.7}", b"{\"a\": [1]}", "has no field `a.7`"),
            ("{.a.x}", b"{\"a\": [1]}", "has no field `a.x`"),
            ("{.a}", b"{\"a\": null}", "has null for its field `a`"),
            ("{.a}", b"{\"a\": ", "is not JSON: EOF while parsing a value at line 1 column 6"),
            ("{}", b"{} x", "is not JSON: trailing characters at line 1 column 4"),
            (
                "{.a}",
                b"{\"a\": \"x\\u0000\"}",
                "has a NUL byte (at byte 2 of an argument), which no argument can hold: use --stdin",
            ),
        ] {
            assert_eq!(filled(&["echo", field], &JSON, record).unwrap_err(), why);
        }
        let why = filled(&["echo", "a{}"], &PLAIN, b"b\0").unwrap_err();
        assert!(why.starts_with("has a NUL byte (at byte 3 of an argument)"), "{why}");
    }

    #[test]
    fn a_command_that_makes_no_sense_is_told_which_word() {
        for (word, why) in [
            ("{.}", "`{.}` in the command names no field: write {.name}, {.outer.inner} or {.list.0}"),
            (
                "x{.a..b}",
                "`{.a..b}` in the command names no field: write {.name}, {.outer.inner} or {.list.0}",
            ),
            ("{.a", "`{.a` in the command is not closed: a field is written {.name}"),
        ] {
            assert_eq!(Template::parse(&words(&["echo", word]), &JSON).unwrap_err(), why);
            assert!(Template::parse(&words(&["echo", word]), &PLAIN).is_ok());
        }
        assert!(Template::parse(&words(&["echo"]), &Rules { replace: "", ..PLAIN }).is_err());
    }

    #[test]
    fn the_program_is_known_beforehand_unless_the_record_names_it() {
        let program = |command: &[&str], rules| {
            Template::parse(&words(command), rules)
                .unwrap()
                .program()
                .map(|name| name.to_string_lossy().into_owned())
        };
        assert_eq!(program(&["gzip", "{}"], &PLAIN).as_deref(), Some("gzip"));
        assert_eq!(program(&["{}"], &PLAIN), None);
        assert_eq!(program(&["./{}.sh"], &PLAIN), None);
        assert_eq!(program(&["exit 3"], &Rules { shell: true, ..PLAIN }).as_deref(), Some("sh"));
    }
}
