//! What makes no sense is refused: with its place, what is wrong, and what to write.

use crate::scene::{check, command, run};
use crate::support::Place;

/// A value that nobody may see.
const SECRET: &str = "hunter2";

/// A configuration that makes sense, to which a mistake is added.
const FINE: &str = "[kinds.work]\nexec = [\"true\"]\n";

#[test]
fn a_mistake_is_refused_with_its_place_and_what_to_write() {
    let place = Place::new();
    for (config, expected) in [
        // Keys.
        (
            "sorce = \"sqlite:a\"\n",
            "1:1: unknown key `sorce`: did you mean `source`?\n    1 | sorce = …\n      | ^^^^^\n",
        ),
        ("[wroker]\n", "1:2: unknown key `wroker`: did you mean `worker`?\n"),
        (
            "max_concurrent_jobs = 5\n[worker]\n",
            "1:1: unknown key `max_concurrent_jobs`: it stands in [worker]\n",
        ),
        (
            "[worker]\nlevel = \"debug\"\n[log]\n",
            "2:1: unknown key `level` in [worker]: it stands in [log]\n",
        ),
        (
            "[worker]\nmax_concurent_jobs = 5\n",
            "2:1: unknown key `max_concurent_jobs` in [worker]: did you mean `max_concurrent_jobs`?\n",
        ),
        (
            "[worker]\nTimeout = \"1s\"\n",
            "2:1: unknown key `Timeout` in [worker]: did you mean `job_timeout`?\n",
        ),
        ("[log]\ncolour = 1\n", "2:1: unknown key `colour` in [log]: there may be level or format\n"),
        (
            "[worker.retry]\ntries = 1\n",
            "2:1: unknown key `tries` in [worker.retry]: there may be formula, max_attempts,",
        ),
        ("\u{feff}[log]\r\n\tcolour = 1\r\n", "2:2: unknown key `colour`"),
        (
            "[kinds.a]\nexec = [\"true\"]\nenviroment = {}\n",
            "3:1: unknown key `enviroment` in [kinds.a]: did you mean `env`?\n",
        ),
        (
            "[kinds.\"a b\"]\nexec = [\"true\"]\ngarce = \"1s\"\n",
            "3:1: unknown key `garce` in [kinds.\"a b\"]: did you mean `grace`?\n",
        ),
        // What is no TOML.
        ("[worker\n", "1:8: unclosed table"),
        ("a = \"b\n", "1:7: invalid basic string"),
        (
            "[log]\nlevel = \"info\"\nlevel = \"warn\"\n",
            "3:1: duplicate key\n    3 | level = \"****\"\n      | ^^^^^\n",
        ),
        // Values of another sort.
        ("worker = 5\n", "1:10: worker must be a table, and is a whole number\n"),
        ("[redis]\n", "1:1: [redis] has no meaning when the source is no Redis server: leave it out\n"),
        ("[redis]\nlabels = \"eu\"\n", "redis.labels must be a list of texts"),
        ("[redis]\nrun_on = \"25h\"\n", "2:10: redis.run_on must be at most 24 hours\n"),
        (
            "[redis]\ntimes_in_seconds = \"yes\"\n",
            "2:20: redis.times_in_seconds must be true or false, and is text (write it without quotes)\n",
        ),
        (
            "[worker]\nmax_concurrent_jobs = \"5\"\n",
            "2:23: worker.max_concurrent_jobs must be a whole number from 1 to 1048576, and is text (write it without quotes)\n    2 | max_concurrent_jobs = \"5\"\n",
        ),
        (
            "[worker]\nname = 5\n",
            "2:8: worker.name must be a name, and is a whole number (write it in quotes)\n",
        ),
        ("[worker]\nname = \"\"\n", "2:8: worker.name is empty: it must be a name\n"),
        (
            "[worker]\njob_timeout = 30\n",
            "2:15: worker.job_timeout must be a time such as \"30s\", or \"none\", and is a whole number (write it in quotes, with its unit)\n",
        ),
        (
            "[worker]\nqueues = \"a\"\n",
            "2:10: worker.queues must be a list of names, or a table of names with weights from 1\n",
        ),
        ("[log]\nlevel = 2026-01-01\n", "2:9: log.level must be error, warn, info, debug or trace\n"),
        ("[[kinds]]\n", "1:1: kinds must be a table, and is a list\n"),
        // Values out of their range.
        (
            "[worker]\nmax_concurrent_jobs = 0\n",
            "2:23: worker.max_concurrent_jobs is 0: it must be a whole number from 1 to 1048576\n",
        ),
        ("[worker]\nprefetch = -1\n", "2:12: worker.prefetch is -1: it must be a whole number from 0 to"),
        ("[worker]\nprefetch = 99999999999999999999999999999999999999999\n", "2:12: "),
        (
            "[worker]\nshutdown_deadline = \"5 minutes\"\n",
            "2:21: worker.shutdown_deadline makes no sense: write a number and ms, s, m, h or d, such as 500ms, 1.5s or 2m\n    2 | shutdown_deadline = \"5 minutes\"\n      |                     ^^^^^^^^^^^\n",
        ),
        (
            "[worker]\njob_timeout = \"0s\"\n",
            "2:15: worker.job_timeout makes no sense: it must be at least 1ms\n",
        ),
        (
            "[worker]\ncancel_grace = \"400d\"\n",
            "2:16: worker.cancel_grace makes no sense: it must be at most 366d\n",
        ),
        (
            "[worker]\nmax_payload = \"1M\"\n",
            "2:15: worker.max_payload makes no sense: write a number and B, KiB,",
        ),
        ("[worker]\nqueues = []\n", "2:10: worker.queues makes no sense: the list of queues is empty"),
        (
            "[worker]\nqueues = [\"a\", \"a\"]\n",
            "2:10: worker.queues makes no sense: queue \"a\" is named twice\n",
        ),
        ("[worker]\nqueues = { a = 1, b = 0 }\n", "2:23: worker.queues must be a list of names"),
        (
            "[worker]\nunknown_kind = \"rejct\"\n",
            "2:16: worker.unknown_kind must be retry, reject or release; did you mean `reject`?\n",
        ),
        ("[worker.retry]\nfactor = 0.5\n", "2:10: worker.retry.factor is 0.5: it must be from 1 to 100\n"),
        ("[worker.retry]\nfactor = nan\n", "2:10: worker.retry.factor is NaN: it must be from 1 to 100\n"),
        ("[worker.retry]\njitter = 2\n", "2:10: worker.retry.jitter is 2: it must be from 0 to 1\n"),
        (
            "[worker.retry]\ninitial = \"2h\"\n",
            "1:1: worker.retry: retry initial wait 7200s is longer than its cap 3600s\n",
        ),
        (
            "[worker.retry]\nformula = \"sidkiq\"\n",
            "2:11: worker.retry.formula must be exponential or sidekiq; did you mean `sidekiq`?\n",
        ),
        (
            "[worker.retry]\nformula = \"sidekiq\"\njitter = 0.5\n",
            "3:10: worker.retry.jitter has no meaning with the formula sidekiq: leave it out, or write formula = \"exponential\"\n",
        ),
        (
            "[worker.retry]\nformula = \"sidekiq\"\n[kinds.a]\nexec = [\"true\"]\nretry = { formula = \"sidekiq\", initial = \"0s\" }\n",
            "5:42: kinds.a.retry.initial has no meaning with the formula sidekiq",
        ),
        (
            "[worker.reconnect]\ncap = \"1ms\"\n",
            "1:1: worker.reconnect: initial (100ms) is longer than cap (1ms)\n",
        ),
        (
            "[log]\nlevel = \"inof\"\n",
            "2:9: log.level must be error, warn, info, debug or trace; did you mean `info`?\n",
        ),
        (
            "[log]\nformat = \"JSON\"\n",
            "2:10: log.format must be auto, human or json; did you mean `json`?\n",
        ),
        (
            "[sqlite]\ndurability = \"ful\"\n",
            "2:14: sqlite.durability must be full or normal; did you mean `full`?\n",
        ),
        (
            "[sqlite]\nadopt = \"yes\"\n",
            "2:9: sqlite.adopt must be true or false, and is text (write it without quotes)\n",
        ),
        ("[sqlite]\nlease_ttl = \"366d\"\n", "2:13: sqlite.lease_ttl must be at most 365 days\n"),
        ("[sqlite]\ncrash_limit = 0\n", "2:15: sqlite.crash_limit is 0"),
        // The source.
        ("source = 5\n", "1:10: source must be a URL such as \"sqlite:/var/lib/tidegate/jobs.sqlite\"\n"),
        ("source = \"sqlite:\"\n", "1:10: source names no file: write sqlite:PATH\n    1 | source = …\n"),
        ("source = \"sqlite:.\"\n", "1:10: source names a folder: name a file in it\n"),
        ("source = \"sqlite:no/jobs\"\n", "1:10: source names a file in a folder that is of no use: "),
        ("source = \"memory:\"\n", "1:10: source is memory: nobody but this process could put jobs there\n"),
        (
            "source = \"carrier-pigeon:x\"\n",
            "1:10: source makes no sense: \"carrier-pigeon\" is no backend that this build knows",
        ),
    ] {
        refuses(&place, &format!("{config}{FINE}"), expected);
    }
}

