//! Faults on demand, by the handle and by the control endpoint.

use std::time::Duration;

use comfygate::sim::{Args, QueueReply, SimConfig, start_farm};
use serde_json::{Value, json};

use super::{Ears, fast, get, get_json, paced, post, queue, start, until};

#[tokio::test]
async fn a_refusing_server_comes_back_with_its_state() {
    let sim = fast().await;
    let mut ears = Ears::open(&sim, "A").await;
    queue(&sim, &json!({"prompt": paced(600.0, 1, 1), "prompt_id": "kept"})).await;
    sim.faults().refuse(true).await;
    assert!(reqwest::get(sim.url()).await.unwrap_err().is_connect());
    while ears.next().await.is_some() {}
    sim.faults().refuse(false).await;
    assert_eq!(get_json(&sim, "/queue").await["queue_running"][0][1], "kept");
}

#[tokio::test]
async fn a_killed_server_frees_its_port_and_forgets() {
    let sim = fast().await;
    let addr = sim.addr();
    queue(&sim, &json!({"prompt": paced(600.0, 1, 1)})).await;
    let mut ears = Ears::open(&sim, "A").await;
    sim.kill().await;
    while ears.next().await.is_some() {}
    let again = start(SimConfig { port: addr.port(), ..SimConfig::default() }).await;
    assert_eq!(again.addr(), addr);
    assert_eq!(get_json(&again, "/prompt").await["exec_info"]["queue_remaining"], 0);
    again.stop().await;
    start(SimConfig { port: addr.port(), ..SimConfig::default() }).await;
}

#[tokio::test]
async fn a_hanging_server_answers_once_it_is_lifted() {
    let sim = fast().await;
    sim.faults().hang(true);
    let url = format!("{}/prompt", sim.url());
    let asked = tokio::spawn(reqwest::get(url.clone()));
    until("the request has come", || async { sim.requests_seen() == 1 }).await;
    let short = Duration::from_millis(50);
    let client = reqwest::Client::builder().timeout(short).build().unwrap();
    assert!(client.get(&url).send().await.unwrap_err().is_timeout());
    sim.faults().hang(false);
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    assert_eq!(sim.requests()[0], ("GET".to_owned(), "/prompt".to_owned()));
}

#[tokio::test]
async fn a_hanging_server_can_be_killed() {
    let sim = fast().await;
    sim.faults().hang(true);
    let asked = tokio::spawn(reqwest::get(sim.url()));
    until("the request has come", || async { sim.requests_seen() == 1 }).await;
    sim.kill().await;
    let answer = tokio::time::timeout(super::PATIENCE, asked).await.expect("an end");
    assert!(answer.unwrap().is_err());
}

#[tokio::test]
async fn replies_fail_as_told_through_the_control_endpoint() {
    let sim = fast().await;
    let set = async |faults: Value| {
        let (status, reply) = post(&sim, "/sim/faults", &faults).await;
        assert_eq!(status, 200, "{reply}");
    };
    set(json!({"errors": true})).await;
    assert_eq!(get(&sim, "/prompt").await.status(), 500);
    set(json!({"errors": false, "broken_json": true})).await;
    assert!(get(&sim, "/prompt").await.json::<Value>().await.is_err());
    set(json!({"broken_json": false, "latency_ms": 60})).await;
    let started = std::time::Instant::now();
    get(&sim, "/prompt").await;
    assert!(started.elapsed() >= Duration::from_millis(60));
    set(json!({"latency_ms": 0, "file": {"name": "f.bin", "size": 10}})).await;
    assert_eq!(get(&sim, "/view?filename=f.bin").await.bytes().await.unwrap().len(), 10);
    assert_eq!(post(&sim, "/sim/faults", &json!({"odd": 1})).await.0, 400);
    assert_eq!(get_json(&sim, "/sim").await["requests"], 4);
}

