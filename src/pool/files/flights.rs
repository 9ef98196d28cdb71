//! Work that several ask for at the same time is done once, and all get its result.
//!
//! The work goes on for as long as one of them waits for it; no lock is held meanwhile.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use parking_lot::Mutex;

/// Work left over by those who went away is looked for above so many.
const SWEEP_ABOVE: usize = 64;

type Work<V> = BoxFuture<'static, V>;

/// Work under way.
pub(super) struct Flights<K, V>(Arc<Mutex<HashMap<K, WeakShared<Work<V>>>>>)
where
    V: Clone;

impl<K, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// The result of the work that is under way for `key`, else of `work`, begun now.
    pub(super) fn join(
        &self,
        key: K,
        work: impl Future<Output = V> + Send + 'static,
    ) -> Shared<Work<V>> {
        let mut open = self.0.lock();
        if let Some(shared) = open.get(&key).and_then(WeakShared::upgrade) {
            return shared;
        }
        if open.len() > SWEEP_ABOVE {
            open.retain(|_, work| work.upgrade().is_some());
        }
        let (all, done) = (Arc::clone(&self.0), key.clone());
        let work = async move {
            let value = work.await;
            all.lock().remove(&done);
            value
        };
        let shared = work.boxed().shared();
        if let Some(weak) = shared.downgrade() {
            open.insert(key, weak);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn one_works_for_all_who_wait_and_later_ones_begin_anew() {
        let flights: Flights<u8, u32> = Flights::default();
        let (count, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let begin = || {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            flights.join(1, async move {
                gate.acquire().await.unwrap().forget();
                count.fetch_add(1, Relaxed) + 1
            })
        };
        let (a, b) = (begin(), begin());
        gate.add_permits(1);
        assert_eq!(tokio::join!(a, b), (1, 1));
        gate.add_permits(1);
        assert_eq!(begin().await, 2);
    }

    #[tokio::test]
    async fn work_that_all_gave_up_is_begun_anew() {
        let flights: Flights<u8, u32> = Flights::default();
        let never = flights.join(1, std::future::pending());
        drop(never);
        assert_eq!(flights.join(1, async { 7 }).await, 7);
        assert!(flights.0.lock().is_empty());
    }
}
