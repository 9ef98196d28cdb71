//! A login in a real browser: the page, the cookie that its WebSocket carries, and what an evil page
//! can do with it.

use serde_json::json;

use super::farm::Farm;
use super::{QUICK, Tools, evil_site};
use crate::support::chrome::Chrome;
use crate::support::{PATIENCE, eventually};

async fn log_in(chrome: &Chrome, password: &str) {
    chrome.until("document.querySelector('#password') !== null").await;
    let fill = format!(
        "document.getElementById('user').value = 'anna';
         document.getElementById('password').value = '{password}';
         document.querySelector('button').click()"
    );
    chrome.run(&fill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_and_works_and_an_evil_page_cannot_in_their_name() {
    let Some(tools) = Tools::find() else { return };
    let password_hash = comfygate::auth::password::hash("hunter2").unwrap();
    let users = json!([{"name": "anna", "password_hash": password_hash, "rights": ["admin"]}]);
    let keys = json!({"auth": {"users": users}, "health_check": {"push": false}});
    let farm = Farm::with(1, Some(&tools.web_root), keys).await;
    let chrome = Chrome::start(&tools.programs).await;

    chrome.client.goto(&farm.url).await.unwrap();
    log_in(&chrome, "wrong").await;
    chrome.until("document.querySelector('#wrong') !== null").await;
    assert_eq!(Farm::seen(&farm.sims[0], "GET", "/"), 0);
    log_in(&chrome, "hunter2").await;
    chrome.until("document.title === 'ComfyUI'").await;
    assert_eq!(chrome.run("return document.cookie.includes('comfygate_login')").await, false);
    chrome.new_tab().await;
    chrome.open_page(&farm.url).await;
    chrome.queue(QUICK).await;
    chrome.shows_image_of(QUICK).await;
    let refused = chrome.complaints().await.requests;
    // Browsers ask for it without cookies.
    let others = refused.iter().filter(|one| !one.contains("manifest") && !one.starts_with("404"));
    assert_eq!(others.count(), 0, "{refused:?}");
    let caller = "return (await (await fetch('/lb/session')).json()).caller";
    assert_eq!(chrome.run(caller).await, "anna");

    // The evil page is visited by somebody who is logged in here.
    let posts = Farm::seen(&farm.sims[0], "POST", "/api/prompt");
    let sockets = Farm::seen(&farm.sims[0], "GET", "/ws");
    let port = evil_site().await;
    for host in ["localhost", "127.0.0.1"] {
        chrome.new_tab().await;
        let url = format!("http://{host}:{port}/?{host}#{}", farm.url);
        chrome.client.goto(&url).await.unwrap();
        assert_eq!(chrome.run("return await attack()").await, "closed", "{host}");
        // A link that a server would act on, though it is a mere GET.
        chrome.run(&format!("location.href = '{}/manager/reboot'", farm.url)).await;
        eventually("the link's reply", PATIENCE, async || {
            let source = chrome.client.source().await;
            source.is_ok_and(|source| source.contains(r#""type":"forbidden""#))
        })
        .await;
    }
    assert_eq!(Farm::seen(&farm.sims[0], "POST", "/api/prompt"), posts);
    assert_eq!(Farm::seen(&farm.sims[0], "GET", "/ws"), sockets);
    assert_eq!(Farm::seen(&farm.sims[0], "GET", "/manager/reboot"), 0);

    chrome.new_tab().await;
    chrome.client.goto(&format!("{}/lb/login", farm.url)).await.unwrap();
    chrome.run("document.querySelector('button').click()").await;
    chrome.until("document.querySelector('#password') !== null").await;
    chrome.client.goto(&farm.url).await.unwrap();
    chrome.until("location.pathname === '/lb/login'").await;
}
