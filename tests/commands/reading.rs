//! Looking at a queue that one may not write, or that somebody else is writing.
//!
//! A folder is made read-only by a mount of its own in a mount namespace, since the right to write does not stop root;
//! where the system allows none, this is said on one line.

use std::io::Write as _;
use std::process::Command;

use rusqlite::Connection;
use tidegate::{Enqueue, NewJob};

use crate::support::{Place, Ran};

/// Runs `tidegate` in this place, in which it may change nothing.
fn run_read_only(place: &Place, args: &[&str]) -> Option<Ran> {
    let inner = place.command(args);
    // A user namespace makes it possible without being root; who is root may not be allowed to have one.
    for namespaces in ["-rm", "-m"] {
        let mut command = Command::new("unshare");
        command.args([namespaces, "sh", "-c"]).arg(
            "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 99; cd \"$1\"; shift; exec \"$@\"",
        );
        command.arg("sh").arg(place.path(".")).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let Ok(done) = command.output() else { continue };
        if !matches!(done.status.code(), Some(1 | 99) | None) {
            return Some(Ran(done));
        }
    }
    // Past the test program, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped: no mount namespace may be made here");
    None
}

fn ready(ran: &Ran) -> Option<u64> {
    assert_eq!((ran.code(), ran.stderr()), (0, String::new()));
    ran.json()[0]["ready"].as_u64()
}

#[tokio::test]
async fn a_queue_can_be_looked_at_by_whoever_may_only_read_it() {
    let place = Place::new();
    let queue = place.queue();
    queue.enqueue(vec![NewJob::new("k", "first")]).await.expect("enqueued");
    // While others have it open, and write.
    let stats = ["stats", "--json"];
    let Some(ran) = run_read_only(&place, &stats) else { return };
    assert_eq!(ready(&ran), Some(1));
    queue.enqueue(vec![NewJob::new("k", "second")]).await.expect("enqueued");
    assert_eq!(ready(&run_read_only(&place, &stats).expect("it could before")), Some(2));
    let shown = run_read_only(&place, &["jobs", "show", "2", "--payload"]).expect("it could before");
    assert_eq!(shown.stdout(), "second");
    let refused = run_read_only(&place, &["jobs", "cancel", "2"]).expect("it could before");
    assert_eq!(refused.code(), 69);
    assert!(refused.stderr().contains("must be able to write"), "{}", refused.stderr());
    // Nobody has it open, and all of it is in one file.
    drop(queue);
    assert!(!place.path("tidegate.sqlite-wal").exists(), "the last has closed it");
    assert_eq!(ready(&run_read_only(&place, &stats).expect("it could before")), Some(2));
    let listed = run_read_only(&place, &["jobs", "-q"]).expect("it could before");
    assert_eq!((listed.code(), listed.stdout()), (0, "1\n2\n".to_owned()));
}

/// Copied while it was in use, say, or left by a machine that crashed: SQLite would have to make a file.
#[tokio::test]
async fn what_can_not_be_read_without_writing_is_said_with_what_to_do() {
    let place = Place::new();
    {
        let queue = place.queue();
        queue.enqueue(vec![NewJob::new("k", "")]).await.expect("enqueued");
        for suffix in ["", "-wal"] {
            let name = |stem: &str| place.path(&format!("{stem}.sqlite{suffix}"));
            std::fs::copy(name("tidegate"), name("copy")).expect("copied");
        }
    }
    let Some(refused) = run_read_only(&place, &["stats", "-s", "copy.sqlite"]) else { return };
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
