//! Results outlive the servers that made them (`pool.keep_outputs`).

use serde_json::{Value, json};

use super::failover::farm::Farm;
use super::failover::stubborn::Stubborn;
use super::painter::paced;
use crate::support::{PATIENCE, eventually};

/// The first picture of a prompt, as its history names it, and the number of its backend.
async fn picture(client: &Stubborn, prompt: &str) -> (Value, usize) {
    let file = client.entry(prompt).await["outputs"]["2"]["images"][0].clone();
    let name = file["subfolder"].as_str().unwrap().strip_prefix("@comfy-").unwrap();
    let number: usize = name.parse().unwrap();
    (file, number - 1)
}

/// `GET /view` of a file with more in the query: status, headers and body.
async fn view(
    farm: &Farm,
    file: &Value,
    more: &str,
    range: Option<&str>,
) -> (u16, String, Vec<u8>) {
    let text = |name: &str| file[name].as_str().unwrap();
    let (name, folder, kind) = (text("filename"), text("subfolder"), text("type"));
    let path = format!("/view?filename={name}&subfolder={folder}&type={kind}{more}");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = http.get(format!("{}{path}", farm.base()));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let reply = request.send().await.unwrap();
    let (status, headers) = (reply.status().as_u16(), format!("{:?}", reply.headers()));
    (status, headers, reply.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_read_after_its_backend_was_killed_and_its_disk_lost() {
    let mut farm = Farm::start(2, json!({"pool": {"keep_outputs": "100MB"}})).await;
    let client = Stubborn::connect(&farm.base(), "collector");
    let prompt = client.paint(paced(7, 0.1)).await;
    client.succeeded(&prompt, 7).await;
    let (file, maker) = picture(&client, &prompt).await;
    farm.sims[maker].kill();
    std::fs::remove_dir_all(farm.folder(maker)).unwrap();

    // At once, before anybody has noticed; and in parts, and as a preview.
    let (status, headers, whole) = view(&farm, &file, "", None).await;
    assert_eq!((status, &*whole), (200, &*comfygate::sim::image_of_seed(7)));
    assert!(headers.contains("image/png") && !headers.contains("x-comfygate-backend"), "{headers}");
    let (status, headers, part) = view(&farm, &file, "", Some("bytes=10-19")).await;
    assert_eq!((status, &*part), (206, &whole[10..20]), "{headers}");
    let (status, headers, _) = view(&farm, &file, "&preview=jpeg", None).await;
    assert!(status == 200 && headers.contains("image/jpeg"), "{status} {headers}");

    // The gateway's own restart changes nothing, and neither does the return of the backend with an
    // empty disk.
    farm.kill_gateway().await;
    farm.start_gateway().await;
    assert_eq!(view(&farm, &file, "", None).await.2, whole);
    farm.sims[maker].revive().await;
    farm.ready(2).await;
    assert_eq!(view(&farm, &file, "", None).await.2, whole);
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777
    };
    let kept = farm.state_dir().join("outputs");
    assert_eq!(mode(&kept), 0o700);
    let blob = walk(&kept.join("blobs")).pop().unwrap();
    assert_eq!(mode(&blob), 0o600);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let inside = entries.flat_map(|entry| match entry.path() {
        path if path.is_dir() => walk(&path),
        path => vec![path],
    });
    inside.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_bounded_the_oldest_go_and_equal_ones_are_kept_once() {
    // A few fit.
    let image = (1..=8).map(|seed| comfygate::sim::image_of_seed(seed).len()).max().unwrap();
    let limit = image as u64 * 9 / 2;
    let mut farm = Farm::start(1, json!({"pool": {"keep_outputs": limit}})).await;
    let client = Stubborn::connect(&farm.base(), "hoarder");
    let mut files = Vec::new();
    for seed in 1..=8 {
        let prompt = client.paint(paced(seed, 0.02)).await;
        client.succeeded(&prompt, seed).await;
        files.push(picture(&client, &prompt).await.0);
    }
    let size = || {
        walk(&farm.state_dir().join("outputs/blobs"))
            .iter()
            .map(|path| path.metadata().unwrap().len())
            .sum::<u64>()
    };
    assert!(size() <= limit && size() > limit / 3, "{} of {limit}", size());
    let before = size();
    let again = client.paint(paced(8, 0.02)).await;
    client.succeeded(&again, 8).await;
    assert_eq!(size(), before, "the same picture under another name");
    farm.sims[0].kill();
    std::fs::remove_dir_all(farm.folder(0)).unwrap();
    assert_eq!(view(&farm, &files[7], "", None).await.2, comfygate::sim::image_of_seed(8));
    eventually("the backend's death is noticed", PATIENCE, async || {
        view(&farm, &files[0], "", None).await.0 == 502
    })
    .await;
}
