//! Tasks and sessions, through a whole gateway in front of simulated servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use comfygate::sim::{Sim, SimConfig};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Embedded, PATIENCE, Setup, eventually, numbered};

/// The client that asks unless a test says otherwise.
const ME: &str = "10.1.0.1";

/// A gateway in this process, and what its tests ask of it.
struct Gateway(Embedded);

impl Gateway {
    async fn over(farm: &[&Sim]) -> Self {
        Self::with(farm, json!({})).await
    }

    async fn with(farm: &[&Sim], more: Value) -> Self {
        let setup = Setup::plain(json!({"backends": numbered("gpu", farm)}));
        Self(setup.with(more).embed().await)
    }

    /// A request of a client to the data port.
    async fn ask(
        &self,
        client: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let request = self.0.http.request(method, format!("{}{path}", self.0.data));
        let request = request.header("x-forwarded-for", client);
        send(if let Some(body) = body { request.json(body) } else { request }).await
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.ask(ME, Method::POST, path, Some(body)).await
    }

    /// Queues a prompt and returns its id.
    async fn prompt(&self, client: &str, prompt: &Value) -> String {
        let (status, reply) = self.ask(client, Method::POST, "/prompt", Some(prompt)).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        reply["prompt_id"].as_str().unwrap().to_owned()
    }

    async fn admin(&self, method: Method, path: &str) -> (StatusCode, Value) {
        send(self.0.http.request(method, format!("{}{path}", self.0.admin))).await
    }

