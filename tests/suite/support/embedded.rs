//! A gateway inside the test's own process, for tests that neither kill it nor read its log.

use comfygate::config::{Sources, load};
use comfygate::server::Server;
use tokio::task::JoinHandle;

use super::{PATIENCE, Setup, eventually};

/// A running gateway, ended with its value.
pub(crate) struct Embedded {
    /// `http://…` of the data port.
    pub(crate) data: String,
    /// `http://…` of the admin port.
    pub(crate) admin: String,
    /// Talks to it.
    pub(crate) http: reqwest::Client,
    running: JoinHandle<()>,
    /// Owns the directory.
    _setup: Setup,
}

impl Setup {
    /// Starts a gateway in this process and waits until it is ready.
    pub(crate) async fn embed(self) -> Embedded {
        self.write();
        let sources = Sources { file: Some(self.file()), ..Sources::default() };
        let loaded = load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::prepare(sources, loaded).unwrap();
        let data = format!("http://{}", server.data_address().unwrap());
        let admin = format!("http://{}", server.admin_address().unwrap());
        let running = tokio::spawn(async move { server.run().await.unwrap() });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let gateway = Embedded { data, admin, http, running, _setup: self };
        let ready = format!("{}/readyz", gateway.admin);
        eventually("the gateway is ready", PATIENCE, async || {
            let answer = gateway.http.get(&ready).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        gateway
    }
}

impl Embedded {
    /// Waits until so many backends are open for jobs, in pool mode.
    pub(crate) async fn takes_jobs_on(&self, backends: usize) {
        let path = format!("{}/lb/backends", self.admin);
        eventually("every backend takes jobs", PATIENCE, async || {
            let list: serde_json::Value =
                self.http.get(&path).send().await.unwrap().json().await.unwrap();
            let up = |one: &&serde_json::Value| one["state"] == "up" && one["takes_jobs"] == true;
            list["backends"].as_array().unwrap().iter().filter(up).count() == backends
        })
        .await;
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.running.abort();
    }
}
