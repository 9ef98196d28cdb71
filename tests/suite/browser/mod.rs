//! The pages in a real browser: the stock ComfyUI page and the simulator's small one, straight and
//! through the gateway, and what a page of another site may do.

// clippy.toml lets tests do this; it does not see that a test's helpers are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod farm;
mod login;
mod page;
mod pool;
mod secure;

use std::path::{Path, PathBuf};

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use farm::Farm;
use page::Workflow;

use crate::support::chrome::{Chrome, Programs, found};
use crate::support::{PATIENCE, eventually};

/// What a browser test needs besides cargo.
struct Tools {
    programs: Programs,
    /// The stock page's static folder.
    web_root: PathBuf,
}

impl Tools {
    fn find() -> Option<Self> {
        found(Self::look())
    }

    fn look() -> Result<Self, &'static str> {
        let programs = Programs::look()?;
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web-root/static");
        let web_root = std::env::var_os("COMFYGATE_WEB_ROOT").map_or_else(default, PathBuf::from);
        if !web_root.join("index.html").is_file() {
            return Err("the stock page is missing (tests/fetch-web-root.sh brings it)");
        }
        Ok(Self { programs, web_root })
    }
}

/// What a ComfyUI without saved settings and workflows says 404 to when its page is loaded, as
/// recorded; the icon the browser asks for by itself comes on top.
const ABSENT_ON_ANY_SERVER: [&str; 5] = [
    "404 GET /user.css",
    "404 GET /api/userdata/user.css",
    "404 GET /api/userdata",
    "404 GET /api/userdata/comfy.templates.json",
    "404 GET /favicon.ico",
];

const QUICK: Workflow = Workflow { name: "quick", seed: 7, seconds: 1.0, steps: 4 };

