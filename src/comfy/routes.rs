//! Which of ComfyUI's routes a request means, as far as the gateway cares.

use std::borrow::Cow;

use http::Method;

/// The path without its `/api` prefix, which ComfyUI takes or leaves, and without its query.
pub fn bare(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match path.strip_prefix("/api") {
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// A path as servers read it that decode it before they look for a route: with plain characters in
/// place of their escapes (`/%71ueue` is `/queue`). An escaped slash stays one.
pub fn unescaped(target: &str) -> Cow<'_, str> {
    let hidden = |escape: &[u8]| {
        let byte = hex::decode(escape.get(..2)?).ok()?[0];
        (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)).then_some(char::from(byte))
    };
    let mut pieces = target.split('%');
    let mut plain = Cow::Borrowed(pieces.next().unwrap_or_default());
    if plain.len() == target.len() {
        return plain;
    }
    for piece in pieces {
        let byte = hidden(piece.as_bytes());
        plain.to_mut().push(byte.unwrap_or('%'));
        plain.to_mut().push_str(if byte.is_some() { &piece[2..] } else { piece });
    }
    plain
}

/// Whether this queues a prompt, however its path is escaped.
pub fn is_prompt_post(method: &Method, target: &str) -> bool {
    *method == Method::POST && bare(&unescaped(target)) == "/prompt"
}

/// The value of a query parameter, undecoded.
pub fn query_value<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_posted_with_or_without_api() {
        for target in ["/prompt", "/api/prompt", "/prompt?x=1", "/%70rompt", "/%61pi/promp%74?%3F"]
        {
            assert!(is_prompt_post(&Method::POST, target), "{target}");
            assert!(!is_prompt_post(&Method::GET, target), "{target}");
        }
        for target in
            ["/prompts", "/api", "/apiprompt", "/x/prompt", "/api/api/prompt", "/api%2Fprompt"]
        {
            assert!(!is_prompt_post(&Method::POST, target), "{target}");
        }
    }

    #[test]
    fn a_hidden_letter_is_seen_and_a_slash_is_none() {
        for (sent, read) in [
            ("/%71ueue", "/queue"),
            ("/api/%69nterrup%74", "/api/interrupt"),
            ("/userdata/a%2Fb.json", "/userdata/a%2Fb.json"),
            ("/%zz%", "/%zz%"),
            ("/%é", "/%é"),
            ("/%2571", "/%2571"),
        ] {
            assert_eq!(unescaped(sent), read, "{sent}");
        }
    }

    #[test]
    fn a_query_value_is_found_whole() {
        assert_eq!(query_value("/ws?clientId=a%20b&x=1", "clientId"), Some("a%20b"));
        assert_eq!(query_value("/ws?xclientId=a", "clientId"), None);
        assert_eq!(query_value("/ws", "clientId"), None);
    }
}
