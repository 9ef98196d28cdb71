//! Integration tests, one binary so that they link once.

mod config;
mod conformance;
mod dashboard;
mod simulator;
mod sticky;
mod support;
mod tasks;
mod websocket;
