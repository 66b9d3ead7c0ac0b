//! Changing single fields of an object: every other byte stays as it was, and where it was.

use super::json::Object;
use super::text;

/// Changes to be made to an object.
pub(super) struct Edit<'a> {
    object: &'a Object<'a>,
    changes: Vec<Change>,
}

struct Change {
    name: &'static str,
    /// The field that gets the value; `None` if it is to be appended, or if all of the name are to be removed.
    field: Option<usize>,
    /// The new value, as JSON; `None` removes.
    value: Option<Vec<u8>>,
}

impl<'a> Edit<'a> {
    pub(super) fn of(object: &'a Object<'a>) -> Self {
        Self { object, changes: Vec::with_capacity(8) }
    }

    /// The field gets this value, which is JSON: in its place if it is there (the last one, which is the one that
    /// counts, if there are several), otherwise at the end.
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        let field = self.object.find(name);
        self.changes.push(Change { name, field, value: Some(value.into()) });
    }

    /// No field has this name any more.
    pub(super) fn remove(&mut self, name: &'static str) {
        self.changes.push(Change { name, field: None, value: None });
    }

    /// The bytes of the object with the changes made.
    pub(super) fn finish(self) -> Vec<u8> {
        let (bytes, open) = self.object.frame();
        let added: usize = self.changes.iter().flat_map(|change| &change.value).map(|v| v.len() + 24).sum();
        let mut out = Vec::with_capacity(bytes.len() + added);
        let count = self.object.len();
        // What stands before the first field and behind the last stays, whichever these are afterwards.
        let first = if count == 0 { open } else { self.object.place(0).start };
        let last = if count == 0 { open } else { self.object.place(count - 1).end };
        out.extend_from_slice(&bytes[..first]);
        let mut any = false;
        for index in 0..count {
            if self.removes(index) {
                continue;
            }
            if any {
                // The comma, and the white space around it.
                out.extend_from_slice(
                    &bytes[self.object.place(index - 1).end..self.object.place(index).start],
                );
            }
            any = true;
            self.field(index, bytes, &mut out);
        }
        for change in self.changes.iter().filter(|change| change.field.is_none()) {
            let Some(value) = &change.value else { continue };
            if any {
                out.push(b',');
            }
            any = true;
            text::quote(&mut out, change.name);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&bytes[last..]);
        out
    }

    fn removes(&self, index: usize) -> bool {
        let named = |change: &&Change| self.object.is_named(index, change.name);
        self.changes.iter().filter(|change| change.value.is_none()).any(|change| named(&change))
    }

    fn field(&self, index: usize, bytes: &[u8], out: &mut Vec<u8>) {
        let (place, value_place) = (self.object.place(index), self.object.value_place(index));
        match self.changes.iter().rev().find(|change| change.field == Some(index)) {
            Some(Change { value: Some(value), .. }) => {
                out.extend_from_slice(&bytes[place.start..value_place.start]);
                out.extend_from_slice(value);
            }
            _ => out.extend_from_slice(&bytes[place]),
        }
    }
}

#[cfg(test)]
mod tests;
