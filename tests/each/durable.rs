//! `--db`: the records outlive the process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use tidegate::backend::sqlite::Sqlite;
use tidegate::{Enqueue as _, Inspect as _, JobQuery, JobState, NewJob};

use crate::disk::ways;
use crate::support::{Fifo, Place, Running, timed, until};

/// The numbers of the records that were taken in and are done.
fn done(place: &Place) -> BTreeSet<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (open, done) = runtime.block_on(async {
        let jobs = Sqlite::open(place.path("db")).expect("it is there");
        let mut open: BTreeSet<u64> = BTreeSet::new();
        for state in [JobState::Ready, JobState::Delayed, JobState::Leased] {
            for job in jobs.list(&JobQuery::new(state, usize::MAX)).await.expect("listed") {
                let text = String::from_utf8_lossy(&job.job.payload).into_owned();
                let (number, _) = text.split_once('\t').expect("a number and a tab come first");
                open.insert(number.parse().expect("a number"));
            }
        }
        (open, jobs.counts().await.expect("counted").done)
    });
    let taken_in = done + open.len() as u64;
    (1..=taken_in).filter(|number| !open.contains(number)).collect()
}

/// The records that have run, in the order in which they did.
fn ran(place: &Place) -> Vec<u64> {
    let text = fs::read_to_string(place.path("out")).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// Records as people have them: the paths of what is on this machine, as the bytes that they are, and among them one in five
/// hundred that was made to trip over. No two are the same. Of a machine with too few files the paths come again, each time
/// with another number behind them, and that is said.
fn real_records(count: u64) -> Vec<Vec<u8>> {
    const HOSTILE_EVERY: u64 = 500;
    let wanted = (count - count.div_ceil(HOSTILE_EVERY)) as usize;
    let paths = paths(wanted);
    assert!(wanted == 0 || !paths.is_empty(), "this test's own program is a file");
    if paths.len() < wanted {
        eprintln!("{} paths are all that this machine has: they come again, with numbers", paths.len());
    }
    let again = |round: usize| {
        let number = (round > 0).then(|| format!(" {round}").into_bytes());
        paths.iter().map(move |path| [path.as_slice(), number.as_deref().unwrap_or_default()].concat())
    };
    let mut paths = (0..).flat_map(again);
    let record = |number: u64| match number % HOSTILE_EVERY {
        1 => hostile_record(number / HOSTILE_EVERY),
        _ => paths.next().expect("there is no end"),
    };
    (1..=count).map(record).collect()
}

/// The paths of as many files and folders as that, or of all there are: those of the system, of the toolchain, and of the
/// sources of what this was built from. A path with the end of a line in it would be two records.
fn paths(count: usize) -> Vec<Vec<u8>> {
    let home = std::env::home_dir().unwrap_or_default();
    let of = |variable: &str, usual: &str| {
        std::env::var_os(variable).map_or_else(|| home.join(usual), std::path::PathBuf::from)
    };
    let own = std::env::current_exe().expect("a test knows where it is");
    let roots = [
        "/usr".into(),
        of("CARGO_HOME", ".cargo"),
        of("RUSTUP_HOME", ".rustup"),
        own.parent().expect("it is in a folder").to_owned(),
    ];
    let (mut found, mut folders) = (BTreeSet::new(), roots.into_iter().rev().collect::<Vec<_>>());
    while let Some(folder) = folders.pop() {
        // What may not be read, or has just gone, has no files for us.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if found.len() >= count {
                return found.into_iter().collect();
            }
            if entry.file_type().is_ok_and(|sort| sort.is_dir()) {
                folders.push(entry.path());
            }
            let path = entry.path().into_os_string().into_encoded_bytes();
            if !path.contains(&b'\n') {
                found.insert(path);
            }
        }
    }
    found.into_iter().collect()
}

