//! The rules, one function each: from a tree to what breaks the rule in it, as lines that say what to do.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::{Token, closing};
use crate::tree::{File, Tree};

/// A file that is longer is two files: what it is no longer fits one opening sentence.
pub(crate) const MAX_FILE_LINES: usize = 400;
/// A function that is longer can't be seen at once.
pub(crate) const MAX_FUNCTION_LINES: usize = 70;

/// Where a feature may switch code on; everywhere else the code is the same for all.
const FEATURE_GATES: &[&str] = &[
    "src/lib.rs",
    "src/main.rs",
    "src/backend/mod.rs",
    "src/service/mod.rs",
    "src/cli/mod.rs",
    "src/cli/each/mod.rs",
    "src/cli/enqueue/mod.rs",
    "src/cli/run/mod.rs",
];

const METRIC_MACROS: &[&str] =
    &["counter", "gauge", "histogram", "describe_counter", "describe_gauge", "describe_histogram"];

/// Every absolute path begins so on one machine or another; in two parts, so that this file passes its own rule.
const MACHINE_PATHS: &[&str] =
    &[concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/"), concat!("/", "Users/")];

/// The table of rooms: a name, and the rooms that it may use.
pub(crate) type House<'a> = &'a [(&'a str, Vec<&'a str>)];

/// Every file stands in a room of the table, and uses only what the table allows that room.
pub(crate) fn direction(tree: &Tree, house: House<'_>) -> Vec<String> {
    let mut broken = Vec::new();
    let exports = exports(tree, house);
    for (room, file) in tree.rooms() {
        let Some((_, allowed)) = house.iter().find(|(name, _)| *name == room) else {
            broken.push(format!(
                "{}: the room `{room}` is not in the table; add it with the rooms that it may use",
                file.path
            ));
            continue;
        };
        // The roots name what they hold themselves, and may use all.
        let paths = if file.module_depth() == 0 { Vec::new() } else { crate_paths(file) };
        for (token, path) in paths {
            let (at, path_text) = (file.at(token), path.join("::"));
            match target(&path, house, &exports) {
                None => broken
                    .push(format!("{at}: `crate::{path_text}` names no room of the table; go through one")),
                Some(used) if used == room || allowed.contains(&used.as_str()) => {}
                Some(used) => {
                    broken.push(format!(
                        "{at}: `{room}` uses `{used}`; it may use only: {}",
                        allowed.join(", ")
                    ));
                }
            }
        }
    }
    broken.dedup();
    broken
}

/// No room uses, by way of others, itself. `tops` are left out: nothing may use them in the first place.
pub(crate) fn cycles(tree: &Tree, house: House<'_>, tops: &[&str]) -> Vec<String> {
    let exports = exports(tree, house);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (room, file) in tree.rooms().filter(|(room, _)| !tops.contains(room)) {
        let used = crate_paths(file).into_iter().filter_map(|(_, path)| target(&path, house, &exports));
        uses.entry(room.to_string()).or_default().extend(used.filter(|used| used != room));
    }
    loop {
        let before = uses.len();
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        uses.retain(|_, used| used.iter().any(|room| left.contains(room)));
        if uses.len() == before {
            break;
        }
    }
    one_cycle(&uses).into_iter().map(|cycle| format!("rooms in a circle: {}", cycle.join(" -> "))).collect()
}

/// `cfg(feature …)` stands only in the few files that open the doors.
pub(crate) fn feature_gates(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (_, file) in tree.rooms().filter(|(_, file)| !FEATURE_GATES.contains(&file.path.as_str())) {
        let tokens = &file.tokens;
        for (at, token) in
            tokens.iter().enumerate().filter(|(_, token)| token.is("cfg") || token.is("cfg_attr"))
        {
            let open = if follows(tokens, at, "!") { at + 2 } else { at + 1 };
            let gate = tokens.get(open..closing(tokens, open)).unwrap_or_default();
            if follows(tokens, open - 1, "(") && gate.iter().any(|token| token.is("feature")) {
                broken
                    .push(format!("{}: a feature is asked for; only {FEATURE_GATES:?} may", file.at(token)));
            }
        }
    }
    broken
}

/// The macros of `metrics` stand only in `telemetry`, where each name is written once.
pub(crate) fn raw_metrics(tree: &Tree) -> Vec<String> {
    let outside = tree.rooms().filter(|(room, _)| *room != "telemetry");
    outside
        .flat_map(|(_, file)| macros(file, METRIC_MACROS, "a raw metric; name it in src/telemetry.rs"))
        .collect()
}

/// What is not written yet, or was written to look at it, is not handed in.
pub(crate) fn leftovers(tree: &Tree) -> Vec<String> {
    let names = &["todo", "unimplemented", "dbg"];
    tree.files.iter().flat_map(|file| macros(file, names, "left over")).collect()
}

/// The rules are told the time: a room of `timeless` asks no clock.
pub(crate) fn clocks(tree: &Tree, timeless: &[&str]) -> Vec<String> {
    let mut broken = Vec::new();
    for (room, file) in tree.rooms().filter(|(room, _)| timeless.contains(room)) {
        for three in file.production.windows(3) {
            if (three[0].is("Instant") || three[0].is("SystemTime"))
                && three[1].is("::")
                && three[2].is("now")
            {
                broken.push(format!(
                    "{}: `{room}` reads the clock; take the time as an argument",
                    file.at(&three[0])
                ));
            }
        }
    }
    broken
}

/// Files and functions stay short; comments, blank lines and test modules don't count.
pub(crate) fn sizes(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (_, file) in tree.rooms() {
        let lines = lines(&file.production);
        if lines > MAX_FILE_LINES {
            broken.push(format!("{}: {lines} lines of code, at most {MAX_FILE_LINES}", file.path));
        }
        for (name, body) in functions(&file.production) {
            let lines = self::lines(body);
            if lines > MAX_FUNCTION_LINES {
                let at = file.at(&body[0]);
                broken
                    .push(format!("{at}: `{name}` has {lines} lines of code, at most {MAX_FUNCTION_LINES}"));
            }
        }
    }
    broken
}

/// Who skips a test says why.
pub(crate) fn ignored_tests(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for file in &tree.files {
        let tokens = &file.tokens;
        for at in (0..tokens.len()).filter(|at| tokens[*at].is("#") && follows(tokens, *at, "[")) {
            let attribute = &tokens[at + 2..closing(tokens, at + 1).max(at + 2)];
            let about_tests =
                attribute.first().is_some_and(|first| first.is("ignore") || first.is("cfg_attr"));
            for (index, token) in
                attribute.iter().enumerate().filter(|(_, token)| about_tests && token.is("ignore"))
            {
                let reason = attribute.get(index + 2).filter(|_| follows(attribute, index, "="));
                if !reason.is_some_and(|reason| reason.text.chars().any(char::is_alphabetic)) {
                    broken.push(format!("{}: ignored without a reason: #[ignore = \"…\"]", file.at(token)));
                }
            }
        }
    }
    broken
}

/// The file that opens a room says first what the room is.
pub(crate) fn opening_docs(tree: &Tree) -> Vec<String> {
    let opens = |file: &File| file.module_depth() == 0 || file.module_depth() == 1;
    let opening = tree.rooms().filter(|(_, file)| opens(file) && !file.text.trim().is_empty());
    let silent = opening.filter(|(_, file)| !file.text.trim_start().starts_with("//!"));
    silent.map(|(_, file)| format!("{}: begins with no `//!` that says what it is", file.path)).collect()
}

/// Nothing that is handed in names a place on one machine.
pub(crate) fn machine_paths<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in texts {
        for (number, line) in text.lines().enumerate() {
            for name in MACHINE_PATHS.iter().filter(|name| names_place(line, name)) {
                broken.push(format!("{path}:{}: `{name}` is a place on one machine", number + 1));
            }
        }
    }
    broken
}

