//! Each recorded WebSocket scenario, played again: the same frames to the same clients in the
//! same order.

use comfygate::sim::{SimConfig, TapFrame};
use serde_json::{Value, json};
use std::sync::Arc;

use super::{Ears, fast, get_json, idle, paced, post, queue, start, until};

/// What the owner of a prompt of three steps hears without flags.
const RUN: [&str; 23] = [
    "status:1",
    "status:1",
    "execution_start",
    "cached:[]",
    "state:1=0.0/1.0",
    "executing:1",
    "state:1=1/3",
    "progress:1/3",
    "binary:1",
    "state:1=2/3",
    "progress:2/3",
    "binary:1",
    "state:1=3/3",
    "progress:3/3",
    "binary:1",
    "state:1=3/3.",
    "state:1=3/3.,2=0.0/1.0",
    "executing:2",
    "executed:2:output",
    "state:1=3/3.,2=1.0/1.0.",
    "execution_success",
    "status:0",
    "executing:null",
];

fn body(seed: u64, client: &str) -> Value {
    json!({"prompt": paced(0.5, 3, seed), "client_id": client})
}

#[tokio::test]
async fn a_run_tells_its_owner_everything_and_others_the_queue() {
    let sim = fast().await;
    let (mut owner, mut other) = (Ears::open(&sim, "A").await, Ears::open(&sim, "B").await);
    let id = queue(&sim, &body(11, "A")).await;
    assert_eq!(owner.hear_to("executing:null").await, RUN);
    assert_eq!(other.hear_to("status:0").await, ["status:1", "status:1", "status:0"]);

    let entry = &get_json(&sim, &format!("/history/{id}")).await[&id];
    assert_eq!(entry["status"]["status_str"], "success");
    assert_eq!(entry["prompt"][2]["1"]["inputs"]["seconds"], json!(0.5));
    let image = json!({"filename": "rec_00001_.png", "subfolder": "", "type": "output"});
    assert_eq!(entry["outputs"], json!({"2": {"images": [image]}}));
    let messages: Vec<_> =
        entry["status"]["messages"].as_array().unwrap().iter().map(|m| m[0].clone()).collect();
    assert_eq!(messages, ["execution_start", "execution_cached", "execution_success"]);
}

#[tokio::test]
async fn with_the_flag_previews_carry_metadata_and_come_before_progress() {
    let sim = fast().await;
    let mut owner = Ears::with_flags(&sim, "A").await;
    queue(&sim, &body(12, "A")).await;
    let heard = owner.hear_to("executing:null").await;
    assert_eq!(heard[6..9], ["state:1=1/3", "binary:4", "progress:1/3"]);
    assert!(!heard.contains(&"binary:1".to_owned()));
}

#[tokio::test]
async fn without_a_client_progress_goes_to_everybody_and_the_rest_to_nobody() {
    let sim = fast().await;
    let (mut one, mut two) = (Ears::open(&sim, "A").await, Ears::with_flags(&sim, "").await);
    queue(&sim, &json!({"prompt": paced(0.5, 3, 13)})).await;
    let expected: Vec<&str> = RUN
        .into_iter()
        .filter(|frame| {
            ["status", "state", "progress", "binary"].iter().any(|kind| frame.starts_with(kind))
        })
        .collect();
    assert_eq!(one.hear_to("status:0").await, expected);
    assert_eq!(two.hear_to("status:0").await, expected);
}

#[tokio::test]
async fn a_failing_node_is_told_with_its_inputs() {
    let sim = fast().await;
    let mut owner = Ears::open(&sim, "A").await;
    let mut failing = body(14, "A");
    failing["prompt"]["1"]["inputs"]["fail_at"] = json!(1);
    let id = queue(&sim, &failing).await;
    let heard = owner.hear_to("executing:null").await;
    assert_eq!(
        heard[6..],
        [
            "state:1=1/3",
            "progress:1/3",
            "binary:1",
            "execution_error",
            "status:0",
            "executing:null"
        ]
    );
    let entry = &get_json(&sim, &format!("/history/{id}")).await[&id];
    let error = &entry["status"]["messages"][2][1];
    assert_eq!(entry["status"]["status_str"], "error");
    assert_eq!(error["exception_message"], "asked to fail at step 1\n");
    assert_eq!(error["current_inputs"]["fail_at"], json!([1]));
    assert_eq!(error["current_outputs"], json!(["2", "1"]));
}

