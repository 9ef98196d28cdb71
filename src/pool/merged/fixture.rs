//! Farms for the tests here and in `userdata`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::header;
use serde_json::json;

use super::fetch::Fetcher;
use crate::backend::{Backend, Wanted};
use crate::config;
use crate::fleet::Fleet;
use crate::health::Health;
use crate::pace::Learnt;
use crate::roster::Member;

/// A fleet of servers that are there, named `comfy-1` and so on.
pub(crate) struct Farm {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) fetcher: Arc<Fetcher>,
}

impl Farm {
    /// Of these applications, each on a port of its own.
    pub(crate) async fn of(routers: impl IntoIterator<Item = Router>) -> Self {
        let mut urls = Vec::new();
        for router in routers {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            urls.push(format!("http://{}", listener.local_addr().unwrap()));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Self::at(urls)
    }

    /// Of the servers at these addresses.
    pub(crate) fn at(urls: impl IntoIterator<Item = String>) -> Self {
        let member = |(place, url): (usize, String)| {
            let words = json!({"name": format!("comfy-{}", place + 1), "url": url});
            Member { spec: config::backend_of(&words).unwrap(), wanted: Wanted::Enabled }
        };
        let fleet = Fleet::new();
        fleet.apply(urls.into_iter().enumerate().map(member).collect(), |_| Learnt::default());
        for backend in &fleet.view().backends {
            backend.live.alter(|standing| standing.health = Health::Up);
        }
        Self { fleet: Arc::new(fleet), fetcher: Arc::new(Fetcher::new(&health_check()).unwrap()) }
    }

    pub(crate) fn backends(&self) -> Vec<Arc<Backend>> {
        self.fleet.view().backends.clone()
    }
}

fn health_check() -> config::HealthCheck {
    config::HealthCheck {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(3),
        unhealthy_threshold: 3,
        healthy_threshold: 1,
        push: false,
        headers: Vec::new(),
    }
}

/// An application that answers one path with JSON.
pub(crate) fn router(path: &str, body: impl Into<String>) -> Router {
    let body = body.into();
    let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], body) };
    Router::new().route(path, get(answer))
}
