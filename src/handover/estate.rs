//! What only one process may have: journal, event sockets and state.

use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};
use tokio::time::sleep;

use crate::gateway::Gateway;
use crate::keeper;
use crate::logging::TARGET;
use crate::state::State;

/// Attempts to open again what a failed successor may still have open, a second apart.
const ATTEMPTS: u32 = 60;

/// The state of a running gateway.
pub struct Estate {
    gateway: Arc<Gateway>,
    state: Option<Arc<State>>,
}

impl Estate {
    /// Of this gateway.
    pub fn new(gateway: Arc<Gateway>, state: Option<Arc<State>>) -> Self {
        Self { gateway, state }
    }

    /// Closes everything, after what is to be written.
    pub(super) async fn release(&self) {
        if let Some(pool) = self.gateway.pool() {
            pool.release().await;
        }
        if let Some(state) = self.state.clone() {
            let gateway = Arc::clone(&self.gateway);
            let _ = tokio::task::spawn_blocking(move || {
                if let Err(error) = keeper::write(&gateway, &state, true) {
                    warn!(target: TARGET, "sessions could not be written: {error}");
                }
                state.release();
            })
            .await;
        }
    }

    /// Opens everything again: the successor has failed.
    pub(super) async fn reclaim(&self) {
        for attempt in 1..=ATTEMPTS {
            match self.try_reclaim().await {
                Ok(()) => {
                    return info!(target: TARGET, "the successor failed; this process goes on");
                }
                Err(error) if attempt == ATTEMPTS => {
                    error!(target: TARGET, "the state cannot be opened again: {error:#}; restart comfygate");
                }
                Err(error) => {
                    warn!(target: TARGET, "the state cannot be opened again yet: {error:#}");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn try_reclaim(&self) -> anyhow::Result<()> {
        if let Some(state) = self.state.clone() {
            tokio::task::spawn_blocking(move || state.reclaim()).await??;
        }
        if let Some(pool) = self.gateway.pool() {
            pool.reclaim().await?;
        }
        Ok(())
    }

    /// A successor has it.
    pub(super) fn gone(&self) {
        if let Some(pool) = self.gateway.pool() {
            pool.gone();
        }
    }
}
