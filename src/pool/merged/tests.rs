//! The routes over farms of simulated servers and of small applications that misbehave.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::to_bytes;
use http::Request;
use tower::ServiceExt;

use super::fixture::{Farm, router};
use super::*;
use crate::conformance::{Names, compare_exchange, exchanges};
use crate::health::Health;
use crate::sim::{Sim, SimConfig};

impl Farm {
    fn merged(&self, uploads: &[&str]) -> Arc<Merged> {
        let files: Files = Arc::new(uploads.iter().map(ToString::to_string).collect());
        let uploads: Uploads = Arc::new(move || Arc::clone(&files));
        Merged::new(Arc::clone(&self.fleet), Arc::clone(&self.fetcher), uploads, 200 << 20)
    }

    fn set_health(&self, name: &str, health: Health) {
        let live = Arc::clone(&self.fleet.view().named(name).unwrap().live);
        live.alter(|standing| standing.health = health);
        live.broke();
        self.fleet.touch();
    }
}

impl Merged {
    async fn get(self: &Arc<Self>, path: &str) -> Response {
        let request = Request::get(path).body(Body::empty()).unwrap();
        self.router().oneshot(request).await.unwrap()
    }

    async fn json(self: &Arc<Self>, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], JSON);
        serde_json::from_slice(&body(response).await).unwrap()
    }
}

async fn body(response: Response) -> Bytes {
    to_bytes(response.into_body(), 64 << 20).await.unwrap()
}

async fn sim(without: &[&str], models: &[&str]) -> Sim {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let (without_nodes, models) = (texts(without), texts(models));
    Sim::start(SimConfig { without_nodes, models, ..SimConfig::default() }).await.unwrap()
}

#[tokio::test]
async fn of_one_server_replies_are_those_recorded() {
    let sim = sim(&[], &[]).await;
    let farm = Farm::at([sim.url()]);
    let merged = farm.merged(&[]);
    let names = Names::default();
    let (all, mut compared) = (exchanges().unwrap(), 0);
    for recorded in all.iter().filter(|exchange| Merged::owns(&exchange.request.path)) {
        for prefix in ["", "/api"] {
            let response = merged.get(&format!("{prefix}{}", recorded.request.path)).await;
            let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
            let headers: BTreeMap<_, _> =
                response.headers().iter().map(|(n, v)| (n.to_string(), text(v))).collect();
            let status = response.status().as_u16();
            let body = serde_json::from_slice(&body(response).await).unwrap();
            let told = crate::conformance::Response { status, headers, body };
            let differences = compare_exchange(recorded, &told, (&names, &names));
            assert!(differences.is_empty(), "{}: {differences:?}", recorded.name);
        }
        compared += 1;
    }
    assert_eq!(compared, 8, "object_info four times, system_stats, features, embeddings, models");
}

#[tokio::test]
async fn a_farm_has_the_nodes_and_models_of_all_its_servers() {
    let one = sim(&["LoadImage"], &["a.safetensors", "b.safetensors"]).await;
    let two = sim(&[], &["c.safetensors", "a.safetensors"]).await;
    let farm = Farm::at([one.url(), two.url()]);
    let merged = farm.merged(&["new.png", "song.mp3"]);
    let nodes = merged.json("/api/object_info").await;
    let models = json!(["a.safetensors", "b.safetensors", "c.safetensors"]);
    assert_eq!(nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0], models);
    assert_eq!(nodes["LoadImage"]["input"]["required"]["image"][0], json!(["new.png"]));
    let class = merged.json("/object_info/LoadImage").await;
    assert_eq!(class, json!({"LoadImage": nodes["LoadImage"]}));
    assert_eq!(merged.json("/object_info/Nope").await, json!({}));

    assert_eq!(merged.json("/models/checkpoints").await, models);
    let told = merged.json("/experiment/models/checkpoints").await;
    assert_eq!(told.as_array().unwrap().len(), 3);
    assert_eq!(merged.json("/experiment/models").await[0]["name"], "checkpoints");
    assert_eq!(merged.get("/models/none").await.status(), 404);
    assert_eq!(merged.get("/models/%2e%2e").await.status(), 404);
    let stats = merged.json("/system_stats").await;
    assert_eq!(stats["devices"][1]["name"], "cpu (comfy-2)");
    assert_eq!(stats["devices"][1]["index"], 1);
    assert_eq!(merged.json("/features").await["max_upload_size"], 100 << 20);

    one.faults().large_file("x.png", 3).unwrap();
    assert_eq!(merged.json("/internal/files/output").await, json!(["@comfy-1/x.png"]));
    assert_eq!(merged.json("/internal/files/input").await, json!(["new.png", "song.mp3"]));
    assert_eq!(merged.get("/internal/files/models").await.status(), 400);
}

