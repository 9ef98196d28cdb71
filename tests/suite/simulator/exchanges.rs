//! HTTP exchanges: statuses, headers, bodies and errors as recorded.

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{Ears, fast, get, get_json, idle, paced, post, queue, start, until};
use comfygate::sim::SimConfig;

#[tokio::test]
async fn json_is_written_as_python_writes_it() {
    let sim = fast().await;
    for prefix in ["", "/api"] {
        let reply = get(&sim, &format!("{prefix}/prompt")).await;
        assert_eq!(reply.headers()["content-type"], "application/json; charset=utf-8");
        assert_eq!(reply.headers()["server"], "Python/3.11 aiohttp/3.14.5");
        assert_eq!(reply.headers()["content-length"], "37");
        assert_eq!(reply.text().await.unwrap(), r#"{"exec_info": {"queue_remaining": 0}}"#);
    }
}

#[tokio::test]
async fn every_information_route_answers_in_both_forms() {
    let sim = fast().await;
    let both = [
        "/",
        "/queue",
        "/history",
        "/object_info",
        "/object_info/PacedImage",
        "/system_stats",
        "/features",
        "/embeddings",
        "/models",
        "/models/loras",
        "/experiment/models",
        "/experiment/models/loras",
        "/extensions",
        "/workflow_templates",
        "/i18n",
        "/global_subgraphs",
        "/global_subgraphs/x",
        "/users",
        "/settings",
        "/settings/x",
        "/v2/userdata",
    ];
    for path in both {
        assert_eq!(get(&sim, path).await.status(), 200, "{path}");
        assert_eq!(get(&sim, &format!("/api{path}")).await.status(), 200, "/api{path}");
    }
    for path in ["/internal/logs", "/internal/logs/raw", "/internal/folder_paths", "/api/jobs"] {
        assert_eq!(get(&sim, path).await.status(), 200, "{path}");
    }
    let absent =
        ["/jobs", "/api/internal/logs", "/nope", "/upload/image", "/interrupt", "/prompt/"];
    for path in absent {
        let reply = get(&sim, path).await;
        assert_eq!(reply.status(), 404, "{path}");
        assert_eq!(reply.headers()["content-type"], "application/octet-stream");
        assert_eq!(reply.headers()["transfer-encoding"], "chunked");
    }
    assert_eq!(get(&sim, "/models/nope").await.status(), 404);
    assert_eq!(get(&sim, "/view_metadata/loras?filename=x.safetensors").await.status(), 404);
}

async fn send(sim: &comfygate::sim::Sim, method: Method, path: &str) -> reqwest::Response {
    Client::new().request(method, format!("{}{path}", sim.url())).send().await.unwrap()
}

#[tokio::test]
async fn methods_are_answered_as_by_aiohttp() {
    let sim = fast().await;
    assert_eq!(send(&sim, Method::POST, "/nope").await.status(), 405);
    assert_eq!(send(&sim, Method::POST, "/embeddings").await.status(), 405);
    assert_eq!(send(&sim, Method::HEAD, "/prompt").await.status(), 200);
    for path in ["/prompt", "/nope"] {
        let reply = send(&sim, Method::OPTIONS, path).await;
        assert_eq!(reply.status(), 200, "{path}");
        assert!(!reply.headers().contains_key("allow"), "{path}");
    }
    let reply = get(&sim, "/ws").await;
    assert_eq!(reply.status(), 400);
    let said = "No WebSocket UPGRADE hdr: None\n Can \"Upgrade\" only to \"WebSocket\".";
    assert_eq!(reply.text().await.unwrap(), said);
}

#[tokio::test]
async fn a_foreign_origin_is_refused_also_for_sockets() {
    let sim = fast().await;
    for path in ["/prompt", "/ws"] {
        let request = Client::new().get(format!("{}{path}", sim.url()));
        let reply = request.header("origin", "http://evil.example").send().await.unwrap();
        assert_eq!(reply.status(), 403, "{path}");
        assert_eq!(reply.headers()["content-length"], "0");
    }
    let request = Client::new().get(format!("{}/prompt", sim.url()));
    assert_eq!(request.header("origin", sim.url()).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn cache_headers_go_by_suffix() {
    let sim = fast().await;
    let cases = [
        ("/user.css", Some("no-cache")),
        ("/extensions/core/clipspace.js", Some("no-cache")),
        ("/templates/index.json", Some("no-cache")),
        ("/api/userdata/x.png", Some("public, max-age=3600")),
        ("/", Some("no-cache")),
        ("/prompt", None),
    ];
    for (path, expected) in cases {
        let reply = get(&sim, path).await;
        let found = reply.headers().get("cache-control").map(|value| value.to_str().unwrap());
        assert_eq!(found, expected, "{path}");
    }
}

#[tokio::test]
async fn a_body_that_raises_is_a_500_that_closes() {
    let sim = fast().await;
    let cases = ["{bad", "[]", "{\"prompt\": 3}", "{\"prompt\": {}, \"number\": null}"];
    for body in cases {
        let request = Client::new().post(format!("{}/prompt", sim.url())).body(body);
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status(), 500, "{body}");
        assert_eq!(reply.headers()["connection"], "close");
        let said = "500 Internal Server Error\n\nServer got itself in trouble";
        assert_eq!(reply.text().await.unwrap(), said);
    }
    assert_eq!(get(&sim, "/history?max_items=x").await.status(), 500);
}

#[tokio::test]
async fn refused_prompts_count_and_partly_valid_ones_run() {
    let sim = fast().await;
    let (status, reply) = post(&sim, "/prompt", &json!({})).await;
    assert_eq!((status, &reply["error"]["type"]), (400, &json!("no_prompt")));
    let unknown = json!({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}});
    let (status, reply) = post(&sim, "/prompt", &unknown).await;
    assert_eq!(status, 400);
    assert_eq!(
        reply.to_string(),
        r#"{"error":{"type":"invalid_prompt","message":"Cannot execute because node NoSuchNode does not exist.","details":"Node ID '#1'","extra_info":{}},"node_errors":{}}"#
    );

    let mut prompt = paced(0.1, 1, 31);
    prompt["3"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "y"}});
    let (status, reply) = post(&sim, "/prompt", &json!({"prompt": prompt, "client_id": "A"})).await;
    assert_eq!((status, &reply["number"]), (200, &json!(2)));
    assert_eq!(reply["node_errors"]["3"]["errors"][0]["type"], "exception_during_validation");
    idle(&sim).await;
    let id = reply["prompt_id"].as_str().unwrap();
    let entry = &get_json(&sim, &format!("/history/{id}")).await[id];
    assert_eq!(entry["prompt"][4], json!(["2"]));
}

