//! Logins of people in browsers: a random session in a cookie stands for the admin token.
//!
//! Kept in memory alone, so a restart ends them. Bounded: the one that ends soonest makes room. A
//! login counts only for the token it was made with, so a changed token ends it too. Ids are kept
//! as hashes: what is compared is not what the client sent.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::clock::Moment;
use crate::config::Secret;

/// The cookie's name.
pub const COOKIE: &str = "comfygate_admin";
/// Logins at once.
const MAX_LOGINS: usize = 256;
/// How long a login lasts.
pub const LIFETIME: Duration = Duration::from_hours(12);

type Hash = [u8; 32];

#[derive(Debug, Clone)]
struct Login {
    token: Hash,
    csrf: String,
    ends: Moment,
}

/// The logins.
#[derive(Debug, Default)]
pub struct Logins(Mutex<HashMap<Hash, Login>>);

impl Logins {
    /// A new login for whoever showed the token; gives the cookie's value.
    pub fn open(&self, token: &Secret, now: Moment) -> String {
        let id = random();
        let login = Login { token: hash(token.reveal()), csrf: random(), ends: now.plus(LIFETIME) };
        let mut logins = self.0.lock();
        logins.retain(|_, login| login.ends > now);
        if logins.len() >= MAX_LOGINS
            && let Some(first) =
                logins.iter().min_by_key(|(_, login)| login.ends).map(|(id, _)| *id)
        {
            logins.remove(&first);
        }
        logins.insert(hash(&id), login);
        id
    }

    /// The CSRF token of the login that a request shows, if it counts.
    pub fn find(&self, headers: &HeaderMap, token: &Secret, now: Moment) -> Option<String> {
        let id = cookie(headers, COOKIE)?;
        let logins = self.0.lock();
        let login = logins.get(&hash(id))?;
        let counts = login.ends > now && login.token == hash(token.reveal());
        counts.then(|| login.csrf.clone())
    }

    /// Ends the login that a request shows.
    pub fn close(&self, headers: &HeaderMap) {
        if let Some(id) = cookie(headers, COOKIE) {
            self.0.lock().remove(&hash(id));
        }
    }
}

/// Whether a word is the token, compared in constant time.
pub fn is_token(word: &[u8], token: &Secret) -> bool {
    hash_bytes(word).ct_eq(&hash(token.reveal())).into()
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// 128 random bits in hexadecimal.
pub fn random() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

fn hash(text: &str) -> Hash {
    hash_bytes(text.as_bytes())
}

fn hash_bytes(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let line = format!("a=b; {COOKIE}={id}; c=d");
        headers.insert(header::COOKIE, line.parse().unwrap());
        headers
    }

    #[test]
    fn a_login_counts_until_it_ends_is_closed_or_the_token_changes() {
        let (logins, token, now) = (Logins::default(), Secret::new("right"), Moment(5));
        let id = logins.open(&token, now);
        assert!(logins.find(&shown(&id), &token, now).is_some());
        assert!(logins.find(&shown("0"), &token, now).is_none());
        assert!(logins.find(&HeaderMap::new(), &token, now).is_none());
        assert!(logins.find(&shown(&id), &Secret::new("other"), now).is_none());
        assert!(logins.find(&shown(&id), &token, now.plus(LIFETIME)).is_none());
        logins.close(&shown(&id));
        assert!(logins.find(&shown(&id), &token, now).is_none());
    }

    #[test]
    fn the_oldest_login_makes_room() {
        let (logins, token) = (Logins::default(), Secret::new("right"));
        let first = logins.open(&token, Moment(1));
        let second = logins.open(&token, Moment(2));
        for _ in 0..MAX_LOGINS - 1 {
            logins.open(&token, Moment(3));
        }
        assert!(logins.find(&shown(&first), &token, Moment(4)).is_none());
        assert!(logins.find(&shown(&second), &token, Moment(4)).is_some());
    }
}
