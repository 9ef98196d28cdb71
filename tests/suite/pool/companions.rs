//! What a server says to a client itself: the terminal's lines, custom nodes' messages.

use std::sync::Arc;

use comfygate::sim::{Sim, SimConfig, Tap, TapFrame};
use serde_json::{Value, json};

use super::painter::{Heard, Painter, paced};
use super::{pool, quick_farm, ready, setup};
use crate::support::{Embedded, PATIENCE, eventually};

fn count(painter: &Painter, name: &str) -> usize {
    painter.heard().iter().filter(|one| one.name() == name).count()
}

async fn subscribe(painter: &Painter, sid: &str, enabled: bool) -> u16 {
    let url = format!("{}/internal/logs/subscribe", painter.base);
    let body = json!({"clientId": sid, "enabled": enabled});
    painter.http.patch(url).json(&body).send().await.unwrap().status().as_u16()
}

/// A gateway that lets its clients read the terminals.
async fn readable(farm: &[Sim]) -> Embedded {
    let setup = setup(farm).with(json!({"routes": {"allow": ["PATCH /internal/logs/subscribe"]}}));
    ready(setup.embed().await, farm.len()).await
}

/// Runs a prompt on every server, at the same time.
async fn run_on_all(painter: &Painter, farm: &[Sim]) {
    let mut prompts = Vec::new();
    for seed in 0..farm.len() {
        prompts.push(painter.paint(paced(seed as u64, 2.0)).await);
    }
    for prompt in prompts {
        painter.finished(&prompt).await;
    }
}

/// The server that answers a caller's other requests.
async fn home(painter: &Painter, gateway: &Embedded) -> usize {
    let reply = painter.http.get(format!("{}/extensions", gateway.data)).send().await.unwrap();
    let name = reply.headers()["x-comfygate-backend"].to_str().unwrap();
    name.strip_prefix("comfy-").unwrap().parse::<usize>().unwrap() - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_the_terminal_reach_who_subscribed_and_nobody_else() {
    let farm = quick_farm(2).await;
    let gateway = readable(&farm).await;
    let reader = Painter::connect(&gateway.data, "reader").await;
    let other = Painter::connect(&gateway.data, "other").await;
    run_on_all(&other, &farm).await;
    assert_eq!(count(&reader, "logs"), 0);

    assert_eq!(subscribe(&reader, "reader", true).await, 200);
    run_on_all(&other, &farm).await;
    reader.until(|heard| heard.iter().any(|one| one.name() == "logs")).await;
    let heard = reader.heard();
    let line = heard.iter().find(|one| one.name() == "logs").unwrap();
    let Heard::Event { data, .. } = line else { panic!("{line:?}") };
    assert!(data["entries"][0]["m"].is_string(), "{data}");
    assert_eq!(count(&other, "logs"), 0);
    let foreign = reader.heard().iter().any(|one| one.prompt().is_some());
    assert!(!foreign, "jobs come over the gateway's own sockets alone: {:?}", reader.heard());

    assert_eq!(subscribe(&reader, "reader", false).await, 200);
    let before = count(&reader, "logs");
    run_on_all(&other, &farm).await;
    assert_eq!(count(&reader, "logs"), before);
    for nobody in ["nobody", ""] {
        assert_eq!(subscribe(&reader, nobody, true).await, 200, "as ComfyUI says");
    }
    let url = format!("{}/internal/logs/subscribe", gateway.data);
    let bad = reader.http.patch(url).body("{}").send().await.unwrap();
    assert_eq!(bad.status(), 500, "as ComfyUI says");
}

/// Makes custom messages of status events: with 7 prompts of those to all, with 8 to one client.
fn custom_messages() -> Tap {
    Arc::new(|sid, frame| {
        let to = |sid: &str, text: &str| {
            (sid.to_owned(), TapFrame::Text(json!({"type": "custom", "data": {"for": text}})))
        };
        let TapFrame::Text(value) = &frame else { return vec![(sid.to_owned(), frame)] };
        match value["data"]["status"]["exec_info"]["queue_remaining"].as_u64() {
            Some(7) => vec![to(sid, "all")],
            Some(8) if sid == "asker" => vec![to(sid, "one")],
            _ => vec![(sid.to_owned(), frame)],
        }
    })
}

async fn talkative_farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        let config =
            SimConfig { tap: Some(custom_messages()), speed: 10.0, ..SimConfig::default() };
        farm.push(Sim::start(config).await.unwrap());
    }
    farm
}

