//! Tests that look at a process as a whole run in one of their own: this very test program, run again with [`ALONE`]
//! set. What it has is counted here: heap, descriptors, time on a CPU.

use std::process::Command;
use std::time::Duration;

use crate::faults::left;
use crate::heap;
use crate::redis::{Folder, Process};

const ALONE: &str = "TIDEGATE_TEST_ALONE";

/// True in the process that has nothing else to do; otherwise the test of this name was run in one, and was well.
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let folder = Folder::new();
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
    let mut process = Process::start(&mut command, &folder.file("output"));
    let ended = process.wait_for(Duration::from_secs(7_200));
    println!("{}", process.output());
    assert!(ended.success(), "alone: {}", process.output());
    false
}

/// What there is at a moment at which nothing runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) heap: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// Connections that the server has.
    pub(crate) clients: usize,
    /// What our own keys on the server take.
    pub(crate) keys: usize,
}

impl Sample {
    pub(crate) fn take(clients: usize, keys: usize) -> Self {
        let heap = heap::live();
        Self { heap, descriptors: left::descriptors(), threads: left::threads().len(), clients, keys }
    }
}

/// Whether nothing depends on what has been: no sample is above the first, but for buffers that find their size.
pub(crate) fn judge(samples: &[Sample]) -> Result<(), String> {
    let (first, later) = samples.split_first().ok_or("no sample")?;
    for sample in later {
        let more = [
            ("heap", sample.heap, first.heap + (128 << 10)),
            ("descriptors", sample.descriptors, first.descriptors),
            ("threads", sample.threads, first.threads),
            ("clients", sample.clients, first.clients),
            ("keys", sample.keys, first.keys + 1_000),
        ];
        if let Some((what, found, allowed)) = more.iter().find(|(_, found, allowed)| found > allowed) {
            return Err(format!("{what}: {found}, and at most {allowed} would do: {samples:#?}"));
        }
    }
    Ok(())
}

/// For how long all threads of this process have been on a CPU.
pub(crate) fn time_on_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten();
    let nanos = tasks.filter_map(|task| {
        let schedule = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedule.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

#[test]
fn what_grows_is_found() {
    let sample = Sample { heap: 1 << 20, descriptors: 20, threads: 5, clients: 4, keys: 500 };
    assert_eq!(judge(&[sample; 9]), Ok(()));
    for grown in [
        // 16 bytes for each of 160,000 jobs, on either side.
        Sample { heap: sample.heap + 16 * 160_000, ..sample },
        Sample { keys: sample.keys + 16 * 160_000, ..sample },
        Sample { descriptors: 21, ..sample },
        Sample { threads: 6, ..sample },
        Sample { clients: 5, ..sample },
    ] {
        assert!(judge(&[sample, sample, grown]).is_err(), "{grown:?}");
    }
}
