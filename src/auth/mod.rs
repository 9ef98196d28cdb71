//! Who may come in.
//!
//! Asked at the front door, for each request and each WebSocket, before anything else happens to
//! it: [`Auth::judge`] looks at what the request shows ([`credential`]), proves it against the
//! configuration ([`table`]: API keys by [`key`], passwords by [`password`] and then a cookie by
//! [`login`], a trusted proxy's word), and [`decide()`] says in or out, closed routes included
//! ([`path`], [`rules`], [`preset`]). That is synchronous. What takes time, a password's hash or
//! somebody else who is asked ([`forward`]), comes back as a [`Question`]; [`Auth::answer`] finds
//! out, and the request is judged again with what it was [`Told`].
//!
//! What a request was let in by goes with it ([`grant`]): a WebSocket ends when that does. [`page`]
//! is where people log in and out, [`command`] makes keys and hashes.

pub mod answer;
pub mod attempts;
pub mod command;
pub mod credential;
pub mod decide;
pub mod forward;
pub mod grant;
pub mod key;
pub mod login;
pub mod memory;
pub mod page;
pub mod password;
pub mod path;
pub mod preset;
pub mod question;
pub mod rate;
pub mod rules;
pub mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use tokio::sync::watch;

use crate::affinity::Seconds;
use crate::clock::Moment;
use crate::config::{Config, Secret};
use crate::identity::session::SigningKey;
use crate::rejection::{Kind, Rejection};
use attempts::Attempts;
use credential::Credential;
pub use decide::{Pass, Proof, Refusal, Request, decide};
use forward::{Asker, Word};
use grant::Grant;
use login::{Login, Logouts};
use memory::Memory;
use password::Verifier;
pub use question::{Arrival, Entry, Need, Question, Told, Verdict};
use table::{Account, Table};

/// How long a password that was right counts without its hash being computed again.
const VERIFIED_FOR: Duration = Duration::from_mins(15);
/// Passwords so remembered, as hashes under a key of this process.
const MAX_VERIFIED: usize = 1024;
/// How far in the future a login may have been issued: replicas' clocks differ.
const CLOCK_SKEW: u32 = 300;

/// What is known of callers and asked of them.
#[derive(Debug)]
pub struct Auth {
    table: ArcSwap<Table>,
    changed: watch::Sender<()>,
    signing_key: SigningKey,
    /// This process's own: for what is remembered by a hash.
    secret: SigningKey,
    verifier: Verifier,
    attempts: Attempts,
    verified: Memory<()>,
    logouts: Logouts,
    asker: Asker,
}

