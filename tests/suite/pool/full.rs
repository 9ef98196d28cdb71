//! A full disk under the whole gateway: no prompt is lost or runs twice, refusals are clear, and all
//! is well again when there is room.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use uuid::Uuid;

use super::painter::paced;
use super::quick_farm;
use crate::support::{Gateway, PATIENCE, Setup, eventually};

/// A small file system of its own; `None` where this user may not mount one.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        mount.output().is_ok_and(|done| done.status.success()).then(|| Self(at.to_owned()))
    }

    /// Fills it, but for so many bytes.
    fn fill_but(&self, left: u64) {
        let path = self.filler();
        let mut file = std::fs::File::create(&path).unwrap();
        let piece = vec![0; 64 << 10];
        while file.write_all(&piece).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A prompt with a body of some 200 KB.
fn large(seed: u64, id: &str) -> Value {
    let pad = "x".repeat(200_000);
    json!({"prompt": paced(seed, 0.5), "client_id": "glutton", "prompt_id": id,
        "extra_data": {"pad": pad}})
}

/// Posts it; whether it was accepted. Every refusal is the one for a disk in trouble.
async fn post(gateway: &Gateway, seed: u64, id: &str) -> bool {
    let reply = gateway.post("10.0.0.1", "/prompt", &large(seed, id)).await;
    if reply.status == 200 {
        return true;
    }
    let told = reply.json();
    assert_eq!(reply.status, 503, "{told:#}");
    assert_eq!(told["error"]["type"], "storage_unavailable", "{told:#}");
    assert!(reply.header("retry-after").is_some(), "{told:#}");
    false
}

async fn history(gateway: &Gateway) -> Value {
    gateway.get("10.0.0.1", "/history").await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_clearly_loses_nothing_and_passes() {
    let sims = quick_farm(3).await;
    let setup = Setup::of(&sims).with(json!({"mode": "pool"}));
    let Some(disk) = Small::mount(&setup.state_dir(), "64m") else {
        let required = std::env::var_os("COMFYGATE_REQUIRE_MOUNT").is_some_and(|v| v == "1");
        assert!(
            !required,
            "a tmpfs cannot be mounted: run as root, in a container with CAP_SYS_ADMIN"
        );
        return eprintln!("skipped: this user may not mount a tmpfs");
    };
    let gateway = setup.start().await;
    gateway
        .until("/lb/backends", |list| {
            list["backends"].as_array().unwrap().iter().all(|one| one["takes_jobs"] == true)
        })
        .await;
    disk.fill_but(6 << 20);

    let (mut accepted, mut refused, mut seed) = (BTreeSet::new(), 0, 0);
    // Until it is full, and some more while it is.
    while refused < 12 {
        let id = Uuid::new_v4().to_string();
        if post(&gateway, seed, &id).await {
            accepted.insert(id);
        } else {
            refused += 1;
        }
        seed += 1;
        assert!(seed < 500, "it does not become full");
    }
    assert!(!accepted.is_empty());
    // Running ones go on.
    eventually("accepted prompts end on the full disk", PATIENCE, async || {
        history(&gateway).await.as_object().unwrap().len() == accepted.len()
    })
    .await;

    std::fs::remove_file(disk.filler()).unwrap();
    eventually("prompts are taken again", PATIENCE, async || {
        let id = Uuid::new_v4().to_string();
        let taken = post(&gateway, 1000, &id).await;
        if taken {
            accepted.insert(id);
        }
        taken
    })
    .await;
    for seed in 2000..2010 {
        let id = Uuid::new_v4().to_string();
        assert!(post(&gateway, seed, &id).await, "there is room");
        accepted.insert(id);
    }
    eventually("all have ended", PATIENCE, async || {
        history(&gateway).await.as_object().unwrap().len() == accepted.len()
    })
    .await;

    // All of it is on the disk, and nothing else.
    let gateway = gateway.kill_and_restart().await;
    let all = history(&gateway).await;
    let all = all.as_object().unwrap();
    assert!(all.values().all(|entry| entry["status"]["status_str"] == "success"));
    assert_eq!(all.keys().cloned().collect::<BTreeSet<_>>(), accepted);
    let mut ran: Vec<String> = Vec::new();
    for sim in &sims {
        let list = reqwest::get(format!("{}/history", sim.url())).await.unwrap();
        let list: Value = list.json().await.unwrap();
        ran.extend(list.as_object().unwrap().keys().cloned());
    }
    for id in &accepted {
        assert_eq!(ran.iter().filter(|ran| *ran == id).count(), 1, "{id} ran once");
    }
    drop(gateway);
    drop(disk);
}
