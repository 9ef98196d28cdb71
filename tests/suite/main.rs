//! Integration tests, one binary so that they link once.

mod alerts;
mod browser;
mod child;
mod config;
mod conformance;
mod faults;
mod metrics;
mod readme;
mod registry;
mod simulator;
mod sticky;
mod support;
mod tasks;
mod websocket;
mod zones;
