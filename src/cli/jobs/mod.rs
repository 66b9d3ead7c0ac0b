//! `tidegate jobs`: what is in a queue, shown and changed.

mod args;
mod bulk;
mod change;
mod list;
mod pages;
mod view;

pub(crate) use self::args::{EXITS, JobsArgs, MORE};
use self::args::{JobsCommand, ListArgs};
use self::change::{Change, change};
use super::store::{Purpose, Store};
use super::{Exit, refuse};

/// Does what `args` ask for.
pub(crate) fn run(args: &JobsArgs) -> Exit {
    carry_out(args).unwrap_or_else(|exit| exit)
}

fn carry_out(args: &JobsArgs) -> Result<Exit, Exit> {
    let before = args.list != ListArgs::default();
    let list = match &args.command {
        Some(JobsCommand::List(list)) if before && *list != ListArgs::default() => {
            let why = "the options of `jobs list` stand on both sides of its name: write all of them before `list`, \
                       or all of them after it";
            return Err(refuse(Exit::Usage, why));
        }
        Some(JobsCommand::List(list)) if !before => list,
        Some(command) if before && !matches!(command, JobsCommand::List(_)) => {
            let name = command.name();
            let why = format!("--state and the other options of `jobs list` belong to it, not to `{name}`");
            return Err(refuse(Exit::Usage, why));
        }
        _ => &args.list,
    };
    let purpose = match &args.command {
        None | Some(JobsCommand::List(_) | JobsCommand::Show(_)) => Purpose::Look,
        Some(_) => Purpose::Change,
    };
    let store = Store::open(&args.source, purpose)?;
    match &args.command {
        None | Some(JobsCommand::List(_)) => list::list(&store, list, args.json),
        Some(JobsCommand::Show(show)) => list::show(&store, show, args.json),
        Some(JobsCommand::Retry(ids)) => change(&store, Change::Retry, &ids.ids, args.json),
        Some(JobsCommand::Cancel(ids)) => change(&store, Change::Cancel, &ids.ids, args.json),
        Some(JobsCommand::Delete(ids)) => change(&store, Change::Delete, &ids.ids, args.json),
        Some(JobsCommand::RequeueDead(dead)) => bulk::requeue(&store, dead, args.json),
        Some(JobsCommand::DeleteDead(dead)) => bulk::delete(&store, dead, args.json),
    }
}
