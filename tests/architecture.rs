//! The shape of the house, held by a test: which room may use which, and the habits that a machine can check.
//!
//! It reads the source as text, so it needs no compiler plugin, and it passes on a tree that is not finished yet.
//! Each rule is also shown a small tree that breaks it: a rule that can't fail holds nothing.

#[path = "architecture/lexer.rs"]
mod lexer;
#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/tree.rs"]
mod tree;

use std::path::Path;
use std::process::Command;

use rules::House;
use tree::Tree;

/// Words and rules: plain data, traits and pure functions. They may use each other as long as there is no circle.
const WORDS: &[&str] = &[
    "announce",
    "attempt",
    "completions",
    "context",
    "enqueue",
    "election",
    "error",
    "handler",
    "inspect",
    "job",
    "lease",
    "limit",
    "outcome",
    "pull",
    "registry",
    "reschedule",
    "retry",
    "schedule",
    "scope",
    "shutdown",
    "source",
    "telemetry",
];

/// Each room, and what it may use besides itself and `sync`, which stands in for std's locks under loom.
/// `WORDS` and `ALL` are short for those lists.
///
/// ```text
/// cli -> service -> worker -> words -> job -> error
///  \-> backend ---------------^
/// ```
///
/// Worker and backend meet only at the traits among the words: that is the one wall of the house.
const HOUSE: &[(&str, &[&str])] = &[
    // The crate's roots, and the bodies of the fuzz targets, which look into every corner.
    ("lib", &["ALL"]),
    ("main", &["ALL"]),
    ("fuzzing", &["ALL"]),
    // The edges.
    ("cli", &["service", "worker", "backend", "WORDS"]),
    (
        "backend",
        &[
            "source",
            "announce",
            "enqueue",
            "lease",
            "election",
            "inspect",
            "reschedule",
            "job",
            "error",
            "telemetry",
        ],
    ),
    // The engine, and what runs beside it.
    ("service", &["worker", "WORDS"]),
    ("worker", &["WORDS"]),
    // Words and rules.
    ("announce", &["WORDS"]),
    ("attempt", &["WORDS"]),
    ("completions", &["WORDS"]),
    ("context", &["WORDS"]),
    ("enqueue", &["WORDS"]),
    ("election", &["WORDS"]),
    ("handler", &["WORDS"]),
    ("inspect", &["WORDS"]),
    ("lease", &["WORDS"]),
    ("limit", &["WORDS"]),
    ("outcome", &["WORDS"]),
    ("pull", &["WORDS"]),
    ("registry", &["WORDS"]),
    ("reschedule", &["WORDS"]),
    ("retry", &["WORDS"]),
    ("schedule", &["WORDS"]),
    ("scope", &["WORDS"]),
    ("shutdown", &["WORDS"]),
    ("source", &["WORDS"]),
    ("telemetry", &["WORDS"]),
    // The two that everything stands on.
    ("job", &["error"]),
    ("error", &[]),
    ("sync", &[]),
];

/// Nothing may use these, so no circle goes through them.
const TOPS: &[&str] = &["lib", "main", "fuzzing"];

/// The rooms that are told the time and never ask a clock.
const TIMELESS: &[&str] = &[
    "announce",
    "enqueue",
    "election",
    "error",
    "inspect",
    "job",
    "lease",
    "limit",
    "outcome",
    "reschedule",
    "retry",
    "schedule",
    "source",
];

#[test]
fn rooms_use_only_what_the_table_allows() {
    holds(rules::direction(&here(), &house()));
}

#[test]
fn no_rooms_use_each_other_in_a_circle() {
    holds(rules::cycles(&here(), &house(), TOPS));
}

#[test]
fn features_are_asked_for_only_at_the_doors() {
    holds(rules::feature_gates(&here()));
}

#[test]
fn metrics_are_named_only_in_telemetry() {
    holds(rules::raw_metrics(&here()));
}

#[test]
fn the_rules_are_told_the_time() {
    holds(rules::clocks(&here(), TIMELESS));
}

#[test]
fn files_and_functions_are_short() {
    holds(rules::sizes(&here()));
}

#[test]
fn an_ignored_test_says_why() {
    holds(rules::ignored_tests(&here()));
}

#[test]
fn nothing_unfinished_is_left() {
    holds(rules::leftovers(&here()));
}

#[test]
fn every_room_says_first_what_it_is() {
    holds(rules::opening_docs(&here()));
}

