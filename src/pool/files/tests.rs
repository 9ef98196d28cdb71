//! The files of simulated farms, over real sockets.

use super::*;
use crate::backend::Wanted;
use crate::config::{self, Endpoint};
use crate::fleet::Fleet;
use crate::pace::Learnt;
use crate::roster::Member;
use crate::sim::{Sim, SimConfig, image_of_seed};
use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

struct Farm {
    sims: Vec<Sim>,
    backends: Vec<Arc<Backend>>,
    files: Arc<Files>,
    _directory: tempfile::TempDir,
}

fn member(name: String, url: &str) -> Member {
    let spec = config::Backend {
        name,
        endpoint: Endpoint::from_url(&url.parse().unwrap()).unwrap(),
        weight: 1,
        max_queue: 10,
        enabled: true,
        backup: false,
        max_connections: 100,
        headers: vec![],
        labels: vec![],
        task_types: vec![],
        tls: config::BackendTls::default(),
    };
    Member { spec, wanted: Wanted::Enabled }
}

/// Simulated servers named gpu-0, gpu-1, …
async fn farm(count: usize) -> Farm {
    let mut sims = Vec::new();
    for _ in 0..count {
        sims.push(Sim::start(SimConfig::default()).await.unwrap());
    }
    let fleet = Fleet::new();
    let members = sims.iter().enumerate();
    let members = members.map(|(i, sim)| member(format!("gpu-{i}"), &sim.url())).collect();
    fleet.apply(members, |_| Learnt::default());
    let backends = fleet.view().backends.clone();
    let directory = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(&directory.path().join("uploads"), 10 << 20).unwrap();
    let all = backends.clone();
    let members: Members = Arc::new(move || all.clone());
    let files = Files::new(uploads, Arc::new(Remote::new().unwrap()), members);
    Farm { sims, backends, files, _directory: directory }
}

