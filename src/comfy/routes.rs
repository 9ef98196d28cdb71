//! Which of ComfyUI's routes a request means, as far as the gateway cares.

use http::Method;

/// The path without its `/api` prefix, which ComfyUI takes or leaves, and without its query.
pub fn bare(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match path.strip_prefix("/api") {
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// Whether this queues a prompt.
pub fn is_prompt_post(method: &Method, target: &str) -> bool {
    *method == Method::POST && bare(target) == "/prompt"
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
        for target in ["/prompt", "/api/prompt", "/prompt?x=1"] {
            assert!(is_prompt_post(&Method::POST, target), "{target}");
            assert!(!is_prompt_post(&Method::GET, target), "{target}");
        }
        for target in ["/prompts", "/api", "/apiprompt", "/x/prompt", "/api/api/prompt"] {
            assert!(!is_prompt_post(&Method::POST, target), "{target}");
        }
    }

    #[test]
    fn a_query_value_is_found_whole() {
        assert_eq!(query_value("/ws?clientId=a%20b&x=1", "clientId"), Some("a%20b"));
        assert_eq!(query_value("/ws?xclientId=a", "clientId"), None);
        assert_eq!(query_value("/ws", "clientId"), None);
    }
}
