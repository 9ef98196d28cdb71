//! Rules about routes: `GET /history/**`, `POST /free`, `/internal/*`.
//!
//! A method (none: every one; `GET` is `HEAD` too) and a path, in which `*` stands for one segment
//! and `**` at the end for whatever follows, nothing included. `/api` before a path does not
//! count, nor does case: a rule holds for the route however a request writes it ([`Readings`]).

use http::Method;

use super::path::Readings;

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    method: Option<Method>,
    path: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Exactly(String),
    One,
    Rest,
}

impl Rule {
    /// The rule of a text: `METHOD /path` or `/path`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().split_once(char::is_whitespace) {
            Some((method, path)) => Self::new(Some(method), path.trim()),
            None => Self::new(None, text.trim()),
        }
    }

    /// The rule of a method, `*` or none for every one, and a path.
    pub fn new(method: Option<&str>, path: &str) -> Option<Self> {
        let method = match method {
            None | Some("*") => None,
            Some(method) => {
                let is_word = !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic());
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes());
                Some(method.ok().filter(|_| is_word)?)
            }
        };
        let path = path.strip_prefix('/')?.to_ascii_lowercase();
        if path.contains(['%', '?', '#', '\\']) || path.contains(char::is_whitespace) {
            return None;
        }
        let mut segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let api = segments.iter().take_while(|segment| **segment == "api").count();
        segments.drain(..api);
        let last = segments.len().saturating_sub(1);
        let piece = |(at, segment): (usize, &&str)| match *segment {
            "*" => Some(Piece::One),
            "**" => (at == last).then_some(Piece::Rest),
            "." | ".." => None,
            segment if segment.contains('*') => None,
            segment => Some(Piece::Exactly(segment.to_owned())),
        };
        let path = segments.iter().enumerate().map(piece).collect::<Option<Vec<_>>>()?;
        Some(Self { method, path })
    }

    /// Whether it closes a request: in some reading of its path.
    pub fn closes(&self, method: &Method, readings: &Readings) -> bool {
        self.is_about(method) && readings.any(|segments| self.meets(segments))
    }

    /// Whether it opens a request: in every reading of its path.
    pub fn opens(&self, method: &Method, readings: &Readings) -> bool {
        self.is_about(method) && readings.all(|segments| self.meets(segments))
    }

    fn is_about(&self, method: &Method) -> bool {
        self.method
            .as_ref()
            .is_none_or(|own| own == method || (*own == Method::GET && *method == Method::HEAD))
    }

    fn meets(&self, segments: &[String]) -> bool {
        let mut segments = segments.iter();
        for piece in &self.path {
            match piece {
                Piece::Rest => return true,
                Piece::One if segments.next().is_some() => {}
                Piece::Exactly(own) if segments.next().is_some_and(|segment| segment == own) => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: &str, method: &Method, target: &str) -> bool {
        Rule::parse(rule).unwrap().closes(method, &Readings::of(target))
    }

    #[test]
    fn a_rule_is_about_a_method_and_a_path() {
        let (get, post, head) = (Method::GET, Method::POST, Method::HEAD);
        assert!(holds("POST /free", &post, "/api/free"));
        assert!(holds("post /api/Free", &post, "/free/"));
        assert!(!holds("POST /free", &get, "/free"));
        assert!(holds("GET /x", &head, "/x") && !holds("POST /x", &head, "/x"));
        assert!(holds("/internal/**", &get, "/internal") && holds("* /a", &post, "/a"));
        assert!(holds("/internal/**", &post, "/internal/a/b"));
        assert!(holds("/a/*", &get, "/a/b") && !holds("/a/*", &get, "/a/b/c"));
        assert!(!holds("/a/*", &get, "/a") && !holds("/a", &get, "/a/b"));
        assert!(holds("/", &get, "/") && !holds("/", &get, "/x") && holds("/**", &get, "/x/y"));
    }

    #[test]
    fn what_is_no_rule_is_none() {
        for text in
            ["", "free", "POST", "POST free", "GET /a?b", "/a*", "/**/b", "/a/../b", "G-T /a"]
        {
            assert_eq!(Rule::parse(text), None, "{text}");
        }
    }
}
