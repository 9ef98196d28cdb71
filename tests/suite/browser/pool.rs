//! The stock page in front of a farm in pool mode: it cannot tell it from one server.

use std::collections::BTreeSet;
use std::path::Path;

use comfygate::sim::image_of_seed;
use serde_json::{Value, json};

use super::farm::Farm;
use super::page::Workflow;
use super::{BLOCK, Tools};
use crate::support::chrome::{Chrome, Complaints};

const FIRST: Workflow = Workflow { name: "first", seed: 11, seconds: 1.0, steps: 4 };

/// What the queue panel shows, out of the page's own store.
const QUEUE: &str = "document.querySelector('#vue-app').__vue_app__
    .config.globalProperties.$pinia._s.get('queue')";

/// Loads the page in a new tab and runs a workflow to its picture.
async fn complaints_of(chrome: &Chrome, url: &str) -> Complaints {
    chrome.new_tab().await;
    chrome.open_page(url).await;
    chrome.queue(FIRST).await;
    chrome.shows_image_of(FIRST).await;
    chrome.complaints().await
}

/// How many tasks the queue panel counts as running and as pending.
async fn counts(chrome: &Chrome, running: usize, pending: usize) {
    let counted = format!(
        "{QUEUE}.runningTasks.length === {running} && {QUEUE}.pendingTasks.length === {pending}"
    );
    chrome.until(&counted).await;
}

async fn pool(count: u64, web_root: &Path) -> Farm {
    Farm::pool(count, web_root).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_page_complains_of_nothing_that_one_server_lacks_too() {
    let Some(tools) = Tools::find() else { return };
    let alone = Farm::start(1, "ip", Some(&tools.web_root)).await;
    let farm = pool(3, &tools.web_root).await;
    let chrome = Chrome::start(&tools.programs).await;
    let expected = complaints_of(&chrome, &alone.sims[0].url()).await;
    let found = complaints_of(&chrome, &farm.url).await;
    let more = |found: &BTreeSet<String>, expected: &BTreeSet<String>| -> Vec<String> {
        found.difference(expected).cloned().collect()
    };
    assert!(found.console.is_empty() && expected.console.is_empty(), "{found:?}");
    assert!(more(&found.requests, &expected.requests).is_empty(), "{found:?} {expected:?}");
    let posted: usize = farm.sims.iter().map(|sim| Farm::seen(sim, "POST", "/prompt")).sum();
    assert_eq!(posted, 1, "one prompt ran, on one of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_panel_counts_and_clears_and_history_outlives_a_reload() {
    let Some(tools) = Tools::find() else { return };
    let farm = pool(2, &tools.web_root).await;
    let chrome = Chrome::start(&tools.programs).await;
    chrome.open_page(&farm.url).await;
    chrome.queue(FIRST).await;
    chrome.shows_image_of(FIRST).await;
    counts(&chrome, 0, 0).await;
    for _ in 0..4 {
        assert_eq!(chrome.run(BLOCK).await, 200);
    }
    counts(&chrome, 2, 2).await;
    let command = |name: &str| format!("await app.extensionManager.command.execute('{name}')");
    chrome.run(&command("Comfy.ClearPendingTasks")).await;
    counts(&chrome, 2, 0).await;
    chrome.run(&command("Comfy.Interrupt")).await;
    counts(&chrome, 0, 0).await;

    chrome.new_tab().await;
    chrome.open_page(&farm.url).await;
    chrome.until(&format!("{QUEUE}.historyTasks.length === 3")).await;
    let picture = format!(
        "const all = {QUEUE}.historyTasks.flatMap(task => task.flatOutputs ?? []);
         const [found] = all.filter(output => output.filename.startsWith('first'));
         const reply = await fetch(found.url);
         return [reply.status, [...new Uint8Array(await reply.arrayBuffer())]];"
    );
    let [status, bytes] =
        <[Value; 2]>::try_from(chrome.run(&picture).await.as_array().cloned().unwrap_or_default())
            .unwrap();
    assert_eq!((status, bytes), (json!(200), json!(image_of_seed(FIRST.seed))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_each_hear_their_own() {
    const ONE: Workflow = Workflow { name: "one", seed: 1, seconds: 30.0, steps: 4 };
    const TWO: Workflow = Workflow { name: "two", seed: 2, seconds: 30.0, steps: 5 };
    let Some(tools) = Tools::find() else { return };
    let farm = pool(2, &tools.web_root).await;
    let chrome = Chrome::start(&tools.programs).await;
    let first = chrome.client.window().await.unwrap();
    chrome.open_page(&farm.url).await;
    let second = chrome.new_tab().await;
    chrome.open_page(&farm.url).await;
    chrome.show(&first).await;
    chrome.queue(ONE).await;
    chrome.show(&second).await;
    chrome.queue(TWO).await;
    chrome.shows_image_of(TWO).await;
    chrome.show(&first).await;
    chrome.shows_image_of(ONE).await;
    assert_eq!(farm.sims.iter().map(comfygate::sim::Sim::finished).collect::<Vec<_>>(), [1, 1]);
}
