//! A program whose blocking handler never returns, and that ends in time all the same: what `tests/process.rs`
//! watches from outside. Its argument is the shutdown deadline in milliseconds.
//!
//! Nothing here ends the process by force. `main` returns, and the runtime with it: threads of blocking handlers
//! hold up neither.

use std::error::Error;
use std::time::Duration;

use tidegate::{Context, Memory, NewJob, Registry, Shutdown, Worker};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let deadline = std::env::args().nth(1).ok_or("say the shutdown deadline, in milliseconds")?.parse()?;
    let registry = Registry::new().handle_blocking_raw("stuck", never_return);
    let queue = Memory::new();
    let worker = Worker::builder(queue.intake(), registry)
        .shutdown_deadline(Duration::from_millis(deadline))
        .build()?;
    queue.push(NewJob::new("stuck", ""))?;

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

fn never_return(context: Context) {
    println!("{} has begun", context.job().id);
    loop {
        std::thread::park(); // deaf to its cancellation
    }
}
