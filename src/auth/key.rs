//! API keys: 256 random bits, of which the configuration has the SHA-256.
//!
//! A fast hash is right here, unlike for passwords: nobody guesses 256 random bits, however many
//! hashes a second they compute, and a slow one would let anybody keep the gateway busy with
//! wrong keys. The hash is also what makes the time of a lookup say nothing: a key that is wrong in
//! its last character has as different a hash as one that is wrong in all of them. The table is
//! hashed with a secret of the process, and what it finds is compared in constant time.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::rate::Bucket;
use super::rules::Rule;
use crate::affinity::Seconds;
use crate::config::ApiKey;

/// What every key begins with, so that people and scanners for secrets know one.
pub const PREFIX: &str = "cg_";
/// Random bytes of a key.
const BYTES: usize = 32;
/// Characters of a key.
pub const LENGTH: usize = PREFIX.len() + 43;
/// What the hash in the configuration begins with.
const SCHEME: &str = "sha256:";

/// A key's hash.
pub type Hash = [u8; 32];

/// A new key.
pub fn new() -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; BYTES]>()))
}

/// The hash of what was shown as a key.
pub fn hash(shown: &[u8]) -> Hash {
    Sha256::digest(shown).into()
}

/// A hash as the configuration has it.
pub fn show_hash(hash: &Hash) -> String {
    format!("{SCHEME}{}", hex::encode(hash))
}

/// The hash that the configuration means.
pub fn read_hash(text: &str) -> Option<Hash> {
    hex::decode(text.strip_prefix(SCHEME)?).ok()?.try_into().ok()
}

/// Whether a text holds what looks like a key of ours.
pub fn is_in(text: &str) -> bool {
    find(text).is_some()
}

/// The text with all that looks like a key made unreadable.
pub fn masked(text: &str) -> std::borrow::Cow<'_, str> {
    let Some(first) = find(text) else { return text.into() };
    let mut masked = String::with_capacity(text.len());
    let (mut rest, mut at) = (text, Some(first));
    while let Some(start) = at {
        let (before, behind) = rest.split_at(start + PREFIX.len());
        masked.push_str(before);
        masked.push_str("MASKED");
        let end = behind.find(|c: char| !is_key_char(c)).unwrap_or(behind.len());
        rest = &behind[end..];
        at = find(rest);
    }
    masked.push_str(rest);
    masked.into()
}

fn is_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Where something like a key begins; a bit less than a whole one is enough.
fn find(text: &str) -> Option<usize> {
    let long = |(at, _): &(usize, &str)| {
        let behind = &text[at + PREFIX.len()..];
        behind.chars().take_while(|c| is_key_char(*c)).count() + PREFIX.len() >= LENGTH - 3
    };
    text.match_indices(PREFIX).find(long).map(|(at, _)| at)
}

/// A key that is configured.
#[derive(Debug)]
pub struct Key {
    /// Its name: the caller's.
    pub name: String,
    /// Its hash.
    pub hash: Hash,
    /// When it ends.
    pub expires: Option<Seconds>,
    /// The routes it is for; none: every one.
    pub routes: Vec<Rule>,
    /// Whether it has the admin right.
    pub admin: bool,
    /// What is left of its rate.
    pub bucket: Option<Arc<Bucket>>,
}

