//! What becomes of the input: records, placeholders, argument lists.

use std::os::unix::ffi::OsStrExt as _;

use crate::support::Place;

#[test]
fn a_command_without_a_place_for_the_record_gets_it_last() {
    let ran = Place::new().run(["--", "echo", "x"], "a b\n$HOME;'\"\n\nlast without newline");
    assert_eq!(
        (ran.code(), ran.sorted()),
        (0, vec!["x $HOME;'\"".into(), "x a b".into(), "x last without newline".into()])
    );
}

#[test]
fn the_record_takes_its_place_in_any_argument() {
    let place = Place::new();
    let ran = place.run(["--", "printf", "%s|%s\n", "--file={}.txt", "{}{}"], "a\nb\n");
    assert_eq!(ran.sorted(), ["--file=a.txt|aa", "--file=b.txt|bb"]);
    let ran = place.run(["-I", "%", "echo", "%", "{}"], "a\n");
    assert_eq!(ran.stdout(), "a {}\n");
    let ran = place.run(["--", "{}"], "true\nfalse\nno-such-program\n");
    assert_eq!(ran.code(), 1, "each record names its own program");
    assert!(ran.stderr().contains("2 failed"), "{}", ran.stderr());
}

#[test]
fn options_of_the_command_need_no_dashes_before_them() {
    let ran = Place::new().run(["-j", "1", "echo", "-n", "--json"], "a\n");
    assert_eq!(ran.stdout(), "--json a\n");
}

#[test]
fn records_between_nuls_hold_anything_else() {
    let ran = Place::new().run(["-0", "-j1", "--", "printf", "<%s>"], b"a\nb\0\0\xff\0last");
    assert_eq!(ran.0.stdout, b"<a\nb>\n<>\n<\xff>\n<last>\n");
}

#[test]
fn the_fields_of_json_lines_become_arguments() {
    let input = r#"{"name": "a \"b\"", "size": 12345678901234567890123, "tags": ["x", true]}
        {"name": "c", "size": null}
        not json
        {"name": "d"}"#;
    let ran = Place::new().run(["--json-lines", "--", "echo", "{.name}", "n={.size}", "{.tags.0}"], input);
    assert_eq!((ran.code(), ran.stdout()), (1, "a \"b\" n=12345678901234567890123 x\n".into()));
    for why in [
        "record 2 failed: has null for its field `size`",
        "record 3 failed: is not JSON: ",
        "record 4 failed: has no field `size`",
    ] {
        assert!(ran.stderr().contains(why), "{}", ran.stderr());
    }
}

#[test]
fn a_record_that_no_argument_can_hold_is_a_failure_of_its_own() {
    let place = Place::new();
    let ran = place.run(["--", "echo"], b"a\0b\ngood\n");
    assert_eq!((ran.code(), ran.stdout()), (1, "good\n".into()));
    assert!(ran.stderr().contains("record 1 failed: has a NUL byte (at byte 2 of an argument), which no argument can hold: use --stdin: a\\u{0}b\n"), "{}", ran.stderr());
    // 200 KiB in one argument are more than Linux takes (128 KiB).
    let ran = place.run(["--", "echo"], format!("{}\ngood\n", "x".repeat(200 << 10)));
    assert_eq!((ran.code(), ran.stdout()), (1, "good\n".into()));
    assert!(
        ran.stderr().contains("makes the argument list longer than the system allows"),
        "{}",
        ran.stderr()
    );
}

#[test]
fn a_record_that_is_too_long_is_a_failure_of_its_own() {
    let input = format!("a\n{}\nb\n", "x".repeat(1_000_000));
    let ran = Place::new().run(["--max-record", "10B", "--", "echo"], input);
    assert_eq!((ran.code(), ran.sorted()), (1, vec!["a".into(), "b".into()]));
    let why = "record 2 failed: is 1,000,000 bytes long, more than --max-record allows (10): xxxxxx";
    assert!(ran.stderr().contains(why), "{}", ran.stderr());
}

#[test]
fn a_command_may_read_the_record() {
    let place = Place::new();
    let long = "x".repeat(300_000);
    let ran = place.run(["--stdin", "--", "wc", "-c"], format!("{long}\n"));
    assert_eq!(ran.stdout(), "300001\n", "with its newline");
    let ran = place.run(["--stdin", "-0", "--", "od", "-An", "-c"], b"a\nb\0");
    assert_eq!(ran.stdout().split_whitespace().collect::<String>(), "a\\nb", "as it is");
    let ran = place.run(["--stdin", "--", "true"], format!("{long}\n"));
    assert_eq!(ran.code(), 0, "a command need not read it");
}

#[test]
fn a_command_that_reads_takes_nothing_from_the_records() {
    let ran = Place::new().run(["-j1", "--shell", "--", "cat; echo $1"], "a\nb\n");
    assert_eq!(ran.stdout(), "a\nb\n");
}

#[test]
fn a_record_is_never_script() {
    let place = Place::new();
    let ran = place.run(["--shell", "echo \"<$1>\" {} | tr a-z A-Z"], "$(touch bad); `touch bad` a\n");
    assert_eq!(ran.stdout(), "<$(TOUCH BAD); `TOUCH BAD` A> {}\n");
    assert!(!place.path("bad").exists());
    let ran = place.run(["--shell", "echo $2-$1", "one", "<{}>"], "a\n");
    assert_eq!(ran.stdout(), "<a>-one\n");
}

#[test]
fn a_command_knows_which_record_and_which_attempt_it_is() {
    let ran = Place::new().run(["--shell", "echo $TIDEGATE_JOB_ID.$TIDEGATE_ATTEMPT $1"], "a\n\nb\n");
    assert_eq!(ran.sorted(), ["1.1 a", "3.1 b"]);
}

#[test]
fn a_file_may_be_the_input_and_an_empty_one_is_no_failure() {
    let place = Place::new();
    let list = place.write("list", "a\nb\n");
    let ran = place.run(["-i", &list, "--", "echo"], "not this\n");
    assert_eq!((ran.code(), ran.sorted()), (0, vec!["a".into(), "b".into()]));
    for input in ["", "\n\n"] {
        let ran = place.run(["--", "echo"], input);
        assert_eq!((ran.code(), ran.stdout()), (0, String::new()));
    }
}

#[test]
fn a_dry_run_shows_what_would_be_run_and_runs_nothing() {
    let place = Place::new();
    let ran = place.run(
        ["--dry-run", "--max-record=20B", "--", "no-such-program", "{}", "it's"],
        format!("a b\n{}\nc\0\n", "x".repeat(21)),
    );
    assert_eq!((ran.code(), ran.stdout()), (1, "no-such-program 'a b' 'it'\\''s'\n".into()));
    assert!(
        ran.stderr().contains("record 2 is 21 bytes long")
            && ran.stderr().contains("record 3 has a NUL byte"),
        "{}",
        ran.stderr()
    );
    let ran = place.run(["--dry-run", "--stdin", "--shell", "wc -l"], "a\n");
    assert_eq!(ran.stdout(), "sh -c 'wc -l' sh <<< a\n");
}

#[test]
fn a_folder_whose_name_is_no_text_is_no_hindrance() {
    let place = Place::new();
    let odd = std::ffi::OsStr::from_bytes(b"odd-\xff");
    std::fs::write(place.path("list"), "a\n").expect("a file of our own");
    std::fs::rename(place.path("list"), place.path("").join(odd)).expect("it is ours");
    let ran = place.run([std::ffi::OsStr::new("-i"), odd, std::ffi::OsStr::new("echo"), odd], "");
    assert_eq!(ran.0.stdout, b"odd-\xff a\n");
}
