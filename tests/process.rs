//! P7 from outside: programs that are sent real signals end in time, and say what they did.
//!
//! They are the examples, which a plain `cargo test` builds beside the tests. Before `cargo test --test process`
//! they have to be built: `cargo build --examples`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// A program that this test has started. Killed, should the test end before it does.
struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Program {
    fn start(example: &str, args: &[&str]) -> Self {
        let mut child = Command::new(path(example))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, out }
    }

    /// Reads what it writes until there is a line with `part` in it.
    fn says(&mut self, part: &str) -> String {
        let lines = self.out.by_ref().lines().map(|line| line.expect("it writes text"));
        let mut said = Vec::new();
        for line in lines {
            if line.contains(part) {
                return line;
            }
            said.push(line);
        }
        panic!("it ended, and never said {part:?}, but: {said:#?}");
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process has an id");
        kill_process(id, signal).expect("it is a child that nobody has waited for");
    }

    /// Waits for its end, at most for so long. What it still wrote, on both ways.
    fn ends_within(&mut self, time: Duration) -> (ExitStatus, Duration, String, String) {
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(asked.elapsed() <= time, "it still runs after {time:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = asked.elapsed();
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("it writes text");
        self.child.stderr.take().expect("it is piped").read_to_string(&mut err).expect("it writes text");
        (status, took, out, err)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended, or it is told to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Examples are built into a folder beside that of the tests.
fn path(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("tests stand in target/PROFILE/deps");
    let path = profile.join("examples").join(example);
    assert!(path.exists(), "{} is not there: run `cargo build --examples` first", path.display());
    path
}

/// A second for a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// What has not ended by then never ends.
const WATCHDOG: Duration = Duration::from_secs(60);

#[test]
fn a_program_whose_handler_never_returns_ends_within_its_deadline_and_names_the_job() {
    let deadline = Duration::from_secs(1);
    let mut program = Program::start("stuck", &["1000"]);
    let id = program.says("has begun").trim_end_matches(" has begun").to_owned();
    program.signal(Signal::TERM);
    let (status, took, _, err) = program.ends_within(deadline + GRACE);
    assert!(status.success(), "{status}: {err}");
    assert!(took >= deadline.mul_f64(0.8), "it gave up on the job after {took:?} already");
    assert!(err.contains(&format!("{id} (stuck) is still running")), "{err}");
    assert!(err.contains("1 lost"), "{err}");
}

/// What `docs/operations.md` says of ending a process whose async handlers may block their threads for good.
#[test]
fn a_program_whose_async_handlers_block_every_thread_ends_within_its_deadline_and_names_the_jobs() {
    let deadline = Duration::from_secs(1);
    let mut slow = Vec::new();
    // A machine that is busy at the wrong moment makes one run late, but hardly all of them.
    for _ in 0..5 {
        let mut program = Program::start("blocked", &["1000"]);
        let begun = || program.says("has begun").trim_end_matches(" has begun").to_owned();
        let stuck: Vec<String> = std::iter::repeat_with(begun).take(2).collect();
        program.signal(Signal::TERM);
        let (status, took, _, err) = program.ends_within(WATCHDOG);
        assert!(status.success(), "{status}: {err}");
        assert!(took >= deadline.mul_f64(0.8), "it gave up on the jobs after {took:?} already");
        for id in stuck {
            assert!(err.contains(&format!("{id} (blocked) is still running")), "{err}");
        }
        // The third had no thread to begin on, and is unharmed.
        assert!(err.contains("1 handed back, 2 lost"), "{err}");
        if took <= deadline + GRACE {
            return;
        }
        slow.push(took);
    }
    panic!("it ends, but never within {:?}: {slow:?}", deadline + GRACE);
}

#[test]
fn a_service_with_a_worker_ends_on_sigterm_with_nothing_left_undone() {
    a_service_ends_on(Signal::TERM);
}

#[test]
fn a_service_with_a_worker_ends_on_an_interrupt_with_nothing_left_undone() {
    a_service_ends_on(Signal::INT);
}

fn a_service_ends_on(signal: Signal) {
    let mut program = Program::start("embed", &[]);
    program.says("cat-3.png is 80 wide now (attempt 1)");
    program.signal(signal);
    // Its jobs last a moment, so that it need not come near its deadline of five seconds.
    let (status, took, out, err) = program.ends_within(Duration::from_secs(2));
    assert!(status.success(), "{status}: {err}");
    assert!(took < Duration::from_secs(2) && err.is_empty(), "took {took:?}: {err}");
    let report = out.lines().last().unwrap_or_default();
    assert!(report.contains("stopped within") && report.contains(" 0 retried, 0 rejected"), "{report}");
    assert!(!report.contains("lost") && !report.contains("still running"), "{report}");
}

#[test]
fn each_further_signal_shortens_what_is_left() {
    let mut program = Program::start("stuck", &["10000"]);
    program.says("has begun");
    for phase in ["Drain", "Cancel", "Abort"] {
        program.signal(Signal::TERM);
        program.says(phase);
    }
    // Of ten seconds two are kept for what has not finished, and after an abort half of that.
    let (status, took, _, err) = program.ends_within(Duration::from_secs(1) + GRACE);
    assert!(status.success(), "{status}: {err}");
    assert!(err.contains("is still running"), "took {took:?}: {err}");
}
