//! `auth`, `routes` and `security`: who may come in, and what is closed to whom.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use url::Url;

use super::backends::headers;
use super::check::header;
use super::keys::nearest;
use super::raw::Node;
use super::secret::Secret;
use crate::auth::key::{self, Hash};
use crate::auth::password;
use crate::auth::rate::Rate;
use crate::auth::rules::Rule;
use crate::identity::user::MAX_NAME;

/// `auth`: who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Header in which an authenticating proxy names the user; believed of
    /// `server.trusted_proxies` only. Lower case.
    pub user_header: Option<String>,
    /// Whether a caller must be known. Unless it is said: when there is a way to be.
    pub required: bool,
    /// Users named by a proxy (`user_header`, `forward`) that have the admin right.
    pub admins: Vec<String>,
    /// Keys of programs.
    pub keys: Vec<ApiKey>,
    /// People who log in here.
    pub users: Vec<User>,
    /// How browsers are asked for a password.
    pub login: Login,
    /// How long a login lasts.
    pub login_ttl: Duration,
    /// Who is asked about each request that shows nothing of the above.
    pub forward: Option<Forward>,
}

impl Auth {
    /// Whether callers show something that only the gateway may see.
    pub fn has_credentials(&self) -> bool {
        !self.keys.is_empty() || !self.users.is_empty() || self.forward.is_some()
    }

    /// Whether anybody is told from anybody.
    pub fn is_on(&self) -> bool {
        self.has_credentials() || self.user_header.is_some() || self.required
    }
}

/// One of `auth.keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its name: the caller's.
    pub name: String,
    /// The SHA-256 of the key.
    pub hash: Hash,
    /// When it ends, in Unix seconds.
    pub expires: Option<u32>,
    /// Requests it may make.
    pub rate: Option<Rate>,
    /// The routes it is for; none: every one.
    pub routes: Vec<Rule>,
    /// Whether it has the admin right.
    pub admin: bool,
}

/// One of `auth.users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The caller's name.
    pub name: String,
    /// Argon2id, in PHC form.
    pub password_hash: Secret,
    /// Whether they have the admin right.
    pub admin: bool,
}

/// `auth.login`: how browsers are asked for a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// By a page of ours.
    Page,
    /// By their own dialog (HTTP Basic).
    Basic,
}

/// `auth.forward`: who is asked about requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where.
    pub url: Secret,
    /// Header of a good answer that names the user. Lower case.
    pub user_header: String,
    /// Headers sent along.
    pub headers: Vec<(String, Secret)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long a good answer holds for the same request of the same caller.
    pub cache: Duration,
}

/// `routes`: what is closed or open beside the preset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// Closed to callers without the admin right, whatever else says.
    pub deny: Vec<Rule>,
    /// Open although the preset closes it.
    pub allow: Vec<Rule>,
}

/// `security`: which routes are closed without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// What changes servers or shows their insides.
    Standard,
    /// None.
    Open,
}

const DAY: Duration = Duration::from_hours(24);
const KEY_FIELDS: [&str; 6] = ["name", "hash", "expires", "rate", "routes", "rights"];
const USER_FIELDS: [&str; 3] = ["name", "password_hash", "rights"];

pub(super) fn auth(node: &Node<'_>) -> Auth {
    let mut auth = Auth {
        user_header: header(
            &node.get("user_header"),
            "use a header name, such as X-Forwarded-User",
        ),
        required: false,
        admins: node.get("admins").list("give a list of names", name),
        keys: keys(&node.get("keys")),
        users: users(&node.get("users")),
        login: node
            .get("login")
            .choice(Login::Page, &[("page", Login::Page), ("basic", Login::Basic)]),
        login_ttl: node.get("login_ttl").duration(DAY, Duration::from_secs(1)..=365 * DAY),
        forward: forward(&node.get("forward")),
    };
    let required = node.get("required");
    auth.required = required.bool(auth.has_credentials());
    if auth.required && !auth.has_credentials() && auth.user_header.is_none() {
        required.problem(
            "nobody could come in; add keys, users, forward or user_header, or leave it out"
                .to_owned(),
        );
    }
    auth
}

pub(super) fn routes(node: &Node<'_>) -> Routes {
    Routes { deny: rules(&node.get("deny")), allow: rules(&node.get("allow")) }
}

pub(super) fn security(node: &Node<'_>) -> Security {
    node.choice(Security::Standard, &[("standard", Security::Standard), ("open", Security::Open)])
}