/// What shells, quotes and encodings trip over, in a log, JSON, CSV and paths; a few are long.
fn hostile_record(number: u64) -> Vec<u8> {
    const NAMES: [&str; 8] = [
        "Ada Lovelace",
        "O'Brien",
        "Zoë \"Zed\" Müller",
        "山田 太郎",
        "back\\slash\\",
        "$HOME `id` $(id)",
        "tab\there",
        "🦀 ; rm -rf *",
    ];
    let name = NAMES[(number % NAMES.len() as u64) as usize];
    let text = NAMES.join(" ");
    match number % 7 {
        0 => serde_json::json!({ "id": number, "name": name, "note": text }).to_string().into_bytes(),
        1 => format!("{number},\"{}\",,\"{text}\"", name.replace('"', "\"\"")).into_bytes(),
        2 => format!("  10.0.0.7 - - [01/Mar/2029:10:00:00 +0100] \"GET /{number}?q={text}\" 200  ")
            .into_bytes(),
        // Longer than a pipe takes at once, and still written by a shell in one piece.
        3 => format!("{{\"id\":{number},\"trace\":\"{}\"}}", "at f (é.rs:1) ".repeat(400)).into_bytes(),
        4 => format!("-n --number={number} -e '{text}' # %s\\n\r").into_bytes(),
        5 => format!("/srv/archive/{name}/IMG {number} (copy).JPG").into_bytes(),
        // A name from before everybody wrote UTF-8.
        _ => [&b"./caf\xE9"[..], format!(" {number}/{name}").as_bytes()].concat(),
    }
}

/// Each record's effect is there, and none that was done runs again. `TIDEGATE_EACH_RECORDS` says of how many.
#[test]
fn killed_five_times_in_the_middle_it_goes_on_and_runs_nothing_again_that_was_done() {
    const KILLS: u64 = 5;
    const SLOTS: usize = 4;
    const STEPS: u64 = 20;
    let count = std::env::var("TIDEGATE_EACH_RECORDS").map_or(50_000, |text| text.parse().expect("a number"));
    let records = real_records(count);
    let numbers: HashMap<&[u8], u64> = records.iter().map(Vec::as_slice).zip(1..).collect();
    assert_eq!(numbers.len() as u64, count, "no two are the same");
    let place = Place::new();
    let input: Vec<u8> = records.iter().flat_map(|record| record.iter().copied().chain([b'\n'])).collect();
    let part = input.len() as u64 / (KILLS + 1);
    place.write("in", &input);
    // What has run, in the order in which it did. The whole record is its effect: one that came otherwise than it was, or
    // in part, is none of them.
    let ran = || -> Vec<u64> {
        let out = fs::read(place.path("out")).unwrap_or_default();
        let number = |line: &[u8]| {
            *numbers.get(line).unwrap_or_else(|| panic!("no record: {:?}", String::from_utf8_lossy(line)))
        };
        out.split_inclusive(|byte| *byte == b'\n').map(|line| number(&line[..line.len() - 1])).collect()
    };
    let args = ["-q", "--db", "db", "-i", "in", "-j4", "--shell", "--", "printf '%s\\n' \"$1\" >> out"];
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        let length = || fs::metadata(place.path("out")).map_or(0, |out| out.len());
        let before = length();
        let mut running = place.start(args);
        // However slow the machine is, it must go on.
        for step in 1..=STEPS {
            until("some more has run", || length() >= before + part * step / STEPS);
        }
        running.signal(Signal::KILL);
        running.child.wait().expect("it was killed");
        place.assert_nobody_is_left(); // what ran has ended by itself
        kills.push((ran().len(), done(&place)));
    }
    let last = place.run(args, "");
    assert_eq!((last.code(), last.stderr()), (0, String::new()));
    let ran = ran();
    for (before, done) in &kills {
        let again: Vec<&u64> = ran[*before..].iter().filter(|number| done.contains(number)).collect();
        assert!(again.is_empty(), "they were done: {again:?}");
    }
    let mut times = BTreeMap::new();
    ran.iter().for_each(|number| *times.entry(*number).or_insert(0_usize) += 1);
    assert!((1..=count).all(|number| times.contains_key(&number)), "each has run");
    let twice = ran.len() - times.len();
    assert!(twice <= KILLS as usize * SLOTS, "{twice} ran twice: more than were in hand at a kill");
}

