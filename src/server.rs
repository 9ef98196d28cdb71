//! Starting, reloading and stopping a gateway.
//!
//! Everything that can fail for a reason the user can cure is tried before the first connection is
//! accepted, and ends in one clear line: ports are bound here, certificates read, the state
//! opened. Pingora's own server is not used, since it panics on a taken port and sleeps through
//! its grace period when it is idle; its `HttpProxy` is, behind our [`edge`].

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use log::{error, info, warn};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::http_proxy;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::alerts::{self, Hysteresis};
use crate::config::{self, Config, Loaded, Mode, Sources};
use crate::edge::tls::Acceptor;
use crate::edge::{self, FrontDoor};
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::handover::{Estate, Offer, Successor};
use crate::identity::session::SigningKey;
use crate::logging::TARGET;
use crate::operator::Operator;
use crate::probe::Prober;
use crate::proxy::Proxy;
use crate::registry;
use crate::state::{State, load_or_make_cookie_key};
use crate::{access, admin, keeper, logging, pool, summary, tasks, upstream};

/// Requests wait this long at most for the first look at the backends.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Sockets get this long for their closing handshakes once `shutdown_timeout` is over.
const FAREWELL: Duration = Duration::from_secs(2);
/// A client's socket may be without events for so long during an upgrade.
const EVENTLESS: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A gateway that is ready to run: configured, its ports bound.
pub struct Server {
    sources: Sources,
    loaded: Loaded,
    data: StdListener,
    admin: StdListener,
    acceptor: Option<Arc<Acceptor>>,
    redirect: Option<StdListener>,
    state: Option<Arc<State>>,
    signing_key: SigningKey,
    fleet: Arc<Fleet>,
    pool: Option<pool::Opened>,
    successor: Option<Successor>,
}

impl Server {
    /// Does everything that can fail.
    pub fn prepare(sources: Sources, loaded: Loaded) -> Result<Self> {
        Self::prepare_in_place_of(None, sources, loaded)
    }

    /// The same, to take the place of the process that serves from this `state_dir`, if there is one.
    pub fn take_over(sources: Sources, loaded: Loaded) -> Result<Self> {
        let successor = Successor::find(&loaded.config.state_dir)?;
        if successor.is_none() {
            info!(target: TARGET, "no comfygate to upgrade serves here");
        }
        Self::prepare_in_place_of(successor, sources, loaded)
    }

    fn prepare_in_place_of(
        mut successor: Option<Successor>,
        sources: Sources,
        loaded: Loaded,
    ) -> Result<Self> {
        let config = &loaded.config;
        let mut inherit = |address, key| {
            let inherited = successor.as_mut().and_then(|it| it.listener(address));
            inherited.map_or_else(|| bind(address, key), Ok)
        };
        let data = SocketAddr::new(config.server.host, config.server.port);
        let data = inherit(data, "server.port")?;
        let admin = inherit(config.admin.listen, "admin.listen")?;
        let tls = config.server.tls.as_ref();
        let redirect = tls.and_then(|tls| tls.redirect_port).map(|port| {
            inherit(SocketAddr::new(config.server.host, port), "server.tls.redirect_port")
        });
        let redirect = redirect.transpose()?;
        let acceptor = tls.map(Acceptor::new).transpose().context("server.tls")?.map(Arc::new);
        if let Some(successor) = &mut successor {
            successor.release()?;
        }
        let state = keeper::open(&config.state_dir)?.map(Arc::new);
        let signing_key = match &config.session.cookie_key {
            Some(secret) => SigningKey::from_secret(secret).context("session.cookie_key")?,
            None => SigningKey::from_bytes(&load_or_make_cookie_key(&config.state_dir)?),
        };
        access::start(&config.log).context("log.access cannot be written")?;
        let fleet = Arc::new(Fleet::new());
        let pool = match config.mode {
            Mode::Pool => Some(pool::open(config, state.as_deref(), &fleet)?),
            Mode::Sticky => None,
        };
        Ok(Self {
            sources,
            loaded,
            data,
            admin,
            acceptor,
            redirect,
            state,
            signing_key,
            fleet,
            pool,
            successor,
        })
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data.local_addr().ok()
    }

    /// Where the admin plane listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }

