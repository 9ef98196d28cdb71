//! The cross-site check, in place of ComfyUI's own.
//!
//! ComfyUI answers 403 when `Host` and `Origin` disagree, but only where it thinks it is reached
//! by a loopback name, and it compares with the address that *we* use. So the gateway checks with
//! the name the public uses, and then makes both agree for the backend. Browsers alone send these
//! headers; programs without them pass.
//!
//! - `Origin` must name the host of the request, or one of `server.public_names`. As in ComfyUI a
//!   port that only one side gives does not count.
//! - `Sec-Fetch-Site: cross-site` passes only for navigations that cannot change anything.

use http::{HeaderMap, Method, header};

/// Whether another site is behind a request.
pub fn is_foreign(method: &Method, headers: &HeaderMap, public_names: &[String]) -> bool {
    let cross_site = value(headers, "sec-fetch-site") == Some("cross-site");
    if cross_site && !is_harmless_navigation(method, headers) {
        return true;
    }
    let origin = headers.get(header::ORIGIN);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(origin) = origin else { return false };
    let Ok(origin) = origin.to_str() else { return true };
    // Sandboxed frames and local files say "null". ComfyUI lets them pass; so do we unless the
    // browser says that it comes from elsewhere.
    if origin == "null" {
        return cross_site;
    }
    let Some((_, origin)) = origin.split_once("://") else { return true };
    !is_here(origin, host, public_names)
}

/// Whether a request was sent by a page of ours, as its `Referer` says.
pub fn refers_here(headers: &HeaderMap, public_names: &[String]) -> bool {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let referer = text(header::REFERER).and_then(|referer| referer.split_once("://"));
    let authority = referer.and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    authority.is_some_and(|authority| is_here(authority, text(header::HOST), public_names))
}

/// Whether an authority is the request's host or one of our names.
fn is_here(authority: &str, host: Option<&str>, public_names: &[String]) -> bool {
    let named = |name: &str| agree(name, authority);
    host.is_some_and(named) || public_names.iter().any(|name| named(name))
}

fn is_harmless_navigation(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
        && value(headers, "sec-fetch-mode") == Some("navigate")
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether two authorities mean the same: equal hosts, and equal ports where both give one.
fn agree(one: &str, other: &str) -> bool {
    let ((host, port), (other_host, other_port)) = (split_port(one), split_port(other));
    host.eq_ignore_ascii_case(other_host)
        && port.zip(other_port).is_none_or(|(port, other)| port == other)
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_bracket..].rfind(':') {
        Some(at) => {
            let (host, port) = authority.split_at(after_bracket + at);
            (host, Some(&port[1..]))
        }
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(method: &Method, headers: &[(&str, &str)], names: &[&str]) -> bool {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())
            })
            .collect();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        is_foreign(method, &map, &names)
    }

    #[test]
    fn programs_and_the_own_page_pass() {
        for headers in [
            &[("host", "a:8100")][..],
            &[("host", "a:8100"), ("origin", "http://a:8100")],
            &[("host", "A"), ("origin", "https://a")],
            &[("host", "a"), ("origin", "https://a:443")],
            &[("host", "a:8100"), ("origin", "http://a")],
            &[("host", "[::1]:8100"), ("origin", "http://[::1]:8100")],
            &[("host", "a"), ("origin", "null")],
            &[("host", "a"), ("sec-fetch-site", "same-origin")],
            &[("host", "a"), ("sec-fetch-site", "none")],
        ] {
            assert!(!foreign(&Method::POST, headers, &[]), "{headers:?}");
        }
    }

    #[test]
    fn other_sites_do_not() {
        for headers in [
            &[("host", "127.0.0.1:8181"), ("origin", "http://evil.example")][..],
            &[("host", "a:8100"), ("origin", "http://a:8101")],
            &[("host", "a"), ("origin", "http://a.evil.example")],
            &[("host", "a"), ("origin", "garbage")],
            &[("origin", "http://a")],
            &[("host", "a"), ("sec-fetch-site", "cross-site")],
            &[("host", "a"), ("origin", "null"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(foreign(&Method::POST, headers, &[]), "{headers:?}");
        }
    }

    #[test]
    fn a_link_from_elsewhere_opens_the_page_but_posts_nothing() {
        let link =
            [("host", "a"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(!foreign(&Method::GET, &link, &[]));
        assert!(foreign(&Method::POST, &link, &[]));
    }

    #[test]
    fn a_referer_tells_whose_page_it_was() {
        let refers = |referer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("host", "a:8100".parse().unwrap());
            headers.insert("referer", referer.parse().unwrap());
            refers_here(&headers, &["art.example".to_owned()])
        };
        assert!(refers("http://a:8100/@x/") && refers("https://art.example"));
        for other in ["http://evil.example/?http://a:8100/", "a:8100", "http://a:8101/", ""] {
            assert!(!refers(other), "{other}");
        }
        assert!(!refers_here(&HeaderMap::new(), &[]));
    }

    #[test]
    fn public_names_are_ours_too() {
        let headers = [("host", "10.0.0.5:8100"), ("origin", "https://art.example")];
        assert!(foreign(&Method::GET, &headers, &[]));
        assert!(!foreign(&Method::GET, &headers, &["art.example"]));
    }
}