/// True if `place` stands in `line` as the beginning of a path, not inside one.
fn names_place(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "\"'`=([<,:;|/".contains(c))
    })
}

/// The room that a path from the crate's root leads to, if that can be read from the source.
fn target(path: &[String], house: House<'_>, exports: &BTreeMap<String, String>) -> Option<String> {
    let first = path.first()?;
    if house.iter().any(|(room, _)| room == first) {
        Some(first.clone())
    } else {
        exports.get(first).cloned()
    }
}

/// What the crate's root gives out by name, and the room that each comes from. What it gives out with a `*` can't
/// be told apart here, so whoever uses it goes through the room.
fn exports(tree: &Tree, house: House<'_>) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (_, file) in tree.rooms().filter(|(room, _)| *room == "lib") {
        for at in (0..file.production.len()).filter(|at| file.production[*at].is("use")) {
            let mut found = Vec::new();
            use_tree(&file.production, at + 1, &[], &mut found);
            for Used { mut path, name } in found {
                path.retain(|part| part != "crate" && part != "self");
                let room = path.first().filter(|first| house.iter().any(|(room, _)| room == first));
                if let Some(room) = room.filter(|_| name != "*") {
                    exports.insert(name, room.clone());
                }
            }
        }
    }
    exports
}

/// Every path from the crate's root in the code of `file`, without its tests, and where it stands.
fn crate_paths(file: &File) -> Vec<(&Token, Vec<String>)> {
    let tokens = &file.production;
    let mut paths = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let Some(from) = root_path(file, at) else { continue };
        let mut found = Vec::new();
        let end = use_tree(tokens, from, &[], &mut found);
        // A macro stands at the root wherever it is written, so its path names no room.
        if !tokens.get(end).is_some_and(|token| token.is("!")) {
            paths.extend(found.into_iter().map(|used| (token, used.path)));
        }
    }
    paths
}

