//! Servers that differ: every prompt runs where it can, and what none can run gets a server's own
//! answer, at an idle and at a full farm alike. Slow servers, old servers, large prompts.

use std::time::{Duration, Instant};

use comfygate::sim::{Sim, SimConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::painter::{Painter, paced};
use super::{pool, quick_farm, ready, setup};
use crate::support::{Embedded, PATIENCE, Setup, eventually, is_full};

/// A simulator with these checkpoints, without these nodes.
async fn server(models: &[&str], without: &[&str], port: u16) -> Sim {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let (models, without_nodes) = (names(models), names(without));
    let config = SimConfig { speed: 10.0, port, models, without_nodes, ..SimConfig::default() };
    Sim::start(config).await.unwrap()
}

/// Servers `comfy-1` with one checkpoint, `comfy-2` with another, `comfy-3` with none.
async fn three() -> Vec<Sim> {
    vec![
        server(&["a.ckpt"], &[], 0).await,
        server(&["b.ckpt"], &[], 0).await,
        server(&[], &[], 0).await,
    ]
}

/// A prompt that works with a checkpoint.
fn with_model(model: &str, seed: u64, seconds: f64) -> Value {
    let mut prompt = paced(seed, seconds);
    prompt["1"]["inputs"]["model"] = json!(["9", 0]);
    prompt["9"] = json!({"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}});
    prompt
}

/// The server that made a prompt's picture.
async fn maker(painter: &Painter, prompt: &str) -> String {
    let entry = painter.entry(prompt).await;
    let subfolder = entry["outputs"]["2"]["images"][0]["subfolder"].as_str();
    subfolder.unwrap_or_else(|| panic!("{entry}")).trim_start_matches('@').to_owned()
}

async fn started(painter: &Painter, prompt: &str) {
    painter
        .until(|heard| {
            let start = |one: &super::painter::Heard| {
                one.name() == "execution_start" && one.prompt() == Some(prompt)
            };
            heard.iter().any(start)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prompt_runs_where_it_can_and_holds_nobody_up() {
    let farm = three().await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "choosy").await;
    for (model, at) in [("a.ckpt", "comfy-1"), ("b.ckpt", "comfy-2"), ("a.ckpt", "comfy-1")] {
        let prompt = painter.paint(with_model(model, 1, 0.1)).await;
        assert_eq!(maker(&painter, &prompt).await, at, "{model} at an idle farm");
    }
    // The one server that can is busy: its jobs wait for it, whoever came before or after.
    let long = painter.paint(with_model("a.ckpt", 2, 300.0)).await;
    started(&painter, &long).await;
    let waits = [
        painter.paint(with_model("a.ckpt", 3, 0.1)).await,
        painter.paint(with_model("a.ckpt", 4, 0.1)).await,
    ];
    for seed in 0..6 {
        let others = if seed % 2 == 0 { paced(seed, 0.1) } else { with_model("b.ckpt", seed, 0.1) };
        let prompt = painter.paint(others).await;
        painter.finished(&prompt).await;
        assert!(painter.has_picture(&prompt, seed).await);
    }
    let pending = painter.get("/queue").await;
    assert_eq!(pending["queue_pending"].as_array().unwrap().len(), 2, "{pending}");
    painter.send("/interrupt", &json!({"prompt_id": long})).await;
    for prompt in &waits {
        assert_eq!(maker(&painter, prompt).await, "comfy-1", "at a full one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_server_can_run_gets_a_servers_own_words_at_an_idle_and_at_a_full_farm() {
    let farm = three().await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "wisher").await;
    let mut partly = with_model("nowhere.ckpt", 5, 0.1);
    partly["3"] = paced(6, 0.1)["1"].clone();
    partly["4"] = json!({"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "ComfyUI"}});
    let mut no_node = paced(7, 0.1);
    no_node["1"]["class_type"] = json!("NoSuchNode");
    for round in ["idle", "full"] {
        for prompt in [with_model("nowhere.ckpt", 5, 0.1), no_node.clone(), partly.clone()] {
            let body = json!({"prompt": prompt, "client_id": "wisher"});
            let got = painter.send("/prompt", &body).await;
            // Those that lack least: the ones with a loader.
            let mut expected = Vec::new();
            for sim in &farm[..2] {
                let direct = Painter::connect(&sim.url(), "direct").await;
                let (status, reply) = direct.send("/prompt", &body).await;
                expected.push((status, reply["error"].clone(), reply["node_errors"].clone()));
                direct.send("/queue", &json!({"clear": true})).await;
            }
            let told = (got.0, got.1["error"].clone(), got.1["node_errors"].clone());
            assert!(expected.contains(&told), "{round}: {told:?} is none of {expected:?}");
            if got.0 == 200 {
                assert_ne!(told.2, json!({}), "{round}");
                painter.send("/queue", &json!({"delete": [got.1["prompt_id"]]})).await;
            }
        }
        for seed in 0..6 {
            painter.paint(paced(seed, 300.0)).await;
        }
    }
    let doctor = format!("{}/lb/doctor", gateway.admin);
    let told: Value = gateway.http.get(doctor).send().await.unwrap().json().await.unwrap();
    for (kind, item) in [("model", "nowhere.ckpt"), ("node", "NoSuchNode")] {
        let found = told["differences"].as_array().unwrap().iter().find(|one| one["item"] == item);
        let found = found.unwrap_or_else(|| panic!("{item} in {told}"));
        assert_eq!((&found["kind"], &found["have"]), (&json!(kind), &json!([])));
        assert_eq!(found["lack"], json!(["comfy-1", "comfy-2", "comfy-3"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partly_valid_prompt_runs_its_valid_part_where_that_is_possible() {
    let farm = vec![server(&[], &["PreviewImage"], 0).await, server(&["b.ckpt"], &[], 0).await];
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "partly").await;
    let mut prompt = paced(8, 0.1);
    prompt["3"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    prompt["8"] = with_model("nowhere.ckpt", 9, 0.1)["9"].clone();
    prompt["4"] = paced(9, 0.1)["1"].clone();
    prompt["4"]["inputs"]["model"] = json!(["8", 0]);
    prompt["5"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}});
    for _ in 0..3 {
        let body = json!({"prompt": prompt, "client_id": "partly"});
        let (status, reply) = painter.send("/prompt", &body).await;
        assert_eq!(status, 200, "the second server has all the nodes: {reply}");
        assert_eq!(reply["node_errors"]["8"]["errors"][0]["type"], "value_not_in_list", "{reply}");
        let id = reply["prompt_id"].as_str().unwrap();
        assert_eq!(maker(&painter, id).await, "comfy-2");
        assert!(painter.has_picture(id, 8).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gains_a_model_gets_the_jobs_that_wait_for_one() {
    let models = vec!["a.ckpt".to_owned()];
    let busy = Sim::start(SimConfig { models, ..SimConfig::default() }).await.unwrap();
    let mut farm = vec![busy, server(&[], &[], 0).await];
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "patient").await;
    let long = painter.paint(with_model("a.ckpt", 1, 600.0)).await;
    started(&painter, &long).await;
    let waits = painter.paint(with_model("a.ckpt", 2, 0.1)).await;
    let poor = farm.remove(1);
    let port = poor.addr().port();
    poor.kill().await;
    farm.push(server(&["a.ckpt"], &[], port).await);
    painter.finished(&waits).await;
    assert_eq!(maker(&painter, &waits).await, "comfy-2");
    let queue = painter.get("/queue").await;
    assert_eq!(queue["queue_running"][0][1], json!(long), "which ran all the while");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_prompt_returns_to_the_server_that_ran_it_last() {
    let farm = quick_farm(2).await;
    let keys = json!({"scheduler": {"strategy": "round_robin"}});
    let gateway = ready(setup(&farm).with(keys).embed().await, 2).await;
    let painter = Painter::connect(&gateway.data, "warm").await;
    let other_kind = |color: u64| {
        json!({"1": {"class_type": "EmptyImage", "inputs":
                {"width": 8, "height": 8, "batch_size": 1, "color": color}},
            "2": {"class_type": "SaveImage", "inputs":
                {"images": ["1", 0], "filename_prefix": "ComfyUI"}}})
    };
    let one = painter.paint(paced(0, 3.0)).await;
    let other = painter.paint(other_kind(0)).await;
    let (at_one, at_other) = (maker(&painter, &one).await, maker(&painter, &other).await);
    assert_ne!(at_one, at_other);
    for round in 1..5 {
        let first = painter.paint(other_kind(round)).await;
        assert_eq!(maker(&painter, &first).await, at_other);
        let second = painter.paint(paced(round, 0.1)).await;
        assert_eq!(maker(&painter, &second).await, at_one);
    }
}

/// Posts a prompt as a client of an address, perhaps for a kind of work.
async fn post_from(painter: &Painter, address: &str, task: Option<&str>) -> (u16, Value) {
    let url = format!("{}/api/prompt", painter.base);
    let body = json!({"prompt": paced(1, 0.1), "client_id": painter.id});
    let mut request = painter.http.post(url).header("x-forwarded-for", address).json(&body);
    if let Some(task) = task {
        request = request.header("x-comfygate-task-type", task);
    }
    let reply = request.send().await.unwrap();
    (reply.status().as_u16(), reply.json().await.unwrap())
}

/// A gateway in pool mode over two servers with these keys each, ready.
async fn pair(farm: &[Sim], keys: [Value; 2], more: Value) -> Embedded {
    let backends: Vec<Value> = (1..)
        .zip(farm)
        .zip(keys)
        .map(|((n, sim), keys)| {
            let mut backend = json!({"name": format!("comfy-{n}"), "url": sim.url()});
            backend.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            backend
        })
        .collect();
    let setup = Setup::bare(json!({"backends": backends, "mode": "pool"})).with(more);
    ready(setup.embed().await, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_choose_among_free_servers() {
    let farm = quick_farm(2).await;
    let keys = [json!({"labels": {"zone": "eu"}}), json!({"labels": {"zone": "us"}})];
    let zones = json!({"scheduler": {"zones": {"eu": ["10.1.0.0/16"], "us": ["10.2.0.0/16"]}}});
    let gateway = pair(&farm, keys, zones).await;
    let painter = Painter::connect(&gateway.data, "zones").await;
    for round in 0..3 {
        for (address, at) in [("10.1.0.9", "comfy-1"), ("10.2.0.9", "comfy-2")] {
            let (status, reply) = post_from(&painter, address, None).await;
            assert_eq!(status, 200);
            let prompt = reply["prompt_id"].as_str().unwrap();
            assert_eq!(maker(&painter, prompt).await, at, "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_kind_goes_only_to_those_that_do_it() {
    let farm = quick_farm(2).await;
    let keys = [json!({"task_types": ["video"]}), json!({"task_types": ["image"]})];
    let gateway = pair(&farm, keys, json!({})).await;
    let painter = Painter::connect(&gateway.data, "video").await;
    let mut prompts = Vec::new();
    for _ in 0..4 {
        let (status, reply) = post_from(&painter, "10.1.0.9", Some("video")).await;
        assert_eq!(status, 200);
        prompts.push(reply["prompt_id"].as_str().unwrap().to_owned());
    }
    for prompt in &prompts {
        assert_eq!(maker(&painter, prompt).await, "comfy-1");
    }
    let body = json!({"prompt": paced(2, 0.1), "client_id": "video",
        "extra_data": {"comfygate": {"task_type": "image"}}});
    let (_, reply) = painter.send("/prompt", &body).await;
    assert_eq!(maker(&painter, reply["prompt_id"].as_str().unwrap()).await, "comfy-2");
    let (status, refused) = post_from(&painter, "10.1.0.9", Some("audio")).await;
    assert_eq!((status, &refused["error"]["type"]), (503, &json!("no_backend")));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_posted_ahead_run_once_and_in_order() {
    let farm = quick_farm(2).await;
    let keys = json!({"pool": {"prefetch": 1}, "queue": {"fairness": "fifo"}});
    let gateway = ready(setup(&farm).with(keys).embed().await, 2).await;
    let painter = Painter::connect(&gateway.data, "ahead").await;
    let mut prompts = Vec::new();
    for seed in 0..16 {
        prompts.push(painter.paint(paced(seed, 1.0)).await);
    }
    for (prompt, seed) in prompts.iter().zip(0..) {
        painter.finished(prompt).await;
        assert!(painter.has_picture(prompt, seed).await);
    }
    assert_eq!(farm.iter().map(Sim::finished).sum::<u64>(), 16, "each ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_slowly_delays_nobody_else() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "hasty").await;
    let slowness = Duration::from_millis(2500);
    farm[0].faults().latency(slowness);
    let began = Instant::now();
    let url = format!("{}/prompt", gateway.data);
    let posts: Vec<JoinHandle<Duration>> = (0..8)
        .map(|seed| {
            let body = json!({"prompt": paced(seed, 0.1), "client_id": "hasty"});
            let request = painter.http.post(&url).json(&body);
            tokio::spawn(async move {
                let reply = request.send().await.unwrap();
                assert_eq!(reply.status(), 200);
                began.elapsed()
            })
        })
        .collect();
    let mut late = 0;
    for post in posts {
        late += usize::from(post.await.unwrap() >= slowness);
    }
    assert!(late <= 1, "{late} of 8 answers waited for the slow server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_many_megabytes_runs_and_others_go_on() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "large").await;
    // Without optimisation, ninety take minutes.
    let size = if is_full() { 90 << 20 } else { 4 << 20 };
    let body = json!({"prompt": paced(31, 0.1), "client_id": "large",
        "extra_data": {"extra_pnginfo": {"workflow": {"id": "w", "notes": "x".repeat(size)}}}});
    let (large, small) =
        tokio::join!(painter.send("/prompt", &body), painter.paint(paced(32, 0.1)));
    assert_eq!(large.0, 200, "{}", large.1);
    assert!(painter.has_picture(&small, 32).await);
    let prompt = large.1["prompt_id"].as_str().unwrap();
    assert!(painter.has_picture(prompt, 31).await);
    let job = painter.get(&format!("/api/jobs/{prompt}")).await;
    assert_eq!((&job["status"], &job["workflow_id"]), (&json!("completed"), &json!("w")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_ten_thousand_nodes_runs() {
    let farm = quick_farm(1).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "wide").await;
    let mut prompt = paced(41, 0.1);
    for node in 3..=10_000 {
        prompt[node.to_string()] = json!({"class_type": "EmptyImage", "inputs":
            {"width": 8, "height": 8, "batch_size": 1, "color": node}});
    }
    let id = painter.paint(prompt).await;
    assert!(painter.has_picture(&id, 41).await);
    let entry = painter.entry(&id).await;
    assert_eq!(entry["prompt"][2].as_object().unwrap().len(), 10_000);
}

/// Stands before a server and makes it as old as 0.3.44: it gives prompts ids of its own making,
/// and interrupts whatever runs.
struct Old {
    url: String,
    task: JoinHandle<()>,
}

impl Old {
    async fn before(sim: &Sim) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, to) = (format!("http://{}", listener.local_addr().unwrap()), sim.addr());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let server = TcpStream::connect(to).await?;
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let back = tokio::io::copy(&mut from_server, &mut to_client);
                    let forth = async {
                        let mut buffer = vec![0; 1 << 16];
                        loop {
                            let length = from_client.read(&mut buffer).await?;
                            if length == 0 {
                                return to_server.shutdown().await;
                            }
                            to_server.write_all(&forgotten(&buffer[..length])).await?;
                        }
                    };
                    tokio::try_join!(back, forth).map(drop)
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for Old {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes in which no `"prompt_id"` stands any more, but a key of that length that means nothing.
fn forgotten(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let key = br#""prompt_id""#;
    for start in 0..bytes.len().saturating_sub(key.len()) {
        if bytes[start..].starts_with(key) {
            bytes[start + 8] = b'x';
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn old_servers_that_give_prompts_their_own_ids_do_as_well() {
    let farm = quick_farm(2).await;
    let old = [Old::before(&farm[0]).await, Old::before(&farm[1]).await];
    let setup = Setup::new(&old.each_ref().map(|old| &*old.url)).with(json!({"mode": "pool"}));
    let gateway = ready(setup.embed().await, 2).await;
    let painter = Painter::connect(&gateway.data, "modern").await;
    let mut prompts = Vec::new();
    for seed in 0..8 {
        prompts.push(painter.paint(paced(seed, 0.3)).await);
    }
    for (prompt, seed) in prompts.iter().zip(0..) {
        painter.finished(prompt).await;
        assert!(painter.has_picture(prompt, seed).await);
        let events = painter.events_of(prompt);
        for wanted in ["execution_start", "executed", "execution_success"] {
            assert_eq!(events.iter().filter(|e| e.name() == wanted).count(), 1, "{wanted}");
        }
    }
    let entry = painter.entry(&prompts[0]).await;
    assert_eq!(entry["prompt"][1], json!(prompts[0]));
    let told = entry["status"]["messages"].to_string();
    assert!(told.contains(&prompts[0]), "its messages name the client's id: {told}");
    let long = painter.paint(paced(9, 300.0)).await;
    started(&painter, &long).await;
    painter.send("/interrupt", &json!({"prompt_id": long})).await;
    painter.finished(&long).await;
    let ran: u64 = farm.iter().map(Sim::finished).sum();
    assert_eq!(ran, 9, "each ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_with_one_client_id_get_each_its_own_results() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "shared").await;
    let mut prompts = Vec::new();
    for (seed, address) in [(51, "10.1.0.1"), (52, "10.2.0.2"), (53, "10.1.0.1"), (54, "10.2.0.2")]
    {
        let body = json!({"prompt": paced(seed, 0.3), "client_id": "shared"});
        let request = painter.http.post(format!("{}/prompt", gateway.data)).json(&body);
        let reply = request.header("x-forwarded-for", address).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        let reply: Value = reply.json().await.unwrap();
        prompts.push((reply["prompt_id"].as_str().unwrap().to_owned(), seed));
    }
    for (prompt, seed) in &prompts {
        assert!(painter.has_picture(prompt, *seed).await);
    }
    let sum = || farm.iter().map(Sim::finished).sum::<u64>();
    eventually("each has run once", PATIENCE, async || sum() == 4).await;
}
