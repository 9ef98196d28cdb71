//! The table of requests, sent to a gateway in front of the simulator and of aiohttp.

use serde_json::json;

use super::table::{Case, Expect, cases};
use super::{statuses, talk};
use crate::support::recorder::Recorder;
use crate::support::{Gateway, Setup, farm};

async fn gateway(url: String) -> Gateway {
    let keys = json!({
        "limits": {"header_timeout": "2s", "body_timeout": "2s", "body_size": 100_000},
        "health_check": {"push": false, "interval": 600.0},
    });
    Setup::new(&[url]).with(keys).start().await
}

async fn heard(gateway: &Gateway, case: &Case) -> String {
    let pieces: Vec<&[u8]> = case.pieces.iter().map(Vec::as_slice).collect();
    talk(gateway.data, &pieces, expected(case).len()).await
}

/// The statuses that the client is told.
fn expected(case: &Case) -> Vec<u16> {
    match &case.expect {
        Expect::Refused(status) | Expect::BrokenOff(status) => vec![*status],
        Expect::Passes(read) => vec![200; read.len()],
        Expect::PassesThenRefused(read, status) => {
            let mut expected = vec![200; read.len()];
            expected.push(*status);
            expected
        }
    }
}

/// That the client is told this, and a refusal as the gateway's own.
fn assert_told(case: &Case, heard: &str) {
    assert_eq!(statuses(heard), expected(case), "{}: {heard}", case.name);
    if let Expect::Refused(_) | Expect::BrokenOff(_) = case.expect {
        let head = heard.to_lowercase();
        assert!(head.contains("\r\nconnection: close\r\n"), "{}: {heard}", case.name);
        assert!(!head.contains("x-comfygate-backend"), "{}: {heard}", case.name);
        assert!(heard.contains("\"node_errors\":{}"), "{}: {heard}", case.name);
    }
}

#[test]
fn the_table_is_long_enough_and_each_case_has_its_name() {
    let cases = cases();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 80, "{}", cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_reads_no_request_otherwise_than_the_gateway() {
    let Some(recorder) = Recorder::start().await else { return };
    let gateway = gateway(recorder.url()).await;
    gateway.until_state("comfy-1", "up").await;
    recorder.recorded().await;
    for case in cases() {
        let heard = heard(&gateway, &case).await;
        assert_told(&case, &heard);
        let read = recorder.recorded().await;
        let expected: &[_] = match &case.expect {
            Expect::Refused(_) | Expect::BrokenOff(_) => &[],
            Expect::Passes(read) | Expect::PassesThenRefused(read, _) => read,
        };
        let seen: Vec<_> =
            read.iter().map(|r| (r.method.as_str(), r.path.as_str(), r.body.as_str())).collect();
        assert_eq!(seen, expected, "{}: {heard}", case.name);
        for request in &read {
            assert_eq!(request.all("host").len(), 1, "{}: {request:?}", case.name);
            let framing =
                request.all("content-length").len() + request.all("transfer-encoding").len();
            assert!(framing <= 1, "{}: {request:?}", case.name);
            let path = request.raw.split('?').next().unwrap();
            assert!(!path.contains("/../"), "{}: {request:?}", case.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_sees_nothing_of_what_is_refused() {
    let sims = farm(1).await;
    let gateway = gateway(sims[0].url()).await;
    gateway.until_state("comfy-1", "up").await;
    let quiet = sims[0].requests_seen();
    for case in cases() {
        if let Expect::Refused(_) = case.expect {
            assert_told(&case, &heard(&gateway, &case).await);
            assert_eq!(
                sims[0].requests_seen(),
                quiet,
                "{}: {:?}",
                case.name,
                sims[0].requests().last()
            );
        }
    }
    // It would have been seen.
    assert_eq!(gateway.get("10.0.0.1", "/prompt").await.status, 200);
    assert_eq!(sims[0].requests_seen(), quiet + 1);
}
