//! Runs so many jobs that do nothing through a worker over the memory backend, on one thread, and says how long that
//! took. `./check instructions` counts what a job costs with it: `cargo run --release --example flood -- 1000000`.

use std::time::Duration;

use tidegate::{Context, Enqueue, Error, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::runtime::Builder;
use tokio::time::Instant;

fn main() -> Result<(), Error> {
    let count = std::env::args().nth(1).map_or(Ok(100_000), |count| count.parse());
    let Ok(count) = count else {
        eprintln!("flood: say how many jobs, as a number");
        std::process::exit(2);
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let took = runtime.block_on(flood(count))?;
    println!("{count} jobs in {took:?}");
    Ok(())
}

async fn flood(count: usize) -> Result<Duration, Error> {
    let queue = Memory::builder().max_jobs(count.max(1)).build()?;
    queue.enqueue((0..count).map(|_| NewJob::new("nothing", "")).collect()).await?;
    let registry = Registry::new().handle_raw("nothing", |_: Context| async {});
    let worker = Worker::builder(queue.intake(), registry).max_concurrent_jobs(20).build()?;
    let shutdown = Shutdown::new();
    let start = Instant::now();
    let drained = async {
        queue.drained().await;
        shutdown.stop();
        start.elapsed()
    };
    Ok(tokio::join!(worker.run(shutdown.clone()), drained).1)
}
