//! Servers behind https: the probe, the proxy and WebSockets believe the same certificates.

use comfygate::sim::Sim;
use serde_json::{Value, json};

use crate::support::tls::{Authority, Issued, Veil};
use crate::support::{Embedded, Gateway, PATIENCE, Setup, eventually, farm, socket};

/// A gateway whose only backend is behind this veil, with these keys of the backend's and of
/// `backend_tls`.
fn setup(veil: &Veil, own: Value, all: &Value) -> Setup {
    let mut backend = json!({"name": "comfy-1", "url": veil.url(), "max_queue": 1000});
    if !own.is_null() {
        backend["tls"] = own;
    }
    Setup::bare(json!({"backends": [backend], "backend_tls": all}))
}

/// All ways there are to a backend of sticky mode.
async fn serves(gateway: &Gateway, veil: &Veil) {
    gateway.until_state("comfy-1", "up").await;
    let reply = gateway.get("10.0.0.1", "/system_stats").await;
    assert_eq!((reply.status, reply.backend()), (200, "comfy-1"), "{}", reply.text());
    let (_socket, response) = socket::open(gateway.data, "/ws", &[]).await.unwrap();
    assert_eq!(socket::backend(&response), "comfy-1");
    // The gateway's own socket, and the inventory, which is read by a client of its own.
    eventually("devices are known", PATIENCE, async || {
        gateway.backend("comfy-1").await["devices"].as_array().is_some_and(|all| !all.is_empty())
    })
    .await;
    assert!(veil.believers() >= 4, "{}", veil.believers());
}

/// Nothing gets through: not the probe, not a request, not a WebSocket.
async fn is_refused(gateway: &Gateway, veil: &Veil, sim: &Sim) {
    gateway.until_state("comfy-1", "down").await;
    let error = gateway.backend("comfy-1").await["last_error"].to_string();
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(gateway.get("10.0.0.1", "/system_stats").await.status, 503);
    assert!(socket::open(gateway.data, "/ws", &[]).await.is_err());
    assert_eq!(veil.believers(), 0, "a handshake was done");
    assert!(sim.requests().is_empty(), "{:?}", sim.requests());
}

struct Stage {
    sim: Sim,
    ours: Authority,
    theirs: Authority,
}

impl Stage {
    async fn new() -> Self {
        let sim = farm(1).await.remove(0);
        Self { sim, ours: Authority::new("ours"), theirs: Authority::new("theirs") }
    }

