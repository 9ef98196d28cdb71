//! What one caller may hand in (`limits.per_user`): so many prompts a minute, and so many that wait.
//!
//! A prompt whose verdict is still out counts as one that waits, so that many at once are not all
//! let in. What was handed in before and is only asked for again does not count.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::super::Pool;
use super::super::allowance::Allowances;
use super::super::job::JobId;
use crate::clock::Moment;
use crate::identity::ClientKey;
use crate::rejection::{Kind, Rejection};

/// What callers have handed in.
#[derive(Debug, Default)]
pub(crate) struct PerUser {
    rates: Mutex<Allowances>,
    /// Jobs whose verdict is out: as many as there are such requests.
    judged: Mutex<HashMap<ClientKey, Vec<JobId>>>,
}

/// Counts a job as one that is being judged.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a PerUser,
    caller: ClientKey,
    job: JobId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut judged = self.of.judged.lock();
        if let Some(jobs) = judged.get_mut(&self.caller) {
            jobs.retain(|job| *job != self.job);
            if jobs.is_empty() {
                judged.remove(&self.caller);
            }
        }
    }
}

impl Pool {
    /// Lets a caller hand in a job, or says when it may.
    pub(super) fn admit(&self, caller: ClientKey, job: JobId) -> Result<Turn<'_>, Rejection> {
        let limits = self.config.load().limits.per_user;
        let turn = self.take_turn(caller, job, limits.queued)?;
        let taken =
            self.per_user.rates.lock().take(caller, limits.prompts_per_minute, Moment::now());
        match taken {
            Ok(()) => Ok(turn),
            Err(wait) => Err(refused(
                format!("only {} prompts may be queued in a minute", limits.prompts_per_minute),
                wait.as_secs_f64().ceil() as u32,
            )),
        }
    }

    fn take_turn(&self, caller: ClientKey, job: JobId, most: usize) -> Result<Turn<'_>, Rejection> {
        let mut judged = self.per_user.judged.lock();
        let jobs = judged.entry(caller).or_default();
        if most > 0 {
            let core = self.core.lock();
            let out = jobs.iter().filter(|job| core.get(**job).is_none()).count();
            if core.queued_of(caller) + out >= most {
                drop(core);
                if jobs.is_empty() {
                    judged.remove(&caller);
                }
                let message = format!("{most} of your prompts wait, and no more may");
                return Err(refused(message, self.drains_in()));
            }
        }
        jobs.push(job);
        Ok(Turn { of: &self.per_user, caller, job })
    }
}

fn refused(message: String, seconds: u32) -> Rejection {
    Rejection::new(Kind::RateLimited, message).cure("try again later").retry_after(seconds.max(1))
}