fn custom(painter: &Painter, text: &str) -> usize {
    let heard = painter.heard();
    let same = |one: &&Heard| match one {
        Heard::Event { name, data } => name == "custom" && data["for"] == text,
        Heard::Binary(_) => false,
    };
    heard.iter().filter(same).count()
}

async fn sockets(sim: &Sim, wanted: usize) {
    eventually("so many sockets", PATIENCE, async || sim.sockets() == wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_nodes_answer_reaches_who_asked_it() {
    let mut farm = talkative_farm(2).await;
    let gateway = readable(&farm).await;
    let idle = Painter::connect(&gateway.data, "idle").await;
    let asker = Painter::connect(&gateway.data, "asker").await;
    let at_rest: Vec<_> = farm.iter().map(Sim::sockets).collect();
    let at = home(&asker, &gateway).await;
    assert_eq!(farm[at].sockets(), at_rest[at], "idle clients cost a server nothing");

    // No server has it, but whatever one says to the client would have to come.
    let asked = asker.http.get(format!("{}/custom/node?client_id=asker", gateway.data));
    assert_eq!(asked.send().await.unwrap().status(), 404);
    // Both are the same caller's, so both get one.
    sockets(&farm[at], at_rest[at] + 2).await;
    eventually("the client is spoken to", PATIENCE, async || {
        farm[at].faults().phantom_queue(0, 8);
        custom(&asker, "one") > 0
    })
    .await;
    assert_eq!(custom(&idle, "one"), 0);

    farm[at].faults().phantom_queue(0, 7);
    let for_all = |painter: &Painter| custom(painter, "all");
    eventually("all are spoken to", PATIENCE, async || for_all(&asker) > 0 && for_all(&idle) > 0)
        .await;
    farm[at].faults().phantom_queue(0, 0);

    drop(asker);
    sockets(&farm[at], at_rest[at] + 1).await;
    assert_eq!(subscribe(&idle, "idle", true).await, 200);
    farm.remove(at).kill().await;
    sockets(&farm[0], at_rest[1 - at] + 1).await;
    eventually("the new home is subscribed to", PATIENCE, async || {
        let body = json!({"prompt": paced(1, 0.1), "client_id": "idle"});
        let (status, _) = idle.send("/prompt", &body).await;
        status == 200 && count(&idle, "logs") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_no_backend_but_where_its_job_runs() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "session").await;
    home(&painter, &gateway).await;
    let session = async || painter.get("/lb/session").await;
    let idle = session().await;
    assert_eq!(idle["backend"], Value::Null);
    assert_eq!((&idle["queued"], &idle["running"]), (&json!(0), &json!(0)));
    assert_eq!((&idle["position"], &idle["eta_seconds"]), (&Value::Null, &Value::Null));

    for seed in 0..5 {
        painter.paint(paced(seed, 600.0)).await;
    }
    let mut busy = Value::Null;
    eventually("two run and three wait", PATIENCE, async || {
        busy = session().await;
        busy["running"] == 2 && busy["queued"] == 3
    })
    .await;
    assert!(busy["backend"].as_str().is_some_and(|name| name.starts_with("comfy-")), "{busy}");
    let (status, refused) = painter.send("/lb/session", &json!({"backend": "comfy-1"})).await;
    assert_eq!((status, &refused["error"]["type"]), (409, &json!("conflict")));
}
