//! The admin plane of a real gateway process over simulated servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod curl;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use comfygate::sim::{Sim, SimConfig};
use reqwest::Method;
use serde_json::{Value, json};

use curl::curl;

use crate::support::process::{run, taken};
use crate::support::{Gateway, PATIENCE, Reply, Setup, eventually, farm, long_prompt, socket};

const TOKEN: &str = "a-long-admin-token-of-tests";

/// These servers as a configuration lists them.
fn backends(farm: &[Sim]) -> Value {
    json!({"backends": farm.iter().map(Sim::url).collect::<Vec<_>>()})
}

fn setup(farm: &[Sim]) -> Setup {
    let check = json!({"health_check": {"interval": 0.5, "timeout": 10.0}});
    Setup::plain(check).with(backends(farm))
}

fn with_token(setup: Setup) -> Setup {
    setup.with(json!({"admin": {"token": TOKEN}}))
}

async fn post(gate: &Gateway, path: &str, body: &Value) -> Reply {
    gate.call(Method::POST, path, body).await
}

async fn delete(gate: &Gateway, path: &str) -> Reply {
    gate.call(Method::DELETE, path, &Value::Null).await
}

/// A GET of either port with or without a token.
async fn plain(gate: &Gateway, port: SocketAddr, path: &str, token: Option<&str>) -> Reply {
    let mut request = gate.http.get(format!("http://{port}{path}"));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    taken(request).await.unwrap()
}

