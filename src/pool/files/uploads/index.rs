//! Which names there are, what they hold and which go first: the books of the store. Pure.
//!
//! A blob lives as long as a name refers to it. Over the bounds of bytes and names the least
//! recently used names go, but never one that is pinned: an open job names it.

use std::collections::{BTreeSet, HashMap};

use super::Digest;
use crate::pool::files::place::{Folder, Place};

/// Names at most; a name costs a few hundred bytes of memory and a small file.
pub(super) const MAX_NAMES: usize = 100_000;
/// Victims looked for at a time.
const AT_ONCE: usize = 64;

/// What a name holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The content.
    pub(super) digest: Digest,
    /// Its bytes.
    pub(super) size: u64,
    /// Milliseconds since 1970 when the content came.
    pub(super) added_ms: u64,
    /// Milliseconds since 1970 of its last use.
    pub(super) used_ms: u64,
    /// What the disk knows of its last use.
    pub(super) noted_ms: u64,
}

/// What must be removed from the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Names.
    pub(super) names: Vec<Place>,
    /// Contents that no name refers to.
    pub(super) blobs: Vec<Digest>,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Place, Entry>,
    /// How many names refer to a content, and its bytes.
    blobs: HashMap<Digest, (usize, u64)>,
    /// The names by their last use.
    order: BTreeSet<(u64, Place)>,
    pins: HashMap<Place, usize>,
    bytes: u64,
}

impl Index {
    /// What a name holds.
    pub(super) fn get(&self, place: &Place) -> Option<&Entry> {
        self.entries.get(place)
    }

    /// Whether any name refers to a content.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Bytes of all contents.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that go with a name.
    pub(super) fn freed_with(&self, place: &Place) -> u64 {
        let entry = self.entries.get(place);
        let blob = entry.and_then(|entry| self.blobs.get(&entry.digest));
        blob.filter(|(names, _)| *names == 1).map_or(0, |(_, size)| *size)
    }

    /// The names of a folder, in no order.
    pub(super) fn names(&self, folder: Folder) -> impl Iterator<Item = (&Place, &Entry)> {
        self.entries.iter().filter(move |(place, _)| place.folder() == folder)
    }

    /// Enters a name, in place of what it held.
    pub(super) fn insert(&mut self, place: Place, entry: Entry) -> Gone {
        let mut gone = Gone::default();
        let blob = self.blobs.entry(entry.digest).or_insert((0, entry.size));
        blob.0 += 1;
        if blob.0 == 1 {
            self.bytes += entry.size;
        }
        self.order.insert((entry.used_ms, place.clone()));
        let used = entry.used_ms;
        if let Some(old) = self.entries.insert(place.clone(), entry) {
            if old.used_ms != used {
                self.order.remove(&(old.used_ms, place));
            }
            self.release(&old.digest, &mut gone);
        }
        gone
    }

    /// Takes a name out.
    pub(super) fn remove(&mut self, place: &Place) -> Gone {
        let mut gone = Gone::default();
        if let Some(entry) = self.entries.remove(place) {
            self.order.remove(&(entry.used_ms, place.clone()));
            gone.names.push(place.clone());
            self.release(&entry.digest, &mut gone);
        }
        gone
    }

    /// Notes a use of a name.
    pub(super) fn touch(&mut self, place: &Place, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(place)
            && entry.used_ms < now_ms
        {
            self.order.remove(&(entry.used_ms, place.clone()));
            entry.used_ms = now_ms;
            self.order.insert((now_ms, place.clone()));
        }
    }

