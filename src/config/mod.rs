//! What the gateway runs on, read from YAML, environment and flags.
//!
//! Two steps, parse and then check: [`raw`] mirrors the user's words (every key optional, unknown
//! keys refused), [`check`] turns them into the [`Config`] below or a list of [`Problem`]s that
//! name the key, the value, the line and the cure. Nothing behind this module checks again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

/// A configuration that has passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Sticky (a client belongs to one backend) or pool (the farm looks like one server).
    pub mode: Mode,
    /// The data plane's listener.
    pub server: Server,
    /// How a backend is chosen.
    pub scheduler: Scheduler,
    /// How long and by what a client keeps its backend.
    pub session: Session,
    /// Probes of the backends.
    pub health_check: HealthCheck,
    /// Retries of requests on another backend.
    pub failover: Failover,
    /// The gateway's own queue (pool mode).
    pub queue: Queue,
    /// The backends of the file, of `backends_file` and of the environment, merged.
    pub backends: Vec<Backend>,
    /// Where the file's list of further backends came from.
    pub backends_file: Option<PathBuf>,
    /// Directory of everything that outlives the process, mode 0700.
    pub state_dir: PathBuf,
    /// The admin plane's listener.
    pub admin: Admin,
    /// Log output.
    pub log: Log,
    /// Bounds of what a client may send.
    pub limits: Limits,
}

/// What the gateway makes of the farm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A client belongs to one backend.
    Sticky,
    /// The farm looks like one big ComfyUI.
    Pool,
}

/// `server`: the data plane's listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one (the log names it).
    pub port: u16,
    /// Verbose logging from the start.
    pub debug: bool,
    /// Worker threads; 0 in the file means one per core and is resolved here.
    pub threads: usize,
    /// Whether responses carry `x-comfygate-backend`.
    pub backend_header: bool,
    /// Certificate and key files; both readable and parseable when this is `Some`.
    pub tls: Option<Tls>,
    /// Peers whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Names under which the public reaches the gateway; empty: learnt from `Host`.
    pub public_names: Vec<String>,
    /// How long SIGTERM waits for requests and sockets to end.
    pub shutdown_timeout: Duration,
}

/// `server.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// `scheduler`: how a backend is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    /// The rule.
    pub strategy: Strategy,
    /// A backend with nothing queued goes before any other rule.
    pub prefer_idle: bool,
    /// False: queue depth is ignored, ketama alone decides.
    pub queue_weight: bool,
}

/// The rules by which a backend is chosen for a new client (sticky) or a prompt (pool).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Fewest queued prompts.
    LeastBusy,
    /// Each backend in turn.
    RoundRobin,
    /// Fewest queued prompts per weight.
    Weighted,
    /// Each backend in turn, as often as its weight says.
    WeightedRoundRobin,
    /// Fewest requests handed out so far.
    LeastCalls,
    /// Shortest predicted wait: queued prompts times learnt seconds per prompt.
    LeastWait,
    /// The ketama owner of the client's address, whatever its queue.
    IpHash,
}

/// `session`: how long and by what a client keeps its backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// What tells one client from another.
    pub affinity: Affinity,
    /// A placement holds this long after the client's last request.
    pub ttl: Duration,
    /// Placements kept at most; the longest unused goes first.
    pub max_clients: usize,
    /// How long a client waits for its own backend to come back before it is moved.
    pub failover_after: Duration,
    /// Key of the cookie's signature; `None`: made once and kept in `state_dir`.
    pub cookie_key: Option<Secret>,
}

/// What tells one client from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// The client's address (IPv6: its /64).
    Ip,
    /// A signed cookie; clients without it go by address.
    Cookie,
    /// The session in the path of each browser tab; clients without it go by address.
    Tab,
}

/// `health_check`: probes of the backends.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// Time between two polls of a backend.
    pub interval: Duration,
    /// A poll that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row that take a backend out.
    pub unhealthy_threshold: u32,
    /// Successes in a row that bring it back.
    pub healthy_threshold: u32,
    /// Listen to each backend's `status` events besides polling.
    pub push: bool,
    /// Headers sent with each probe.
    pub headers: Vec<(String, Secret)>,
}

/// `failover`: retries of requests on another backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Failover {
    /// Whether a failed request may go to another backend.
    pub enabled: bool,
    /// Backends tried at most for one request, the first included.
    pub attempts: u32,
}

/// `queue`: the gateway's own queue (pool mode).
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Jobs waiting at most; more get 429.
    pub max_size: usize,
    /// Pause before a job is tried again.
    pub retry_interval: Duration,
    /// Attempts of one job after its first.
    pub max_retries: u32,
}

/// One of `backends`.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Unique name: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Where it is; scheme http or https, path without a trailing slash, no query, no userinfo.
    pub endpoint: Endpoint,
    /// Share of the load, 1 to 100.
    pub weight: u32,
    /// Prompts queued there at most before new clients go elsewhere.
    pub max_queue: u32,
    /// False: gets nothing until it is enabled.
    pub enabled: bool,
    /// Used only when no other backend is healthy.
    pub backup: bool,
    /// Headers sent with each request to it.
    pub headers: Vec<(String, Secret)>,
    /// Free labels, such as `zone`.
    pub labels: Vec<(String, String)>,
    /// What it can do; empty: anything.
    pub task_types: Vec<String>,
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// True for https.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path in front of every request path: empty or `/base` without a trailing slash.
    pub base: String,
}

/// `admin`: the admin plane's listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Where it listens; without a token only on loopback.
    pub listen: SocketAddr,
    /// Bearer token that callers must show.
    pub token: Option<Secret>,
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// Where the access log goes.
    pub access: AccessLog,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// `limits`: bounds of what a client may send.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of request line and headers together.
    pub header_bytes: usize,
    /// Number of headers.
    pub header_count: usize,
    /// Time from the first byte of a head to its last.
    pub header_timeout: Duration,
    /// Bytes of a request body.
    pub body_size: u64,
    /// Idle time after which a keep-alive connection is closed.
    pub keepalive_timeout: Duration,
    /// Client connections at once.
    pub connections: usize,
}

/// A value that must not show in logs and replies: `Debug` and `Display` print `MASKED`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MASKED")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MASKED")
    }
}

impl Endpoint {
    /// The endpoint as a URL, for people and for HTTP clients.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.base)
    }

    /// `host:port`, IPv6 in brackets, the port always given: the `Host` header's value.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Reads an endpoint from an http or https URL.
    pub fn from_url(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let base = url.path().trim_end_matches('/').to_owned();
        Some(Self { tls, host, port: url.port_or_known_default()?, base })
    }
}