/// The words of a backend as the seed's own client sends them.
fn seed_words(name: &str, sim: &Sim) -> String {
    json!({"name": name, "host": "127.0.0.1", "port": sim.addr().port(), "weight": 1,
        "max_queue": 10, "enabled": true})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seeds_calls_work_as_printed() {
    let farm = farm(3).await;
    let gate = setup(&farm[..2]).start().await;
    let admin = format!("http://{}", gate.admin);
    let words = seed_words("comfy-3", &farm[2]);
    let add = ["-X", "POST", "-H", "Content-Type: application/json", "-d", &words];

    let stats = curl(&[], &format!("{admin}/lb/stats")).await;
    assert_eq!((stats.status, &stats.json()["backends"]["total"]), (200, &json!(2)), "{stats:?}");
    let added = curl(&add, &format!("{admin}/lb/backends")).await;
    assert_eq!((added.status, &added.json()["name"]), (201, &json!("comfy-3")), "{added:?}");
    assert_eq!(curl(&add, &format!("{admin}/lb/backends")).await.status, 409);
    let list = curl(&[], &format!("{admin}/lb/backends")).await;
    assert_eq!((list.status, &list.json()["total"]), (200, &json!(3)), "{list:?}");

    let post = ["-X", "POST"];
    for (verb, state) in [("disable", "disabled"), ("enable", "up")] {
        let url = format!("{admin}/lb/backends/comfy-3/{verb}");
        let changed = curl(&post, &url).await;
        assert_eq!((changed.status, &changed.json()["enabled"]), (200, &json!(verb == "enable")));
        gate.until_state("comfy-3", state).await;
    }
    let checked = curl(&post, &format!("{admin}/lb/health-check")).await.json();
    let states: Vec<_> = checked["backends"].as_array().unwrap().iter().collect();
    assert!(states.iter().all(|backend| backend["state"] == "up"), "{checked:?}");
    let scheduler = curl(&[], &format!("{admin}/lb/scheduler")).await;
    assert_eq!((scheduler.status, &scheduler.json()["strategy"]), (200, &json!("least_busy")));
    for strategy in ["round_robin", "weighted", "least_busy"] {
        let url = format!("{admin}/lb/scheduler/strategy/{strategy}");
        let chosen = curl(&post, &url).await;
        assert_eq!((chosen.status, &chosen.json()["strategy"]), (200, &json!(strategy)));
    }
    let unknown = curl(&post, &format!("{admin}/lb/scheduler/strategy/fastest")).await;
    let (status, told) = (unknown.status, unknown.json());
    let cure = told["error"]["details"].as_str().unwrap();
    assert!(status == 400 && cure.contains("least_busy"), "{told}");
    let gone = curl(&["-X", "DELETE"], &format!("{admin}/lb/backends/comfy-3")).await;
    assert_eq!((gone.status, gone.text()), (204, String::new()));

    // ComfyUI looks for interrupts between steps: short ones, or nothing happens for long.
    let mut prompt = long_prompt();
    prompt["prompt"]["1"]["inputs"]["steps"] = json!(600);
    let prompt = prompt.to_string();
    let submit = ["-X", "POST", "-H", "Content-Type: application/json", "-d", &prompt];
    let posted = curl(&submit, &format!("http://{}/prompt", gate.data)).await.json();
    let tasks = curl(&[], &format!("{admin}/lb/tasks")).await.json();
    let listed = (&tasks["total"], &tasks["tasks"][0]["task_id"]);
    assert_eq!(listed, (&json!(1), &posted["prompt_id"]), "{tasks}");
    let task = format!("{admin}/lb/tasks/{}", posted["prompt_id"].as_str().unwrap());
    assert_eq!(curl(&[], &task).await.json()["caller"], "127.0.0.1");
    let cancelled = curl(&["-X", "DELETE"], &task).await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    assert_eq!(curl(&["-X", "DELETE"], &task).await.status, 409);

    // curl without a header calls the body a form; ComfyUI reads it all the same.
    let url = format!("{admin}/lb/backends");
    assert_eq!(curl(&["-X", "POST", "-d", &words], &url).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_leaves_an_audit_line() {
    let farm = farm(2).await;
    let gate = setup(&farm[..1]).start().await;
    let from = "audit: no token (127.0.0.1) changed";
    let url = farm[1].url();
    post(&gate, "/lb/backends", &json!({"name": "extra", "url": url})).await;
    gate.until_logged(&format!("{from} extra: absent → {url}")).await;
    gate.until_state("extra", "up").await;
    post(&gate, "/lb/backends/extra/drain", &Value::Null).await;
    gate.until_logged(&format!("{from} extra: up → draining")).await;
    post(&gate, "/lb/scheduler/strategy/round_robin", &Value::Null).await;
    gate.until_logged(&format!("{from} scheduler.strategy: least_busy → round_robin")).await;
    post(&gate, "/lb/log", &json!({"verbose": true})).await;
    gate.until_logged(&format!("{from} log.verbose: false → true")).await;
    delete(&gate, "/lb/backends/extra").await;
    gate.until_logged(&format!("{from} extra: {url} → absent")).await;
}

/// Sends requests as 50 clients until told to stop, and counts those that fail.
fn load(gate: &Arc<Gateway>, stop: &Arc<AtomicBool>, done: &Arc<AtomicU64>) -> Vec<Client> {
    (0..50)
        .map(|n| {
            let (gate, stop, done) = (Arc::clone(gate), Arc::clone(stop), Arc::clone(done));
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let client = format!("10.0.0.{n}");
                while !stop.load(Relaxed) {
                    match gate.try_get(&client, "/prompt").await {
                        Ok(reply) if reply.status == 200 => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    done.fetch_add(1, Relaxed);
                }
                failures
            })
        })
        .collect()
}

type Client = tokio::task::JoinHandle<Vec<String>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_changes_under_load_fail_no_request() {
    let farm = farm(4).await;
    let gate = Arc::new(setup(&farm[..3]).start().await);
    gate.until_state("comfy-1", "up").await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients = load(&gate, &stop, &done);
    let words = json!({"name": "extra", "url": farm[3].url()});
    for _ in 0..250 {
        let status = post(&gate, "/lb/backends", &words).await.status;
        assert_eq!(status, 201);
        assert_eq!(post(&gate, "/lb/backends/comfy-2/disable", &Value::Null).await.status, 200);
        let removed = delete(&gate, "/lb/backends/extra").await;
        assert_eq!(removed.status, 204);
        assert_eq!(post(&gate, "/lb/backends/comfy-2/enable", &Value::Null).await.status, 200);
    }
    stop.store(true, Relaxed);
    let mut failures = Vec::new();
    for client in clients {
        failures.extend(client.await.unwrap());
    }
    assert!(done.load(Relaxed) > 500, "only {} requests beside the changes", done.load(Relaxed));
    assert!(failures.is_empty(), "{} failed: {:?}", failures.len(), &failures[..1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_survive_kill_9() {
    let farm = farm(4).await;
    let setup = setup(&farm[..3]);
    let gate = setup.start().await;
    post(&gate, "/lb/backends", &json!({"name": "extra", "url": farm[3].url(), "weight": 7})).await;
    post(&gate, "/lb/backends/comfy-1/disable", &Value::Null).await;
    post(&gate, "/lb/backends/comfy-2/drain", &Value::Null).await;
    delete(&gate, "/lb/backends/comfy-3").await;
    post(&gate, "/lb/scheduler/strategy/weighted", &Value::Null).await;
    gate.kill().await;
    let gate = setup.start().await;
    gate.until_state("extra", "up").await;
    gate.until_state("comfy-1", "disabled").await;
    gate.until_state("comfy-2", "drain").await;
    let list = gate.admin("/lb/backends").await.json();
    assert_eq!(list["total"], 3, "{list}");
    assert_eq!(gate.backend("extra").await["weight"], 7);
    assert_eq!(gate.admin("/lb/scheduler").await.json()["strategy"], "weighted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_is_kept_aside_and_the_file_counts() {
    let farm = farm(2).await;
    let setup = setup(&farm[..1]);
    let gate = setup.start().await;
    post(&gate, "/lb/backends", &json!({"name": "extra", "url": farm[1].url()})).await;
    gate.kill().await;
    let state = setup.state_dir().join("state.redb");
    let size = std::fs::metadata(&state).unwrap().len() as usize;
    std::fs::write(&state, "no database ".repeat(size / 12)).unwrap();
    let gate = setup.start().await;
    let line = gate.until_logged("kept aside as ").await;
    let aside = line.split("kept aside as ").nth(1).unwrap().split(';').next().unwrap();
    let kept = std::fs::read_to_string(setup.directory().join(aside)).unwrap();
    assert!(kept.starts_with("no database"));
    gate.until_state("comfy-1", "up").await;
    assert_eq!(gate.admin("/lb/backends").await.json()["total"], 1);
    // It keeps changes again.
    let added = post(&gate, "/lb/backends", &json!({"name": "b", "url": farm[1].url()})).await;
    assert_eq!(added.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_of_the_file_wins_over_one_added_by_hand() {
    let farm = farm(3).await;
    let setup = setup(&farm[..1]);
    let gate = setup.start().await;
    post(&gate, "/lb/backends", &json!({"name": "comfy-2", "url": farm[2].url()})).await;
    gate.kill().await;
    let setup = setup.with(backends(&farm[..2]));
    let gate = setup.start().await;
    gate.until_logged("the backend comfy-2 added by hand is left out, the file wins").await;
    assert_eq!(gate.backend("comfy-2").await["url"], farm[1].url());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_backend_keeps_its_clients_and_leaves_with_the_last() {
    let farm = farm(2).await;
    let gate = setup(&farm).start().await;
    gate.until_state("comfy-1", "up").await;
    gate.until_state("comfy-2", "up").await;
    let (old, reply) = ("10.1.0.1", gate.get("10.1.0.1", "/prompt").await);
    let backend = reply.backend();
    let from = [("x-forwarded-for", old)];
    let (socket, _) = socket::open(gate.data, "/ws?clientId=test", &from).await.unwrap();

    let leave = format!("/lb/backends/{backend}?drain=true");
    let drained = delete(&gate, &leave).await;
    assert_eq!((drained.status, &drained.json()["state"]), (202, &json!("drain")), "{drained:?}");
    assert_eq!(gate.get(old, "/prompt").await.backend(), backend, "an old client stays");
    let mut homes = HashSet::new();
    for n in 0..40 {
        homes.insert(gate.get(format!("10.2.0.{n}"), "/prompt").await.backend().to_owned());
    }
    assert!(!homes.contains(backend) && homes.len() == 1, "new clients go elsewhere: {homes:?}");
    assert_eq!(gate.backend(backend).await["state"], "drain");

    drop(socket);
    eventually("it goes with its last client", PATIENCE, async || {
        gate.admin(&format!("/lb/backends/{backend}")).await.status == 404
    })
    .await;
    let moved = gate.get(old, "/prompt").await;
    assert!(moved.status == 200 && moved.backend() != backend, "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_guards_both_ports() {
    let farm = farm(1).await;
    let open = setup(&farm).start().await;
    assert_eq!(plain(&open, open.data, "/lb/stats", None).await.status, 404);
    assert_eq!(plain(&open, open.data, "/lb/stats", Some("anything")).await.status, 404);
    assert_eq!(plain(&open, open.admin, "/lb/stats", None).await.status, 200);

    let gate = with_token(setup(&farm)).start().await;
    gate.until_state("comfy-1", "up").await;
    for port in [gate.admin, gate.data] {
        for shown in [None, Some("wrong"), Some("")] {
            let refused = plain(&gate, port, "/lb/stats", shown).await;
            assert_eq!(refused.status, 401, "{port} {shown:?}");
            assert_eq!(refused.json()["error"]["type"], "unauthorized");
        }
        assert_eq!(plain(&gate, port, "/lb/stats", Some(TOKEN)).await.status, 200);
        let document = plain(&gate, port, "/lb/openapi.json", Some(TOKEN)).await.json();
        assert!(document["paths"]["/lb/backends"]["post"].is_object(), "{port}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(plain(&gate, gate.admin, path, None).await.status, 200, "{path}");
    }
    post(&gate, "/lb/backends/comfy-1/disable", &Value::Null).await;
    gate.until_logged("audit: token (127.0.0.1) changed comfy-1: up → disabled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_operate_a_gateway_and_tell_how_it_went() {
    let farm = farm(2).await;
    let gate = with_token(setup(&farm[..1])).start().await;
    gate.until_state("comfy-1", "up").await;
    let admin = format!("http://{}", gate.admin);
    let directory = tempfile::tempdir().unwrap();
    let call = async |words: &[&str]| {
        let words = [words, &["--admin", &admin, "--token", TOKEN]].concat();
        run(&words, directory.path()).await
    };
    let url = farm[1].url();
    let steps: [(&[&str], i32, &str); 14] = [
        (&["add", "extra", &url, "--weight", "3", "--wait"], 0, "extra: added"),
        (&["add", "extra", &url], 1, "exists already"),
        (&["add", "b/c", &url], 2, "name"),
        (&["add", "other", "ftp://x"], 2, "url"),
        (&["disable", "extra"], 0, "extra: disabled"),
        (&["enable", "extra", "--wait"], 0, "extra: enabled"),
        (&["drain", "extra", "--wait"], 0, "extra: empty"),
        (&["status"], 0, "drain"),
        (&["status", "--json"], 0, "\"strategy\": \"least_busy\""),
        (&["remove", "extra"], 0, "extra: removed"),
        (&["remove", "extra"], 2, "there is no backend named extra"),
        (&["remove", "a/../b c"], 2, "there is no backend named a/../b c"),
        (&["enable"], 2, "required"),
        (&["healthcheck"], 0, ""),
    ];
    for (words, code, told) in steps {
        let ended = call(words).await;
        assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        assert!(ended.told(told), "{words:?}: {ended:?}");
    }
    let wrong = ["status", "--admin", &admin, "--token", "wrong"];
    assert_eq!(run(&wrong, directory.path()).await.code, Some(2));
    gate.kill().await;
    for words in [&["status"][..], &["healthcheck"], &["drain", "comfy-1"]] {
        let ended = call(words).await;
        assert!(ended.code == Some(1) && ended.told("cannot be reached"), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inventory_is_shown_and_the_doctor_tells_the_differences() {
    let other = SimConfig {
        reply_tap: Some(Arc::new(|path: &str, reply: &mut Value| match path {
            "/system_stats" => reply["system"]["comfyui_version"] = "0.9.9".into(),
            "/object_info" => {
                let input = json!({"required": {"name": [["only-here.safetensors"], {}]}});
                reply["OnlyHere"] = json!({"input": input});
            }
            _ => {}
        })),
        ..SimConfig::default()
    };
    let mut farm = vec![
        Sim::start(SimConfig::default()).await.unwrap(),
        Sim::start(other).await.unwrap(),
        Sim::start(SimConfig::default()).await.unwrap(),
    ];
    let gate = setup(&farm).start().await;
    eventually("versions are read", PATIENCE, async || {
        let list = gate.admin("/lb/backends").await.json();
        let versions: Vec<_> =
            (0..3).map(|n| list["backends"][n]["version"].as_str().map(str::to_owned)).collect();
        versions == ["0.8.0", "0.9.9", "0.8.0"].map(|version| Some(version.to_owned()))
    })
    .await;
    let device = &gate.backend("comfy-1").await["devices"][0];
    assert_eq!(
        (&device["type"], &device["vram_total"]),
        (&json!("cpu"), &json!(25_276_510_208_u64))
    );

    farm.remove(2).kill().await;
    gate.until_state("comfy-3", "down").await;
    let told = gate.admin("/lb/doctor").await.json();
    let difference = |kind: &str, item: &str, have: &str, lack: &str| json!({"kind": kind, "item": item, "have": [have], "lack": [lack]});
    assert_eq!(
        told,
        json!({"differences": [
            difference("version", "0.8.0", "comfy-1", "comfy-2"),
            difference("version", "0.9.9", "comfy-2", "comfy-1"),
            difference("node", "OnlyHere", "comfy-2", "comfy-1"),
            difference("model", "only-here.safetensors", "comfy-2", "comfy-1"),
        ], "total": 4, "compared": ["comfy-1", "comfy-2"], "unread": ["comfy-3"]})
    );
}
