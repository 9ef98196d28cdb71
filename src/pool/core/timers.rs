//! When to look again. A timer that fires checks for itself whether it still matters, so that none
//! has to be called off.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Core;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::job::JobId;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A client has waited long enough for a verdict.
    Patience(JobId),
    /// A POST was not answered for long.
    Slow(JobId),
    /// A job is to be asked about again.
    Ask(JobId),
    /// A backend has had its time to come back with a job.
    Doubt(JobId),
    /// A cancelled job may still run.
    Interrupt(JobId),
    /// A running job may show no life.
    Silence(JobId),
    /// A job may go again to a lane that it kept from.
    Retry(JobId),
    /// A stray is to be looked after.
    Stray(BackendId, JobId),
    /// A running prompt is about to end.
    Ripe(BackendId),
    /// The lanes' queues should have been read by now.
    Settle,
}

/// The timers that are set.
#[derive(Default)]
pub(super) struct Timers(BTreeSet<(Moment, Timer)>);

impl Timers {
    pub(super) fn set(&mut self, at: Moment, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(super) fn next(&self) -> Option<Moment> {
        self.0.first().map(|(at, _)| *at)
    }

    fn due(&mut self, now: Moment) -> Option<Timer> {
        let (at, timer) = *self.0.first()?;
        (at <= now).then(|| {
            self.0.pop_first();
            timer
        })
    }
}

impl Core {
    /// Sets a timer, always ahead of now, so that looking never goes round in circles.
    pub(super) fn wake(&mut self, after: Duration, timer: Timer) {
        let after = after.max(Duration::from_millis(1));
        self.timers.set(self.now.plus(after), timer);
    }

    /// Sets a timer for a moment.
    pub(super) fn wake_at(&mut self, at: Moment, timer: Timer) {
        self.wake(at.since(self.now), timer);
    }

    /// Looks at everything whose time has come. One set meanwhile lies ahead.
    pub(super) fn tick(&mut self) {
        while let Some(timer) = self.timers.due(self.now) {
            match timer {
                Timer::Patience(id) => self.out_of_patience(id),
                Timer::Slow(id) => self.slow(id),
                Timer::Ask(id) => self.ask(id),
                Timer::Doubt(id) => self.doubted_for_long(id),
                Timer::Interrupt(id) => self.pursue_cancel(id),
                Timer::Silence(id) => self.listen(id),
                Timer::Retry(id) => self.reclass(id),
                Timer::Stray(backend, id) => self.look_after_stray(backend, id),
                Timer::Ripe(backend) => self.ripen(backend),
                Timer::Settle => self.settling = None,
            }
        }
    }
}
