//! P2 for the file: it grows with what is in it at once, and not with how much went through.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate::backend::sqlite::{Durability, Sqlite};
use tidegate::{
    Context, Enqueue, Inspect, JobQuery, JobState, Manage, NewJob, Registry, RetryPolicy, Shutdown, Unique,
    Worker,
};

use crate::folder::Folder;

/// What the folder holds, in bytes: the file, and its log of changes.
fn sizes(file: &Path) -> (u64, u64) {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    (size(file), size(&file.with_extension("sqlite-wal")))
}

fn open_files(file: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("a Linux").filter_map(Result::ok);
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    let ours = |link: &std::fs::DirEntry| {
        let folder = file.parent().expect("a folder");
        std::fs::read_link(link.path())
            .is_ok_and(|to| to.starts_with(folder) && to.to_string_lossy().contains(&name))
    };
    links.filter(ours).count()
}

/// Jobs that are done, retried, rejected and deleted, with payloads and unique keys, round after round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_is_as_large_after_many_rounds_as_after_two() {
    const ROUNDS: usize = 8;
    const JOBS: u64 = 2_500;
    let folder = Folder::new();
    let file = folder.file("jobs.sqlite");
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        let jobs = Sqlite::builder(&file).durability(Durability::Normal).open().expect("the file");
        for batch in 0..5 {
            let job = |number: u64| {
                let number = batch * JOBS / 5 + number;
                let job = NewJob::new("kind", vec![b'x'; 100 + number as usize % 400]);
                let key = format!("{round}-{number}");
                if number.is_multiple_of(5) { job.unique(Unique::until_done(key)) } else { job }
            };
            jobs.enqueue((0..JOBS / 5).map(job).collect()).await.expect("enqueued");
        }
        let turn = Arc::new(AtomicU32::new(0));
        let registry = Registry::new().handle_raw("kind", move |context: Context| {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            async move {
                match turn % 20 {
                    0 if context.attempt() == 1 => Err("now and then"),
                    _ => Ok(()),
                }
            }
        });
        let worker = Worker::builder(jobs.intake(), registry)
            .prefetch(200)
            .retry(RetryPolicy::default().max_attempts(2).initial(Duration::from_millis(1)))
            .build()
            .expect("good settings");
        let (handle, shutdown) = (worker.handle(), Shutdown::new());
        let stop = async {
            while handle.stats().done < JOBS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            shutdown.stop();
        };
        let (report, ()) = tokio::join!(worker.run(shutdown.clone()), stop);
        assert_eq!((report.stats.done, report.stats.rejected), (JOBS, 0), "{report}");
        // Some that nobody runs any more.
        jobs.enqueue((0..50).map(|_| NewJob::new("other", "")).collect()).await.expect("enqueued");
        for left in jobs.list(&JobQuery::new(JobState::Ready, 100)).await.expect("listed") {
            assert!(jobs.delete(&left.job.id).await.expect("deleted"));
        }
        assert_eq!(jobs.counts().await.expect("counted").unfinished(), 0);
        seen.push((sizes(&file), open_files(&file)));
        drop(jobs);
        // Whoever was at work on the file for the last of them may hold it for a moment yet.
        for _ in 0..1_000 {
            if open_files(&file) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(open_files(&file), 0, "closed with the last handle");
    }
    let ((file_then, _), files_then) = seen[1];
    let ((file_now, _), files_now) = seen[ROUNDS - 1];
    assert!(file_now <= file_then + 64 * 1024, "{seen:?}");
    assert_eq!(files_now, files_then, "{seen:?}");
    // A checkpoint comes every thousand pages of 4 KiB; a reader may put it off for a while.
    assert!(seen.iter().all(|((_, log), _)| *log < 32 << 20), "{seen:?}");
}
