//! The access log: one line per request, written by a thread of its own, so that a slow disk
//! delays nobody. When it cannot keep up, lines are dropped and counted rather than kept.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::config::{AccessLog, Log, LogFormat};

/// Lines that may wait for the disk.
const BACKLOG: usize = 8192;
/// Bytes of a target that are logged.
const MAX_TARGET: usize = 2048;

/// What is written of a request. Durations are since the head was complete.
#[derive(Debug)]
pub struct Record<'a> {
    /// Method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Status sent to the client; 0: none.
    pub status: u16,
    /// Bytes of the body sent to the client.
    pub bytes: u64,
    /// Until the connection to the backend stood.
    pub connect: Option<Duration>,
    /// Until the response's head came.
    pub first_byte: Option<Duration>,
    /// Until the end.
    pub total: Duration,
    /// Name of the backend, or `-`.
    pub backend: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// Sent upstream as `X-Request-Id`.
    pub request_id: &'a str,
    /// Backends that failed before.
    pub retries: u32,
    /// Why it ended as it did.
    pub reason: &'static str,
}

struct Sink {
    lines: SyncSender<String>,
    format: LogFormat,
    dropped: AtomicU64,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Whether anybody reads along.
pub fn is_on() -> bool {
    SINK.get().is_some()
}

/// Starts the access log as configured.
pub fn start(log: &Log) -> std::io::Result<()> {
    let mut out: Box<dyn Write + Send> = match &log.access {
        AccessLog::Off => return Ok(()),
        AccessLog::Stdout => Box::new(std::io::stdout()),
        AccessLog::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    };
    let (lines, waiting) = sync_channel::<String>(BACKLOG);
    let sink = Sink { lines, format: log.format, dropped: AtomicU64::new(0) };
    if SINK.set(sink).is_ok() {
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            while let Ok(line) = waiting.recv() {
                let _ = out.write_all(line.as_bytes());
                let _ = out.flush();
            }
        })?;
    }
    Ok(())
}

/// Writes a request's line.
pub fn write(record: &Record<'_>) {
    let Some(sink) = SINK.get() else { return };
    let line = line(record, sink.format, Timestamp::now());
    if let Err(TrySendError::Full(_)) = sink.lines.try_send(line) {
        let dropped = sink.dropped.fetch_add(1, Relaxed) + 1;
        if dropped.is_power_of_two() {
            log::warn!(target: crate::logging::TARGET, "the access log cannot keep up: {dropped} lines dropped");
        }
    }
}

fn line(record: &Record<'_>, format: LogFormat, now: Timestamp) -> String {
    let target = crate::auth::key::masked(record.target);
    let target: String = target.chars().take(MAX_TARGET).collect();
    let seconds = |duration: Option<Duration>| duration.map(|d| d.as_secs_f64());
    match format {
        LogFormat::Json => {
            let line = json!({
                "time": format!("{now:.3}"), "client": record.client.to_string(),
                "method": record.method, "target": target, "status": record.status,
                "bytes": record.bytes, "connect": seconds(record.connect),
                "first_byte": seconds(record.first_byte), "total": record.total.as_secs_f64(),
                "backend": record.backend, "retries": record.retries, "reason": record.reason,
                "request_id": record.request_id,
            });
            format!("{line}\n")
        }
        LogFormat::Text => {
            let timing = |duration: Option<Duration>| {
                duration.map_or_else(|| "-".to_owned(), |d| format!("{:.6}", d.as_secs_f64()))
            };
            format!(
                "{now:.3} {} \"{} {target}\" {} {} connect={} first_byte={} total={} backend={} \
                 retries={} reason={} id={}\n",
                record.client,
                record.method,
                record.status,
                record.bytes,
                timing(record.connect),
                timing(record.first_byte),
                timing(Some(record.total)),
                record.backend,
                record.retries,
                record.reason,
                record.request_id,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_time_went_and_who_answered() {
        let record = Record {
            method: "GET",
            target: "/view?filename=\"x\"",
            status: 200,
            bytes: 12,
            connect: Some(Duration::from_millis(1)),
            first_byte: None,
            total: Duration::from_millis(3),
            backend: "comfy-1",
            client: [10, 0, 0, 1].into(),
            request_id: "abc",
            retries: 0,
            reason: "ok",
        };
        let text = line(&record, LogFormat::Text, Timestamp::UNIX_EPOCH);
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000Z 10.0.0.1 \"GET /view?filename=\"x\"\" 200 12 \
             connect=0.001000 first_byte=- total=0.003000 backend=comfy-1 retries=0 reason=ok id=abc\n"
        );
        let json = line(&record, LogFormat::Json, Timestamp::UNIX_EPOCH);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["first_byte"], &json["backend"]), (&json!(null), &json!("comfy-1")));
    }
}