    /// Runs until SIGTERM or SIGINT. Wants a Tokio runtime.
    pub async fn run(self) -> Result<()> {
        let config = self.loaded.config.clone();
        announce(&self.loaded);
        upstream::trust::set_default(&config.backend_tls);
        let fleet = self.fleet;
        let prober = Prober::new(Arc::clone(&fleet), probes(&config))?;
        if let Some(successor) = self.successor {
            tokio::task::spawn_blocking(|| successor.serving()).await??;
        }
        let learnt = keeper::learnt(self.state.as_deref());
        let gateway =
            Arc::new(Gateway::new(config.clone(), Arc::clone(&fleet), prober, self.signing_key));
        let operator = Operator::start(Arc::clone(&gateway), self.state.clone(), learnt).await;
        if let Some(state) = &self.state {
            keeper::restore(&gateway, state);
            keeper::restore_rates(&gateway, state);
        }
        tokio::spawn(Arc::clone(&operator).tend());
        let counted = Arc::downgrade(&gateway);
        gateway.tasks.observe(move |change| {
            if let Some(gateway) = counted.upgrade() {
                gateway.metrics.task_changed(change);
            }
        });
        match self.pool {
            Some(opened) => gateway.set_pool(opened.start(&gateway)?),
            None => drop(tokio::spawn(tasks::follow::run(Arc::clone(&gateway)))),
        }
        tokio::spawn(registry::watch::watch(Arc::clone(&gateway)));
        tokio::spawn(Arc::clone(&gateway.warden).tend());

        let listeners = [&self.data, &self.admin].into_iter().chain(&self.redirect);
        let shared = listeners.map(StdListener::try_clone).collect::<std::io::Result<_>>()?;
        let admin_listener = listen(self.admin)?;
        let admin_address = admin_listener.local_addr()?;
        let admin = admin::Admin::start(&gateway, &operator);
        let admin_door = tokio::spawn(admin::serve(admin_listener, admin::router(&admin)));

        gateway.prober.first_round(FIRST_LOOK.min(config.health_check.timeout)).await;
        if let Some(pool) = gateway.pool() {
            pool.first_lane(FIRST_LOOK).await;
        }
        tokio::spawn(summary::report(fleet));
        let watching = tokio::spawn(alerts::watch(Arc::clone(&gateway), Hysteresis::default()));
        let connections = TaskTracker::new();
        let door = FrontDoor::new(
            Arc::clone(&gateway),
            Arc::new(http_proxy(&server_conf(&config), Proxy::new(Arc::clone(&gateway)))),
            self.acceptor.clone(),
            admin::data_port_router(&admin),
            connections.clone(),
        );
        let signals = Signals::hear()?;
        let listener = listen(self.data)?;
        let address = listener.local_addr()?;
        info!(target: TARGET, "listening on {address}, admin on {admin_address}");
        if let Some(redirect) = self.redirect {
            let redirect = listen(redirect)?;
            info!(target: TARGET, "sending {} to https", redirect.local_addr()?);
            tokio::spawn(Arc::clone(&door).accept_redirected(redirect, address.port()));
        }
        tokio::spawn(door.accept(listener));
        if let Some(acceptor) = &self.acceptor {
            tokio::spawn(edge::tls::watch::watch(Arc::clone(acceptor)));
        }

        let estate = Estate::new(Arc::clone(&gateway), self.state.clone());
        let offered = self.state.as_ref().map(|_| &*config.state_dir);
        let handed_over = hand_over(offered, shared, estate);
        let (stopped, stop) = tokio::sync::oneshot::channel::<()>();
        let keeper = tokio::spawn(keeper::keep(Arc::clone(&gateway), self.state, async {
            let _ = stop.await;
        }));
        let acceptor = self.acceptor.as_deref();
        tokio::select! {
            () = wait_for_signals(signals, &gateway, &self.sources, &operator, acceptor) => {}
            () = handed_over => {
                admin_door.abort();
                watching.abort();
                leave_gently(&gateway);
            }
        }
        drain(&gateway, &connections).await;
        if let Some(pool) = gateway.pool() {
            pool.close().await;
        }
        drop(stopped);
        let _ = keeper.await;
        Ok(())
    }
}

/// Offers this process's place, and waits until it is taken. `state_dir`: if it is this process's.
async fn hand_over(state_dir: Option<&Path>, listeners: Vec<StdListener>, estate: Estate) {
    let Some(state_dir) = state_dir else { return std::future::pending().await };
    match Offer::new(state_dir, listeners) {
        Ok(offer) => offer.taken(estate).await,
        Err(error) => {
            warn!(target: TARGET, "`comfygate run --upgrade` cannot take over from this process: {error}");
            std::future::pending::<()>().await;
        }
    }
}

