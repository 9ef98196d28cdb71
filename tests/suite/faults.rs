//! Backends that die, lie, hang or come back: who is served by whom, and what never happens twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use comfygate::sim::QueueReply;
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::http::{self, try_exchange};
use crate::support::socket::{self, close_code};
use crate::support::{
    Act, Fake, Gateway, PATIENCE, Setup, SimProcess, client, client_of, eventually, farm,
    long_prompt,
};

/// What a hundred clients that ask again and again have seen.
#[derive(Default)]
struct Seen {
    served: AtomicUsize,
    cut: AtomicUsize,
    failed: parking_lot::Mutex<Vec<String>>,
}

/// Asks until told to stop. A response that had begun may be cut, everything else is a failure.
async fn ask(gateway: &Gateway, client: &str, stop: &AtomicBool, seen: &Seen) {
    while !stop.load(Relaxed) {
        match gateway.try_get(client, "/system_stats").await {
            Ok(reply) if reply.status == 200 => seen.served.fetch_add(1, Relaxed),
            Err(error) if error.is_body() || error.is_decode() => seen.cut.fetch_add(1, Relaxed),
            Ok(reply) => {
                seen.failed.lock().push(format!("{} {}", reply.status, reply.text()));
                0
            }
            Err(error) => {
                seen.failed.lock().push(format!("{error:?}"));
                0
            }
        };
        // A pace that leaves room for everybody else on a small machine.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Who serves each client.
async fn places(gateway: &Gateway, clients: &[String]) -> Vec<String> {
    let replies = join_all(clients.iter().map(|client| gateway.get(client, "/prompt"))).await;
    replies.iter().map(|reply| reply.backend().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_fails_no_get_and_its_clients_move_on_once() {
    let mut sims =
        [SimProcess::start().await, SimProcess::start().await, SimProcess::start().await];
    // Slow enough that most of the hundred have a request under way at any time.
    for sim in &sims {
        sim.faults(&json!({"latency_ms": 100})).await;
    }
    let urls: Vec<_> = sims.iter().map(SimProcess::url).collect();
    let gateway = Setup::new(&urls).start().await;
    let clients: Vec<_> = (0..100).map(client).collect();
    let homes = places(&gateway, &clients).await;
    let bereft: Vec<_> = (0..100).filter(|&n| homes[n] == "comfy-1").collect();
    assert!(bereft.len() > 10, "{homes:?}");
    let mut sockets = Vec::new();
    for &n in &bereft {
        let headers = [("x-forwarded-for", clients[n].as_str())];
        sockets.push(socket::open(gateway.data, "/ws", &headers).await.unwrap().0);
    }

    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let asking = join_all(clients.iter().map(|client| ask(&gateway, client, &stop, &seen)));
    let killing = async {
        eventually("all have been served", Duration::from_secs(10), async || {
            seen.served.load(Relaxed) > 300
        })
        .await;
        sims[0].kill();
        let killed = Instant::now();
        for code in
            join_all(sockets.iter_mut().map(|s| close_code(s, Duration::from_secs(5)))).await
        {
            assert_eq!(code, 1012);
        }
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(1), "sockets closed after {took:?}");
        gateway.until_state("comfy-1", "down").await;
        assert!(
            killed.elapsed() < Duration::from_millis(1500),
            "down after {:?}",
            killed.elapsed()
        );
        let served = seen.served.load(Relaxed);
        eventually("service goes on", Duration::from_secs(10), async || {
            seen.served.load(Relaxed) > served + 300
        })
        .await;
        stop.store(true, Relaxed);
    };
    tokio::join!(asking, killing);
    let failed = std::mem::take(&mut *seen.failed.lock());
    assert!(
        failed.is_empty(),
        "{} failed, {} cut: {failed:?}",
        failed.len(),
        seen.cut.load(Relaxed)
    );

    let moved_to = places(&gateway, &clients).await;
    for (home, place) in homes.iter().zip(&moved_to) {
        assert!(place != "comfy-1" && (home == "comfy-1" || home == place), "{home} → {place}");
    }
    sims[0].revive().await;
    gateway.until_state("comfy-1", "up").await;
    assert_eq!(places(&gateway, &clients).await, moved_to, "nobody moves again");
    // A returning backend takes a growing share of the new clients.
    let mut newcomers = 1000..;
    eventually("a new client comes to comfy-1", PATIENCE, async || {
        let some: Vec<_> = newcomers.by_ref().take(30).map(client).collect();
        places(&gateway, &some).await.iter().any(|place| place == "comfy-1")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_is_known_to_be_down_within_a_second() {
    let (mut victim, survivor) = (SimProcess::start().await, SimProcess::start().await);
    let polls = json!({"health_check": {"interval": 30.0}});
    let gateway = Setup::new(&[victim.url(), survivor.url()]).with(polls).start().await;
    gateway.until_state("comfy-1", "up").await;
    // Without the push socket only traffic or the next poll would tell.
    eventually("push is on", PATIENCE, async || victim.sockets().await > 0).await;
    victim.kill();
    let took = gateway.until_state("comfy-1", "down").await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    gateway.until_logged("backend comfy-1 is down: ").await;
    assert_eq!(gateway.backend("comfy-2").await["state"], "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_resolve_is_only_unhealthy() {
    let farm = farm(1).await;
    let urls = [farm[0].url(), "http://no-such-host.invalid:8188".to_owned()];
    let gateway = Setup::new(&urls).start().await;
    gateway.until_state("comfy-1", "up").await;
    gateway.until_state("comfy-2", "down").await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    for n in 0..20 {
        assert_eq!(gateway.get(client(n), "/prompt").await.backend(), "comfy-1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_backends_down_the_answer_is_an_instant_503_until_one_returns() {
    let farm = farm(2).await;
    let gateway = Setup::of(&farm).start().await;
    assert_eq!(gateway.get(client(1), "/prompt").await.status, 200);
    for sim in &farm {
        sim.faults().refuse(true).await;
    }
    gateway.until_state("comfy-1", "down").await;
    gateway.until_state("comfy-2", "down").await;
    let mut took = Vec::new();
    for n in 0..20 {
        let start = Instant::now();
        let reply = gateway.get(client(n), "/prompt").await;
        took.push(start.elapsed());
        reply.assert_refusal(503, "no_backend");
        let seconds: u32 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        assert!(!reply.text().contains("127.0.0.1"), "{}", reply.text());
    }
    took.sort();
    assert!(took[18] < Duration::from_millis(50), "{took:?}");
    gateway.post(client(1), "/prompt", &long_prompt()).await.assert_refusal(503, "no_backend");
    let refused = socket::open(gateway.data, "/ws", &[]).await.unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    gateway.admin("/readyz").await.assert_refusal(503, "no_backend");

    farm[1].faults().refuse(false).await;
    gateway.until_state("comfy-2", "up").await;
    assert_eq!(gateway.get(client(1), "/prompt").await.backend(), "comfy-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_instead_of_a_queue_makes_that_backend_unhealthy_and_no_other() {
    let farm = farm(6).await;
    let replies = [
        QueueReply::Broken,
        QueueReply::Huge,
        QueueReply::Endless,
        QueueReply::Truncated,
        QueueReply::WrongType,
    ];
    for (sim, reply) in farm.iter().zip(replies) {
        sim.faults().queue_reply(reply);
    }
    let polls = json!({"health_check": {"interval": 1.5, "timeout": 1.0}});
    let gateway = Setup::of(&farm).with(polls).start().await;
    for (n, reply) in replies.iter().enumerate() {
        let name = format!("comfy-{}", n + 1);
        gateway.until_state(&name, "down").await;
        let error = gateway.backend(&name).await["last_error"].to_string();
        assert!(error.len() > 10, "{reply:?}: {error}");
    }
    for n in 0..20 {
        assert_eq!(gateway.get(client(n), "/prompt").await.backend(), "comfy-6");
    }
    let good = gateway.backend("comfy-6").await;
    assert_eq!((&good["state"], &good["failures"]), (&json!("up"), &json!(0)));
    assert!(gateway.memory_kib("VmHWM") < 200 << 10, "{} KiB", gateway.memory_kib("VmHWM"));

    for sim in &farm {
        sim.faults().queue_reply(QueueReply::Real);
    }
    for n in 1..=5 {
        gateway.until_state(&format!("comfy-{n}"), "up").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_goes_down_by_the_threshold_and_its_sockets_close() {
    let farm = farm(2).await;
    let polls =
        json!({"health_check": {"interval": 0.3, "timeout": 0.3, "unhealthy_threshold": 2}});
    let gateway = Setup::of(&farm).with(polls).start().await;
    let someone = client_of(&gateway, "comfy-1").await;
    let headers = [("x-forwarded-for", someone.as_str())];
    let (mut socket, _) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    farm[0].faults().hang(true);
    assert_eq!(close_code(&mut socket, Duration::from_secs(5)).await, 1012);
    assert_eq!(gateway.backend("comfy-1").await["state"], "down");
    assert_eq!(gateway.get(&someone, "/prompt").await.backend(), "comfy-2");
}

/// A gateway that learns of faults from its traffic alone.
async fn unsuspecting(urls: &[String]) -> Gateway {
    let blind = json!({"health_check": {"interval": 60.0, "push": false}});
    Setup::new(urls).with(blind).start().await
}

fn posts(fake: &Fake) -> usize {
    fake.seen().iter().filter(|request| request.line().starts_with("POST")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_began_to_leave_is_never_sent_twice() {
    let take_and_reset = |request: &crate::support::Request| match request.line() {
        line if line.starts_with("POST") => Act::Reset,
        _ => Act::Reply("{}"),
    };
    let fakes = [Fake::start(take_and_reset).await, Fake::start(take_and_reset).await];
    let gateway = unsuspecting(&[fakes[0].url(), fakes[1].url()]).await;
    let someone = client_of(&gateway, "comfy-1").await;
    let mut sent = 0;
    for path in ["/prompt", "/api/prompt", "/upload/image", "/api/prompt?x=1"] {
        let reply = gateway.post(&someone, path, &long_prompt()).await;
        reply.assert_refusal(502, "upstream_failed");
        assert_eq!(reply.header("connection"), Some("close"), "its connection ends here");
        sent += 1;
        assert_eq!(posts(&fakes[0]) + posts(&fakes[1]), sent, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_is_reset_before_its_answer_goes_elsewhere_and_its_client_too() {
    let resetting = Fake::start(|request| match request.target() {
        "/prompt" => Act::Reply("{}"),
        _ => Act::Reset,
    });
    let fakes = [resetting.await, Fake::replying("second").await];
    let gateway = unsuspecting(&[fakes[0].url(), fakes[1].url()]).await;
    let someone = client_of(&gateway, "comfy-1").await;
    let reply = gateway.get(&someone, "/object_info").await;
    assert_eq!((reply.text().as_str(), reply.backend()), ("second", "comfy-2"));
    assert_eq!(gateway.get(&someone, "/prompt").await.backend(), "comfy-2");
    assert!(fakes[0].seen().iter().any(|request| request.target() == "/object_info"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_had_begun_is_cut_and_not_repeated() {
    let cutting = Fake::start(|request| match request.target() {
        "/prompt" => Act::Reply("{}"),
        _ => Act::ResetInBody,
    });
    let fakes = [cutting.await, Fake::replying("second").await];
    let gateway = unsuspecting(&[fakes[0].url(), fakes[1].url()]).await;
    let someone = client_of(&gateway, "comfy-1").await;
    let request = http::get("/view", &[("x-forwarded-for", &someone)]);
    assert!(try_exchange(gateway.data, &request).await.is_err(), "the body must be seen to be cut");
    assert!(fakes[1].seen().iter().all(|request| request.target() == "/prompt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_sends_any_request_elsewhere() {
    let farm = farm(2).await;
    let gateway = unsuspecting(&[farm[0].url(), farm[1].url()]).await;
    let someone = client_of(&gateway, "comfy-1").await;
    let other = client_of(&gateway, "comfy-1").await;
    farm[0].faults().refuse(true).await;
    let reply = gateway.post(&someone, "/prompt", &long_prompt()).await;
    assert_eq!((reply.status, reply.backend()), (200, "comfy-2"), "{}", reply.text());
    let headers = [("x-forwarded-for", other.as_str())];
    let (_socket, response) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    assert_eq!(socket::backend(&response), "comfy-2");
    gateway.until_state("comfy-1", "down").await;
}

/// A kept-alive connection that the backend closes just when the next request comes says nothing
/// about the backend: its clients must not lose their queue, history and files over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_connection_costs_no_client_its_backend() {
    let closing =
        || Fake::start(|request| if request.nth == 1 { Act::Reply("{}") } else { Act::Reset });
    let fakes = [closing().await, Fake::replying("second").await];
    let gateway = unsuspecting(&[fakes[0].url(), fakes[1].url()]).await;
    let someone = client_of(&gateway, "comfy-1").await;
    for _ in 0..6 {
        let reply = gateway.get(&someone, "/history").await;
        let seen: Vec<_> = fakes[0].seen().iter().map(|r| (r.nth, r.line().to_owned())).collect();
        assert_eq!((reply.status, reply.backend()), (200, "comfy-1"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_failover_clients_wait_for_their_backend() {
    let farm = farm(2).await;
    let gateway = Setup::of(&farm).with(json!({"failover": {"enabled": false}})).start().await;
    let someone = client_of(&gateway, "comfy-1").await;
    farm[0].faults().refuse(true).await;
    gateway.until_state("comfy-1", "down").await;
    let reply = gateway.get(&someone, "/prompt").await;
    reply.assert_refusal(503, "no_backend");
    assert!(reply.header("retry-after").is_some());
    farm[0].faults().refuse(false).await;
    gateway.until_state("comfy-1", "up").await;
    assert_eq!(gateway.get(&someone, "/prompt").await.backend(), "comfy-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_serves_only_while_nobody_else_can() {
    let farm = farm(2).await;
    let backends = json!([
        {"name": "comfy-1", "url": farm[0].url()},
        {"name": "spare", "url": farm[1].url(), "backup": true},
    ]);
    let gateway = Setup::bare(json!({"backends": backends})).start().await;
    for n in 0..20 {
        assert_eq!(gateway.get(client(n), "/prompt").await.backend(), "comfy-1");
    }
    farm[0].faults().refuse(true).await;
    gateway.until_state("comfy-1", "down").await;
    assert_eq!(gateway.get(client(50), "/prompt").await.backend(), "spare");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_over_the_limits_are_refused() {
    let farm = farm(1).await;
    let limits = json!({"limits": {"header_bytes": "8KiB", "header_count": 20, "body_size": 1000}});
    let gateway = Setup::of(&farm).with(limits).start().await;
    let long = "x".repeat(9000);
    let long_head = http::get("/prompt", &[("x-long", &long)]);
    gateway.raw(&long_head).await.assert_refusal(431, "headers_too_large");
    let many: Vec<_> = (0..21).map(|_| ("x-many", "1")).collect();
    let many_headers = http::get("/prompt", &many);
    gateway.raw(&many_headers).await.assert_refusal(431, "headers_too_large");

    let sized = http::head("POST", "/prompt", &[("Content-Length", "1001")]);
    gateway.raw(sized.as_bytes()).await.assert_refusal(413, "body_too_large");
    assert!(!farm[0].requests().iter().any(|(method, _)| method == "POST"));
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let chunked = http::head("POST", "/prompt", &[("Transfer-Encoding", "chunked")]) + &chunk;
    gateway.raw(chunked.as_bytes()).await.assert_refusal(413, "body_too_large");

    // The answer gets through to a client that goes on sending for a while.
    let stream = tokio::net::TcpStream::connect(gateway.data).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let flood = tokio::spawn(async move {
        let head = http::head("POST", "/prompt", &[("Transfer-Encoding", "chunked")]);
        writer.write_all(head.as_bytes()).await?;
        for _ in 0..2000 {
            writer.write_all(format!("3e8\r\n{}\r\n", "x".repeat(1000)).as_bytes()).await?;
        }
        std::io::Result::Ok(())
    });
    let reply = http::read_reply(&mut reader).await.expect("an answer");
    reply.assert_refusal(413, "body_too_large");
    flood.abort();

    // A body of just the limit passes.
    let around = json!({"prompt": {}, "padding": ""}).to_string().len();
    let body = json!({"prompt": {}, "padding": "x".repeat(1000 - around)});
    assert_eq!(body.to_string().len(), 1000);
    let reply = gateway.raw(&http::post("/prompt", &body)).await;
    assert_eq!((reply.status, reply.backend()), (400, "comfy-1"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_400_and_disturb_nobody() {
    let farm = farm(1).await;
    let gateway = Setup::of(&farm).start().await;
    for bytes in [
        "GET /prompt HTTP/1.1\r\n\r\n",
        "GET /prompt HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /prompt HTTP/1.1\nHost: a\n\n",
        "POST /prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /prompt#fragment HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET /view?filename=\"a\" HTTP/1.1\r\nHost: a\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n",
    ] {
        gateway.raw(bytes.as_bytes()).await.assert_refusal(400, "bad_request");
    }
    let bad_chunk = http::head("POST", "/prompt", &[("Transfer-Encoding", "chunked")]) + "zz\r\n";
    gateway.raw(bad_chunk.as_bytes()).await.assert_refusal(400, "bad_request");
    assert_eq!(gateway.get(client(1), "/prompt").await.status, 200);
}
