//! A worker inside a service: it runs the service's background jobs, and stops with it.
//!
//! ```sh
//! cargo run --example embed    # and then Ctrl-C, or kill -TERM
//! ```
//!
//! The first signal lets running jobs finish and hands the others back; a second one, and a third, hurry.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tidegate::{Context, Enqueue, KindOptions, Memory, NewJob, Phase, Registry, Shutdown, Worker};
use tokio::signal::unix::{SignalKind, signal};

/// The arguments of one kind of job. What can't be decoded as this goes to the dead letters.
#[derive(Deserialize)]
struct Resize {
    file: String,
    width: u32,
}

/// The work itself. An error is a failed attempt, and the job is tried again; a panic is no more than that.
async fn resize(job: Resize, context: Context) -> Result<(), String> {
    if job.width == 0 {
        return Err(format!("{}: a width of 0", job.file));
    }
    tokio::time::sleep(Duration::from_millis(50)).await; // here the picture would be resized
    println!("{} is {} wide now (attempt {})", job.file, job.width, context.attempt());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let registry = Registry::new()
        .handle("resize", resize)
        .options("resize", KindOptions::new().timeout(Duration::from_secs(30)));

    // Jobs that may go with the process. For those that may not, take a backend that keeps them.
    let queue = Memory::new();
    let worker = Worker::builder(queue.intake(), registry)
        .max_concurrent_jobs(8)
        .shutdown_deadline(Duration::from_secs(5))
        .build()?;

    // One switch for the service and its worker. Jobs run as tasks of this runtime, beside the service's own.
    let shutdown = Shutdown::new();
    let both = async { tokio::join!(worker.run(shutdown.clone()), serve(&queue, &shutdown)) };
    let (report, served) = tokio::select! {
        ended = both => ended,
        Err(error) = stop_on_signals(&shutdown) => return Err(error.into()),
    };

    // Why it stopped, what it did, and what it still held, if anything.
    println!("{report}");
    served?;
    Ok(())
}

/// What the service is there for. This one has a picture uploaded to it every tenth of a second, and leaves the
/// rest to the worker.
async fn serve(queue: &impl Enqueue, shutdown: &Shutdown) -> Result<(), tidegate::Error> {
    let mut uploads = tokio::time::interval(Duration::from_millis(100));
    for number in 1.. {
        tokio::select! {
            () = shutdown.reached(Phase::Drain) => break,
            _ = uploads.tick() => {}
        }
        let args = json!({ "file": format!("cat-{number}.png"), "width": 80 });
        queue.enqueue(vec![NewJob::json("resize", &args)?]).await?;
    }
    Ok(())
}

/// Each Ctrl-C and each SIGTERM takes the switch one step further: drain, cancel, abort.
async fn stop_on_signals(shutdown: &Shutdown) -> io::Result<Infallible> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        shutdown.stop();
    }
}
