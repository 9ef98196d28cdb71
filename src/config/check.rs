//! From the user's words to a [`Config`]: one function per section, defaults and ranges in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use http::uri::Authority;
use ipnet::IpNet;

use super::auth::{auth, routes, security};
use super::backend_tls;
use super::backends::headers;
use super::checked::{
    AccessLog, Admin, Affinity, Alerts, Backend, Cache, ClientEvents, Config, Failover, Fairness,
    HealthCheck, History, Isolation, Limits, Log, LogFormat, Mode, PerClient, PerUser, Pool,
    Priority, ProxyProtocol, Queue, RestartHook, Scheduler, Server, Session, Strategy, Webhook,
};
use super::raw::Node;
use super::resilience::{outlier, timeouts};
use super::secret::Secret;
use super::tls::tls;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Reads every section; what does not fit is noted at `root`'s reading, a default in its place.
pub(super) fn config(root: &Node<'_>, backends: Vec<Backend>, file: Option<PathBuf>) -> Config {
    let config = Config {
        mode: root
            .get("mode")
            .choice(Mode::Sticky, &[("sticky", Mode::Sticky), ("pool", Mode::Pool)]),
        server: server(&root.get("server")),
        scheduler: scheduler(&root.get("scheduler")),
        session: session(&root.get("session")),
        health_check: health_check(&root.get("health_check")),
        failover: failover(&root.get("failover")),
        outlier: outlier(&root.get("outlier")),
        timeouts: timeouts(&root.get("timeouts")),
        queue: queue(&root.get("queue")),
        backends,
        backends_file: file,
        backend_tls: backend_tls::for_all(&root.get("backend_tls")),
        state_dir: path(&root.get("state_dir")).unwrap_or_else(|| "./state".into()),
        admin: admin(&root.get("admin")),
        auth: auth(&root.get("auth")),
        routes: routes(&root.get("routes")),
        security: security(&root.get("security")),
        log: log(&root.get("log")),
        limits: limits(&root.get("limits")),
        pool: pool(&root.get("pool")),
        alerts: alerts(&root.get("alerts")),
        cache: Cache { size: root.get("cache").get("size").size(256_000_000, 0..=TIB) },
    };
    check_listeners(root, &config);
    check_identity(root, &config);
    check_proxy_protocol(root, &config);
    config
}

