//! Integration tests, one binary so that they link once.

mod admin;
mod affinity;
mod alerts;
mod auth;
mod browser;
mod config;
mod conformance;
mod dashboard;
mod faults;
mod metrics;
mod network;
mod operation;
mod outlier;
mod pool;
mod proxying;
mod readme;
mod registry;
mod simulator;
mod soak;
mod sticky;
mod support;
mod tasks;
mod tls;
mod upgrade;
mod websocket;
mod zones;