#[tokio::test]
async fn a_given_id_is_kept_and_secrets_are_not() {
    let sim = fast().await;
    let id = queue(&sim, &json!({"prompt": paced(0.1, 1, 1), "prompt_id": null})).await;
    assert_eq!(id, "None");
    let extra = json!({"api_key_comfy_org": "secret", "note": 1});
    let body = json!({"prompt": paced(0.1, 1, 2), "prompt_id": "mine", "extra_data": extra});
    assert_eq!(queue(&sim, &body).await, "mine");
    idle(&sim).await;
    let kept = &get_json(&sim, "/history/mine").await["mine"]["prompt"][3];
    assert_eq!(kept["note"], 1);
    assert!(kept.get("api_key_comfy_org").is_none() && kept["create_time"].is_u64());
}

#[tokio::test]
async fn history_pages_deletes_and_clears() {
    let sim = fast().await;
    for id in ["a", "b", "c"] {
        queue(&sim, &json!({"prompt": paced(0.0, 1, 1), "prompt_id": id})).await;
    }
    idle(&sim).await;
    let ids = |history: Value| history.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(ids(get_json(&sim, "/history?max_items=2").await), ["b", "c"]);
    assert_eq!(ids(get_json(&sim, "/history?max_items=1&offset=0").await), ["a"]);
    post(&sim, "/history", &json!({"delete": ["b"]})).await;
    assert_eq!(ids(get_json(&sim, "/history").await), ["a", "c"]);
    post(&sim, "/history", &json!({"clear": true})).await;
    assert_eq!(get_json(&sim, "/history").await, json!({}));
}

#[tokio::test]
async fn jobs_are_listed_filtered_and_paged() {
    let sim = fast().await;
    let mut failing = paced(0.1, 2, 5);
    failing["1"]["inputs"]["fail_at"] = json!(0);
    queue(&sim, &json!({"prompt": failing, "prompt_id": "bad"})).await;
    let extra = json!({"extra_pnginfo": {"workflow": {"id": "w"}}});
    let body = json!({"prompt": paced(0.1, 1, 6), "prompt_id": "good", "extra_data": extra});
    queue(&sim, &body).await;
    idle(&sim).await;
    queue(&sim, &json!({"prompt": paced(600.0, 1, 7), "prompt_id": "runs"})).await;
    queue(&sim, &json!({"prompt": paced(600.0, 1, 8), "prompt_id": "waits"})).await;
    until("one runs", || async {
        get_json(&sim, "/api/jobs/runs").await["status"] == "in_progress"
    })
    .await;

    let ids = |list: Value| -> Vec<String> {
        let jobs = list["jobs"].as_array().unwrap().clone();
        jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    let of = async |query: &str| ids(get_json(&sim, &format!("/api/jobs?{query}")).await);
    assert_eq!(of("status=failed").await, ["bad"]);
    assert_eq!(of("status=pending,in_progress&sort_order=asc").await, ["runs", "waits"]);
    assert_eq!(of("workflow_id=w").await, ["good"]);
    let page = get_json(&sim, "/api/jobs?limit=1&offset=1&status=completed,failed").await;
    let pagination = json!({"offset": 1, "limit": 1, "total": 2, "has_more": false});
    assert_eq!(page["pagination"], pagination);
    let job = get_json(&sim, "/api/jobs/good").await;
    assert_eq!(job["preview_output"]["nodeId"], "2");
    assert!(job["workflow"]["prompt"].is_object());

    for wrong in ["status=odd", "limit=0", "limit=x", "offset=x", "sort_by=x", "sort_order=x"] {
        assert_eq!(get(&sim, &format!("/api/jobs?{wrong}")).await.status(), 400, "{wrong}");
    }
    let reply = get(&sim, "/api/jobs/none").await;
    assert_eq!(reply.status(), 404);
    assert_eq!(reply.text().await.unwrap(), r#"{"error": "Job not found"}"#);
}

#[tokio::test]
async fn logs_reach_those_who_subscribe() {
    let sim = fast().await;
    let mut ears = Ears::open(&sim, "A").await;
    let request = Client::new().patch(format!("{}/internal/logs/subscribe", sim.url()));
    let reply = request.json(&json!({"clientId": "A", "enabled": true})).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    queue(&sim, &json!({"prompt": paced(0.0, 1, 1)})).await;
    assert_eq!(ears.hear_to("logs").await, ["logs"]);
    assert_eq!(get_json(&sim, "/internal/logs/raw").await["entries"][0]["m"], "got prompt\n");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let sim = start(SimConfig { max_upload_size: 1000, ..SimConfig::default() }).await;
    assert_eq!(get_json(&sim, "/features").await["max_upload_size"], 1000);
    let long = json!({"prompt": "x".repeat(2000)});
    assert_eq!(post(&sim, "/prompt", &long).await.0, 413);
}
