//! What the configuration says about who may come in, ready to be looked up in.

use std::collections::HashMap;
use std::sync::Arc;

use super::credential::OURS;
use super::key::Keys;
use super::login::{Fingerprint, fingerprint};
use super::path::Readings;
use super::preset;
use super::rules::Rule;
use crate::affinity::whole_seconds;
use crate::config::{self, Config, Forward, Login, Secret, Security, User};
use crate::identity::user::COMFY_USER;

/// The configuration of [`super`] at one time.
#[derive(Debug)]
pub struct Table {
    /// Whether callers must be known.
    pub required: bool,
    /// Keys.
    pub keys: Keys,
    /// People who log in, by name.
    pub accounts: HashMap<String, Arc<Account>>,
    /// How browsers are asked.
    pub login: Login,
    /// Seconds a login lasts.
    pub login_ttl: u32,
    /// The header in which a trusted proxy names users.
    pub user_header: Option<String>,
    /// Users named by others that have the admin right.
    pub admins: Vec<String>,
    /// Who is asked about requests.
    pub forward: Option<Arc<Forward>>,
    /// What backends do not get.
    pub hidden: Arc<Hidden>,
    deny: Vec<Rule>,
    allow: Vec<Rule>,
    security: Security,
}

/// Headers of requests that nobody behind the door gets to see.
#[derive(Debug, PartialEq, Eq)]
pub struct Hidden {
    /// What callers show to come in.
    shown: &'static [&'static str],
    /// What says who somebody is; believed of trusted proxies. Where nobody is told from anybody,
    /// users are kept apart by none but themselves, as in `ComfyUI`.
    claims: Vec<String>,
}

impl Hidden {
    fn of(auth: &config::Auth) -> Self {
        let named = [&auth.user_header, &auth.forward.as_ref().map(|to| to.user_header.clone())];
        let claims = [COMFY_USER].into_iter().chain(named.into_iter().filter_map(Option::as_deref));
        Self {
            shown: if auth.has_credentials() { &OURS } else { &[] },
            claims: claims.filter(|_| auth.is_on()).map(str::to_owned).collect(),
        }
    }

    /// The headers that are hidden of a request whose peer is believed or not.
    pub fn headers(&self, believed: bool) -> impl Iterator<Item = &str> {
        let claims = self.claims.iter().filter(move |_| !believed).map(String::as_str);
        self.shown.iter().copied().chain(claims)
    }
}

/// Somebody who logs in.
#[derive(Debug)]
pub struct Account {
    /// Their name.
    pub name: String,
    /// Their password's hash.
    pub password_hash: Secret,
    /// What stands for it.
    pub fingerprint: Fingerprint,
    /// Whether they have the admin right.
    pub admin: bool,
}

impl Account {
    fn new(user: &User) -> Self {
        Self {
            name: user.name.clone(),
            fingerprint: fingerprint(&user.password_hash),
            password_hash: user.password_hash.clone(),
            admin: user.admin,
        }
    }
}

impl Table {
    /// The table of a configuration; what the old one has counted goes on.
    pub fn new(config: &Config, old: Option<&Self>) -> Self {
        let auth = &config.auth;
        let account = |user: &User| (user.name.clone(), Arc::new(Account::new(user)));
        Self {
            required: auth.required,
            keys: Keys::new(&auth.keys, old.map(|old| &old.keys)),
            accounts: auth.users.iter().map(account).collect(),
            login: auth.login,
            login_ttl: whole_seconds(auth.login_ttl),
            user_header: auth.user_header.clone(),
            admins: auth.admins.clone(),
            forward: auth.forward.clone().map(Arc::new),
            hidden: Arc::new(Hidden::of(auth)),
            deny: config.routes.deny.clone(),
            allow: config.routes.allow.clone(),
            security: config.security,
        }
    }

    /// Whether a request is closed to callers without the admin right: what `routes.deny` names
    /// is, then what `routes.allow` names is not, then the preset decides.
    pub fn closes(&self, method: &http::Method, readings: &Readings) -> bool {
        if self.deny.iter().any(|rule| rule.closes(method, readings)) {
            return true;
        }
        self.security == Security::Standard
            && !self.allow.iter().any(|rule| rule.opens(method, readings))
            && preset::closes(method, readings)
    }

    /// Whether a name that others vouch for has the admin right.
    pub fn is_admin(&self, name: &str) -> bool {
        self.admins.iter().any(|admin| admin == name)
    }

    /// Whether there is a page to log in by.
    pub fn has_login_page(&self) -> bool {
        !self.accounts.is_empty() && self.login == Login::Page
    }
}
