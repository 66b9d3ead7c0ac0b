//! A value that nobody may see: [`Secret`], as it stands in a config, and [`Revealed`], as it is used.
//!
//! Neither shows its value by `Debug`, and no error repeats it: an error names the variable or the file. It is
//! read when it is asked for, so that a reload sees what has changed.

use std::env::{self, VarError};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// The largest file that is taken for a secret: certificates with their chains stay far below.
const MAX_BYTES: u64 = 64 << 10;

const FORMS: &str = "a text, { env = \"NAME\" } or { file = \"/path\" }";

/// Where a value that nobody may see comes from.
///
/// In a config a text, `{ env = "NAME" }` or `{ file = "/path" }`; of a file one newline at the end is left out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Origin);

#[derive(Clone, PartialEq, Eq)]
enum Origin {
    Text(Revealed),
    /// A text that a variable has laid over the file.
    Laid(Revealed),
    Env(String),
    File(PathBuf),
}

/// The value of a secret. Dropped, its memory is given back as it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Revealed(String);

impl Secret {
    /// A text that comes from the environment, though the configuration does not say so.
    pub(crate) fn laid(text: &str) -> Self {
        Self(Origin::Laid(Revealed(text.to_owned())))
    }

    /// Whether it stands in the configuration's file for everybody who may read that. Many such are no secrets.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.0, Origin::Text(_))
    }

    /// Reads the value: UTF-8, at most 64 KiB from a file. Blocks while the file system does.
    ///
    /// # Errors
    /// In words, with the name of the variable or file and never with its contents.
    pub(crate) fn read(&self) -> Result<Revealed, String> {
        match &self.0 {
            Origin::Text(text) | Origin::Laid(text) => Ok(text.clone()),
            Origin::Env(name) => env::var(name).map(Revealed).map_err(|error| match error {
                VarError::NotPresent => format!("the environment variable {name} is not set"),
                VarError::NotUnicode(_) => format!("the environment variable {name} is not UTF-8"),
            }),
            Origin::File(path) => {
                let shown = path.display();
                let mut bytes = Vec::new();
                let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
                read.map_err(|error| format!("the file {shown} can't be read: {error}"))?;
                if bytes.len() as u64 > MAX_BYTES {
                    return Err(format!("the file {shown} has more than {} KiB", MAX_BYTES >> 10));
                }
                let mut text =
                    String::from_utf8(bytes).map_err(|_| format!("the file {shown} is not UTF-8"))?;
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Ok(Revealed(text))
            }
        }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Origin::Text(Revealed(text.to_owned())))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Text(text) | Origin::Laid(text) => text.fmt(f),
            Origin::Env(name) => write!(f, "(the variable {name})"),
            Origin::File(path) => write!(f, "(the file {})", path.display()),
        }
    }
}

impl Revealed {
    /// The value itself, for where it is used and nowhere else.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Revealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Form)
    }
}

/// Reads one of the three forms. What is none of them is refused without being shown: it may be the secret, written
/// without quotation marks.
struct Form;

impl<'de> Visitor<'de> for Form {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMS)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::from(text))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Secret, E> {
        Err(E::custom(format_args!("it must be {FORMS}, and is true or false")))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
        Err(E::custom(format_args!("it must be {FORMS}, and is a number")))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Secret, E> {
        self.visit_i64(0)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
        self.visit_i64(0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
        let one = || A::Error::custom(format_args!("it must be {FORMS}: one of the two, and nothing else"));
        let origin = match map.next_key::<String>()?.as_deref() {
            Some("env") => {
                let name: String = map.next_value()?;
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(A::Error::custom("env must be the name of an environment variable"));
                }
                Origin::Env(name)
            }
            Some("file") => {
                let path: PathBuf = map.next_value()?;
                if path.as_os_str().is_empty() {
                    return Err(A::Error::custom("file must be the path of a file"));
                }
                Origin::File(path)
            }
            _ => return Err(one()),
        };
        if map.next_key::<serde::de::IgnoredAny>()?.is_some() { Err(one()) } else { Ok(Secret(origin)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::testing::Folder;

    fn secret(json: &str) -> Result<Secret, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn value(json: &str) -> Result<String, String> {
        secret(json)?.read().map(|value| value.as_str().to_owned())
    }

    #[test]
    fn a_secret_is_read_from_where_it_is() {
        assert_eq!(value(r#""hunter2\n""#), Ok("hunter2\n".to_owned()));
        assert_eq!(value(r#"{"env":"PATH"}"#).ok(), env::var("PATH").ok());
        let folder = Folder::new();
        for (contents, read) in
            [("hunter2\n", "hunter2"), ("a\nb\r\n", "a\nb"), ("a\n\n", "a\n"), ("", ""), ("a\r", "a\r")]
        {
            let path = folder.write("secret", contents);
            assert_eq!(value(&format!(r#"{{"file":{path:?}}}"#)), Ok(read.to_owned()));
        }
    }

    #[test]
    fn what_can_t_be_read_is_named_and_not_shown() {
        let folder = Folder::new();
        let not_text = folder.write("bytes", b"hunter2\xff");
        let long = folder.write("long", "hunter2".repeat(10_000));
        for (json, why) in [
            (
                r#"{"env":"TIDEGATE_TEST_NOT_SET"}"#.to_owned(),
                "the environment variable TIDEGATE_TEST_NOT_SET is not set".to_owned(),
            ),
            (
                r#"{"file":"/no/such"}"#.to_owned(),
                "the file /no/such can't be read: No such file or directory (os error 2)".to_owned(),
            ),
            (format!(r#"{{"file":{not_text:?}}}"#), format!("the file {} is not UTF-8", not_text.display())),
            (format!(r#"{{"file":{long:?}}}"#), format!("the file {} has more than 64 KiB", long.display())),
        ] {
            assert_eq!(value(&json), Err(why));
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        for json in [
            "12345",
            "-12345",
            "12345.5",
            "true",
            "null",
            r#"["12345"]"#,
            "{}",
            r#"{"value":"12345"}"#,
            r#"{"env":"A","file":"12345"}"#,
            r#"{"env":""}"#,
            r#"{"env":"12345="}"#,
            r#"{"file":""}"#,
        ] {
            let why = secret(json).expect_err(json);
            assert!(!why.contains("12345") && !why.is_empty(), "{json}: {why}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::from("hunter2");
        let value = secret.read().expect("it is a text");
        assert_eq!(format!("{secret:?} {value:?}"), "(secret) (secret)");
        let elsewhere = [r#"{"env":"NAME"}"#, r#"{"file":"/path"}"#].map(super::tests::secret);
        assert_eq!(format!("{elsewhere:?}"), "[Ok((the variable NAME)), Ok((the file /path))]");
    }
}
