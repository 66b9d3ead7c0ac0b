//! Room for many jobs at once: the open files that they need of the system.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most descriptors that a job has open at once: two outputs, standard input, and the child itself; both
/// ends of the three pipes while it starts.
const DESCRIPTORS_A_JOB: u64 = 7;

/// Descriptors that the program needs besides, with room to spare.
const DESCRIPTORS: u64 = 64;

/// Sees that there are descriptors enough for so many jobs. What is raised here the children inherit.
///
/// # Errors
/// When the system does not allow so many: what is needed, and how many jobs fit.
pub(crate) fn make_for(jobs: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let needed = needed(jobs);
    if limit.current.is_none_or(|soft| soft >= needed) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| too_few(needed, limit.maximum))
}

/// Whether [`make_for`] would find enough.
///
/// # Errors
/// As there.
pub(crate) fn is_there_for(jobs: u64) -> Result<(), String> {
    let (needed, hard) = (needed(jobs), getrlimit(Resource::Nofile).maximum);
    if hard.is_none_or(|hard| hard >= needed) { Ok(()) } else { Err(too_few(needed, hard)) }
}

fn needed(jobs: u64) -> u64 {
    jobs.saturating_mul(DESCRIPTORS_A_JOB).saturating_add(DESCRIPTORS)
}

fn too_few(needed: u64, hard: Option<u64>) -> String {
    let hard = hard.unwrap_or(u64::MAX);
    let most = hard.saturating_sub(DESCRIPTORS) / DESCRIPTORS_A_JOB;
    format!("needs {needed} open files, and this user may have {hard}: at most {most} jobs fit")
}
