//! One socket per backend and sid at a time.
//!
//! A new socket must not be opened before the old one under its sid has ended, or the old one's end
//! takes the new one's registration with it. Where one task follows another (a page that comes back,
//! a backend that is removed and added again) the second waits here for the first.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::backend::BackendId;

/// Turns that are taken or waited for.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Place, Weak<Turn<()>>>>);

type Place = (BackendId, Box<str>);

impl Turns {
    /// Waits until nobody else has this sid there; it is the caller's until the guard is dropped.
    pub(super) async fn take(&self, backend: BackendId, sid: &str) -> OwnedMutexGuard<()> {
        self.turn(backend, sid).lock_owned().await
    }

    fn turn(&self, backend: BackendId, sid: &str) -> Arc<Turn<()>> {
        let mut turns = self.0.lock();
        let key = (backend, Box::from(sid));
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        // Those that nobody holds or waits for go when the table would grow.
        if turns.len() == turns.capacity() {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(Turn::new(()));
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sid_is_had_by_one_at_a_time_at_each_backend() {
        let turns = Turns::default();
        let first = turns.take(BackendId(1), "a").await;
        let _elsewhere = turns.take(BackendId(2), "a").await;
        let mut second = Box::pin(turns.take(BackendId(1), "a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let _second = second.await;
    }

    #[test]
    fn turns_that_nobody_wants_are_forgotten() {
        let turns = Turns::default();
        for n in 0..10_000 {
            turns.turn(BackendId(0), &n.to_string());
        }
        assert!(turns.0.lock().len() < 100);
    }
}