#[tokio::test]
async fn a_prompt_that_needs_a_model_runs_where_it_is() {
    let (with, without) = (sim(&[], &["a.safetensors"]).await, sim(&[], &["b.safetensors"]).await);
    let inputs = json!({"seconds": 0, "steps": 1, "seed": 1, "fail_at": -1, "preview": false,
        "model": ["1", 0]});
    let loader = json!({"ckpt_name": "a.safetensors"});
    let save = json!({"images": ["2", 0], "filename_prefix": "x"});
    let body = json!({"prompt": {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": loader},
        "2": {"class_type": "PacedImage", "inputs": inputs},
        "3": {"class_type": "SaveImage", "inputs": save}}});
    let farm = Farm::at([with.url(), without.url()]);
    let mut replies = Vec::new();
    for backend in farm.backends() {
        let body = body.to_string().into();
        let post =
            fetch::Question { method: Method::POST, body, ..fetch::Question::get("/prompt") };
        replies.push(farm.fetcher.ask(&backend, post, Bounds::default()).await.unwrap());
    }
    let [taken, refused] = [&replies[0], &replies[1]];
    let refused: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(refused["node_errors"]["1"]["errors"][0]["type"], "value_not_in_list");
    let taken: Value = serde_json::from_slice(&taken.body).unwrap();
    let id = taken["prompt_id"].as_str().unwrap();
    while with.finished() == 0 {
        tokio::task::yield_now().await;
    }
    let path = format!("/history/{id}");
    let history = farm.fetcher.fetch_all(&farm.backends()[..1], &path, Bounds::default()).await;
    let history: Value = serde_json::from_slice(&history[0].body).unwrap();
    assert_eq!(history[id]["status"]["status_str"], "success");
}

#[tokio::test]
async fn the_catalog_asks_once_and_again_when_a_server_returns() {
    let (one, two) = (sim(&[], &[]).await, sim(&[], &[]).await);
    let farm = Farm::at([one.url(), two.url()]);
    let merged = farm.merged(&[]);
    let asked = |sim: &Sim| {
        sim.requests().iter().filter(|(_, path)| path.starts_with("/object_info")).count()
    };
    let together = futures_util::future::join_all((0..20).map(|_| merged.json("/object_info")));
    together.await;
    let first = merged.catalog().union().await.unwrap();
    assert_eq!((asked(&one), asked(&two)), (1, 1));
    assert!(Arc::ptr_eq(&first, &merged.catalog().union().await.unwrap()));

    farm.set_health("comfy-2", Health::Down);
    merged.json("/object_info").await;
    assert_eq!(asked(&two), 1);
    farm.set_health("comfy-2", Health::Up);
    merged.json("/object_info").await;
    assert_eq!((asked(&one), asked(&two)), (1, 2));
}

