//! What POST /prompt answers: a server's own verdict, at an idle and at a full farm alike.

use serde_json::{Value, json};
use uuid::Uuid;

use super::painter::{Painter, paced};
use super::{pool, quick_farm};

/// A prompt whose second output has a bad input: the first one runs.
fn partly_valid() -> Value {
    let mut prompt = paced(1, 0.1);
    prompt["3"] = json!({"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}});
    prompt
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_are_the_servers_own_at_an_idle_and_at_a_full_farm() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let alone = quick_farm(1).await;
    let painter = Painter::connect(&gateway.data, "judged").await;
    let direct = Painter::connect(&alone[0].url(), "judged").await;
    for round in ["idle", "full"] {
        for prompt in [
            json!({"1": {"class_type": "NoSuchNode", "inputs": {}}}),
            json!({"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}),
            json!({"1": {"class_type": "PacedImage", "inputs": {}}}),
            json!({}),
        ] {
            let body = json!({"prompt": prompt, "client_id": "judged"});
            let (expected, got) =
                (direct.send("/prompt", &body).await, painter.send("/prompt", &body).await);
            assert_eq!(expected.0, 400);
            assert_eq!(got, expected, "{round}");
        }
        let body = json!({"prompt": partly_valid(), "client_id": "judged"});
        let (expected, got) =
            (direct.send("/prompt", &body).await, painter.send("/prompt", &body).await);
        assert_eq!((got.0, &got.1["node_errors"]), (200, &expected.1["node_errors"]), "{round}");
        assert_ne!(got.1["node_errors"], json!({}));
        for seed in 0..3 {
            painter.paint(paced(seed, 300.0)).await;
        }
    }
    // What is no prompt at all is a server's business too.
    for body in ["", "{", "[]", "null", r#"{"prompt": 7}"#, r#"{"client_id": "x"}"#] {
        let post =
            |base: &str| painter.http.post(format!("{base}/prompt")).body(body.to_owned()).send();
        let (expected, got) =
            (post(&direct.base).await.unwrap(), post(&gateway.data).await.unwrap());
        assert_eq!(got.status(), expected.status(), "{body:?}");
        assert!(got.headers()["x-comfygate-backend"].to_str().unwrap().starts_with("comfy-"));
        assert_eq!(got.text().await.unwrap(), expected.text().await.unwrap(), "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_id_is_used_once() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "twice").await;
    let id = Uuid::new_v4().to_string();
    let body = json!({"prompt": paced(5, 0.5), "client_id": "twice", "prompt_id": id});
    let first = painter.send("/prompt", &body).await;
    assert_eq!((first.0, &first.1["prompt_id"]), (200, &json!(id)));
    let other = json!({"prompt": paced(6, 0.5), "client_id": "twice", "prompt_id": id});
    for _ in 0..2 {
        assert_eq!(painter.send("/prompt", &body).await, first, "the same reply again");
        let (status, refused) = painter.send("/prompt", &other).await;
        assert_eq!((status, &refused["error"]["type"]), (409, &json!("conflict")));
        painter.finished(&id).await;
    }
    assert_eq!(farm.iter().map(comfygate::sim::Sim::finished).sum::<u64>(), 1, "it ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_numbers_that_are_none_are_named() {
    let farm = quick_farm(1).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "odd").await;
    let upper = Uuid::new_v4().to_string().to_uppercase();
    for (value, kind) in [
        (json!({"prompt_id": "abc"}), "invalid_prompt_id"),
        (json!({"prompt_id": upper}), "invalid_prompt_id"),
        (json!({"prompt_id": 7}), "invalid_prompt_id"),
        (json!({"number": "soon"}), "invalid_value"),
    ] {
        let mut body = json!({"prompt": paced(1, 0.1)});
        body.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        let (status, refused) = painter.send("/prompt", &body).await;
        assert_eq!((status, &refused["error"]["type"]), (400, &json!(kind)), "{value}");
    }
    let nan = format!(r#"{{"prompt": {}, "number": NaN}}"#, paced(1, 0.1));
    let reply =
        painter.http.post(format!("{}/prompt", gateway.data)).body(nan).send().await.unwrap();
    assert_eq!(reply.status(), 400);
    for value in [json!({"prompt_id": null}), json!({"client_id": null}), json!({})] {
        let mut body = json!({"prompt": paced(1, 0.1)});
        body.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        let (status, reply) = painter.send("/prompt", &body).await;
        assert_eq!(status, 200, "{value}: {reply}");
        assert!(painter.has_picture(reply["prompt_id"].as_str().unwrap(), 1).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_nothing_is_accepted() {
    let mut farm = quick_farm(1).await;
    let gateway = pool(&farm).await;
    farm.remove(0).kill().await;
    let url = format!("{}/prompt", gateway.data);
    let body = json!({"prompt": paced(1, 0.1)});
    let reply = gateway.http.post(url).json(&body).send().await.unwrap();
    assert_eq!(reply.status(), 503);
    let refused: Value = reply.json().await.unwrap();
    assert_eq!(refused["error"]["type"], "no_backend");
    let queue = gateway.http.get(format!("{}/queue", gateway.data)).send().await.unwrap();
    let queue: Value = queue.json().await.unwrap();
    assert_eq!(queue, json!({"queue_running": [], "queue_pending": []}));
}
