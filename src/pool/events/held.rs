//! Events of prompts that nobody knows yet.
//!
//! A server before 0.3.45 mints its own ids, and its events may come before its reply to the POST:
//! so the last few of them are kept until the id is claimed. Those of prompts that strangers posted
//! there are forgotten the same way they came.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::Flavour;
use crate::clock::Moment;
use crate::pool::frame::Frame;

/// Messages kept at most, and bytes of them. A prompt that ends before its reply is read has some
/// thirty small ones.
const MAX_FRAMES: usize = 64;
const MAX_BYTES: usize = 1 << 20;
/// A reply that takes longer does not come.
const KEPT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Entry {
    prompt_id: Box<str>,
    flavour: Flavour,
    frame: Frame,
    at: Moment,
}

/// The last events of unknown prompts.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Held {
    /// Keeps a message, for which older ones may have to go.
    pub(super) fn keep(&mut self, flavour: Flavour, prompt_id: &str, frame: &Frame, now: Moment) {
        if frame.bytes.len() + prompt_id.len() > MAX_BYTES {
            return;
        }
        // A copy: the original may be a slice of a much larger buffer.
        let bytes = Bytes::copy_from_slice(&frame.bytes);
        let frame = Frame { binary: frame.binary, bytes };
        self.bytes += frame.bytes.len() + prompt_id.len();
        self.entries.push_back(Entry { prompt_id: prompt_id.into(), flavour, frame, at: now });
        while self.entries.len() > MAX_FRAMES || self.bytes > MAX_BYTES {
            self.drop_oldest();
        }
        while self.entries.front().is_some_and(|entry| now.since(entry.at) > KEPT) {
            self.drop_oldest();
        }
    }

    /// Takes out what came of a prompt, in order.
    pub(super) fn claim(&mut self, prompt_id: &str) -> Vec<(Flavour, Frame)> {
        let all = std::mem::take(&mut self.entries);
        let (claimed, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|entry| &*entry.prompt_id == prompt_id);
        self.entries = rest.into();
        self.bytes = self.entries.iter().map(Entry::size).sum();
        claimed.into_iter().map(|entry| (entry.flavour, entry.frame)).collect()
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(entry.size());
        }
    }
}

impl Entry {
    fn size(&self) -> usize {
        self.frame.bytes.len() + self.prompt_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        Frame { binary: false, bytes: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn what_is_claimed_comes_in_order_and_once() {
        let mut held = Held::default();
        for (id, word) in [("a", b"1"), ("b", b"2"), ("a", b"3")] {
            held.keep(Flavour::Plain, id, &frame(word), Moment(1));
        }
        let claimed = held.claim("a");
        assert_eq!(claimed.iter().map(|(_, f)| &f.bytes[..]).collect::<Vec<_>>(), [b"1", b"3"]);
        assert!(held.claim("a").is_empty());
        assert_eq!(held.claim("b").len(), 1);
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn it_is_bounded_in_number_bytes_and_age() {
        let mut held = Held::default();
        for _ in 0..1000 {
            held.keep(Flavour::Flags, "a", &frame(&vec![0; 100_000]), Moment(1));
        }
        assert!(held.bytes <= MAX_BYTES);
        for _ in 0..1000 {
            held.keep(Flavour::Flags, "a", &frame(&[0]), Moment(1));
        }
        assert_eq!(held.entries.len(), MAX_FRAMES);
        held.keep(Flavour::Flags, "a", &frame(&vec![0; MAX_BYTES]), Moment(1));
        held.keep(Flavour::Flags, "a", &frame(&[0]), Moment(20_000));
        assert_eq!(held.claim("a").len(), 1);
    }
}
