//! By what a request was let in: what a WebSocket goes on to depend on.

use std::sync::Arc;
use std::time::Duration;

use super::key::Hash;
use super::login::{Fingerprint, Login};
use super::{Auth, Table};
use crate::affinity::Seconds;
use crate::config::Forward;
use crate::gateway::Gateway;

/// Longest time until a grant with an end is looked at again: clocks may be set.
const LOOK_AGAIN: u32 = 3600;

/// By what a request was let in.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// Nothing: nobody asks for anything.
    Anyone,
    /// The key of this hash.
    Key(Hash),
    /// A password that was shown with the request.
    Password {
        /// Whose.
        user: String,
        /// Of its hash.
        fingerprint: Fingerprint,
    },
    /// A login.
    Login {
        /// Which.
        login: Login,
        /// Of its password's hash.
        fingerprint: Fingerprint,
    },
    /// The word of a trusted proxy in this header.
    Header(String),
    /// The word of whom we asked.
    Forward(Arc<Forward>),
}

impl Grant {
    /// Whether it still holds by a table.
    pub fn holds(&self, table: &Table, is_over: impl Fn(&Login) -> bool, now: Seconds) -> bool {
        let has = |user: &str, fingerprint: &Fingerprint| {
            table.accounts.get(user).is_some_and(|account| account.fingerprint == *fingerprint)
        };
        match self {
            Self::Anyone => !table.required,
            Self::Key(hash) => table.keys.of_hash(hash).is_some_and(|key| !key.is_expired(now)),
            Self::Password { user, fingerprint } => has(user, fingerprint),
            Self::Login { login, fingerprint } => {
                has(&login.user, fingerprint)
                    && login.ends(table.login_ttl) > now
                    && !is_over(login)
            }
            Self::Header(name) => table.user_header.as_ref() == Some(name),
            Self::Forward(asked) => table.forward.as_ref() == Some(asked),
        }
    }

    /// When it ends by itself.
    fn ends(&self, table: &Table) -> Option<Seconds> {
        match self {
            Self::Key(hash) => table.keys.of_hash(hash)?.expires,
            Self::Login { login, .. } => Some(login.ends(table.login_ttl)),
            _ => None,
        }
    }
}

/// Resolves when a grant holds no more: its time is over, a reload took away what it stands on, or
/// its user logged out.
pub async fn ended(gateway: Arc<Gateway>, grant: Grant) {
    let auth: &Auth = &gateway.auth;
    let mut changed = auth.changes();
    loop {
        let now = gateway.clock.now();
        let table = auth.table();
        if !auth.holds(&grant, now) {
            return;
        }
        let ends = grant.ends(&table);
        drop(table);
        let its_end = async {
            match ends {
                Some(ends) => {
                    let seconds = ends.since(now).clamp(1, LOOK_AGAIN);
                    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = changed.changed() => {}
            () = its_end => {}
        }
    }
}
