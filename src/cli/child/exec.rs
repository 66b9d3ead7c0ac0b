//! One child process, once: starts it in a process group of its own, takes in what it says, and sees that
//! nothing of the group is left when it is over (P6).
//!
//! Invariants:
//!
//! 1. Between a successful start and the end of its group there is a [`Group`] whose drop kills: whatever
//!    happens to the future, the processes end.
//! 2. A group's number is used only while something holds it: the child itself until it has been waited for,
//!    and what it left behind after that, which is looked at again and again within milliseconds. So no
//!    signal can reach a stranger who was given the number anew.
//! 3. The child never waits for us: its output is read to the end even when no more of it is kept.
//!
//! Nothing here runs between fork and exec, so that starting a child stays a `posix_spawn`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::orphans::bury_group;
use super::pipes::{Capture, Captured, Feed, Keeping};
use crate::sync::{Mutex, lock};

/// How soon it is looked for the first time whether a group that was left behind is over; doubled each time.
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// The longest time between two looks. A number is not given out again before all others were (32,768 at the
/// least), which no machine does in so short a time.
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// How long a group that was killed may take to be gone. What is still there then can't be ended by anyone: it
/// hangs in the kernel, or it has ended and its parent, who may be in another group, does not wait for it.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// The process ids of all children that run. There is one set, since a process has its children as a whole.
static RUNNING: LazyLock<Mutex<HashSet<u32>>> = LazyLock::new(Mutex::default);

/// What is the same for every child.
#[derive(Debug)]
pub(crate) struct Launcher {
    /// Where the program is, if it is the same for every child. To be absolute if there is a folder.
    pub(crate) program: Option<PathBuf>,
    /// Where it runs; without it, where this process does.
    pub(crate) folder: Option<PathBuf>,
    /// Variables of this process that are none of the child's business.
    pub(crate) without: &'static [&'static str],
    /// The time between TERM and KILL.
    pub(crate) grace: Duration,
    /// What is kept of each of the two outputs.
    pub(crate) keep: Keeping,
}

/// What is different for each. Can't be shown: what is in its environment may be secret.
pub(crate) struct Task<'a> {
    pub(crate) argv: Cow<'a, [OsString]>,
    /// What it reads; without it, what this process has for its standard input.
    pub(crate) stdin: Option<Bytes>,
    /// What is added to the environment.
    pub(crate) env: Vec<(&'a str, Cow<'a, str>)>,
}

/// What became of a child.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) took: Duration,
    /// Whether it was told to stop before it ended.
    pub(crate) told_to_stop: bool,
}

impl Launcher {
    /// Runs a child to its end, and what it started with it. `started` is told its process id. When `stop` is
    /// ready first, the group gets TERM, and KILL after the grace.
    ///
    /// # Errors
    /// Those of starting it.
    ///
    /// # Cancel safety
    /// Dropped early, the group is killed.
    pub(crate) async fn run(
        &self,
        task: &Task<'_>,
        stop: impl Future<Output = ()>,
        started: impl FnOnce(u32),
    ) -> io::Result<Ended> {
        let begun = Instant::now();
        let mut running = self.start(task)?;
        started(running.group.number());
        let mut told = None;
        let status = tokio::select! {
            biased;
            status = running.exit(None) => status?,
            () = stop => None,
        };
        let status = match status {
            Some(status) => status,
            None => {
                let kill_at = running.terminate(self.grace);
                told = Some(kill_at);
                match running.exit(Some(kill_at)).await? {
                    Some(status) => status,
                    None => {
                        running.group.signal(Signal::KILL);
                        running.exit(None).await?.ok_or(ErrorKind::TimedOut)?
                    }
                }
            }
        };
        running.end_group(told, self.grace).await;
        let (stdout, stderr) = (running.stdout.finish(), running.stderr.finish());
        Ok(Ended { status, stdout, stderr, took: begun.elapsed(), told_to_stop: told.is_some() })
    }