#[tokio::test]
async fn the_same_graph_again_is_cached_and_tells_the_earlier_file() {
    let sim = fast().await;
    let mut owner = Ears::open(&sim, "A").await;
    queue(&sim, &body(15, "A")).await;
    owner.hear_to("executing:null").await;
    let id = queue(&sim, &body(15, "A")).await;
    assert_eq!(
        owner.hear_to("executing:null").await,
        [
            "status:1",
            "status:1",
            "execution_start",
            "cached:[\"1\",\"2\"]",
            "executed:2:output",
            "state:2=1/1.",
            "execution_success",
            "status:0",
            "executing:null",
        ]
    );
    let entry = &get_json(&sim, &format!("/history/{id}")).await[&id];
    assert_eq!(entry["outputs"]["2"]["images"][0]["filename"], "rec_00001_.png");

    let unowned = queue(&sim, &json!({"prompt": paced(0.5, 3, 15)})).await;
    idle(&sim).await;
    let entry = &get_json(&sim, &format!("/history/{unowned}")).await[&unowned];
    assert_eq!(entry["outputs"], json!({}), "cached outputs of a prompt without a client");
}

#[tokio::test]
async fn two_clients_hear_their_own_prompts() {
    let sim = fast().await;
    let (mut a, mut b) = (Ears::open(&sim, "A").await, Ears::open(&sim, "B").await);
    queue(&sim, &body(16, "A")).await;
    queue(&sim, &body(17, "B")).await;
    let without_status = |heard: Vec<String>| -> Vec<String> {
        heard.into_iter().filter(|frame| !frame.starts_with("status")).collect()
    };
    let expected: Vec<&str> =
        RUN.into_iter().filter(|frame| !frame.starts_with("status")).collect();
    assert_eq!(without_status(a.hear_to("executing:null").await), expected);
    assert_eq!(without_status(b.hear_to("executing:null").await), expected);
}

#[tokio::test]
async fn an_interrupt_ends_the_running_prompt_at_its_next_step() {
    let sim = fast().await;
    let mut owner = Ears::open(&sim, "A").await;
    let id = queue(&sim, &json!({"prompt": paced(5.0, 20, 18), "client_id": "A"})).await;
    owner.hear_to("progress:2/20").await;
    assert_eq!(post(&sim, "/interrupt", &json!({"prompt_id": "another"})).await.0, 200);
    owner.hear_to("progress:4/20").await;
    assert_eq!(post(&sim, "/interrupt", &json!({"prompt_id": id})).await.0, 200);
    let heard = owner.hear_to("executing:null").await;
    assert_eq!(heard[heard.len() - 3..], ["execution_interrupted", "status:0", "executing:null"]);
    let entry = &get_json(&sim, &format!("/history/{id}")).await[&id];
    assert_eq!(entry["status"]["completed"], false);
    assert_eq!(entry["meta"], json!({}));
}

#[tokio::test]
async fn deleting_the_last_pending_prompt_publishes_twice() {
    let sim = fast().await;
    let mut owner = Ears::open(&sim, "A").await;
    queue(&sim, &json!({"prompt": paced(100.0, 100, 1), "client_id": "A"})).await;
    owner.hear_to("executing:1").await;
    let id = queue(&sim, &body(20, "B")).await;
    owner.hear_to("status:2").await;
    assert_eq!(post(&sim, "/queue", &json!({"delete": [id, "unknown"]})).await.0, 200);
    let heard = owner.hear_to("progress:50/100").await;
    let statuses: Vec<_> = heard.iter().filter(|frame| frame.starts_with("status")).collect();
    assert_eq!(statuses, ["status:1", "status:1"]);
    assert_eq!(get_json(&sim, &format!("/history/{id}")).await, json!({}));
}

