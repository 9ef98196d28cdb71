//! Integration tests, one binary so that they link once.

mod alerts;
mod config;
mod conformance;
mod metrics;
mod simulator;
mod sticky;
mod support;
mod websocket;
