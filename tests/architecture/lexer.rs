//! Cuts Rust source into tokens, so that no rule is fooled by what stands in a comment or a string.
//!
//! It knows just enough of the language for that: nested comments, raw strings, and a lifetime from a character.
//! It must not judge: source that is no Rust gives some tokens, never a panic.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name, a keyword or a number.
    Word,
    /// A string or character literal, with its quotes.
    Literal,
    Lifetime,
    /// One sign; only `::` is kept together.
    Sign,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Counted from 1.
    pub(crate) line: usize,
    /// Differs from `line` in a string of several lines.
    pub(crate) last_line: usize,
}

impl Token {
    pub(crate) fn is_word(&self) -> bool {
        self.kind == Kind::Word
    }

    /// True for the sign or word `text`; never for a literal that reads the same.
    pub(crate) fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Word | Kind::Sign) && self.text == text
    }
}

/// The tokens of `source` in order, without comments and white space.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1, tokens: Vec::new() };
    while lexer.step() {}
    lexer.tokens
}

/// The index of the bracket that closes the one at `open`, or the end of `tokens` if none does.
pub(crate) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        if token.kind != Kind::Sign {
            continue;
        }
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer {
    /// Takes one token, one comment or one space; false at the end.
    fn step(&mut self) -> bool {
        let Some(c) = self.peek(0) else { return false };
        match c {
            '/' if self.peek(1) == Some('/') => self.skip_line_comment(),
            '/' if self.peek(1) == Some('*') => self.skip_block_comment(),
            '"' => self.quoted('"'),
            '\'' if self.begins_character() => self.quoted('\''),
            '\'' => self.lifetime(),
            c if is_name(c) => self.word(),
            c if c.is_whitespace() => self.bump(1),
            ':' if self.peek(1) == Some(':') => self.push(Kind::Sign, self.at + 2),
            _ => self.push(Kind::Sign, self.at + 1),
        }
        true
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Moves on by `count` characters and counts the lines passed.
    fn bump(&mut self, count: usize) {
        for _ in 0..count {
            if self.peek(0) == Some('\n') {
                self.line += 1;
            }
            self.at += 1;
        }
    }

    /// Takes all up to `end` as one token.
    fn push(&mut self, kind: Kind, end: usize) {
        let end = end.min(self.chars.len());
        let (text, line) = (self.chars[self.at..end].iter().collect(), self.line);
        self.bump(end - self.at);
        self.tokens.push(Token { kind, text, line, last_line: self.line });
    }

    fn skip_line_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.bump(1);
        }
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return,
                (Some('/'), Some('*')) => {
                    depth += 1;
                    self.bump(2);
                }
                (Some('*'), Some('/')) => {
                    depth -= 1;
                    self.bump(2);
                }
                _ => self.bump(1),
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// `'x'` and `'\n'` are characters; `'x` alone is a lifetime or a label.
    fn begins_character(&self) -> bool {
        self.peek(1) == Some('\\') || self.peek(2) == Some('\'')
    }

    fn quoted(&mut self, quote: char) {
        let mut end = self.at + 1;
        while let Some(&c) = self.chars.get(end) {
            end += if c == '\\' { 2 } else { 1 };
            if c == quote {
                break;
            }
        }
        self.push(Kind::Literal, end);
    }

    fn lifetime(&mut self) {
        let name = self.chars[self.at + 1..].iter().take_while(|c| is_name(**c)).count();
        self.push(Kind::Lifetime, self.at + 1 + name);
    }

    fn word(&mut self) {
        let end = self.at + self.chars[self.at..].iter().take_while(|c| is_name(**c)).count();
        let prefix: String = self.chars[self.at..end].iter().collect();
        if matches!(prefix.as_str(), "r" | "br" | "cr") {
            let hashes = self.chars[end..].iter().take_while(|c| **c == '#').count();
            if self.chars.get(end + hashes) == Some(&'"') {
                return self.raw_string(end + hashes + 1, hashes);
            }
            if prefix == "r" && hashes == 1 {
                // r#type: the name is what follows.
                self.bump(2);
                return;
            }
        }
        self.push(Kind::Word, end);
    }

    /// `from` is the first character after the opening quote.
    fn raw_string(&mut self, from: usize, hashes: usize) {
        let closes = |at: usize| {
            self.chars[at] == '"' && (1..=hashes).all(|ahead| self.chars.get(at + ahead) == Some(&'#'))
        };
        let end = (from..self.chars.len()).find(|at| closes(*at));
        self.push(Kind::Literal, end.map_or(self.chars.len(), |at| at + 1 + hashes));
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn texts(source: &str) -> Vec<String> {
    tokens(source).into_iter().map(|token| token.text).collect()
}

#[test]
fn comments_leave_no_token() {
    assert_eq!(texts("a // b { \" \n /* c /* d */ ' e */ f /// g\n//! h"), ["a", "f"]);
}

#[test]
fn an_unclosed_comment_or_string_ends_with_the_file() {
    assert_eq!(texts("a /* b"), ["a"]);
    assert_eq!(texts("a \"b \\"), ["a", "\"b \\"]);
    assert_eq!(texts("a r#\"b\""), ["a", "r#\"b\""]);
    assert_eq!(texts("a '"), ["a", "'"]);
}

#[test]
fn what_stands_in_a_string_is_one_token() {
    assert_eq!(texts(r#"f("} // \" {", b"\\")"#), ["f", "(", r#""} // \" {""#, ",", "b", r#""\\""#, ")"]);
}

#[test]
fn a_raw_string_ends_only_at_its_own_number_of_hashes() {
    let source = "x r#\"a \" b \\\"# y br##\"c\"# d\"## z r\"e\\\" w";
    assert_eq!(texts(source), ["x", "r#\"a \" b \\\"#", "y", "br##\"c\"# d\"##", "z", "r\"e\\\"", "w"]);
}

#[test]
fn a_raw_name_is_a_name() {
    assert_eq!(texts("r#type r"), ["type", "r"]);
}

#[test]
fn a_character_is_told_from_a_lifetime() {
    let source = r"<'a, 'b>('{', '\'', '\u{7b}', b'}', '_') 'outer: loop";
    let literals: Vec<String> = tokens(source)
        .into_iter()
        .filter(|token| token.kind == Kind::Literal)
        .map(|token| token.text)
        .collect();
    assert_eq!(literals, ["'{'", r"'\''", r"'\u{7b}'", "'}'", "'_'"]);
    assert_eq!(texts("&'a str"), ["&", "'a", "str"]);
}

#[test]
fn lines_are_counted_through_comments_and_strings() {
    let found = tokens("/* 1\n2 */ a\n\"b\nc\" d");
    let lines: Vec<(usize, usize)> = found.iter().map(|token| (token.line, token.last_line)).collect();
    assert_eq!(lines, [(2, 2), (3, 4), (4, 4)]);
}

#[test]
fn a_bracket_finds_the_one_that_closes_it() {
    let found = tokens("f(\")\", '}', [a]) { }");
    assert_eq!(found[closing(&found, 1)].line, 1);
    assert_eq!(closing(&found, 1), 9);
    assert_eq!(closing(&tokens("{ ( )"), 0), 3);
}
