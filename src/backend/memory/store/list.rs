//! Lists through the records of the store: which job came first into its state.
//!
//! A record is in one list at a time, and carries its neighbours' keys itself: entering and leaving cost
//! the same few writes however long the list is, and no allocation.

use slab::Slab;

use super::Record;

/// No neighbour: no slab has so many entries.
const NONE: usize = usize::MAX;

/// One list: the keys of its ends.
#[derive(Debug)]
pub(super) struct List {
    first: usize,
    last: usize,
    len: usize,
}

/// A record's neighbours in the list that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    before: usize,
    after: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

impl Default for Links {
    fn default() -> Self {
        Self { before: NONE, after: NONE }
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The key of the record that has been in it longest.
    pub(super) fn first(&self) -> Option<usize> {
        (self.first != NONE).then_some(self.first)
    }

    /// Puts a record that is in no list at the end.
    pub(super) fn push(&mut self, records: &mut Slab<Record>, key: usize) {
        records[key].links = Links { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = key,
            last => records[last].links.after = key,
        }
        self.last = key;
        self.len += 1;
    }

    /// Takes out a record that is in this list.
    pub(super) fn remove(&mut self, records: &mut Slab<Record>, key: usize) {
        let Links { before, after } = records[key].links;
        match before {
            NONE => self.first = after,
            before => records[before].links.after = after,
        }
        match after {
            NONE => self.last = before,
            after => records[after].links.before = before,
        }
        self.len -= 1;
    }

    /// The keys, that which has been in it longest first.
    pub(super) fn keys<'a>(&self, records: &'a Slab<Record>) -> impl Iterator<Item = usize> + use<'a> {
        let follow = |key: usize| (key != NONE).then_some(key);
        std::iter::successors(self.first(), move |key| follow(records[*key].links.after))
    }
}
