//! The user that an authenticating proxy names in a header (`auth.user_header`).
//!
//! Whether the peer may say so is for the caller to know; here is only what a name may look like.
//! A header that stands there twice, or holds what is no name, is refused and not passed over: one
//! of the two may be the client's own invention.

use crate::rejection::{Kind, Rejection};

/// Bytes of a user's name at most.
pub const MAX_NAME: usize = 256;

/// What names the user to a multi-user ComfyUI.
pub const COMFY_USER: &str = "comfy-user";

/// The user's name in the values of the header; none when it is not there, or empty.
pub fn read<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Option<String>, Rejection> {
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong("stands there more than once"));
    }
    let name = std::str::from_utf8(value).map_err(|_| wrong("is no text"))?.trim();
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(wrong("is no name"));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

fn wrong(how: &str) -> Rejection {
    Rejection::new(Kind::BadRequest, format!("the header that names the user {how}"))
        .cure("have the proxy in front set it, in place of whatever clients send")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::option_option, reason = "refused, none, or a name")]
    fn name(values: &[&str]) -> Option<Option<String>> {
        read(values.iter().map(|value| value.as_bytes())).ok()
    }

    #[test]
    fn one_name_is_taken_and_two_are_refused() {
        assert_eq!(name(&[" Anna Ø "]), Some(Some("Anna Ø".to_owned())));
        assert_eq!(name(&[]), Some(None));
        assert_eq!(name(&["  "]), Some(None));
        assert_eq!(name(&["a", "a"]), None);
        assert_eq!(name(&["a\u{7}"]), None);
        assert_eq!(name(&[&"a".repeat(MAX_NAME + 1)]), None);
        assert!(read([&b"\xff"[..]].into_iter()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_names_are_bounded(values: Vec<Vec<u8>>) {
            if let Ok(Some(name)) = read(values.iter().map(Vec::as_slice)) {
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
            }
        }
    }
}
