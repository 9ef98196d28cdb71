//! The routes, compared with what ComfyUI was recorded to answer, and the import from simulated
//! servers.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use http::Request;
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::conformance::{Names, compare_exchange, exchanges};
use crate::pool::merged::fixture::Farm;
use crate::sim::{Sim, SimConfig};

struct Home {
    dir: TempDir,
    data: Arc<UserData>,
}

impl Home {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let data = UserData::open(dir.path(), 1000).unwrap();
        Self { dir, data }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("users").join(below)
    }

    async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> Response {
        self.send_as("", method, path, body).await
    }

    async fn send_as(
        &self,
        user: &str,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if !user.is_empty() {
            request = request.header("comfy-user", user);
        }
        self.data.router().oneshot(request.body(body.into()).unwrap()).await.unwrap()
    }

    /// Status and body.
    async fn told(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        read(self.send(method, path, body.to_owned()).await).await
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.told("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

async fn read(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn observed(response: Response) -> crate::conformance::Response {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let headers: BTreeMap<_, _> =
        response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let (status, body) = read(response).await;
    let body = match serde_json::from_str(&body) {
        Ok(value) => value,
        Err(_) if body.is_empty() => json!({"base64_head": "", "length": 0}),
        Err(_) => body.into(),
    };
    crate::conformance::Response { status, headers, body }
}

#[tokio::test]
async fn replies_are_those_recorded() {
    let home = Home::new();
    let names = Names::default();
    for name in ["users", "settings", "userdata", "userdata_put", "userdata_get"] {
        for prefix in ["", "/api"] {
            let all = exchanges().unwrap();
            let recorded = all.iter().find(|exchange| exchange.name == name).unwrap();
            let path = format!("{prefix}{}", recorded.request.path);
            let response = observed(home.send(&recorded.request.method, &path, "{}").await).await;
            let differences = compare_exchange(recorded, &response, (&names, &names));
            assert!(differences.is_empty(), "{path}: {differences:?}");
        }
    }
}

#[tokio::test]
async fn settings_merge_and_none_of_many_at_once_is_lost() {
    let home = Home::new();
    let set = |n: u32| {
        let home = &home;
        async move { home.told("POST", &format!("/settings/Key.{n}"), &n.to_string()).await }
    };
    let replies = futures_util::future::join_all((0..32).map(set)).await;
    assert!(replies.iter().all(|reply| *reply == (200, String::new())));
    assert_eq!(home.json("/settings").await.as_object().unwrap().len(), 32);
    assert_eq!(home.json("/api/settings/Key.7").await, 7);
    assert_eq!(home.json("/settings/none").await, Value::Null);
    home.told("POST", "/settings", r#"{"Key.7": {"a": 1}, "new": NaN}"#).await;
    assert_eq!(home.json("/settings/Key.7").await, json!({"a": 1}));
    assert_eq!(home.told("POST", "/settings", "[1]").await.0, 500);
    assert_eq!(home.told("POST", "/settings", "{").await.0, 500);
    let file = home.path("default/comfy.settings.json");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let again = UserData::open(home.dir.path(), 1000).unwrap();
    let home = Home { dir: home.dir, data: again };
    assert_eq!(home.json("/settings").await.as_object().unwrap().len(), 33);
    assert_eq!(home.json("/users").await, json!({"storage": "server", "migrated": true}));
}

#[tokio::test]
async fn a_file_is_kept_listed_moved_and_deleted() {
    let home = Home::new();
    let file = "/userdata/workflows%2Fsub%2Fa.json";
    let put = |query: &str| format!("{file}{query}");
    assert_eq!(home.told("POST", &put(""), "one").await.1, "\"workflows/sub/a.json\"");
    let taken = (409, "File already exists".to_owned());
    assert_eq!(home.told("POST", &put("?overwrite=false"), "two").await, taken);
    let (_, info) = home.told("POST", &put("?full_info=true"), "three").await;
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["path"], &info["size"]), (&json!("workflows/sub/a.json"), &json!(5)));
    assert!(info["modified"].is_u64() && info["created"].is_u64());
    assert_eq!(home.told("GET", file, "").await, (200, "three".to_owned()));
    home.told("POST", "/userdata/workflows%2F.hidden", "x").await;

    let listed = |query: &str| format!("/userdata?dir=workflows{query}");
    assert_eq!(home.json(&listed("")).await, json!([]));
    assert_eq!(home.json(&listed("&recurse=true")).await, json!(["sub/a.json"]));
    let split = home.json(&listed("&recurse=TRUE&split=true")).await;
    assert_eq!(split, json!([["sub/a.json", "sub", "a.json"]]));
    let full = home.json(&listed("&recurse=true&split=true&full_info=true")).await;
    assert_eq!((&full[0]["path"], &full[0]["size"]), (&json!("sub/a.json"), &json!(5)));
    let all = home.json("/v2/userdata").await;
    let names: Vec<_> = all.as_array().unwrap().iter().map(|entry| &entry["path"]).collect();
    assert_eq!(names, ["workflows/sub", "workflows", "workflows/.hidden", "workflows/sub/a.json"]);
    assert!(all[3]["modified"].is_f64() && all[0].get("size").is_none());

    let moved = format!("{file}/move/b%2Fc.json?overwrite=false");
    assert_eq!(home.told("POST", &moved, "").await, (200, "\"b/c.json\"".to_owned()));
    assert_eq!(home.told("POST", &moved, "").await, (404, String::new()));
    home.told("POST", file, "new").await;
    assert_eq!(home.told("POST", &moved, "").await, taken);
    assert_eq!(home.told("GET", "/userdata/b%2Fc.json", "").await.1, "three");
    assert_eq!(home.told("DELETE", "/userdata/b%2Fc.json", "").await, (204, String::new()));
    assert_eq!(home.told("DELETE", "/userdata/b%2Fc.json", "").await, (404, String::new()));
    assert_eq!(home.path(".partial").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn of_many_who_must_not_overwrite_one_wins() {
    let home = Home::new();
    let put = |n: u32| {
        let home = &home;
        let path = "/userdata/deep%2Fdown%2Fa.json?overwrite=false";
        async move { home.told("POST", path, &n.to_string()).await.0 }
    };
    let mut replies = futures_util::future::join_all((0..8).map(put)).await;
    replies.sort_unstable();
    assert_eq!(replies, [200, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(home.path(".partial").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    let home = Home::new();
    std::fs::write(home.path("secret"), "x").unwrap();
    home.told("POST", "/userdata/a", "x").await;
    std::os::unix::fs::symlink(home.path(""), home.path("default/link")).unwrap();
    for name in ["..%2Fsecret", "%2Fetc%2Fpasswd", "..%252Fsecret", "a%00b", "link%2Fsecret"] {
        for (method, path) in [
            ("GET", format!("/userdata/{name}")),
            ("POST", format!("/userdata/{name}")),
            ("DELETE", format!("/userdata/{name}")),
            ("POST", format!("/userdata/a/move/{name}")),
        ] {
            assert_eq!(home.told(method, &path, "y").await, (403, String::new()), "{path}");
        }
        let told = home.told("GET", &format!("/userdata?dir={name}"), "").await;
        assert_eq!(told, (403, "Invalid directory".to_owned()), "{name}");
        let told = home.told("GET", &format!("/v2/userdata?path={name}"), "").await;
        assert_eq!(told, (400, "Invalid path requested".to_owned()), "{name}");
    }
    assert_eq!(std::fs::read(home.path("secret")).unwrap(), b"x");
}

#[tokio::test]
async fn what_is_wrong_is_told_in_comfyuis_words() {
    let home = Home::new();
    home.told("POST", "/userdata/a", "x").await;
    let told = |status: u16, text: &str| (status, text.to_owned());
    let get = |path: &'static str| home.told("GET", path, "");
    assert_eq!(get("/userdata").await, told(400, "Directory not provided"));
    assert_eq!(get("/userdata?dir=no").await, told(404, "Directory not found"));
    assert_eq!(get("/v2/userdata?path=no").await, told(404, "Requested path not found"));
    assert_eq!(get("/v2/userdata?path=a").await, told(400, "Requested path is not a directory"));
    assert_eq!(get("/userdata/no").await, told(404, ""));
    assert_eq!(get("/userdata/a/move/b").await.0, 404);
    assert_eq!(home.told("POST", "/userdata", "x").await, told(405, "405: Method Not Allowed"));
    assert_eq!(home.told("OPTIONS", "/userdata/a", "").await, told(200, ""));
    assert_eq!(home.told("POST", "/userdata/a%2Fb", "x").await.0, 500, "a is a file");
    let long = format!("/userdata/{}", "n".repeat(300));
    assert_eq!(home.told("POST", &long, "x").await, told(400, ""));
    home.told("POST", "/userdata/d%2Fx", "x").await;
    assert_eq!(home.told("POST", "/userdata/d", "x").await, told(400, ""), "d is a folder");
    let (status, body) = home.told("POST", "/userdata/big", &"x".repeat(1001)).await;
    assert!(status == 413 && body.contains("body_too_large"), "{body}");
    assert_eq!(home.path(".partial").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn a_users_page_is_not_run_in_the_browsers_of_others() {
    let home = Home::new();
    for (name, kind, cache) in [
        ("x.html", "application/octet-stream", None),
        ("x.svg", "application/octet-stream", None),
        ("user.css", "text/css", Some("no-cache")),
        ("x.png", "image/png", Some("public, max-age=86400")),
        ("d%2Findex.json", "application/json", Some("no-cache")),
    ] {
        let path = format!("/userdata/{name}");
        home.told("POST", &path, "x").await;
        let response = home.send("GET", &path, Body::empty()).await;
        let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap());
        assert_eq!(header("content-type"), Some(kind), "{name}");
        assert_eq!(header("cache-control"), cache, "{name}");
        assert_eq!(header("x-content-type-options"), Some("nosniff"));
        assert_eq!(header("content-disposition").is_some(), kind.ends_with("stream"));
    }
    let none = home.send("GET", "/userdata/none.png", Body::empty()).await;
    assert_eq!(none.headers()["cache-control"], "public, max-age=3600");
    let head = home.send("HEAD", "/userdata/x.png", Body::empty()).await;
    assert_eq!((head.headers()["content-length"].to_str().unwrap()), "1");
    assert_eq!(read(head).await.1, "");
}

#[tokio::test]
async fn a_stranger_is_refused_where_there_are_several_users() {
    let home = Home::new();
    home.data.change_users(|users| *users = Users::new(true)).unwrap();
    let (status, id) = home.told("POST", "/users", r#"{"username": "Ann"}"#).await;
    assert_eq!(status, 200);
    let id: String = serde_json::from_str(&id).unwrap();
    let duplicate = home.told("POST", "/users", r#"{"username": "Ann"}"#).await;
    assert_eq!(duplicate, (400, "{\"error\": \"Duplicate username.\"}".to_owned()));
    assert_eq!(home.json("/users").await, json!({"storage": "server", "users": {&id: "Ann"}}));
    for stranger in ["", "nobody", "__system"] {
        let get = |path: &'static str| home.send_as(stranger, "GET", path, "");
        let settings = read(get("/settings").await).await;
        assert_eq!(settings, (401, "401: Unauthorized".to_owned()), "{stranger}");
        assert_eq!(get("/v2/userdata").await.status(), 403);
        assert_eq!(get("/userdata?dir=x").await.status(), 500);
        assert_eq!(get("/userdata/x").await.status(), 500);
    }
    home.send_as(&id, "POST", "/userdata/x", "mine").await;
    assert_eq!(read(home.send_as(&id, "GET", "/userdata/x", "").await).await.1, "mine");
    let again = UserData::open(home.dir.path(), 1000).unwrap();
    assert!(again.users.load().multi);
}

async fn put(sim: &Sim, path: &str, body: &str) {
    let url = format!("{}{path}", sim.url());
    let reply = reqwest::Client::new().post(url).body(body.to_owned()).send().await.unwrap();
    assert_eq!(reply.status(), 200, "{path}");
}

#[tokio::test]
async fn what_the_backends_have_is_taken_over_once_and_overwrites_nothing() {
    let sims = [Sim::start(SimConfig::default()), Sim::start(SimConfig::default())];
    let [one, two] = futures_util::future::try_join_all(sims).await.unwrap().try_into().unwrap();
    put(&one, "/userdata/workflows%2Fsame.json", "1").await;
    put(&one, "/userdata/workflows%2Fone.json", "1").await;
    put(&one, "/settings", r#"{"a": 1, "own": 1}"#).await;
    put(&two, "/userdata/workflows%2Fsame.json", "2").await;
    put(&two, "/userdata/100%2525.json", "2").await;
    put(&two, "/settings", r#"{"a": 2, "b": 2}"#).await;
    let nobody = "http://127.0.0.1:9".to_owned();
    let farm = Farm::at([one.url(), two.url(), nobody]);
    let home = Home::new();
    home.told("POST", "/settings/own", "0").await;

    home.data.import(&farm.fetcher, &farm.backends()).await;
    assert_eq!(home.told("GET", "/userdata/workflows%2Fsame.json", "").await.1, "1");
    assert_eq!(home.told("GET", "/userdata/workflows%2Fone.json", "").await.1, "1");
    assert_eq!(home.told("GET", "/userdata/100%2525.json", "").await.1, "2");
    assert_eq!(home.json("/settings").await, json!({"own": 0, "a": 1, "b": 2}));
    assert!(home.path(".imported-comfy-2").exists() && !home.path(".imported-comfy-3").exists());

    home.told("DELETE", "/userdata/workflows%2Fone.json", "").await;
    let seen = one.requests_seen();
    let again = UserData::open(home.dir.path(), 1000).unwrap();
    again.import(&farm.fetcher, &farm.backends()[..2]).await;
    assert_eq!(one.requests_seen(), seen, "it is not even asked");
    assert_eq!(home.told("GET", "/userdata/workflows%2Fone.json", "").await.0, 404);
}

#[tokio::test]
async fn users_of_several_backends_are_one_by_name() {
    let backend = |id: &'static str, file: &'static str| {
        let users = json!({"storage": "server", "users": {id: "Ann"}}).to_string();
        let listed = json!([{"type": "file", "path": file}, {"type": "file", "path": "../x"}]);
        let only = move |headers: HeaderMap, body: String| async move {
            let known = headers.get("comfy-user").is_some_and(|user| user == id);
            if known { (StatusCode::OK, body) } else { (StatusCode::INTERNAL_SERVER_ERROR, body) }
        };
        let get = |body: String| axum::routing::get(move |headers| only(headers, body));
        Router::new()
            .route("/users", axum::routing::get(move || async { users }))
            .route("/settings", get(json!({id: 1}).to_string()))
            .route("/v2/userdata", get(listed.to_string()))
            .route("/userdata/{file}", get("{}".to_owned()))
    };
    let farm = Farm::of([backend("ann_1", "one.json"), backend("ann_2", "two.json")]).await;
    let home = Home::new();
    home.data.import(&farm.fetcher, &farm.backends()).await;
    assert_eq!(home.json("/users").await["users"], json!({"ann_1": "Ann"}));
    let listed = read(home.send_as("ann_1", "GET", "/userdata?dir=.", "").await).await.1;
    assert_eq!(listed, r#"["comfy.settings.json", "one.json", "two.json"]"#);
    let settings = read(home.send_as("ann_1", "GET", "/settings", "").await).await.1;
    assert_eq!(settings, r#"{"ann_1": 1, "ann_2": 1}"#);
}
