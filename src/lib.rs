//! comfygate: one address in front of a farm of ComfyUI servers.
//!
//! The way of a request, module by module:
//!
//! 1. [`server`] has bound the ports; [`edge`] accepts the connection and reads the request's
//!    head, strictly and within one time ([`edge::head`]).
//! 2. [`edge::admit`] decides what becomes of it: [`comfy::origin`] keeps other sites out, [`auth`]
//!    whoever may not come in, [`identity`] tells who asks.
//! 3. [`gateway`] finds the backend: the one that [`affinity`] remembers, else the one that
//!    [`selection`] chooses from what [`fleet`] knows; for `/infer/…` a service of [`registry`].
//! 4. HTTP goes through [`proxy`], the only `ProxyHttp`; a WebSocket through [`relay`];
//!    [`upstream`] connects, [`retry`] says what may be tried again, [`rejection`] answers the rest.
//!
//! Beside it: [`probe`] looks at each [`backend`], [`health`] judges it, [`outlier`] takes it out when
//! it fails real requests, [`connections`] bound what it holds, [`depth`] and [`pace`]
//! count its work, [`tasks`] follows each prompt to its end, [`inventory`] knows what a backend is
//! made of; [`keeper`] carries over into the next process what [`state`] stores; [`admin`] shows all
//! of it, [`metrics`] count it and [`alerts`] tell when it breaks, [`operator`] changes it.
//! In pool mode [`pool`] stands between front door and backends and makes one ComfyUI of the farm:
//! it answers what concerns all servers, dispatches each prompt by itself, and ends the clients'
//! sockets. [`config`] is what the user said; [`sim`] is a ComfyUI without a GPU, and [`conformance`]
//! tells whether a server behaves like the real one.

pub mod access;
pub mod admin;
pub mod affinity;
pub mod alerts;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod comfy;
pub mod config;
pub mod conformance;
pub mod connections;
pub mod demo;
pub mod depth;
pub mod edge;
pub mod fleet;
pub mod gateway;
pub mod handover;
pub mod health;
pub mod identity;
pub mod inventory;
pub mod keeper;
pub mod logging;
pub mod metrics;
pub mod operator;
pub mod outlier;
pub mod pace;
pub mod pool;
pub mod probe;
pub mod proxy;
pub mod registry;
pub mod rejection;
pub mod relay;
pub mod retry;
pub mod ring;
pub mod roster;
pub mod selection;
pub mod server;
pub mod sim;
pub mod state;
pub mod summary;
pub mod tasks;
pub mod upstream;
