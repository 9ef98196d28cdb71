//! What tells clients apart: forwarded addresses, cookies, tabs.

use std::net::{IpAddr, Ipv4Addr};

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::bytes::Input;
use crate::affinity::Seconds;
use crate::identity::address::{MAX_HOPS, TrustedProxies};
use crate::identity::session::{SessionId, SigningKey};
use crate::identity::{cookie as cookies, mark, tab as tabs, user};

/// The key that the values in the corpus are signed with.
fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Each line of an input as a header of its own.
fn lines(input: &mut Input<'_>, name: &HeaderName) -> HeaderMap {
    let mut headers = HeaderMap::new();
    while !input.0.is_empty() && headers.len() < 64 {
        if let Ok(value) = HeaderValue::from_bytes(input.line()) {
            headers.append(name.clone(), value);
        }
    }
    headers
}

/// `X-Forwarded-For`, a line for each header; the first byte is the end of the peer's address.
pub fn forwarded(data: &[u8]) {
    let mut input = Input(data);
    let peer = IpAddr::V4(Ipv4Addr::new(10, 0, 0, input.byte()));
    let ours = "10.0.0.0/25 2001:db8::/32 ::ffff:192.0.2.0/120";
    let nets: Vec<_> = ours.split(' ').filter_map(|net| net.parse().ok()).collect();
    let proxies = TrustedProxies::new(&nets);
    let name = HeaderName::from_static("x-forwarded-for");
    let headers = lines(&mut input, &name);
    let client = proxies.client(peer, &headers);
    let said = proxies.forwarded(peer, &headers, false);
    let hops: Vec<&str> = said.chain.split(", ").collect();
    assert!(hops.len() <= MAX_HOPS);
    assert_eq!(hops.last().copied(), Some(&*peer.to_string()), "the peer comes last");
    assert!(said.chain.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{:?}", said.chain);
    if !proxies.contains(peer) {
        assert_eq!((client, hops.len()), (peer, 1), "nobody else's word counts");
        return;
    }
    // A backend that trusts the same proxies, and us, finds the same client. The peer takes a place.
    let entries =
        headers.get_all(&name).iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    if entries.filter(|entry| !entry.trim_ascii().is_empty()).count() < MAX_HOPS {
        let mut sent = HeaderMap::new();
        sent.extend(HeaderValue::from_str(&said.chain).ok().map(|chain| (name, chain)));
        assert_eq!(proxies.client(peer, &sent), client, "{:?}", said.chain);
    }
}

/// `Cookie`, a line for each header, beside the headers that name a user and a task type.
pub fn cookie(data: &[u8]) {
    let headers = lines(&mut Input(data), &COOKIE);
    let found = cookies::find(&headers, &key());
    if let Some(session) = found {
        let value = key().cookie_value(&session);
        assert_eq!(key().read_cookie_value(value.as_bytes()), Some(session));
        assert!(
            data.windows(value.len()).any(|window| window == value.as_bytes()),
            "as we sign it"
        );
    }
    let Some(stripped) = cookies::without_ours(&headers) else {
        assert_eq!(found, None, "a cookie of ours is taken off");
        return;
    };
    let mut sent = HeaderMap::new();
    sent.extend(stripped.into_iter().map(|line| (COOKIE, line)));
    assert_eq!(cookies::find(&sent, &key()), None, "no backend sees it");
    assert!(cookies::without_ours(&sent).is_none(), "nothing of ours is left");
    let pairs = |headers: &HeaderMap| {
        let lines = headers.get_all(COOKIE).iter().map(|line| line.as_bytes().to_vec());
        let pairs = lines.flat_map(|line| {
            line.split(|b| *b == b';').map(|pair| pair.trim_ascii().to_vec()).collect::<Vec<_>>()
        });
        pairs.filter(|pair| !pair.is_empty()).collect::<Vec<_>>()
    };
    let mut before = pairs(&headers).into_iter();
    assert!(pairs(&sent).iter().all(|pair| before.any(|other| other == *pair)), "the rest stays");
    names(data);
}

/// The headers that name a user and a task type.
fn names(data: &[u8]) {
    if let Ok(Some(name)) = user::read(data.split(|byte| *byte == b'\n')) {
        assert!((1..=user::MAX_NAME).contains(&name.len()) && !name.contains(char::is_control));
    }
    if let Ok(task_type) = mark::read(data) {
        assert!(task_type.chars().count() <= 128 && !task_type.contains(char::is_control));
    }
}

/// A line as a request's target, the rest as a backend's `Location` and a page's address.
pub fn tab(data: &[u8]) {
    let mut input = Input(data);
    let Ok(target) = std::str::from_utf8(input.line()) else { return };
    if let Some(tab) = tabs::split_tab(target) {
        assert!(target.ends_with(tab.rest) && !tab.name.is_empty());
        let plain = format!("/@{}{}", tab.name, tab.rest);
        let escaped = format!("/%40{}{}", tab.name, tab.rest);
        assert!(target == plain || target == escaped, "{target:?}");
        let whole = tab.with_slash();
        let again = tabs::split_tab(&whole).expect("a redirect leads to a tab");
        assert_eq!((again.name, again.missing_slash), (tab.name, false));
        if let tabs::Tab::Session(session) = tabs::resolve(tab.name, &key(), |_| false) {
            assert_eq!(key().tab_name(&session), tab.name, "one name for a session");
        }
    }
    let id = SessionId::from_bytes(*input.0.first_chunk().unwrap_or(&[3; 16]));
    let session = crate::identity::session::Session { id, issued: Seconds(0) };
    let name = key().tab_name(&session);
    assert_eq!(key().read_tab_name(&name).map(|read| read.id), Some(id));
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(input.0) {
        headers.insert(http::header::REFERER, value.clone());
        headers.insert(http::header::ACCEPT, value);
    }
    let _ = tabs::is_page_navigation(&Method::GET, target, &headers);
    if let Some(name) = tabs::referring_tab(&headers) {
        assert!(tabs::split_tab(&format!("/@{name}/")).is_some_and(|tab| tab.name == name));
    }
    let Ok(location) = std::str::from_utf8(input.0) else { return };
    if let Some(prefixed) = tabs::prefix_location(location, &name) {
        let tab = tabs::split_tab(&prefixed).expect("it leads into the tab");
        assert_eq!((tab.name, tab.rest), (&*name, location));
    }
}