fn rules(node: &Node<'_>) -> Vec<Rule> {
    const CURE: &str = "give rules such as POST /free, /internal/** or {method: GET, path: /logs}";
    node.list(CURE, |item| {
        let (method, path) = (item.get("method"), item.get("path"));
        let words = |node: &Node<'_>| node.value().and_then(super::raw::plain);
        let rule = match item.value().is_some_and(serde_yaml::Value::is_mapping) {
            false => item.value().and_then(|value| Rule::parse(value.as_str()?)),
            true if known_only(item, &["method", "path"]) => {
                words(&path).and_then(|path| Rule::new(words(&method).as_deref(), &path))
            }
            true => return None,
        };
        if rule.is_none() {
            item.problem(CURE.to_owned());
        }
        rule
    })
}

/// Whether an item is a map with these keys and no others; what is wrong is noted.
fn known_only(item: &Node<'_>, known: &[&str]) -> bool {
    let mut fine = true;
    for (name, value) in item.entries() {
        if !known.contains(&name.as_str()) {
            let near = nearest(&name, known.iter().copied());
            let cure = match near {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => format!("unknown key; use one of {}", known.join(", ")),
            };
            value.masked_problem(cure);
            fine = false;
        }
    }
    fine
}

/// Whether an item of keys or users is a map; a text there may well be a secret.
fn is_map(item: &Node<'_>, fields: &[&str]) -> bool {
    let is_map = item.value().is_some_and(serde_yaml::Value::is_mapping);
    if !is_map {
        item.masked_problem(format!("give a map of {}", fields.join(", ")));
    }
    is_map
}

fn keys(node: &Node<'_>) -> Vec<ApiKey> {
    let keys = node.list("give a list of keys, as `comfygate key new NAME` prints them", |item| {
        if !is_map(item, &KEY_FIELDS) {
            return None;
        }
        let (shown, expires) = (item.get("hash"), item.get("expires"));
        let hash = shown.value().and_then(|value| key::read_hash(value.as_str()?));
        if hash.is_none() {
            // What stands there may be the key itself.
            shown.masked_problem(
                "use sha256: and 64 digits, as `comfygate key new NAME` prints it".to_owned(),
            );
        }
        // Everything is looked at before anything that is missing ends this.
        let name = required_name(&item.get("name"));
        let expires = expires
            .text("use a date or a time, such as 2027-01-31T12:00:00Z", |text| end_of(&text));
        let rate = item.get("rate");
        let rate =
            rate.text("use a rate, such as 10/s, 600/m or 5000/h", |text| Rate::parse(&text));
        let routes = rules(&item.get("routes"));
        let admin = is_admin(&item.get("rights"));
        Some(ApiKey { name: name?, hash: hash?, expires, rate, routes, admin })
    });
    let mut seen = (HashSet::new(), HashSet::new());
    if !keys.iter().all(|key| seen.0.insert(&key.name) && seen.1.insert(key.hash)) {
        node.masked_problem("a name or a hash stands twice; give each key its own".to_owned());
    }
    keys
}

fn users(node: &Node<'_>) -> Vec<User> {
    let users = node.list("give a list of users", |item| {
        if !is_map(item, &USER_FIELDS) {
            return None;
        }
        let hash_node = item.get("password_hash");
        let hash = hash_node.secret();
        if let Err(cure) = hash
            .as_ref()
            .map_or(Err("print one with `comfygate key password`"), |h| password::check(h.reveal()))
        {
            hash_node.masked_problem(cure.to_owned());
        }
        let (name, admin) = (required_name(&item.get("name")), is_admin(&item.get("rights")));
        // Basic has no way to say a name with a colon.
        if name.as_ref().is_some_and(|name| name.contains(':')) {
            item.get("name").problem("use a name without a colon".to_owned());
        }
        Some(User { name: name?, password_hash: hash?, admin })
    });
    let mut seen = HashSet::new();
    if !users.iter().all(|user| seen.insert(&user.name)) {
        node.masked_problem("a name stands twice; give each user their own".to_owned());
    }
    users
}

fn forward(node: &Node<'_>) -> Option<Forward> {
    node.value()?;
    let url_node = node.get("url");
    let url = url_node.secret();
    let is_url = url.as_ref().and_then(|url| Url::parse(url.reveal()).ok());
    if !is_url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        let cure = "use the http:// or https:// URL that answers whether a request may pass";
        url_node.masked_problem(cure.to_owned());
    }
    let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
    let user_header = header(&node.get("user_header"), "use a header name, such as Remote-User");
    let headers = headers(&node.get("headers"));
    let timeout = node.get("timeout").duration(5 * second, second / 100..=60 * second);
    let cache = node.get("cache").duration(5 * second, Duration::ZERO..=hour);
    let user_header = user_header.unwrap_or_else(|| "remote-user".to_owned());
    Some(Forward { url: url?, user_header, headers, timeout, cache })
}

