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
    if args.command.is_some() && args.list != ListArgs::default() {
        return Err(refuse(Exit::Usage, "the options of `jobs list` stand after its name"));
    }
    let purpose = match &args.command {
        None | Some(JobsCommand::List(_) | JobsCommand::Show(_)) => Purpose::Look,
        Some(_) => Purpose::Change,
    };
    let store = Store::open(&args.source, purpose)?;
    match &args.command {
        None => list::list(&store, &args.list, args.json),
        Some(JobsCommand::List(list)) => list::list(&store, list, args.json),
        Some(JobsCommand::Show(show)) => list::show(&store, show, args.json),
        Some(JobsCommand::Retry(ids)) => change(&store, Change::Retry, &ids.ids, args.json),
        Some(JobsCommand::Cancel(ids)) => change(&store, Change::Cancel, &ids.ids, args.json),
        Some(JobsCommand::Delete(ids)) => change(&store, Change::Delete, &ids.ids, args.json),
        Some(JobsCommand::RequeueDead(dead)) => bulk::requeue(&store, dead, args.json),
        Some(JobsCommand::DeleteDead(dead)) => bulk::delete(&store, dead, args.json),
    }
}
