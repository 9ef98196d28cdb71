//! HTTP clients for what the gateway asks backends for its own sake: one for each way that
//! certificates are checked, all else alike.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder};

use super::trust::{self, Ready, Trust};
use crate::backend::Backend;
use crate::config::Endpoint;

/// Clients at most; there are no more backends either.
const KEPT: usize = 1024;

/// HTTP clients of one kind.
pub struct Clients {
    kind: Box<dyn Fn() -> ClientBuilder + Send + Sync>,
    /// For backends without TLS.
    plain: Client,
    kept: Mutex<Vec<(Key, Client)>>,
}

/// What must be the same for two backends to share a client.
struct Key {
    ready: Arc<Ready>,
    /// The backend that is asked for under another name than its own, and that name.
    renamed: Option<(Endpoint, String)>,
}

impl Key {
    fn of(endpoint: &Endpoint, trust: Trust) -> Self {
        let renamed = trust.name != endpoint.host;
        Self { ready: trust.ready, renamed: renamed.then(|| (endpoint.clone(), trust.name)) }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ready, &other.ready) && self.renamed == other.renamed
    }
}

impl Clients {
    /// Clients as `kind` makes them; HTTP/1.1, without proxies, redirects being answers.
    pub fn new(kind: impl Fn() -> ClientBuilder + Send + Sync + 'static) -> reqwest::Result<Self> {
        let plain = basics(kind()).build()?;
        Ok(Self { kind: Box::new(kind), plain, kept: Mutex::default() })
    }

    /// A request to a backend for a target below its base path.
    pub fn request(&self, backend: &Backend, method: Method, target: &str) -> RequestBuilder {
        let endpoint = &backend.spec.endpoint;
        if !endpoint.tls {
            return self.plain.request(method, format!("{}{target}", endpoint.url()));
        }
        let key = Key::of(endpoint, trust::of(backend));
        // Under the name that is expected in the certificate; the client knows where that is.
        let host = key.renamed.as_ref().map_or(&endpoint.host, |(_, name)| name).clone();
        let url = Endpoint { host, ..endpoint.clone() }.url();
        let request = |client: &Client| client.request(method, format!("{url}{target}"));
        let mut kept = self.kept.lock();
        if let Some((_, client)) = kept.iter().find(|(known, _)| known.is(&key)) {
            return request(client);
        }
        // Should that fail, the plain one believes public authorities, and nobody else.
        let client = self.make(&key).unwrap_or_else(|_| self.plain.clone());
        let request = request(&client);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, client));
        request
    }

    fn make(&self, key: &Key) -> reqwest::Result<Client> {
        let builder = basics((self.kind)());
        let mut builder = builder.use_preconfigured_tls(key.ready.client.as_ref().clone());
        if let Some((endpoint, _)) = &key.renamed {
            let host = HeaderValue::try_from(endpoint.authority()).ok();
            let headers: HeaderMap = host.map(|host| (HOST, host)).into_iter().collect();
            let there = Arc::new(There(endpoint.host.clone()));
            builder = builder.default_headers(headers).dns_resolver(there);
        }
        builder.build()
    }
}

fn basics(builder: ClientBuilder) -> ClientBuilder {
    builder
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("comfygate/", env!("CARGO_PKG_VERSION")))
}

/// Resolves every name to where one host is.
struct There(String);

impl Resolve for There {
    fn resolve(&self, _name: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
