//! slowhttptest in all its modes, while an honest client measures.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

use super::{ask, percentile};
use crate::support::echo::Echo;
use crate::support::{Gateway, Setup, eventually, is_full};

/// An attack: its name, and what slowhttptest is told besides whom and how much.
const ATTACKS: [(&str, &[&str]); 4] = [
    ("slow heads", &["-H", "-i", "3", "-t", "GET", "-x", "24"]),
    ("slow bodies", &["-B", "-i", "3", "-s", "8192", "-t", "POST", "-x", "10"]),
    ("slow reading", &["-X", "-w", "512", "-y", "1024", "-n", "3", "-z", "32", "-k", "3"]),
    ("ranges", &["-R", "-t", "HEAD", "-a", "10", "-b", "3000"]),
];
/// What the honest client asks for, and from where.
const HONEST: [u8; 4] = [127, 0, 0, 2];
const PAUSE: Duration = Duration::from_millis(10);

struct Scale {
    connections: usize,
    per_second: usize,
    seconds: u64,
    memory_mib: u64,
}

fn scale() -> Scale {
    if is_full() {
        Scale { connections: 2000, per_second: 400, seconds: 40, memory_mib: 700 }
    } else {
        Scale { connections: 150, per_second: 100, seconds: 4, memory_mib: 200 }
    }
}

/// Begins an attack; `None` where there is no slowhttptest, unless tools are required.
fn attack(gateway: &Gateway, words: &[&str], scale: &Scale) -> Option<tokio::process::Child> {
    let path = if words[0] == "-B" { "upload" } else { "download/64" };
    let numbers = [scale.connections, scale.per_second, scale.seconds as usize];
    let [connections, per_second, seconds] = numbers.map(|number| number.to_string());
    let mut command = Command::new("slowhttptest");
    command.args(words).args(["-c", &connections, "-r", &per_second, "-l", &seconds, "-p", "3"]);
    command.args(["-u", &format!("http://{}/{path}", gateway.data)]).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            let required = std::env::var_os("COMFYGATE_REQUIRE_TOOLS").is_some_and(|v| v == "1");
            assert!(!required, "slowhttptest is missing ({error}): apt-get install slowhttptest");
            eprintln!("skipped: slowhttptest is missing (apt-get install slowhttptest)");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_client_is_served_through_every_slow_attack() {
    let scale = scale();
    let echo = Echo::start().await;
    // All of them are let in: many addresses could do so, and this is one.
    let none = json!({"connections": 0, "connections_per_second": 0, "requests_per_second": 0,
        "uploads": 0});
    let keys = json!({
        "server": {"trusted_proxies": []},
        "limits": {"per_client": none, "uploads": 0},
        "health_check": {"push": false},
    });
    let gateway = Setup::new(&[echo.url()]).with(keys).start().await;
    gateway.until_state("comfy-1", "up").await;
    let long = Duration::from_secs(if is_full() { 20 } else { 3 });
    let mut quiet = ask(gateway.data, HONEST, "/queue", PAUSE, long).await;
    let quiet = percentile(&mut quiet, 99);
    let before = gateway.descriptors();
    for (name, words) in ATTACKS {
        let Some(mut child) = attack(&gateway, words, &scale) else { return };
        let long = Duration::from_secs(scale.seconds);
        let mut most = 0;
        let watching = async {
            while child.try_wait().unwrap().is_none() {
                most = most.max(gateway.descriptors().saturating_sub(before));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let asking = ask(gateway.data, HONEST, "/queue", PAUSE, long);
        let (mut times, ()) = tokio::join!(asking, watching);
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        let peak = gateway.memory_kib("VmHWM") >> 10;
        println!(
            "{name}: {} answers, p50 {p50:?}, p99 {p99:?} (quiet {quiet:?}), {most} descriptors more, \
             peak {peak} MiB, {} MiB after",
            times.len(),
            gateway.memory_kib("VmRSS") >> 10
        );
        // A machine that runs other tests besides has hiccups of its own.
        let noise = if is_full() { Duration::from_millis(2) } else { Duration::from_secs(10) };
        assert!(p99 < (3 * quiet).max(noise), "{name}: {p99:?}, quiet {quiet:?}");
        assert!(peak < scale.memory_mib, "{name}: {peak} MiB");
        // Heads with ranges are answered at once.
        let stays = words[0] != "-R";
        assert!(!stays || most > scale.connections / 4, "{name}: only {most} connections came in");
    }
    eventually("the descriptors are back", 2 * crate::support::PATIENCE, async || {
        gateway.descriptors() < before + 140
    })
    .await;
}
