//! Giving journal and sids to a successor, and taking them back when it fails.
//!
//! From [`Pool::release`] on nothing is decided here: new prompts wait (for [`HELD`] at most), what
//! the core would hear is kept for it, and history is read from memory as far as it is there. After
//! [`Pool::reclaim`] all of that goes on; after [`Pool::gone`] those who wait are told to come again,
//! to the successor then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Pool;
use super::core::Input;
use super::journal::JournalError;
use super::own::prompt::Answer;
use crate::rejection::{Kind, Rejection};

/// How long a prompt waits for the end of an upgrade.
const HELD: Duration = Duration::from_secs(30);
/// How long verdicts that are out are waited for.
const VERDICTS: Duration = Duration::from_secs(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Inputs kept for the core; each is the answer to a question of its own, or an event.
const MAX_INPUTS: usize = 100_000;

/// Who has journal and sids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    /// This process.
    Here,
    /// Nobody, or a successor that may fail.
    Released,
    /// A successor.
    Gone,
}

impl Pool {
    /// Closes journal and event sockets, so that a successor can open them.
    pub async fn release(self: &Arc<Self>) {
        self.tenure.send_replace(Tenure::Released);
        let all_judged = async {
            while !self.verdicts.lock().is_empty() {
                sleep(PAUSE).await;
            }
        };
        let _ = timeout(VERDICTS, all_judged).await;
        let unjudged: Vec<_> = self.verdicts.lock().keys().copied().collect();
        unjudged.into_iter().for_each(|id| self.tell(Input::Abandon(id)));
        {
            let _core = self.core.lock();
            *self.frozen.lock() = Some(Vec::new());
        }
        self.close().await;
    }

    /// Opens them again.
    pub async fn reclaim(self: &Arc<Self>) -> Result<(), JournalError> {
        let pool = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || pool.journal.reopen()).await;
        opened.map_err(|error| JournalError::Closed(error.to_string()))??;
        let held = {
            let _core = self.core.lock();
            self.frozen.lock().take().unwrap_or_default()
        };
        held.into_iter().for_each(|input| self.tell(input));
        self.read.lock().clear();
        self.links.reopen_all();
        self.tenure.send_replace(Tenure::Here);
        Ok(())
    }

    /// A successor has them: who waits is told so.
    pub fn gone(&self) {
        self.tenure.send_replace(Tenure::Gone);
        for (_, waits) in self.verdicts.lock().drain() {
            let _ = waits.send(Answer::Refused(come_again()));
        }
    }

    /// Waits while it is not clear who takes new prompts.
    pub(super) async fn is_here(&self) -> Result<(), Rejection> {
        let mut tenure = self.tenure.subscribe();
        let known = timeout(HELD, tenure.wait_for(|tenure| *tenure != Tenure::Released)).await;
        match known {
            Ok(Ok(tenure)) if *tenure == Tenure::Here => Ok(()),
            _ => Err(come_again()),
        }
    }

    /// Waits until this process has its jobs, for ever when a successor has them.
    pub(super) async fn until_here(&self) {
        let mut tenure = self.tenure.subscribe();
        if tenure.wait_for(|tenure| *tenure == Tenure::Here).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps an input for later when nothing may be decided. To be called with the core locked.
    pub(super) fn keep_for_later(&self, input: Input) -> Option<Input> {
        let mut frozen = self.frozen.lock();
        let Some(kept) = frozen.as_mut() else { return Some(input) };
        let worth = !matches!(input, Input::Tick | Input::Alive { .. });
        if worth && kept.len() < MAX_INPUTS {
            kept.push(input);
        }
        None
    }
}

fn come_again() -> Rejection {
    Rejection::new(Kind::NoBackend, "the gateway is being upgraded").retry_after(1)
}