#[tokio::test]
async fn a_server_that_hangs_holds_nobody_up_and_comes_in_later() {
    let (give, wait) = tokio::sync::watch::channel(false);
    let slow = move || {
        let mut wait = wait.clone();
        async move {
            wait.wait_for(|on| *on).await.unwrap();
            r#"{"Slow": {}}"#
        }
    };
    let slow = Router::new().route("/object_info", get(slow));
    let farm = Farm::of([router("/object_info", r#"{"Fast": {}}"#), slow]).await;
    let merged = farm.merged(&[]);
    let at_first = tokio::time::timeout(Duration::from_secs(20), merged.json("/object_info"));
    assert_eq!(at_first.await.unwrap(), json!({"Fast": {}}));
    give.send(true).unwrap();
    let both = merged.json("/object_info").await;
    assert_eq!(both, json!({"Fast": {}, "Slow": {}}));
}

#[tokio::test]
async fn what_no_server_has_is_refused() {
    let broken = Router::new().fallback(|| async { StatusCode::INTERNAL_SERVER_ERROR });
    let page = router("/features", "<html>");
    let farm = Farm::of([broken.clone(), page]).await;
    let merged = farm.merged(&[]);
    assert_eq!(merged.get("/features").await.status(), 503);
    assert_eq!(merged.get("/object_info").await.status(), 503);
    assert_eq!(merged.get("/models").await.status(), 404, "one says so, the other says nothing");
    let only_broken = Farm::of([broken]).await.merged(&[]);
    let refused = only_broken.get("/models").await;
    assert_eq!(refused.status(), 502);
    let nobody = Farm::at([]).merged(&[]).get("/models").await;
    assert_eq!(
        (nobody.status().as_u16(), &nobody.headers()["retry-after"]),
        (503, &"2".parse().unwrap())
    );
    let post = Request::post("/models").body(Body::empty()).unwrap();
    assert_eq!(merged.router().oneshot(post).await.unwrap().status(), 405);
}

fn message() -> Message {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-mine", "1".parse().unwrap());
    headers.insert("origin", "http://elsewhere".parse().unwrap());
    Message { method: Method::POST, path: "/free".into(), headers, body: "{}".into() }
}

#[tokio::test]
async fn a_broadcast_reaches_all_and_tells_the_first_success() {
    let sims = [sim(&[], &[]).await, sim(&[], &[]).await];
    let nowhere = "http://127.0.0.1:9".to_owned();
    let farm = Farm::at([nowhere.clone(), sims[0].url(), sims[1].url()]);
    let told = broadcast(&farm.fetcher, &farm.backends(), message()).await;
    assert_eq!(told.status(), 200);
    for sim in &sims {
        assert_eq!(sim.requests(), [("POST".to_owned(), "/free".to_owned())]);
    }
    let none = broadcast(&farm.fetcher, &farm.backends()[..1], message()).await;
    assert_eq!(none.status(), 502);
    assert_eq!(broadcast(&farm.fetcher, &[], message()).await.status(), 503);
}

#[tokio::test]
async fn a_broadcast_that_fails_everywhere_tells_the_worst() {
    let with = |status: StatusCode| {
        let answer = move |headers: http::HeaderMap, body: String| async move {
            let clean = headers.get("origin").is_none() && headers.get("x-mine").is_some();
            if clean && body == "{}" { (status, "told") } else { (StatusCode::OK, "") }
        };
        Router::new().route("/free", axum::routing::post(answer))
    };
    let farm = Farm::of([with(StatusCode::NOT_FOUND), with(StatusCode::BAD_GATEWAY)]).await;
    let told = broadcast(&farm.fetcher, &farm.backends(), message()).await;
    assert_eq!(told.status(), 502);
    assert_eq!(&body(told).await[..], b"told");
}

#[test]
fn paths_are_known_by_their_whole_form() {
    for path in
        ["/object_info", "/api/object_info/X?y", "/api/models/a%20b", "/internal/files/temp"]
    {
        assert!(Merged::owns(path), "{path}");
    }
    for path in [
        "/api/internal/files/temp",
        "/object_info/a/b",
        "/experiment/models/preview/a/0/b",
        "/models/",
        "/models/..",
        "/extensions",
        "/i18n",
        "/",
        "",
    ] {
        assert!(!Merged::owns(path), "{path}");
    }
}
