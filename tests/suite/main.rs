//! Integration tests, one binary so that they link once.

mod affinity;
mod config;
mod conformance;
mod faults;
mod operation;
mod proxying;
mod simulator;
mod sticky;
mod support;
mod websocket;