/// Where the path goes on after `crate::`, or after as many `super::` as lead up to the crate's root.
fn root_path(file: &File, at: usize) -> Option<usize> {
    let tokens = &file.production;
    if tokens[at].is("crate") && follows(tokens, at, "::") {
        return Some(at + 2);
    }
    let goes_on = at >= 2 && tokens[at - 1].is("::") && tokens[at - 2].is("super");
    if !tokens[at].is("super") || goes_on {
        return None;
    }
    let mut after = at;
    while tokens.get(after).is_some_and(|token| token.is("super")) && follows(tokens, after, "::") {
        after += 2;
    }
    let depth = file.module_depth() + inline_depth(tokens, at);
    (after > at && (after - at) / 2 == depth).then_some(after)
}

/// How many `mod name { … }` of its own file stand around the token at `at`.
fn inline_depth(tokens: &[Token], at: usize) -> usize {
    let opens = (0..at).filter(|open| tokens[*open].is("{") && *open >= 2 && tokens[open - 2].is("mod"));
    opens.filter(|open| closing(tokens, *open) > at).count()
}

struct Used {
    path: Vec<String>,
    /// What it is called here: the last part, or what follows `as`.
    name: String,
}

/// Reads `a::{b, c::D as E, f::*}` from `at` into one path each; gives the index after it.
fn use_tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Used>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        if token.is("{") {
            let end = closing(tokens, at);
            at += 1;
            while at < end {
                at = if tokens[at].is(",") { at + 1 } else { use_tree(tokens, at, &path, found).max(at + 1) };
            }
            return end + 1;
        }
        if !token.is("*") && !token.is_word() {
            break;
        }
        path.push(token.text.clone());
        at += 1;
        if !tokens.get(at).is_some_and(|next| next.is("::")) {
            break;
        }
        at += 1;
    }
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let alias = tokens.get(at + 1).filter(|_| tokens.get(at).is_some_and(|token| token.is("as")));
    let name = alias.map(|token| token.text.clone()).or_else(|| path.last().cloned()).unwrap_or_default();
    found.push(Used { path, name });
    if alias.is_some() { at + 2 } else { at }
}

/// One circle among rooms that each use another of them; nothing if there are none.
fn one_cycle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut way = vec![uses.keys().next()?.clone()];
    loop {
        let next = uses[way.last()?].iter().find(|room| uses.contains_key(*room))?.clone();
        let seen = way.iter().position(|room| *room == next);
        way.push(next);
        if let Some(first) = seen {
            return Some(way.split_off(first));
        }
    }
}

/// Calls of the macros `names` in all of `file`, its tests too.
fn macros(file: &File, names: &[&str], why: &str) -> Vec<String> {
    let tokens = &file.tokens;
    let called = |at: usize| {
        let open = tokens.get(at + 2);
        follows(tokens, at, "!") && open.is_some_and(|open| open.is("(") || open.is("[") || open.is("{"))
    };
    let found = tokens
        .iter()
        .enumerate()
        .filter(|(at, token)| names.iter().any(|name| token.is(name)) && called(*at));
    found.map(|(_, token)| format!("{}: `{}!`: {why}", file.at(token), token.text)).collect()
}

/// Every function that has a body: its name, and its tokens from `fn` to the closing brace.
fn functions(tokens: &[Token]) -> Vec<(&str, &[Token])> {
    let mut found = Vec::new();
    for at in (0..tokens.len()).filter(|at| tokens[*at].is("fn")) {
        let Some(name) = tokens.get(at + 1).filter(|token| token.is_word()) else { continue };
        let mut open = at + 2;
        while tokens.get(open).is_some_and(|token| !token.is("{") && !token.is(";")) {
            let group = tokens[open].is("(") || tokens[open].is("[");
            open = if group { closing(tokens, open) } else { open } + 1;
        }
        if tokens.get(open).is_some_and(|token| token.is("{")) {
            found.push((name.text.as_str(), &tokens[at..=closing(tokens, open).min(tokens.len() - 1)]));
        }
    }
    found
}

/// The number of lines on which a token stands; a string of several lines counts with all of them.
fn lines(tokens: &[Token]) -> usize {
    tokens.iter().flat_map(|token| token.line..=token.last_line).collect::<BTreeSet<usize>>().len()
}

fn follows(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at + 1).is_some_and(|token| token.is(text))
}
