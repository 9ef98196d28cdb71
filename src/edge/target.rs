//! The parts of a request that name something: host, path. Pure.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::comfy::routes::unescaped;

/// Whether this is a host, with or without a port, and nothing besides.
pub(super) fn is_host(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        (address.parse::<Ipv6Addr>().is_ok(), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (!name.is_empty() && name.bytes().all(is_name_byte), port)
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port.strip_prefix(':') {
        Some(port) => port.is_empty() || digits(port) && port.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    host && port
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

/// Path and query with plain characters of the path in place of their escapes, so that every reader
/// sees the same path; or why no two readers could be trusted to.
pub(super) fn plain(target: &str) -> Result<Cow<'_, str>, &'static str> {
    let (path, query) = match target.find('?') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    if path.contains('\\') {
        return Err("the path contains a backslash, which must be percent-encoded");
    }
    let mut escapes = path.split('%');
    escapes.next();
    if escapes.any(|escape| !is_escape(escape.as_bytes())) {
        return Err("the path's percent-encoding is malformed");
    }
    let shown = unescaped(path);
    if shown.split('/').any(|segment| segment == "." || segment == "..") {
        return Err("the path contains dot segments");
    }
    match shown {
        Cow::Borrowed(_) => Ok(Cow::Borrowed(target)),
        Cow::Owned(shown) if shown == path => Ok(Cow::Borrowed(target)),
        Cow::Owned(shown) => Ok(Cow::Owned(shown + query)),
    }
}

/// Two hex digits that stand for no control byte.
fn is_escape(escape: &[u8]) -> bool {
    let byte = escape.get(..2).and_then(|digits| hex::decode(digits).ok());
    byte.is_some_and(|byte| byte[0] >= b' ' && byte[0] != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_ports() {
        for host in ["a", "a.example:8100", "10.0.0.1:80", "[::1]", "[2001:db8::1]:443", "a:"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a b", "a@b", "a:b", "a:1:2", "a:+1", "a:70000", "[::1", "::1", "[x]",
            "[::1]x", "a/b", "a?b", "a#b", "a\\b", "http://a", "\u{e9}",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_path_is_shown_as_every_reader_sees_it() {
        for (sent, shown) in [
            ("/%70rompt", "/prompt"),
            ("/api/%71ueue?x=%71", "/api/queue?x=%71"),
            ("/userdata/workflows%2Fa.json", "/userdata/workflows%2Fa.json"),
            ("/userdata/workflows%2Fa%2Ejson", "/userdata/workflows%2Fa.json"),
            ("/view?filename=../a\\b%zz", "/view?filename=../a\\b%zz"),
            ("/a/...", "/a/..."),
            ("/userdata/%E4%BD%A0.json", "/userdata/%E4%BD%A0.json"),
        ] {
            assert_eq!(plain(sent).as_deref(), Ok(shown), "{sent}");
        }
        assert!(matches!(plain("/userdata/a%2Fb?x"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn paths_that_readers_resolve_are_refused() {
        for path in [
            "/a/../b",
            "/..",
            "/./a",
            "/a/.",
            "/%2e%2e/a",
            "/a/%2E",
            "/a/.%2e/b",
            "/a\\b",
            "/%zz",
            "/%",
            "/%4",
            "/%00",
            "/a%0d%0aX",
            "/%7f",
        ] {
            assert!(plain(path).is_err(), "{path}");
        }
    }
}