fn server(node: &Node<'_>) -> Server {
    let protocols = [
        ("off", ProxyProtocol::Off),
        ("on", ProxyProtocol::On),
        ("v1", ProxyProtocol::V1),
        ("v2", ProxyProtocol::V2),
    ];
    let threads = node.get("threads").int(0, 0..=1024);
    Server {
        host: node
            .get("host")
            .text("use an address of this machine, or 0.0.0.0 for all", |text| address(&text))
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        port: node.get("port").int(8100, 0..=u64::from(u16::MAX)),
        debug: node.get("debug").bool(false),
        threads: if threads == 0 { cores() } else { threads },
        backend_header: node.get("backend_header").bool(true),
        tls: tls(&node.get("tls")),
        trusted_proxies: networks(&node.get("trusted_proxies")),
        public_names: node.get("public_names").list("give a list of host names", |item| {
            item.text("use a host name, without scheme and path", |text| {
                let name: Authority = text.parse().ok()?;
                (!text.contains('@')).then(|| name.as_str().to_lowercase())
            })
        }),
        shutdown_timeout: node.get("shutdown_timeout").duration(30 * SECOND, Duration::ZERO..=DAY),
        proxy_protocol: node.get("proxy_protocol").choice(ProxyProtocol::Off, &protocols),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn address(text: &str) -> Option<IpAddr> {
    if text == "localhost" {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_matches(['[', ']']).parse().ok()
}

/// Networks; a plain address is a network of one.
fn networks(node: &Node<'_>) -> Vec<IpNet> {
    node.list("give a list of networks, such as [10.0.0.0/8]", |item| {
        item.text("use a network or an address, such as 10.0.0.0/8, ::1", |text| {
            text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        })
    })
}

fn path(node: &Node<'_>) -> Option<PathBuf> {
    node.text("use a path", |text| Some(PathBuf::from(text)))
}

fn scheduler(node: &Node<'_>) -> Scheduler {
    Scheduler {
        strategy: node.get("strategy").choice(Strategy::LeastBusy, &Strategy::NAMES),
        prefer_idle: node.get("prefer_idle").bool(true),
        queue_weight: node.get("queue_weight").bool(true),
        zone_header: header(&node.get("zone_header"), "use a header name, such as X-Zone"),
        zones: node
            .get("zones")
            .map("give a map, such as {eu: [10.1.0.0/16]}", |_, nets| Some(networks(nets))),
        zone_spill: node.get("zone_spill").int(2, 0..=1_000_000),
    }
}

/// A header's name, in lower case.
pub(super) fn header(node: &Node<'_>, cure: &str) -> Option<String> {
    node.text(cure, |text| HeaderName::try_from(&text).ok().map(|name| name.to_string()))
}

fn session(node: &Node<'_>) -> Session {
    let affinities = [("ip", Affinity::Ip), ("cookie", Affinity::Cookie), ("tab", Affinity::Tab)];
    let cookie_key = node.get("cookie_key");
    let key = cookie_key.secret();
    if key.as_ref().is_some_and(|key| key.reveal().len() < 16) {
        cookie_key.masked_problem("use 16 characters or more, or leave it out".to_owned());
    }
    Session {
        affinity: node.get("affinity").choice(Affinity::Ip, &affinities),
        ttl: node.get("ttl").duration(HOUR, MS..=3650 * DAY),
        max_clients: node.get("max_clients").int(1_000_000, 1..=100_000_000),
        failover_after: node.get("failover_after").duration(Duration::ZERO, Duration::ZERO..=DAY),
        cookie_key: key,
    }
}

fn health_check(node: &Node<'_>) -> HealthCheck {
    HealthCheck {
        interval: node.get("interval").duration(5 * SECOND, 10 * MS..=HOUR),
        timeout: node.get("timeout").duration(3 * SECOND, 10 * MS..=HOUR),
        unhealthy_threshold: node.get("unhealthy_threshold").int(3, 1..=1000),
        healthy_threshold: node.get("healthy_threshold").int(1, 1..=1000),
        push: node.get("push").bool(true),
        headers: headers(&node.get("headers")),
    }
}

fn failover(node: &Node<'_>) -> Failover {
    Failover {
        enabled: node.get("enabled").bool(true),
        attempts: node.get("attempts").int(3, 1..=100),
    }
}

fn queue(node: &Node<'_>) -> Queue {
    let orders = [
        ("fifo", Fairness::Fifo),
        ("round_robin", Fairness::RoundRobin),
        ("gpu_time", Fairness::GpuTime),
    ];
    Queue {
        max_size: node.get("max_size").int(1000, 1..=10_000_000),
        retry_interval: node.get("retry_interval").duration(SECOND, MS..=HOUR),
        max_retries: node.get("max_retries").int(3, 0..=1000),
        fairness: node.get("fairness").choice(Fairness::RoundRobin, &orders),
        priority: node
            .get("priority")
            .choice(Priority::Off, &[("off", Priority::Off), ("extra_data", Priority::ExtraData)]),
    }
}

fn pool(node: &Node<'_>) -> Pool {
    let isolations =
        [("none", Isolation::None), ("session", Isolation::Session), ("user", Isolation::User)];
    let events = [
        ("auto", ClientEvents::Auto),
        ("serial", ClientEvents::Serial),
        ("interleaved", ClientEvents::Interleaved),
    ];
    Pool {
        prefetch: node.get("prefetch").int(0, 0..=1000),
        isolation: node.get("isolation").choice(Isolation::None, &isolations),
        client_events: node.get("client_events").choice(ClientEvents::Auto, &events),
        eta_events: node.get("eta_events").bool(true),
        keep_outputs: node.get("keep_outputs").size(0, 0..=1024 * TIB),
        uploads_size: node.get("uploads_size").size(10_000_000_000, MIB..=1024 * TIB),
        history: history(&node.get("history")),
        suspect_after: node.get("suspect_after").duration(Duration::from_mins(10), SECOND..=DAY),
        declared_dead_after: node
            .get("declared_dead_after")
            .duration(Duration::from_secs(10), SECOND..=DAY),
        restart_hook: restart_hook(&node.get("restart_hook")),
        no_retry_nodes: node
            .get("no_retry_nodes")
            .list("give a list of node types", |item| item.text("use a node type", Some)),
    }
}

/// A URL, itself perhaps `{env: NAME}` or `{file: PATH}`; a program; or a list of a program and its
/// arguments.
fn restart_hook(node: &Node<'_>) -> Option<RestartHook> {
    let value = node.value()?;
    let is_url = value.as_str().is_some_and(|text| text.contains("://"));
    if value.is_mapping() || is_url {
        return webhook_url(node).map(RestartHook::Url);
    }
    let cure = "give a program and its arguments as a list, or a URL";
    let words = node.list(cure, |word| word.text(cure, Some));
    if words.is_empty() {
        node.problem(cure.to_owned());
        return None;
    }
    Some(RestartHook::Command(words))
}

fn history(node: &Node<'_>) -> History {
    History {
        max_jobs: node.get("max_jobs").int(10_000, 1..=1_000_000),
        max_bytes: node.get("max_bytes").size(2 * GIB, MIB..=TIB),
        max_age: node.get("max_age").duration(30 * DAY, SECOND..=3650 * DAY),
    }
}

fn admin(node: &Node<'_>) -> Admin {
    let (listen_node, token_node) = (node.get("listen"), node.get("token"));
    let listen = listen_node.text("use ADDRESS:PORT, such as 127.0.0.1:8101", |text| {
        let text =
            text.strip_prefix("localhost:").map_or(text.clone(), |p| format!("127.0.0.1:{p}"));
        text.parse::<SocketAddr>().ok()
    });
    let listen = listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8101)));
    let token = token_node.secret();
    if token.as_ref().is_some_and(|token| !token.reveal().bytes().all(|b| b.is_ascii_graphic())) {
        token_node.masked_problem("use visible ASCII characters without blanks".to_owned());
    }
    if !listen.ip().to_canonical().is_loopback() && !token_node.is_set() {
        let token = "token: {env: COMFYGATE_ADMIN_TOKEN}";
        listen_node.problem(format!("open to others; set admin {token} or use 127.0.0.1:PORT"));
    }
    Admin { listen, token, allow_endpoints: networks(&node.get("allow_endpoints")) }
}

