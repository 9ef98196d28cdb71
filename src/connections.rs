//! How many requests and WebSockets a backend holds at once, and the most it may.
//!
//! Each takes a connection to it. A backend that hangs collects them; without a bound it would take
//! the gateway's memory and descriptors along, and everybody else's service with them. One more than
//! `backends[].max_connections` is answered 503 at once: a queue in the gateway would only hide it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts the connections in use to one backend.
#[derive(Debug, Default)]
pub struct Connections(AtomicU32);

impl Connections {
    /// How many are in use.
    pub fn count(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// One more, unless there are `most`; it counts until the guard is dropped.
    #[must_use = "the connection counts only while the guard lives"]
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Connection> {
        let one_more = |count: u32| (count < most).then(|| count + 1);
        self.0.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Connection(Arc::clone(self)))
    }
}

/// A connection in use.
#[derive(Debug)]
pub struct Connection(Arc<Connections>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_most_and_what_ends_makes_room() {
        let connections = Arc::new(Connections::default());
        let mut held: Vec<_> = (0..5).map_while(|_| connections.take(3)).collect();
        assert_eq!((held.len(), connections.count()), (3, 3));
        held.pop();
        assert!(connections.take(3).is_some(), "and given back at once");
        drop(held);
        assert_eq!(connections.count(), 0);
    }
}
