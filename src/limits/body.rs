//! How long a request's body may be, by what it is for.

use http::Method;

use crate::comfy::routes::{bare, is_prompt_post};
use crate::config::Limits;
use crate::rejection::{Kind, Rejection};

/// How long a body may be, and the option that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimit {
    /// So many bytes.
    pub bytes: u64,
    key: &'static str,
    /// Whether it is an upload of a file.
    pub is_upload: bool,
}

impl BodyLimit {
    /// The bound of a request, which is judged by its path alone: no method makes a body welcome.
    pub fn of(method: &Method, target: &str, limits: &Limits) -> Self {
        let path = bare(target);
        let is_upload = *method == Method::POST && path.starts_with("/upload/");
        let any = (limits.body_size, "limits.body_size");
        let (bytes, key) = if is_prompt_post(method, target) {
            any.min((limits.prompt_size, "limits.prompt_size"))
        } else if is_control(path) {
            any.min((limits.control_size, "limits.control_size"))
        } else {
            any
        };
        Self { bytes, key, is_upload }
    }

    /// The refusal of a longer one.
    pub fn refusal(&self) -> Rejection {
        let message = format!("the body is over the limit of {} bytes", self.bytes);
        Rejection::new(Kind::BodyTooLarge, message).cure(format!("{} raises it", self.key))
    }
}

/// Routes of ComfyUI that take a few words.
fn is_control(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or_default();
    let first = path.split('/').next().unwrap_or_default();
    matches!(first, "queue" | "history" | "interrupt" | "free" | "jobs" | "lb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_bound() {
        let text = "{body_size: 4, prompt_size: 3, control_size: 2}";
        let text = format!("backends: ['http://a:1']\nlimits: {text}");
        let limits = crate::config::parse(&text).unwrap().limits;
        for (path, bytes) in [
            ("/upload/image", 4),
            ("/api/upload/mask", 4),
            ("/userdata/a.json", 4),
            ("/customnode/upload", 4),
            ("/prompt", 3),
            ("/api/prompt?x", 3),
            ("/queue", 2),
            ("/api/history", 2),
            ("/api/jobs/cancel", 2),
            ("/settings/a", 4),
        ] {
            assert_eq!(BodyLimit::of(&Method::POST, path, &limits).bytes, bytes, "{path}");
        }
        assert!(BodyLimit::of(&Method::POST, "/api/upload/image", &limits).is_upload);
        assert!(!BodyLimit::of(&Method::GET, "/upload/image", &limits).is_upload);
        let refused = BodyLimit::of(&Method::POST, "/prompt", &limits).refusal();
        assert_eq!(refused.details, "limits.prompt_size raises it");
    }
}
