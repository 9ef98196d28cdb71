//! The cookie of a login: signed, not stored.
//!
//! It holds the user's name, when it was issued, and an id of its own. Signed with it is the hash
//! of the user's password, so that a new password ends all logins, as does taking the user out of
//! the configuration. A logout is remembered by the id until the login would have ended anyway
//! ([`Logouts`]); a restart forgets it, and the browser has dropped the cookie by then.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::COOKIE;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::affinity::Seconds;
use crate::config::Secret;
use crate::identity::session::SigningKey;

/// The cookie's name.
pub const NAME: &str = "comfygate_login";
/// Cookies of this name looked at in one request: other pages of the host can set more.
const MAX_CANDIDATES: usize = 4;
/// What the signature is for.
const PURPOSE: &[u8] = b"login 1";
/// Bytes before the name: the time of issue and the id.
const FIXED: usize = 4 + 12;
/// Bytes of the signature.
const TAG: usize = 16;
/// Logouts remembered.
const MAX_LOGOUTS: usize = 10_000;

/// What stands for a user's password hash in signatures and grants.
pub type Fingerprint = [u8; 32];

/// The fingerprint of a user's password hash.
pub fn fingerprint(password_hash: &Secret) -> Fingerprint {
    Sha256::digest(password_hash.reveal().as_bytes()).into()
}

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Who.
    pub user: String,
    /// Which of their logins.
    pub id: [u8; 12],
    /// Since when.
    pub issued: Seconds,
}

impl Login {
    /// A new one.
    pub fn new(user: &str, now: Seconds) -> Self {
        Self { user: user.to_owned(), id: rand::random(), issued: now }
    }

    /// The cookie's value.
    pub fn sealed(&self, key: &SigningKey, fingerprint: &Fingerprint) -> String {
        let payload =
            [&self.issued.0.to_be_bytes(), self.id.as_slice(), self.user.as_bytes()].concat();
        let tag = key.seal(PURPOSE, &[fingerprint, &payload]);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        format!("1.{}.{}", encode(&payload), encode(&tag[..TAG]))
    }

    /// The login of a value, if we signed it for a user who still has that password.
    pub fn open(
        value: &str,
        key: &SigningKey,
        fingerprint_of: impl Fn(&str) -> Option<Fingerprint>,
    ) -> Option<Self> {
        let (payload, tag) = value.strip_prefix("1.")?.split_once('.')?;
        let decode = |text| URL_SAFE_NO_PAD.decode(text).ok();
        let (payload, tag) = (decode(payload)?, decode(tag)?);
        let (issued, rest) = payload.split_first_chunk::<4>()?;
        let (id, user) = rest.split_first_chunk::<{ FIXED - 4 }>()?;
        let user = std::str::from_utf8(user).ok()?;
        let right = key.seal(PURPOSE, &[&fingerprint_of(user)?, &payload]);
        let is_right: bool = right[..TAG].ct_eq(&tag).into();
        let issued = Seconds(u32::from_be_bytes(*issued));
        is_right.then(|| Self { user: user.to_owned(), id: *id, issued })
    }

    /// When it ends.
    pub fn ends(&self, ttl: u32) -> Seconds {
        Seconds(self.issued.0.saturating_add(ttl))
    }
}

/// The values that a request shows as logins.
pub fn shown(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    let ours = pairs.filter(|(name, _)| name.trim() == NAME);
    ours.map(|(_, value)| value.trim().trim_matches('"')).take(MAX_CANDIDATES)
}

/// The `Set-Cookie` of a value that holds for `ttl` seconds; 0 takes it away.
pub fn set_cookie(value: &str, ttl: u32, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{NAME}={value}; Path=/; Max-Age={ttl}; HttpOnly; SameSite=Lax{secure}")
}

/// Logins that were ended before their time.
#[derive(Debug, Default)]
pub struct Logouts(Mutex<HashMap<[u8; 12], Seconds>>);

