//! The backends: of the file, of `backends_file` and of the environment, in one list.

use std::collections::{HashMap, HashSet};

use http::{HeaderName, HeaderValue};
use url::{Host, Url};

use super::backend_tls::{BackendTls, of_backend};
use super::checked::Backend;
use super::endpoint::Endpoint;
use super::raw::Node;
use super::secret::Secret;

/// Backends at most: each costs a poll per interval and a socket.
const MAX_BACKENDS: usize = 1024;
/// Characters of a name at most.
const MAX_NAME: usize = 64;
/// What a URL must be.
const URL_CURE: &str = "use http://HOST:PORT or https://HOST:PORT, a base path after it at most";
/// What a name must be.
const NAME_CURE: &str = "use 1 to 64 of A-Z a-z 0-9 . _ -";

/// Backends of one source.
pub(super) struct Listed<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    /// First part of the names of those that have none.
    pub(super) word: &'static str,
    /// Whether all of them are backups.
    pub(super) backups: bool,
}

/// Reads all lists, in their order, and checks names and endpoints across them.
pub(super) fn backends(lists: &[Listed<'_>]) -> Vec<Backend> {
    let nodes = || lists.iter().flat_map(|list| list.nodes.iter());
    if let Some(node) = nodes().nth(MAX_BACKENDS) {
        node.problem(format!("more than {MAX_BACKENDS} backends; remove some"));
        return Vec::new();
    }
    let mut names = Names::new(nodes());
    let mut endpoints = HashMap::new();
    let mut backends = Vec::new();
    for list in lists {
        for node in &list.nodes {
            let name = names.name(node, list.word);
            let Some(backend) = backend(node, name, list.backups) else { continue };
            if let Some(first) = endpoints.insert(backend.endpoint.clone(), backend.name.clone()) {
                let named = ["url", "port"].into_iter().map(|key| node.get(key));
                let place = named.into_iter().find(Node::is_set).unwrap_or_else(|| node.clone());
                place.problem(format!("the same server as {first}; remove one of the two"));
            }
            backends.push(backend);
        }
    }
    backends
}

/// Gives each backend its name: its own, or the next free one of its list's word.
struct Names {
    taken: HashSet<String>,
    seen: HashMap<String, String>,
    counts: HashMap<&'static str, usize>,
}

impl Names {
    fn new<'n, 'a: 'n>(nodes: impl Iterator<Item = &'n Node<'a>>) -> Self {
        let own = nodes.filter_map(|node| node.get("name").value()?.as_str().map(str::to_owned));
        Self { taken: own.collect(), seen: HashMap::new(), counts: HashMap::new() }
    }

    fn name(&mut self, node: &Node<'_>, word: &'static str) -> String {
        let count = self.counts.entry(word).or_default();
        *count += 1;
        let own = node.get("name");
        if own.is_set() {
            let name = own.text(NAME_CURE, |name| is_name(&name).then_some(name));
            let name = name.unwrap_or_default();
            if let Some(first) = self.seen.insert(name.clone(), node.key())
                && !name.is_empty()
            {
                own.problem(format!("the name of {first} too; give each its own"));
            }
            return name;
        }
        loop {
            let name = format!("{word}-{count}");
            if self.taken.insert(name.clone()) {
                return name;
            }
            *count += 1;
        }
    }
}

/// Whether a text may name a backend; `.` and `..` would vanish from a path.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && text != "."
        && text != ".."
}

