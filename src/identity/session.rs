//! Ids of sessions and the signature that shows they are ours.
//!
//! Two shapes for two places. A cookie has room: a random id of 128 bits, the time of issue beside
//! it, 128 bits of HMAC-SHA256. A tab's session stands in every path, so its id is 96 random bits
//! with the time of issue in the last 32, and 64 bits of HMAC: 33 characters together. Both are
//! compared in constant time, and the purpose is part of what is signed, so that neither passes for
//! the other.
//!
//! The signature says that an id is ours, not that it is still in use: [`Session::counts`] does.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::affinity::Seconds;
use crate::config::Secret;

/// Characters a secret for the signing key must have at least.
pub const MIN_SECRET: usize = 16;
/// How far in the future a time of issue may lie: replicas' clocks differ.
const CLOCK_SKEW: u32 = 300;

/// The id of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// The id's bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// An id of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Eight characters that name the session to people and do not let them in.
    pub fn fingerprint(&self) -> String {
        hex::encode(&Sha256::digest(self.0)[..4])
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.fingerprint())
    }
}

/// A session whose signature is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// When this token of it was made.
    pub issued: Seconds,
}

impl Session {
    /// Whether it stands for a client at all: its placement is `known`, or it was issued within
    /// `ttl` (and not yet placed). Anything else is stale and counts as none.
    pub fn counts(&self, now: Seconds, ttl: u32, known: bool) -> bool {
        known || (now.since(self.issued) <= ttl && self.issued.since(now) <= CLOCK_SKEW)
    }

    /// A quarter of the ttl has passed: a cookie should be set anew, lest the browser drop it while
    /// the session is in use.
    pub fn is_due_for_renewal(&self, now: Seconds, ttl: u32) -> bool {
        now.since(self.issued) >= (ttl / 4).max(1)
    }

    /// The same session, issued now (cookies only: a tab's id contains its time of issue).
    #[must_use]
    pub fn renewed(&self, now: Seconds) -> Self {
        Self { id: self.id, issued: now }
    }
}

/// A secret that cannot sign.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the key has {0} characters, {MIN_SECRET} or more are needed: `openssl rand -hex 32`")]
pub struct ShortSecret(usize);

