//! Requests of a client of the random run, which belong to its address.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// Requests of one address.
pub(crate) struct Http {
    client: reqwest::Client,
    base: String,
    address: String,
}

impl Http {
    pub(crate) fn new(base: &str, address: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { client, base: base.to_owned(), address: address.to_owned() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Vec<u8>) {
        let request = request.header("x-forwarded-for", &self.address);
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.bytes().await.unwrap().to_vec())
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let reply = self.send(self.client.get(format!("{}{path}", self.base))).await;
        (reply.0, read(&reply.1))
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.send(self.client.post(format!("{}{path}", self.base)).json(body)).await;
        (reply.0, read(&reply.1))
    }

    pub(crate) async fn depth(&self) -> u64 {
        self.get("/prompt").await.1["exec_info"]["queue_remaining"].as_u64().unwrap()
    }

    /// All pages of `/api/jobs`.
    pub(crate) async fn jobs(&self) -> Vec<Value> {
        let mut jobs = Vec::new();
        loop {
            let page = self.get(&format!("/api/jobs?limit=500&offset={}", jobs.len())).await.1;
            jobs.extend(page["jobs"].as_array().unwrap().iter().cloned());
            if page["pagination"]["has_more"] != json!(true) {
                return jobs;
            }
        }
    }

    pub(crate) async fn view(&self, file: &Value) -> (u16, Vec<u8>) {
        let names = ["filename", "subfolder", "type"];
        let query = names.map(|name| (name, file[name].as_str().unwrap_or_default()));
        self.send(self.client.get(format!("{}/view", self.base)).query(&query)).await
    }

    pub(crate) async fn upload(&self, name: &str, bytes: Vec<u8>) -> String {
        let form = Form::new().part("image", Part::bytes(bytes).file_name(name.to_owned()));
        let url = format!("{}/upload/image", self.base);
        let (status, reply) = self.send(self.client.post(url).multipart(form)).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&reply));
        read(&reply)["name"].as_str().unwrap().to_owned()
    }
}

/// JSON, or what else it is as a text.
fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}
