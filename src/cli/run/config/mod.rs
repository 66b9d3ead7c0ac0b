//! The configuration of `tidegate run`: a TOML file, over it the environment, over that the flags.
//!
//! ```text
//!  file ──▶ tree ──▶ overlay: variables, flags ──▶ settings, kinds ──▶ Config
//!                                                   │ table: key by key
//!                                                   ▼
//!                                                problems ──▶ Refused: FILE:LINE:COLUMN, and what to do
//! ```
//!
//! It is taken as a whole or not at all: a key that nobody knows, a value out of its range, a program that is not
//! there. What is refused is refused with everything that is wrong with it, and never with a value that may be a
//! secret.

mod kinds;
mod overlay;
pub(super) mod problem;
mod retry;
mod settings;
mod source;
mod table;
pub(super) mod tree;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub(crate) use self::kinds::{Common, secrets};
pub(crate) use self::overlay::{Flag, FlagValue, Overrides};
pub(crate) use self::problem::Refused;
use self::problem::{Document, Origin, Problem};
pub(crate) use self::settings::{LogSettings, RedisSettings, Settings};
pub(crate) use self::source::Source;
use self::table::Reading;
pub(crate) use self::table::Table;
pub(crate) use self::tree::Node;
use crate::registry::Registry;

/// The largest file that is read: thousands of kinds fit.
const MAX_BYTES: u64 = 1 << 20;

/// Where the file is, and from where it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// As it was named.
    name: String,
    file: PathBuf,
    /// Where it stands, and where this process was when it was asked for.
    folder: PathBuf,
    here: PathBuf,
}

/// A configuration that makes sense.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    pub(crate) registry: Registry,
}

impl Place {
    /// The file that `path` names here and now.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let here = std::env::current_dir()?;
        let file = here.join(path);
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { name: path.display().to_string(), file, folder, here })
    }

    /// Where a path begins that was said there: in the folder of the file that says it, or else in the current one.
    fn base(&self, origin: &Origin) -> &Path {
        match origin {
            Origin::Whole | Origin::File(_) => &self.folder,
            Origin::Variable(_) | Origin::Flag(_) => &self.here,
        }
    }

    fn read(&self) -> Result<Document, String> {
        let cant = |error: io::Error| format!("can't be read: {error}");
        let file = File::open(&self.file).map_err(cant)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cant)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("has more than {} KiB: this is no configuration", MAX_BYTES >> 10));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("is not UTF-8 in line {line}")
        })?;
        Ok(Document::new(&self.name, text))
    }

    /// The file's text, and what it says under `overrides`.
    fn tree(&self, overrides: &Overrides, reading: &Reading<'_>) -> Result<(Document, Node), Refused> {
        let whole =
            |what| Refused::new(Document::new(&self.name, ""), vec![Problem::new(&Origin::Whole, what)]);
        let mut document = self.read().map_err(whole)?;
        match tree::parse(&mut document) {
            Ok(mut root) => {
                overrides.lay_over(&mut root, reading);
                Ok((document, root))
            }
            Err(problem) => Err(Refused::new(document, vec![problem])),
        }
    }
}

/// Reads the whole configuration and finds what its handlers need.
///
/// Blocks while the file system does.
pub(crate) fn load(place: &Place, overrides: &Overrides) -> Result<Config, Refused> {
    let reading = Reading::new(place);
    let (document, root) = place.tree(overrides, &reading)?;
    let mut table = Table::new("", &root, &reading);
    let settings = Settings::read(&mut table);
    let registry = kinds::read(&mut table, &settings.worker);
    table.end();
    let problems = reading.into_all();
    if problems.is_empty() {
        Ok(Config { settings, registry })
    } else {
        Err(Refused::new(document, problems))
    }
}

/// The URL of the source that the configuration in the file `path` names, with how it is written to
/// (`redis.times_in_seconds`), under the environment of this process; and whether it may be a database of another program
/// (`sqlite.adopt`). The rest of the file may make no sense.
///
/// # Errors
/// When the file can't be read, is no TOML, or what it says of these makes no sense.
pub(crate) fn url_of(path: &Path) -> Result<(String, bool), Refused> {
    const MEANT: [&str; 3] =
        ["TIDEGATE_SOURCE", "TIDEGATE_SQLITE__ADOPT", "TIDEGATE_REDIS__TIMES_IN_SECONDS"];
    let cant = |error: io::Error| {
        let document = Document::new(path.display().to_string(), "");
        Refused::new(document, vec![Problem::new(&Origin::Whole, format!("can't be found: {error}"))])
    };
    let place = Place::new(path).map_err(cant)?;
    let reading = Reading::new(&place);
    let mut overrides = Overrides::of_process(Vec::new());
    overrides.variables.retain(|(name, _)| MEANT.contains(&name.as_str()));
    let (document, root) = place.tree(&overrides, &reading)?;
    let mut root = Table::new("", &root, &reading);
    let source = Source::read(&mut root);
    let adopt = root.table("sqlite").and_then(|mut table| table.truth("adopt")).unwrap_or_default();
    let url =
        if source.is_redis() { RedisSettings::url_in(&mut root, &source) } else { source.url().to_owned() };
    let problems = reading.into_all();
    if problems.is_empty() { Ok((url, adopt)) } else { Err(Refused::new(document, problems)) }
}
