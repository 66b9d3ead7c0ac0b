//! Disks of a test's own: small ones that can be filled, and places that become read-only.
//!
//! There are two ways to have one, and a test goes by each that this machine allows:
//!
//! - **mounted**: a tmpfs, or the folder once more, mounted in a mount namespace of its own. It needs the right to make one
//!   of those, which a container may not give;
//! - **acted**: a library (`disk.c`) between the program and the system's calls, which fail in that folder as they would
//!   on such a disk. It needs a C compiler, as building does, and a system whose programs are linked dynamically.
//!
//! What can be had is tried out once, without any program of ours, so a program that fails is never taken for a disk that
//! can't be had. Without either it is a failure in CI, and one visible line elsewhere.

#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the disk is, for whatever runs on it.
pub(crate) const DISK: &str = "TIDEGATE_TEST_DISK";

/// Commands for a shell that make the disk read-only, and writable again.
pub(crate) const LOCK: &str = "TIDEGATE_TEST_LOCK";
pub(crate) const UNLOCK: &str = "TIDEGATE_TEST_UNLOCK";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With these options of `unshare`.
    Mounted(&'static str),
    /// With the library there.
    Acted(PathBuf),
}

impl Way {
    /// A shell that runs `script` with a disk of so many bytes at that path, where nothing must be yet. Further arguments
    /// are `$0`, `$1` and so on.
    pub(crate) fn small_disk(&self, disk: &Path, bytes: u64, script: &str) -> Command {
        let mount =
            format!("mkdir -p \"${DISK}\" && mount -t tmpfs -o size={bytes} tidegate-test \"${DISK}\"");
        let mut command = self.shell(&mount, disk, script);
        command.env(LOCK, format!("mount -o remount,ro \"${DISK}\""));
        command.env(UNLOCK, format!("mount -o remount,rw \"${DISK}\""));
        if let Self::Acted(_) = self {
            // What others have left there would take room, or lock it.
            let _ = std::fs::remove_dir_all(disk);
            std::fs::create_dir_all(disk).expect("a folder of the test's own");
            command.env("TIDEGATE_TEST_DISK_BYTES", bytes.to_string());
            command.env(LOCK, format!(": > \"${DISK}.read-only\""));
            command.env(UNLOCK, format!("rm \"${DISK}.read-only\""));
        }
        command
    }

    /// A shell that runs `script` where nothing in that folder may be changed, by nobody. What is done elsewhere meanwhile
    /// is seen in it.
    pub(crate) fn read_only(&self, folder: &Path, script: &str) -> Command {
        let mount = format!(
            "mount --bind \"${DISK}\" \"${DISK}\" && mount -o remount,bind,ro \"${DISK}\" && cd \"${DISK}\""
        );
        let mark = "cd \"$TIDEGATE_TEST_DISK\" && : > \"$TIDEGATE_TEST_DISK.read-only\"";
        let script = match self {
            Self::Mounted(_) => script.to_owned(),
            Self::Acted(_) => {
                format!("{mark} || exit 99; ({script}); code=$?; rm \"${DISK}.read-only\"; exit $code")
            }
        };
        self.shell(&mount, folder, &script)
    }

    /// A shell that runs `script` with `disk` as its disk; for a mounted one `mount` is run before.
    fn shell(&self, mount: &str, disk: &Path, script: &str) -> Command {
        let command = match self {
            Self::Mounted(namespaces) => {
                let mut command = Command::new("unshare");
                command.args([namespaces, "sh", "-c"]).arg(format!("{{ {mount}; }} || exit 99; {script}"));
                command
            }
            Self::Acted(library) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(script).env("LD_PRELOAD", library);
                command
            }
        };
        on(command, disk)
    }

    /// Whether it is to be had here: nothing of ours is run.
    fn works(&self, folder: &Path) -> bool {
        const FULL: &str = r#"
            echo begun > "$TIDEGATE_TEST_DISK/kept" || exit 1
            dd if=/dev/zero of="$TIDEGATE_TEST_DISK/more" bs=1000 count=1000 && exit 2
            rm "$TIDEGATE_TEST_DISK/more" && echo more >> "$TIDEGATE_TEST_DISK/kept" || exit 3
            eval "$TIDEGATE_TEST_LOCK" || exit 4
            sh -c ': > "$TIDEGATE_TEST_DISK/more"' && exit 5
            eval "$TIDEGATE_TEST_UNLOCK" && : > "$TIDEGATE_TEST_DISK/more" || exit 6
        "#;
        const READ_ONLY: &str = "sh -c ': > more' && exit 1; cat kept";
        let disk = folder.join("probe");
        let good = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|done| done.success())
        };
        let full = good(&mut self.small_disk(&disk, 65_536, FULL));
        let _ = std::fs::create_dir_all(&disk);
        let _ = std::fs::write(disk.join("kept"), "");
        full && good(&mut self.read_only(&disk, READ_ONLY))
    }
}

/// The path is one that the system itself would name.
fn on(mut command: Command, disk: &Path) -> Command {
    let parent = disk.parent().and_then(|parent| parent.canonicalize().ok()).expect("a folder to have it in");
    command.env(DISK, parent.join(disk.file_name().expect("it has a name")));
    command
}

/// All ways to have one here. None of them: that is said on one line, and is a failure in CI.
pub(crate) fn ways() -> &'static [Way] {
    static WAYS: OnceLock<Vec<Way>> = OnceLock::new();
    WAYS.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for what tests leave");
        // A user namespace makes it possible without being root; who is root may not be allowed to have one.
        let mounted = ["-rm", "-m"].map(Way::Mounted).into_iter().find(|way| way.works(&folder));
        let acted = library(&folder).map(Way::Acted).filter(|way| way.works(&folder));
        let ways: Vec<Way> = mounted.into_iter().chain(acted).collect();
        let _ = std::fs::remove_dir_all(&folder);
        if ways.is_empty() {
            let why = "no disk of a test's own can be had here, neither mounted nor acted: allow user namespaces (or \
                       CAP_SYS_ADMIN) for `unshare` and `mount`, or install a C compiler as `cc`";
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
            // Past the test program, which would keep it to itself.
            let _ = writeln!(std::io::stderr(), "skipped: tests of full and of read-only disks: {why}");
        }
        ways
    })
}

/// Builds the library, each time: that takes less than to find out whether it is the newest.
fn library(folder: &Path) -> Option<PathBuf> {
    let (source, built) = (folder.join("disk.c"), folder.join("disk.so"));
    std::fs::write(&source, include_str!("disk.c")).ok()?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(&built).arg(&source).stdin(Stdio::null());
    let done = command.output().ok()?;
    // Where it stays, under a name that tells it from others, and whole at every moment.
    let place = folder.with_file_name("tidegate-test-disk.so");
    (done.status.success() && std::fs::rename(&built, &place).is_ok()).then_some(place)
}
