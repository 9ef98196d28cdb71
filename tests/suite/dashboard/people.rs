//! What an operator does in a browser, in both languages, on a phone and on a wide screen.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{gateway, sim};
use crate::support::Embedded;
use crate::support::chrome::{Chrome, Programs};

/// A killed backend must be seen within this time.
const SEEN_WITHIN: Duration = Duration::from_secs(6);

/// Posts a prompt that runs for long; gives its id.
async fn post_long_prompt(gateway: &Embedded) -> String {
    let prompt = json!({"prompt": {
        "1": {"class_type": "PacedImage", "inputs":
            {"seconds": 300, "steps": 300, "seed": 1, "fail_at": -1, "preview": false}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }});
    let url = format!("{}/prompt", gateway.data);
    let reply = reqwest::Client::new().post(url).json(&prompt).send().await.unwrap();
    let reply: Value = reply.json().await.unwrap();
    reply["prompt_id"].as_str().expect("a prompt id").to_owned()
}

fn row(name: &str) -> String {
    format!("#rows tr[data-name=\"{name}\"]")
}

/// Waits until the backend's row says a state by this word.
async fn says(chrome: &Chrome, name: &str, word: &str) {
    let row = row(name);
    chrome
        .until(&format!("document.querySelector('{row} [data-f=state]')?.textContent === '{word}'"))
        .await;
}

async fn an_operators_day(lang: &str, width: u32, words: [&str; 4]) {
    let Some(programs) = Programs::find() else { return };
    let [up, draining, down, cancelled] = words;
    let (one, two, three) = (sim(1).await, sim(2).await, sim(3).await);
    let gateway = gateway(&[&one, &two], None).await;
    let chrome = Chrome::start(&programs).await;
    chrome.be_wide(width).await;
    chrome.client.goto(&format!("{}/?lang={lang}", gateway.admin)).await.unwrap();
    chrome.until("document.querySelector('#link').dataset.link === 'live'").await;
    // The switch is remembered, and nothing below loads the page again.
    chrome.client.goto(&format!("{}/", gateway.admin)).await.unwrap();
    let shown = chrome.until("document.documentElement.lang").await;
    assert!(shown.as_str().unwrap().starts_with(lang), "{shown}");
    chrome.until("document.querySelector('#link').dataset.link === 'live'").await;
    chrome.value("(window.same = true)").await;
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(chrome.value(overflow).await, json!(0), "the page is as wide as the screen");

    chrome.click("details.add summary").await;
    chrome.fill(".add input[name=name]", "third").await;
    chrome.fill(".add input[name=url]", &three.url()).await;
    chrome.click(".add button").await;
    says(&chrome, "third", up).await;
    chrome.until("document.querySelector('[data-tile=total]').textContent === '3'").await;

    chrome.click(&format!("{} button[value=drain]", row("third"))).await;
    says(&chrome, "third", draining).await;
    chrome
        .until(&format!(
            "document.querySelector('{} [value=drain]').ariaPressed === 'true'",
            row("third")
        ))
        .await;

    let task = post_long_prompt(&gateway).await;
    let task = format!("#tasks tr[data-task=\"{task}\"]");
    chrome.until(&format!("document.querySelector('{task} form:not([hidden])')")).await;
    chrome.click(&format!("{task} form button")).await;
    chrome
        .until(&format!(
            "document.querySelector('{task} [data-f=state]').textContent === '{cancelled}'"
        ))
        .await;

    two.kill().await;
    let killed = Instant::now();
    says(&chrome, "gpu-2", down).await;
    let took = killed.elapsed();
    assert!(took < SEEN_WITHIN, "{took:?}");
    let colour = |name: &str| {
        let pill = format!("{} [data-f=state]", row(name));
        format!("getComputedStyle(document.querySelector('{pill}')).color")
    };
    let red = chrome.until(&format!("{} === 'rgb(180, 35, 35)'", colour("gpu-2"))).await;
    assert_eq!(red, json!(true));
    // Told by an event of its own, which comes after the one that colours the row.
    let heard = "document.querySelector('#heard').textContent";
    chrome.until(&format!("{heard}.includes('gpu-2: {down}')")).await;

    chrome.click(&format!("{} details.remove summary", row("gpu-2"))).await;
    chrome.click(&format!("{} button[value=remove]", row("gpu-2"))).await;
    chrome.until(&format!("!document.querySelector('{}')", row("gpu-2"))).await;

    assert_eq!(chrome.value("window.same === true").await, json!(true), "loaded again");
    let warnings = chrome.warnings().await;
    assert!(warnings.is_empty(), "{warnings:#?}");
    chrome.client.clone().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_works_in_english_on_a_wide_screen() {
    an_operators_day("en", 1600, ["up", "draining", "down", "cancelled"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_works_in_chinese_on_a_phone() {
    an_operators_day("zh", 390, ["正常", "排空中", "故障", "已取消"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_with_the_token_acts_and_logs_out() {
    let Some(programs) = Programs::find() else { return };
    let one = sim(1).await;
    let gateway = gateway(&[&one], Some("the-right-token")).await;
    let chrome = Chrome::start(&programs).await;
    chrome.client.goto(&gateway.admin).await.unwrap();
    chrome.until("location.pathname === '/login'").await;
    chrome.fill("#token", "the-right-token").await;
    chrome.click(".login button").await;
    chrome.until("document.querySelector('#link')?.dataset.link === 'live'").await;

    let task = post_long_prompt(&gateway).await;
    chrome.until(&format!("document.querySelector('#tasks tr[data-task=\"{task}\"]')")).await;
    chrome.click("#rows button[value=disable]").await;
    chrome
        .until("document.querySelector('#rows [data-f=state]').dataset.state === 'disabled'")
        .await;
    let warnings = chrome.warnings().await;
    assert!(warnings.is_empty(), "{warnings:#?}");

    chrome.click("form[action='/dashboard/logout'] button").await;
    chrome.until("location.pathname === '/login'").await;
    chrome.client.clone().close().await.unwrap();
}
