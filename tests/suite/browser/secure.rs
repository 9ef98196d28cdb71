//! The stock page by https, HTTP/2 and a public name: it loads, uploads, runs and shows.

use serde_json::json;

use super::farm::Farm;
use super::page::Workflow;
use super::{ABSENT_ON_ANY_SERVER, Tools};
use crate::support::chrome::Chrome;
use crate::support::tls::GATE;

const FIRST: Workflow = Workflow { name: "secure", seed: 5, seconds: 1.0, steps: 4 };

/// Uploads a picture as the page does, has it loaded and saved, and gives back whether what is shown
/// is the same.
const UPLOADS_AND_RUNS: &str = "
    const canvas = new OffscreenCanvas(8, 8);
    const pen = canvas.getContext('2d');
    pen.fillStyle = 'white';
    pen.fillRect(0, 0, 8, 8);
    pen.fillStyle = 'red';
    pen.fillRect(0, 0, 4, 8);
    const picture = await canvas.convertToBlob({type: 'image/png'});
    const form = new FormData();
    form.append('image', picture, 'mine.png');
    const sent = await app.api.fetchApi('/upload/image', {method: 'POST', body: form});
    const {name} = await sent.json();
    const prompt = {
        1: {class_type: 'LoadImage', inputs: {image: name}},
        2: {class_type: 'SaveImage', inputs: {images: ['1', 0], filename_prefix: 'up'}}};
    const done = new Promise(done => app.api.addEventListener('executed', ({detail}) => {
        if (detail.output.images?.[0].filename.startsWith('up')) done(detail.output.images[0]);
    }));
    const body = JSON.stringify({prompt, client_id: app.api.clientId});
    const queued = await app.api.fetchApi('/prompt', {method: 'POST', body});
    if (queued.status !== 200) return await queued.text();
    const shown = await app.api.fetchApi('/view?' + new URLSearchParams(await done));
    const pixels = async blob => {
        const canvas = new OffscreenCanvas(8, 8).getContext('2d');
        canvas.drawImage(await createImageBitmap(blob), 0, 0);
        return [...canvas.getImageData(0, 0, 8, 8).data].join();
    };
    return await pixels(await shown.blob()) === await pixels(picture);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_page_works_by_https_and_http2_under_a_public_name() {
    let Some(tools) = Tools::find() else { return };
    for mode in ["sticky", "pool"] {
        let keys = json!({"mode": mode, "health_check": {"push": false}});
        let (farm, key) = Farm::secure(&tools.web_root, keys).await;
        let chrome = Chrome::believing(&tools.programs, Some(&key)).await;
        chrome.open_page(&farm.url).await;
        assert_eq!(
            chrome.value("location.protocol + location.hostname").await,
            format!("https:{GATE}")
        );
        let protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
        assert_eq!(chrome.value(protocol).await, "h2", "{mode}");
        let others = "[...new Set(performance.getEntriesByType('resource')
            .map(entry => entry.nextHopProtocol).filter(Boolean))].join()";
        assert_eq!(chrome.value(others).await, "h2", "{mode}");
        assert!(chrome.value("app.api.socket.url").await.as_str().unwrap().starts_with("wss://"));

        chrome.queue(FIRST).await;
        chrome.shows_image_of(FIRST).await;
        assert_eq!(chrome.run(UPLOADS_AND_RUNS).await, true, "{mode}");
        let complaints = chrome.complaints().await;
        assert!(complaints.console.is_empty(), "{mode}: {:?}", complaints.console);
        let unknown: Vec<_> = (complaints.requests.iter())
            .filter(|failed| !ABSENT_ON_ANY_SERVER.contains(&failed.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{mode}: {unknown:?}");
    }
}
