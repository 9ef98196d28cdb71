//! Memory, measured on a process of its own: flat over many prompts and over large bodies.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use reqwest::Client;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::PATIENCE;

const MIB: u64 = 1 << 20;

struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_comfygate"))
            .args(["sim", "-p", "0", "--speed", "1000", "--max-upload-size", "4096"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("simulated ComfyUI on ").expect("its line").to_owned();
        Self { child, url }
    }

    /// Resident memory in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    async fn prompts(&self, client: &Client, count: u32) {
        let prompt = json!({
            "1": {"class_type": "EmptyImage", "inputs":
                {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        });
        for color in 0..count {
            let mut body = json!({"prompt": prompt});
            body["prompt"]["1"]["inputs"]["color"] = color.into();
            let reply = client.post(format!("{}/prompt", self.url)).json(&body).send();
            assert_eq!(reply.await.unwrap().status(), 200);
        }
        super::until("the prompts have run", || async {
            let reply = client.get(format!("{}/prompt", self.url)).send().await.unwrap();
            reply.json::<Value>().await.unwrap()["exec_info"]["queue_remaining"] == 0
        })
        .await;
    }
}

impl Process {
    /// Asks it to end, so that it takes its files along.
    fn terminate(&self) {
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

#[tokio::test]
async fn memory_grows_by_no_more_than_history_holds() {
    let process = Process::start();
    let client = Client::new();
    process.prompts(&client, 100).await;
    let before = process.memory();
    process.prompts(&client, 1000).await;
    let grown = process.memory().saturating_sub(before);
    assert!(grown < 20 * MIB, "grown by {grown} bytes over 1000 prompts");
}

#[tokio::test]
async fn large_bodies_pass_in_flat_memory() {
    let process = Process::start();
    let client = Client::new();
    let before = process.memory();
    let size = 200 * MIB;
    let chunk = bytes::Bytes::from(vec![7; MIB as usize]);
    let chunks = futures_util::stream::iter(
        (0..size / MIB).map(move |_| Ok::<_, std::io::Error>(chunk.clone())),
    );
    let body = reqwest::Body::wrap_stream(chunks);
    let part = Part::stream_with_length(body, size).file_name("big.bin");
    let upload = client.post(format!("{}/upload/image", process.url));
    let reply = upload.multipart(Form::new().part("image", part)).send().await.unwrap();
    assert_eq!(reply.json::<Value>().await.unwrap()["name"], "big.bin");

    let url = format!("{}/view?filename=big.bin&type=input", process.url);
    let mut download = client.get(url).send().await.unwrap();
    let mut read = 0;
    while let Some(chunk) = download.chunk().await.unwrap() {
        read += chunk.len() as u64;
    }
    assert_eq!(read, size);
    let grown = process.memory().saturating_sub(before);
    assert!(grown < 50 * MIB, "grown by {grown} bytes");
}

#[tokio::test]
async fn the_command_ends_at_once_on_sigterm() {
    let mut process = Process::start();
    let client = Client::new();
    let hang = client.post(format!("{}/sim/faults", process.url)).json(&json!({"hang": true}));
    assert_eq!(hang.send().await.unwrap().status(), 200);
    let hanging = tokio::spawn(client.get(format!("{}/prompt", process.url)).send());
    process.terminate();
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.child.try_wait().unwrap() {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "it does not end");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(status.code(), Some(0));
    assert!(hanging.await.unwrap().is_err());
}
