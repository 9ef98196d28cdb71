//! What `security: standard` closes to everybody without the `admin` right, and why.
//!
//! `ComfyUI` runs what it is sent and its Manager installs what it is told, with no question
//! asked. Closed is what changes servers or shows their insides; open stays whatever the stock
//! page needs to make images. Read from `server.py`, `app/` and the routes of ComfyUI-Manager in
//! its old (`/manager/…`) and new (`/v2/manager/…`) form.

use std::sync::LazyLock;

use http::Method;

use super::path::Readings;
use super::rules::Rule;

/// A closed route.
pub struct Closed {
    /// The rule, as in `routes.deny`.
    pub rule: &'static str,
    /// Why.
    pub why: &'static str,
}

const fn closed(rule: &'static str, why: &'static str) -> Closed {
    Closed { rule, why }
}

/// Everything that is closed.
pub const CLOSED: [Closed; 13] = [
    closed("/manager/**", "ComfyUI-Manager: installs, updates and removes code, restarts servers"),
    closed("/customnode/**", "ComfyUI-Manager: installs code from any git address or package"),
    closed("/externalmodel/**", "ComfyUI-Manager: models to be downloaded"),
    closed("/model/**", "ComfyUI-Manager: downloads a file from any address"),
    closed("/snapshot/**", "ComfyUI-Manager: puts back another set of nodes"),
    closed("/comfyui_manager/**", "ComfyUI-Manager: replaces ComfyUI itself"),
    closed("/v2/manager/**", "the same in the Manager's new form"),
    closed("/v2/customnode/**", "the same in the Manager's new form"),
    closed("/v2/externalmodel/**", "the same in the Manager's new form"),
    closed("/v2/snapshot/**", "the same in the Manager's new form"),
    closed("/v2/comfyui_manager/**", "the same in the Manager's new form"),
    closed("/internal/**", "logs and folders of the servers, which name everybody's files"),
    closed("POST /users", "makes users on the servers, without end"),
];

/// More that is closed: what costs others their work.
pub const COSTLY: [Closed; 3] = [
    closed("POST /free", "throws models out of memory under other people's prompts"),
    closed("POST /assets/seed/**", "has a server walk all its folders"),
    closed("POST /assets/prune", "drops entries of files that are missing for a moment"),
];

/// What stays open of it: the stock page lists input and output files by this.
pub const OPEN: [&str; 3] =
    ["GET /internal/files/input", "GET /internal/files/output", "GET /internal/files/temp"];

struct Preset {
    closed: Vec<Rule>,
    open: Vec<Rule>,
}

static PRESET: LazyLock<Preset> = LazyLock::new(|| Preset {
    closed: all().filter_map(|closed| Rule::parse(closed.rule)).collect(),
    open: OPEN.into_iter().filter_map(Rule::parse).collect(),
});

/// Every closed route.
pub fn all() -> impl Iterator<Item = &'static Closed> {
    CLOSED.iter().chain(&COSTLY)
}

/// Whether the preset closes a request.
pub fn closes(method: &Method, readings: &Readings) -> bool {
    PRESET.closed.iter().any(|rule| rule.closes(method, readings))
        && !PRESET.open.iter().any(|rule| rule.opens(method, readings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closed(method: &str, target: &str) -> bool {
        closes(&method.parse().unwrap(), &Readings::of(target))
    }

    #[test]
    fn every_rule_is_one() {
        assert_eq!(PRESET.closed.len(), CLOSED.len() + COSTLY.len());
        assert_eq!(PRESET.open.len(), OPEN.len());
    }

    /// Routes of ComfyUI-Manager and `ComfyUI` as their sources declare them.
    #[test]
    fn dangerous_routes_are_closed() {
        for (method, path) in [
            ("GET", "/manager/reboot"),
            ("POST", "/manager/reboot"),
            ("GET", "/manager/queue/start"),
            ("POST", "/manager/queue/install"),
            ("POST", "/manager/queue/install_model"),
            ("GET", "/manager/queue/update_all"),
            ("GET", "/manager/queue/update_comfyui"),
            ("POST", "/manager/queue/uninstall"),
            ("POST", "/manager/component/save"),
            ("GET", "/manager/get_openart_auth"),
            ("POST", "/customnode/install/git_url"),
            ("POST", "/customnode/install/pip"),
            ("POST", "/customnode/install"),
            ("POST", "/model/install"),
            ("GET", "/externalmodel/getlist"),
            ("POST", "/snapshot/restore"),
            ("GET", "/snapshot/restore"),
            ("GET", "/comfyui_manager/comfyui_switch_version"),
            ("GET", "/comfyui_manager/update_comfyui"),
            ("POST", "/v2/manager/queue/task"),
            ("POST", "/v2/manager/queue/batch"),
            ("GET", "/v2/manager/reboot"),
            ("POST", "/v2/customnode/install/git_url"),
            ("POST", "/v2/snapshot/restore"),
            ("POST", "/v2/comfyui_manager/comfyui_switch_version"),
            ("GET", "/internal/logs"),
            ("GET", "/internal/logs/raw"),
            ("PATCH", "/internal/logs/subscribe"),
            ("GET", "/internal/folder_paths"),
            ("POST", "/users"),
            ("POST", "/free"),
            ("POST", "/assets/seed"),
            ("POST", "/assets/prune"),
        ] {
            assert!(is_closed(method, path), "{method} {path}");
            assert!(is_closed(method, &format!("/api{path}")), "{method} /api{path}");
        }
    }

    /// Every request that the recorded page sends while it loads and runs a prompt, and others that
    /// it sends on a click.
    #[test]
    fn what_the_page_does_for_images_stays_open() {
        let recorded = include_str!("../conformance/recorded-0.8.0/page_load.json");
        let page: serde_json::Value = serde_json::from_str(recorded).unwrap();
        let mut seen = 0;
        visit(&page, &mut |method, path| {
            assert!(!is_closed(method, path), "{method} {path}");
            seen += 1;
        });
        assert!(seen >= 10, "{seen} requests");
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/ws?clientId=a"),
            ("POST", "/api/prompt"),
            ("POST", "/api/queue"),
            ("POST", "/api/interrupt"),
            ("POST", "/api/history"),
            ("POST", "/api/upload/image"),
            ("POST", "/api/upload/mask"),
            ("GET", "/api/view?filename=a.png"),
            ("GET", "/api/users"),
            ("POST", "/api/settings/Comfy.X"),
            ("POST", "/api/userdata/workflows%2Fmanager%2Freboot.json"),
            ("GET", "/internal/files/output"),
            ("GET", "/api/object_info"),
            ("GET", "/models/checkpoints"),
            ("GET", "/extensions/core/manager/x.js"),
        ] {
            assert!(!is_closed(method, path), "{method} {path}");
        }
    }

    fn visit(value: &serde_json::Value, found: &mut impl FnMut(&str, &str)) {
        if let (Some(method), Some(path)) = (value["method"].as_str(), value["path"].as_str()) {
            found(method, path);
        }
        match value {
            serde_json::Value::Array(items) => items.iter().for_each(|item| visit(item, found)),
            serde_json::Value::Object(map) => map.values().for_each(|item| visit(item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_exception_opens_nothing_beside_it() {
        for target in ["/internal/files/../logs", "/internal/files/output/../../logs/raw"] {
            assert!(is_closed("GET", target), "{target}");
        }
        assert!(is_closed("POST", "/internal/files/output"));
    }
}