#[tokio::test]
async fn the_queue_can_be_told_wrongly() {
    let sim = fast().await;
    let faults = sim.faults();
    faults.queue_reply(QueueReply::Broken);
    assert!(get(&sim, "/queue").await.json::<Value>().await.is_err());
    faults.queue_reply(QueueReply::WrongType);
    assert!(get_json(&sim, "/api/queue").await["queue_running"].is_u64());
    faults.queue_reply(QueueReply::Truncated);
    let reply = get(&sim, "/queue").await;
    assert_eq!(reply.headers()["content-length"], "9999");
    assert!(reply.bytes().await.is_err());
    faults.queue_reply(QueueReply::Endless);
    let mut reply = get(&sim, "/queue").await;
    let mut read = 0;
    while read < 20 << 20 {
        read += reply.chunk().await.unwrap().expect("it never ends").len();
    }
    faults.queue_reply(QueueReply::Real);
    assert_eq!(get_json(&sim, "/queue").await["queue_pending"], json!([]));
}

#[tokio::test]
async fn phantoms_are_reported_everywhere_at_once() {
    let sim = fast().await;
    let mut ears = Ears::open(&sim, "A").await;
    sim.faults().phantom_queue(1, 4);
    assert_eq!(ears.next().await.as_deref(), Some("status:5"));
    assert_eq!(get_json(&sim, "/prompt").await["exec_info"]["queue_remaining"], 5);
    let queue = get_json(&sim, "/queue").await;
    assert_eq!(queue["queue_running"].as_array().unwrap().len(), 1);
    assert_eq!(queue["queue_pending"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_server_dies_at_the_step_it_is_told() {
    let sim = fast().await;
    let mut ears = Ears::open(&sim, "A").await;
    sim.faults().die_at_step(Some(2));
    queue(&sim, &json!({"prompt": paced(10.0, 20, 1), "client_id": "A"})).await;
    let mut heard = Vec::new();
    while let Some(frame) = ears.next().await {
        heard.push(frame);
    }
    assert!(!heard.contains(&"progress:3/20".to_owned()), "{heard:?}");
    assert!(sim.is_dead());
    until("nobody listens", || async {
        reqwest::get(sim.url()).await.is_err_and(|error| error.is_connect())
    })
    .await;
}

#[tokio::test]
async fn forgetting_loses_what_ran_and_what_waited() {
    let sim = fast().await;
    queue(&sim, &json!({"prompt": paced(600.0, 1, 1)})).await;
    let waiting = queue(&sim, &json!({"prompt": paced(600.0, 1, 2)})).await;
    let mut ears = Ears::open(&sim, "A").await;
    assert_eq!(post(&sim, "/sim/faults", &json!({"forget": true})).await.0, 200);
    while ears.next().await.is_some() {}
    assert_eq!(get_json(&sim, "/prompt").await["exec_info"]["queue_remaining"], 0);
    assert_eq!(get(&sim, &format!("/api/jobs/{waiting}")).await.status(), 404);
    let (_, reply) = post(&sim, "/prompt", &json!({"prompt": paced(0.0, 1, 3)})).await;
    assert_eq!(reply["number"], 0);
    until("the worker goes on", || async { sim.finished() == 1 }).await;
}

#[tokio::test]
async fn sockets_and_connections_are_cut() {
    let sim = fast().await;
    let mut ears = Ears::open(&sim, "A").await;
    sim.faults().drop_sockets();
    while ears.next().await.is_some() {}
    let client = reqwest::Client::new();
    let url = format!("{}/view?filename=big", sim.url());
    sim.faults().large_file("big", 1 << 30).unwrap();
    let mut download = client.get(url).send().await.unwrap();
    download.chunk().await.unwrap();
    sim.faults().drop_connections();
    let cut = async { while let Ok(Some(_)) = download.chunk().await {} };
    tokio::time::timeout(super::PATIENCE, cut).await.expect("the download is cut");
    assert_eq!(get(&sim, "/prompt").await.status(), 200);
}

#[tokio::test]
async fn a_farm_takes_free_ports_and_refuses_taken_ones() {
    let host = "127.0.0.1".parse().unwrap();
    let farm = start_farm(host, 0, 3, &Args::default()).await.unwrap();
    let mut ports: Vec<u16> = farm.iter().map(|sim| sim.addr().port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
    let error = start_farm(host, ports[0], 1, &Args::default()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("in use"), "{error}");
}
