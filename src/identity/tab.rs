//! A session for each browser tab, in the path: `/@<session>/…`.
//!
//! With `affinity: tab` a page navigation to `/` is redirected to `/@<session>/`. The stock page
//! works under a sub-path, so everything it asks for then has the prefix, which is stripped on the
//! way: [`split_tab`] takes a request's path apart and leaves what follows the prefix untouched.
//! Some addresses are absolute all the same (the page's progress icons, many a custom node's
//! `/view?…`); those belong to the tab of the page that asks, which [`referring_tab`] tells.
//! `/@NAME/` chooses a backend by hand; [`resolve`] looks names up first, then sessions. A forged,
//! stale or unknown session counts as none.

use http::header::{ACCEPT, REFERER, UPGRADE};
use http::{HeaderMap, Method};

use super::session::{Session, SigningKey};

/// Characters of a tab's name at most: the longest name of a backend.
const MAX_NAME: usize = 64;

/// A request's path with a tab's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TabPath<'a> {
    /// What stands between `/@` and the next `/`.
    pub name: &'a str,
    /// What follows, query included, byte for byte. Starts with `/` unless the slash is missing.
    pub rest: &'a str,
    /// `/@NAME` alone: relative addresses of the page would miss the prefix, so the client has to
    /// be redirected to [`TabPath::with_slash`].
    pub missing_slash: bool,
}

impl TabPath<'_> {
    /// The same path with a slash after the name: where to redirect to when it is missing.
    pub fn with_slash(&self) -> String {
        let slash = if self.missing_slash { "/" } else { "" };
        format!("/@{}{slash}{}", self.name, self.rest)
    }
}

/// What a tab's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab<'a> {
    /// The backend of this name, chosen by hand.
    Backend(&'a str),
    /// A session we signed.
    Session(Session),
    /// Neither.
    Unknown,
}

/// Takes a tab's prefix off the path and query of a request (in origin form, as it was sent).
///
/// `None` when there is none, or when what stands there could not be a name; such a path goes to
/// the backend as it is. Clients that encode the `@` (`/%40NAME/`) mean the same.
pub fn split_tab(path_and_query: &str) -> Option<TabPath<'_>> {
    let after =
        path_and_query.strip_prefix("/@").or_else(|| path_and_query.strip_prefix("/%40"))?;
    let end = after.find(['/', '?']).unwrap_or(after.len());
    let (name, rest) = after.split_at(end);
    is_name(name).then(|| TabPath { name, rest, missing_slash: !rest.starts_with('/') })
}

/// The name in the address of the page that asks, for a request that has no prefix itself.
///
/// A browser tells a page's whole address to the page's own host only. A client may claim any, as
/// it may put any prefix into a path; what the name stands for is checked alike.
pub fn referring_tab(headers: &HeaderMap) -> Option<&str> {
    let (_, address) = headers.get(REFERER)?.to_str().ok()?.split_once("://")?;
    let path = &address[address.find('/')?..];
    split_tab(path).map(|tab| tab.name)
}

/// What a tab's name stands for. Backends go first: a name that looks like a session (33 characters
/// with a valid signature) is not given to one by chance.
pub fn resolve<'a>(
    name: &'a str,
    key: &SigningKey,
    is_backend: impl FnOnce(&str) -> bool,
) -> Tab<'a> {
    if is_backend(name) {
        return Tab::Backend(name);
    }
    key.read_tab_name(name).map_or(Tab::Unknown, Tab::Session)
}

/// Where a new tab is redirected to, with the query it came with.
pub fn home(session: &Session, key: &SigningKey, query: Option<&str>) -> String {
    let name = key.tab_name(session);
    query.map_or_else(|| format!("/@{name}/"), |query| format!("/@{name}/?{query}"))
}

/// Whether a browser is navigating to the page, as opposed to the page (or a program) asking for
/// something: GET or HEAD of `/`, and `Sec-Fetch-Mode: navigate`, or for want of it an `Accept`
/// that names `text/html`.
pub fn is_page_navigation(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD)
        || path != "/"
        || headers.contains_key(UPGRADE)
    {
        return false;
    }
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode.as_bytes() == b"navigate",
        None => headers.get_all(ACCEPT).iter().any(|accept| names_html(accept.as_bytes())),
    }
}

