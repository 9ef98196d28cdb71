//! The farm's `status`, written once for all sockets.
//!
//! Each change is rendered once and kept in a short list that all sockets share; a socket knows how
//! far it has read. One that keeps up sends every change, the repeated ones too, as `ComfyUI` does;
//! one that is behind, or has sent too many lately, sends the newest alone. So a change costs as
//! many wake-ups as there are sockets, and nothing is queued for any of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::words;
use crate::clock::Moment;
use crate::pool::frame::Frame;

/// Changes that are kept for sockets that read them one by one.
const RECENT: usize = 16;
/// Changes that a socket may send at once.
const BURST: u32 = 16;
/// After that it sends the newest one every so often.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Recent {
    queue_remaining: u64,
    /// The number of the newest.
    number: u64,
    frames: VecDeque<Frame>,
}

/// What all sockets read.
#[derive(Debug)]
pub(super) struct Board {
    recent: Mutex<Recent>,
    changes: watch::Sender<u64>,
}

impl Board {
    pub(super) fn new() -> Arc<Self> {
        let recent = Recent { queue_remaining: 0, number: 0, frames: VecDeque::new() };
        Arc::new(Self { recent: Mutex::new(recent), changes: watch::Sender::new(0) })
    }

    /// A change, or a repetition, for everybody.
    pub(super) fn publish(&self, queue_remaining: u64) {
        let frame = words::status(queue_remaining);
        let mut recent = self.recent.lock();
        recent.queue_remaining = queue_remaining;
        recent.number += 1;
        if recent.frames.len() == RECENT {
            recent.frames.pop_front();
        }
        recent.frames.push_back(frame);
        let number = recent.number;
        drop(recent);
        self.changes.send_if_modified(|newest| {
            let newer = number > *newest;
            *newest = number.max(*newest);
            newer
        });
    }

    /// The newest value, and a reader of what comes after it.
    pub(super) fn subscribe(self: &Arc<Self>, now: Moment) -> (u64, Reader) {
        let changes = self.changes.subscribe();
        let recent = self.recent.lock();
        let board = Arc::clone(self);
        let reader = Reader { board, changes, read: recent.number, tokens: BURST, counted: now };
        (recent.queue_remaining, reader)
    }
}

/// How far a socket has read.
#[derive(Debug)]
pub(super) struct Reader {
    board: Arc<Board>,
    changes: watch::Receiver<u64>,
    read: u64,
    tokens: u32,
    counted: Moment,
}

impl Reader {
    /// The next frame to send, if there is one and it may be sent now.
    pub(super) fn next(&mut self, now: Moment) -> Option<Frame> {
        if *self.changes.borrow_and_update() <= self.read {
            return None;
        }
        self.refill(now);
        if self.tokens == 0 {
            return None;
        }
        let recent = self.board.recent.lock();
        let behind = recent.number.saturating_sub(self.read) as usize;
        let too_far = behind > recent.frames.len() || behind > self.tokens as usize;
        let back = if too_far { 1 } else { behind };
        let frame = recent.frames.len().checked_sub(back).and_then(|at| recent.frames.get(at));
        self.read = recent.number - (back as u64).saturating_sub(1);
        self.tokens -= 1;
        frame.cloned()
    }

    /// How long to wait before [`next`](Self::next) has something that is held back now.
    pub(super) fn held_back(&self, now: Moment) -> Option<Duration> {
        let waits = *self.changes.borrow() > self.read;
        waits.then(|| PAUSE.saturating_sub(now.since(self.counted)))
    }

    /// Resolves at the next change; never when there will be none.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn refill(&mut self, now: Moment) {
        let pauses = now.since(self.counted).as_millis() / PAUSE.as_millis();
        if pauses > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(pauses.min(100) as u32));
            self.counted = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(reader: &mut Reader, now: Moment) -> Vec<Frame> {
        std::iter::from_fn(|| reader.next(now)).collect()
    }

    #[test]
    fn a_socket_that_keeps_up_sends_every_change_and_every_repetition() {
        let board = Board::new();
        board.publish(7);
        let now = Moment(1000);
        let (newest, mut reader) = board.subscribe(now);
        assert_eq!(newest, 7);
        assert!(sent(&mut reader, now).is_empty());
        for n in [1, 1, 2] {
            board.publish(n);
        }
        let frames = [1, 1, 2].map(words::status);
        assert_eq!(sent(&mut reader, now), frames);
        assert!(sent(&mut reader, now).is_empty());
    }

    #[test]
    fn one_that_is_behind_sends_the_newest() {
        let board = Board::new();
        let (_, mut reader) = board.subscribe(Moment(0));
        (0..1000).for_each(|n| board.publish(n));
        assert_eq!(sent(&mut reader, Moment(0)), [words::status(999)]);
    }

    #[test]
    fn many_changes_are_sent_at_a_pace_and_the_last_one_always() {
        let board = Board::new();
        let (_, mut reader) = board.subscribe(Moment(0));
        let mut frames = Vec::new();
        for n in 0..10_000 {
            board.publish(n);
            frames.extend(sent(&mut reader, Moment(n)));
        }
        assert!(reader.held_back(Moment(9_999)).is_some());
        let soon = Moment(9_999).plus(reader.held_back(Moment(9_999)).unwrap());
        frames.extend(sent(&mut reader, soon));
        assert!((50..80).contains(&frames.len()), "{}", frames.len());
        assert_eq!(frames.last(), Some(&words::status(9_999)));
        assert_eq!(reader.held_back(soon), None);
    }
}