/// The key that signs sessions.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// A key of 32 random bytes.
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        // HMAC pads a key with zeros to the hash's block of 64 bytes; padded here, there is no
        // length left to be wrong.
        let mut block = [0; 64];
        block[..32].copy_from_slice(key);
        Self(<Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into()))
    }

    /// A key derived from the configuration's secret, any text of at least [`MIN_SECRET`]
    /// characters; replicas with one secret accept each other's sessions.
    pub fn from_secret(secret: &Secret) -> Result<Self, ShortSecret> {
        let text = secret.reveal();
        let length = text.chars().count();
        if length < MIN_SECRET {
            return Err(ShortSecret(length));
        }
        let label = Self::from_bytes(b"comfygate session signing key v1");
        Ok(Self::from_bytes(&label.mac(&[text.as_bytes()]).finalize().into_bytes().into()))
    }

    /// A new session for a cookie.
    pub fn new_cookie_session(now: Seconds, random: &mut impl RngCore) -> Session {
        let mut id = [0; 16];
        random.fill_bytes(&mut id);
        Session { id: SessionId(id), issued: now }
    }

    /// A new session for a tab.
    pub fn new_tab_session(now: Seconds, random: &mut impl RngCore) -> Session {
        let mut id = [0; 16];
        random.fill_bytes(&mut id[..12]);
        id[12..].copy_from_slice(&now.0.to_be_bytes());
        Session { id: SessionId(id), issued: now }
    }

    /// The cookie's value: `1.<id and time of issue>.<signature>`, 52 characters.
    pub fn cookie_value(&self, session: &Session) -> String {
        let payload = cookie_payload(session);
        let tag = self.mac(&[b"cookie 1", &payload]).finalize().into_bytes();
        format!("1.{}.{}", encode(&payload), encode(&tag[..16]))
    }

    /// The session of a cookie's value, if we signed it.
    pub fn read_cookie_value(&self, value: &[u8]) -> Option<Session> {
        let rest = value.strip_prefix(b"1.")?;
        let (payload, tag) = (rest.get(..27)?, rest.get(27..)?.strip_prefix(b".")?);
        let (payload, tag): ([u8; 20], [u8; 16]) = (decode(payload)?, decode(tag)?);
        self.mac(&[b"cookie 1", &payload]).verify_truncated_left(&tag).ok()?;
        let (id, issued) = (payload.first_chunk::<16>()?, payload.last_chunk::<4>()?);
        Some(Session { id: SessionId(*id), issued: Seconds(u32::from_be_bytes(*issued)) })
    }

    /// The tab's name in the path: 33 characters of base64url.
    pub fn tab_name(&self, session: &Session) -> String {
        let tag = self.mac(&[b"tab 1", session.id.bytes()]).finalize().into_bytes();
        format!("{}{}", encode(session.id.bytes()), encode(&tag[..8]))
    }

    /// The session of a tab's name, if we signed it.
    pub fn read_tab_name(&self, name: &str) -> Option<Session> {
        let (id, tag) = name.as_bytes().split_at_checked(22)?;
        let (id, tag): ([u8; 16], [u8; 8]) = (decode(id)?, decode(tag)?);
        self.mac(&[b"tab 1", &id]).verify_truncated_left(&tag).ok()?;
        let issued = Seconds(u32::from_be_bytes(*id.last_chunk::<4>()?));
        Some(Session { id: SessionId(id), issued })
    }

    /// The signature of something else that is ours: of `parts`, in this order, for a purpose.
    pub fn seal(&self, purpose: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        // With their lengths, lest two parts pass for two others.
        let each = [purpose].into_iter().chain(parts.iter().copied());
        let mac = each.fold(self.mac(&[b"seal 1"]), |mac, part| {
            mac.chain_update((part.len() as u64).to_be_bytes()).chain_update(part)
        });
        mac.finalize().into_bytes().into()
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        parts.iter().fold(self.0.clone(), Mac::chain_update)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

fn cookie_payload(session: &Session) -> [u8; 20] {
    let mut payload = [0; 20];
    payload[..16].copy_from_slice(session.id.bytes());
    payload[16..].copy_from_slice(&session.issued.0.to_be_bytes());
    payload
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Exactly `N` bytes of canonical base64url, else nothing.
fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut buffer = [0; 24];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut buffer).ok()?;
    (length == N).then(|| buffer.first_chunk().copied())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const NOW: Seconds = Seconds(1_700_000_000);

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    #[test]
    fn the_padded_key_is_plain_hmac() {
        let plain = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap().chain_update(b"text");
        let ours = key().mac(&[b"te", b"xt"]);
        assert_eq!(ours.finalize().into_bytes(), plain.finalize().into_bytes());
    }

    #[test]
    fn both_shapes_have_the_lengths_they_promise() {
        let mut random = StdRng::seed_from_u64(1);
        let cookie = key().cookie_value(&SigningKey::new_cookie_session(NOW, &mut random));
        let tab = key().tab_name(&SigningKey::new_tab_session(NOW, &mut random));
        assert_eq!((cookie.len(), tab.len()), (52, 33));
    }

    #[test]
    fn a_session_counts_while_known_or_young() {
        let session = Session { id: SessionId([1; 16]), issued: NOW };
        assert!(session.counts(NOW.plus(60), 60, false));
        assert!(!session.counts(NOW.plus(61), 60, false));
        assert!(session.counts(NOW.plus(61), 60, true));
        assert!(!session.counts(NOW.minus(301), 60, false));
        assert!(!session.is_due_for_renewal(NOW.plus(14), 60));
        assert!(session.is_due_for_renewal(NOW.plus(15), 60));
    }

    #[test]
    fn a_short_secret_is_refused_and_a_long_one_signs() {
        let short = SigningKey::from_secret(&Secret::new("fifteen letters"));
        assert_eq!(short.err(), Some(ShortSecret(15)));
        let session = SigningKey::new_cookie_session(NOW, &mut StdRng::seed_from_u64(1));
        let sign = |secret: &str| SigningKey::from_secret(&Secret::new(secret)).unwrap();
        let value = sign("sixteen letters!").cookie_value(&session);
        let again = sign("sixteen letters!").read_cookie_value(value.as_bytes());
        assert_eq!(again, Some(session));
        assert_eq!(sign("sixteen letters?").read_cookie_value(value.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn what_was_signed_is_read_back(seed: u64, now: u32) {
            let mut random = StdRng::seed_from_u64(seed);
            let session = SigningKey::new_cookie_session(Seconds(now), &mut random);
            let value = key().cookie_value(&session);
            prop_assert_eq!(key().read_cookie_value(value.as_bytes()), Some(session));
            let session = SigningKey::new_tab_session(Seconds(now), &mut random);
            prop_assert_eq!(key().read_tab_name(&key().tab_name(&session)), Some(session));
        }

        #[test]
        fn any_flipped_bit_makes_it_none(seed: u64, at in 0usize..52, bit in 0u8..8) {
            let mut random = StdRng::seed_from_u64(seed);
            let session = SigningKey::new_cookie_session(NOW, &mut random);
            let mut value = key().cookie_value(&session).into_bytes();
            value[at] ^= 1 << bit;
            prop_assert_eq!(key().read_cookie_value(&value), None);
            let name = key().tab_name(&SigningKey::new_tab_session(NOW, &mut random));
            let mut name = name.into_bytes();
            name[at % 33] ^= 1 << bit;
            if let Ok(name) = std::str::from_utf8(&name) {
                prop_assert_eq!(key().read_tab_name(name), None);
            }
        }

        #[test]
        fn garbage_is_none(bytes: Vec<u8>, text: String) {
            prop_assert_eq!(key().read_cookie_value(&bytes), None);
            prop_assert_eq!(key().read_tab_name(&text), None);
        }

        #[test]
        fn another_key_or_purpose_does_not_pass(seed: u64) {
            let session = SigningKey::new_tab_session(NOW, &mut StdRng::seed_from_u64(seed));
            let other = SigningKey::from_bytes(&[8; 32]);
            prop_assert_eq!(other.read_tab_name(&key().tab_name(&session)), None);
            let cookie = key().cookie_value(&session);
            prop_assert_eq!(other.read_cookie_value(cookie.as_bytes()), None);
            let spliced = format!("{}{}", &cookie[2..24], &key().tab_name(&session)[22..]);
            prop_assert_eq!(key().read_tab_name(&cookie[2..35]), None);
            prop_assert_ne!(spliced, key().tab_name(&session));
        }
    }
}
