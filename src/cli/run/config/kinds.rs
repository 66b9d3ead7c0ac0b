//! The kinds: which handler runs which, and what differs for each.
//!
//! Everything that a handler needs is looked for here, so that a mistake is found before a job is: the program, the
//! secrets, the certificates.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize as _;
use serde::de::value::{Error as Unfit, MapDeserializer};

use super::problem::{Origin, Problem};
use super::retry::Retry;
use super::settings::WorkerSettings;
use super::table::{Table, closest};
use super::tree::{Key, Node, Value};
use crate::cli::run::exec::{ExecSpec, MAX_OUTPUT};
use crate::cli::run::http_kind;
use crate::cli::run::secret::Secret;
use crate::registry::{KindOptions, Registry};
use crate::retry::RetryPolicy;
use crate::worker::MAX_CONCURRENT_JOBS;

/// The time between TERM and KILL. Well within what a worker gives a job that was told to stop.
const GRACE: Duration = Duration::from_secs(2);

/// How much is kept of each of a command's outputs: what a person reads of them.
const KEPT: usize = 16 << 10;

/// When a job comes again whose command has said "not now".
const LATER: Duration = Duration::from_secs(60);

/// What holds for a kind, whatever its handler is.
pub(crate) struct Common {
    options: KindOptions,
    /// What was set, or is set for all kinds.
    pub(crate) timeout: Option<Duration>,
    /// Whether it was set for this kind.
    pub(crate) own_timeout: bool,
    pub(crate) retry: RetryPolicy,
    cancel_grace: Duration,
}

/// Reads `[kinds]`, and registers a handler for each that makes sense.
pub(super) fn read(root: &mut Table<'_>, worker: &WorkerSettings) -> Registry {
    let mut registry = Registry::new();
    let reading = root.reading();
    let table = root.table("kinds");
    let kinds = table.as_ref().map(Table::entries).unwrap_or_default();
    if kinds.is_empty() {
        let origin = table.as_ref().map_or(&Origin::Whole, Table::origin);
        reading.note(Problem::new(
            origin,
            "there is no kind: write [kinds.NAME], and in it exec = [\"PROGRAM\"]",
        ));
    }
    for (Key { name, origin }, node) in kinds {
        if name.is_empty() {
            reading.note(Problem::new(origin, "the name of a kind is empty"));
        }
        let table = Table::new(format!("kinds.{}", written(name)), node, reading);
        registry = kind(registry, name, origin, table, worker);
    }
    registry
}