    async fn veil(&self, certificate: &Issued) -> Veil {
        Veil::over(self.sim.addr(), certificate).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_believed_in_all_ways_and_no_other_one() {
    let stage = Stage::new().await;
    for (own, all, signed_by, good) in [
        (json!(null), json!({"ca": "OURS"}), &stage.ours, true),
        (json!(null), json!({"ca": "OURS"}), &stage.theirs, false),
        (json!(null), json!(null), &stage.ours, false),
        (json!({"ca": "THEIRS"}), json!({"ca": "OURS"}), &stage.theirs, true),
        (json!({"ca": "THEIRS"}), json!({"ca": "OURS"}), &stage.ours, false),
        (json!({"insecure": true}), json!(null), &stage.theirs, true),
        (json!({"insecure": false}), json!({"verify": false}), &stage.theirs, false),
        (json!(null), json!({"verify": false}), &stage.theirs, true),
    ] {
        let veil = stage.veil(&signed_by.issue(&["127.0.0.1"])).await;
        let placed = setup(&veil, json!(null), &json!(null));
        let files = [("OURS", &stage.ours), ("THEIRS", &stage.theirs)].map(|(word, authority)| {
            (word, authority.write(placed.directory(), &format!("{word}.pem")))
        });
        let [own, all] = [&own, &all].map(|value: &Value| {
            let mut value = value.clone();
            if let Some(ca) = value.get_mut("ca") {
                let file = files.iter().find(|(word, _)| ca == word).unwrap();
                *ca = json!(file.1);
            }
            value
        });
        let what = format!("{own} {all} {good}");
        println!("{what}");
        let before = stage.sim.requests().len();
        let gateway = setup(&veil, own, &all).start().await;
        if good {
            serves(&gateway, &veil).await;
        } else {
            gateway.until_state("comfy-1", "down").await;
            let error = gateway.backend("comfy-1").await["last_error"].to_string();
            assert!(error.contains("certificate"), "{what}: {error}");
            assert_eq!(veil.believers(), 0, "{what}");
            assert_eq!(stage.sim.requests().len(), before, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_or_address_is_not_believed() {
    for names in [&["gpu.example"][..], &["127.0.0.2"]] {
        let stage = Stage::new().await;
        let veil = stage.veil(&stage.ours.issue(names)).await;
        let directory = tempfile::tempdir().unwrap();
        let ca = stage.ours.write(directory.path(), "ca.pem");
        let gateway = setup(&veil, json!(null), &json!({"ca": ca})).start().await;
        is_refused(&gateway, &veil, &stage.sim).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_asked_for_the_name_that_is_given() {
    let stage = Stage::new().await;
    let veil = stage.veil(&stage.ours.issue(&["gpu.example"])).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = stage.ours.write(directory.path(), "ca.pem");
    let own = json!({"server_name": "gpu.example"});
    let gateway = setup(&veil, own, &json!({"ca": ca})).start().await;
    serves(&gateway, &veil).await;
    assert_eq!(veil.asked().as_deref(), Some("gpu.example"));
    let gateway = setup(&veil, json!({"server_name": "gpu2.example"}), &json!({"ca": ca}));
    let gateway = gateway.start().await;
    gateway.until_state("comfy-1", "down").await;
}

/// The probe looks so seldom that it is the others who find out.
#[tokio::test(flavor = "multi_thread")]
async fn proxy_and_websockets_do_not_rely_on_the_probe() {
    for way in ["request", "websocket"] {
        let stage = Stage::new().await;
        let veil = stage.veil(&stage.ours.issue(&["127.0.0.1"])).await;
        let directory = tempfile::tempdir().unwrap();
        let ca = stage.ours.write(directory.path(), "ca.pem");
        let seldom = json!({"health_check": {"interval": "1h", "push": false}});
        let gateway = setup(&veil, json!(null), &json!({"ca": ca})).with(seldom).start().await;
        gateway.until_state("comfy-1", "up").await;
        eventually("the inventory is read", PATIENCE, async || {
            stage.sim.requests().iter().any(|(_, path)| path == "/object_info")
        })
        .await;
        veil.show(&stage.theirs.issue(&["127.0.0.1"]));
        let before = veil.believers();
        if way == "request" {
            let reply = gateway.get("10.0.0.1", "/x").await;
            assert!([502, 503].contains(&reply.status), "{}", reply.text());
        } else {
            assert!(socket::open(gateway.data, "/ws", &[]).await.is_err());
        }
        assert_eq!(veil.believers(), before, "{way}");
        let asked = stage.sim.requests();
        assert!(!asked.iter().any(|(_, path)| path == "/x" || path == "/ws"), "{asked:?}");
    }
}

/// Pool mode talks to its servers by clients and sockets of its own.
#[tokio::test(flavor = "multi_thread")]
async fn pool_mode_works_through_a_private_authority() {
    let stage = Stage::new().await;
    let veil = stage.veil(&stage.ours.issue(&["gpu.example"])).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = stage.ours.write(directory.path(), "ca.pem");
    let own = json!({"server_name": "gpu.example", "ca": ca});
    let pool = json!({"mode": "pool"});
    let gateway: Embedded = setup(&veil, own, &json!(null)).with(pool).embed().await;
    gateway.takes_jobs_on(1).await;
    let paced = json!({"class_type": "PacedImage", "inputs":
        {"seconds": 0.1, "steps": 1, "seed": 1, "fail_at": -1, "preview": false}});
    let save = json!({"class_type": "SaveImage", "inputs":
        {"images": ["1", 0], "filename_prefix": "test"}});
    let body = json!({"prompt": {"1": paced, "2": save}});
    let posting = gateway.http.post(format!("{}/prompt", gateway.data)).json(&body);
    let reply: Value = posting.send().await.unwrap().json().await.unwrap();
    let id = reply["prompt_id"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
    let mut image = Value::Null;
    eventually("it is done", PATIENCE, async || {
        let url = format!("{}/history/{id}", gateway.data);
        let entry: Value = gateway.http.get(url).send().await.unwrap().json().await.unwrap();
        image = entry[&id]["outputs"]["2"]["images"][0].clone();
        image.is_object()
    })
    .await;
    let name = image["filename"].as_str().unwrap();
    let url = format!("{}/view?filename={name}&type=output", gateway.data);
    assert_eq!(gateway.http.get(url).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_taken_by_a_reload() {
    let stage = Stage::new().await;
    let veil = stage.veil(&stage.ours.issue(&["127.0.0.1"])).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = stage.theirs.write(directory.path(), "ca.pem");
    let gateway = setup(&veil, json!(null), &json!({"ca": ca})).start().await;
    gateway.until_state("comfy-1", "down").await;
    // The same file, with other authorities in it.
    stage.ours.write(directory.path(), "ca.pem");
    gateway.signal("HUP").await;
    serves(&gateway, &veil).await;
}
