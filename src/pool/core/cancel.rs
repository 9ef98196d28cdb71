//! An owner's wish to stop a job, acted on as soon as it is known where the job is.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Life;
use super::timers::Timer;
use super::{Action, Core, Outcome};
use crate::pool::job::JobId;

/// An interrupt sent while a prompt is taken from the queue is lost: it is sent again.
const REPEAT: Duration = Duration::from_secs(1);

impl Core {
    /// The owner wants a job stopped.
    pub(super) fn cancel(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.cancelled {
            return;
        }
        entry.cancelled = true;
        if self.line.contains(id) {
            self.end(id, Outcome::Cancelled, None);
        } else {
            self.mark(id);
            self.pursue_cancel(id);
        }
    }

    /// Whoever runs is to be stopped. A job that was handed to a server and has not begun is
    /// interrupted when it does: taken back it would end without a word.
    pub(super) fn interrupt(&mut self, id: JobId) {
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut());
        match place {
            Some(place) if place.life == Life::Sent => place.stop = !place.vetting,
            Some(_) => self.cancel(id),
            None => {}
        }
    }

    /// Does what can be done now to stop a cancelled job.
    pub(super) fn pursue_cancel(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id).filter(|e| e.cancelled && e.accepted) else {
            return;
        };
        let Some(place) = entry.place.as_ref().filter(|place| place.doubtful.is_none()) else {
            return;
        };
        match place.life {
            Life::Sent => self.take_back(id),
            Life::Running => {
                let (job, backend) = (Arc::clone(&entry.job), place.lane);
                self.out.push(Action::Interrupt { job, backend });
                self.wake(REPEAT, Timer::Interrupt(id));
            }
            Life::Ending => {}
        }
    }
}
