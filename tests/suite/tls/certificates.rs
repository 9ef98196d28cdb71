//! Which certificate is shown to whom, and when; which versions are spoken; which clients may come.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use comfygate::sim::Sim;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{https, quiet};
use crate::support::http::{self, read_reply};
use crate::support::tls::{Authority, GATE, Hand, client, shown};
use crate::support::{Embedded, Fake, Gateway, PATIENCE, Setup, eventually, farm};

fn address(gateway: &Embedded) -> std::net::SocketAddr {
    gateway.data.strip_prefix("http://").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_the_certificate_for_the_name_it_asks_for() {
    let fake = Fake::replying("{}").await;
    let setup = quiet(&fake.url());
    let authority = Authority::new("one");
    let [first, star, exact] = [&[GATE][..], &["*.farm.example"], &["a.farm.example", "127.0.0.1"]]
        .map(|names| authority.issue(names));
    let directory = setup.directory().to_owned();
    let list = [star.write(&directory, "star"), exact.write(&directory, "exact")];
    let tls = json!({"server": {"tls": {"certificates": list}}});
    let setup = setup.with(json!({"server": {"tls": first.write(&directory, "first")}})).with(tls);
    let gateway = setup.embed().await;
    for (name, expected) in [
        (GATE, &first),
        ("b.farm.example", &star),
        ("a.farm.example", &exact),
        ("b.a.farm.example", &first),
        ("farm.example", &first),
        ("elsewhere.example", &first),
        // Nobody asks for an address by name.
        ("127.0.0.1", &first),
    ] {
        let stream = Hand::trusting().shake(address(&gateway), name).await.unwrap();
        assert!(shown(&stream) == expected.der, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_version_can_be_chosen() {
    let fake = Fake::replying("{}").await;
    let authority = Authority::new("one");
    for (more, old_fits) in [(json!({}), true), (json!({"min_version": 1.3}), false)] {
        let gateway = https(quiet(&fake.url()), &authority, &more).embed().await;
        let old = Hand::of(&[&TLS12], None).shake(address(&gateway), GATE).await;
        assert_eq!(old.is_ok(), old_fits, "{more}");
        Hand::of(&[&TLS13], None).shake(address(&gateway), GATE).await.unwrap();
    }
}

/// Asks over a connection of its own; false when the gateway hangs up.
async fn is_served(hand: &Hand, gateway: &Embedded) -> bool {
    let Ok(mut stream) = hand.shake(address(gateway), GATE).await else { return false };
    if stream.write_all(&http::get("/x", &[])).await.is_err() {
        return false;
    }
    read_reply(&mut stream).await.is_ok_and(|reply| reply.status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_certificates_are_wanted_and_checked() {
    let fake = Fake::replying("{}").await;
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (known, stranger) = (ours.issue(&["known"]), theirs.issue(&["stranger"]));
    for (auth, without) in [("required", false), ("optional", true)] {
        let setup = quiet(&fake.url());
        let ca = ours.write(setup.directory(), "clients.pem");
        let more = json!({"client_ca": ca, "client_auth": auth});
        let gateway = https(setup, &ours, &more).embed().await;
        for versions in [&[&TLS12][..], &[&TLS13]] {
            let served = async |own| is_served(&Hand::of(versions, own), &gateway).await;
            assert_eq!(served(None).await, without, "{auth}: without");
            assert!(served(Some(&known)).await, "{auth}: signed by ours");
            assert!(!served(Some(&stranger)).await, "{auth}: signed by theirs");
        }
    }
}

/// A gateway as a process, with a certificate in `server.pem` of its directory.
async fn process(authority: &Authority) -> (Gateway, Setup, Vec<Sim>) {
    let farm = farm(1).await;
    let setup = https(Setup::of(&farm), authority, &json!({}));
    (setup.start().await, setup, farm)
}

async fn shown_now(gateway: &Gateway) -> CertificateDer<'static> {
    shown(&Hand::trusting().shake(gateway.data, GATE).await.unwrap())
}

async fn until_shown(gateway: &Gateway, expected: &CertificateDer<'static>) {
    eventually("the new certificate is shown", PATIENCE, async || {
        shown_now(gateway).await == *expected
    })
    .await;
}

/// Clients of all sorts, each at work until it is told to stop; a failure is a panic.
struct Crowd {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    fn at(gateway: &Gateway, authority: &Authority) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let kinds: [fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder; 3] = [
            |kept_http2| kept_http2,
            |kept_http1| kept_http1.http1_only(),
            |new_each_time| new_each_time.http1_only().pool_max_idle_per_host(0),
        ];
        let url = format!("https://{GATE}:{}/system_stats", gateway.data.port());
        let run = |kind: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
            let http = kind(client(authority, gateway.data)).build().unwrap();
            let (stop, done, url) = (Arc::clone(&stop), Arc::clone(&done), url.clone());
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let reply = http.get(&url).send().await.expect("no request is dropped");
                    assert_eq!(reply.status(), 200);
                    reply.bytes().await.expect("nor an answer");
                    done.fetch_add(1, Relaxed);
                }
            })
        };
        let tasks = kinds.into_iter().cycle().take(6).map(run).collect();
        Self { stop, done, tasks }
    }

    async fn does_more(&self) {
        let before = self.done.load(Relaxed);
        eventually("the crowd goes on", PATIENCE, async || {
            self.done.load(Relaxed) > before + 60
                || self.tasks.iter().any(tokio::task::JoinHandle::is_finished)
        })
        .await;
    }

    async fn ends_well(self) -> usize {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.done.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_under_load_and_nobody_is_dropped() {
    let authority = Authority::new("one");
    let (gateway, setup, _farm) = process(&authority).await;
    let mut standing = Hand::trusting().shake(gateway.data, GATE).await.unwrap();
    let crowd = Crowd::at(&gateway, &authority);
    for _ in 0..3 {
        crowd.does_more().await;
        let next = authority.issue(&[GATE]);
        next.write(setup.directory(), "server");
        until_shown(&gateway, &next.der).await;
    }
    crowd.does_more().await;
    assert!(crowd.ends_well().await > 200);
    standing.write_all(&http::get("/system_stats", &[])).await.unwrap();
    assert_eq!(read_reply(&mut standing).await.unwrap().status, 200);
}

fn spoil(directory: &Path, file: &str, with: &str) {
    std::fs::write(directory.join(file), with).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pair_is_refused_and_the_running_one_stays() {
    let authority = Authority::new("one");
    let (gateway, setup, _farm) = process(&authority).await;
    let running = shown_now(&gateway).await;
    let refused = "server.tls: the certificates have changed and are refused";
    let directory = setup.directory();
    let other = authority.issue(&[GATE]);
    spoil(directory, "server.key", &other.key_pem());
    let line = gateway.until_logged(refused).await;
    assert!(line.contains("server.key: does not work with"), "{line}");
    assert!(shown_now(&gateway).await == running);

    // The signal reads the whole configuration, and refuses it as a whole.
    gateway.signal("HUP").await;
    gateway.until_logged("reload refused").await;
    assert!(shown_now(&gateway).await == running);

    spoil(directory, "server.pem", "nothing of the kind");
    gateway.until_logged("server.pem: holds none").await;
    assert!(shown_now(&gateway).await == running);

    let good = authority.issue(&[GATE]);
    good.write(directory, "server");
    until_shown(&gateway, &good.der).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_other_certificates_and_versions() {
    let authority = Authority::new("one");
    let (gateway, setup, _farm) = process(&authority).await;
    Hand::of(&[&TLS12], None).shake(gateway.data, GATE).await.unwrap();
    let next = authority.issue(&[GATE]);
    let pair = next.write(setup.directory(), "next");
    let setup = setup.with(json!({"server": {"tls": pair}}));
    setup.with(json!({"server": {"tls": {"min_version": "1.3"}}})).write();
    gateway.signal("HUP").await;
    until_shown(&gateway, &next.der).await;
    Hand::of(&[&TLS12], None).shake(gateway.data, GATE).await.unwrap_err();
    assert!(!gateway.has_logged("takes effect with the next start"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_goes_wrong_harms_nobody_else() {
    let authority = Authority::new("one");
    let (gateway, _setup, _farm) = process(&authority).await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0x16, 3, 1, 0, 5, 1], &[0; 600]] {
        let mut tcp = tokio::net::TcpStream::connect(gateway.data).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // Whatever comes, and be it a reset: it ends.
        let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it ends");
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
    }
    shown_now(&gateway).await;
}
