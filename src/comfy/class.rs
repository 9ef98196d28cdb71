//! How long a request may take a ComfyUI server, and whether its answer is ComfyUI's own.

use http::Method;

use super::routes::{bare, query_value, unescaped};

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Class {
    /// ComfyUI's own API and the page: an answer comes in moments, unless its loop stalls.
    #[default]
    Control,
    /// Files, which may be long and lie on slow disks.
    Transfer,
    /// A route of a custom node: it may do anything, install packages for minutes too.
    Custom,
}

/// First parts of paths under which ComfyUI itself answers.
const OWN: [&str; 24] = [
    "api",
    "docs",
    "embeddings",
    "experiment",
    "extensions",
    "features",
    "free",
    "global_subgraphs",
    "history",
    "i18n",
    "internal",
    "interrupt",
    "jobs",
    "models",
    "object_info",
    "prompt",
    "queue",
    "settings",
    "system_stats",
    "templates",
    "users",
    "view_metadata",
    "workflow_templates",
    "ws",
];
/// The same where what is asked for is a file.
const FILES: [&str; 3] = ["upload", "userdata", "view"];

impl Class {
    /// The class of a request.
    pub fn of(method: &Method, target: &str) -> Self {
        let path = unescaped(target.split(['?', '#']).next().unwrap_or_default());
        let path = bare(&path).trim_start_matches('/');
        let path = path.strip_prefix("v2/userdata").map_or(path, |_| "userdata");
        let first = path.split('/').next().unwrap_or_default();
        let reads = matches!(*method, Method::GET | Method::HEAD);
        // The page's folder, and the folders of custom nodes' pages.
        let is_file = reads
            && path.rsplit('/').next().is_some_and(|last| last.contains('.'))
            && query_value(target, "filename").is_none();
        if FILES.contains(&first) {
            Self::Transfer
        } else if first.is_empty() || OWN.contains(&first) || is_file {
            Self::Control
        } else {
            Self::Custom
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_may_take_long_and_custom_nodes_are_not_comfyui() {
        let class = |method: Method, target: &str| Class::of(&method, target);
        for target in ["/", "/api/queue", "/prompt?x=1", "/api/jobs/a", "/assets/a.js", "/%71ueue"]
        {
            assert_eq!(class(Method::GET, target), Class::Control, "{target}");
        }
        assert_eq!(class(Method::POST, "/api/prompt"), Class::Control);
        for target in ["/view?filename=a.png", "/api/view", "/api/userdata/a.json", "/v2/userdata"]
        {
            assert_eq!(class(Method::GET, target), Class::Transfer, "{target}");
        }
        assert_eq!(class(Method::POST, "/upload/image"), Class::Transfer);
        let custom = ["/manager/queue/start", "/api/vhs/viewvideo?filename=a.mp4", "/viewer"];
        for target in custom {
            assert_eq!(class(Method::GET, target), Class::Custom, "{target}");
        }
        assert_eq!(class(Method::POST, "/impact/set/a.b"), Class::Custom);
    }
}