/// A run with one record in hand, which waits for a word; two more follow it.
struct Scene {
    place: Place,
    ready: Fifo,
    go: Fifo,
    running: Running,
}

const INPUT: &str = "one\ntwo\nthree\n";

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let (ready, go) = (place.fifo("ready"), place.fifo("go"));
        let mut running = place.start([
            "--db",
            "db",
            "-j1",
            "--progress",
            "never",
            "--shell",
            "--",
            "echo > ready; read x < go; echo $1 >> out",
        ]);
        running.feed(INPUT);
        ready.hear();
        Self { place, ready, go, running }
    }

    /// The same again, but with a command that does not wait.
    fn again(&self, input: &str) -> crate::support::Ran {
        again(&self.place, &[], input)
    }
}

fn again(place: &Place, options: &[&str], input: &str) -> crate::support::Ran {
    let mut args = vec!["--db", "db", "-j1", "--progress", "never"];
    args.extend_from_slice(options);
    args.extend_from_slice(&["--shell", "--", "echo $1 >> out; test $1 != bad"]);
    place.run(args, input)
}

#[test]
fn a_run_that_was_stopped_is_gone_on_with_and_needs_its_input_no_more() {
    let mut scene = Scene::new();
    scene.running.signal(Signal::TERM);
    scene.running.hear("nothing more starts");
    scene.go.tell();
    let Scene { place, running, .. } = scene;
    let stopped = running.end(&place);
    assert_eq!((stopped.code(), place.read("out").as_str()), (143, "one\n"));
    let ran = again(&place, &[], "");
    assert_eq!((ran.code(), place.read("out").as_str()), (0, "one\ntwo\nthree\n"));
    assert!(
        ran.stderr().starts_with("tidegate: going on with db: 1 done, 0 failed, 2 to do\n"),
        "{}",
        ran.stderr()
    );
    let ran = again(&place, &[], INPUT);
    assert_eq!((ran.code(), place.read("out").as_str()), (0, "one\ntwo\nthree\n"));
}

#[test]
fn two_at_once_on_one_file_are_one_too_many() {
    let scene = Scene::new();
    let second =
        scene.place.command(["--db", "db", "--", "true"]).stdin(std::process::Stdio::null()).output();
    let second = second.expect("it is built");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(5), "{said}");
    assert!(said.contains("--db db can't be used: another `tidegate each` is running"), "{said}");
    for _ in 0..2 {
        scene.go.tell();
        scene.ready.hear();
    }
    scene.go.tell();
    let Scene { place, running, .. } = scene;
    assert_eq!((running.end(&place).code(), place.read("out").as_str()), (0, "one\ntwo\nthree\n"));
}

#[test]
fn another_input_than_that_of_the_run_before_is_refused_and_what_was_taken_in_is_run() {
    for (input, first) in [("one\nTWO\nthree\n", "3"), ("zero\none\ntwo\nthree\n", "3"), ("one\n", "1")] {
        let mut scene = Scene::new();
        // All three are in the file, in one block.
        scene.running.signal(Signal::KILL);
        scene.running.child.wait().expect("it was killed");
        scene.go.tell(); // the command is left behind by the kill
        scene.place.assert_nobody_is_left();
        let ran = scene.again(input);
        let why = format!(
            "up to record {first}, it is not what db was filled from, up to record 3: give the same input"
        );
        assert!(ran.code() == 3 && ran.stderr().contains(&why), "{input:?}: {}", ran.stderr());
        assert_eq!(scene.place.read("out"), "one\none\ntwo\nthree\n", "the first ran on, and is run again");
    }
}

