//! Integration tests, one binary so that they link once.

mod admin;
mod child;
mod config;
mod conformance;
mod registry;
mod simulator;
mod sticky;
mod support;
mod websocket;
mod zones;
