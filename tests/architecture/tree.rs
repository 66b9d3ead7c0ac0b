//! The source files of the crate as the rules see them: by room, cut into tokens, and with the tests set apart.
//!
//! A room is a module right under the crate's root: `src/x.rs`, or all of `src/x/`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::lexer::{Token, closing, tokens};

/// Where Rust source may stand.
const PLACES: &[&str] = &["src", "tests", "benches", "examples", "fuzz/fuzz_targets"];

#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

#[derive(Debug)]
pub(crate) struct File {
    /// From the root of the repository, with `/` between: `src/worker/run.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// The same without test modules; empty in a file that is one.
    pub(crate) production: Vec<Token>,
}

impl Tree {
    /// The tree that stands under `root`; places that are not there yet are empty.
    pub(crate) fn read(root: &Path) -> Tree {
        let mut found = Vec::new();
        for place in PLACES {
            collect(root, Path::new(place), &mut found);
        }
        found.sort();
        Tree::of(found.iter().map(|(path, text)| (path.as_str(), text.as_str())))
    }

    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Tree {
        let mut files: Vec<File> = files.into_iter().map(|(path, text)| File::new(path, text)).collect();
        let test_roots: Vec<String> = files.iter().flat_map(File::test_files).collect();
        for file in &mut files {
            let stem = file.path.trim_end_matches(".rs");
            if test_roots.iter().any(|root| stem == root || stem.starts_with(&format!("{root}/"))) {
                file.production.clear();
            }
        }
        Tree { files }
    }

    /// The files of the crate itself, with the room of each.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().filter_map(|file| Some((file.room()?, file)))
    }
}

impl File {
    fn new(path: &str, text: &str) -> File {
        let tokens = tokens(text);
        let tests = test_modules(&tokens);
        let in_tests = |index: usize| tests.iter().any(|test| test.range.contains(&index));
        let production = tokens.iter().enumerate().filter(|(index, _)| !in_tests(*index));
        let production = production.map(|(_, token)| token.clone()).collect();
        File { path: path.into(), text: text.into(), tokens, production }
    }

    /// `worker` for `src/worker/run.rs`, `lib` for `src/lib.rs`, nothing outside `src`.
    pub(crate) fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split_once('/').map_or_else(|| inside.trim_end_matches(".rs"), |(room, _)| room))
    }

    /// How many modules deep the file's own module is: `src/lib.rs` 0, `src/job.rs` 1, `src/worker/run.rs` 2.
    pub(crate) fn module_depth(&self) -> usize {
        match self.path.as_str() {
            "src/lib.rs" | "src/main.rs" => 0,
            path => path.trim_end_matches("/mod.rs").matches('/').count(),
        }
    }

    pub(crate) fn at(&self, token: &Token) -> String {
        format!("{}:{}", self.path, token.line)
    }

    /// The paths, without `.rs`, of the files that this one declares as `#[cfg(test)] mod name;`.
    fn test_files(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((folder, "lib" | "main" | "mod")) => folder,
            _ => stem,
        };
        let apart = test_modules(&self.tokens).into_iter().filter(|module| !module.inline);
        apart.map(|module| format!("{folder}/{}", module.name)).collect()
    }
}

struct TestModule {
    name: String,
    /// From the `#` of `#[cfg(test)]` to the end of the module.
    range: Range<usize>,
    inline: bool,
}

fn test_modules(tokens: &[Token]) -> Vec<TestModule> {
    let starts = (0..tokens.len()).filter(|start| is_test_attribute(tokens, *start));
    starts.filter_map(|start| test_module(tokens, start)).collect()
}

fn test_module(tokens: &[Token], start: usize) -> Option<TestModule> {
    let mut at = closing(tokens, start + 1) + 1;
    while tokens.get(at)?.is("#") {
        at = closing(tokens, at + 1) + 1;
    }
    if tokens.get(at)?.is("pub") {
        at += 1;
        if tokens.get(at)?.is("(") {
            at = closing(tokens, at) + 1;
        }
    }
    if !tokens.get(at)?.is("mod") {
        return None;
    }
    let name = tokens.get(at + 1)?.text.clone();
    let inline = tokens.get(at + 2)?.is("{");
    let end = closing(tokens, at + 2);
    Some(TestModule { name, range: start..end + 1, inline })
}