#[test]
fn what_has_been_added_to_the_input_is_run_too() {
    let place = Place::new();
    assert_eq!(again(&place, &[], "one\n\ntwo\n").code(), 0);
    assert_eq!(again(&place, &[], "one\n\ntwo\n\nfour\nfive").code(), 0);
    assert_eq!(place.read("out"), "one\ntwo\nfour\nfive\n");
}

#[test]
fn what_has_failed_stays_failed_until_it_is_to_be_tried_again() {
    let place = Place::new();
    let input = "good\nbad\nmuch too long\n";
    let ran = again(&place, &["--max-record", "8"], input);
    assert_eq!(ran.code(), 1);
    assert!(ran.stderr().contains("1 done, 2 failed"), "{}", ran.stderr());
    let ran = again(&place, &["--max-record", "8"], input);
    assert_eq!(ran.code(), 1);
    let said = "0 done, 0 failed in";
    assert!(ran.stderr().contains(said), "{}", ran.stderr());
    assert!(ran.stderr().ends_with("tidegate: 2 failed in earlier runs (--retry-failed tries them again)\n"));
    assert_eq!(place.read("out"), "good\nbad\n");
    let ran = again(&place, &["--max-record", "8", "--retry-failed"], input);
    assert_eq!(ran.code(), 1);
    assert!(
        ran.stderr().contains("tidegate: record 2 failed: exited with status 1: bad\n"),
        "{}",
        ran.stderr()
    );
    assert_eq!(place.read("out"), "good\nbad\nbad\n");
}

#[test]
fn attempts_are_counted_across_runs_and_one_that_a_kill_cut_short_is_not() {
    let place = Place::new();
    let go = place.fifo("go");
    let script = "echo $TIDEGATE_ATTEMPT >> out; test $TIDEGATE_ATTEMPT = 1 || read x < go; exit 1";
    let args = ["--db", "db", "--max-attempts", "2", "--retry-wait", "1ms", "-q", "--shell", "--", script];
    let mut running = place.start(args);
    running.feed("x\n");
    until("the second attempt has begun", || place.path("out").exists() && place.read("out") == "1\n2\n");
    running.signal(Signal::KILL);
    running.child.wait().expect("it was killed");
    go.tell();
    place.assert_nobody_is_left();
    let mut running = place.start(args);
    running.feed("x\n");
    until("the second attempt has begun again", || place.read("out") == "1\n2\n2\n");
    go.tell();
    assert_eq!(running.end(&place).code(), 1);
    assert_eq!(place.read("out"), "1\n2\n2\n", "there is no third");
}

/// On a disk of its own that is full at first: it says so, waits, and goes on when there is room.
#[test]
fn a_full_disk_is_waited_out_and_costs_no_record() {
    const SCRIPT: &str = r#"
        dd if=/dev/zero of=disk/filler bs=1000 count=32400 || exit 77
        "$0" each --db disk/db -i in -j2 --progress never --shell -- 'echo $1 >> out' 2> said &
        each=$!
        tries=0
        until grep -q 'trying again' said; do tries=$((tries + 1)); test $tries -lt 5000 || { rm disk/filler; break; }; done
        rm -f disk/filler
        wait $each; code=$?
        "$0" each -q --db disk/db -i in -j2 --shell -- 'echo again >> out' || exit 79
        exit $code
    "#;
    for way in ways() {
        let place = Place::new();
        let input: String = (1..=500).map(|number| format!("{number}\n")).collect();
        place.write("in", input);
        let code = place.on_a_small_disk(way, 32 << 20, SCRIPT);
        let said = place.read("said");
        assert_eq!(code, 0, "{way:?}: {said}");
        assert!(said.contains("the disk is full"), "{way:?}: {said}");
        let mut ran = ran(&place);
        ran.sort_unstable();
        assert_eq!(ran, (1..=500).collect::<Vec<u64>>(), "{way:?}: each has run once");
    }
}