impl Logouts {
    /// Ends a login that would have lasted until `ends`.
    pub fn end(&self, login: &Login, ends: Seconds, now: Seconds) {
        let mut ended = self.0.lock();
        if ended.len() >= MAX_LOGOUTS {
            ended.retain(|_, ends| *ends > now);
        }
        if ended.len() >= MAX_LOGOUTS
            && let Some(first) = ended.iter().min_by_key(|(_, ends)| ends.0).map(|(id, _)| *id)
        {
            ended.remove(&first);
        }
        ended.insert(login.id, ends);
    }

    /// Whether a login was ended.
    pub fn has(&self, id: &[u8; 12]) -> bool {
        self.0.lock().contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn of(user: &str) -> Option<Fingerprint> {
        (user == "anna").then_some([1; 32])
    }

    #[test]
    fn a_login_is_whom_it_was_issued_to() {
        let login = Login::new("anna", Seconds(1_700_000_000));
        let value = login.sealed(&key(), &[1; 32]);
        assert_eq!(Login::open(&value, &key(), of), Some(login.clone()));
        assert_eq!(login.ends(60), Seconds(1_700_000_060));
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, format!("a=b; {NAME}=x; {NAME}=\"{value}\"").parse().unwrap());
        assert_eq!(shown(&headers).collect::<Vec<_>>(), ["x", &value]);
    }

    #[test]
    fn forged_logins_and_those_of_an_old_password_count_for_nothing() {
        let login = Login::new("anna", Seconds(1_700_000_000));
        let value = login.sealed(&key(), &[1; 32]);
        let other_key = SigningKey::from_bytes(&[8; 32]);
        assert_eq!(Login::open(&value, &other_key, of), None);
        assert_eq!(Login::open(&value, &key(), |_| Some([2; 32])), None);
        assert_eq!(Login::open(&value, &key(), |_| None), None);
        // A session's cookie is signed by the same key, for another purpose.
        let session = SigningKey::new_cookie_session(Seconds(1), &mut rand::rng());
        assert_eq!(Login::open(&key().cookie_value(&session), &key(), |_| Some([1; 32])), None);
        for at in 0..value.len() {
            let mut forged = value.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last character of a base64 text has bits that mean nothing.
            let opened = Login::open(&forged, &key(), of);
            assert!(opened.is_none() || opened == Some(login.clone()), "{forged}");
        }
    }

    #[test]
    fn a_name_cannot_be_moved_into_another() {
        let login = Login { user: "anna".into(), id: [0; 12], issued: Seconds(5) };
        let tag = login.sealed(&key(), &[1; 32]).rsplit('.').next().unwrap().to_owned();
        let other = Login { user: "anna2".into(), ..login };
        let payload = other.sealed(&key(), &[9; 32]);
        let forged = format!("{}.{tag}", payload.rsplit_once('.').unwrap().0);
        assert_eq!(Login::open(&forged, &key(), |_| Some([1; 32])), None);
    }

    #[test]
    fn logouts_are_remembered_in_bounded_memory() {
        let logouts = Logouts::default();
        let login = Login::new("anna", Seconds(0));
        logouts.end(&login, Seconds(u32::MAX), Seconds(0));
        for n in 0..20_000 {
            logouts.end(&Login::new("anna", Seconds(0)), Seconds(n), Seconds(0));
        }
        assert!(logouts.has(&login.id));
        assert!(logouts.0.lock().len() <= MAX_LOGOUTS);
    }

    proptest! {
        #[test]
        fn no_value_is_a_panic_or_a_login(value: String, bytes: Vec<u8>) {
            prop_assert_eq!(Login::open(&value, &key(), |_| Some([1; 32])), None);
            let text = URL_SAFE_NO_PAD.encode(bytes);
            let value = format!("1.{text}.{text}");
            prop_assert_eq!(Login::open(&value, &key(), |_| Some([1; 32])), None);
        }
    }
}
