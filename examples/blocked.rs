//! A program whose async handler blocks every thread of its runtime for good, and that ends in time all the same:
//! what `tests/process.rs` watches from outside. Its argument is the shutdown deadline in milliseconds.
//!
//! Such a handler is a mistake (`handle_blocking` is there for what blocks), but one that an operator has to be able to
//! stop. `main` must not wait for those threads: it does not drop the runtime, as `#[tokio::main]` would. And what hears
//! the signals is no task of the runtime but stands in `main`'s own `block_on`, which no job can block.

use std::error::Error;
use std::thread;
use std::time::Duration;

use tidegate::{Context, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// As many jobs block as the runtime has threads.
const THREADS: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let deadline = std::env::args().nth(1).ok_or("say the shutdown deadline, in milliseconds")?.parse()?;
    let registry = Registry::new().handle_raw("blocked", never_yield);
    let queue = Memory::new();
    let worker = Worker::builder(queue.intake(), registry)
        .shutdown_deadline(Duration::from_millis(deadline))
        .build()?;
    // One more than can begin.
    for _ in 0..=THREADS {
        queue.push(NewJob::new("blocked", ""))?;
    }

    let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let ended = runtime.block_on(run(worker));
    // Dropping it would wait for its threads, which never come back.
    runtime.shutdown_background();
    ended
}

async fn run(worker: Worker) -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let signals = async {
        loop {
            terminate.recv().await;
            println!("told to stop: {:?}", shutdown.stop());
        }
    };
    let report = tokio::select! {
        report = worker.run(shutdown.clone()) => report,
        () = signals => unreachable!("there is always another signal to wait for"),
    };
    eprintln!("{report}");
    Ok(())
}

async fn never_yield(context: Context) {
    println!("{} has begun", context.job().id);
    loop {
        thread::park(); // deaf to its cancellation, and no await point to be dropped at
    }
}
