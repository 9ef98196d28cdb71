//! Integration tests, one binary so that they link once.

mod browser;
mod config;
mod conformance;
mod faults;
mod readme;
mod simulator;
mod sticky;
mod support;
mod websocket;
