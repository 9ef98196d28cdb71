//! Which requests pool mode answers itself, and which one server of the farm answers.

use http::Method;

use crate::comfy::routes::{bare, unescaped};

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The gateway: prompts, queue, history, jobs, interrupts, files handed in.
    Own,
    /// The gateway, for each user: settings, workflows.
    UserData,
    /// The gateway, from what all servers say.
    Merged,
    /// A file: the server that has it, or the gateway's own store.
    View,
    /// One server: the one that the query names, else the caller's.
    Server,
}

impl Route {
    /// The route of a request in pool mode. Methods and paths that ComfyUI does not know go to a
    /// server, whose refusal is the right one.
    pub fn of(method: &Method, target: &str) -> Self {
        let whole = unescaped(target.split(['?', '#']).next().unwrap_or_default());
        let (whole, path) = (&*whole, bare(&whole));
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let posts = *method == Method::POST;
        if is_jobs(method, whole) {
            return Self::Own;
        }
        let path = path.strip_prefix('/').unwrap_or_default();
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        match (first, rest) {
            ("prompt" | "queue" | "history", "") if reads || posts => Self::Own,
            ("history", id) if reads && is_one_segment(id) => Self::Own,
            ("interrupt" | "free", "") if posts => Self::Own,
            ("upload", "image" | "mask") if posts => Self::Own,
            ("manager" | "customnode" | "v2", _) if is_install(method, path) => Self::Own,
            ("view", "") if reads => Self::View,
            ("users" | "settings", "") if reads || posts => Self::UserData,
            ("settings", id) if (reads || posts) && is_one_segment(id) => Self::UserData,
            ("userdata", "") if reads => Self::UserData,
            ("userdata", _) if is_userdata(method, rest) => Self::UserData,
            ("v2", "userdata") if reads => Self::UserData,
            ("object_info" | "models", _) if reads && !rest.contains('/') => Self::Merged,
            ("system_stats" | "features" | "embeddings", "") if reads => Self::Merged,
            ("experiment", rest) if reads && is_experiment(rest) => Self::Merged,
            ("internal", "files/output" | "files/input" | "files/temp")
                if reads && whole.starts_with("/internal") =>
            {
                Self::Merged
            }
            ("internal", "logs/subscribe")
                if *method == Method::PATCH && whole.starts_with("/internal") =>
            {
                Self::Own
            }
            _ => Self::Server,
        }
    }
}

fn is_one_segment(rest: &str) -> bool {
    !rest.is_empty() && !rest.contains('/')
}

/// `/api/jobs…` is declared with its prefix, so that `/jobs` is nothing and `/api/api/jobs` is.
fn is_jobs(method: &Method, path: &str) -> bool {
    let path = path.strip_prefix("/api/api/").or_else(|| path.strip_prefix("/api/"));
    let Some(rest) = path.and_then(|path| path.strip_prefix("jobs")) else { return false };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match rest.strip_prefix('/') {
        None => rest.is_empty() && reads,
        Some("cancel") => *method == Method::POST,
        Some(id) => match id.strip_suffix("/cancel") {
            Some(id) => *method == Method::POST && is_one_segment(id),
            None => reads && is_one_segment(id),
        },
    }
}

fn is_userdata(method: &Method, rest: &str) -> bool {
    let known = matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::DELETE);
    match rest.split_once("/move/") {
        Some((file, to)) => *method == Method::POST && is_one_segment(file) && is_one_segment(to),
        None => known && is_one_segment(rest),
    }
}

/// Whether ComfyUI-Manager is to install or update something, which then is to be everywhere. A
/// reboot is not: all servers at once would stop everybody's prompts.
fn is_install(method: &Method, path: &str) -> bool {
    let path = path.strip_prefix("v2/").unwrap_or(path);
    let starts = ["manager/queue/start", "manager/queue/reset"];
    match *method {
        Method::GET => starts.contains(&path),
        Method::POST => {
            path.starts_with("manager/queue/") || path.starts_with("customnode/install/")
        }
        _ => false,
    }
}