    async fn task(&self, id: &str) -> Value {
        let (status, task) = self.admin(Method::GET, &format!("/lb/tasks/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{task}");
        task
    }

    /// The task, once it is in this state.
    async fn until(&self, id: &str, state: &str) -> Value {
        eventually(&format!("{id} is {state}"), PATIENCE, async || {
            self.task(id).await["state"] == state
        })
        .await;
        self.task(id).await
    }

    async fn counts(&self) -> Value {
        self.admin(Method::GET, "/lb/stats").await.1["tasks"].clone()
    }
}

async fn send(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn sim() -> Sim {
    Sim::start(SimConfig::default()).await.unwrap()
}

/// A prompt of so many seconds, a step per tenth.
fn paced(seconds: f64, seed: u32, fail_at: i32) -> Value {
    let steps = ((seconds * 10.0) as u32).max(1);
    json!({"client_id": "me", "prompt": {
        "1": {"class_type": "PacedImage", "inputs": {"seconds": seconds, "steps": steps,
            "seed": seed, "fail_at": fail_at, "preview": false}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }})
}

fn quick(seed: u32) -> Value {
    paced(0.05, seed, -1)
}

fn long(seed: u32) -> Value {
    paced(60.0, seed, -1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompts_whole_life_is_told() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let id = gateway.prompt(ME, &paced(0.3, 1, -1)).await;
    let created = gateway.task(&id).await;
    assert_eq!(created["attempts"], 1);
    let running = gateway.until(&id, "running").await;
    assert_eq!((&running["position"], &running["finished_at"]), (&json!(0), &Value::Null));
    let ended = gateway.until(&id, "completed").await;
    assert_eq!(ended["task_id"], json!(id));
    assert_eq!((&ended["caller"], &ended["backend"]), (&json!(ME), &json!("gpu-1")));
    assert_eq!(ended["kind"], "2 nodes: PacedImage, SaveImage");
    let run = ended["run_seconds"].as_f64().unwrap();
    assert!((0.25..2.0).contains(&run), "{run}");
    assert!(ended["created_at"].as_str().unwrap() <= ended["started_at"].as_str().unwrap());
    assert!(ended["started_at"].as_str().unwrap() < ended["finished_at"].as_str().unwrap());
    assert_eq!((&ended["error"], &ended["position"]), (&Value::Null, &Value::Null));
    let backend = gateway.admin(Method::GET, "/lb/backends/gpu-1").await.1;
    assert!((backend["prompt_seconds"].as_f64().unwrap() - run).abs() < 0.01, "{backend}");
    assert_eq!(backend["success_rate"], 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_interrupts_are_told_apart() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let fails = gateway.prompt(ME, &paced(0.2, 1, 1)).await;
    let stops = gateway.prompt(ME, &long(2)).await;
    let failed = gateway.until(&fails, "failed").await;
    assert_eq!(failed["error"], "PacedImage: asked to fail at step 1");
    gateway.until(&stops, "running").await;
    gateway.post("/interrupt", &json!({"prompt_id": stops})).await;
    assert_eq!(gateway.until(&stops, "cancelled").await["error"], Value::Null);
    let refused = gateway.post("/prompt", &json!({"prompt": {}})).await;
    assert_eq!(refused.0, StatusCode::BAD_REQUEST);
    let counts = json!({"queued": 0, "running": 0, "completed": 0, "failed": 1, "cancelled": 1});
    assert_eq!(gateway.counts().await, counts, "what was refused is no task");
    let backend = gateway.admin(Method::GET, "/lb/backends/gpu-1").await.1;
    assert!(backend["success_rate"].as_f64().unwrap() < 1.0, "{backend}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_deleted_and_cleared_by_their_clients_are_cancelled() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let mut ids = Vec::new();
    for seed in 0..4 {
        ids.push(gateway.prompt(ME, &long(seed)).await);
    }
    gateway.until(&ids[0], "running").await;
    for (position, id) in ids.iter().enumerate() {
        eventually("positions are those of the queue", PATIENCE, async || {
            gateway.task(id).await["position"] == position
        })
        .await;
    }
    gateway.post("/api/queue", &json!({"delete": [ids[1]]})).await;
    gateway.until(&ids[1], "cancelled").await;
    eventually("the next one moves up", PATIENCE, async || {
        gateway.task(&ids[2]).await["position"] == 1
    })
    .await;
    gateway.post("/queue", &json!({"clear": true})).await;
    for id in &ids[2..] {
        gateway.until(id, "cancelled").await;
    }
    assert_eq!(gateway.task(&ids[0]).await["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_by_delete_pending_and_running() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let running = gateway.prompt(ME, &long(1)).await;
    let pending = gateway.prompt(ME, &long(2)).await;
    gateway.until(&running, "running").await;
    for id in [&pending, &running] {
        let path = format!("/lb/tasks/{id}");
        let (status, task) = gateway.admin(Method::DELETE, &path).await;
        assert_eq!(status, StatusCode::OK, "{task}");
        assert_eq!((&task["task_id"], &task["state"]), (&json!(id), &json!("cancelled")));
        let (status, refusal) = gateway.admin(Method::DELETE, &path).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert_eq!(refusal["error"]["type"], "conflict");
    }
    let interrupts = sim.requests().iter().filter(|(_, path)| path == "/interrupt").count();
    assert_eq!(interrupts, 1, "only the running one was interrupted");
    for nobody in ["no%2Fsuch", "%ff", "x"] {
        let path = format!("/lb/tasks/{nobody}");
        for method in [Method::GET, Method::DELETE] {
            let (status, refusal) = gateway.admin(method, &path).await;
            assert_eq!(status, StatusCode::NOT_FOUND);
            assert_eq!(refusal["error"]["type"], "not_found");
        }
    }
    let (status, _) = gateway.admin(Method::POST, &format!("/lb/tasks/{running}")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_a_killed_backend_are_lost() {
    let sim = sim().await;
    let port = sim.addr().port();
    let gateway = Gateway::over(&[&sim]).await;
    let running = gateway.prompt(ME, &long(1)).await;
    let pending = gateway.prompt(ME, &long(2)).await;
    gateway.until(&running, "running").await;
    sim.kill().await;
    let again = Sim::start(SimConfig { port, ..SimConfig::default() }).await.unwrap();
    for id in [&running, &pending] {
        let task = gateway.until(id, "failed").await;
        assert_eq!(task["error"], "lost by the backend");
    }
    let after = gateway.prompt(ME, &quick(3)).await;
    gateway.until(&after, "completed").await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prompt_of_a_burst_is_followed_to_its_end() {
    let sims = [sim().await, sim().await];
    let gateway = Gateway::over(&[&sims[0], &sims[1]]).await;
    let posts = (0..60).map(|n| {
        let gateway = &gateway;
        async move { gateway.prompt(&format!("10.2.0.{}", n % 5), &paced(0.01, n, -1)).await }
    });
    let ids = futures_util::future::join_all(posts).await;
    eventually("all have ended", PATIENCE, async || gateway.counts().await["completed"] == 60)
        .await;
    let page = gateway.admin(Method::GET, "/lb/tasks?state=completed&limit=50&offset=20").await.1;
    assert_eq!((&page["total"], &page["limit"]), (&json!(60), &json!(50)));
    assert_eq!(page["tasks"].as_array().unwrap().len(), 40);
    let all = gateway.admin(Method::GET, "/lb/tasks").await.1;
    let listed = all["tasks"].as_array().unwrap();
    assert!(ids.iter().all(|id| listed.iter().filter(|task| task["task_id"] == **id).count() == 1));
    let none = gateway.admin(Method::GET, "/lb/tasks?state=failed").await.1;
    assert_eq!((&none["total"], &none["tasks"]), (&json!(0), &json!([])));
    let (status, refusal) = gateway.admin(Method::GET, "/lb/tasks?limit=0").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(refusal["error"]["type"], "invalid_value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_without_prompts_of_ours_is_left_alone() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let done = gateway.prompt(ME, &quick(1)).await;
    gateway.until(&done, "completed").await;
    let looks = || sim.requests().iter().filter(|(_, path)| path == "/queue").count();
    let before = looks();
    // Past the gateway: its events reach us, its prompts are not ours.
    for seed in 2..6 {
        let direct = gateway.0.http.post(format!("{}/prompt", sim.url())).json(&quick(seed));
        assert_eq!(send(direct).await.0, StatusCode::OK);
    }
    eventually("they have run", PATIENCE, async || sim.finished() == 5).await;
    assert_eq!(looks(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_push_the_polls_tell_the_end() {
    let sim = sim().await;
    let check = json!({"health_check": {"push": false, "interval": 0.3}});
    let gateway = Gateway::with(&[&sim], check).await;
    let id = gateway.prompt(ME, &paced(0.4, 1, -1)).await;
    gateway.until(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_sees_where_it_stands_without_a_token() {
    let sim = sim().await;
    let gateway = Gateway::over(&[&sim]).await;
    let session = async |client: &str| {
        let (status, session) = gateway.ask(client, Method::GET, "/lb/session", None).await;
        assert_eq!(status, StatusCode::OK, "{session}");
        session
    };
    let nobody = json!({"caller": ME, "backend": null, "position": null, "eta_seconds": null,
        "queued": 0, "running": 0});
    assert_eq!(session(ME).await, nobody);
    let taught = gateway.prompt(ME, &paced(0.2, 9, -1)).await;
    gateway.until(&taught, "completed").await;
    let first = gateway.prompt(ME, &long(1)).await;
    gateway.until(&first, "running").await;
    gateway.prompt("10.1.0.2", &long(2)).await;
    eventually("the other one is first in line", PATIENCE, async || {
        session("10.1.0.2").await["position"] == 1
    })
    .await;
    let mine = session(ME).await;
    assert_eq!((&mine["backend"], &mine["position"]), (&json!("gpu-1"), &json!(0)));
    assert_eq!((&mine["queued"], &mine["running"]), (&json!(0), &json!(1)));
    assert!(mine["eta_seconds"].as_f64().is_some());
    assert_eq!(session("10.1.0.2").await["queued"], 1);
    let (status, _) = gateway.ask(ME, Method::GET, "/lb/stats", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "the rest of /lb/ stays shut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_by_hand_sticks_and_is_refused_for_backends_out_of_service() {
    let sims = [sim().await, sim().await];
    let down = sim().await;
    let url = down.url();
    down.kill().await;
    let backends = json!([{"name": "gpu-1", "url": sims[0].url()},
        {"name": "gpu-2", "url": sims[1].url()}, {"name": "dead", "url": url},
        {"name": "off", "url": "http://127.0.0.1:9", "enabled": false}]);
    let gateway = Gateway::with(&[], json!({"backends": backends})).await;
    for name in ["gpu-1", "gpu-2", "gpu-1"] {
        let (status, session) = gateway.post("/lb/session", &json!({"backend": name})).await;
        assert_eq!((status, &session["backend"]), (StatusCode::OK, &json!(name)));
        let id = gateway.prompt(ME, &quick(1)).await;
        assert_eq!(gateway.task(&id).await["backend"], name);
    }
    for (body, status) in [
        (json!({"backend": "dead"}), StatusCode::CONFLICT),
        (json!({"backend": "off"}), StatusCode::CONFLICT),
        (json!({"backend": "gpu-3"}), StatusCode::NOT_FOUND),
        (json!({"backend": 1}), StatusCode::BAD_REQUEST),
        (json!({"backend": "gpu-1", "x": 1}), StatusCode::BAD_REQUEST),
        (json!([]), StatusCode::BAD_REQUEST),
    ] {
        let (answered, refusal) = gateway.post("/lb/session", &body).await;
        assert_eq!(answered, status, "{body}");
        assert!(refusal["error"]["type"].is_string());
    }
    let (_, session) = gateway.ask(ME, Method::GET, "/lb/session", None).await;
    assert_eq!(session["backend"], "gpu-1", "what was refused changed nothing");
    let (status, _) = gateway.ask(ME, Method::PUT, "/lb/session", None).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let foreign = gateway.0.http.post(format!("{}/lb/session", gateway.0.data));
    let foreign =
        foreign.header("origin", "http://evil.example").json(&json!({"backend": "gpu-2"}));
    assert_eq!(send(foreign).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_asks_and_chooses_under_its_prefix() {
    let sims = [sim().await, sim().await];
    let affinity = json!({"session": {"affinity": "tab"}});
    let gateway = Gateway::with(&[&sims[0], &sims[1]], affinity).await;
    let page = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let page = page.build().unwrap().get(&gateway.0.data).header("accept", "text/html");
    let answer = page.header("sec-fetch-mode", "navigate").send().await.unwrap();
    let home = answer.headers()["location"].to_str().unwrap().to_owned();
    let path = format!("{home}lb/session");
    for name in ["gpu-2", "gpu-1"] {
        let (status, session) = gateway.post(&path, &json!({"backend": name})).await;
        assert_eq!((status, &session["backend"]), (StatusCode::OK, &json!(name)), "{path}");
        assert!(session["caller"].as_str().unwrap().starts_with("session-"));
    }
    let (_, address) = gateway.ask(ME, Method::GET, "/lb/session", None).await;
    assert_eq!((&address["caller"], &address["backend"]), (&json!(ME), &Value::Null));
    let (_, by_name) = gateway.ask(ME, Method::GET, "/@gpu-2/lb/session", None).await;
    assert_eq!(by_name["backend"], "gpu-2");
    let (status, _) = gateway.post("/@gpu-2/lb/session", &json!({"backend": "gpu-1"})).await;
    assert_eq!(status, StatusCode::CONFLICT);
}