/// One backend; `None` when it has no endpoint.
fn backend(node: &Node<'_>, name: String, backups: bool) -> Option<Backend> {
    let weight = node.get("weight");
    let weight = if weight.value().is_some_and(|value| value.as_u64() == Some(0)) {
        weight.problem("use 1 to 100, or enabled: false for a backend without load".to_owned());
        1
    } else {
        weight.int(1, 1..=100)
    };
    let rest = Backend {
        name,
        endpoint: Endpoint { tls: false, host: String::new(), port: 0, base: String::new() },
        weight,
        max_queue: node.get("max_queue").int(10, 1..=1_000_000),
        enabled: node.get("enabled").bool(true),
        backup: node.get("backup").bool(false) || backups,
        max_connections: node.get("max_connections").int(4096, 1..=1_000_000),
        headers: headers(&node.get("headers")),
        labels: node.get("labels").map("give a map, such as {zone: eu}", |_, label| {
            label.text("use up to 256 characters", |text| (text.len() <= 256).then_some(text))
        }),
        task_types: node.get("task_types").list("give a list of names", |item| {
            item.text(NAME_CURE, |text| is_name(&text).then_some(text))
        }),
        tls: BackendTls::default(),
    };
    let endpoint = endpoint(node);
    let is_https = endpoint.as_ref().is_none_or(|endpoint| endpoint.tls);
    let tls = of_backend(&node.get("tls"), is_https);
    Some(Backend { endpoint: endpoint?, tls, ..rest })
}

/// The endpoint of a backend: of its URL, of the plain text it is, or of `host` and `port`.
fn endpoint(node: &Node<'_>) -> Option<Endpoint> {
    if node.value()?.is_string() {
        return from_url(node);
    }
    if !node.value()?.is_mapping() {
        return None;
    }
    let (url, host, port) = (node.get("url"), node.get("host"), node.get("port"));
    match (url.is_set(), host.is_set() || port.is_set()) {
        (true, false) => from_url(&url),
        (false, true) => from_host(&host, &port),
        (true, true) => {
            let extra = if host.is_set() { host } else { port };
            extra.problem("stands beside url; give either url or host and port".to_owned());
            None
        }
        (false, false) => {
            url.problem("give url, or host and port".to_owned());
            None
        }
    }
}

fn from_url(node: &Node<'_>) -> Option<Endpoint> {
    let text = node.value()?.as_str().unwrap_or_default();
    // Userinfo and queries carry secrets.
    if text.contains(['@', '?', '#']) {
        let cure = format!("{URL_CURE}; credentials go into headers");
        node.masked_problem(cure);
        return None;
    }
    node.text(URL_CURE, |text| {
        Endpoint::from_url(&Url::parse(text.trim()).ok()?).filter(|endpoint| endpoint.port > 0)
    })
}

fn from_host(host: &Node<'_>, port: &Node<'_>) -> Option<Endpoint> {
    for node in [host, port] {
        if !node.is_set() {
            node.problem("give both host and port, or url".to_owned());
        }
    }
    let port_number = port.int(0, 1..=u64::from(u16::MAX));
    let name = host.text("use a name or an address, without scheme and port", |text| {
        let bare = text.trim_matches(['[', ']']);
        let bracketed = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        Host::parse(&bracketed).ok().map(|host| host.to_string())
    })?;
    let host = name.trim_matches(['[', ']']).to_owned();
    (port_number > 0).then_some(Endpoint {
        tls: false,
        host,
        port: port_number,
        base: String::new(),
    })
}

/// Headers to send, each value a text or a reference to a secret.
pub(super) fn headers(node: &Node<'_>) -> Vec<(String, Secret)> {
    /// What one connection, not one request, is about, or what the gateway sets itself.
    const OURS: [&str; 8] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if node.value().is_some_and(|value| !value.is_mapping()) {
        node.masked_problem("give a map, such as {Authorization: {env: TOKEN}}".to_owned());
    }
    let mut seen = HashSet::new();
    let read = |(name, node): (String, Node<'_>)| {
        let Ok(header) = HeaderName::try_from(&name) else {
            node.masked_problem("use a header name, such as X-Api-Key".to_owned());
            return None;
        };
        if OURS.contains(&header.as_str()) || !seen.insert(header) {
            node.masked_problem("set twice or by the gateway itself; remove it".to_owned());
            return None;
        }
        let secret = node.secret()?;
        if HeaderValue::from_str(secret.reveal()).is_err() {
            node.masked_problem("use visible characters only".to_owned());
        }
        Some((name, secret))
    };
    node.entries().into_iter().filter_map(read).collect()
}