fn alerts(node: &Node<'_>) -> Alerts {
    Alerts {
        webhooks: node.get("webhooks").list("give a list of URLs", webhook),
        queue_above: node.get("queue_above").int(100, 0..=10_000_000),
    }
}

/// A URL, or `{url, secret}`; the URL may itself be `{env: NAME}` or `{file: PATH}`.
fn webhook(node: &Node<'_>) -> Option<Webhook> {
    let (url, secret) = (node.get("url"), node.get("secret"));
    if !url.is_set() && !secret.is_set() {
        return Some(Webhook { url: webhook_url(node)?, secret: None });
    }
    for (name, value) in node.entries() {
        if name != "url" && name != "secret" {
            value.masked_problem("unknown key; use one of url, secret".to_owned());
        }
    }
    if !url.is_set() {
        url.problem("give the URL to post to".to_owned());
    }
    Some(Webhook { secret: secret.secret(), url: webhook_url(&url)? })
}

fn webhook_url(node: &Node<'_>) -> Option<Secret> {
    let secret = node.secret()?;
    let url = url::Url::parse(secret.reveal());
    if !url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        node.masked_problem("use an http:// or https:// URL".to_owned());
    }
    Some(secret)
}

fn log(node: &Node<'_>) -> Log {
    let access = node.get("access").text("use off, stdout or a path", |text| {
        Some(match text.as_str() {
            "off" | "false" => AccessLog::Off,
            "stdout" => AccessLog::Stdout,
            path => AccessLog::File(path.into()),
        })
    });
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        format: node.get("format").choice(LogFormat::Text, &formats),
        access: access.unwrap_or(AccessLog::Off),
    }
}

fn limits(node: &Node<'_>) -> Limits {
    // Pingora parses no more than 1 MiB - 1 and 256 headers.
    let bytes = node.get("header_bytes").size(64 * KIB, KIB..=1000 * KIB);
    Limits {
        header_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        header_count: node.get("header_count").int(100, 8..=256),
        header_timeout: node.get("header_timeout").duration(10 * SECOND, 10 * MS..=HOUR),
        url_length: usize::try_from(node.get("url_length").size(8 * KIB, 64..=1000 * KIB))
            .unwrap_or(usize::MAX),
        body_size: node.get("body_size").size(100 * MIB, 1..=TIB),
        prompt_size: node.get("prompt_size").size(100 * MIB, 1..=TIB),
        control_size: node.get("control_size").size(MIB, 1..=TIB),
        body_timeout: node.get("body_timeout").duration(30 * SECOND, 10 * MS..=HOUR),
        body_rate: node.get("body_rate").size(512, 0..=GIB),
        write_timeout: node.get("write_timeout").duration(60 * SECOND, 10 * MS..=HOUR),
        write_rate: node.get("write_rate").size(512, 0..=GIB),
        keepalive_timeout: node.get("keepalive_timeout").duration(60 * SECOND, 10 * MS..=DAY),
        requests_per_connection: node.get("requests_per_connection").int(10_000, 0..=1_000_000_000),
        connections: node.get("connections").int(10_000, 1..=1_000_000),
        uploads: node.get("uploads").int(500, 0..=1_000_000),
        prompt_memory: node.get("prompt_memory").size(GIB, MIB..=TIB),
        websocket_frame: node.get("websocket_frame").size(4 * MIB, 126..=GIB),
        per_client: per_client(&node.get("per_client")),
        per_user: per_user(&node.get("per_user")),
    }
}