fn is_experiment(rest: &str) -> bool {
    match rest.strip_prefix("models") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('/').is_some_and(is_one_segment),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(method: &Method, targets: &[&str]) -> Vec<Route> {
        targets.iter().map(|target| Route::of(method, target)).collect()
    }

    #[test]
    fn both_forms_of_a_path_are_one_route() {
        for (method, path, route) in [
            (Method::POST, "/prompt", Route::Own),
            (Method::GET, "/queue?x=1", Route::Own),
            (Method::GET, "/history/abc", Route::Own),
            (Method::POST, "/upload/mask", Route::Own),
            (Method::GET, "/view?filename=a.png", Route::View),
            (Method::HEAD, "/object_info/KSampler", Route::Merged),
            (Method::GET, "/experiment/models/loras", Route::Merged),
            (Method::POST, "/userdata/workflows%2Fa.json", Route::UserData),
            (Method::POST, "/userdata/a.json/move/b.json", Route::UserData),
            (Method::GET, "/v2/userdata?path=x", Route::UserData),
        ] {
            assert_eq!(Route::of(&method, path), route, "{path}");
            assert_eq!(Route::of(&method, &format!("/api{path}")), route, "/api{path}");
        }
    }

    #[test]
    fn a_route_is_the_gateways_however_it_is_written() {
        let hidden = ["/%71ueue", "/api/%68istory", "/a%70i/jobs", "/api/api/%6aobs"];
        assert_eq!(routes(&Method::GET, &hidden), [Route::Own; 4]);
        assert_eq!(Route::of(&Method::POST, "/api/i%6Eterrupt"), Route::Own);
    }

    #[test]
    fn jobs_have_their_prefix_and_internals_have_none() {
        let own = ["/api/jobs", "/api/jobs/a", "/api/api/jobs?limit=3"];
        assert_eq!(routes(&Method::GET, &own), [Route::Own; 3]);
        let cancels = ["/api/jobs/a/cancel", "/api/jobs/cancel"];
        assert_eq!(routes(&Method::POST, &cancels), [Route::Own; 2]);
        assert_eq!(routes(&Method::GET, &["/jobs", "/api/jobsx"]), [Route::Server; 2]);
        assert_eq!(Route::of(&Method::GET, "/internal/files/output"), Route::Merged);
        assert_eq!(Route::of(&Method::GET, "/api/internal/files/output"), Route::Server);
        assert_eq!(Route::of(&Method::PATCH, "/internal/logs/subscribe"), Route::Own);
        assert_eq!(Route::of(&Method::PATCH, "/api/internal/logs/subscribe"), Route::Server);
        assert_eq!(Route::of(&Method::GET, "/internal/logs/raw"), Route::Server);
    }

    #[test]
    fn installs_are_for_all_and_a_reboot_is_not() {
        let all =
            ["/manager/queue/install", "/api/v2/manager/queue/task", "/customnode/install/pip"];
        assert_eq!(routes(&Method::POST, &all), [Route::Own; 3]);
        let reads = ["/manager/queue/start", "/manager/queue/status", "/manager/reboot", "/v2/x"];
        let (own, server) = (Route::Own, Route::Server);
        assert_eq!(routes(&Method::GET, &reads), [own, server, server, server]);
    }

    #[test]
    fn what_no_comfyui_answers_itself_goes_to_a_server() {
        let reads = ["/", "/assets/x.js", "/extensions", "/history/a/b", "/settings/a/b", "/ws"];
        assert_eq!(routes(&Method::GET, &reads), [Route::Server; 6]);
        let other = [(Method::GET, "/interrupt"), (Method::PUT, "/queue"), (Method::GET, "/free")];
        for (method, path) in other {
            assert_eq!(Route::of(&method, path), Route::Server, "{method} {path}");
        }
        for path in ["", "x", "/", "/api", "//", "/é"] {
            assert_eq!(Route::of(&Method::GET, path), Route::Server, "{path}");
        }
    }
}
