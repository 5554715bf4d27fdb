//! Lists, each of which is kept once: two that are equal are one handle. They lie one after the
//! other in one vector, as a proof makes some hundred thousand of them and drops them together.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// A list among [`Lists`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct List(pub(super) u32);

/// A list's hash, with its handle.
#[derive(Clone, Copy, Debug)]
struct Entry(u64, List);

/// Lists of `T`, each of which is there once.
#[derive(Debug)]
pub(super) struct Lists<T> {
    elements: Vec<T>,
    /// Where each list ends among the elements; it begins where the one before it ends.
    ends: Vec<u32>,
    ids: HashTable<Entry>,
    hasher: RandomState,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self {
            elements: Vec::new(),
            ends: Vec::new(),
            ids: HashTable::new(),
            hasher: RandomState::default(),
        }
    }
}

impl<T: Copy + Eq + Hash> Lists<T> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The elements of a list.
    pub(super) fn get(&self, list: List) -> &[T] {
        elements(&self.elements, &self.ends, list)
    }

    /// The list with these elements, which is made if there is none yet.
    pub(super) fn intern(&mut self, list: &[T]) -> List {
        let hash = self.hasher.hash_one(list);
        let is_it = |entry: &Entry| {
            entry.0 == hash && elements(&self.elements, &self.ends, entry.1) == list
        };
        if let Some(entry) = self.ids.find(hash, is_it) {
            return entry.1;
        }
        let new = List(self.ends.len() as u32);
        self.elements.extend_from_slice(list);
        let end = self.elements.len();
        self.ends.push(u32::try_from(end).expect("memory runs out long before"));
        self.ids.insert_unique(hash, Entry(hash, new), |entry| entry.0);
        new
    }
}

fn elements<'a, T>(elements: &'a [T], ends: &[u32], list: List) -> &'a [T] {
    let index = list.0 as usize;
    let start = index.checked_sub(1).map_or(0, |before| ends[before]);
    &elements[start as usize..ends[index] as usize]
}