impl Key {
    /// Whether its time is over.
    pub fn is_expired(&self, now: Seconds) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// The keys that are configured, by hash.
#[derive(Debug, Default)]
pub struct Keys(HashMap<Hash, Arc<Key>>);

impl Keys {
    /// The keys of a configuration. What an old table counted of a key's rate goes on.
    pub fn new(keys: &[ApiKey], old: Option<&Self>) -> Self {
        let key = |key: &ApiKey| {
            let known = old.and_then(|old| old.0.get(&key.hash)?.bucket.clone());
            let bucket = key.rate.map(|rate| {
                known.filter(|b| b.rate() == rate).unwrap_or_else(|| Arc::new(Bucket::new(rate)))
            });
            let made = Key {
                name: key.name.clone(),
                hash: key.hash,
                expires: key.expires.map(Seconds),
                routes: key.routes.clone(),
                admin: key.admin,
                bucket,
            };
            (key.hash, Arc::new(made))
        };
        Self(keys.iter().map(key).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that is shown.
    pub fn find(&self, shown: &[u8]) -> Option<&Arc<Key>> {
        self.of_hash(&hash(shown))
    }

    /// The key of a hash.
    pub fn of_hash(&self, hash: &Hash) -> Option<&Arc<Key>> {
        self.0.get(hash).filter(|key| key.hash.ct_eq(hash).into())
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    fn keys(shown: &[String]) -> Keys {
        let key = |shown: &String| ApiKey {
            name: shown.clone(),
            hash: hash(shown.as_bytes()),
            expires: None,
            rate: None,
            routes: Vec::new(),
            admin: false,
        };
        Keys::new(&shown.iter().map(key).collect::<Vec<_>>(), None)
    }

    #[test]
    fn a_key_is_found_by_itself_alone() {
        let (one, other) = (new(), new());
        let keys = keys(&[one.clone(), other]);
        assert_eq!(one.len(), LENGTH);
        assert_eq!(keys.find(one.as_bytes()).unwrap().name, one);
        for wrong in [&one[..LENGTH - 1], &one.to_uppercase(), "", &format!("{one}A"), &new()] {
            assert!(keys.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        let told = show_hash(&hash(one.as_bytes()));
        assert_eq!(read_hash(&told), Some(hash(one.as_bytes())));
        assert_eq!(read_hash(&told[7..]), None);
        assert!(!told.contains(&one));
    }

    /// How the hash of a nearly right key differs from the right one: as that of any other.
    #[test]
    fn the_hash_tells_nothing_of_how_wrong_a_key_is() {
        let right = new();
        let bits = |wrong: &str| -> u32 {
            let (a, b) = (hash(right.as_bytes()), hash(wrong.as_bytes()));
            a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
        };
        let near = (0..43).map(|place| {
            let mut wrong = right.clone().into_bytes();
            let at = PREFIX.len() + place;
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            bits(&String::from_utf8(wrong).unwrap())
        });
        let near: Vec<u32> = near.collect();
        // 256 bits, each equal by chance: 128 ± 8; six deviations on either side.
        assert!(near.iter().all(|bits| (80..=176).contains(bits)), "{near:?}");
    }

    /// The median time of many turns, for keys that differ early and late from the right one, taken
    /// in turns so that what else the machine does falls on both.
    fn medians(right: &str, is_right: impl Fn(&[u8]) -> bool) -> (f64, f64) {
        let mut early = right.to_owned().into_bytes();
        let mut late = early.clone();
        let change = |byte: &mut u8| *byte = if *byte == b'A' { b'B' } else { b'A' };
        change(&mut early[PREFIX.len()]);
        change(&mut late[LENGTH - 1]);
        let mut times = (Vec::new(), Vec::new());
        for turn in 0..1000 {
            let (wrong, times) =
                if turn % 2 == 0 { (&early, &mut times.0) } else { (&late, &mut times.1) };
            let start = Instant::now();
            for _ in 0..16 {
                assert!(!is_right(black_box(wrong)));
            }
            times.push(start.elapsed().as_nanos() as f64);
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        (median(times.0), median(times.1))
    }

    /// The control shows that the measurement would see a comparison that ends at the first
    /// difference.
    #[test]
    fn the_time_of_a_wrong_key_does_not_tell_how_wrong_it_is() {
        let right = new();
        let keys = keys(std::slice::from_ref(&right));
        let apart = |(early, late): (f64, f64)| (late - early).abs() / early.min(late);
        let naive = |wrong: &[u8]| {
            black_box(right.as_bytes()).iter().zip(wrong).all(|(a, b)| black_box(a) == b)
        };
        // What else runs on the machine may disturb one measurement, hardly five.
        let best = |is_right: &dyn Fn(&[u8]) -> bool| {
            (0..5).map(|_| apart(medians(&right, is_right))).fold(f64::INFINITY, f64::min)
        };
        let (ours, control) = (best(&|wrong| keys.find(wrong).is_some()), best(&naive));
        assert!(control > 0.5, "the measurement sees nothing: {control}");
        assert!(ours < 0.05, "early and late differ by {ours}");
    }

    #[test]
    fn keys_do_not_show_in_logged_addresses() {
        let key = new();
        assert_eq!(masked(&format!("/ws?key={key}&x=1")), "/ws?key=cg_MASKED&x=1");
        let twice = format!("{key}?{key}");
        assert_eq!(masked(&twice), "cg_MASKED?cg_MASKED");
        for harmless in ["/view?filename=cg_a.png", "/", "cg_", "é cg_é"] {
            assert_eq!(masked(harmless), harmless);
            assert!(!is_in(harmless));
        }
        assert!(is_in(&format!("/x?k={key}")));
    }
}
