//! What a client asks of the gateway itself: `extra_data.comfygate`, which ComfyUI passes over.

use super::scan::Json;
use crate::rejection::{Kind, Rejection};

/// Characters of a task type at most.
const MAX_TASK_TYPE: usize = 64;

/// Wishes for one job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// `"retry": "never"`: it must not run twice.
    pub once: bool,
    /// `"priority"`: before all of a lower one.
    pub priority: i32,
    /// `"task_type"`: the kind of work, where backends list what they do.
    pub task_type: Option<Box<str>>,
}

impl Wishes {
    /// Reads the object; a value that is not understood is refused, a key that is not known is
    /// passed over.
    pub(super) fn read(json: Option<Json<'_>>) -> Result<Self, Rejection> {
        let Some(json) = json.filter(|json| !json.is_null()) else { return Ok(Self::default()) };
        if !json.is_object() {
            return Err(wrong("", "an object"));
        }
        let wish = |name| json.get(name).filter(|json| !json.is_null());
        let once = wish("retry").map_or(Some(false), |json| match json.text()?.as_ref() {
            "never" => Some(true),
            "auto" => Some(false),
            _ => None,
        });
        let priority = wish("priority")
            .map_or(Some(0), |json| std::str::from_utf8(json.0).ok()?.parse::<i32>().ok());
        let task_type = wish("task_type").map_or(Some(None), |json| {
            let text = json.text().filter(|text| text.chars().count() <= MAX_TASK_TYPE)?;
            Some((!text.is_empty()).then(|| text.into()))
        });
        Ok(Self {
            once: once.ok_or_else(|| wrong(".retry", "\"never\" or \"auto\""))?,
            priority: priority.ok_or_else(|| wrong(".priority", "a whole number"))?,
            task_type: task_type.ok_or_else(|| wrong(".task_type", "a short text"))?,
        })
    }
}

fn wrong(key: &str, wanted: &str) -> Rejection {
    Rejection::new(Kind::InvalidValue, format!("extra_data.comfygate{key} is not {wanted}"))
        .cure(format!("give {wanted}, or leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Wishes, String> {
        Wishes::read(Some(Json(text.as_bytes()))).map_err(|refused| refused.message)
    }

    #[test]
    fn wishes_are_read() {
        let text = r#"{"retry": "never", "priority": -7, "task_type": "video", "later": 1}"#;
        let wishes = Wishes { once: true, priority: -7, task_type: Some("video".into()) };
        assert_eq!(read(text), Ok(wishes));
        for none in ["null", "{}", r#"{"retry": "auto", "priority": null, "task_type": ""}"#] {
            assert_eq!(read(none), Ok(Wishes::default()), "{none}");
        }
    }

    #[test]
    fn a_wish_that_is_not_understood_is_named() {
        for (text, named) in [
            ("[]", "extra_data.comfygate is not"),
            (r#"{"retry": "often"}"#, "extra_data.comfygate.retry"),
            (r#"{"priority": 1.5}"#, "extra_data.comfygate.priority"),
            (r#"{"priority": 99999999999}"#, "extra_data.comfygate.priority"),
            (r#"{"task_type": 1}"#, "extra_data.comfygate.task_type"),
        ] {
            assert!(read(text).unwrap_err().starts_with(named), "{text}");
        }
    }
}
