//! JSON as bytes: where each field of an object stands, so that the rest can be left as it is.
//!
//! The grammar is that of RFC 8259 and nothing beside it, with one exception: a string may hold bytes that are no
//! UTF-8. Producers in Ruby write such, and a job must not be lost for it. Nesting is bounded and nothing recurses, so
//! the stack is safe from hostile input. Numbers are not read here, only their form is checked. Nothing is copied.

use std::fmt;
use std::ops::Range;

use super::text;

/// The deepest nesting that is read: as in `serde_json`. Ruby's own parser stops at 100.
pub(super) const MAX_DEPTH: usize = 128;

/// What is wrong with bytes that are no JSON, and where. Never says what stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    what: &'static str,
    at: usize,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// One field of an object: where its key, without the quotes, and its value stand. 32 bits each, so that an object of
/// many tiny fields takes a few times its own size and not ten times.
#[derive(Clone, Copy, Debug)]
struct Field {
    key: (u32, u32),
    value: (u32, u32),
    /// The key has escapes.
    escaped: bool,
}

/// An object: its fields in their order, duplicates included.
#[derive(Debug)]
pub(super) struct Object<'a> {
    bytes: &'a [u8],
    fields: Vec<Field>,
    /// How deep it is nested: 1 for an object of plain values.
    depth: usize,
    /// Behind its opening brace.
    open: usize,
}

impl<'a> Object<'a> {
    /// Reads the one object that `bytes` are, with white space around it.
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let mut cursor = Cursor { bytes, at: 0, deepest: 0 };
        // The offsets of the fields have 32 bits; a string in Redis has at most 29.
        if u32::try_from(bytes.len()).is_err() {
            return cursor.flaw("more than 4 GiB");
        }
        cursor.space();
        if cursor.peek() != b'{' {
            return cursor.flaw("no object");
        }
        cursor.at += 1;
        let open = cursor.at;
        let mut fields = Vec::with_capacity(16);
        cursor.space();
        if cursor.peek() == b'}' {
            cursor.at += 1;
        } else {
            while cursor.field(&mut fields)? {}
        }
        cursor.end()?;
        Ok(Self { bytes, fields, depth: cursor.deepest + 1, open })
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// The fields in their order: each key with its escapes undone, and its value.
    pub(super) fn fields(&self) -> impl Iterator<Item = (text::Key<'a>, Value<'a>)> {
        self.fields.iter().map(|field| (self.key(field), Value(&self.bytes[range(field.value)])))
    }

    /// The value of the last field of this name, as Ruby's parser has it.
    pub(super) fn get(&self, name: &str) -> Option<Value<'a>> {
        self.find(name).map(|index| Value(&self.bytes[range(self.fields[index].value)]))
    }

    /// The same value with the white space around it.
    pub(super) fn get_spaced(&self, name: &str) -> Option<&'a [u8]> {
        let field = &self.fields[self.find(name)?];
        let (mut start, mut end) = (field.value.0 as usize, field.value.1 as usize);
        while start > 0 && is_space(self.bytes[start - 1]) {
            start -= 1;
        }
        while self.bytes.get(end).is_some_and(|byte| is_space(*byte)) {
            end += 1;
        }
        Some(&self.bytes[start..end])
    }

    /// Which field is the last of this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        (0..self.fields.len()).rev().find(|index| self.is_named(*index, name))
    }

    pub(super) fn is_named(&self, index: usize, name: &str) -> bool {
        self.key(&self.fields[index]).is(name)
    }

    /// Where a field stands: from the opening quote of its key to the end of its value.
    pub(super) fn place(&self, index: usize) -> Range<usize> {
        let field = &self.fields[index];
        field.key.0 as usize - 1..field.value.1 as usize
    }

    pub(super) fn value_place(&self, index: usize) -> Range<usize> {
        range(self.fields[index].value)
    }

    /// All bytes, and where the first field may begin.
    pub(super) fn frame(&self) -> (&'a [u8], usize) {
        (self.bytes, self.open)
    }

    fn key(&self, field: &Field) -> text::Key<'a> {
        text::Key::new(&self.bytes[range(field.key)], field.escaped)
    }
}

fn range((start, end): (u32, u32)) -> Range<usize> {
    start as usize..end as usize
}

/// The bytes of one value, without white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value<'a>(pub(super) &'a [u8]);

impl<'a> Value<'a> {
    /// The one value that `bytes` are, with white space around it; and how deep it is nested.
    pub(super) fn of(bytes: &'a [u8]) -> Result<(Self, usize), Flaw> {
        let mut cursor = Cursor { bytes, at: 0, deepest: 0 };
        cursor.space();
        let start = cursor.at;
        cursor.value(MAX_DEPTH)?;
        let value = Self(&bytes[start..cursor.at]);
        cursor.end()?;
        Ok((value, cursor.deepest))
    }

