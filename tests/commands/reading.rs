//! Looking at a queue that one may not write, or that somebody else is writing.
//!
//! Nobody may write in such a folder, not even root: see [`disk`](crate::disk).

use rusqlite::Connection;
use tidegate::{Enqueue, NewJob};

use crate::disk::{Way, ways};
use crate::support::{Place, Ran};

/// Runs `tidegate` in this place, in which it may change nothing.
fn run_read_only(way: &Way, place: &Place, args: &[&str]) -> Ran {
    let inner = place.command(args);
    let mut command = way.read_only(&place.path(""), "\"$0\" \"$@\"");
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ran(command.output().expect("there is `sh`"))
}

fn ready(ran: &Ran) -> Option<u64> {
    assert_eq!((ran.code(), ran.stderr()), (0, String::new()));
    ran.json()[0]["ready"].as_u64()
}

#[tokio::test]
async fn a_queue_can_be_looked_at_by_whoever_may_only_read_it() {
    for way in ways() {
        look_where_nothing_may_be_changed(way).await;
    }
}

async fn look_where_nothing_may_be_changed(way: &Way) {
    let place = Place::new();
    let queue = place.queue();
    queue.enqueue(vec![NewJob::new("k", "first")]).await.expect("enqueued");
    // While others have it open, and write.
    let stats = ["stats", "--json"];
    assert_eq!(ready(&run_read_only(way, &place, &stats)), Some(1));
    queue.enqueue(vec![NewJob::new("k", "second")]).await.expect("enqueued");
    assert_eq!(ready(&run_read_only(way, &place, &stats)), Some(2));
    let shown = run_read_only(way, &place, &["jobs", "show", "2", "--payload"]);
    assert_eq!(shown.stdout(), "second");
    let refused = run_read_only(way, &place, &["jobs", "cancel", "2"]);
    assert_eq!(refused.code(), 69);
    assert!(refused.stderr().contains("must be able to write"), "{}", refused.stderr());
    // Nobody has it open, and all of it is in one file.
    drop(queue);
    assert!(!place.path("tidegate.sqlite-wal").exists(), "the last has closed it");
    assert_eq!(ready(&run_read_only(way, &place, &stats)), Some(2));
    let listed = run_read_only(way, &place, &["jobs", "-q"]);
    assert_eq!((listed.code(), listed.stdout()), (0, "1\n2\n".to_owned()));
}

/// Copied while it was in use, say, or left by a machine that crashed: SQLite would have to make a file.
#[tokio::test]
async fn what_can_not_be_read_without_writing_is_said_with_what_to_do() {
    for way in ways() {
        look_where_a_file_would_have_to_be_made(way).await;
    }
}

async fn look_where_a_file_would_have_to_be_made(way: &Way) {
    let place = Place::new();
    {
        let queue = place.queue();
        queue.enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
        for suffix in ["", "-wal"] {
            let name = |stem: &str| place.path(&format!("{stem}.sqlite{suffix}"));
            std::fs::copy(name("tidegate"), name("copy")).expect("copied");
        }
    }
    let refused = run_read_only(way, &place, &["stats", "-s", "copy.sqlite"]);
    let said = refused.stderr();
    assert_eq!(refused.code(), 69, "{said}");
    assert!(said.contains("copy.sqlite") && said.contains("-wal and -shm files beside it"), "{said}");
    assert!(said.contains("copy it with its -wal file"), "{said}");
    // So it goes.
    assert_eq!(ready(&place.good(["stats", "--json", "-s", "copy.sqlite"])), Some(1));
}

#[tokio::test]
async fn looking_does_not_wait_for_whoever_keeps_the_file_locked() {
    let place = Place::new();
    place.queue().enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
    let locked = Connection::open(place.path("tidegate.sqlite")).expect("it is there");
    locked.execute_batch("BEGIN EXCLUSIVE").expect("locked");
    assert_eq!(ready(&place.good(["stats", "--json"])), Some(1));
    assert_eq!(place.good(["jobs", "-q"]).stdout(), "1\n");
    assert!(place.good(["jobs", "show", "1"]).stdout().starts_with("id           1\n"));
}
