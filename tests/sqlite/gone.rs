//! The file is taken away, or another one put in its place, while it is in use.

use std::path::Path;
use std::time::Duration;

use tidegate::backend::sqlite::Sqlite;
use tidegate::{
    Context, Enqueue, Error, ErrorKind, FetchRequest, Inspect, Manage, NewJob, Registry, Renew, Settled,
    Settlement, Shutdown, Source, StopCause, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::file::at_once;
use crate::folder::Folder;

/// How long anything may take before a test gives up on it. Never waited for when all is well.
const LIMIT: Duration = Duration::from_secs(60);

/// Looks at every turn, so that nothing depends on how long one takes.
fn open(file: &Path) -> Sqlite {
    Sqlite::builder(file).watch_every(Duration::from_nanos(1)).open().expect("a file")
}

async fn push(jobs: &Sqlite) -> Result<(), Error> {
    jobs.enqueue(vec![NewJob::new("kind", "")]).await.map(drop)
}

fn remove(file: &Path) {
    for end in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(end);
        std::fs::remove_file(name).expect("it is there while the file is in use");
    }
}

#[track_caller]
fn assert_gone(error: &Error, file: &Path, what: &str) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{text}");
    assert!(!error.is_transient() && text.contains(&format!("the file {} {what}", file.display())), "{text}");
    assert!(text.contains("start this program again"), "{text}");
}

#[tokio::test]
async fn nothing_is_written_any_more_to_a_file_that_was_removed() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = open(&file);
    push(&jobs).await.expect("enqueued");
    push(&jobs).await.expect("enqueued");
    let taken = jobs.fetch(&at_once(1), &CancellationToken::new()).await.expect("fetched").remove(0);
    std::fs::rename(&file, folder.file("elsewhere")).expect("moved");
    let stop = CancellationToken::new();
    let settled = [Settled::new(taken.tag, Settlement::Ack)];
    for (doing, error) in [
        ("enqueue", push(&jobs).await.err()),
        ("fetch", jobs.fetch(&at_once(1), &stop).await.err()),
        ("settle", jobs.settle(&settled).await.err()),
        ("exchange", jobs.exchange(&settled, &at_once(1)).await.err()),
        ("renew", jobs.renew(&[taken.tag]).await.err()),
        ("delete", jobs.delete(&taken.job.id).await.err()),
    ] {
        assert_gone(&error.expect(doing), &file, "was removed");
    }
    // What somebody else did there meanwhile is not known here.
    std::fs::rename(folder.file("elsewhere"), &file).expect("moved back");
    assert_gone(&push(&jobs).await.expect_err("for good"), &file, "was removed");
    drop(jobs);
    assert_eq!(open(&file).counts().await.expect("counted").unfinished(), 2, "opened again it can be used");
}

#[tokio::test]
async fn a_fetch_that_waits_hears_that_the_file_has_gone() {
    for replaced in [false, true] {
        let folder = Folder::new();
        let file = folder.file("jobs.sqlite");
        // As everybody looks.
        let jobs = Sqlite::open(&file).expect("a new file");
        let wanted = FetchRequest::new(at_once(1).max, LIMIT * 10);
        let stop = CancellationToken::new();
        let fetch = tokio::time::timeout(LIMIT, jobs.fetch(&wanted, &stop));
        let away = async {
            // It has begun; whether it waits by now makes no difference.
            tokio::task::yield_now().await;
            if replaced {
                drop(Sqlite::open(folder.file("other")).expect("a new file"));
                std::fs::rename(folder.file("other"), &file).expect("moved");
            } else {
                remove(&file);
            }
        };
        let (fetched, ()) = tokio::join!(fetch, away);
        let error = fetched.expect("in time").expect_err("nothing comes any more");
        assert_gone(&error, &file, if replaced { "was replaced by another file" } else { "was removed" });
    }
}

#[tokio::test]
async fn a_worker_stops_and_what_ran_is_reported_as_held() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let jobs = open(&file);
    push(&jobs).await.expect("enqueued");
    let there = file.clone();
    let registry = Registry::new().handle_raw("kind", move |_: Context| {
        remove(&there);
        async {}
    });
    let worker = Worker::builder(jobs.intake(), registry).shutdown_deadline(Duration::from_secs(2));
    let worker = worker.build().expect("good settings");
    let report = tokio::time::timeout(LIMIT, worker.run(Shutdown::new())).await.expect("it stops");
    let StopCause::Failed(error) = &report.cause else { panic!("{:?}", report.cause) };
    assert_gone(error, &file, "was removed");
    assert_eq!((report.stats.done, report.held.len()), (0, 1), "{report:?}");
}

#[tokio::test]
async fn who_only_looks_sees_the_file_that_is_there() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let old = Sqlite::open(&file).expect("a new file");
    push(&old).await.expect("enqueued");
    let reader = Sqlite::builder(&file).open_to_read().expect("it is there");
    assert_eq!(reader.counts().await.expect("counted").ready, 1);
    remove(&file);
    let error = reader.counts().await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("the file must be there"), "{error}");
    let new = Sqlite::open(&file).expect("a new file");
    assert_eq!(reader.counts().await.expect("counted").ready, 0);
    push(&new).await.expect("enqueued");
    assert_eq!(reader.counts().await.expect("counted").ready, 1);
}

/// A program may go elsewhere, and the file may be named in other ways than by its path.
#[tokio::test]
async fn a_file_is_known_by_whatever_name_it_was_opened() {
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let link = folder.file("link");
    drop(Sqlite::open(&file).expect("a new file"));
    std::os::unix::fs::symlink(&file, &link).expect("linked");
    let uri = format!("file:{}?mode=rwc", file.display());
    for name in [link.as_path(), Path::new(&uri)] {
        let jobs = open(name);
        push(&jobs).await.expect("enqueued");
        std::fs::rename(&file, folder.file("elsewhere")).expect("moved");
        assert_eq!(push(&jobs).await.expect_err("it is gone").kind(), ErrorKind::NotFound);
        std::fs::rename(folder.file("elsewhere"), &file).expect("moved back");
    }
}
