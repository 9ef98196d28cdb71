//! The decision: a request, what it has proven, a table; in or out. Pure.

use std::sync::Arc;

use http::header::ORIGIN;
use http::{HeaderMap, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::answer::Answer;
use super::grant::Grant;
use super::key::Key;
use super::login::Login;
use super::page::LOGIN;
use super::path::Readings;
use super::table::{Account, Hidden, Table};
use crate::comfy::origin;
use crate::config;
use crate::identity::tab::is_page_navigation;
use crate::rejection::{Kind, Rejection};

/// What a query's value may not hold as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// A request, as far as it matters who may send it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query as they were sent.
    pub sent: &'a str,
    /// The same without a tab's prefix.
    pub target: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Names that are the gateway's own.
    pub public_names: &'a [String],
}

/// What a request has proven.
#[derive(Debug, Clone)]
pub enum Proof {
    /// Nothing.
    Nothing,
    /// It shows something that is wrong, and what is wrong with it.
    Wrong(&'static str),
    /// A key that holds.
    Key(Arc<Key>),
    /// A password that is right.
    Password(Arc<Account>),
    /// A login that holds.
    Login(Arc<Account>, Login),
    /// The word of a trusted proxy: header and name.
    Named(String, String),
    /// The word of whom we asked, perhaps with a name.
    Forwarded(Arc<config::Forward>, Option<String>),
}

/// Who comes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// The authenticated user.
    pub user: Option<String>,
    /// By what.
    pub grant: Grant,
    /// Cookies to be set.
    pub cookies: Vec<String>,
    /// What of it backends do not get.
    pub hidden: Arc<Hidden>,
}

/// Why somebody stays out.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// A refusal in our own words.
    Rejected(Rejection),
    /// Another answer: to the login page, or what the one we asked says.
    Answer(Box<Answer>),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// What is known of a caller.
struct Standing {
    user: Option<String>,
    grant: Grant,
    is_admin: bool,
    /// A browser shows it on behalf of any page.
    is_ambient: bool,
}

/// Lets a request in, or says why not.
pub fn decide(table: &Table, request: &Request<'_>, proof: &Proof) -> Result<Pass, Refusal> {
    let pass = |user, grant| {
        let hidden = Arc::clone(&table.hidden);
        Ok(Pass { user, grant, cookies: Vec::new(), hidden })
    };
    if is_open_to_all(request.target) {
        return pass(None, Grant::Anyone);
    }
    let readings = Readings::of(request.target);
    if let Proof::Key(key) = proof
        && !key.routes.is_empty()
        && !key.routes.iter().any(|rule| rule.opens(request.method, &readings))
    {
        return Err(Rejection::new(Kind::Forbidden, "this key is not for this route")
            .cure("auth.keys[].routes names what it is for")
            .into());
    }
    let standing = standing(table, request, proof)?;
    if table.closes(request.method, &readings) {
        let refuse = |message: &str, cure: &str| {
            Err(Rejection::new(Kind::Forbidden, message).cure(cure).into())
        };
        if !standing.is_admin {
            return refuse(
                "this route is closed to callers without the admin right",
                "rights: [admin] gives it to a key or a user; routes.allow opens a route, \
                 security: open all that the preset closes",
            );
        }
        // GETs change something here, and a link on any page sends one with the login's cookie.
        if standing.is_ambient && !is_own_page(request) {
            return refuse(
                "this route is used from the page itself, or with a key",
                "a program shows Authorization: Bearer with a key that has the admin right",
            );
        }
    }
    pass(standing.user, standing.grant)
}

/// What has its own guard, or none: the gateway's endpoints, but for the one that tells and chooses
/// a caller's backend.
pub fn is_open_to_all(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    (path == "/lb" || path.starts_with("/lb/")) && path != "/lb/session"
}

fn standing(table: &Table, request: &Request<'_>, proof: &Proof) -> Result<Standing, Refusal> {
    let named = |name: &str, admin: bool, ambient: bool, grant: Grant| Standing {
        user: Some(name.to_owned()),
        grant,
        is_admin: admin,
        is_ambient: ambient,
    };
    Ok(match proof {
        Proof::Nothing if !table.required => {
            Standing { user: None, grant: Grant::Anyone, is_admin: false, is_ambient: true }
        }
        Proof::Nothing => return Err(not_known(table, request)),
        Proof::Wrong(how) => return Err(unauthorized(table, how).into()),
        Proof::Key(key) => named(&key.name, key.admin, false, Grant::Key(key.hash)),
        Proof::Password(account) => {
            let (user, fingerprint) = (account.name.clone(), account.fingerprint);
            let grant = Grant::Password { user, fingerprint };
            named(&account.name, account.admin, true, grant)
        }
        Proof::Login(account, login) => {
            let (login, fingerprint) = (login.clone(), account.fingerprint);
            named(&account.name, account.admin, true, Grant::Login { login, fingerprint })
        }
        Proof::Named(header, name) => {
            named(name, table.is_admin(name), true, Grant::Header(header.clone()))
        }
        Proof::Forwarded(asked, user) => Standing {
            user: user.clone(),
            grant: Grant::Forward(Arc::clone(asked)),
            is_admin: user.as_deref().is_some_and(|name| table.is_admin(name)),
            is_ambient: true,
        },
    })
}

/// The answer to somebody who shows nothing: a person in a browser is sent to log in.
fn not_known(table: &Table, request: &Request<'_>) -> Refusal {
    // Whatever the path: here it only matters that a person goes there.
    let navigates = is_page_navigation(request.method, "/", request.headers);
    if !navigates || !table.has_login_page() {
        return unauthorized(table, "this gateway wants to know who asks").into();
    }
    let next = utf8_percent_encode(request.sent, VALUE);
    Refusal::Answer(Box::new(Answer::redirect(&format!("{LOGIN}?next={next}"))))
}

/// The refusal of what is missing or wrong.
pub fn unauthorized(table: &Table, message: &str) -> Rejection {
    let by_dialog = !table.accounts.is_empty() && !table.has_login_page();
    let challenge =
        if by_dialog { r#"Basic realm="comfygate", charset="UTF-8""# } else { "Bearer" };
    let cure = match (table.keys.is_empty(), table.accounts.is_empty()) {
        (false, true) => "send Authorization: Bearer KEY or X-API-Key: KEY",
        (false, false) => {
            "log in at /lb/login, or send Authorization: Bearer KEY, or Basic with a password"
        }
        (true, false) => "log in at /lb/login, or send Authorization: Basic",
        (true, true) => "come by the proxy that knows you",
    };
    Rejection::new(Kind::Unauthorized, message).cure(cure).challenge(challenge)
}

/// Whether a browser says that our own page sends this, or a person typed it. Programs say nothing
/// of the kind; older browsers and plain http have `Origin` and `Referer` alone. What `Origin` says
/// has been checked at the door, but for pages that have none.
fn is_own_page(request: &Request<'_>) -> bool {
    let headers = request.headers;
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin" || site == "none";
    }
    match headers.get(ORIGIN) {
        Some(origin) => origin != "null",
        None => origin::refers_here(headers, request.public_names),
    }
}
