//! The session cookie, `comfygate_session`: found in a request, hidden from the backends, set on
//! page navigations.
//!
//! The cookie of a session is set by [`set_cookie`] when a page is navigated to and the request had
//! none that counts, and again on any response once [`Session::is_due_for_renewal`]: the browser
//! drops it `ttl` after it was set, however busy the session is.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::session::{Session, SigningKey};

/// The cookie's name.
pub const NAME: &str = "comfygate_session";
/// Our other cookies: of a login, and of the admin port.
const OTHERS: [&str; 4] =
    [crate::auth::login::NAME, "comfygate_admin", "comfygate_csrf", "comfygate_lang"];
/// Cookies of our name looked at in one request: a page can set more, none of them signed.
const MAX_CANDIDATES: usize = 8;

/// The first session cookie that we signed, of all `Cookie` headers.
pub fn find(headers: &HeaderMap, key: &SigningKey) -> Option<Session> {
    pairs(headers)
        .filter_map(our_value)
        .take(MAX_CANDIDATES)
        .find_map(|value| key.read_cookie_value(value))
}

/// The `Cookie` headers without ours, to be sent upstream; `None` when it is not among them.
pub fn without_ours(headers: &HeaderMap) -> Option<Vec<HeaderValue>> {
    pairs(headers).any(is_ours).then(|| {
        headers.get_all(COOKIE).iter().filter_map(|line| strip_line(line.as_bytes())).collect()
    })
}

/// The `Set-Cookie` value for a session; `ttl` in seconds, `secure` under TLS.
pub fn set_cookie(session: &Session, key: &SigningKey, ttl: u32, secure: bool) -> String {
    let value = key.cookie_value(session);
    let secure = if secure { "; Secure" } else { "" };
    format!("{NAME}={value}; Path=/; Max-Age={ttl}; HttpOnly; SameSite=Lax{secure}")
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
}

/// The value, when the pair is our cookie; browsers compare names by case, and so do we.
fn our_value(pair: &[u8]) -> Option<&[u8]> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (name, value) = pair.split_at(equals);
    let value = value[1..].trim_ascii();
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    (name.trim_ascii() == NAME.as_bytes()).then_some(quoted.unwrap_or(value))
}

/// Whether a pair is of the gateway's. Cookies know no ports: a browser that is logged in to the
/// dashboard sends that cookie to the data port as well, and no backend may see it.
fn is_ours(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    our_value(pair).is_some() || OTHERS.iter().any(|own| name == own.as_bytes())
}

/// One header line without our cookie; `None` when nothing is left.
fn strip_line(line: &[u8]) -> Option<HeaderValue> {
    let pairs = line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let others = pairs.filter(|pair| !pair.is_empty() && !is_ours(pair));
    let others: Vec<&[u8]> = others.collect();
    if others.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&others.join(&b"; "[..])).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::affinity::Seconds;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn session() -> Session {
        SigningKey::new_cookie_session(Seconds(1_700_000_000), &mut StdRng::seed_from_u64(5))
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    /// `Cookie lines | valid or none | Cookie lines sent upstream`, one case a line; `VALID` stands
    /// for a value we signed, `FORGED` for one somebody else signed.
    #[test]
    fn the_corpus_is_read_and_stripped_as_it_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/cookie/cases.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let forged = SigningKey::from_bytes(&[8; 32]).cookie_value(&session());
        let mut seen = 0;
        for case in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let full = case.replace("VALID", &key().cookie_value(&session()));
            let full = full.replace("FORGED", &forged);
            let fields: Vec<&str> = full.split('|').map(str::trim).collect();
            let [sent, verdict, upstream] = fields[..] else { panic!("three fields: {case}") };
            let lines: Vec<&str> = sent.split('⏎').map(str::trim).collect();
            let found = find(&headers(&lines), &key());
            let expected = match verdict {
                "valid" => Some(session()),
                "none" => None,
                _ => panic!("valid or none: {case}"),
            };
            assert_eq!(found, expected, "{case}");
            let rest = match without_ours(&headers(&lines)) {
                None => "untouched".to_owned(),
                Some(left) => {
                    let left: Vec<&str> = left.iter().map(|line| line.to_str().unwrap()).collect();
                    left.join(" ⏎ ")
                }
            };
            assert_eq!(rest, upstream, "{case}");
            seen += 1;
        }
        assert!(seen >= 15, "{seen} cases");
    }

    #[test]
    fn the_cookie_is_set_with_all_its_guards() {
        let plain = set_cookie(&session(), &key(), 3600, false);
        let value = key().cookie_value(&session());
        assert_eq!(
            plain,
            format!("comfygate_session={value}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax")
        );
        assert!(set_cookie(&session(), &key(), 3600, true).ends_with("; SameSite=Lax; Secure"));
    }

    #[test]
    fn other_cookies_that_are_not_text_pass() {
        let value = key().cookie_value(&session());
        let mut line = b"a=\xff; comfygate_session=".to_vec();
        line.extend_from_slice(value.as_bytes());
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_bytes(&line).unwrap());
        assert_eq!(find(&headers, &key()), Some(session()));
        assert_eq!(without_ours(&headers).unwrap()[0].as_bytes(), b"a=\xff");
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_the_value_makes_it_none(at in 0usize..52, bit in 0u8..8) {
            let mut value = key().cookie_value(&session()).into_bytes();
            value[at] ^= 1 << bit;
            let line = [b"comfygate_session=".as_slice(), &value].concat();
            // Not every byte may stand in a header; those that may not never get here.
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                let mut headers = HeaderMap::new();
                headers.append(COOKIE, line);
                prop_assert_eq!(find(&headers, &key()), None);
            }
        }

        #[test]
        fn stripping_leaves_the_others_in_order(
            before in prop::collection::vec("[a-z]{1,5}=[!-:<-~]{0,9}", 0..4),
            after in prop::collection::vec("[a-z]{1,5}=[!-:<-~]{0,9}", 0..4),
        ) {
            let ours = format!("{NAME}=whatever");
            let all = [before.clone(), vec![ours], after.clone()].concat().join("; ");
            let left = without_ours(&headers(&[&all])).unwrap();
            let left: Vec<&str> = left.iter().map(|line| line.to_str().unwrap()).collect();
            prop_assert_eq!(left.join("; "), [before, after].concat().join("; "));
        }
    }
}