#[test]
fn a_mistake_in_a_kind_is_refused_with_its_place_and_what_to_write() {
    let place = Place::new();
    place.write("plain", "echo\n");
    for (config, expected) in [
        ("", ": there is no kind: write [kinds.NAME], and in it exec = [\"PROGRAM\"]\n"),
        ("[kinds]\n", "1:1: there is no kind: "),
        ("[kinds.a]\n", "1:8: kinds.a needs exec = [\"PROGRAM\"] or http = \"URL\"\n"),
        (
            "[kinds.a]\nexce = [\"true\"]\n",
            "1:8: kinds.a needs exec = [\"PROGRAM\"] or http = \"URL\"; did you mean `exec` by `exce`?\n",
        ),
        (
            "[kinds.mail.send]\nexec = [\"true\"]\n",
            "1:8: kinds.mail needs exec = [\"PROGRAM\"] or http = \"URL\"; a kind with a dot in its name is written [kinds.\"mail.send\"]\n",
        ),
        ("[kinds]\na = [\"true\"]\n", "2:5: kinds.a must be a table, and is a list\n"),
        ("[kinds.\"\"]\nexec = [\"true\"]\n", "1:8: the name of a kind is empty\n"),
        (
            "[kinds.a]\nexec = [\"true\"]\nhttp = \"http://localhost/\"\n",
            "1:8: kinds.a has both exec and http: which of them is to run?\n",
        ),
        (
            "[kinds.a]\nexec = \"resize --fast\"\n",
            "2:8: kinds.a.exec must be a list of words, the first of which is the program: [\"resize\", \"--fast\"], and is text (no shell reads it; for one write [\"sh\", \"-c\", \"…\"])\n",
        ),
        (
            "[kinds.a]\nexec = []\n",
            "2:8: kinds.a.exec must be a list of words, the first of which is the program: [\"resize\", \"--fast\"]; it names no program\n",
        ),
        (
            "[kinds.a]\nexec = [\"sleep\", 5]\n",
            "2:18: kinds.a.exec must be a list of words, the first of which is the program: [\"resize\", \"--fast\"]; one of these is a whole number\n",
        ),
        (
            "[kinds.a]\nexec = [\"no-such-program\"]\n",
            "2:8: kinds.a.exec: no-such-program is not found in any folder of PATH\n",
        ),
        ("[kinds.a]\nexec = [\"./no-such\"]\n", "2:8: kinds.a.exec: "),
        ("[kinds.a]\nexec = [\"./plain\"]\n", "plain is not an executable file\n"),
        (
            "[kinds.a]\nexec = [\"true\"]\ngrace = \"10s\"\n",
            "3:9: kinds.a.grace (10s) must be less than worker.cancel_grace (5s), when the job is cut off\n",
        ),
        ("[kinds.a]\nexec = [\"true\"]\nmax_concurrent_jobs = 0\n", "3:23: kinds.a.max_concurrent_jobs is 0"),
        (
            "[kinds.a]\nexec = [\"true\"]\nretry = { max_attempts = 0 }\n",
            "3:26: kinds.a.retry.max_attempts is 0",
        ),
        (
            "[kinds.a]\nexec = [\"true\"]\nretry = 5\n",
            "3:9: kinds.a.retry must be a table, and is a whole number\n",
        ),
        (
            "[kinds.a]\nexec = [\"true\"]\nenv = { A = 5 }\n",
            "3:9: kinds.a.env.A: it must be a text, { env = \"NAME\" } or { file = \"PATH\" }, and is a whole number\n",
        ),
        (
            "[kinds.a]\nexec = [\"true\"]\nenv = { A = { env = \"NO_SUCH\" } }\n",
            "3:9: kinds.a.env.A: the environment variable NO_SUCH is not set\n",
        ),
        (
            "[kinds.a]\nexec = [\"true\"]\nenv = { A = { file = \"no-such\" } }\n",
            "no-such can't be read: No such file",
        ),
        (
            "[kinds.a]\nexec = [\"true\"]\nenv = { \"A=B\" = \"c\" }\n",
            "3:9: kinds.a.env.A=B: is no name for this\n",
        ),
    ] {
        refuses(&place, config, expected);
    }
}

