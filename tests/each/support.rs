//! A place to run the program in, and what can be done with it while it runs.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::disk::Way;
use crate::fed::fed;

/// How long anything may take before a test gives up on it. Never waited for when all is well.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A folder of the test's own, whose path marks every process that descends from the program.
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-each-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self { path }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file of our own");
        path.to_str().expect("plain ASCII").to_owned()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("it was written")
    }

    /// An executable file.
    pub(crate) fn script(&self, name: &str, contents: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(name, contents);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    pub(crate) fn fifo(&self, name: &str) -> Fifo {
        let path = self.path(name);
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo is there");
        assert!(made.success());
        Fifo { path }
    }

    /// `tidegate each` with these arguments, in this place.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("each").args(args).current_dir(&self.path);
        self.marked(command)
    }

    /// The same command with this place's mark on it.
    pub(crate) fn marked(&self, mut command: Command) -> Command {
        command.env("EACH_TEST", self.mark());
        command
    }

    /// Runs it to its end with `input` on its standard input.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: impl AsRef<[u8]>,
    ) -> Ran {
        let output = fed(self.command(args), input);
        self.assert_nobody_is_left();
        Ran(output)
    }

    /// Runs this shell script, whose `$0` is the program, with a small disk at `disk`. Returns its exit code.
    pub(crate) fn on_a_small_disk(&self, way: &Way, bytes: u64, script: &str) -> i32 {
        let mut command = way.small_disk(&self.path("disk"), bytes, script);
        command.arg(env!("CARGO_BIN_EXE_tidegate")).current_dir(&self.path);
        let done = self.marked(command).output().expect("there is `sh`");
        self.assert_nobody_is_left();
        let said = String::from_utf8_lossy(&done.stderr);
        done.status.code().unwrap_or_else(|| panic!("{way:?}: {}: {said}", done.status))
    }

    /// Starts it, with pipes to all three streams.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.start_command(self.command(args))
    }

    pub(crate) fn start_command(&self, mut command: Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program is built");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        Running { child, stderr, said: String::new() }
    }

    /// Every process that descends from a program started here, with its state.
    pub(crate) fn processes(&self) -> Vec<(u32, char)> {
        let mark = format!("EACH_TEST={}", self.mark());
        let ours = |id: &u32| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let ids = fs::read_dir("/proc")
            .expect("a Linux")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.filter(ours).filter_map(|id| Some((id, state(id)?))).collect()
    }

    /// Dying takes its moment; more than that it may not take.
    pub(crate) fn assert_nobody_is_left(&self) {
        until("no process is left", || self.processes().is_empty());
    }

    fn mark(&self) -> &str {
        self.path.to_str().expect("plain ASCII")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !thread::panicking() {
            fs::remove_dir_all(&self.path).expect("it is ours");
        }
    }
}

/// Says that a test could not be run here, past the test program, which would keep that to itself.
pub(crate) fn skipped(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// The letter of a process's state, `Z` for one that has ended and was not waited for.
pub(crate) fn state(id: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Whether this process was started with that signal ignored, as a shell's background jobs are with INT and
/// QUIT. What it starts then inherits that, and rightly keeps to it.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a Linux");
    let ignored = u64::from_str_radix(mask.trim(), 16).expect("a mask") >> (signal.as_raw() - 1) & 1 == 1;
    if ignored {
        eprintln!("skipped: signal {} is ignored here, as in a job in the background", signal.as_raw());
    }
    ignored
}

/// Waits until `what` holds, for something that no event tells of.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "not in time: {what}");
        // What it waits for needs the processors, too.
        thread::sleep(Duration::from_millis(2));
    }
}

/// A pipe with a name, by which a test and a script wait for each other.
pub(crate) struct Fifo {
    path: PathBuf,
}

impl Fifo {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for somebody to write to it, and says what.
    pub(crate) fn hear(&self) -> String {
        fs::read_to_string(&self.path).expect("it is there")
    }

    /// Waits for somebody to read from it.
    pub(crate) fn tell(&self) {
        OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(b"go\n"))
            .expect("it is there");
    }

    /// Both ends at once, so that opening waits for nobody and it never ends.
    pub(crate) fn both_ends(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).expect("it is there")
    }
}

/// What a run has left.
#[derive(Debug)]
pub(crate) struct Ran(pub(crate) Output);

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().unwrap_or_else(|| panic!("{} {}", self.0.status, self.stderr()))
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// The lines of standard output, sorted: records end in any order.
    pub(crate) fn sorted(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.stdout().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

/// A program that runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives it these records and no more.
    pub(crate) fn feed(&mut self, input: &str) {
        let mut stdin = self.child.stdin.take().expect("not fed before");
        stdin.write_all(input.as_bytes()).expect("it reads");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        kill_process(id, signal).expect("it is ours");
    }

    /// Waits for a line on standard error that contains `text`, and returns it.
    pub(crate) fn hear(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.stderr.read_line(&mut line).expect("it is a pipe");
            assert!(length > 0, "it never said {text:?}, but: {}", self.said);
            self.said.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn end(mut self, place: &Place) -> Ran {
        drop(self.child.stdin.take());
        let mut stdout = self.child.stdout.take();
        let reader = thread_named("reader", move || {
            let mut out = Vec::new();
            stdout.as_mut().map(|stdout| stdout.read_to_end(&mut out)).transpose().expect("it is a pipe");
            out
        });
        self.stderr.read_to_string(&mut self.said).expect("it is a pipe");
        let status: ExitStatus = self.child.wait().expect("it ends");
        let stdout = reader.join().expect("no panic");
        place.assert_nobody_is_left();
        Ran(Output { status, stdout, stderr: self.said.into_bytes() })
    }
}

/// A thread with a name.
pub(crate) fn thread_named<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread")
}

/// How long `body` took.
pub(crate) fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let begun: Instant = tokio::time::Instant::now().into_std();
    let answer = body();
    (answer, begun.elapsed())
}