/// A name as it is written in TOML.
fn written(name: &str) -> String {
    let bare = |char: char| char.is_ascii_alphanumeric() || "_-".contains(char);
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

fn kind(
    registry: Registry,
    name: &str,
    origin: &Origin,
    mut table: Table<'_>,
    worker: &WorkerSettings,
) -> Registry {
    let mut common = Common::read(&mut table, worker);
    let registry = match (table.get("exec"), table.get("http")) {
        (Some(node), None) => exec(registry, name, node, &mut table, &common),
        (None, Some(node)) => http_kind::register(registry, name, node, &mut table, &mut common),
        // What else is wrong with it depends on which of the two was meant.
        (found, _) => {
            let what = if found.is_some() {
                "has both exec and http: which of them is to run?".to_owned()
            } else {
                needs_one(name, &table)
            };
            table.reading().note(Problem::new(origin, format!("kinds.{} {what}", written(name))));
            return registry;
        }
    };
    table.end();
    // Without a handler there is a problem, and nobody gets this registry.
    registry.options(name, common.options)
}

fn needs_one(name: &str, table: &Table<'_>) -> String {
    const HANDLERS: [&str; 2] = ["exec", "http"];
    let advice = table.entries().iter().find_map(|(key, node)| {
        let is_kind = node
            .entries()
            .is_some_and(|keys| keys.iter().any(|(key, _)| HANDLERS.contains(&key.name.as_str())));
        if is_kind {
            return Some(format!(
                "; a kind with a dot in its name is written [kinds.\"{name}.{}\"]",
                key.name
            ));
        }
        closest(&key.name, HANDLERS).map(|meant| format!("; did you mean `{meant}` by `{}`?", key.name))
    });
    format!("needs exec = [\"PROGRAM\"] or http = \"URL\"{}", advice.unwrap_or_default())
}

impl Common {
    fn read(table: &mut Table<'_>, worker: &WorkerSettings) -> Self {
        let own = table.time_or_word("timeout");
        let timeout = own.unwrap_or(worker.job_timeout);
        let retry =
            table.table("retry").map_or(worker.retry, |retry| Retry::read(retry, worker.retry)).policy();
        let most = MAX_CONCURRENT_JOBS as u64;
        let mut options = KindOptions::new().retry(retry.clone());
        options = timeout.map_or(options.clone().no_timeout(), |timeout| options.timeout(timeout));
        if let Some(jobs) = table.count("max_concurrent_jobs", 1, most) {
            options = options.max_concurrent_jobs(jobs as usize);
        }
        Self { options, timeout, own_timeout: own.is_some(), retry, cancel_grace: worker.cancel_grace }
    }

    /// An attempt may take this long.
    pub(crate) fn limit(&mut self, timeout: Duration) {
        self.options = self.options.clone().timeout(timeout);
    }
}

/// A kind whose jobs are commands.
fn exec(registry: Registry, name: &str, node: &Node, table: &mut Table<'_>, common: &Common) -> Registry {
    let folder = table.path("folder");
    let mut argv = command(node, table).unwrap_or_default();
    if let Some(program) = argv.first_mut().filter(|program| program.contains('/') && folder.is_none()) {
        // What can't be written as text is not found there, and that is said.
        *program = table.reading().base(&node.origin).join(&*program).to_string_lossy().into_owned();
    }
    let grace = table.time_or_zero("grace");
    if let Some(grace) = grace.filter(|grace| *grace >= common.cancel_grace) {
        let longest = common.cancel_grace;
        let what = format!(
            "({grace:?}) must be less than worker.cancel_grace ({longest:?}), when the job is cut off"
        );
        if let Some(node) = table.get("grace") {
            table.refuse("grace", node, what);
        }
    }
    let spec = ExecSpec {
        argv,
        env: secrets(table, "env", |name| !name.is_empty() && !name.contains(['=', '\0'])),
        folder,
        grace: grace.unwrap_or(GRACE.min(common.cancel_grace / 2)),
        max_output: table.size_up_to("max_output", MAX_OUTPUT).unwrap_or(KEPT),
        later: table.time("later").unwrap_or(LATER),
    };
    if spec.argv.is_empty() {
        return registry;
    }
    match spec.handler() {
        Ok(handler) => registry.handle_raw(name, handler),
        Err(why) => {
            table.reading().note(Problem::new(&node.origin, format!("{}: {why}", table.name("exec"))));
            registry
        }
    }
}

/// A list of words, the first of which is the program. Nothing of it is shown: an argument may be a secret.
fn command(node: &Node, table: &Table<'_>) -> Option<Vec<String>> {
    const FORM: &str = "must be a list of words, the first of which is the program: [\"resize\", \"--fast\"]";
    let refuse = |node: &Node, why: String| {
        table.reading().note(Problem::new(&node.origin, format!("{} {why}", table.name("exec"))));
        None
    };
    let Value::List(words) = &node.value else {
        let hint = if node.text().is_some() {
            " (no shell reads it; for one write [\"sh\", \"-c\", \"…\"])"
        } else {
            ""
        };
        return refuse(node, format!("{FORM}, and is {}{hint}", node.sort()));
    };
    if let Some(bad) = words.iter().find(|word| word.text().is_none()) {
        return refuse(bad, format!("{FORM}; one of these is {}", bad.sort()));
    }
    let words: Vec<String> = words.iter().filter_map(Node::text).map(str::to_owned).collect();
    if words.first().is_none_or(String::is_empty) {
        return refuse(node, format!("{FORM}; it names no program"));
    }
    Some(words)
}

/// A table of names and secrets, each of which is there. Nothing of it is ever shown.
pub(crate) fn secrets(
    table: &mut Table<'_>,
    key: &'static str,
    is_name: fn(&str) -> bool,
) -> BTreeMap<String, Secret> {
    let mut secrets = BTreeMap::new();
    let Some(within) = table.table(key) else { return secrets };
    for (Key { name, origin }, node) in within.entries() {
        let read = if is_name(name) {
            secret(node, within.reading().base(&node.origin))
        } else {
            Err("is no name for this".to_owned())
        };
        match read {
            Ok(secret) => drop(secrets.insert(name.clone(), secret)),
            Err(why) => {
                let what = format!("{}: {why}", within.name(&name.escape_debug().to_string()));
                within.reading().note(Problem::new(origin, what));
            }
        }
    }
    secrets
}

/// A secret that can be read now. The path of its file may be relative to `base`.
fn secret(node: &Node, base: &Path) -> Result<Secret, String> {
    let secret = match (node.text(), node.entries()) {
        (Some(text), _) if matches!(node.origin, Origin::Variable(_)) => Secret::laid(text),
        (Some(text), _) => Secret::from(text),
        (None, Some(form)) => {
            let words = form.iter().map(|(key, node)| Some((key.name.as_str(), node.text()?)));
            let words: Option<Vec<(&str, &str)>> = words.collect();
            let words = words.ok_or("it must be a text, { env = \"NAME\" } or { file = \"PATH\" }")?;
            let whole = |(key, word): (&str, &str)| match key {
                "file" if !word.is_empty() => {
                    (key.to_owned(), base.join(word).to_string_lossy().into_owned())
                }
                _ => (key.to_owned(), word.to_owned()),
            };
            let form = MapDeserializer::<_, Unfit>::new(words.into_iter().map(whole));
            Secret::deserialize(form).map_err(|why| why.to_string())?
        }
        (None, None) => {
            return Err(format!(
                "it must be a text, {{ env = \"NAME\" }} or {{ file = \"PATH\" }}, and is {}",
                node.sort()
            ));
        }
    };
    secret.read()?;
    Ok(secret)
}