#[test]
fn nothing_names_a_place_on_one_machine() {
    let Some(texts) = texts_in_git() else {
        eprintln!("skipped: this is no git checkout, or git is not installed");
        return;
    };
    holds(rules::machine_paths(texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn here() -> Tree {
    Tree::read(root())
}

/// The table with its short names written out.
fn house() -> Vec<(&'static str, Vec<&'static str>)> {
    let written_out = |name: &'static str| match name {
        "ALL" => HOUSE.iter().map(|(room, _)| *room).collect(),
        "WORDS" => WORDS.to_vec(),
        room => vec![room],
    };
    let row =
        |allowed: &[&'static str]| allowed.iter().copied().flat_map(written_out).chain(["sync"]).collect();
    HOUSE.iter().map(|(room, allowed)| (*room, row(allowed))).collect()
}

fn holds(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Every text file that is committed, or would be by `git add --all`.
fn texts_in_git() -> Option<Vec<(String, String)>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(list).current_dir(root()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = |name: &str| Some((name.to_string(), std::fs::read_to_string(root().join(name)).ok()?));
    Some(names.split('\0').filter_map(text).collect())
}

/// What a rule says about a tree of these files; each fake breaks one rule, and the near misses beside it break none.
fn says(rule: impl Fn(&Tree) -> Vec<String>, files: &[(&str, &str)]) -> Vec<String> {
    rule(&Tree::of(files.iter().copied()))
}

fn direction(files: &[(&str, &str)]) -> Vec<String> {
    says(|tree| rules::direction(tree, house().as_slice() as House<'_>), files)
}

fn cycles(files: &[(&str, &str)]) -> Vec<String> {
    says(|tree| rules::cycles(tree, &house(), TOPS), files)
}

#[test]
fn every_word_has_a_row_of_its_own() {
    for word in WORDS.iter().chain(TIMELESS).chain(TOPS) {
        assert!(HOUSE.iter().any(|(room, _)| room == word), "`{word}` has no row in the table");
    }
    for (room, allowed) in house() {
        for name in allowed {
            assert!(
                HOUSE.iter().any(|(room, _)| *room == name),
                "`{room}` may use `{name}`, which has no row"
            );
        }
    }
}

#[test]
fn a_use_against_the_direction_is_found_however_it_is_written() {
    for (path, source) in [
        ("src/worker/run.rs", "use crate::backend::memory::Memory;"),
        ("src/worker/run.rs", "use crate::{job::Job, service::{self, Service}};"),
        ("src/worker/run.rs", "fn f() { let m = crate::backend::open(url); }"),
        ("src/worker/run.rs", "use super::super::backend;"),
        ("src/worker/mod.rs", "use super::{job::Job, backend::Memory as M};"),
        ("src/worker/run.rs", "mod inner { use super::super::super::cli::Args; }"),
        ("src/backend/redis/mod.rs", "use crate::worker::Worker;"),
        ("src/backend/mod.rs", "use crate::retry::RetryPolicy;"),
        ("src/service/mod.rs", "use crate::backend::open;"),
        ("src/retry.rs", "use crate::worker::Worker;"),
        ("src/retry.rs", "#[cfg(test)] mod tests {} use crate::cli::Args;"),
        ("src/job.rs", "use crate::source::Tag;"),
        ("src/error.rs", "use crate::job::Job;"),
        ("src/telemetry.rs", "macro_rules! m { () => { $crate::service::x() } }"),
        ("src/job.rs", "use crate::fuzzing::records;"),
    ] {
        assert_eq!(direction(&[(path, source)]).len(), 1, "{path}: {source}");
    }
}

#[test]
fn a_use_with_the_direction_is_left_alone_and_so_are_tests_comments_and_strings() {
    for (path, source) in [
        ("src/cli/run.rs", "use crate::{backend, service::Service, worker::{Worker, run}};"),
        ("src/service/scheduler.rs", "use crate::{schedule::Cron, enqueue::Enqueue, sync::Arc};"),
        ("src/worker/run.rs", "use super::slots::Slots; use super::super::job; use crate::worker::Report;"),
        ("src/backend/redis/mod.rs", "use super::open; use crate::lease::Lease;"),
        ("src/worker/run.rs", "mod inner { use super::super::backend; }"),
        ("src/handler.rs", "use crate::{scope::Scope, source::Delivery, retry, telemetry};"),
        ("src/retry.rs", "#[cfg(test)]\nmod tests { use crate::backend::memory::Memory; }"),
        (
            "src/retry.rs",
            "//! See [`crate::worker::Worker`].\n/* use crate::cli; */ const A: &str = \"crate::cli::x\";",
        ),
        ("src/fuzzing.rs", "use crate::backend::redis::codec; use crate::worker;"),
        ("src/lib.rs", "pub mod worker; pub use crate::worker::Worker; pub use backend::open;"),
        ("src/worker/run.rs", "pub(in crate::worker) fn f() { crate::ensure!(true); }"),
        ("tests/worker.rs", "use crate::backend::x;"),
    ] {
        assert_eq!(direction(&[(path, source)]), [""; 0], "{path}: {source}");
    }
}

#[test]
fn a_way_around_by_the_crates_root_is_found() {
    let lib = |source| ("src/lib.rs", source);
    let uses = |source| ("src/backend/memory.rs", source);
    let renamed = [lib("pub use worker::{Worker, Limits as Bounds};"), uses("use crate::Bounds;")];
    assert_eq!(direction(&renamed).len(), 1);
    let allowed = [lib("pub use error::Error;"), uses("use crate::Error;")];
    assert_eq!(direction(&allowed), [""; 0]);
    let hidden = [lib("pub use worker::*;"), uses("use crate::Worker;")];
    assert_eq!(direction(&hidden).len(), 1);
    assert_eq!(direction(&[uses("use crate::*;")]).len(), 1);
    assert_eq!(direction(&[uses("use crate::prelude::Worker;")]).len(), 1);
}

#[test]
fn a_room_without_a_row_is_found() {
    let broken = direction(&[("src/attic/mod.rs", ""), ("src/cellar.rs", "")]);
    assert!(broken[0].contains("`attic` is not in the table"), "{broken:?}");
    assert!(broken[1].contains("`cellar` is not in the table"), "{broken:?}");
}

#[test]
fn a_circle_of_rooms_is_found() {
    let circle = [
        ("src/job.rs", "use crate::error::Error;"),
        ("src/lease.rs", "use crate::{job::Job, source::Tag};"),
        ("src/retry.rs", "use crate::lease::Lease;"),
        ("src/source.rs", "use crate::handler::Outcome;"),
        ("src/handler.rs", "use super::lease::Lease;"),
    ];
    let [found] = &cycles(&circle)[..] else { panic!("one circle was expected") };
    for room in ["lease", "source", "handler"] {
        assert!(found.contains(room), "{found}");
    }
    assert!(!found.contains("retry") && !found.contains("job"), "{found}");
    assert_eq!(cycles(&circle[..4]), [""; 0]);
    let in_tests = [circle[0], ("src/error.rs", "#[cfg(test)] mod tests { use crate::job::Job; }")];
    assert_eq!(cycles(&in_tests), [""; 0]);
}

#[test]
fn a_feature_asked_for_elsewhere_is_found() {
    for source in [
        "#[cfg(feature = \"redis\")] use a;",
        "#[cfg(all(unix, any(test, feature = \"a\")))] mod b;",
        "#[cfg_attr(feature = \"a\", derive(B))] struct C;",
        "fn f() -> bool { cfg!( feature = \"a\") }",
    ] {
        assert_eq!(says(rules::feature_gates, &[("src/worker/mod.rs", source)]).len(), 1, "{source}");
        assert_eq!(says(rules::feature_gates, &[("src/backend/mod.rs", source)]), [""; 0], "{source}");
    }
    let near = "#[cfg(test)] mod a {} #[cfg(target_feature = \"x\")] fn f(feature: u8) { cfg!(unix); } // cfg(feature";
    assert_eq!(says(rules::feature_gates, &[("src/job.rs", near)]), [""; 0]);
}

#[test]
fn a_raw_metric_is_found() {
    for source in ["metrics::counter!(\"a\")", "gauge! { \"a\" }", "describe_histogram!(\"a\", \"b\")"] {
        assert_eq!(says(rules::raw_metrics, &[("src/worker/run.rs", source)]).len(), 1, "{source}");
        assert_eq!(says(rules::raw_metrics, &[("src/telemetry.rs", source)]), [""; 0], "{source}");
    }
    let near = "let counter = 1; if counter != (2) { gauge(3) } // counter!(\"a\")";
    assert_eq!(says(rules::raw_metrics, &[("src/worker/run.rs", near)]), [""; 0]);
}

#[test]
fn a_leftover_is_found_in_tests_too() {
    for source in
        ["todo!()", "fn f() { unimplemented!(\"x\") }", "#[cfg(test)] mod t { fn f() { dbg!(1); } }"]
    {
        assert_eq!(says(rules::leftovers, &[("src/job.rs", source)]).len(), 1, "{source}");
        assert_eq!(says(rules::leftovers, &[("tests/worker.rs", source)]).len(), 1, "{source}");
    }
    assert_eq!(says(rules::leftovers, &[("src/job.rs", "// todo!()\nlet todo = \"dbg!()\";")]), [""; 0]);
}

#[test]
fn a_rule_that_reads_the_clock_is_found() {
    let clocks = |path, source| says(|tree| rules::clocks(tree, TIMELESS), &[(path, source)]);
    assert_eq!(clocks("src/retry.rs", "fn f() { let now = std::time::Instant::now(); }").len(), 1);
    assert_eq!(clocks("src/lease.rs", "fn f() { let now = SystemTime::now; }").len(), 1);
    assert_eq!(clocks("src/worker/run.rs", "fn f() { Instant::now() }"), [""; 0]);
    assert_eq!(
        clocks("src/retry.rs", "fn f(now: Instant) {} #[cfg(test)] mod t { fn g() { Instant::now() } }"),
        [""; 0]
    );
}

#[test]
fn a_file_that_is_too_long_is_found() {
    let code = "const A: u8 = 1;\n".repeat(rules::MAX_FILE_LINES);
    let with = |more: &str| says(rules::sizes, &[("src/job.rs", &format!("{code}{more}"))]).len();
    assert_eq!(
        with("// a comment\n\n/// doc\n/* more\nmore */\n#[cfg(test)]\nmod tests {\nfn a() {}\n}\n"),
        0
    );
    assert_eq!(with("const B: u8 = 2;\n"), 1);
    let sql = format!("const A: &str = \"{}\";", "select\n".repeat(rules::MAX_FILE_LINES));
    assert_eq!(says(rules::sizes, &[("src/job.rs", &sql)]).len(), 1);
}

#[test]
fn a_function_that_is_too_long_is_found() {
    let function = |lines: usize| {
        let body = "    a('}', \"}\", r#\"}\"#, '\\''); // }\n\n".repeat(lines - 2);
        format!(
            "trait T {{ fn g(&self) -> [u8; 4]; }}\nimpl T {{\nfn f<'a>(x: &'a [u8; 4]) -> u8 {{\n{body}}}\n}}\n"
        )
    };
    let says = |lines| says(rules::sizes, &[("src/job.rs", &function(lines))]);
    assert_eq!(says(rules::MAX_FUNCTION_LINES), [""; 0]);
    let broken = says(rules::MAX_FUNCTION_LINES + 1);
    assert_eq!(broken, ["src/job.rs:3: `f` has 71 lines of code, at most 70"]);
}

#[test]
fn an_ignored_test_without_a_reason_is_found() {
    for source in
        ["#[ignore] fn a() {}", "#[ignore = \" \"] fn a() {}", "#[cfg_attr(windows, ignore)] fn a() {}"]
    {
        assert_eq!(says(rules::ignored_tests, &[("tests/flat.rs", source)]).len(), 1, "{source}");
    }
    let near = "#[ignore = \"soak: takes minutes\"] fn ignore() {} #[serde(ignore)] struct A; // #[ignore]";
    assert_eq!(says(rules::ignored_tests, &[("tests/flat.rs", near)]), [""; 0]);
}

#[test]
fn a_room_that_does_not_say_what_it_is_is_found() {
    let silent =
        [("src/job.rs", "use a;"), ("src/worker/mod.rs", "// a\n//! b"), ("src/worker/run.rs", "use a;")];
    let broken = says(rules::opening_docs, &silent);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert_eq!(
        says(rules::opening_docs, &[("src/job.rs", "\n//! Jobs.\nuse a;"), ("src/error.rs", "\n")]),
        [""; 0]
    );
}

#[test]
fn a_place_on_one_machine_is_found() {
    let place = |before: &str, name: &str| format!("x\n{before}/{name}/y");
    for (before, name) in [("", "work"), ("cd ", "root"), ("dir = \"", "home"), ("file://", "Users")] {
        let broken = rules::machine_paths([("docs/a.md", place(before, name).as_str())]);
        assert_eq!(broken.len(), 1, "{before}{name}");
        assert!(broken[0].starts_with("docs/a.md:2: "), "{broken:?}");
    }
    for (before, name) in
        [("src", "work"), ("{dir}", "root"), ("https://example.org", "home"), ("", "workers")]
    {
        assert_eq!(
            rules::machine_paths([("docs/a.md", place(before, name).as_str())]),
            [""; 0],
            "{before}{name}"
        );
    }
}
