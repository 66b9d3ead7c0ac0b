//! Where jobs come from, by a URL: which file is meant, and how it may be shown.

use std::fmt;
use std::path::{Path, PathBuf};

use super::problem::{Origin, Problem};
use super::table::Table;
use crate::backend;
use crate::cli::store::with_scheme;
use crate::source::RetryFormula;

/// The file's name when nothing else is said.
const DEFAULT: &str = "sqlite:tidegate.sqlite";

/// A source's URL. A path in it is absolute.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Source {
    url: String,
}

impl Source {
    /// Reads it from the outermost table.
    pub(super) fn read(root: &mut Table<'_>) -> Self {
        let node = root.get("source");
        let origin = node.map_or(&Origin::Whole, |node| &node.origin);
        let url = node.map_or(Some(DEFAULT), |node| node.text());
        let base = root.reading().base(origin);
        let read = match url {
            Some(url) => Self::new(url, base).and_then(|source| source.check().map(|()| source)),
            None => Err("must be a URL such as \"sqlite:/var/lib/tidegate/jobs.sqlite\"".to_owned()),
        };
        read.unwrap_or_else(|what| {
            root.reading().note(Problem::new(origin, format!("source {what}")));
            Self { url: DEFAULT.to_owned() }
        })
    }

    fn new(url: &str, base: &Path) -> Result<Self, String> {
        let url = match with_scheme(url) {
            url if !url.starts_with("sqlite:") => url.into_owned(),
            url => {
                let path = base.join(backend::sqlite_path(&url).ok_or("names no file: write sqlite:PATH")?);
                format!("sqlite:{}", path.to_str().ok_or("is relative to a folder whose name is not UTF-8")?)
            }
        };
        Ok(Self { url })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its URL with an option, before which goes what the URL says itself.
    pub(super) fn with_option(&self, option: &str) -> String {
        match self.url.split_once('?') {
            Some((address, query)) => format!("{address}?{option}&{query}"),
            None => format!("{}?{option}", self.url),
        }
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        backend::sqlite_path(&self.url).map(PathBuf::from)
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        backend::sqlite_path(&self.url).is_some()
    }

    pub(crate) fn is_redis(&self) -> bool {
        self.url.split(':').next().is_some_and(|scheme| scheme.starts_with("redis"))
    }

    /// By which formula failed jobs are retried there, unless something else is said.
    pub(super) fn retry(&self) -> RetryFormula {
        if self.is_sqlite() {
            return RetryFormula::default();
        }
        // Opening a server only makes sense of its address. What makes none has been noted.
        backend::open(&self.url).map_or_else(|_| RetryFormula::default(), |backend| backend.intake.retry)
    }

    /// Finds what would keep it from being opened, as far as that can be told without opening it.
    fn check(&self) -> Result<(), String> {
        if self.url.starts_with("memory:") {
            return Err("is memory: nobody but this process could put jobs there".to_owned());
        }
        let Some(file) = self.file() else {
            return backend::open(&self.url).map(drop).map_err(|error| format!("makes no sense: {error}"));
        };
        let folder = file.parent().unwrap_or(Path::new("/"));
        match folder.metadata() {
            _ if file.is_dir() => Err("names a folder: name a file in it".to_owned()),
            Ok(there) if there.is_dir() => Ok(()),
            Ok(_) => Err(format!("names a file in {}, which is no folder", folder.display())),
            Err(error) => {
                Err(format!("names a file in a folder that is of no use: {}: {error}", folder.display()))
            }
        }
    }
}

/// Without what may be a secret: a user, a password, options.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sqlite() {
            return f.write_str(&self.url);
        }
        let (scheme, rest) = self.url.split_once(':').unwrap_or(("", ""));
        let (options, user) = (rest.find(['?', '#']).unwrap_or(rest.len()), rest.rfind('@'));
        match (rest.strip_prefix("//"), user) {
            (Some(_), Some(user)) if user < options => write!(f, "{scheme}://{}", &rest[user + 1..options]),
            (Some(_), None) => write!(f, "{scheme}:{}", &rest[..options]),
            // Where the one ends and the other begins can't be told.
            _ => write!(f, "{scheme}:…"),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_shown_without_what_may_be_a_secret() {
        for (url, shown) in [
            ("sqlite:/jobs.sqlite", "sqlite:/jobs.sqlite"),
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://user:hush@localhost/0", "redis://localhost/0"),
            ("redis://user:hu/sh@localhost/0?password=hush", "redis://localhost/0"),
            ("amqp://localhost/?password=hush", "amqp://localhost/"),
            ("amqp://user:hu?sh@localhost", "amqp:…"),
            ("amqp://localhost/?password=hu@sh", "amqp:…"),
            ("mail:hush", "mail:…"),
            ("hush", ":…"),
        ] {
            let source = Source { url: url.to_owned() };
            assert_eq!(source.to_string(), shown);
            assert!(!format!("{source:?}").contains("hu"), "{source:?}");
        }
    }

    #[test]
    fn a_relative_path_begins_where_it_was_said() {
        for (url, file) in [
            ("sqlite:jobs", "/etc/tidegate/jobs"),
            ("jobs.sqlite", "/etc/tidegate/jobs.sqlite"),
            ("sqlite:/jobs.sqlite", "/jobs.sqlite"),
            ("sqlite:///jobs.sqlite", "/jobs.sqlite"),
        ] {
            let source = Source::new(url, Path::new("/etc/tidegate")).expect("it names a file");
            assert_eq!(source.file(), Some(PathBuf::from(file)), "{url}");
        }
        for url in ["sqlite:", "sqlite://", "sqlite::memory:"] {
            assert!(Source::new(url, Path::new("/")).is_err(), "{url}");
        }
    }
}