fn required_name(node: &Node<'_>) -> Option<String> {
    if !node.is_set() {
        node.problem("give a name".to_owned());
    }
    name(node)
}

fn name(node: &Node<'_>) -> Option<String> {
    node.text("use a name of 1 to 256 bytes, without blanks around it", |text| {
        (text.len() <= MAX_NAME && text.trim() == text).then_some(text)
    })
}

/// `rights`: there is one that can be given.
fn is_admin(node: &Node<'_>) -> bool {
    let rights = node.list("give a list of rights: [admin]", |right| {
        right.text("use admin; there is no other right", |text| (text == "admin").then_some(()))
    });
    !rights.is_empty()
}

/// The second in which a key ends: that of a time, or the first of a day.
fn end_of(text: &str) -> Option<u32> {
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let day: Date = text.parse().ok()?;
        Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp())
    });
    u32::try_from(time?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse};

    fn config(keys: &str) -> Result<Config, String> {
        parse(&format!("{{backends: ['http://a'], {keys}}}")).map_err(|p| p.to_string())
    }

    fn hash() -> String {
        key::show_hash(&key::hash(b"x"))
    }

    #[test]
    fn keys_are_read_with_all_they_may_have() {
        let text = format!(
            "auth: {{keys: [{{name: ci, hash: '{}', expires: 2027-01-31, rate: 600/m, \
             routes: [POST /prompt, {{path: /view}}], rights: [admin]}}]}}",
            hash()
        );
        let auth = config(&text).unwrap().auth;
        let key = &auth.keys[0];
        assert_eq!((key.name.as_str(), key.admin, auth.required), ("ci", true, true));
        assert_eq!(key.expires, Some(1_801_353_600));
        assert_eq!(key.rate, Rate::parse("600/m"));
        assert_eq!(
            key.routes,
            [Rule::parse("POST /prompt").unwrap(), Rule::parse("/view").unwrap()]
        );
    }

    #[test]
    fn what_is_wrong_is_told_without_showing_secrets() {
        let secret = key::new();
        for (keys, told) in [
            (
                format!("auth: {{keys: [{{name: a, hash: {secret}}}]}}"),
                "auth.keys[0].hash = MASKED",
            ),
            (format!("auth: {{keys: [{secret}]}}"), "auth.keys[0] = MASKED"),
            (format!("auth: {{keys: {secret}}}"), "auth.keys = "),
            ("auth: {keys: [{hash: 'sha256:00', name: a}]}".into(), "auth.keys[0].hash"),
            (format!("auth: {{keys: [{{hash: '{}'}}]}}", hash()), "auth.keys[0].name"),
            (
                format!("auth: {{keys: [{{name: a, hash: '{}', expires: soon}}]}}", hash()),
                "expires",
            ),
            (
                format!("auth: {{keys: [{{name: a, hash: '{}', rights: [root]}}]}}", hash()),
                "rights",
            ),
            (
                format!("auth: {{keys: [{{name: a, hash: '{}', routes: [prompt]}}]}}", hash()),
                "routes",
            ),
            (format!("auth: {{keys: [{{name: a, hash: '{}', rats: 1}}]}}", hash()), "rate"),
            ("auth: {users: [{name: a, password_hash: hunter2}]}".into(), "password_hash = MASKED"),
            ("auth: {required: true}".into(), "auth.required"),
            ("auth: {forward: {url: 'ftp://a'}}".into(), "auth.forward.url = MASKED"),
            ("auth: {forward: {}}".into(), "auth.forward.url"),
            ("routes: {deny: [{methd: GET, path: /x}]}".into(), "did you mean method?"),
            ("routes: {deny: [free]}".into(), "routes.deny[0] = free"),
            ("security: closed".into(), "use one of standard, open"),
        ] {
            let problems = config(&keys).unwrap_err();
            assert!(problems.contains(told), "{keys}: {problems}");
            assert!(!problems.contains(&secret) && !problems.contains("hunter2"), "{problems}");
        }
    }

    #[test]
    fn the_preset_is_on_and_auth_off_unless_said() {
        let plain = config("mode: sticky").unwrap();
        assert_eq!(plain.security, Security::Standard);
        assert!(!plain.auth.is_on() && !plain.auth.required);
        let named = config("auth: {user_header: X-User}").unwrap().auth;
        assert!(named.is_on() && !named.required && !named.has_credentials());
    }
}