/// True for `#[cfg(test)]`, and for `#[cfg(all(…))]` with a bare `test` among what must hold.
fn is_test_attribute(tokens: &[Token], start: usize) -> bool {
    let is = |index: usize, text: &str| tokens.get(index).is_some_and(|token| token.is(text));
    if !(is(start, "#") && is(start + 1, "[") && is(start + 2, "cfg") && is(start + 3, "(")) {
        return false;
    }
    if is(start + 4, "test") && is(start + 5, ")") {
        return true;
    }
    if !(is(start + 4, "all") && is(start + 5, "(")) {
        return false;
    }
    let end = closing(tokens, start + 5);
    let mut at = start + 6;
    while at < end {
        if is(at, "test") && (is(at + 1, ",") || is(at + 1, ")")) {
            return true;
        }
        at = if is(at, "(") { closing(tokens, at) } else { at } + 1;
    }
    false
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(entry.path())
                .unwrap_or_else(|error| panic!("{} can't be read: {error}", path.display()));
            found.push((path.to_string_lossy().replace('\\', "/"), text));
        }
    }
}

#[test]
fn a_file_knows_its_room_and_its_depth() {
    for (path, room, depth) in [
        ("src/lib.rs", Some("lib"), 0),
        ("src/main.rs", Some("main"), 0),
        ("src/job.rs", Some("job"), 1),
        ("src/worker/mod.rs", Some("worker"), 1),
        ("src/worker/run.rs", Some("worker"), 2),
        ("src/backend/redis/mod.rs", Some("backend"), 2),
        ("src/backend/redis/codec.rs", Some("backend"), 3),
    ] {
        let file = File::new(path, "");
        assert_eq!((file.room(), file.module_depth()), (room, depth), "{path}");
    }
    assert_eq!(File::new("tests/worker.rs", "").room(), None);
}

#[test]
fn a_test_module_is_cut_out_and_what_follows_it_stays() {
    let words = |source: &str| -> Vec<String> {
        let file = File::new("src/job.rs", source);
        file.production.into_iter().filter(Token::is_word).map(|token| token.text).collect()
    };
    assert_eq!(words("a #[cfg(test)] mod tests { b { c } } d"), ["a", "d"]);
    assert_eq!(words("a #[cfg(test)]\n#[allow(x)]\npub(crate) mod tests;\nd"), ["a", "d"]);
    assert_eq!(words("#[cfg(all(not(no), test))] mod loom { b } d"), ["d"]);
    // Not tests: these are in the crate that users build.
    assert_eq!(words("#[cfg(not(test))] mod b {}"), ["cfg", "not", "test", "mod", "b"]);
    assert_eq!(words("#[cfg(any(test, c))] mod b {}"), ["cfg", "any", "test", "c", "mod", "b"]);
    assert_eq!(words("#[cfg(all(no, any(test)))] mod b {}"), ["cfg", "all", "no", "any", "test", "mod", "b"]);
    assert_eq!(words("#[cfg(test)] use b;"), ["cfg", "test", "use", "b"]);
    assert_eq!(words("// #[cfg(test)] mod tests {\nb"), ["b"]);
}

#[test]
fn a_test_module_in_a_file_of_its_own_is_all_tests() {
    let tree = Tree::of([
        ("src/lib.rs", "#[cfg(test)] mod support;"),
        ("src/support/clock.rs", "a"),
        ("src/supporter.rs", "a"),
        ("src/worker/mod.rs", "#[cfg(test)] mod tests;"),
        ("src/worker/run.rs", "#[cfg(test)] mod tests;"),
        ("src/worker/run/tests.rs", "a"),
        ("src/worker/tests.rs", "a"),
    ]);
    let left: Vec<&str> =
        tree.files.iter().filter(|file| !file.production.is_empty()).map(|file| file.path.as_str()).collect();
    assert_eq!(left, ["src/supporter.rs"]);
}
