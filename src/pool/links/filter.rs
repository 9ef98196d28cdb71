//! What of a companion socket goes on to its client. Pure.
//!
//! `ComfyUI`'s own events, previews and the queue's length come over the event sockets, to whom they
//! concern. The lines of the terminal pass at once. Anything else is a custom node's: addressed to
//! this client, or to everybody, which only the event sockets tell. So it is held for a moment, and
//! passes unless they heard the same.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Moment;
use crate::pool::events::{Heard, Kind};
use crate::pool::frame::Frame;

/// How much later a broadcast may come on an event socket.
const AFTER: Duration = Duration::from_millis(100);
/// Messages held at most, and bytes of them. What comes beyond is dropped: what is not known to be
/// private must not pass.
const MAX_FRAMES: usize = 1024;
const MAX_BYTES: usize = 64 << 20;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It goes to the client.
    Pass,
    /// It comes on another way, if at all.
    Drop,
    /// It has to be compared.
    Hold,
}

/// What becomes of a message of this kind.
pub(super) fn way(heard: &Heard<'_>) -> Way {
    match heard.kind {
        Kind::Logs => Way::Pass,
        Kind::Custom => Way::Hold,
        Kind::Status { .. }
        | Kind::FeatureFlags
        | Kind::Event
        | Kind::Preview
        | Kind::PreviewWithMetadata
        | Kind::Text => Way::Drop,
    }
}

#[derive(Debug)]
struct Waiting {
    frame: Frame,
    hash: u64,
    at: Moment,
}

/// Messages that are held.
#[derive(Debug, Default)]
pub(super) struct Filter {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl Filter {
    /// Holds a message.
    pub(super) fn hold(&mut self, frame: Frame, hash: u64, at: Moment) {
        let bytes = self.bytes + frame.bytes.len();
        if self.waiting.len() < MAX_FRAMES && bytes <= MAX_BYTES {
            self.bytes = bytes;
            self.waiting.push_back(Waiting { frame, hash, at });
        }
    }

    /// Takes out what has been held long enough and is not `known` for a broadcast, in order.
    pub(super) fn release(
        &mut self,
        now: Moment,
        known: impl Fn(u64, Moment) -> bool,
    ) -> Vec<Frame> {
        let mut passing = Vec::new();
        while self.next().is_some_and(|due| due <= now)
            && let Some(Waiting { frame, hash, at }) = self.waiting.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(frame.bytes.len());
            if !known(hash, at) {
                passing.push(frame);
            }
        }
        passing
    }

    /// When the next one has been held long enough.
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.front().map(|waiting| waiting.at.plus(AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use crate::pool::events::parse;

    fn text(text: &str) -> Frame {
        Frame { binary: false, bytes: text.to_owned().into() }
    }

    #[test]
    fn nothing_that_a_client_of_comfyui_was_recorded_to_hear_passes() {
        for scenario in conformance::scenarios().unwrap() {
            for frame in scenario.listeners().values().flatten() {
                let Some(value) = &frame.text else { continue };
                assert_eq!(way(&parse(&text(&value.to_string()))), Way::Drop, "{value}");
            }
        }
        for id in [1, 3, 4] {
            let frame = Frame { binary: true, bytes: vec![0, 0, 0, id, 0, 0].into() };
            assert_eq!(way(&parse(&frame)), Way::Drop);
        }
    }

    #[test]
    fn lines_of_the_terminal_pass_and_unknown_messages_are_held() {
        assert_eq!(way(&parse(&text(r#"{"type": "logs", "data": {}}"#))), Way::Pass);
        let unknown = [text(r#"{"type": "custom", "data": {}}"#), text("?")];
        for frame in unknown.into_iter().chain([Frame { binary: true, bytes: vec![9; 9].into() }]) {
            assert_eq!(way(&parse(&frame)), Way::Hold);
        }
    }

    #[test]
    fn what_is_held_passes_after_a_moment_in_order_unless_it_is_known() {
        let mut filter = Filter::default();
        for n in 0..5 {
            filter.hold(text(&n.to_string()), n, Moment(1000 + n));
        }
        assert_eq!(filter.next(), Some(Moment(1100)));
        assert!(filter.release(Moment(1099), |_, _| false).is_empty());
        let passed = filter.release(Moment(1102), |hash, at| {
            assert_eq!(at, Moment(1000 + hash));
            hash == 1
        });
        assert_eq!(passed, [text("0"), text("2")]);
        assert_eq!(filter.release(Moment(9999), |_, _| false).len(), 2);
        assert_eq!((filter.next(), filter.bytes), (None, 0));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut filter = Filter::default();
        for _ in 0..2 * MAX_FRAMES {
            filter.hold(text("x"), 0, Moment(1));
        }
        assert_eq!(filter.waiting.len(), MAX_FRAMES);
        let mut filter = Filter::default();
        filter.hold(Frame { binary: true, bytes: vec![0; MAX_BYTES].into() }, 0, Moment(1));
        filter.hold(text("x"), 0, Moment(1));
        assert_eq!(filter.waiting.len(), 1);
    }
}
