//! What makes no sense is answered by an error that names it.

use crate::support::Place;

#[test]
fn an_argument_that_makes_no_sense_is_named() {
    let place = Place::new();
    let list = place.write("list", "a\n");
    for (args, named) in [
        (&["--"][..], "COMMAND"),
        (&[], "COMMAND"),
        (&["--max-concurent-jobs", "3", "echo"], "--max-concurrent-jobs"),
        (&["-j", "0", "echo"], "1..=10000"),
        (&["-j", "10001", "echo"], "1..=10000"),
        (&["-j", "many", "echo"], "--max-concurrent-jobs"),
        (&["--max-attempts", "0", "echo"], "--max-attempts"),
        (&["--retries", "-1", "echo"], "-1"),
        (&["--retries", "1", "--max-attempts", "2", "echo"], "--max-attempts"),
        (&["--timeout", "0", "echo"], "it must be at least 1ms"),
        (&["--timeout", "5 minutes", "echo"], "such as 500ms, 1.5s or 2m"),
        (&["--grace", "400d", "echo"], "it must be at most 366d"),
        (&["--max-record", "0", "echo"], "it must be at least 1B"),
        (&["--max-output", "2GiB", "echo"], "it must be at most 1GiB"),
        (&["--max-output", "1M", "echo"], "such as 64KiB or 1MiB"),
        (
            &["--retry-wait", "2m", "--max-retry-wait", "1m", "echo"],
            "--retry-wait (120s) is longer than --max-retry-wait (60s)",
        ),
        (&["--max-waiting", "0", "echo"], "--max-waiting"),
        (&["--progress", "often", "echo"], "auto, plain, never"),
        (&["--json-lines", "--null", "echo"], "--null"),
        (&["--json", "--tag", "echo"], "--tag"),
        (&["--json-lines", "echo", "{.}"], "`{.}` in the command names no field"),
        (&["--json-lines", "echo", "{.a"], "`{.a` in the command is not closed"),
        (&["-I", "", "echo"], "--replace is empty"),
        (&["-i", &list, "--failed-to", &list, "echo"], "is the input itself"),
    ] {
        let ran = place.run(args, "a\n");
        assert_eq!((ran.code(), ran.stdout()), (2, String::new()), "{args:?}: {}", ran.stderr());
        assert!(ran.stderr().contains(named), "{args:?}: {}", ran.stderr());
    }
    assert_eq!(place.read("list"), "a\n", "the input is still there");
}

#[test]
fn more_jobs_than_there_may_be_open_files_are_refused_with_the_number_that_fits() {
    let place = Place::new();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 256; exec \"$0\" each -j 100 echo", env!("CARGO_BIN_EXE_tidegate")]);
    let ran = place.start_command(place.marked(command)).end(&place);
    assert_eq!(ran.code(), 2);
    let why =
        "--max-concurrent-jobs 100 needs 764 open files, and this user may have 256: at most 27 jobs fit";
    assert!(ran.stderr().contains(why), "{}", ran.stderr());
}

#[test]
fn an_input_that_can_not_be_read_is_named() {
    let place = Place::new();
    for (input, why) in [
        ("no-such", "--input no-such can't be read: No such file"),
        ("/", "--input / can't be read: is a directory"),
    ] {
        let ran = place.run(["-i", input, "echo"], "");
        assert_eq!(ran.code(), 3);
        assert!(ran.stderr().contains(why), "{}", ran.stderr());
    }
}

#[test]
fn a_command_that_can_not_be_started_is_named_before_anything_is_read() {
    let place = Place::new();
    let plain = place.write("plain", "echo\n");
    for (command, why) in [
        ("no-such-program", "no-such-program is not found in any folder of PATH".to_owned()),
        ("./no-such", "./no-such: No such file".to_owned()),
        (&plain, format!("{plain} is not an executable file")),
        ("", "the command is empty".to_owned()),
    ] {
        let ran = place.run(["--", command], "a\n");
        assert_eq!(ran.code(), 4);
        assert!(ran.stderr().contains(&why), "{}", ran.stderr());
    }
}

#[test]
fn a_command_that_turns_out_not_to_start_ends_the_run() {
    let place = Place::new();
    let script = place.script("script", "#!/no/such/shell\n");
    let many: String = (0..1000).map(|number| format!("{number}\n")).collect();
    let ran = place.run(["-j2", "--", &script], many);
    assert_eq!(ran.code(), 4);
    assert!(ran.stderr().contains("what its first line names is not there"), "{}", ran.stderr());
    assert!(
        ran.stderr().contains("0 done, 2 failed") || ran.stderr().contains("0 done, 1 failed"),
        "{}",
        ran.stderr()
    );
}

#[test]
fn an_output_that_can_not_be_written_is_named() {
    let place = Place::new();
    let ran = place.run(["--failed-to", "no/such/folder", "echo"], "a\n");
    assert_eq!(ran.code(), 5);
    assert!(
        ran.stderr().contains("--failed-to no/such/folder can't be written: No such file"),
        "{}",
        ran.stderr()
    );
    let mut command = place.command(["-j1", "--", "echo"]);
    command.stdin(std::process::Stdio::piped());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a Linux");
    let mut child =
        command.stdout(full).stderr(std::process::Stdio::piped()).spawn().expect("the program is built");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"a\nb\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("standard output can't be written: No space left"), "{stderr}");
}

#[test]
fn help_is_an_answer_and_not_an_error() {
    let place = Place::new();
    for args in [&["--help"][..], &["-h"]] {
        let ran = place.run(args, "");
        assert_eq!((ran.code(), ran.stderr()), (0, String::new()));
        assert!(ran.stdout().contains("Exit status:"));
    }
    assert!(place.run(["--help"], "").stdout().contains("Examples:"));
}
