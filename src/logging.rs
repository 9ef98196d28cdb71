//! Log output: `env_logger`, quiet by default, on stderr.
//!
//! Lines for operators have the target `LoadBalancer` and show as `[LoadBalancer]`. Verbose
//! logging adds a line per request and can be switched at run time; `RUST_LOG` works as usual.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use jiff::Timestamp;
use log::{LevelFilter, Record};
use serde_json::json;

use crate::config::LogFormat;

/// The target of lines for operators.
pub const TARGET: &str = "LoadBalancer";

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Whether each request gets a line.
pub fn is_verbose() -> bool {
    VERBOSE.load(Relaxed)
}

/// Switches verbose logging.
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Relaxed);
}

/// Starts logging. A second call in one process does nothing.
pub fn start(format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Error).filter_module(TARGET, LevelFilter::Info);
    // Pingora's own lines about single requests say what our log says better.
    builder.filter_module("pingora_proxy", LevelFilter::Off);
    builder.filter_module("pingora_core", LevelFilter::Off);
    builder.parse_default_env();
    builder.format(move |out, record| match format {
        LogFormat::Text => writeln!(out, "{}", text_line(record, Timestamp::now())),
        LogFormat::Json => writeln!(out, "{}", json_line(record, Timestamp::now())),
    });
    let _ = builder.try_init();
}

fn text_line(record: &Record<'_>, now: Timestamp) -> String {
    format!("{now:.3} {:<5} [{}] {}", record.level(), record.target(), record.args())
}

fn json_line(record: &Record<'_>, now: Timestamp) -> String {
    json!({
        "time": format!("{now:.3}"),
        "level": record.level().as_str().to_lowercase(),
        "target": record.target(),
        "message": record.args().to_string(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_carry_the_message_whole() {
        let record = Record::builder()
            .args(format_args!("backend \"a\" is up"))
            .level(log::Level::Info)
            .target(TARGET)
            .build();
        let now = Timestamp::UNIX_EPOCH;
        let text = text_line(&record, now);
        assert_eq!(text, "1970-01-01T00:00:00.000Z INFO  [LoadBalancer] backend \"a\" is up");
        let json: serde_json::Value = serde_json::from_str(&json_line(&record, now)).unwrap();
        assert_eq!(json["message"], "backend \"a\" is up");
        assert_eq!(json["level"], "info");
    }
}
