//! Passwords: Argon2id, computed away from the threads that serve, a few at a time.
//!
//! A hash takes tens of milliseconds and megabytes on purpose. So no more than `AT_ONCE` are
//! computed together and no more than `WAITING` wait; who comes then is told to try again. An
//! unknown name costs the same as a known one.

use std::sync::Arc;

use argon2::password_hash::SaltString;
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use crate::config::Secret;

/// Hashes computed at once.
const AT_ONCE: usize = 2;
/// Requests that wait for theirs.
const WAITING: usize = 64;
/// Bytes of a password that are looked at.
pub const MAX_PASSWORD: usize = 1024;
/// Bounds of what a configured hash may cost: 256 MiB and 16 passes.
const MAX_MEMORY_KIB: u32 = 256 << 10;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 16;

/// Whether a text of the configuration is a hash that can be checked, and at a bearable price.
pub fn check(text: &str) -> Result<(), &'static str> {
    const CURE: &str = "use a hash as `comfygate key password` prints it ($argon2id$…)";
    let hash = PasswordHash::new(text).map_err(|_| CURE)?;
    let params = Params::try_from(&hash).map_err(|_| CURE)?;
    let is_argon2id = Algorithm::try_from(hash.algorithm).is_ok_and(|a| a == Algorithm::Argon2id);
    if !is_argon2id || hash.hash.is_none() || hash.salt.is_none() {
        return Err(CURE);
    }
    if params.m_cost() > MAX_MEMORY_KIB
        || params.t_cost() > MAX_PASSES
        || params.p_cost() > MAX_LANES
    {
        return Err("this hash costs too much; use at most 256 MiB, 16 passes and 16 lanes");
    }
    Ok(())
}

/// A password's hash for the configuration, with the parameters that OWASP advises.
pub fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>())?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt)?;
    Ok(hash.to_string())
}

fn is_right(hash: &str, password: &str) -> bool {
    PasswordHash::new(hash)
        .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Nobody is free to compute a hash.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

/// Computes hashes, a few at a time.
#[derive(Debug)]
pub struct Verifier {
    waiting: Arc<Semaphore>,
    working: Arc<Semaphore>,
}

impl Default for Verifier {
    fn default() -> Self {
        Self {
            waiting: Arc::new(Semaphore::new(WAITING)),
            working: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Verifier {
    /// Whether a password is the one of a hash. `known` false: it is not, at the same price.
    pub async fn verify(&self, hash: Secret, known: bool, password: Secret) -> Result<bool, Busy> {
        let _waits = self.waiting.try_acquire().map_err(|_| Busy)?;
        let permit = Arc::clone(&self.working).acquire_owned().await.map_err(|_| Busy)?;
        let work = tokio::task::spawn_blocking(move || {
            // Held here: a client that leaves does not end the work.
            let _permit = permit;
            is_right(hash.reveal(), password.reveal()) && known
        });
        work.await.map_err(|_| Busy)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A hash that costs next to nothing.
    pub(in crate::auth) fn cheap(password: &str) -> String {
        let params = Params::new(8, 1, 1, None).unwrap();
        let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).unwrap();
        let argon = Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon.hash_password(password.as_bytes(), &salt).unwrap().to_string()
    }

    #[test]
    fn a_hash_of_ours_can_be_configured_and_bears_its_password_alone() {
        let hash = hash("hunter2").unwrap();
        assert_eq!(check(&hash), Ok(()));
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(is_right(&hash, "hunter2") && !is_right(&hash, "hunter3"));
    }

    #[test]
    fn other_and_too_costly_hashes_are_refused() {
        let salt = "c2FsdHNhbHQ";
        let out = "A".repeat(43);
        let of = |head: &str| format!("${head}${salt}${out}");
        assert_eq!(check(&of("argon2id$v=19$m=262144,t=16,p=4")), Ok(()));
        for head in [
            "argon2i$v=19$m=65536,t=2,p=1",
            "argon2id$v=19$m=1048576,t=2,p=1",
            "argon2id$v=19$m=65536,t=100,p=1",
            "argon2id$v=19$m=1,t=1,p=1",
            "2b$12",
        ] {
            assert!(check(&of(head)).is_err(), "{head}");
        }
        assert!(check("hunter2").is_err() && check("").is_err());
        assert!(check("$argon2id$v=19$m=65536,t=2,p=1").is_err());
    }

    #[tokio::test]
    async fn a_password_counts_only_for_a_known_name() {
        let verifier = Verifier::default();
        let hash = Secret::new(cheap("hunter2"));
        let verdict = async |known, password: &str| {
            verifier.verify(hash.clone(), known, Secret::new(password)).await
        };
        assert_eq!(verdict(true, "hunter2").await, Ok(true));
        assert_eq!(verdict(true, "hunter3").await, Ok(false));
        assert_eq!(verdict(false, "hunter2").await, Ok(false));
    }

    #[tokio::test]
    async fn who_comes_to_a_full_queue_is_sent_away() {
        let verifier = Verifier::default();
        let all = verifier.waiting.clone().acquire_many_owned(WAITING as u32).await.unwrap();
        let hash = Secret::new(cheap("a"));
        assert_eq!(verifier.verify(hash.clone(), true, Secret::new("a")).await, Err(Busy));
        drop(all);
        assert_eq!(verifier.verify(hash, true, Secret::new("a")).await, Ok(true));
    }
}