#[test]
fn a_kind_that_this_build_can_not_run_is_refused_with_what_to_do() {
    if cfg!(feature = "http") {
        return;
    }
    let place = Place::new();
    let expected = "2:8: kinds.a.http: this build has no http: build it with --features http\n";
    let config = "[kinds.a]\nhttp = \"http://localhost/\"\nheaders = { A = \"b\" }\ntimeout = \"5s\"\n";
    refuses(&place, config, expected);
    assert!(!check(&place, config).stderr().contains("unknown key"));
}

fn refuses(place: &Place, config: &str, expected: &str) {
    let ran = check(place, config);
    assert_eq!((ran.code(), ran.stdout()), (78, String::new()), "{config}{}", ran.stderr());
    assert!(ran.stderr().starts_with("tidegate: the configuration is refused\n"), "{}", ran.stderr());
    // An expectation that does not begin with a place is one of the text behind it.
    let said = ran.stderr();
    let found = match expected.starts_with(|first: char| first.is_ascii_digit() || first == ':') {
        true => said.contains(&format!("tidegate.toml:{}", expected.trim_start_matches(':'))),
        false => said.contains(expected),
    };
    assert!(found, "{config}\nexpected: {expected}\nsaid: {said}");
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
    let place = Place::new();
    let ran = check(&place, "[log]\nlevel = 5\n[worker]\nprefetch = -1\n[kinds.a]\nexec = 5\n");
    let places: Vec<String> =
        ran.stderr().lines().filter(|line| line.starts_with("tidegate.toml")).map(str::to_owned).collect();
    let expected = [
        "tidegate.toml:2:9: log.level ",
        "tidegate.toml:4:12: worker.prefetch ",
        "tidegate.toml:6:8: kinds.a.exec ",
    ];
    assert!(
        places.len() == 3 && places.iter().zip(expected).all(|(line, start)| line.starts_with(start)),
        "{places:#?}"
    );
    let many: String = (0..1000).map(|number| format!("key{number} = 1\n")).collect();
    let ran = check(&place, &many);
    assert!(
        ran.stderr().lines().count() < 100 && ran.stderr().ends_with("\nand 981 more\n"),
        "{}",
        ran.stderr()
    );
}