/// Has sockets end one after another, so that their clients do not come to the successor at once.
/// In pool mode that must be soon, for the successor has the events.
fn leave_gently(gateway: &Gateway) {
    let config = gateway.config.load();
    let limit = config.server.shutdown_timeout;
    let spread = limit.mul_f64(0.6);
    gateway.spread.set(if config.mode == Mode::Pool { spread.min(EVENTLESS) } else { spread });
    gateway.stop_hard();
}

/// How backends are probed: in pool mode the event sockets tell their depth already.
fn probes(config: &Config) -> config::HealthCheck {
    let push = config.health_check.push && config.mode == Mode::Sticky;
    config::HealthCheck { push, ..config.health_check.clone() }
}

fn bind(address: SocketAddr, key: &str) -> Result<StdListener> {
    let open = || -> std::io::Result<StdListener> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open().map_err(|error| {
        anyhow::anyhow!("{key} = {address}: {error}; free the port or choose another one")
    })
}

fn listen(listener: StdListener) -> Result<TcpListener> {
    Ok(TcpListener::from_std(listener)?)
}

fn server_conf(config: &Config) -> Arc<ServerConf> {
    Arc::new(ServerConf {
        threads: config.server.threads,
        // `retry` decides; this only has to allow each backend a second try after a stale
        // connection.
        max_retries: 2 * config.failover.attempts.max(1) as usize,
        upstream_keepalive_pool_size: 32 * config.backends.len().max(4),
        ..ServerConf::default()
    })
}

fn announce(loaded: &Loaded) {
    for warning in &loaded.warnings {
        warn!(target: TARGET, "{warning}");
    }
    if let Some(path) = &loaded.config.backends_file {
        info!(target: TARGET, "Loading servers from file: {}", path.display());
    }
    info!(target: TARGET, "Loaded {} servers", loaded.config.backends.len());
    let server = &loaded.config.server;
    if !server.host.to_canonical().is_loopback() && !loaded.config.auth.is_on() {
        warn!(
            target: TARGET,
            "anyone who reaches {} can use the farm: ComfyUI has no login of its own; set auth \
             (keys, users or forward), or listen on 127.0.0.1",
            SocketAddr::new(server.host, server.port)
        );
    }
}

/// The signals that are handled. One that came before this was made would end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn hear() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Handles signals until one of them ends the process.
async fn wait_for_signals(
    mut signals: Signals,
    gateway: &Arc<Gateway>,
    sources: &Sources,
    operator: &Operator,
    acceptor: Option<&Acceptor>,
) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => reload(gateway, sources, operator, acceptor).await,
        }
    }
}

/// Reads the configuration again; an invalid one is refused and the running one stays.
async fn reload(
    gateway: &Arc<Gateway>,
    sources: &Sources,
    operator: &Operator,
    acceptor: Option<&Acceptor>,
) {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            gateway.metrics.reloaded(false);
            error!(target: TARGET, "reload refused, the running configuration stays:\n{problems}");
            return;
        }
    };
    for key in config::differences_needing_restart(&gateway.config.load(), &loaded.config) {
        warn!(target: TARGET, "{key} has changed and takes effect with the next start");
    }
    announce(&loaded);
    let config = loaded.config;
    if let (Some(acceptor), Some(tls)) = (acceptor, &config.server.tls)
        && let Err(why) = acceptor.replace(tls)
    {
        error!(target: TARGET, "server.tls is refused, the running certificates stay: {why:#}");
    }
    upstream::trust::set_default(&config.backend_tls);
    gateway.affinity.set_limits(config.session.ttl, config.session.max_clients);
    gateway.prober.set_options(probes(&config));
    if let Some(pool) = gateway.pool() {
        pool.reload(&config);
    }
    gateway.trust(&config.server.trusted_proxies);
    gateway.auth.reload(&config);
    logging::set_verbose(config.server.debug);
    operator.reload(config).await;
    gateway.metrics.reloaded(true);
    info!(target: TARGET, "configuration reloaded");
}

/// Takes no more clients, lets requests and sockets end within `shutdown_timeout`, and returns as
/// soon as nothing is open. A second signal cuts everything.
async fn drain(gateway: &Arc<Gateway>, tasks: &TaskTracker) {
    gateway.stopping.send_replace(true);
    tasks.close();
    let limit = gateway.config.load().server.shutdown_timeout;
    if tasks.is_empty() {
        return;
    }
    info!(target: TARGET, "stopping: waiting up to {} s for open requests and sockets", limit.as_secs_f64());
    tokio::select! {
        () = tasks.wait() => return,
        () = tokio::time::sleep(limit) => {}
        () = second_signal() => return,
    }
    gateway.stop_hard();
    let _ = tokio::time::timeout(FAREWELL, tasks.wait()).await;
}

async fn second_signal() {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
