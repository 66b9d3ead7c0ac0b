//! What holds: the file, over it the environment, over that the flags.

use crate::scene::{check, command, run};
use crate::support::Place;

const FINE: &str = "[kinds.work]\nexec = [\"true\"]\n";

#[test]
fn a_configuration_that_makes_sense_is_said_to_and_nothing_is_touched() {
    let place = Place::new();
    let ran = check(
        &place,
        &format!("source = \"sqlite:jobs.sqlite\"\n{FINE}[kinds.\"mail.send\"]\nexec = [\"cat\"]\n"),
    );
    let file = place.path("jobs.sqlite");
    let says = format!(
        "tidegate.toml makes sense: sqlite:{}, 20 jobs at once, kinds: mail.send, work\n",
        file.display()
    );
    assert_eq!((ran.code(), ran.stdout(), ran.stderr()), (0, says, String::new()));
    assert!(!file.exists(), "it was only looked at");
}

#[test]
fn every_key_is_known_and_the_example_makes_sense() {
    let place = Place::new();
    let whole = include_str!("../../docs/tidegate.toml");
    let without_http = whole.split("# A kind that is a request").next().unwrap_or(whole);
    let example = if cfg!(feature = "http") { whole } else { without_http };
    // What is left out by default is shown behind a `#` that no blank follows.
    let complete: String = example
        .lines()
        .map(|line| {
            format!("{}\n", line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        })
        .collect();
    for (name, text) in [("as it is", example.to_owned()), ("with everything set", complete)] {
        // The example names places of a whole machine.
        let text = text
            .replace("ca_file = \"ca.pem\"", "")
            .replace("/var/lib/tidegate/", "")
            .replace("/usr/local/bin/resize", "cat")
            .replace("/run/secrets/token", "token")
            .replace("/srv/pictures", ".");
        place.write("token", "abc\n");
        place.write("tidegate.toml", text);
        let mut command = command(&place, &["--check"]);
        command.env("MAIL_AUTH", "Bearer abc");
        let ran = run(&place, command);
        assert_eq!(ran.code(), 0, "{name}: {}", ran.stderr());
    }
}

#[test]
fn the_documentation_has_every_key_of_the_example() {
    let documented = include_str!("../../docs/operations.md");
    let mut table = String::new();
    for line in include_str!("../../docs/tidegate.toml").lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = if name.starts_with("kinds.") { String::new() } else { format!("{name}.") };
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let forms = [format!("`{table}{key}`"), format!("`.{key}`")];
            assert!(forms.iter().any(|form| documented.contains(form)), "{table}{key}");
        }
    }
}

#[test]
fn the_environment_comes_before_the_file_and_a_flag_before_both() {
    let place = Place::new();
    place.write(
        "tidegate.toml",
        format!("source = \"sqlite:file\"\n[worker]\nmax_concurrent_jobs = 3\n{FINE}"),
    );
    let jobs = |variable: Option<&str>, flags: &[&str]| {
        let mut command = command(&place, &[&["--check"], flags].concat());
        if let Some(value) = variable {
            command
                .env("TIDEGATE_WORKER__MAX_CONCURRENT_JOBS", value)
                .env("TIDEGATE_SOURCE", "sqlite:variable");
        }
        let said = run(&place, command).stdout();
        let place = place.path("").to_str().expect("plain ASCII").to_owned();
        said.replace(&place, "")
            .replace("tidegate.toml makes sense: sqlite:", "")
            .replace(" jobs at once, kinds: work\n", "")
    };
    assert_eq!(jobs(None, &[]), "file, 3");
    assert_eq!(jobs(Some("4"), &[]), "variable, 4");
    assert_eq!(jobs(None, &["-j5", "--source", "sqlite:flag"]), "flag, 5");
    assert_eq!(jobs(Some("4"), &["-j5", "--source", "sqlite:flag"]), "flag, 5");
    assert_eq!(jobs(Some("0"), &["-j5"]), "variable, 5", "what is overridden need not make sense");
}