/// A form with a file under `image`.
fn form(name: Option<&str>, content: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in fields {
        body.extend_from_slice(
            format!("--b\r\nContent-Disposition: form-data; name=\"{key}\"\r\n\r\n{value}\r\n")
                .as_bytes(),
        );
    }
    if let Some(name) = name {
        let head = "--b\r\nContent-Disposition: form-data; name=\"image\"; filename";
        body.extend_from_slice(format!("{head}=\"{name}\"\r\n\r\n").as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b--\r\n");
    body
}

impl Farm {
    async fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let request = Request::post(path)
            .header("content-type", "multipart/form-data; boundary=b")
            .body(Body::from(body))
            .unwrap();
        let response = self.files.router(1 << 20).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Uploads an image and gives the name it got.
    async fn upload(&self, name: &str, content: &[u8], fields: &[(&str, &str)]) -> Value {
        let (status, reply) = self.post("/upload/image", form(Some(name), content, fields)).await;
        assert_eq!(status, StatusCode::OK);
        reply
    }

    async fn view(&self, query: &str, headers: &[(&str, &str)]) -> Option<(StatusCode, Vec<u8>)> {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let uri = format!("/view?{query}").parse().unwrap();
        let response = self.files.view(&uri, &all).await?;
        let status = response.status();
        Some((status, to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()))
    }

    /// Puts a file into a server's own folder.
    async fn place(&self, sim: usize, name: &str, content: &[u8], fields: &[(&str, &str)]) {
        let sent = reqwest::Client::new()
            .post(format!("{}/upload/image", self.sims[sim].url()))
            .header("content-type", "multipart/form-data; boundary=b")
            .body(form(Some(name), content, fields))
            .send();
        assert!(sent.await.unwrap().status().is_success());
    }

    /// What a server shows.
    async fn shown(&self, sim: usize, query: &str) -> Option<Vec<u8>> {
        let url = format!("{}/view?{query}", self.sims[sim].url());
        let response = reqwest::get(url).await.unwrap();
        let found = response.status().is_success();
        found.then_some(response.bytes().await.unwrap().to_vec())
    }

    fn pushes(&self, sim: usize) -> usize {
        let requests = self.sims[sim].requests();
        requests.iter().filter(|(_, path)| path == "/upload/image").count()
    }

    async fn prepare(&self, backend: usize, input: Value, own: &Own) -> Prepared {
        self.files.prepare(&prompt(&input), &self.backends[backend], own).await.unwrap()
    }
}

fn prompt(input: &Value) -> Bytes {
    let load = json!({"class_type": "LoadImage", "inputs": {"image": input}});
    json!({"prompt": {"1": load}, "client_id": "c"}).to_string().into()
}

/// The input in a body that was made for a backend.
fn input(prepared: &Prepared) -> Option<Value> {
    let body: Value = serde_json::from_slice(prepared.body.as_deref()?).unwrap();
    assert_eq!(body["client_id"], "c");
    Some(body["prompt"]["1"]["inputs"]["image"].clone())
}

#[tokio::test]
async fn uploads_are_named_as_recorded() {
    let farm = farm(0).await;
    let named = |name, subfolder| json!({"name": name, "subfolder": subfolder, "type": "input"});
    assert_eq!(farm.upload("pic.png", b"one", &[]).await, named("pic.png", ""));
    assert_eq!(farm.upload("pic.png", b"one", &[]).await, named("pic.png", ""));
    assert_eq!(farm.upload("pic.png", b"two", &[]).await, named("pic (1).png", ""));
    assert_eq!(farm.upload("pic.png", b"two", &[]).await, named("pic (1).png", ""));
    let overwrite = [("overwrite", "true")];
    assert_eq!(farm.upload("pic.png", b"three", &overwrite).await, named("pic.png", ""));
    let sub = [("subfolder", "sub")];
    assert_eq!(farm.upload("pic.png", b"one", &sub).await, named("pic.png", "sub"));
    for (name, fields) in [
        (Some("pic.png"), [("subfolder", "../../x")]),
        (Some(""), [("a", "b")]),
        (None, [("a", "b")]),
    ] {
        let (status, _) = farm.post("/api/upload/image", form(name, b"x", &fields)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name:?}");
    }
    let (status, _) =
        farm.post("/upload/image", form(Some("a"), b"x", &[("type", "models")])).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(farm.files.uploads().listed(&["image"]), ["pic (1).png", "pic.png"]);
    assert_eq!(farm.view("filename=pic.png&type=input", &[]).await.unwrap().1, b"three");
}

#[tokio::test]
async fn a_body_over_the_limit_is_too_large_whether_announced_or_not() {
    let farm = farm(0).await;
    let (status, reply) =
        farm.post("/upload/image", form(Some("a"), &vec![0; (1 << 20) + 1], &[])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(reply["error"]["type"], "body_too_large");
    let chunks = form(Some("a"), &vec![0; 2 << 20], &[]);
    let chunks: Vec<_> = chunks.chunks(5000).map(|c| Ok::<_, String>(c.to_vec())).collect();
    let request = Request::post("/upload/image")
        .header("content-type", "multipart/form-data; boundary=b")
        .body(Body::from_stream(futures_util::stream::iter(chunks)))
        .unwrap();
    let response = farm.files.router(1 << 20).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let text = "x".repeat(100_000);
    let (status, _) = farm.post("/upload/image", form(Some("a"), b"", &[("x", &text)])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_name_that_a_backend_has_is_taken_unless_the_content_is_the_same() {
    let farm = farm(2).await;
    farm.place(1, "example.png", b"theirs", &[]).await;
    assert_eq!(farm.upload("example.png", b"theirs", &[]).await["name"], "example.png");
    let farm = self::farm(1).await;
    farm.place(0, "example.png", b"theirs", &[]).await;
    assert_eq!(farm.upload("example.png", b"ours!!", &[]).await["name"], "example (1).png");
    assert_eq!(
        farm.upload("example.png", b"longer than theirs", &[]).await["name"],
        "example (2).png"
    );
}

#[tokio::test]
async fn uploads_are_shown_with_ranges_conditions_previews_and_channels() {
    let farm = farm(0).await;
    let image = image_of_seed(1);
    farm.upload("a.png", &image, &[("subfolder", "s")]).await;
    let query = "filename=a.png&type=input&subfolder=s";
    let (status, body) = farm.view(query, &[("range", "bytes=2-5")]).await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, &image[2..6]));
    let uri = format!("/view?{query}").parse().unwrap();
    let whole = farm.files.view(&uri, &HeaderMap::new()).await.unwrap();
    assert_eq!(whole.headers()["content-type"], "image/png");
    assert_eq!(whole.headers()["content-disposition"], "filename=\"a.png\"");
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    let (status, body) = farm.view(query, &[("if-none-match", &etag)]).await.unwrap();
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let preview = farm.view(&format!("{query}&preview=jpeg;50"), &[]).await.unwrap().1;
    assert_eq!(preview[..3], [0xff, 0xd8, 0xff]);
    let alpha = farm.view(&format!("{query}&channel=a"), &[]).await.unwrap().1;
    assert!(image::load_from_memory(&alpha).unwrap().color().has_alpha());
    assert_eq!(farm.view("filename=b.png&type=input", &[]).await, None);
    assert_eq!(farm.view("filename=a.png&subfolder=..", &[]).await.unwrap().0, 403);
    farm.upload("a.txt", b"no image", &[]).await;
    let broken = farm.view("filename=a.txt&type=input&preview=webp", &[]).await.unwrap();
    assert_eq!(broken, (StatusCode::OK, b"no image".to_vec()), "unknown formats as they are");
}

#[tokio::test]
async fn a_mask_is_put_on_an_original_here_or_on_a_backend() {
    let farm = farm(2).await;
    let image = image_of_seed(3);
    let mut mask = image::load_from_memory(&image).unwrap().into_rgba8();
    mask.pixels_mut().for_each(|pixel| pixel.0[3] = 7);
    let mut bytes = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let mask = bytes.into_inner();
    farm.upload("o.png", &image, &[]).await;
    for sim in [0, 1] {
        farm.place(sim, "x.png", &image, &[("type", "output")]).await;
    }
    for (original, subfolder, name, made) in [
        ("o.png [input]", "", "m1.png", true),
        ("x.png", "@gpu-1", "m2.png", true),
        ("gone.png", "@gpu-1", "m3.png", false),
        ("x.png", "", "m4.png", false),
        ("../o.png", "", "m5.png", false),
    ] {
        let original = json!({"filename": original, "subfolder": subfolder}).to_string();
        let fields = [("original_ref", original.as_str()), ("subfolder", "clipspace")];
        let (status, reply) = farm.post("/upload/mask", form(Some(name), &mask, &fields)).await;
        assert_eq!((status, &reply["name"]), (StatusCode::OK, &json!(name)));
        let query = format!("filename={name}&type=input&subfolder=clipspace");
        let shown = farm.view(&query, &[]).await;
        assert_eq!(shown.is_some(), made, "{name}");
        if let Some((_, shown)) = shown {
            let shown = image::load_from_memory(&shown).unwrap().into_rgba8();
            assert!(shown.pixels().all(|pixel| pixel.0[3] == 7));
        }
    }
    let (status, _) = farm.post("/upload/mask", form(Some("m6.png"), &mask, &[])).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "no original_ref");
}

#[tokio::test]
async fn an_upload_is_pushed_once_and_again_when_it_or_the_backend_changed() {
    let farm = farm(2).await;
    let name = "ü \"q\".png";
    farm.upload("ü \\\"q\\\".png", b"one", &[("subfolder", "s ü")]).await;
    let text = json!(format!("s ü/{name} [input]"));
    for _ in 0..2 {
        let prepared = farm.prepare(0, text.clone(), &Own::default()).await;
        assert!(prepared.body.is_none());
    }
    assert_eq!((farm.pushes(0), farm.pushes(1)), (1, 0));
    let query = "filename=%C3%BC%20%22q%22.png&type=input&subfolder=s%20%C3%BC";
    assert_eq!(farm.shown(0, query).await.unwrap(), b"one");
    let fields = [("subfolder", "s ü"), ("overwrite", "1")];
    farm.upload("ü \\\"q\\\".png", b"two", &fields).await;
    farm.prepare(0, text.clone(), &Own::default()).await;
    assert_eq!(farm.shown(0, query).await.unwrap(), b"two");
    farm.files.forget(farm.backends[0].id);
    farm.prepare(0, text.clone(), &Own::default()).await;
    assert_eq!(farm.pushes(0), 3);
    farm.prepare(0, json!("no such upload.png"), &Own::default()).await;
    assert_eq!(farm.pushes(0), 3);
}

#[tokio::test]
async fn jobs_that_start_together_push_together() {
    let farm = farm(1).await;
    farm.upload("a.png", b"one", &[]).await;
    let body = prompt(&json!("a.png"));
    let jobs = (0..20).map(|_| async {
        farm.files.prepare(&body, &farm.backends[0], &Own::default()).await.unwrap();
    });
    futures_util::future::join_all(jobs).await;
    assert_eq!(farm.pushes(0), 1);
}

#[tokio::test]
async fn a_backend_that_does_not_take_an_upload_is_named() {
    let mut farm = farm(1).await;
    farm.upload("a.png", b"one", &[]).await;
    farm.sims.remove(0).kill().await;
    let body = prompt(&json!("a.png"));
    let failed = farm.files.prepare(&body, &farm.backends[0], &Own::default()).await.unwrap_err();
    assert_eq!(failed.to_string(), "backend gpu-0: it does not answer");
}

#[tokio::test]
async fn an_output_is_read_where_it_is_or_brought_along() {
    let farm = farm(2).await;
    let content = image_of_seed(4);
    farm.place(0, "x.png", &content, &[("type", "output"), ("subfolder", "sub")]).await;
    let text = json!("@gpu-0/sub/x.png [output]");
    let object = json!({"filename": "x.png", "subfolder": "@gpu-0/sub", "type": "output"});
    let there = farm.prepare(0, text.clone(), &Own::default()).await;
    assert_eq!(input(&there).unwrap(), "sub/x.png [output]");
    let there = farm.prepare(0, object.clone(), &Own::default()).await;
    assert_eq!(input(&there).unwrap()["subfolder"], "sub");
    assert_eq!(farm.pushes(0), 1, "only the one by hand");

    let away = farm.prepare(1, text.clone(), &Own::default()).await;
    let named = input(&away).unwrap();
    let name = named.as_str().unwrap().strip_suffix(".png [input]").unwrap();
    let name = name.strip_prefix("comfygate/").unwrap();
    let query = format!("filename={name}.png&type=input&subfolder=comfygate");
    assert_eq!(farm.shown(1, &query).await.unwrap(), content);
    let away = farm.prepare(1, object, &Own::default()).await;
    let expected =
        json!({"filename": format!("{name}.png"), "subfolder": "comfygate", "type": "input"});
    assert_eq!(input(&away).unwrap(), expected);
    assert_eq!(farm.pushes(1), 1, "brought once");
    let requests = farm.sims[0].requests();
    let views =
        requests.iter().filter(|(method, path)| method == "GET" && path.starts_with("/view"));
    assert_eq!(views.count(), 2, "the second time by its tag");
}

#[tokio::test]
async fn a_name_of_nothing_is_left_to_the_servers_own_words() {
    let farm = farm(2).await;
    for text in ["@gpu-0/gone.png [output]", "@gone/x.png [temp]", "gone.png [output]", "gone.png"]
    {
        let prepared = farm.prepare(1, json!(text), &Own::default()).await;
        assert!(prepared.body.is_none(), "{text}");
    }
}

#[tokio::test]
async fn an_output_without_a_prefix_is_the_callers_own_or_the_only_one() {
    let farm = farm(2).await;
    for (sim, name) in [(0, "both.png"), (1, "both.png"), (0, "only.png")] {
        farm.place(sim, name, format!("{name} {sim}").as_bytes(), &[("type", "output")]).await;
    }
    let ids: Vec<BackendId> = farm.backends.iter().map(|backend| backend.id).collect();
    let made = |ids: Vec<BackendId>| Own(Arc::new(move |_| ids.clone()));
    let nobody = Own::default();
    let uri = |name: &str| format!("/view?filename={name}&type=output").parse::<Uri>().unwrap();
    let (both, only) = (uri("both.png"), uri("only.png"));
    assert_eq!(farm.files.holder(&both, &nobody, false).await, None);
    assert_eq!(farm.files.holder(&both, &made(vec![ids[1], ids[0]]), false).await, Some(ids[1]));
    assert_eq!(farm.files.holder(&only, &nobody, false).await, Some(ids[0]));
    assert_eq!(farm.files.holder(&only, &made(vec![ids[1]]), false).await, None, "another's");
    assert_eq!(farm.files.holder(&only, &nobody, true).await, None, "nobody's own");
    assert_eq!(farm.files.holder(&only, &made(vec![ids[0]]), true).await, Some(ids[0]));

    let text = |name: &str| json!(format!("{name} [output]"));
    let ambiguous = farm.prepare(0, text("both.png"), &nobody).await;
    assert_eq!(input(&ambiguous).unwrap(), "@?/both.png [output]");
    let own = farm.prepare(0, text("both.png"), &made(vec![ids[1]])).await;
    assert!(input(&own).unwrap().as_str().unwrap().starts_with("comfygate/"));
    assert!(farm.prepare(0, text("only.png"), &nobody).await.body.is_none());
}

#[tokio::test]
async fn an_upload_to_the_output_folder_stays_here_and_overwrites_nothing() {
    let farm = farm(1).await;
    farm.place(0, "x.png", b"made by a job", &[("type", "output")]).await;
    let fields = [("type", "output"), ("overwrite", "true")];
    assert_eq!(farm.upload("x.png", b"sent", &fields).await["type"], "output");
    assert_eq!(farm.view("filename=x.png&type=output", &[]).await.unwrap().1, b"sent");
    let prepared = farm.prepare(0, json!("x.png [output]"), &Own::default()).await;
    let named = input(&prepared).unwrap();
    assert!(named.as_str().unwrap().starts_with("comfygate/"), "{named}");
    assert_eq!(farm.shown(0, "filename=x.png").await.unwrap(), b"made by a job");
}

#[tokio::test]
async fn uploads_of_waiting_jobs_are_pinned() {
    let farm = farm(0).await;
    farm.upload("a.png", &vec![1; 1 << 19], &[]).await;
    let pins = farm.files.pin(&prompt(&json!("a.png"))).await;
    for i in 0..22u8 {
        farm.upload(&format!("{i}.png"), &vec![i + 2; 1 << 19], &[]).await;
    }
    let place = Place::new(Folder::Input, "", "a.png").unwrap();
    assert!(farm.files.uploads().has(&place));
    drop(pins);
    farm.upload("last.png", &vec![99; 1 << 19], &[]).await;
    assert!(!farm.files.uploads().has(&place));
}

proptest::proptest! {
    #[test]
    fn whose_it_is_always_has_it(
        holders in proptest::collection::vec(0u32..4, 0..4),
        made in proptest::collection::vec(0u32..4, 0..4),
    ) {
        let ids = |ids: &[u32]| ids.iter().map(|id| BackendId(*id)).collect::<Vec<_>>();
        let (holders, made) = (ids(&holders), ids(&made));
        if let Some(id) = whose(&holders, &made) {
            proptest::prop_assert!(holders.contains(&id));
            proptest::prop_assert!(made.is_empty() || made.contains(&id));
        }
    }
}
