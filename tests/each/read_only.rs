//! `--db` where it may not be written: said by name and at once, nothing is run, and nothing is lost by it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tidegate::backend::sqlite::Sqlite;

use crate::disk::ways;
use crate::support::{Place, skipped, until};

/// Somebody who has no rights but those of everybody: permissions do not stop root.
const NOBODY: u32 = 65534;

/// Runs the program as somebody whom permissions stop. The file is `store/db`.
struct Scene {
    place: Place,
    /// Whom to run it as, if it is not to be whoever runs this.
    by: Option<u32>,
    program: PathBuf,
}

const INPUT: &str = "1\n2\n3\n4\n5\n";

impl Scene {
    /// `None` where it can't be had.
    fn new() -> Option<Self> {
        let place = Place::new();
        place.write("in", INPUT);
        fs::create_dir(place.path("store")).expect("a folder of our own");
        let by = (fs::metadata(place.path("in")).expect("it was made").uid() == 0).then_some(NOBODY);
        let built = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
        let program = if by.is_some() { place.path("tidegate") } else { built.clone() };
        if let Some(by) = by {
            // Where it was built nobody else may come.
            fs::hard_link(&built, &program)
                .or_else(|_| fs::copy(&built, &program).map(drop))
                .expect("a copy of our own");
            for (name, mode) in [("", 0o755), ("store", 0o755), ("in", 0o644)] {
                fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).expect("it is ours");
                chown(place.path(name), Some(by), Some(by)).expect("we are root");
            }
        }
        let scene = Self { place, by, program };
        let works = scene.command().arg("--version").stdout(Stdio::null()).status();
        if works.is_ok_and(|works| works.success()) {
            return Some(scene);
        }
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the program can't be run as somebody else");
        skipped("the program can't be run as somebody else than root");
        None
    }

    fn command(&self) -> Command {
        let mut command = match self.by {
            None => Command::new(&self.program),
            Some(by) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={by}"), format!("--regid={by}")]);
                command.arg("--clear-groups").arg(&self.program);
                command
            }
        };
        command.current_dir(self.place.path("")).stdin(Stdio::null());
        self.place.marked(command)
    }

    /// Runs the records with this command for each. Returns the exit code, if it was not killed, and what was said.
    fn run(&self, shell: &str) -> (Option<i32>, String) {
        let mut command = self.command();
        command.args(["each", "--db", "store/db", "-i", "in", "-j1", "--progress", "never"]);
        let done = command.args(["--shell", "--", shell]).output().expect("it is built");
        self.place.assert_nobody_is_left();
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// A run that is ended by that signal in the middle of the second record.
    fn run_until_ended_by(&self, signal: &str) {
        let (code, said) = self.run(&format!("echo $1 >> out; test $1 != 2 || kill -{signal} $PPID"));
        assert!(!matches!(code, Some(0..=128)), "{said}");
        assert_eq!(self.place.read("out"), "1\n2\n");
    }

    /// A run that has ended may have had no time to take the WAL with it; and with one that is there, a folder in which
    /// none can be made does no harm.
    fn leave_only_the_file(&self) {
        until("the WAL is gone", || {
            drop(Sqlite::open(self.place.path("store/db")).expect("it is there"));
            !self.place.path("store/db-wal").exists()
        });
    }

    fn set_mode(&self, name: &str, mode: u32) {
        let path = self.place.path("store").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    /// What is in the store but for the index of the WAL, which is made anew by whoever looks.
    fn kept(&self) -> Vec<(String, Vec<u8>)> {
        let names = ["db", "db-wal", "db.lock"].map(|name| format!("store/{name}"));
        let there = names.into_iter().filter(|name| self.place.path(name).exists());
        there
            .map(|name| {
                let bytes = fs::read(self.place.path(&name)).expect("it is there");
                (name, bytes)
            })
            .collect()
    }

    /// It ends before anything has run or is changed, and says why.
    fn assert_refused(&self, what: &str) {
        let (kept, out) = (self.kept(), fs::read(self.place.path("out")).unwrap_or_default());
        let (code, said) = self.run("echo $1 >> out");
        assert_eq!(code, Some(5), "{what}: {said}");
        assert!(said.starts_with("tidegate: --db store/db can't be used: "), "{what}: {said}");
        assert!(said.contains("this program must be able to write"), "{what}: {said}");
        assert_eq!(said.lines().count(), 1, "{what}: {said}");
        assert_eq!(fs::read(self.place.path("out")).unwrap_or_default(), out, "{what}: something was run");
        assert!(self.kept() == kept, "{what}: it was changed");
    }
}

#[test]
fn a_file_that_may_not_be_written_is_said_by_name_and_gone_on_with_when_it_may() {
    // Killed, it leaves its WAL behind, with most of what is to be known. Stopped, only the file itself.
    for (signal, name, mode, known_by, ran) in [
        ("KILL", "db", 0o444, "its -wal or -shm, or its folder is read-only", "1\n2\n2\n3\n4\n5\n"),
        ("KILL", "db-wal", 0o444, "its -wal or -shm, or its folder is read-only", "1\n2\n2\n3\n4\n5\n"),
        ("KILL", "db-shm", 0o444, "its -wal or -shm, or its folder is read-only", "1\n2\n2\n3\n4\n5\n"),
        ("KILL", "db.lock", 0o444, "store/db.lock can't be opened", "1\n2\n2\n3\n4\n5\n"),
        ("TERM", "", 0o555, "its -wal or -shm, or its folder is read-only", "1\n2\n3\n4\n5\n"),
    ] {
        let Some(scene) = Scene::new() else { return };
        scene.run_until_ended_by(signal);
        if signal == "TERM" {
            scene.leave_only_the_file();
        }
        let before = fs::metadata(scene.place.path("store").join(name)).expect("it is there").mode();
        scene.set_mode(name, mode);
        scene.assert_refused(name);
        let (_, said) = scene.run("echo $1 >> out");
        assert!(said.contains(known_by), "{name}: {said}");
        scene.set_mode(name, before);
        let (code, said) = scene.run("echo $1 >> out");
        assert_eq!((code, scene.place.read("out").as_str()), (Some(0), ran), "{name}: {said}");
    }
}

#[test]
fn a_folder_in_which_no_file_may_be_made_is_said_before_anything_runs() {
    let Some(scene) = Scene::new() else { return };
    scene.set_mode("", 0o555);
    scene.assert_refused("the folder");
    assert_eq!(scene.kept(), [], "nothing was made");
    scene.set_mode("", 0o755);
    let (code, said) = scene.run("echo $1 >> out");
    assert_eq!((code, scene.place.read("out").as_str()), (Some(0), INPUT), "{said}");
}

/// Nobody may write there, not even root.
#[test]
fn a_disk_that_has_become_read_only_is_said_and_costs_no_record() {
    const SCRIPT: &str = r#"
        "$0" each -q --db disk/db -i in -j1 --shell -- 'echo $1 >> out; test $1 != 2 || kill -KILL $PPID'
        tries=0
        until eval "$TIDEGATE_TEST_LOCK"; do tries=$((tries + 1)); test $tries -lt 1000 || exit 77; done
        "$0" each --db disk/db -i in -j1 --progress never --shell -- 'echo $1 >> out' 2> said
        echo $? > code
        cp out before
        eval "$TIDEGATE_TEST_UNLOCK" || exit 78
        "$0" each -q --db disk/db -i in -j1 --shell -- 'echo $1 >> out'
    "#;
    for way in ways() {
        let place = Place::new();
        place.write("in", INPUT);
        let code = place.on_a_small_disk(way, 8 << 20, SCRIPT);
        let (said, first) = (place.read("said"), place.read("code"));
        let before = (code, first.trim(), place.read("before"));
        assert_eq!(before, (0, "5", "1\n2\n".to_owned()), "{way:?}: {said}");
        let why = "tidegate: --db disk/db can't be used: disk/db.lock can't be opened: Read-only file system";
        assert!(
            said.starts_with(why) && said.contains("must be able to write it and its folder"),
            "{way:?}: {said}"
        );
        let all = "1\n2\n2\n3\n4\n5\n";
        assert_eq!(place.read("out"), all, "{way:?}: what was in hand ran again, and all that was left");
    }
}