#[test]
fn a_file_that_is_no_configuration_is_refused() {
    let place = Place::new();
    let refused = |expected: &str| {
        let ran = run(&place, command(&place, &["--check"]));
        assert_eq!(ran.code(), 78);
        assert!(ran.stderr().contains(expected), "{}", ran.stderr());
    };
    refused("tidegate.toml: can't be read: No such file");
    place.write("tidegate.toml", b"[log]\nlevel = \"\xff\"\n");
    refused("tidegate.toml: is not UTF-8 in line 2\n");
    place.write("tidegate.toml", "#".repeat((1 << 20) + 1));
    refused("tidegate.toml: has more than 1024 KiB: this is no configuration\n");
    place.write("tidegate.toml", format!("a = {}", "[".repeat(100_000)));
    refused("tidegate.toml:1:");
}

#[test]
fn no_value_that_may_be_a_secret_is_repeated_whatever_is_wrong_with_it() {
    let place = Place::new();
    place.write("secret", format!("{SECRET}\n"));
    for config in [
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = hunter2 }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = \"hunter2 }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = \"hunter2\", A = \"hunter2\" }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = \"\"\"\nhunter2\nhunter2\\q\n\"\"\" }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = \"hunter2\"\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = [\"hunter2\"]\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = [\"hunter2\"] }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = { file = \"secret\", env = \"hunter2\" } }\n",
        "[kinds.a]\nexec = [\"true\"]\nenv = { A = { text = \"hunter2\" } }\n",
        "[kinds.a]\nexec = [\"true\"]\nenvironment = { A = \"hunter2\" } # was hunter2\n",
        "[kinds.a]\nexec = [\"true\", \"hunter2\", 5]\n",
        "[kinds.a]\nexec = \"curl -H hunter2\"\n",
        "[kinds.a]\nexec = [\"true\"]\nenvironment = { A = \"ä\thunter2\" } # was hunter2\n",
        "source = \"redis://user:hunter2@localhost:port\"\n",
        "sauce = \"redis://user:hunter2@localhost\"\n",
        "source = \"hunter2\"\n",
        "source = [\"hunter2\"]\n",
    ] {
        let ran = check(&place, config);
        assert_eq!(ran.code(), 78, "{config}");
        assert!(!ran.stderr().contains(SECRET), "{config}{}", ran.stderr());
        assert!(ran.stderr().contains("\n      | "), "a line is shown: {}", ran.stderr());
    }
    let mut command = command(&place, &["--check", "--source", "hunter2:x"]);
    command.env("TIDEGATE_KINDS__A__ENV__B", "[\"hunter2\"]").env("TIDEGATE_KINDS__A__ENW", SECRET);
    place.write("tidegate.toml", "[kinds.a]\nexec = [\"true\"]\n");
    let ran = run(&place, command);
    let said = ran.stderr().replace("\"hunter2\" is no backend", "");
    assert_eq!(ran.code(), 78, "{said}");
    assert!(!said.contains(SECRET) && said.lines().count() == 4, "{said}");
}

