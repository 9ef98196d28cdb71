//! Cancelling: deletes, clears and interrupts reach a prompt wherever it is, and nobody else's.

use serde_json::{Value, json};

use super::painter::{Painter, paced};
use super::{pool, quick_farm};

/// Two prompts of a server each, and two that wait.
async fn busy() -> (Vec<comfygate::sim::Sim>, crate::support::Embedded, Painter, Vec<String>) {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "stopper").await;
    let mut ids = Vec::new();
    for seed in 0..4 {
        ids.push(painter.paint(paced(seed, 300.0)).await);
    }
    painter.until(|heard| started(heard) == 2).await;
    (farm, gateway, painter, ids)
}

fn started(heard: &[super::painter::Heard]) -> usize {
    heard.iter().filter(|one| one.name() == "execution_start").count()
}

fn ids(queue: &Value, list: &str) -> Vec<String> {
    let items = queue[list].as_array().unwrap().iter();
    items.map(|item| item[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_one_list_with_one_numbering() {
    let (_farm, _gateway, painter, posted) = busy().await;
    let queue = painter.get("/queue").await;
    assert_eq!(ids(&queue, "queue_running"), posted[..2]);
    assert_eq!(ids(&queue, "queue_pending"), posted[2..]);
    let items = queue["queue_running"].as_array().unwrap().iter();
    let items: Vec<_> = items.chain(queue["queue_pending"].as_array().unwrap()).collect();
    let numbers: Vec<_> = items.iter().map(|item| item[0].as_f64().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    for item in items {
        assert_eq!(item[2]["1"]["class_type"], "PacedImage");
        assert_eq!(item[3]["client_id"], "stopper");
        assert_eq!(item[4], json!(["2"]), "what was asked for");
    }
    assert_eq!(painter.get("/prompt").await, json!({"exec_info": {"queue_remaining": 4}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_prompt_is_deleted_and_never_runs() {
    let (farm, _gateway, painter, ids_posted) = busy().await;
    let (status, _) = painter.send("/queue", &json!({"delete": [ids_posted[2], "unknown"]})).await;
    assert_eq!(status, 200);
    let queue = painter.get("/queue").await;
    assert_eq!(ids(&queue, "queue_pending"), [ids_posted[3].clone()]);
    // A running one is not touched by a delete.
    painter.send("/queue", &json!({"delete": [ids_posted[0]]})).await;
    assert_eq!(ids(&painter.get("/queue").await, "queue_running").len(), 2);
    painter.send("/queue", &json!({"clear": true})).await;
    let queue = painter.get("/queue").await;
    assert_eq!((ids(&queue, "queue_running").len(), ids(&queue, "queue_pending").len()), (2, 0));
    for id in &ids_posted[..2] {
        painter.send("/interrupt", &json!({"prompt_id": id})).await;
        painter.finished(id).await;
    }
    assert_eq!(farm.iter().map(comfygate::sim::Sim::finished).sum::<u64>(), 2);
    assert_eq!(started(&painter.heard()), 2, "those that were deleted never started");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_the_prompt_it_names_and_the_next_begins() {
    let (_farm, _gateway, painter, posted) = busy().await;
    let (status, _) = painter.send("/interrupt", &json!({"prompt_id": posted[1]})).await;
    assert_eq!(status, 200);
    painter.finished(&posted[1]).await;
    let names: Vec<_> =
        painter.events_of(&posted[1]).iter().map(|one| one.name().to_owned()).collect();
    assert!(names.contains(&"execution_interrupted".to_owned()), "{names:?}");
    painter.until(|heard| started(heard) == 3).await;
    let queue = painter.get("/queue").await;
    assert_eq!(ids(&queue, "queue_running"), [posted[0].clone(), posted[2].clone()]);
    let entry = painter.entry(&posted[1]).await;
    assert_eq!(entry["status"]["status_str"], "error");
    // One that waits is interrupted by its id, too: it is taken out of the line.
    painter.send("/interrupt", &json!({"prompt_id": posted[3]})).await;
    assert!(ids(&painter.get("/queue").await, "queue_pending").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_without_an_id_stops_only_the_callers_own() {
    let (_farm, gateway, painter, posted) = busy().await;
    let interrupt = |address: &'static str| {
        let url = format!("{}/api/interrupt", gateway.data);
        painter.http.post(url).header("x-forwarded-for", address).send()
    };
    assert_eq!(interrupt("10.9.9.9").await.unwrap().status(), 200);
    assert_eq!(ids(&painter.get("/queue").await, "queue_running"), posted[..2]);
    assert_eq!(interrupt("127.0.0.1").await.unwrap().status(), 200);
    painter.finished(&posted[0]).await;
    painter.finished(&posted[1]).await;
}