#[tokio::test]
async fn front_and_number_order_the_queue_as_a_python_heap() {
    let sim = fast().await;
    let first = queue(&sim, &json!({"prompt": paced(600.0, 1, 1)})).await;
    until("the first runs", || async {
        get_json(&sim, "/queue").await["queue_running"][0][1] == first.as_str()
    })
    .await;
    let mut numbers = Vec::new();
    for extra in [json!({}), json!({"front": true}), json!({"number": -5.5}), json!({})] {
        let mut body = body(22, "A");
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        numbers.push(post(&sim, "/prompt", &body).await.1["number"].clone());
    }
    assert_eq!(numbers, [json!(1), json!(-2), json!(-5.5), json!(3)]);
    let pending = get_json(&sim, "/queue").await["queue_pending"].clone();
    let shown: Vec<_> = pending.as_array().unwrap().iter().map(|item| item[0].clone()).collect();
    assert_eq!(shown, [json!(-5.5), json!(1), json!(-2), json!(3)]);
}

#[tokio::test]
async fn a_reconnecting_owner_gets_the_running_node_and_what_follows() {
    let sim = fast().await;
    let mut owner = Ears::open(&sim, "A").await;
    queue(&sim, &json!({"prompt": paced(20.0, 50, 26), "client_id": "A"})).await;
    owner.hear_to("progress:1/50").await;
    owner.0.close(None).await.unwrap();
    until("the old socket is gone", || async { sim.sockets() == 0 }).await;
    let mut again = Ears::silent(&sim, "A").await;
    assert_eq!(again.next().await.as_deref(), Some("status:1"));
    assert_eq!(again.next().await.as_deref(), Some("executing:1"));
    assert!(again.next().await.unwrap().starts_with("state:1="));
}

async fn sockets_after_a_replaced_one_ends(reconnect_bug: bool) -> usize {
    let sim = start(SimConfig { reconnect_bug, ..SimConfig::default() }).await;
    let mut old = Ears::open(&sim, "A").await;
    let _new = Ears::open(&sim, "A").await;
    let _witness = Ears::open(&sim, "W").await;
    assert_eq!(sim.sockets(), 2);
    old.0.close(None).await.unwrap();
    // The server has answered the close before it ends the handler; wait for the end by effect.
    if reconnect_bug {
        until("the registration is lost", || async { sim.sockets() == 1 }).await;
    } else {
        while old.next().await.is_some() {}
    }
    sim.sockets()
}

#[tokio::test]
async fn the_end_of_a_replaced_socket_deletes_its_successor_only_with_the_bug() {
    assert_eq!(sockets_after_a_replaced_one_ends(true).await, 1);
    assert_eq!(sockets_after_a_replaced_one_ends(false).await, 2);
}

#[tokio::test]
async fn a_tap_changes_frames_and_addressees() {
    let tap = |sid: &str, frame: TapFrame| match &frame {
        TapFrame::Text(value) if value["type"] == "execution_start" => {
            vec![("B".to_owned(), frame)]
        }
        TapFrame::Binary(_) => Vec::new(),
        TapFrame::Text(_) => vec![(sid.to_owned(), frame)],
    };
    let reply_tap = |path: &str, value: &mut Value| {
        if path == "/prompt" {
            value["number"] = json!("wrong");
        }
    };
    let config = SimConfig {
        speed: 20.0,
        tap: Some(Arc::new(tap)),
        reply_tap: Some(Arc::new(reply_tap)),
        ..SimConfig::default()
    };
    let sim = start(config).await;
    let (mut a, mut b) = (Ears::open(&sim, "A").await, Ears::open(&sim, "B").await);
    assert_eq!(post(&sim, "/prompt", &body(1, "A")).await.1["number"], "wrong");
    let heard = a.hear_to("executing:null").await;
    assert!(!heard.iter().any(|f| f == "execution_start" || f.starts_with("binary")), "{heard:?}");
    assert!(b.hear_to("status:0").await.contains(&"execution_start".to_owned()));
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_dropped_and_delays_nobody() {
    let sim = start(SimConfig { socket_queue: 100, ..SimConfig::default() }).await;
    let _asleep = Ears::open(&sim, "asleep").await;
    until("the sleeper is dropped", || async {
        for count in 0..5000 {
            sim.faults().phantom_queue(count, 0);
        }
        sim.sockets() == 0
    })
    .await;
}
