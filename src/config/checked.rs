//! The checked configuration: what the gateway runs on.
//!
//! Values of these types come from [`load`](super::load); whoever holds one need not check again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::auth::{Auth, Routes, Security};
use super::backend_tls::BackendTls;
use super::endpoint::Endpoint;
use super::resilience::{Outlier, Timeouts};
use super::secret::Secret;

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
    /// When backends that fail are taken out.
    pub outlier: Outlier,
    /// How long backends may take.
    pub timeouts: Timeouts,
    /// The gateway's own queue (pool mode).
    pub queue: Queue,
    /// The backends of the file, of `backends_file` and of the environment, merged.
    pub backends: Vec<Backend>,
    /// How the TLS of backends is checked.
    pub backend_tls: BackendTls,
    /// Where the file's list of further backends came from.
    pub backends_file: Option<PathBuf>,
    /// Directory of everything that outlives the process, mode 0700.
    pub state_dir: PathBuf,
    /// The admin plane's listener.
    pub admin: Admin,
    /// Who may come in.
    pub auth: Auth,
    /// What is closed or open beside the preset.
    pub routes: Routes,
    /// Which routes are closed without a word.
    pub security: Security,
    /// Log output.
    pub log: Log,
    /// Bounds of what a client may send.
    pub limits: Limits,
    /// Pool mode's own settings.
    pub pool: Pool,
    /// Whom to tell when something breaks.
    pub alerts: Alerts,
    /// Responses kept by the gateway.
    pub cache: Cache,
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
    /// How https is served; the files are readable and fit together when this is `Some`.
    pub tls: Option<Tls>,
    /// Peers whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Names under which the public reaches the gateway; empty: learnt from `Host`.
    pub public_names: Vec<String>,
    /// How long SIGTERM waits for requests and sockets to end.
    pub shutdown_timeout: Duration,
    /// Whether connections from trusted peers open with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
}

/// `server.proxy_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None expected.
    Off,
    /// Version 1 or 2.
    On,
    /// Version 1 (text) only.
    V1,
    /// Version 2 (binary) only.
    V2,
}

/// `server.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificates, the default first; never empty.
    pub certificates: Vec<Pair>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// PEM file with the authorities that sign clients' certificates; `None`: clients have none.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_auth: ClientAuth,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// For how long browsers are told to use https alone; zero: they are not told.
    pub hsts: Duration,
    /// Port whose requests are sent here; 0 takes a free one.
    pub redirect_port: Option<u16>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

/// `server.tls.client_auth`: whether a client must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Who has none is not served.
    Required,
    /// Who has one must have a good one.
    Optional,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
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
    /// Header that names a client's zone; believed of `server.trusted_proxies` only. Lower case.
    pub zone_header: Option<String>,
    /// Zones by client address, in the order they are tried.
    pub zones: Vec<(String, Vec<IpNet>)>,
    /// Prompts by which a zone's own backends may be fuller before clients leave the zone.
    pub zone_spill: u32,
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

impl Strategy {
    /// Every strategy with its name in the configuration and the admin API.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("least_busy", Self::LeastBusy),
        ("round_robin", Self::RoundRobin),
        ("weighted", Self::Weighted),
        ("weighted_round_robin", Self::WeightedRoundRobin),
        ("least_calls", Self::LeastCalls),
        ("least_wait", Self::LeastWait),
        ("ip_hash", Self::IpHash),
    ];

    /// The strategy's name in the configuration and the admin API.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, strategy)| *strategy == self).map_or("", |(name, _)| name)
    }

    /// The strategy of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, strategy)| *strategy)
    }
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
    /// In which order callers get their turn.
    pub fairness: Fairness,
    /// What may put a job before others.
    pub priority: Priority,
}

/// `queue.priority`: what may put a job before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Nothing.
    Off,
    /// Its own word: `extra_data.comfygate.priority`.
    ExtraData,
}

/// `queue.fairness`: in which order callers get their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fairness {
    /// By arrival alone.
    Fifo,
    /// One job of each caller in turn.
    RoundRobin,
    /// The caller that used the fewest GPU seconds first.
    GpuTime,
}

/// `pool`: pool mode's own settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Prompts posted to a backend ahead of the running one.
    pub prefetch: u32,
    /// Whose jobs a caller sees and may touch.
    pub isolation: Isolation,
    /// How one client's concurrent jobs share its socket.
    pub client_events: ClientEvents,
    /// Whether owners of waiting jobs are told when those will run (`comfygate_eta`).
    pub eta_events: bool,
    /// Bytes of output files kept at the gateway; 0: none.
    pub keep_outputs: u64,
    /// Bytes of uploaded files kept at the gateway.
    pub uploads_size: u64,
    /// How many finished jobs are kept.
    pub history: History,
    /// A running prompt without any event for this long is interrupted, and its backend suspect when
    /// that does not help.
    pub suspect_after: Duration,
    /// A backend that is gone for this long has lost its prompts.
    pub declared_dead_after: Duration,
    /// What is called when a backend is suspect.
    pub restart_hook: Option<RestartHook>,
    /// Node types whose jobs must not run twice.
    pub no_retry_nodes: Vec<String>,
}

/// `pool.restart_hook`: what is called to restart a backend that shows no life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartHook {
    /// A program and its arguments; no shell has a part in it.
    Command(Vec<String>),
    /// A URL that gets a POST. It may carry a token.
    Url(Secret),
}

/// `pool.history`: how many finished jobs are kept. Whichever is met first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Jobs.
    pub max_jobs: usize,
    /// Bytes of them on the disk.
    pub max_bytes: u64,
    /// Time since they ended.
    pub max_age: Duration,
}

/// `pool.isolation`: whose jobs a caller sees and may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everybody's.
    None,
    /// Its session's.
    Session,
    /// Its user's.
    User,
}

/// `pool.client_events`: how one client's concurrent jobs share its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEvents {
    /// By what the client is: pages serially, others interleaved.
    Auto,
    /// One job's frames after another's.
    Serial,
    /// As they come.
    Interleaved,
}

/// `alerts`: whom to tell when something breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Alerts {
    /// Who gets a message.
    pub webhooks: Vec<Webhook>,
    /// Queued prompts in all above which an alert fires.
    pub queue_above: u64,
}

/// One of `alerts.webhooks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// URL to post to, http or https; it often carries a token.
    pub url: Secret,
    /// What messages are signed with.
    pub secret: Option<Secret>,
}

/// `cache`: responses kept by the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of memory; 0 turns it off.
    pub size: u64,
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
    /// Requests and WebSockets that it holds at once.
    pub max_connections: u32,
    /// Headers sent with each request to it.
    pub headers: Vec<(String, Secret)>,
    /// Free labels, such as `zone`.
    pub labels: Vec<(String, String)>,
    /// What it can do; empty: anything.
    pub task_types: Vec<String>,
    /// How its TLS is checked.
    pub tls: BackendTls,
}

/// `admin`: the admin plane's listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Where it listens; without a token only on loopback.
    pub listen: SocketAddr,
    /// Bearer token that callers must show.
    pub token: Option<Secret>,
    /// Networks that servers added at run time may be in; empty: any but link-local ones.
    pub allow_endpoints: Vec<IpNet>,
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
    /// What one caller may have in pool mode.
    pub per_user: PerUser,
}

/// `limits.per_user`: what one caller may have in pool mode; 0: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerUser {
    /// Prompts that wait.
    pub queued: usize,
    /// Prompts that run at once.
    pub running: u32,
    /// Prompts handed in per minute.
    pub prompts_per_minute: u32,
}