/// Nothing is to be settled then, only to be fetched: a record waits for its second attempt.
#[test]
fn a_disk_that_fills_up_while_nothing_runs_is_said_too() {
    const SCRIPT: &str = r#"
        "$0" each --db disk/db -i in --max-attempts 2 --retry-wait 3s --progress never --shell -- '
            echo $1 >> out; test $(wc -l < out) = 2' 2> said &
        each=$!
        until test -s out; do :; done
        sleep 1 # the first attempt is settled long before; if not, that is said
        dd if=/dev/zero of=disk/filler bs=1000 2> /dev/null
        tries=0
        until grep -q 'trying again' said || test $tries = 5000; do tries=$((tries + 1)); done
        rm disk/filler
        wait $each
    "#;
    for way in ways() {
        let place = Place::new();
        place.write("in", "1\n");
        let code = place.on_a_small_disk(way, 8 << 20, SCRIPT);
        let said = place.read("said");
        assert!(said.contains("the disk is full") && said.contains("trying again"), "{way:?}: {said}");
        assert_eq!((code, place.read("out").as_str()), (0, "1\n1\n"), "{way:?}: {said}");
    }
}

/// Each record costs the same, however many wait behind it.
#[test]
fn one_at_a_time_a_long_list_is_no_slower_than_a_short_one() {
    let time_of = |count: u32| {
        let place = Place::new();
        let input: String = (0..count).map(|number| format!("{number}\n")).collect();
        place.write("in", input);
        let mut running =
            place.start(["-q", "--db", "db", "-i", "in", "-j1", "--shell", "--", "echo >> out"]);
        until("it has begun", || ran_lines(&place) >= 10);
        let ((), took) = timed(|| until("300 have run", || ran_lines(&place) >= 300));
        running.signal(Signal::KILL);
        running.child.wait().expect("it was killed");
        place.assert_nobody_is_left();
        took
    };
    // Looked through for each record, the long list would take a minute for these.
    let (short, long) = (time_of(400), time_of(200_000));
    assert!(long < short * 4 + Duration::from_secs(5), "{long:?}, and {short:?} for a short one");
}

fn ran_lines(place: &Place) -> usize {
    fs::read_to_string(place.path("out")).unwrap_or_default().lines().count()
}

#[test]
fn a_file_with_jobs_of_another_sort_is_refused_and_so_is_one_of_records_by_the_daemon() {
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let jobs = Sqlite::open(place.path("jobs.sqlite")).expect("a new file");
        jobs.enqueue(vec![NewJob::new("a", "")]).await.expect("enqueued");
    });
    let ran = place.run(["--db", "jobs.sqlite", "--", "true"], "one\n");
    assert!(ran.code() == 5 && ran.stderr().contains("it holds jobs of another sort"), "{}", ran.stderr());
    assert_eq!(again(&place, &[], "one\n").code(), 0);
    place.write("daemon.toml", "source = \"sqlite:db\"\n[kinds.a]\nexec = [\"true\"]\n");
    let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    daemon.args(["run", "--config", "daemon.toml"]).current_dir(place.path(""));
    let refused = place.marked(daemon).output().expect("it is built");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("holds the records of a `tidegate each --db`"),
        "{said}"
    );
}

#[test]
fn a_file_that_can_not_be_used_is_refused_before_anything_runs() {
    let place = Place::new();
    place.write("text", "this is no database, and long enough to be seen as none of SQLite's\n".repeat(20));
    for (db, why) in [("text", "text can't be used"), ("no/such/folder", "no/such/folder can't be used")] {
        let ran = place.run(["--db", db, "--shell", "--", "echo $1 >> out"], "one\n");
        assert!(ran.code() == 5 && ran.stderr().contains(why), "{}", ran.stderr());
        assert!(!place.path("out").exists());
    }
    let ran = place.run(["--retry-failed", "--", "true"], "");
    assert!(ran.code() == 2 && ran.stderr().contains("--db <FILE>"), "{}", ran.stderr());
}
