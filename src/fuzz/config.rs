//! The configuration file, and the quantities in it.

use super::bytes::strict;
use crate::config::{backend_of, parse, parse_duration, parse_size, show_duration, show_size};

/// A text as a configuration, its lines as quantities, and the whole as a backend of the admin API.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse(text) {
        Ok(read) => assert_eq!(parse(text).ok(), Some(read), "read twice, read alike"),
        Err(problems) => {
            let told = problems.to_string();
            assert!(!told.trim().is_empty(), "a refusal says why");
            assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
        }
    }
    for line in text.lines().take(8) {
        let duration = parse_duration(line).filter(|d| d.subsec_nanos() % 1_000_000 == 0);
        if let Some(duration) = duration.filter(|d| d.as_millis() <= u128::from(u64::MAX)) {
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration), "{line:?}");
        }
        if let Some(size) = parse_size(line) {
            assert_eq!(parse_size(&show_size(size)), Some(size), "{line:?}");
        }
    }
    if let Some(words) = strict(data) {
        let _ = backend_of(&words).map_err(|problems| problems.to_string());
    }
}
