//! The three affinities: what makes two requests one client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use serde_json::json;

use crate::support::http::get;
use crate::support::socket;
use crate::support::{Act, Fake, Gateway, Reply, Setup, client};

const HTML: (&str, &str) = ("Accept", "text/html,*/*");

/// Three backends that answer everything, and a gateway with an affinity in front of them.
async fn trio(affinity: &str) -> (Vec<Fake>, Gateway) {
    let mut fakes = Vec::new();
    for _ in 0..3 {
        fakes.push(Fake::replying("ok").await);
    }
    let urls: Vec<_> = fakes.iter().map(Fake::url).collect();
    let keys = json!({"session": {"affinity": affinity}, "health_check": {"push": false}});
    (fakes, Setup::new(&urls).with(keys).start().await)
}

fn seen_by(fakes: &[Fake], backend: &str) -> Vec<crate::support::Request> {
    let number: usize = backend.strip_prefix("comfy-").unwrap().parse().unwrap();
    fakes[number - 1].seen()
}

/// The cookie a page navigation gets, without its attributes.
async fn cookie(gateway: &Gateway) -> (String, Reply) {
    let reply = gateway.raw(&get("/", &[HTML])).await;
    let line = reply.header("set-cookie").expect("a cookie").to_owned();
    (line.split(';').next().unwrap().to_owned(), reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_clients_and_an_ipv6_network_is_one() {
    let (_fakes, gateway) = trio("ip").await;
    let mut places = Vec::new();
    for n in 0..30 {
        places.push(gateway.get(client(n), "/prompt").await.backend().to_owned());
        assert_eq!(gateway.get(client(n), "/api/queue").await.backend(), places[n]);
    }
    places.sort();
    places.dedup();
    assert_eq!(places, ["comfy-1", "comfy-2", "comfy-3"]);
    for network in 0..10 {
        let one = gateway.get(format!("2001:db8:0:{network}::1"), "/prompt").await;
        let other = gateway.get(format!("2001:db8:0:{network}:ab::2"), "/prompt").await;
        assert_eq!(one.backend(), other.backend());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_a_client_wherever_it_comes_from() {
    let (fakes, gateway) = trio("cookie").await;
    let mut places = Vec::new();
    for _ in 0..12 {
        let (cookie, reply) = cookie(&gateway).await;
        places.push(reply.backend().to_owned());
        for n in 0..3 {
            let address = client(n);
            let with = [("Cookie", cookie.as_str()), ("X-Forwarded-For", &address)];
            let again = gateway.raw(&get("/prompt", &with)).await;
            assert_eq!(again.backend(), reply.backend());
            assert_eq!(again.header("set-cookie"), None);
        }
        let headers = [("cookie", cookie.as_str())];
        let refused = socket::open(gateway.data, "/ws", &headers).await.unwrap_err();
        assert!(refused.to_string().contains("200"), "the fakes know no sockets: {refused}");
        let last = seen_by(&fakes, reply.backend()).pop().unwrap();
        assert_eq!((last.target(), last.header("cookie")), ("/ws", ""));
    }
    places.sort();
    places.dedup();
    assert!(places.len() > 1, "one address, several clients: {places:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_is_for_browsers_pages_and_for_us_alone() {
    let (fakes, gateway) = trio("cookie").await;
    let (mine, reply) = cookie(&gateway).await;
    let line = reply.header("set-cookie").unwrap();
    assert!(line.starts_with("comfygate_session="), "{line}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=3600"] {
        assert!(line.split("; ").any(|part| part == attribute), "{attribute} in {line}");
    }
    assert!(!line.contains("Secure"), "not under TLS: {line}");

    let mixed = format!("a=1; {mine}; b=2");
    let with_mine = gateway.raw(&get("/", &[HTML, ("Cookie", &mixed)])).await;
    assert_eq!((with_mine.backend(), with_mine.header("set-cookie")), (reply.backend(), None));
    let last = seen_by(&fakes, reply.backend()).pop().unwrap();
    assert_eq!(last.header("cookie"), "a=1; b=2");

    // API calls of programs without a cookie go by address and get none.
    let first = gateway.get(client(5), "/prompt").await;
    let second = gateway.get(client(5), "/prompt").await;
    assert_eq!((first.backend(), first.header("set-cookie")), (second.backend(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_cookie_counts_as_none() {
    let (fakes, gateway) = trio("cookie").await;
    let (mine, _) = cookie(&gateway).await;
    let by_address = gateway.get(client(9), "/prompt").await;
    let middle = mine.len() / 2;
    let flipped = if &mine[middle..=middle] == "A" { "B" } else { "A" };
    let tampered = format!("{}{flipped}{}", &mine[..middle], &mine[middle + 1..]);
    let address = client(9);
    for forged in [tampered.as_str(), "comfygate_session=", "comfygate_session=AAAA.BBBB"] {
        let with = [("Cookie", forged), ("X-Forwarded-For", address.as_str())];
        assert_eq!(gateway.raw(&get("/prompt", &with)).await.backend(), by_address.backend());
        let page = gateway.raw(&get("/", &[HTML, with[0], with[1]])).await;
        assert!(page.header("set-cookie").is_some(), "a new one instead of {forged}");
    }
    let last = seen_by(&fakes, by_address.backend()).pop().unwrap();
    assert_eq!(last.header("cookie"), "", "a forged one is ours too");
}

/// A new tab: its prefix, `/@…` without the slash behind it.
async fn tab(gateway: &Gateway, query: &str) -> String {
    let reply = gateway.raw(&get(&format!("/{query}"), &[HTML])).await;
    assert_eq!(reply.status, 302);
    let location = reply.header("location").unwrap();
    let home = location.strip_suffix(query).unwrap();
    assert!(home.starts_with("/@") && home.ends_with('/'), "{location}");
    home.trim_end_matches('/').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_of_one_address_can_use_two_servers() {
    let (fakes, gateway) = trio("tab").await;
    let mut places = Vec::new();
    for _ in 0..12 {
        let tab = tab(&gateway, "?theme=dark").await;
        let page = gateway.raw(&get(&format!("{tab}/"), &[HTML])).await;
        let place = page.backend().to_owned();
        let api = gateway.raw(&get(&format!("{tab}/api/userdata/a%2Fb?x=%2F"), &[])).await;
        assert_eq!(api.backend(), place);
        let refused = socket::open(gateway.data, &format!("{tab}/ws"), &[]).await.unwrap_err();
        assert!(refused.to_string().contains("200"), "the fakes know no sockets: {refused}");
        let seen = seen_by(&fakes, &place);
        let targets: Vec<_> = seen.iter().rev().take(3).map(|r| r.target().to_owned()).collect();
        assert_eq!(targets, ["/ws", "/api/userdata/a%2Fb?x=%2F", "/"]);
        places.push(place);
    }
    places.sort();
    places.dedup();
    assert!(places.len() > 1, "{places:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tabs_prefix_can_name_a_backend_by_hand() {
    let (fakes, gateway) = trio("tab").await;
    for n in 1..=3 {
        let name = format!("comfy-{n}");
        for (path, expected) in
            [("/", "/"), ("/view?filename=a%2Fb.png", "/view?filename=a%2Fb.png")]
        {
            let reply = gateway.raw(&get(&format!("/@{name}{path}"), &[HTML])).await;
            assert_eq!((reply.status, reply.backend()), (200, name.as_str()));
            assert_eq!(seen_by(&fakes, &name).pop().unwrap().target(), expected);
        }
        let encoded = gateway.raw(&get(&format!("/%40{name}/prompt"), &[])).await;
        assert_eq!(encoded.backend(), name);
    }
    let bare = gateway.raw(&get("/@comfy-2?x=1", &[HTML])).await;
    assert_eq!((bare.status, bare.header("location")), (302, Some("/@comfy-2/?x=1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_tab_starts_anew_and_its_requests_go_by_address() {
    let (fakes, gateway) = trio("tab").await;
    let forged = "/@AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let page = gateway.raw(&get(&format!("{forged}/"), &[HTML])).await;
    assert_eq!(page.status, 302);
    let home = page.header("location").unwrap();
    assert!(home.starts_with("/@") && !home.starts_with(forged), "{home}");
    let api = gateway.raw(&get(&format!("{forged}/prompt"), &[])).await;
    let plain = gateway.raw(&get("/prompt", &[])).await;
    assert_eq!(api.backend(), plain.backend());
    assert_eq!(seen_by(&fakes, api.backend())[0].target(), "/prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_the_backend_stays_in_the_tab() {
    let fake = Fake::start(|request| match request.target() {
        "/old" => Act::Raw(
            "HTTP/1.1 302 Found\r\nLocation: /new?x=1\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
        _ => Act::Reply("ok"),
    });
    let fake = fake.await;
    let keys = json!({"session": {"affinity": "tab"}, "health_check": {"push": false}});
    let gateway = Setup::new(&[fake.url()]).with(keys).start().await;
    let tab = tab(&gateway, "").await;
    let reply = gateway.raw(&get(&format!("{tab}/old"), &[])).await;
    assert_eq!(reply.header("location"), Some(format!("{tab}/new?x=1").as_str()));
}