    /// Notes that the disk knows of a use.
    pub(super) fn noted(&mut self, place: &Place, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.noted_ms = now_ms;
        }
    }

    /// Holds a name, which need not be there yet.
    pub(super) fn pin(&mut self, place: Place) {
        *self.pins.entry(place).or_default() += 1;
    }

    /// Lets go of a name.
    pub(super) fn unpin(&mut self, place: &Place) {
        if let Some(pins) = self.pins.get_mut(place) {
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(place);
            }
        }
    }

    /// Removes the least recently used names until at most `bytes` and `names` are left, or only
    /// pinned ones.
    pub(super) fn evict(&mut self, bytes: u64, names: usize) -> Gone {
        let mut gone = Gone::default();
        while !self.fits(bytes, names) {
            let free = self.order.iter().map(|(_, place)| place);
            let free = free.filter(|place| !self.pins.contains_key(place));
            let victims: Vec<Place> = free.take(AT_ONCE).cloned().collect();
            if victims.is_empty() {
                break;
            }
            for victim in victims {
                if !self.fits(bytes, names) {
                    let more = self.remove(&victim);
                    gone.names.extend(more.names);
                    gone.blobs.extend(more.blobs);
                }
            }
        }
        gone
    }

    /// Whether the bounds hold.
    pub(super) fn fits(&self, bytes: u64, names: usize) -> bool {
        self.bytes <= bytes && self.entries.len() <= names
    }

    fn release(&mut self, digest: &Digest, gone: &mut Gone) {
        let Some((names, size)) = self.blobs.get_mut(digest) else { return };
        *names -= 1;
        if *names == 0 {
            self.bytes -= *size;
            self.blobs.remove(digest);
            gone.blobs.push(*digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(name: &str) -> Place {
        Place::new(Folder::Input, "", name).unwrap()
    }

    fn entry(content: u8, size: u64, used_ms: u64) -> Entry {
        Entry { digest: Digest([content; 32]), size, added_ms: used_ms, used_ms, noted_ms: used_ms }
    }

    #[test]
    fn equal_contents_count_once_and_go_with_their_last_name() {
        let mut index = Index::default();
        index.insert(place("a"), entry(1, 10, 1));
        index.insert(place("b"), entry(1, 10, 2));
        assert_eq!(index.bytes(), 10);
        assert_eq!(index.remove(&place("a")).blobs, []);
        assert_eq!(index.remove(&place("b")).blobs, [Digest([1; 32])]);
        assert_eq!(index.bytes(), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_a_pinned_one_never() {
        let mut index = Index::default();
        for (name, content) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
            index.insert(place(name), entry(content, 10, u64::from(content)));
        }
        index.touch(&place("a"), 9);
        index.pin(place("b"));
        assert_eq!(index.evict(20, 10).names, [place("c"), place("d")]);
        assert_eq!(index.evict(0, 10).names, [place("a")]);
        assert!(!index.fits(0, 10), "what is pinned stays");
        index.unpin(&place("b"));
        assert_eq!(index.evict(0, 10).names, [place("b")]);
    }

    #[test]
    fn names_are_bounded_too() {
        let mut index = Index::default();
        for (name, used) in [("a", 3), ("b", 1), ("c", 2)] {
            index.insert(place(name), entry(1, 10, used));
        }
        let gone = index.evict(10, 1);
        assert_eq!((gone.names, gone.blobs), (vec![place("b"), place("c")], vec![]));
    }

    proptest! {
        #[test]
        fn the_books_agree_with_a_recount(
            steps in prop::collection::vec((0u8..4, 0u8..5, 0u8..5, 0u64..20), 0..60),
        ) {
            let mut index = Index::default();
            for (step, name, content, time) in steps {
                let name = place(&format!("n{name}"));
                match step {
                    0 => drop(index.insert(name, entry(content, u64::from(content) * 7, time))),
                    1 => drop(index.remove(&name)),
                    2 => index.touch(&name, time),
                    _ => drop(index.evict(time * 2, 3)),
                }
                let contents: HashMap<Digest, u64> =
                    index.entries.values().map(|entry| (entry.digest, entry.size)).collect();
                prop_assert_eq!(index.bytes(), contents.values().sum::<u64>());
                prop_assert_eq!(index.blobs.len(), contents.len());
                let order: BTreeSet<_> =
                    index.entries.iter().map(|(p, e)| (e.used_ms, p.clone())).collect();
                prop_assert_eq!(&index.order, &order);
            }
        }
    }
}