    /// What stands between the brackets of an array, if it is one.
    pub(super) fn in_brackets(self) -> Option<&'a [u8]> {
        self.0.strip_prefix(b"[")?.strip_suffix(b"]")
    }

    /// The first of an array's elements.
    pub(super) fn first(self) -> Option<Value<'a>> {
        let bytes = self.in_brackets()?;
        let mut cursor = Cursor { bytes, at: 0, deepest: 0 };
        cursor.space();
        let start = cursor.at;
        cursor.value(MAX_DEPTH).ok()?;
        Some(Value(&bytes[start..cursor.at]))
    }

    pub(super) fn is_null(self) -> bool {
        self.0 == b"null"
    }

    pub(super) fn is_false(self) -> bool {
        self.0 == b"false"
    }

    /// What stands between the quotes of a string, if it is one: escapes are still there.
    pub(super) fn in_quotes(self) -> Option<&'a [u8]> {
        self.0.strip_prefix(b"\"")?.strip_suffix(b"\"")
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// What may stand in a string as it is. Bytes above 127 are taken as they are, UTF-8 or not.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain
};

/// Goes through the bytes once.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The deepest nesting so far.
    deepest: usize,
}

impl Cursor<'_> {
    /// The byte here; 0, which is never part of JSON, at the end.
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn flaw<T>(&self, what: &'static str) -> Result<T, Flaw> {
        Err(Flaw { what, at: self.at })
    }

    fn space(&mut self) {
        while is_space(self.peek()) {
            self.at += 1;
        }
    }

    fn end(&mut self) -> Result<(), Flaw> {
        self.space();
        if self.at < self.bytes.len() { self.flaw("something behind the end") } else { Ok(()) }
    }

    /// One field of the outermost object, and what stands behind it; whether another has to follow.
    fn field(&mut self, fields: &mut Vec<Field>) -> Result<bool, Flaw> {
        self.space();
        let key = self.at + 1;
        let escaped = self.key()?;
        let key_end = self.at;
        self.colon()?;
        let start = self.at;
        self.value(MAX_DEPTH - 1)?;
        // Lossless: the whole has been found to be less than 4 GiB.
        let field =
            Field { key: (key as u32, key_end as u32 - 1), value: (start as u32, self.at as u32), escaped };
        fields.push(field);
        self.space();
        match self.peek() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            b'}' => {
                self.at += 1;
                Ok(false)
            }
            _ => self.flaw("neither `,` nor `}` after a field"),
        }
    }

    /// Passes one value of any depth up to `limit`. The brackets that are open stand in a number as bits, that of the
    /// innermost lowest: 1 for an object.
    fn value(&mut self, limit: usize) -> Result<(), Flaw> {
        let (mut open, mut depth) = (0_u128, 0_usize);
        loop {
            let opening = self.peek();
            if matches!(opening, b'{' | b'[') {
                if depth == limit {
                    return self.flaw("nested too deep");
                }
                depth += 1;
                self.deepest = self.deepest.max(depth);
                open = open << 1 | u128::from(opening == b'{');
                self.at += 1;
                self.space();
                if self.peek() != opening + 2 {
                    if opening == b'{' {
                        self.key()?;
                        self.colon()?;
                    }
                    continue;
                }
            } else {
                self.scalar(opening)?;
            }
            // A value has ended, or (the closing bracket is still ahead) an array or object without any.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.space();
                let in_object = open & 1 == 1;
                match (self.peek(), in_object) {
                    (b',', _) => {
                        self.at += 1;
                        self.space();
                        if in_object {
                            self.key()?;
                            self.colon()?;
                        }
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        self.at += 1;
                        depth -= 1;
                        open >>= 1;
                    }
                    (_, true) => return self.flaw("neither `,` nor `}` after a field"),
                    (_, false) => return self.flaw("neither `,` nor `]` after an element"),
                }
            }
        }
    }

    fn scalar(&mut self, first: u8) -> Result<(), Flaw> {
        match first {
            b'"' => self.string().map(|_| ()),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.flaw("no value"),
        }
    }

    fn literal(&mut self, text: &[u8]) -> Result<(), Flaw> {
        if !self.bytes[self.at..].starts_with(text) {
            return self.flaw("no value");
        }
        self.at += text.len();
        Ok(())
    }

    fn key(&mut self) -> Result<bool, Flaw> {
        if self.peek() == b'"' { self.string() } else { self.flaw("no key in quotes") }
    }

    /// The colon behind a key, and the white space around it.
    fn colon(&mut self) -> Result<(), Flaw> {
        self.space();
        if self.peek() != b':' {
            return self.flaw("no `:` after a key");
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// A string, from quote to quote; whether it has escapes.
    fn string(&mut self) -> Result<bool, Flaw> {
        let mut escaped = false;
        self.at += 1;
        loop {
            while self.bytes.get(self.at).is_some_and(|byte| PLAIN[usize::from(*byte)]) {
                self.at += 1;
            }
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.flaw("a control character in a string"),
                None => return self.flaw("a string without end"),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Flaw> {
        let length = match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 2..self.at + 6).unwrap_or_default();
                if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return self.flaw("no four hexadecimal digits after `\\u`");
                }
                6
            }
            _ => return self.flaw("no escape that JSON knows"),
        };
        self.at += length;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Flaw> {
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1
        } else {
            self.digits()?
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Result<(), Flaw> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { self.flaw("no digit where a number needs one") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
