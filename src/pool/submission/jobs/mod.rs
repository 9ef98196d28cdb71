//! What `/api/jobs` and `/history` list, as ComfyUI 0.8 does.
//!
//! A [`Summary`] is made once, when a job comes and when it ends; [`list`] sorts, filters and pages
//! summaries, [`one`] tells of a single job, [`Page`] chooses from history without reading entries.

mod history;
mod listing;
mod summary;
#[cfg(test)]
mod tests;

pub use history::{Page, Writer, history};
pub use listing::{Query, Row, Status, error_body, list, not_found, one};
pub use summary::Summary;

/// The values of a query, the first of each name.
struct Values(Vec<(String, String)>);

impl Values {
    fn of(query: &str) -> Self {
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `int(value)`, as far as it fits; an error when it is none.
    fn whole(&self, name: &str) -> Option<Result<i64, ()>> {
        let text = self.get(name)?.trim();
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Err(()));
        }
        let limit = if text.starts_with('-') { i64::MIN } else { i64::MAX };
        Some(Ok(text.parse().unwrap_or(limit)))
    }
}
