//! What a request shows of itself in its headers.
//!
//! A key as `Authorization: Bearer KEY` or `X-API-Key: KEY`, a name and a password as
//! `Authorization: Basic`. What stands there twice, or cannot be read, is no way in: one of two may
//! be somebody else's. A Bearer token that is none of our keys belongs to whoever is asked by
//! `auth.forward`, if somebody is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use super::key::PREFIX;
use super::password::MAX_PASSWORD;
use super::table::Table;
use crate::config::Secret;

/// The header for keys where `Authorization` is taken.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Headers that backends do not get once callers show us something.
pub const OURS: [&str; 3] = ["authorization", "x-api-key", "proxy-authorization"];

/// What a request shows.
#[derive(Debug)]
pub enum Credential<'h> {
    /// Nothing, or nothing that is for us.
    Nothing,
    /// A key.
    Key(&'h [u8]),
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// Something that cannot be read.
    Unreadable,
}

impl<'h> Credential<'h> {
    /// What these headers show, as far as the table takes it.
    pub fn of(headers: &'h HeaderMap, table: &Table) -> Self {
        let only = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            (values.next(), values.next().is_some())
        };
        let (key, keys) = only(&X_API_KEY);
        let (authorization, authorizations) = only(&AUTHORIZATION);
        if keys || authorizations {
            return Self::Unreadable;
        }
        if let Some(key) = key.filter(|_| !table.keys.is_empty()) {
            return Self::Key(key.as_bytes());
        }
        let Some(authorization) = authorization.map(http::HeaderValue::as_bytes) else {
            return Self::Nothing;
        };
        if let Some(shown) = of_scheme(authorization, b"bearer ")
            && !table.keys.is_empty()
            && (table.forward.is_none() || shown.starts_with(PREFIX.as_bytes()))
        {
            return Self::Key(shown);
        }
        match of_scheme(authorization, b"basic ") {
            Some(shown) if !table.accounts.is_empty() => basic(shown).unwrap_or(Self::Unreadable),
            _ => Self::Nothing,
        }
    }
}

/// What follows a scheme, whose name has no case (RFC 9110, 11.1).
fn of_scheme<'v>(value: &'v [u8], scheme: &[u8]) -> Option<&'v [u8]> {
    let (start, shown) = value.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then(|| shown.trim_ascii())
}

fn basic<'h>(shown: &[u8]) -> Option<Credential<'h>> {
    if shown.len() > 2 * MAX_PASSWORD {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(shown).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    let password = Secret::new(password);
    (password.reveal().len() <= MAX_PASSWORD)
        .then(|| Credential::Basic { user: user.to_owned(), password })
}