fn per_client(node: &Node<'_>) -> PerClient {
    PerClient {
        connections: node.get("connections").int(2000, 0..=1_000_000),
        connections_per_second: node.get("connections_per_second").int(100, 0..=1_000_000),
        requests_per_second: node.get("requests_per_second").int(500, 0..=1_000_000),
        websockets: node.get("websockets").int(1000, 0..=1_000_000),
        uploads: node.get("uploads").int(100, 0..=1_000_000),
    }
}

fn per_user(node: &Node<'_>) -> PerUser {
    PerUser {
        queued: node.get("queued").int(0, 0..=10_000_000),
        running: node.get("running").int(0, 0..=1_000_000),
        prompts_per_minute: node.get("prompts_per_minute").int(0, 0..=1_000_000),
    }
}

/// Isolation by user wants somebody who names the users.
fn check_identity(root: &Node<'_>, config: &Config) {
    if config.pool.isolation == Isolation::User && !config.auth.is_on() {
        root.get("pool").get("isolation").problem(
            "nobody names the users; give them auth.keys, auth.users or auth.forward, or set \
             auth.user_header to the header in which your authenticating proxy does, and \
             server.trusted_proxies to its address, or use session"
                .to_owned(),
        );
    }
}

/// A PROXY header is taken from trusted peers only.
fn check_proxy_protocol(root: &Node<'_>, config: &Config) {
    let server = &config.server;
    if server.proxy_protocol != ProxyProtocol::Off && server.trusted_proxies.is_empty() {
        root.get("server").get("proxy_protocol").problem(
            "believed of server.trusted_proxies only, and there are none; give the load \
             balancer's address there, or use off"
                .to_owned(),
        );
    }
}

/// The two listeners must not want the same port.
fn check_listeners(root: &Node<'_>, config: &Config) {
    let (server, admin) = (&config.server, config.admin.listen);
    let redirect = server.tls.as_ref().and_then(|tls| tls.redirect_port);
    if redirect.is_some_and(|port| port > 0 && (port == server.port || port == admin.port())) {
        let node = root.get("server").get("tls").get("redirect_port");
        node.problem("server.port or admin.listen has it; use another one, such as 80".to_owned());
    }
    if server.port == 0 || server.port != admin.port() || !overlap(server.host, admin.ip()) {
        return;
    }
    let (port, listen) = (root.get("server").get("port"), root.get("admin").get("listen"));
    if listen.is_set() {
        listen.problem(format!("server.port is {} too; change one of the two", server.port));
    } else {
        port.problem(format!("admin.listen is {admin} too; change one of the two"));
    }
}

/// Whether sockets on both addresses would meet; `::` takes IPv4 as well.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let covers = |a: IpAddr, b: IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a == b || covers(a, b) || covers(b, a)
}

/// Warns of what is allowed but hardly meant.
pub(super) fn warnings(root: &Node<'_>, config: &Config) -> Vec<String> {
    let check = &config.health_check;
    let mut warnings = Vec::new();
    if !root.get("mode").is_set() && root.get("queue").is_set() {
        warnings.push(
            "mode: not given, so each client stays with one backend (sticky) and queue has no \
             effect; for a queue of single prompts, as the Python balancer's, set mode: pool"
                .to_owned(),
        );
    }
    if check.timeout > check.interval {
        warnings.push(
            "health_check.timeout: longer than health_check.interval, so polls fall behind"
                .to_owned(),
        );
    }
    if config.scheduler.zone_header.is_some() && config.server.trusted_proxies.is_empty() {
        warnings.push(
            "scheduler.zone_header: believed of server.trusted_proxies only, and there are none"
                .to_owned(),
        );
    }
    if config.auth.user_header.is_some() && config.server.trusted_proxies.is_empty() {
        warnings.push(
            "auth.user_header: believed of server.trusted_proxies only, and there are none"
                .to_owned(),
        );
    }
    if config.mode == Mode::Sticky && config.limits.per_user != PerUser::default() {
        warnings.push("limits.per_user: has an effect in pool mode only".to_owned());
    }
    if !config.backends.is_empty() && config.backends.iter().all(|backend| !backend.enabled) {
        warnings.push("backends: all have enabled: false, so nothing can be served".to_owned());
    }
    warnings
}