    fn start(&self, task: &Task<'_>) -> io::Result<Running> {
        let (name, arguments) = task.argv.split_first().ok_or(ErrorKind::InvalidInput)?;
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => Command::new(name),
        };
        let (stdout, stdout_end) = Capture::new(self.keep)?;
        let (stderr, stderr_end) = Capture::new(self.keep)?;
        let mut feed = None;
        if let Some(bytes) = &task.stdin {
            let (stdin, rest) = Feed::new(bytes.clone())?;
            command.stdin(stdin);
            feed = rest;
        } else {
            command.stdin(Stdio::inherit());
        }
        command.arg0(name).args(arguments).stdout(stdout_end).stderr(stderr_end);
        for name in self.without {
            command.env_remove(name);
        }
        command.envs(task.env.iter().map(|(name, value)| (name, value.as_ref())));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(ErrorKind::Other)?;
        // `command` is dropped here, and with it this process's copies of the child's ends of the pipes.
        Ok(Running { group: Group::new(id), child, feed, stdout, stderr })
    }
}

/// A child, and what goes in and out of it.
#[derive(Debug)]
struct Running {
    /// Dropped before the child: its number is still held then.
    group: Group,
    child: Child,
    feed: Option<Feed>,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    /// Waits until the child has exited; `None` when it has not by `until`.
    async fn exit(&mut self, until: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        let mut timer = pin!(until.map(sleep_until));
        std::future::poll_fn(|cx| {
            self.pump(cx);
            if let Poll::Ready(status) = pin!(self.child.wait()).poll(cx) {
                return Poll::Ready(status.map(Some));
            }
            match timer.as_mut().as_pin_mut() {
                Some(timer) => timer.poll(cx).map(|()| Ok(None)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Asks the whole group to end, and says when it is to be killed.
    fn terminate(&self, grace: Duration) -> Instant {
        self.group.signal(Signal::TERM);
        // What is stopped handles no signal until it goes on.
        self.group.signal(Signal::CONT);
        Instant::now() + grace
    }

    /// Ends what the child has left behind in its group: TERM at once, unless it has had that, and KILL when
    /// its time is over.
    async fn end_group(&mut self, kill_at: Option<Instant>, grace: Duration) {
        if self.group.look() {
            return;
        }
        let mut kill_at = kill_at.unwrap_or_else(|| self.terminate(grace));
        let mut killed = false;
        let mut pause = FIRST_LOOK;
        loop {
            self.pump_for(pin!(sleep(pause))).await;
            if self.group.look() {
                return;
            }
            if Instant::now() >= kill_at {
                if killed {
                    self.group.over = true;
                    return;
                }
                self.group.signal(Signal::KILL);
                (killed, kill_at, pause) = (true, Instant::now() + AFTER_KILL, FIRST_LOOK);
            }
            pause = (2 * pause).min(LONGEST_LOOK);
        }
    }

    async fn pump_for(&mut self, mut timer: Pin<&mut Sleep>) {
        std::future::poll_fn(|cx| {
            self.pump(cx);
            timer.as_mut().poll(cx)
        })
        .await;
    }

    /// Moves what can be moved into the child and out of it.
    fn pump(&mut self, cx: &mut Context<'_>) {
        if self.feed.as_mut().is_some_and(|feed| feed.poll(cx).is_ready()) {
            self.feed = None;
        }
        self.stdout.poll(cx);
        self.stderr.poll(cx);
    }
}

/// The process group of a child, which is killed when this is dropped, unless it is over.
#[derive(Debug)]
struct Group {
    id: Pid,
    over: bool,
}

impl Group {
    fn new(id: Pid) -> Self {
        let group = Self { id, over: false };
        lock(&RUNNING).insert(group.number());
        group
    }

    fn number(&self) -> u32 {
        self.id.as_raw_nonzero().get().unsigned_abs()
    }

    fn signal(&self, signal: Signal) {
        // That nobody is left to get it is what we want.
        let _ = kill_process_group(self.id, signal);
    }

    /// Whether nothing is left of it. Only for a group whose leader has been waited for: that one would
    /// count as left.
    fn look(&mut self) -> bool {
        let mut left = test_kill_process_group(self.id).is_ok();
        if left {
            bury_group(self.id);
            left = test_kill_process_group(self.id).is_ok();
        }
        self.over = !left;
        self.over
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.over {
            self.signal(Signal::KILL);
        }
        lock(&RUNNING).remove(&self.number());
    }
}

/// The process ids of the children that run now, all of which somebody waits for.
pub(crate) fn running() -> HashSet<u32> {
    lock(&RUNNING).clone()
}

/// Where a program is, looked for as `execvp` does; an error says what is wrong with it.
///
/// Once for all records: a child is then started without trying each folder in turn.
pub(crate) fn find_program(name: &OsStr) -> Result<PathBuf, String> {
    let shown = name.to_string_lossy();
    if name.is_empty() {
        return Err("the command is empty: there is nothing to run".to_owned());
    }
    if shown.contains('/') {
        return match is_executable(Path::new(name)) {
            Ok(true) => Ok(PathBuf::from(name)),
            Ok(false) => Err(format!("{shown} is not an executable file")),
            Err(error) => Err(format!("{shown}: {error}")),
        };
    }
    let folders = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut unfit = None;
    for folder in env::split_paths(&folders) {
        let path = if folder.as_os_str().is_empty() { Path::new(".").join(name) } else { folder.join(name) };
        match is_executable(&path) {
            Ok(true) => return Ok(path),
            Ok(false) => unfit = unfit.or(Some(path)),
            Err(_) => {}
        }
    }
    Err(match unfit {
        Some(path) => format!("{} is not an executable file", path.display()),
        None => format!("{shown} is not found in any folder of PATH"),
    })
}

fn is_executable(path: &Path) -> io::Result<bool> {
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::os::unix::process::ExitStatusExt as _;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn launcher(grace: Duration) -> Launcher {
        let keep = Keeping { first: 1000, last: 0 };
        Launcher { program: None, folder: None, without: &[], grace, keep }
    }

    fn task(script: &str) -> Task<'static> {
        let argv = ["sh", "-c", script].map(OsString::from).to_vec();
        Task { argv: argv.into(), stdin: None, env: Vec::new() }
    }

    /// Runs a shell script; `stop` is told the child's process id.
    async fn run(script: &str, grace: Duration, stop: impl AsyncFnOnce(&AtomicU32)) -> (Ended, u32) {
        super::super::orphans::adopt();
        let launcher = launcher(grace);
        let child = AtomicU32::new(0);
        let task = Task { env: vec![("TIDE", "7".into()), ("GATE", "2".into())], ..task(script) };
        let ended = launcher.run(&task, stop(&child), |id| child.store(id, Ordering::SeqCst)).await;
        (ended.expect("sh is there"), child.load(Ordering::SeqCst))
    }

    async fn never(_: &AtomicU32) {
        pending().await
    }

    /// Whether anything but zombies, which only their parent can take away, is in the group.
    fn group_is_gone(group: u32) -> bool {
        let processes = std::fs::read_dir("/proc").expect("a Linux").filter_map(Result::ok);
        let stats = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
        !stats.into_iter().any(|stat| {
            // pid (name) state parent group …
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            fields.first() != Some(&"Z") && fields.get(2) == Some(&group.to_string().as_str())
        })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_child_is_heard_to_its_end_and_knows_what_it_is_told() {
        let script = "echo $TIDE.$GATE; echo oops >&2; printf end; exit 3";
        let (ended, child) = run(script, LONG, never).await;
        assert_eq!((ended.status.code(), ended.told_to_stop), (Some(3), false));
        assert_eq!((&ended.stdout.bytes[..], &ended.stderr.bytes[..]), (&b"7.2\nend"[..], &b"oops\n"[..]));
        assert!(group_is_gone(child));
    }

    #[tokio::test]
    async fn a_child_has_this_process_s_environment_but_for_what_is_none_of_its_business() {
        // Those that a shell sets by itself prove nothing.
        let ours = |name: &String| !["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str());
        let name: &str = env::vars().map(|(name, _)| name).find(ours).expect("there is one").leak();
        for (without, there) in [(&[][..], true), (&*vec![name].leak(), false)] {
            let keep = Keeping { first: 1 << 20, last: 0 };
            let launcher = Launcher { without, keep, ..launcher(LONG) };
            let ended = launcher.run(&task("env"), pending(), |_| ()).await.expect("sh is there");
            let said = String::from_utf8_lossy(&ended.stdout.bytes);
            let start = format!("{name}=");
            assert_eq!(said.lines().any(|line| line.starts_with(&start)), there, "{name}");
        }
    }

    #[tokio::test]
    async fn an_output_beyond_its_bound_is_read_and_dropped() {
        let (ended, _) = run("head -c 300000 /dev/zero; printf x >&2", LONG, never).await;
        assert_eq!((ended.stdout.bytes.len(), ended.stdout.dropped), (1000, 299_000));
        assert_eq!(ended.stderr, Captured { bytes: b"x".to_vec(), ..Captured::default() });
        assert!(ended.status.success());
    }

    #[tokio::test]
    async fn what_a_child_leaves_behind_ends_with_it() {
        let (ended, child) = run("sleep 1000 & (sleep 1000 & sleep 1000) & echo there", LONG, never).await;
        assert_eq!(ended.stdout.bytes, b"there\n");
        assert!(ended.status.success());
        assert!(group_is_gone(child));
        assert!(ended.took < LONG / 2, "it was not waited for");
    }

    #[tokio::test]
    async fn a_child_that_is_told_to_stop_gets_a_term_and_time() {
        let stop = async |_: &AtomicU32| {};
        let (ended, _) = run("trap 'echo bye; exit 5' TERM; kill -s STOP $$; echo no", LONG, stop).await;
        // TERM may come before the trap is set.
        let by_trap = ended.status.code() == Some(5) && ended.stdout.bytes == b"bye\n";
        assert!(by_trap || ended.status.signal() == Some(15), "{ended:?}");
        assert!(ended.told_to_stop);
    }

    #[tokio::test]
    async fn a_family_that_ignores_term_is_killed_after_the_grace() {
        let dir = std::env::temp_dir().join(format!("tidegate-exec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        let fifo = dir.join("ready");
        let script = format!(
            "trap '' TERM; mkfifo {0}; (trap '' TERM; echo ready > {0}; exec sleep 1000) & sleep 1000",
            fifo.display()
        );
        let stop = async |_: &AtomicU32| {
            // Opening a FIFO waits for its other end: then both have their traps set.
            loop {
                if tokio::fs::read_to_string(&fifo).await.is_ok() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let (ended, child) = run(&script, Duration::from_millis(50), stop).await;
        assert_eq!(ended.status.signal(), Some(9));
        assert!(ended.told_to_stop && group_is_gone(child));
        std::fs::remove_dir_all(&dir).expect("it was ours");
    }

    #[tokio::test]
    async fn a_run_that_is_dropped_kills_its_group() {
        let (launcher, task) = (launcher(LONG), task("sleep 1000 & wait"));
        let (started, mut child) = tokio::sync::oneshot::channel();
        let run = launcher.run(&task, pending(), |id| started.send(id).expect("it is waited for"));
        let child = {
            let mut run = pin!(run);
            tokio::select! {
                _ = &mut run => panic!("it sleeps"),
                id = &mut child => id.expect("it has started"),
            }
        };
        // Dying takes its moment.
        while !group_is_gone(child) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_child_that_does_not_read_does_not_hold_up_and_one_that_does_gets_all() {
        let launcher = launcher(LONG);
        let long = Bytes::from(vec![b'x'; 1 << 20]);
        for (program, output) in [("true", ""), ("wc -c", "1048576\n")] {
            let task = Task { stdin: Some(long.clone()), ..task(program) };
            let ended = launcher.run(&task, pending(), |_| ()).await.expect("sh is there");
            assert_eq!(String::from_utf8_lossy(&ended.stdout.bytes), output);
        }
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it_or_said_not_to_be() {
        assert!(find_program(OsStr::new("sh")).expect("there is one").ends_with("sh"));
        assert_eq!(find_program(OsStr::new("/bin/sh")), Ok(PathBuf::from("/bin/sh")));
        for (name, why) in [
            ("no-such-program", "no-such-program is not found in any folder of PATH"),
            ("/no/such", "/no/such: No such file or directory (os error 2)"),
            ("/dev/null", "/dev/null is not an executable file"),
            ("/", "/ is not an executable file"),
            ("", "the command is empty: there is nothing to run"),
        ] {
            assert_eq!(find_program(OsStr::new(name)), Err(why.to_owned()));
        }
    }
}