/// A backend's `Location` as the tab must see it; `None` when it stays as it is (another host, a
/// relative address, which the browser resolves under the prefix by itself).
pub fn prefix_location(location: &str, name: &str) -> Option<String> {
    // Browsers read `//` and `/\` as the start of a host.
    let absolute = location.starts_with('/') && !location[1..].starts_with(['/', '\\']);
    absolute.then(|| format!("/@{name}{location}"))
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

fn names_html(accept: &[u8]) -> bool {
    accept.split(|byte| *byte == b',').any(|range| {
        let kind = range.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/html")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::affinity::Seconds;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn session() -> Session {
        SigningKey::new_tab_session(Seconds(1_700_000_000), &mut StdRng::seed_from_u64(5))
    }

    /// `path => name rest`, `path => name redirect target` or `path => none`, one case a line.
    #[test]
    fn the_corpus_is_taken_apart_as_it_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/tab/cases.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut seen = 0;
        for case in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (path, expected) = case.split_once(" => ").unwrap();
            let found = match split_tab(path) {
                None => "none".to_owned(),
                Some(tab) if tab.missing_slash => {
                    format!("{} redirect {}", tab.name, tab.with_slash())
                }
                Some(tab) => format!("{} {}", tab.name, tab.rest),
            };
            assert_eq!(found, expected, "{case}");
            seen += 1;
        }
        assert!(seen >= 20, "{seen} cases");
    }

    #[test]
    fn names_of_backends_go_before_sessions() {
        let name = key().tab_name(&session());
        assert_eq!(resolve(&name, &key(), |_| true), Tab::Backend(&name));
        assert_eq!(resolve(&name, &key(), |_| false), Tab::Session(session()));
        assert_eq!(resolve("comfy-9", &key(), |known| known == "comfy-1"), Tab::Unknown);
        let other = SigningKey::from_bytes(&[8; 32]);
        assert_eq!(resolve(&name, &other, |_| false), Tab::Unknown);
    }

    #[test]
    fn a_new_tab_keeps_its_query() {
        let name = key().tab_name(&session());
        assert_eq!(home(&session(), &key(), None), format!("/@{name}/"));
        assert_eq!(home(&session(), &key(), Some("a=%2F")), format!("/@{name}/?a=%2F"));
    }

    #[test]
    fn only_a_browser_going_to_the_page_navigates() {
        let asks = |method: Method, path: &str, pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (name.parse::<http::HeaderName>().unwrap(), HeaderValue::from_static(value))
            });
            is_page_navigation(&method, path, &pairs.collect())
        };
        let html = ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");
        let navigate = ("sec-fetch-mode", "navigate");
        assert!(asks(Method::GET, "/", &[navigate]));
        assert!(asks(Method::HEAD, "/", &[html]));
        assert!(asks(Method::GET, "/", &[("accept", "*/*, Text/HTML;q=0.1")]));
        assert!(!asks(Method::POST, "/", &[navigate, html]));
        assert!(!asks(Method::GET, "/api/queue", &[navigate, html]));
        assert!(!asks(Method::GET, "/", &[("sec-fetch-mode", "cors"), html]));
        assert!(!asks(Method::GET, "/", &[("accept", "*/*")]));
        assert!(!asks(Method::GET, "/", &[("accept", "text/htmlx")]));
        assert!(!asks(Method::GET, "/", &[]));
        assert!(!asks(Method::GET, "/", &[html, ("upgrade", "websocket")]));
    }

    #[test]
    fn the_page_that_asks_tells_its_tab() {
        let told = |referer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REFERER, HeaderValue::from_str(referer).unwrap());
            referring_tab(&headers).map(str::to_owned)
        };
        assert_eq!(told("http://a:8100/@x/").as_deref(), Some("x"));
        assert_eq!(told("https://[::1]/@x/assets/a.js?b=/@y/").as_deref(), Some("x"));
        for other in ["http://a/", "http://a", "http://a/b/@x/", "/@x/", "http://@x/", ""] {
            assert_eq!(told(other), None, "{other}");
        }
        assert_eq!(referring_tab(&HeaderMap::new()), None);
    }

    #[test]
    fn only_addresses_on_this_host_get_the_prefix() {
        assert_eq!(prefix_location("/login?a=b", "x").as_deref(), Some("/@x/login?a=b"));
        assert_eq!(prefix_location("/", "x").as_deref(), Some("/@x/"));
        for other in ["//evil.example/", "/\\evil.example/", "login", "", "http://h/", "?a"] {
            assert_eq!(prefix_location(other, "x"), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_follows_the_prefix_stays_as_it_is(rest in "/[!-~]{0,40}", name in "[A-Za-z0-9._-]{1,64}") {
            let path = format!("/@{name}{rest}");
            let tab = split_tab(&path).unwrap();
            prop_assert_eq!((tab.name, tab.rest, tab.missing_slash), (&*name, &*rest, false));
            prop_assert_eq!(tab.with_slash(), path);
        }

        #[test]
        fn a_redirect_leads_to_a_path_that_needs_none(path in "/@[ -~]{0,20}") {
            if let Some(tab) = split_tab(&path).filter(|tab| tab.missing_slash) {
                let target = tab.with_slash();
                let next = split_tab(&target).unwrap();
                prop_assert!(!next.missing_slash);
                prop_assert_eq!(next.name, tab.name);
            }
        }

        #[test]
        fn no_path_is_a_panic(path: String, location: String) {
            let _ = split_tab(&path);
            if let Some(prefixed) = prefix_location(&location, "x") {
                prop_assert_eq!(&prefixed[3..], &location);
            }
        }
    }
}