#[test]
fn a_variable_that_makes_no_sense_is_refused_by_its_name() {
    let place = Place::new();
    place.write("tidegate.toml", "[kinds.resize]\nexec = [\"true\"]\n[kinds.\"a.b\"]\nexec = [\"true\"]\n[kinds.a_b]\nexec = [\"true\"]\n");
    for (name, value, expected) in [
        (
            "TIDEGATE_WORKER__MAX_CONCURENT_JOBS",
            "5",
            "unknown key `max_concurent_jobs` in [worker]: did you mean TIDEGATE_WORKER__MAX_CONCURRENT_JOBS?",
        ),
        (
            "TIDEGATE_WORKER__MAX_CONCURRENT_JOBS",
            "0",
            "worker.max_concurrent_jobs is 0: it must be a whole number from 1 to 1048576",
        ),
        (
            "TIDEGATE_WORKER__MAX_CONCURRENT_JOBS",
            "many",
            "worker.max_concurrent_jobs must be a whole number from 1 to 1048576, and is text",
        ),
        ("TIDEGATE_WORKER__RETRY__FACTOR", "0", "worker.retry.factor is 0: it must be from 1 to 100"),
        ("TIDEGATE_WORKER__JOB_TIMEOUT", "soon", "worker.job_timeout makes no sense: write a number and ms,"),
        ("TIDEGATE_LOG__LEVEL", "", "log.level must be error, warn, info, debug or trace"),
        (
            "TIDEGATE_LOGG__LEVEL",
            "info",
            "names no table: there are sqlite, redis, worker, log or kinds; did you mean TIDEGATE_LOG__…?",
        ),
        (
            "TIDEGATE_LOG____LEVEL",
            "info",
            "two underscores stand between a table and what is in it, and nowhere else",
        ),
        ("TIDEGATE_WORKER", "5", "names a whole table: name a key in it, as in TIDEGATE_WORKER__KEY"),
        ("TIDEGATE_SORCE", "sqlite:a", "is not known; did you mean TIDEGATE_SOURCE?"),
        ("TIDEGATE_SOURCE__FILE", "a", "names no table: there are sqlite, redis, worker, log or kinds"),
        (
            "TIDEGATE_KINDS__MAIL__TIMEOUT",
            "5s",
            "names no kind of the file (it has resize, a.b or a_b), and can't add one",
        ),
        ("TIDEGATE_KINDS__A_B__TIMEOUT", "5s", "may mean `a.b` or `a_b`: change it in the file"),
        (
            "TIDEGATE_KINDS__RESIZE__TIMEOUT",
            "0s",
            "kinds.resize.timeout makes no sense: it must be at least 1ms",
        ),
        ("TIDEGATE_KINDS__RESIZE__EXEC__PROGRAM", "a", "has no place for `program`: above it stands a list"),
    ] {
        let mut command = command(&place, &["--check"]);
        let ran = run(&place, {
            command.env(name, value);
            command
        });
        assert_eq!(ran.code(), 78, "{name}={value}: {}", ran.stderr());
        assert!(ran.stderr().contains(&format!("\n{name}: {expected}")), "{name}={value}: {}", ran.stderr());
    }
    let mut command = command(&place, &["--check"]);
    command
        .env("TIDEGATE_LOG__LEVEL", <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff"));
    let ran = run(&place, command);
    assert!(ran.stderr().contains("\nTIDEGATE_LOG__LEVEL: is not UTF-8\n"), "{}", ran.stderr());
}

#[test]
fn more_jobs_than_there_may_be_open_files_are_refused_where_they_are_asked_for() {
    let place = Place::new();
    place.write("tidegate.toml", format!("[worker]\nmax_concurrent_jobs = 100\n{FINE}"));
    let mut limited = std::process::Command::new("sh");
    let script = "ulimit -n 256; exec \"$0\" run --check --config tidegate.toml";
    limited.args(["-c", script, env!("CARGO_BIN_EXE_tidegate")]).current_dir(place.path(""));
    let ran = run(&place, place.marked(limited));
    assert_eq!(ran.code(), 78);
    let why = "tidegate.toml:2:23: worker.max_concurrent_jobs (100) needs 764 open files, and this user may have 256: at most 27 jobs fit";
    assert!(ran.stderr().contains(why), "{}", ran.stderr());
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_as_such() {
    let place = Place::new();
    place.write("tidegate.toml", FINE);
    for (args, named) in [
        (&["-j", "0"][..], "1..=1048576"),
        (&["--log-level", "loud"], "error, warn, info, debug, trace"),
        (&["--log-format", "xml"], "auto, human, json"),
        (&["--sorce", "a"], "--source"),
    ] {
        let ran = run(&place, command(&place, args));
        assert_eq!(ran.code(), 2, "{args:?}: {}", ran.stderr());
        assert!(ran.stderr().contains(named), "{args:?}: {}", ran.stderr());
    }
    let mut without = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    without.arg("run").env_remove("TIDEGATE_CONFIG");
    let ran = run(&place, place.marked(without));
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr().contains("--config <FILE>"), "{}", ran.stderr());
}
