//! `tidegate enqueue`: one job from the command line, or many from JSON lines.
//!
//! What was given is checked before the queue is opened, so that a command that makes no sense makes no file.

mod args;
mod draft;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod line;
mod many;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;
use serde::Serialize;

pub(crate) use self::args::{EXITS, EnqueueArgs, MORE};
use self::draft::MAX_PAYLOAD_BYTES;
use super::excerpt::escaped;
use super::stdout::{json_line, print};
use super::store::{Purpose, Store, failed};
use super::{Exit, refuse};
use crate::enqueue::{Enqueued, NewJob};

/// Does what `args` ask for.
pub(crate) fn run(args: &EnqueueArgs) -> Exit {
    if let Err(why) = args.check() {
        return refuse(Exit::Usage, why);
    }
    let done = match &args.json_lines {
        Some(path) => many::run(args, path),
        None => one(args),
    };
    done.unwrap_or_else(|exit| exit)
}

fn one(args: &EnqueueArgs) -> Result<Exit, Exit> {
    let mut draft = args.draft();
    draft.payload = Some(payload(args)?);
    let job = draft.job().map_err(|why| refuse(Exit::Usage, escaped(&why)))?;
    let keyed = job.unique.is_some();
    let store = Store::open(&args.source, Purpose::Fill)?;
    let enqueued = enqueue(&store, vec![job])?;
    let shown = enqueued.iter().flat_map(|enqueued| shown(enqueued, None, keyed, args));
    print(&shown.collect::<Vec<u8>>())?;
    Ok(Exit::Done)
}

/// The payload that the command line names.
fn payload(args: &EnqueueArgs) -> Result<Bytes, Exit> {
    let dash = Path::new("-");
    match (&args.payload, &args.payload_file) {
        (Some(payload), _) if payload != "-" => Ok(Bytes::copy_from_slice(payload.as_bytes())),
        (None, Some(path)) if path != dash => {
            read(File::open(path), &escaped(&path.display().to_string())).map(Bytes::from)
        }
        (None, None) => Ok(Bytes::new()),
        _ => read(Ok(io::stdin().lock()), "standard input").map(Bytes::from),
    }
}

/// Reads one byte more than a payload may have, and refuses it then.
fn read(from: io::Result<impl Read>, name: &str) -> Result<Vec<u8>, Exit> {
    let mut bytes = Vec::new();
    from.and_then(|from| from.take(MAX_PAYLOAD_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(Exit::Input, format!("the payload can't be read from {name}: {error}")))?;
    if bytes.len() > MAX_PAYLOAD_BYTES {
        return Err(refuse(
            Exit::Usage,
            format!(
                "the payload from {name} has more than {MAX_PAYLOAD_BYTES} bytes: keep it elsewhere, and name it"
            ),
        ));
    }
    Ok(bytes)
}

fn enqueue(store: &Store, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Exit> {
    let enqueue = store.enqueue().map_err(|error| failed(&error))?;
    store.wait(enqueue.enqueue(jobs)).map_err(|error| failed(&error))
}

/// What became of a job, as `--json` shows it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    ok: bool,
    id: &'a str,
    result: &'static str,
}

/// The line of output that says what became of a job.
fn shown(enqueued: &Enqueued, line: Option<u64>, keyed: bool, args: &EnqueueArgs) -> Vec<u8> {
    let id = enqueued.id().as_str();
    let result = match enqueued {
        Enqueued::Created(_) => "created",
        Enqueued::Duplicate(_) => "duplicate",
        Enqueued::Replaced(_) => "replaced",
    };
    if args.json {
        json_line(&Line { line, ok: true, id, result })
    } else if args.quiet {
        Vec::new()
    } else if keyed {
        format!("{}\t{result}\n", escaped(id)).into_bytes()
    } else {
        format!("{}\n", escaped(id)).into_bytes()
    }
}
