//! What the gateway runs on, read from YAML, environment and flags.
//!
//! Two steps, parse and then check. The user's words are a tree of YAML values (`yaml`) on which
//! environment and flags are laid (`layers`); it is walked once for unknown keys
//! (`keys`) and once to take typed values out of it (`check`, `backends`, by way of
//! `raw`). What comes out is a [`Config`], or every [`Problem`] at once, each naming the key,
//! the value, the place and the cure. Nothing behind this module checks again.
//!
//! A new key goes into `keys`, into `checked`, into `check` and into
//! `conf/comfygate.yaml`; the tests fail while one of them is missing.

mod auth;
mod backend_tls;
mod backends;
mod check;
mod checked;
mod command;
mod endpoint;
mod keys;
mod layers;
mod load;
mod locate;
mod not_yet;
mod problem;
mod quantity;
mod raw;
mod resilience;
mod restart;
mod secret;
mod tls;
mod yaml;

pub use auth::{ApiKey, Auth, Forward, Login, Routes, Security, User};
pub use backend_tls::BackendTls;
pub use checked::{
    AccessLog, Admin, Affinity, Alerts, Backend, Cache, ClientAuth, ClientEvents, Config, Failover,
    Fairness, HealthCheck, History, Isolation, Limits, Log, LogFormat, Mode, Pair, PerUser, Pool,
    Priority, ProxyProtocol, Queue, RestartHook, Scheduler, Server, Session, Strategy, Tls,
    TlsVersion, Webhook,
};
pub use command::{CheckArgs, check_file, run_check};
pub use endpoint::Endpoint;
pub use keys::known_keys;
pub use load::{Flags, Loaded, Sources, backend_of, load, parse, process_env};
pub use problem::{Problem, Problems};
pub use quantity::{parse_duration, parse_size, show_duration, show_size};
pub use resilience::{Outlier, Timeouts};
pub use restart::differences_needing_restart;
pub use secret::Secret;
pub use tls::{Unfit, authorities, certified_key, names as certificate_names};
