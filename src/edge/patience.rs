//! How long a peer may take: a credit of time, used up while it is waited for and earned back by
//! the bytes that come.
//!
//! A full credit is `limits.body_timeout` (or `write_timeout`); each `body_rate` bytes give a second
//! back, up to the full. So a peer may stall for that long in all, and one that goes on at less
//! than the rate is cut when its credit is gone, however evenly it drips. Only time in which the
//! gateway itself waits counts: a slow backend uses up nobody's credit.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A peer's credit.
#[derive(Debug)]
pub(super) struct Patience {
    full: Duration,
    rate: u64,
    credit: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patience {
    /// A full credit. A rate of 0 gives all of it back for any byte.
    pub(super) fn new(full: Duration, rate: u64) -> Self {
        Self { full, rate, credit: full, waiting: None }
    }

    /// Counts what a read or a write came to: ready with so many bytes, or the beginning or going
    /// on of a wait, which fails when the credit is gone.
    pub(super) fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Ok(done)) => {
                self.earned(bytes(&done) as u64);
                Poll::Ready(Ok(done))
            }
            Poll::Ready(failed) => Poll::Ready(failed),
            Poll::Pending => self.wait(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }

    fn earned(&mut self, bytes: u64) {
        if let Some((since, _)) = self.waiting.take() {
            self.credit = self.credit.saturating_sub(since.elapsed());
        }
        let back = match self.rate {
            0 if bytes > 0 => self.full,
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
        };
        self.credit = self.credit.saturating_add(back).min(self.full);
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let credit = self.credit;
        let (_, timer) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(now + credit)))
        });
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Lets a peer send `bytes` every `pause`, and says how many came before it was cut.
    async fn sent(full: u64, rate: u64, bytes: usize, pause: f64, most: usize) -> usize {
        let mut patience = Patience::new(Duration::from_secs(full), rate);
        for count in 0..most {
            let mut next = Box::pin(tokio::time::sleep(Duration::from_secs_f64(pause)));
            let read = poll_fn(|cx| {
                let read = next.as_mut().poll(cx).map(|()| Ok(bytes));
                patience.judge(cx, read, |bytes| *bytes)
            });
            if read.await.is_err() {
                return count;
            }
        }
        most
    }

    #[tokio::test(start_paused = true)]
    async fn who_drips_is_cut_and_who_is_slow_but_steady_is_not() {
        assert_eq!(sent(30, 512, 1, 10.0, 1000).await, 3, "a byte now and then");
        assert!(sent(30, 512, 400, 1.0, 1000).await < 150, "below the rate");
        assert_eq!(sent(30, 512, 600, 1.0, 1000).await, 1000, "above it");
        assert_eq!(sent(30, 512, 30_000, 29.0, 100).await, 100, "long pauses, much between them");
        assert_eq!(sent(30, 512, 1 << 20, 31.0, 10).await, 0, "too long a pause");
        assert_eq!(sent(30, 0, 1, 29.0, 100).await, 100, "without a rate only pauses count");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_waits_does_not_count() {
        let mut patience = Patience::new(Duration::from_secs(30), 512);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(100)).await;
            let read = poll_fn(|cx| patience.judge(cx, Poll::Ready(Ok(1)), |bytes| *bytes));
            read.await.unwrap();
        }
    }
}