#[test]
fn a_variable_is_read_as_toml_or_else_as_text() {
    let place = Place::new();
    place.write("tidegate.toml", "[kinds.\"mail.send\"]\nexec = [\"no-such-program\"]\n");
    let mut command = command(&place, &["--check"]);
    for (name, value) in [
        ("TIDEGATE_WORKER__QUEUES", "[\"a\", \"b\"]"),
        ("TIDEGATE_WORKER__NAME", "5"),
        ("TIDEGATE_WORKER__JOB_TIMEOUT", "none"),
        ("TIDEGATE_WORKER__FETCH_WAIT", "1.5s"),
        ("TIDEGATE_WORKER__CANCEL_GRACE", "\"6s\""),
        ("TIDEGATE_WORKER__RETRY__MAX_ATTEMPTS", "3"),
        ("TIDEGATE_LOG__LEVEL", "debug"),
        ("TIDEGATE_KINDS__MAIL_SEND__EXEC", "[\"true\"]"),
        ("TIDEGATE_KINDS__MAIL_SEND__ENV__TOKEN", "1234"),
        ("TIDEGATE_KINDS__MAIL_SEND__GRACE", "5.5s"),
        // What is not for it.
        ("TIDEGATE_JOB_ID", "7"),
        ("TIDEGATE_KIND", "work"),
        ("TIDEGATE_QUEUE", "a"),
        ("TIDEGATE_ATTEMPT", "1"),
        ("TIDEGATE_DEADLINE", "0"),
        ("TIDEGATE_CONFIG", "other.toml"),
        ("TIDEGATE_SOMETHING_ELSE", "x"),
    ] {
        command.env(name, value);
    }
    let ran = run(&place, command);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
}

#[test]
fn a_relative_path_begins_where_it_was_said() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("etc/tools")).expect("a folder of our own");
    std::fs::create_dir_all(place.path("here")).expect("a folder of our own");
    place.script("etc/tools/work", "#!/bin/sh\n");
    place.write("etc/token", "abc");
    let config = "source = \"sqlite:jobs\"\n[kinds.a]\nexec = [\"tools/work\"]\nenv = { A = { file = \"token\" } }\n\
                  [kinds.b]\nexec = [\"./work\"]\nfolder = \"tools\"\n";
    place.write("etc/tidegate.toml", config);
    let says = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(["run", "--check", "--config", "../etc/tidegate.toml"])
            .args(args)
            .current_dir(place.path("here"));
        let ran = run(&place, place.marked(command));
        assert_eq!(ran.code(), 0, "{}", ran.stderr());
        ran.stdout()
    };
    let in_folder = |folder: &str| format!("sqlite:{}", place.path(folder).join("jobs").display());
    let etc = says(&[]).replace("here/../etc", "etc");
    assert!(etc.contains(&in_folder("etc")), "{etc}");
    let here = says(&["--source", "sqlite:jobs"]);
    assert!(here.contains(&in_folder("here")), "{here}");
}

#[test]
fn the_other_commands_find_the_queue_that_the_configuration_names() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("etc")).expect("a folder of our own");
    // What is wrong with the rest of it is no matter of theirs.
    place.write("etc/tidegate.toml", "source = \"jobs.db\"\n[kinds.work]\nexec = [\"no-such-program\"]\n");
    let tidegate = |args: &[&str], variable: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(args)
            .current_dir(place.path(""))
            .env_remove("TIDEGATE_SOURCE")
            .env_remove("TIDEGATE_CONFIG");
        command.envs(variable.map(|file| ("TIDEGATE_CONFIG", file)));
        run(&place, place.marked(command))
    };
    let put = tidegate(&["enqueue", "--config", "etc/tidegate.toml", "work", "{}"], None);
    assert_eq!(put.code(), 0, "{}", put.stderr());
    assert!(place.path("etc/jobs.db").exists());
    let listed = tidegate(&["jobs"], Some("etc/tidegate.toml"));
    assert!(listed.code() == 0 && listed.stdout().contains("work"), "{}{}", listed.stdout(), listed.stderr());
    let other = tidegate(&["stats", "--source", "sqlite:other"], Some("etc/tidegate.toml"));
    assert!(other.code() == 69 && other.stderr().contains("other"), "{}", other.stderr());
    let theirs = rusqlite::Connection::open(place.path("etc/theirs.db")).expect("a new file");
    theirs.execute_batch("CREATE TABLE theirs (x)").expect("a table");
    for (adopt, code) in [("false", 69), ("true", 0)] {
        let config = format!("source = \"theirs.db\"\n[sqlite]\nadopt = {adopt}\nmax_dead = \"no number\"\n");
        place.write("etc/tidegate.toml", config);
        for args in [&["enqueue", "work"][..], &["stats"]] {
            let ran = tidegate(args, Some("etc/tidegate.toml"));
            assert_eq!(ran.code(), code, "{args:?}, adopt = {adopt}: {}", ran.stderr());
        }
    }
    place.write("etc/tidegate.toml", "source = 5\n");
    let refused = tidegate(&["stats"], Some("etc/tidegate.toml"));
    assert_eq!(refused.code(), 78);
    assert!(
        refused.stderr().contains("etc/tidegate.toml:1:10: source must be a URL"),
        "{}",
        refused.stderr()
    );
}
