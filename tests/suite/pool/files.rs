//! Uploads are wherever they are needed, outputs are told apart and can be worked on.

use serde_json::{Value, json};

use super::painter::{Painter, paced};
use super::{pool, quick_farm};
use comfygate::sim::image_of_seed;

async fn upload(painter: &Painter, name: &str, bytes: Vec<u8>) -> Value {
    let part = reqwest::multipart::Part::bytes(bytes).file_name(name.to_owned());
    let form = reqwest::multipart::Form::new().part("image", part);
    let reply = painter.http.post(format!("{}/upload/image", painter.base)).multipart(form);
    let reply = reply.send().await.unwrap();
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

/// Loads a picture and saves it, after so many seconds.
fn copy_of(image: &str) -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_there_wherever_its_prompt_runs() {
    let farm = quick_farm(3).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "uploader").await;
    let picture = image_of_seed(11);
    let named = upload(&painter, "mine.png", picture.clone()).await;
    assert_eq!(named, json!({"name": "mine.png", "subfolder": "", "type": "input"}));
    assert_eq!(upload(&painter, "mine.png", image_of_seed(12)).await["name"], "mine (1).png");
    assert_eq!(upload(&painter, "mine.png", picture.clone()).await["name"], "mine.png");
    let mut prompts = Vec::new();
    for _ in 0..6 {
        prompts.push(painter.paint(copy_of("mine.png")).await);
    }
    for prompt in &prompts {
        let entry = painter.entry(prompt).await;
        let image = &entry["outputs"]["2"]["images"][0];
        assert_eq!(painter.view(image).await, (200, picture.clone()), "{entry}");
        assert_eq!(entry["prompt"][2]["1"]["inputs"]["image"], "mine.png");
    }
    let input = json!({"filename": "mine (1).png", "subfolder": "", "type": "input"});
    assert_eq!(painter.view(&input).await, (200, image_of_seed(12)));
    let offered = painter.get("/object_info/LoadImage").await;
    let offered = offered["LoadImage"]["input"]["required"]["image"][0].as_array().unwrap().clone();
    assert!(offered.contains(&json!("mine.png")), "{offered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_of_one_server_is_an_input_on_any() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "reuser").await;
    let made = painter.paint(paced(21, 0.1)).await;
    let image = painter.entry(&made).await["outputs"]["2"]["images"][0].clone();
    let path =
        format!("{}/{}", image["subfolder"].as_str().unwrap(), image["filename"].as_str().unwrap());
    let annotated = format!("{path} [output]");
    for _ in 0..3 {
        let copy = painter.paint(copy_of(&annotated)).await;
        let entry = painter.entry(&copy).await;
        assert_eq!(painter.view(&entry["outputs"]["2"]["images"][0]).await.1, image_of_seed(21));
        assert_eq!(entry["prompt"][2]["1"]["inputs"]["image"], annotated, "as it was posted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_its_prefix_is_never_anothers() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "plain").await;
    let (one, two) = (painter.paint(paced(1, 1.0)).await, painter.paint(paced(2, 1.0)).await);
    let first = painter.entry(&one).await["outputs"]["2"]["images"][0].clone();
    let second = painter.entry(&two).await["outputs"]["2"]["images"][0].clone();
    assert_eq!(first["filename"], second["filename"], "both servers began to count at one");
    assert_ne!(first["subfolder"], second["subfolder"]);
    let bare = json!({"filename": first["filename"], "subfolder": "", "type": "output"});
    let stranger = painter
        .http
        .get(format!("{}/view?filename={}", painter.base, bare["filename"].as_str().unwrap()))
        .header("x-forwarded-for", "10.7.7.7")
        .send()
        .await
        .unwrap();
    assert_eq!(stranger.status(), 404, "two servers have one of that name");
    let unknown = json!({"filename": "nothing.png", "subfolder": "", "type": "output"});
    assert_eq!(painter.view(&unknown).await.0, 404);
    let elsewhere =
        json!({"filename": first["filename"], "subfolder": "@nobody", "type": "output"});
    assert_eq!(painter.view(&elsewhere).await.0, 404);
}

/// What the page asks for: thumbnails, ranges, files that it lists, under `/api` as well.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_shown_in_every_form_that_the_page_asks_for() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "viewer").await;
    let made = painter.paint(paced(31, 0.1)).await;
    let image = painter.entry(&made).await["outputs"]["2"]["images"][0].clone();
    let (name, subfolder) =
        (image["filename"].as_str().unwrap(), image["subfolder"].as_str().unwrap());
    let view = async |path: String, range: Option<&str>| {
        let mut asked = painter.http.get(format!("{}{path}", gateway.data));
        if let Some(range) = range {
            asked = asked.header("range", range);
        }
        let reply = asked.send().await.unwrap();
        let kind = reply.headers()["content-type"].to_str().unwrap().to_owned();
        (reply.status().as_u16(), kind, reply.bytes().await.unwrap())
    };
    let encoded = subfolder.replace('@', "%40");
    for api in ["", "/api"] {
        let plain = format!("{api}/view?filename={name}&type=output&subfolder={encoded}&rand=0.5");
        let (status, kind, bytes) = view(plain.clone(), None).await;
        assert_eq!((status, kind.as_str()), (200, "image/png"));
        assert_eq!(bytes, image_of_seed(31));
        let (status, _, part) = view(plain.clone(), Some("bytes=8-15")).await;
        assert_eq!((status, &part[..]), (206, &image_of_seed(31)[8..16]));
        for (preview, expected) in [("webp;75", "image/webp"), ("jpeg;50", "image/jpeg")] {
            let (status, kind, _) = view(format!("{plain}&preview={preview}"), None).await;
            assert_eq!((status, kind.as_str()), (200, expected));
        }
        let (status, kind, _) = view(format!("{plain}&channel=a"), None).await;
        assert_eq!((status, kind.as_str()), (200, "image/png"));
    }
    let listed = painter.get("/internal/files/output").await;
    let [choice] = &listed.as_array().unwrap()[..] else { panic!("{listed}") };
    let choice = choice.as_str().unwrap();
    // The page puts what stands before the last slash into `subfolder`, or does not take it apart;
    // in a list of inputs it marks an output.
    let (folder, file) = choice.rsplit_once('/').unwrap();
    for query in [
        format!("filename={file}&subfolder={folder}&type=output"),
        format!("filename={file} [output]&subfolder={folder}&type=input"),
        format!("filename={choice} [output]&type=input&subfolder="),
        format!("filename={choice}&type=output"),
    ] {
        let path = format!("/api/view?{}", query.replace(' ', "%20").replace('@', "%40"));
        let (status, _, bytes) = view(path.clone(), None).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&bytes));
        assert_eq!(bytes, image_of_seed(31), "{path}");
    }
    let copy = painter.paint(copy_of(&format!("{choice} [output]"))).await;
    let entry = painter.entry(&copy).await;
    assert_eq!(painter.view(&entry["outputs"]["2"]["images"][0]).await.1, image_of_seed(31));
}
