//! Whose turn it is.

use serde_json::json;

use super::painter::{Painter, paced};
use super::{pool, quick_farm, ready, setup};
use crate::support::client;

/// Posts as the client of an address.
async fn paint_as(painter: &Painter, address: &str, seed: u64) -> String {
    let body = json!({"prompt": paced(seed, 0.5), "client_id": painter.id});
    let url = format!("{}/prompt", painter.base);
    let reply = painter.http.post(url).header("x-forwarded-for", address).json(&body).send().await;
    let reply: serde_json::Value = reply.unwrap().json().await.unwrap();
    reply["prompt_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_500_does_not_starve_the_next_client() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let (batch, single) = (client(1), client(2));
    let painter = Painter::connect(&gateway.data, "batch").await;
    for seed in 0..500 {
        paint_as(&painter, &batch, seed).await;
    }
    let other = Painter::connect(&gateway.data, "single").await;
    let prompt = paint_as(&other, &single, 1).await;
    let ended =
        |sims: &[comfygate::sim::Sim]| sims.iter().map(comfygate::sim::Sim::finished).sum::<u64>();
    let before = ended(&farm);
    other.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    // Those that ran when it came, and at most one more turn of the batch on each server.
    assert!(ended(&farm) - before <= 4, "{} prompts ended before it began", ended(&farm) - before);
    other.finished(&prompt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_clients_prompts_run_by_number_front_and_arrival() {
    let farm = quick_farm(1).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "order").await;
    let first = painter.paint(paced(0, 3.0)).await;
    painter.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    let mut ids = Vec::new();
    for extra in [json!({}), json!({"number": 0.5}), json!({"front": true}), json!({"number": -9})]
    {
        let mut body = json!({"prompt": paced(ids.len() as u64 + 1, 0.1), "client_id": painter.id});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (status, reply) = painter.send("/prompt", &body).await;
        assert_eq!(status, 200, "{reply}");
        ids.push(reply["prompt_id"].as_str().unwrap().to_owned());
    }
    let [plain, half, front, nine] = <[String; 4]>::try_from(ids).unwrap();
    let queue = painter.get("/queue").await;
    let pending: Vec<_> =
        queue["queue_pending"].as_array().unwrap().iter().map(|i| i[1].clone()).collect();
    assert_eq!(pending, [&nine, &front, &half, &plain].map(|id| json!(id)));
    painter.finished(&first).await;
    for id in [&nine, &front, &half, &plain] {
        painter.finished(id).await;
    }
    let started: Vec<_> = painter
        .heard()
        .iter()
        .filter(|one| one.name() == "execution_start")
        .map(|one| one.prompt().unwrap().to_owned())
        .collect();
    assert_eq!(started, [first, nine, front, half, plain]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_wait_are_told_to_come_back() {
    let farm = quick_farm(1).await;
    let gateway = setup(&farm).with(json!({"queue": {"max_size": 3}})).embed().await;
    let gateway = ready(gateway, 1).await;
    let painter = Painter::connect(&gateway.data, "many").await;
    for seed in 0..4 {
        painter.paint(paced(seed, 20.0)).await;
    }
    let body = json!({"prompt": paced(9, 1.0), "client_id": "many"});
    let reply =
        painter.http.post(format!("{}/prompt", gateway.data)).json(&body).send().await.unwrap();
    assert_eq!(reply.status(), 429);
    assert!(reply.headers().contains_key("retry-after"));
    let refused: serde_json::Value = reply.json().await.unwrap();
    assert_eq!(refused["error"]["type"], "queue_full");
}
