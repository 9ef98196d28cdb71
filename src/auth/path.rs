//! How a request's path may be read by whoever stands behind the gateway.
//!
//! A rule that closes a route must hold however the route is written: with escapes, escaped
//! escapes, double slashes, dot segments, backslashes, another case, `/api` before it, a tab's
//! prefix, a slash behind it. So a path has two [`Readings`], with dot segments as they stand and
//! with dot segments resolved; a rule that closes holds when it meets either, one that opens only
//! when it meets both.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Escapes within escapes that are undone. Nobody nests them deeper; what is nested deeper still
/// is never opened by a rule.
const ROUNDS: usize = 4;

/// A path in the two ways it may be read, in segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readings {
    written: Vec<String>,
    resolved: Vec<String>,
    is_opaque: bool,
}

impl Readings {
    /// The readings of a request's target; the query does not count.
    pub fn of(target: &str) -> Self {
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let (path, is_opaque) = unescaped(path);
        let path = path.replace('\\', "/").to_ascii_lowercase();
        let written: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let mut resolved = Vec::with_capacity(written.len());
        for segment in &written {
            match *segment {
                "." => {}
                ".." => drop(resolved.pop()),
                segment => resolved.push(segment),
            }
        }
        Self { written: bare(&written), resolved: bare(&resolved), is_opaque }
    }

    /// Whether some reading is so.
    pub fn any(&self, is_so: impl Fn(&[String]) -> bool) -> bool {
        is_so(&self.written) || is_so(&self.resolved)
    }

    /// Whether every reading is so.
    pub fn all(&self, is_so: impl Fn(&[String]) -> bool) -> bool {
        !self.is_opaque && is_so(&self.written) && is_so(&self.resolved)
    }
}

/// The path without its escapes, and whether some are left.
fn unescaped(path: &str) -> (Cow<'_, str>, bool) {
    let mut plain = Cow::Borrowed(path);
    for _ in 0..ROUNDS {
        let next = percent_decode_str(&plain).decode_utf8_lossy().into_owned();
        if next == *plain {
            return (plain, false);
        }
        plain = Cow::Owned(next);
    }
    let is_opaque = percent_decode_str(&plain).decode_utf8_lossy() != plain;
    (plain, is_opaque)
}

/// Without a tab's prefix and `/api`, which `ComfyUI` takes or leaves.
fn bare(segments: &[&str]) -> Vec<String> {
    let tab = usize::from(segments.first().is_some_and(|first| first.starts_with('@')));
    let rest = &segments[tab..];
    let api = rest.iter().take_while(|segment| **segment == "api").count();
    rest[api..].iter().map(|segment| (*segment).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_reboot(segments: &[String]) -> bool {
        segments == ["manager", "reboot"]
    }

    #[test]
    fn one_route_written_in_many_ways_is_read_as_one() {
        for target in [
            "/manager/reboot",
            "/manager/reboot/",
            "/manager/reboot?x=1",
            "/api/manager/reboot",
            "/api/api/manager/reboot",
            "/@tab/manager/reboot",
            "/%40tab/api/manager/reboot",
            "//manager//reboot",
            "/Manager/REBOOT",
            "/%6danager/%72eboot",
            "/%256danager/reboot",
            "/%25256danager/reboot",
            "/manager%2Freboot",
            "/manager%252freboot",
            "/manager\\reboot",
            "/manager%5creboot",
            "/x/../manager/reboot",
            "/manager/./reboot",
            "/manager/x/%2e%2e/reboot",
            "/../../manager/reboot",
            "/a%70i/manager/reboot",
        ] {
            assert!(Readings::of(target).any(is_reboot), "{target}");
        }
        for target in ["/", "/managers/reboot", "/manager", "/view?filename=/manager/reboot", ""] {
            assert!(!Readings::of(target).any(is_reboot), "{target}");
        }
    }

    #[test]
    fn what_reads_differently_is_opened_by_no_rule() {
        for target in ["/x/../manager/reboot", "/manager/./reboot", "/%2525252525256danager/reboot"]
        {
            assert!(!Readings::of(target).all(is_reboot), "{target}");
        }
        assert!(Readings::of("/api/manager/reboot").all(is_reboot));
    }

    proptest! {
        #[test]
        fn no_target_is_a_panic_and_no_segment_empty(target: String) {
            let readings = Readings::of(&target);
            let sound = |segments: &[String]| segments.iter().all(|segment| !segment.is_empty());
            prop_assert!(sound(&readings.written) && sound(&readings.resolved));
        }

        #[test]
        fn any_escaping_of_a_route_is_read_as_the_route(
            escapes in prop::collection::vec(0u8..3, 15),
        ) {
            let mut target = String::from("/");
            for (byte, how) in b"manager/reboot".iter().zip(&escapes) {
                match how {
                    0 => target.push(char::from(*byte)),
                    1 => target += &format!("%{byte:02x}"),
                    _ => target += &format!("%25{byte:02X}"),
                }
            }
            prop_assert!(Readings::of(&target).any(is_reboot), "{}", target);
        }
    }
}