/// Loads the page in a new tab (the one before would ask whether it may be left) and runs.
async fn loads_and_runs(chrome: &Chrome, url: &str) {
    chrome.new_tab().await;
    chrome.open_page(url).await;
    chrome.queue(QUICK).await;
    chrome.shows_image_of(QUICK).await;
    let complaints = chrome.complaints().await;
    assert!(complaints.console.is_empty(), "{:?}", complaints.console);
    let unknown: Vec<_> = (complaints.requests.iter())
        .filter(|failed| !ABSENT_ON_ANY_SERVER.contains(&failed.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{url}: {unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_page_loads_and_runs_a_workflow_straight_and_through_the_gateway() {
    let Some(tools) = Tools::find() else { return };
    let farm = Farm::start(2, "ip", Some(&tools.web_root)).await;
    let straight = Farm::start(1, "ip", Some(&tools.web_root)).await;
    let chrome = Chrome::start(&tools.programs).await;
    loads_and_runs(&chrome, &straight.sims[0].url()).await;
    loads_and_runs(&chrome, &farm.url).await;

    let home = chrome.backend_of_page().await;
    for sim in &farm.sims {
        let count = usize::from(sim.addr() == farm.sim(&home).addr());
        for (method, path) in [("GET", "/"), ("GET", "/ws"), ("POST", "/api/prompt")] {
            assert_eq!(Farm::seen(sim, method, path), count, "{method} {path} of {sim:?}");
        }
        assert_eq!(sim.sockets(), count, "{sim:?}");
    }
}

/// A prompt that runs on the tab's server until it is interrupted.
const BLOCK: &str =
    "const inputs = {seconds: 600, steps: 1000, seed: 0, fail_at: -1, preview: false};
    const prompt = {1: {class_type: 'PacedImage', inputs},
        2: {class_type: 'PreviewImage', inputs: {images: ['1', 0]}}};
    const body = JSON.stringify({prompt, client_id: 'blocker'});
    return (await app.api.fetchApi('/prompt', {method: 'POST', body})).status";

/// The second tab is opened while the first one's server has work, so that it belongs to another
/// one; both have a prompt under way then, and each shows the image that it asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_of_one_address_use_two_servers_with_page_api_and_socket() {
    const ONE: Workflow = Workflow { name: "one", seed: 1, seconds: 1.0, steps: 4 };
    const TWO: Workflow = Workflow { name: "two", seed: 2, seconds: 1.0, steps: 4 };
    let Some(tools) = Tools::find() else { return };
    let farm = Farm::start(3, "tab", Some(&tools.web_root)).await;
    let chrome = Chrome::start(&tools.programs).await;

    let first = chrome.client.window().await.unwrap();
    chrome.open_page(&farm.url).await;
    let first_path = chrome.client.current_url().await.unwrap().path().to_owned();
    let first_home = chrome.backend_of_page().await;
    assert_eq!(chrome.run(BLOCK).await, 200);
    chrome.queue(ONE).await;

    chrome.new_tab().await;
    chrome.open_page(&farm.url).await;
    let second_path = chrome.client.current_url().await.unwrap().path().to_owned();
    let second_home = chrome.backend_of_page().await;
    assert!(first_path.starts_with("/@") && second_path.starts_with("/@"));
    assert_ne!(first_path, second_path);
    assert_ne!(first_home, second_home);

    chrome.queue(TWO).await;
    chrome.shows_image_of(TWO).await;
    assert_eq!(farm.sim(&first_home).finished(), 0);
    chrome.show(&first).await;
    chrome.run("await app.api.fetchApi('/interrupt', {method: 'POST'})").await;
    chrome.shows_image_of(ONE).await;

    for (number, sim) in (1..).zip(&farm.sims) {
        let name = format!("comfy-{number}");
        let is_first = usize::from(name == first_home);
        let tabs = is_first + usize::from(name == second_home);
        for (method, path, count) in [
            ("GET", "/", tabs),
            ("GET", "/ws", tabs),
            ("GET", "/api/object_info", tabs),
            ("POST", "/api/prompt", tabs + is_first),
            ("POST", "/api/interrupt", is_first),
        ] {
            assert_eq!(Farm::seen(sim, method, path), count, "{method} {path} of {name}");
        }
        assert_eq!(Farm::seen(sim, "GET", "/api/view") > 0, tabs > 0, "{name}");
        assert_eq!(sim.sockets(), tabs, "{name}");
        // What the gateway asks for its own sake; the page asks under `/api`.
        let its_own = ["/api/queue", "/system_stats", "/object_info"];
        let left_alone = sim.requests().iter().all(|(_, path)| its_own.contains(&path.as_str()));
        assert!(tabs > 0 || left_alone, "{name}: {:?}", sim.requests());
    }
    // The page asks for its icons alone by absolute addresses.
    let unprefixed = chrome.complaints().await.unprefixed;
    assert!(unprefixed.iter().all(|path| path.contains("favicon")), "{unprefixed:?}");
}

/// Custom nodes often write `/view?…` where the stock page would write `api/view?…`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absolute_addresses_in_a_tab_belong_to_it() {
    let Some(tools) = Tools::find() else { return };
    let farm = Farm::start(3, "tab", None).await;
    let chrome = Chrome::start(&tools.programs).await;
    for name in ["comfy-1", "comfy-2", "comfy-3"] {
        chrome.client.goto(&format!("{}/@{name}/", farm.url)).await.unwrap();
        let script = "return (await fetch('/system_stats')).headers.get('x-comfygate-backend')";
        assert_eq!(chrome.run(script).await, name);
        assert!(chrome.complaints().await.unprefixed.contains("/system_stats"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_small_page_runs_a_prompt_under_every_affinity() {
    let Some(tools) = Tools::find() else { return };
    let chrome = Chrome::start(&tools.programs).await;
    for affinity in ["ip", "cookie", "tab"] {
        let farm = Farm::start(2, affinity, None).await;
        chrome.client.goto(&farm.url).await.unwrap();
        chrome.until("document.getElementById('socket').textContent === 'open'").await;
        chrome.until("document.getElementById('server').textContent.startsWith('comfy-')").await;
        chrome.run("document.getElementById('run').click()").await;
        chrome.until("document.getElementById('state').textContent === 'done'").await;
        let image = "document.getElementById('image')";
        chrome
            .until(&format!("{image}.src.includes('/view?') && {image}.naturalWidth === 64"))
            .await;
        chrome.until("document.getElementById('progress').position === 1").await;
        let complaints = chrome.complaints().await;
        assert!(complaints.console.is_empty(), "{affinity}: {complaints:?}");
    }
}

/// A page that tries what a page of another site can try, at the address in its fragment.
const EVIL: &str = r#"<!doctype html><title>evil</title>
<form method="post" enctype="text/plain"><input name='{"prompt":{},"x":"' value='"}'></form>
<script>
const target = location.hash.slice(1);
document.forms[0].action = target + '/api/prompt';
async function attack() {
  const post = path => fetch(target + path, {method: 'POST', mode: 'no-cors', body: '{}'});
  await Promise.allSettled(['/prompt', '/api/interrupt', '/queue'].map(post));
  return await new Promise(end => {
    const socket = new WebSocket(target.replace('http', 'ws') + '/ws?clientId=evil');
    socket.onopen = () => end('opened');
    socket.onclose = () => end('closed');
  });
}
</script>"#;

async fn evil_site() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = Router::new().route("/", get(|| async { Html(EVIL) }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_site_gets_nothing_while_the_stock_page_works() {
    let Some(tools) = Tools::find() else { return };
    let farm = Farm::start(1, "ip", Some(&tools.web_root)).await;
    let port = evil_site().await;
    let chrome = Chrome::start(&tools.programs).await;

    // Another site, and the same host under another port: to a browser the latter is the same site.
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("http://{host}:{port}/?{host}#{}", farm.url);
        chrome.client.goto(&url).await.unwrap();
        assert_eq!(chrome.run("return await attack()").await, "closed", "{host}");
        chrome.run("document.forms[0].submit()").await;
        eventually("the form's reply", PATIENCE, async || {
            let source = chrome.client.source().await;
            source.is_ok_and(|source| source.contains(r#""type":"forbidden""#))
        })
        .await;
        let refused = chrome.complaints().await.requests;
        for expected in [
            "403 POST /prompt",
            "403 POST /api/interrupt",
            "403 POST /queue",
            "403 POST /api/prompt",
            "403 WS /ws",
        ] {
            assert!(refused.contains(expected), "{host}: {expected} not in {refused:?}");
        }
    }
    let requests = farm.sims[0].requests();
    let reached: Vec<_> =
        requests.iter().filter(|(method, path)| method == "POST" || path.contains("ws")).collect();
    assert!(reached.is_empty(), "{reached:?}");

    loads_and_runs(&chrome, &farm.url).await;
}
