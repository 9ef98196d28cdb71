//! A set of lanes, by their slots.

/// A set of small numbers as bits. Equal sets compare and hash equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LaneSet(Vec<u64>);

impl LaneSet {
    /// Adds a lane.
    pub fn insert(&mut self, lane: usize) {
        let word = lane / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (lane % 64);
    }

    /// Takes a lane out.
    pub fn remove(&mut self, lane: usize) {
        if let Some(word) = self.0.get_mut(lane / 64) {
            *word &= !(1 << (lane % 64));
        }
        self.trim();
    }

    /// Whether a lane is in it.
    pub fn contains(&self, lane: usize) -> bool {
        self.0.get(lane / 64).is_some_and(|word| word & (1 << (lane % 64)) != 0)
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a lane is in both.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect());
        both.trim();
        both
    }

    /// What is in this and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let there = |word: usize| other.0.get(word).copied().unwrap_or(0);
        let mut rest = Self(self.0.iter().enumerate().map(|(n, a)| a & !there(n)).collect());
        rest.trim();
        rest
    }

    /// The lanes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let lanes = |n: usize, word: u64| {
            (0..64).filter(move |b| word & (1 << b) != 0).map(move |b| n * 64 + b)
        };
        self.0.iter().enumerate().flat_map(move |(n, &word)| lanes(n, word))
    }

    /// Without empty words at the end, so that equal sets are equal vectors.
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }
}

impl Extend<usize> for LaneSet {
    fn extend<I: IntoIterator<Item = usize>>(&mut self, lanes: I) {
        lanes.into_iter().for_each(|lane| self.insert(lane));
    }
}

impl FromIterator<usize> for LaneSet {
    fn from_iter<I: IntoIterator<Item = usize>>(lanes: I) -> Self {
        let mut set = Self::default();
        set.extend(lanes);
        set
    }
}