impl Auth {
    /// The state of a configuration. Logins are signed by the key of sessions.
    pub fn new(config: &Config, signing_key: SigningKey) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::new(config, None)),
            changed: watch::Sender::new(()),
            signing_key,
            secret: SigningKey::from_bytes(&rand::random()),
            verifier: Verifier::default(),
            attempts: Attempts::default(),
            verified: Memory::new(MAX_VERIFIED),
            logouts: Logouts::default(),
            asker: Asker::default(),
        }
    }

    /// Goes by another configuration from now on. WebSockets that stood on what is gone end.
    pub fn reload(&self, config: &Config) {
        let table = Table::new(config, Some(&self.table.load()));
        self.table.store(Arc::new(table));
        self.asker.forget();
        self.changed.send_replace(());
    }

    /// What is configured now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Told whenever grants may have ended.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether a grant still holds.
    pub fn holds(&self, grant: &Grant, now: Seconds) -> bool {
        grant.holds(&self.table.load(), |login| self.logouts.has(&login.id), now)
    }

    /// Judges a request.
    pub fn judge(&self, request: &Request<'_>, arrival: Arrival<'_>) -> Entry {
        let table = self.table.load();
        if !table.keys.is_empty() && key::is_in(request.sent) {
            let message = "a key does not belong in an address, where logs and pages keep it";
            let refused = Rejection::new(Kind::BadRequest, message)
                .cure("send Authorization: Bearer KEY or X-API-Key: KEY; and replace this key");
            return Entry::Out(refused.into());
        }
        let mut cookies = Vec::new();
        let proof = match self.prove(&table, request, arrival, &mut cookies) {
            Ok(proof) => proof,
            Err(Unproven::Need(need)) => return Entry::Ask(need),
            Err(Unproven::Refused(refusal)) => return Entry::Out(refusal),
        };
        if let Proof::Key(key) = &proof
            && let Some(bucket) = &key.bucket
            && let Err(wait) = bucket.take(Moment::now())
        {
            let message = "this key has made as many requests as it may";
            let refused = Rejection::new(Kind::RateLimited, message).cure("auth.keys[].rate");
            return Entry::Out(refused.retry_after(rate::retry_after(wait)).into());
        }
        match decide(&table, request, &proof) {
            Ok(pass) => Entry::In(Pass { cookies, ..pass }),
            Err(refusal) => Entry::Out(refusal),
        }
    }

    /// What a request proves; cookies that this brings about are added to `cookies`.
    fn prove(
        &self,
        table: &Table,
        request: &Request<'_>,
        arrival: Arrival<'_>,
        cookies: &mut Vec<String>,
    ) -> Result<Proof, Unproven> {
        if decide::is_open_to_all(request.target) {
            return Ok(Proof::Nothing);
        }
        match Credential::of(request.headers, table) {
            Credential::Nothing => {}
            Credential::Unreadable => return Ok(Proof::Wrong("the credentials cannot be read")),
            Credential::Key(shown) => {
                return Ok(match table.keys.find(shown) {
                    Some(key) if key.is_expired(arrival.now) => Proof::Wrong("the key has expired"),
                    Some(key) => Proof::Key(Arc::clone(key)),
                    None => Proof::Wrong("there is no such key"),
                });
            }
            Credential::Basic { user, password } => {
                let account = self.by_password(table, user, password, arrival.told)?;
                let Some(account) = account else {
                    return Ok(Proof::Wrong("name or password is wrong"));
                };
                if self.login(table, request.headers, arrival.now).is_none() {
                    // From now on the cookie does, for WebSockets too.
                    let login = Login::new(&account.name, arrival.now);
                    cookies.push(self.cookie(table, &account, &login, arrival.secure));
                }
                return Ok(Proof::Password(account));
            }
        }
        if let (Some(header), Some(name)) = (&table.user_header, arrival.named) {
            return Ok(Proof::Named(header.clone(), name.to_owned()));
        }
        if let Some((account, login)) = self.login(table, request.headers, arrival.now) {
            return Ok(Proof::Login(account, login));
        }
        let Some(forward) = &table.forward else { return Ok(Proof::Nothing) };
        let word = if let Some(Told::Forward(word)) = arrival.told {
            word
        } else {
            let question = (arrival.question)(forward);
            match self.asker.remembers(&question, &self.secret) {
                Some(user) => Word::Yes { user, cookies: Vec::new() },
                None => return Err(Unproven::Need(Need::Forward(Arc::clone(forward)))),
            }
        };
        match word {
            Word::Yes { user, cookies: set } => {
                cookies.extend(set);
                Ok(Proof::Forwarded(Arc::clone(forward), user))
            }
            Word::No(answer) => Err(Unproven::Refused(Refusal::Answer(answer))),
            Word::None(rejection) => Err(Unproven::Refused(rejection.into())),
        }
    }

    /// The account of a name and a password; `None` when they are wrong.
    fn by_password(
        &self,
        table: &Table,
        user: String,
        password: Secret,
        told: Option<Told>,
    ) -> Result<Option<Arc<Account>>, Unproven> {
        let refuse = |rejection: Rejection| Err(Unproven::Refused(rejection.into()));
        match told {
            Some(Told::Password(Verdict::Right(account))) => Ok(Some(account)),
            Some(Told::Password(Verdict::Wrong)) => Ok(None),
            Some(Told::Password(Verdict::TooMany(wait))) => refuse(too_many_attempts(wait)),
            Some(Told::Password(Verdict::Busy)) => refuse(busy()),
            _ => {
                let known = table.accounts.get(&user).filter(|account| {
                    let asked = self.digest(account, &password);
                    self.verified.get(&asked, Moment::now()).is_some()
                });
                match known {
                    Some(account) => Ok(Some(Arc::clone(account))),
                    None => Err(Unproven::Need(Need::Password(user, password))),
                }
            }
        }
    }

    /// What stands for a password that was right.
    fn digest(&self, account: &Account, password: &Secret) -> memory::Digest {
        let parts: [&[u8]; 3] =
            [account.name.as_bytes(), &account.fingerprint, password.reveal().as_bytes()];
        self.secret.seal(b"basic", &parts)
    }

    /// The login that a request shows, if it counts.
    fn login(
        &self,
        table: &Table,
        headers: &HeaderMap,
        now: Seconds,
    ) -> Option<(Arc<Account>, Login)> {
        if table.accounts.is_empty() {
            return None;
        }
        let fingerprint_of = |user: &str| Some(table.accounts.get(user)?.fingerprint);
        let counts = |login: &Login| {
            login.ends(table.login_ttl) > now
                && login.issued.since(now) <= CLOCK_SKEW
                && !self.logouts.has(&login.id)
        };
        let opened = |value| Login::open(value, &self.signing_key, fingerprint_of);
        let login = login::shown(headers).filter_map(opened).find(counts)?;
        let account = table.accounts.get(&login.user)?;
        Some((Arc::clone(account), login))
    }

    fn cookie(&self, table: &Table, account: &Account, login: &Login, secure: bool) -> String {
        let value = login.sealed(&self.signing_key, &account.fingerprint);
        login::set_cookie(&value, table.login_ttl, secure)
    }

    /// Finds out what a request has to be told about.
    pub async fn answer(&self, question: Question) -> Told {
        match question {
            Question::Password { user, password, address } => {
                Told::Password(self.check(&user, password, address).await)
            }
            Question::Forward(question) => {
                Told::Forward(self.asker.ask(*question, &self.secret).await)
            }
        }
    }

    /// Checks a password, as often as its address may have that done.
    pub async fn check(&self, user: &str, password: Secret, address: IpAddr) -> Verdict {
        if let Err(wait) = self.attempts.begin(address, Moment::now()) {
            return Verdict::TooMany(wait);
        }
        let table = self.table();
        let account = table.accounts.get(user);
        // For an unknown name anybody's hash will do: it is to take as long.
        let Some(hashed) = account.or_else(|| table.accounts.values().next()) else {
            return Verdict::Wrong;
        };
        let hash = hashed.password_hash.clone();
        match self.verifier.verify(hash, account.is_some(), password.clone()).await {
            Ok(true) => {
                self.attempts.was_right(address);
                let (digest, now) = (self.digest(hashed, &password), Moment::now());
                self.verified.keep(digest, (), now.plus(VERIFIED_FOR), now);
                Verdict::Right(Arc::clone(hashed))
            }
            Ok(false) => Verdict::Wrong,
            Err(password::Busy) => {
                self.attempts.was_right(address);
                Verdict::Busy
            }
        }
    }

    /// The user of the login that a request shows.
    pub fn user_of(&self, headers: &HeaderMap, now: Seconds) -> Option<String> {
        self.login(&self.table.load(), headers, now).map(|(account, _)| account.name.clone())
    }

    /// The cookie of a new login.
    pub fn new_login(&self, account: &Account, now: Seconds, secure: bool) -> String {
        self.cookie(&self.table.load(), account, &Login::new(&account.name, now), secure)
    }

    /// Ends the login that a request shows, and its WebSockets.
    pub fn log_out(&self, headers: &HeaderMap, now: Seconds) {
        let table = self.table.load();
        if let Some((_, login)) = self.login(&table, headers, now) {
            self.logouts.end(&login, login.ends(table.login_ttl), now);
            self.changed.send_replace(());
        }
    }
}

/// Why nothing is proven.
enum Unproven {
    Need(Need),
    Refused(Refusal),
}

/// The refusal of one more password from an address that showed many wrong ones.
pub fn too_many_attempts(wait: Duration) -> Rejection {
    let message = "too many wrong passwords came from this address";
    Rejection::new(Kind::RateLimited, message).retry_after(rate::retry_after(wait))
}

/// The refusal when too many passwords are being checked.
pub fn busy() -> Rejection {
    let message = "too many people log in at this moment";
    Rejection::new(Kind::RateLimited, message).retry_after(1)
}
