//! Programs that end with the test: a [`Process`], the [`Folder`] that it works in, and the port that it listens on.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long [`until`] goes on hoping: longer than any hiccup of a busy machine.
pub(crate) const HOPE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; fails naming `what` if it does not within half a minute.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    assert!(comes_true(HOPE, &mut condition), "waited in vain until {what}");
}

/// Waits at most `patience` until `condition` holds; says whether it does.
pub(crate) fn comes_true(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = real_time();
    loop {
        if condition() {
            return true;
        }
        if begun.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[expect(clippy::disallowed_methods, reason = "real programs; tokio's clock may be paused")]
fn real_time() -> Instant {
    Instant::now()
}

/// True if the program is on the PATH and answers `--version`.
pub(crate) fn is_there(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    asked.is_ok_and(|output| output.status.success())
}

/// Says in one visible line that a test is left out; where CI promises what is missing, that is a failure.
pub(crate) fn missing(what: &str, remedy: &str) {
    let said = format!("{what} is not installed ({remedy})");
    assert!(std::env::var_os("CI").is_none(), "{said}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not `eprintln!`, which the test harness keeps to itself when the test passes; in one piece, beside other tests.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {said}\n").as_bytes());
}

/// A port of the loopback that nobody listened on just now.
///
/// Below those that the system gives to outgoing connections, and no other test process gets it as long as this one runs:
/// a server that is started again finds it free, and who looks for one that is away finds no other test's.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static RANGE: LazyLock<(u16, Option<File>)> = LazyLock::new(port_range);
    for _ in 0..RANGE_PORTS {
        let port = RANGE.0 + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE_PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free from {} to {}", RANGE.0, RANGE.0 + RANGE_PORTS);
}

/// More than the servers and proxies of one test program that live at the same time.
const RANGE_PORTS: u16 = 1_000;

/// The first port of a range that is this process's own, and what keeps others from it.
fn port_range() -> (u16, Option<File>) {
    const RANGES: u16 = 10;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768_u16);
    let start = if end > 12_000 { end - RANGES * RANGE_PORTS } else { 50_000 };
    for number in 0..RANGES {
        let path = std::env::temp_dir().join(format!("tidegate-test-ports-{number}"));
        let Ok(file) = OpenOptions::new().write(true).create(true).truncate(false).open(path) else {
            continue;
        };
        if file.try_lock().is_ok() {
            return (start + number * RANGE_PORTS, Some(file));
        }
    }
    // So many at once, or other users' files: they share.
    (start + (std::process::id() % u32::from(RANGES)) as u16 * RANGE_PORTS, None)
}

/// A folder of the test's own. Goes with all that is in it when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("tidegate-peer-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("a folder for the test: {error}"),
            }
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that this test has started, whose output goes to a file. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    warden: Option<Child>,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes, both ways, is added to the file `output`.
    pub(crate) fn start(command: &mut Command, output: &Path) -> Self {
        Self::start_apart(command, output, output)
    }

    /// The same with what it writes about errors in a file of its own.
    pub(crate) fn start_apart(command: &mut Command, output: &Path, errors: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let open = |path: &Path| -> File {
            OpenOptions::new().append(true).create(true).open(path).expect("a file for what it writes")
        };
        let child = command.stdin(Stdio::null()).stdout(open(output)).stderr(open(errors)).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let warden = Some(warden_of(&child));
        Self { child, warden, name, output: output.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Waits until it has written `part`; fails if it ends before, or does not within half a minute.
    pub(crate) fn says(&mut self, part: &str) {
        let mut ended = None;
        let said = comes_true(HOPE, || {
            // Asked first: what it wrote before its end is there by then.
            ended = self.ended();
            ended.is_some() || self.output().contains(part)
        });
        let written = self.output();
        assert!(said && written.contains(part), "{} never said {part:?} ({ended:?}):\n{written}", self.name);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.child.try_wait().expect("a child can be waited for");
        if ended.is_some() {
            self.dismiss_warden();
        }
        ended
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
            kill_process(pid, signal).expect("it is a child that nobody has waited for");
        }
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.dismiss_warden();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for its end; fails if it does not end within half a minute.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end; fails if it does not end within half a minute.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.wait_for(HOPE)
    }

    /// Waits for its end; fails if it does not end within `patience`.
    pub(crate) fn wait_for(&mut self, patience: Duration) -> ExitStatus {
        let mut ended = None;
        comes_true(patience, || {
            ended = self.ended();
            ended.is_some()
        });
        ended.unwrap_or_else(|| panic!("{} does not end:\n{}", self.name, self.output()))
    }

    /// It must not be there any more when the pid can be somebody else's.
    fn dismiss_warden(&mut self) {
        if let Some(mut warden) = self.warden.take() {
            let _ = warden.kill();
            let _ = warden.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills `child` once this process is gone: a test that is killed itself drops nothing.
fn warden_of(child: &Child) -> Child {
    let mut command = Command::new("sh");
    // The pipe ends with this process, however that ends. Further lines are never written.
    command.args(["-c", r#"read -r _; kill -KILL "$0""#, &child.id().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("there is a shell")
}
