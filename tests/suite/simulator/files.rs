//! Uploads, views and user data.

use comfygate::sim::{Sim, image_of_seed};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::{fast, get, get_json, idle, paced, post, queue};

async fn upload(sim: &Sim, path: &str, content: Vec<u8>, fields: &[(&str, &str)]) -> Response {
    let mut form = Form::new().part("image", Part::bytes(content).file_name("pic.png"));
    for (name, value) in fields {
        form = form.text((*name).to_owned(), (*value).to_owned());
    }
    Client::new().post(format!("{}{path}", sim.url())).multipart(form).send().await.unwrap()
}

async fn uploaded(sim: &Sim, content: &str, fields: &[(&str, &str)]) -> Value {
    let reply = upload(sim, "/upload/image", content.into(), fields).await;
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

#[tokio::test]
async fn uploads_are_renamed_as_recorded() {
    let sim = fast().await;
    let named = |name: &str, subfolder: &str| json!({"name": name, "subfolder": subfolder, "type": "input"});
    assert_eq!(uploaded(&sim, "one", &[]).await, named("pic.png", ""));
    assert_eq!(uploaded(&sim, "one", &[]).await, named("pic.png", ""));
    assert_eq!(uploaded(&sim, "two", &[]).await, named("pic (1).png", ""));
    assert_eq!(uploaded(&sim, "two", &[]).await, named("pic (1).png", ""));
    assert_eq!(uploaded(&sim, "three", &[("overwrite", "true")]).await, named("pic.png", ""));
    assert_eq!(uploaded(&sim, "one", &[("subfolder", "sub")]).await, named("pic.png", "sub"));
    let stored = get(&sim, "/view?filename=pic.png&type=input").await.text().await.unwrap();
    assert_eq!(stored, "three");
    let offered = get_json(&sim, "/object_info/LoadImage").await;
    let choices = &offered["LoadImage"]["input"]["required"]["image"][0];
    assert_eq!(*choices, json!(["pic (1).png", "pic.png"]));
}

#[tokio::test]
async fn wrong_uploads_are_refused() {
    let sim = fast().await;
    for subfolder in ["../../x", "/etc"] {
        let reply = upload(&sim, "/upload/image", vec![1], &[("subfolder", subfolder)]).await;
        assert_eq!(reply.status(), 400, "{subfolder}");
    }
    let reply = upload(&sim, "/upload/image", vec![1], &[("type", "odd")]).await;
    assert_eq!(reply.status(), 500);
    let form = Form::new().text("a", "b");
    let request = Client::new().post(format!("{}/upload/image", sim.url())).multipart(form);
    assert_eq!(request.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_mask_gives_its_alpha_to_the_original() {
    let sim = fast().await;
    queue(&sim, &json!({"prompt": paced(0.0, 1, 3), "client_id": "A"})).await;
    idle(&sim).await;
    let mask = image::RgbaImage::from_pixel(64, 64, image::Rgba([1, 2, 3, 77]));
    let mut png = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let original = json!({"filename": "rec_00001_.png"}).to_string();
    let fields = [("original_ref", original.as_str())];
    assert_eq!(upload(&sim, "/upload/mask", png.get_ref().clone(), &fields).await.status(), 200);
    let bytes = get(&sim, "/view?filename=pic.png&type=input").await.bytes().await.unwrap();
    let merged = image::load_from_memory(&bytes).unwrap().into_rgba8();
    let source = image::load_from_memory(&image_of_seed(3)).unwrap().into_rgba8();
    assert_eq!(merged.get_pixel(5, 5).0[..3], source.get_pixel(5, 5).0[..3]);
    assert_eq!(merged.get_pixel(5, 5).0[3], 77);

    let gone = [("original_ref", r#"{"filename": "gone.png"}"#), ("subfolder", "s")];
    assert_eq!(upload(&sim, "/upload/mask", vec![1], &gone).await.status(), 200);
    assert_eq!(get(&sim, "/view?filename=pic.png&type=input&subfolder=s").await.status(), 404);
    assert_eq!(upload(&sim, "/upload/mask", vec![1], &[]).await.status(), 500);
}

#[tokio::test]
async fn an_output_is_the_image_of_its_seed_and_counts_on() {
    let sim = fast().await;
    for seed in [7, 8] {
        queue(&sim, &json!({"prompt": paced(0.0, 1, seed), "client_id": "A"})).await;
    }
    idle(&sim).await;
    for (name, seed) in [("rec_00001_.png", 7), ("rec_00002_.png", 8)] {
        let reply = get(&sim, &format!("/view?filename={name}&type=output")).await;
        assert_eq!(reply.headers()["content-disposition"], format!("filename=\"{name}\""));
        assert_eq!(reply.headers()["content-type"], "image/png");
        assert!(reply.bytes().await.unwrap() == image_of_seed(seed), "seed {seed}");
    }
    assert_eq!(
        get_json(&sim, "/internal/files/output").await,
        json!(["rec_00002_.png", "rec_00001_.png"])
    );
}

#[tokio::test]
async fn loaded_and_plain_images_reach_their_outputs() {
    let sim = fast().await;
    let reply = upload(&sim, "/upload/image", image_of_seed(5), &[]).await;
    assert_eq!(reply.status(), 200);
    uploaded(&sim, "not an image", &[("subfolder", "sub")]).await;
    let load = |name: &str| {
        json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        })
    };
    let empty = json!({
        "1": {"class_type": "EmptyImage", "inputs":
            {"width": 3, "height": 2, "batch_size": 2, "color": 0xff_8000}},
        "2": {"class_type": "SaveImage", "inputs":
            {"images": ["1", 0], "filename_prefix": "deep/plain"}},
    });
    let mut entries = Vec::new();
    for prompt in [load("pic.png"), load("sub/pic.png"), empty] {
        let id = queue(&sim, &json!({"prompt": prompt, "client_id": "A"})).await;
        idle(&sim).await;
        entries.push(get_json(&sim, &format!("/history/{id}")).await[&id].clone());
    }
    let shown = &entries[0]["outputs"]["2"]["images"][0];
    assert_eq!(shown["type"], "temp");
    let name = shown["filename"].as_str().unwrap();
    assert!(name.starts_with("ComfyUI_temp_") && name.ends_with("_00001_.png"), "{name}");
    let bytes = get(&sim, &format!("/view?filename={name}&type=temp")).await.bytes().await.unwrap();
    assert!(bytes == image_of_seed(5));

    let error = &entries[1]["status"]["messages"][2][1];
    assert_eq!(error["exception_type"], "PIL.UnidentifiedImageError");

    let images = entries[2]["outputs"]["2"]["images"].as_array().unwrap().clone();
    assert_eq!(images.len(), 2);
    let path = "/view?filename=plain_00002_.png&subfolder=deep";
    let bytes = get(&sim, path).await.bytes().await.unwrap();
    let pixels = image::load_from_memory(&bytes).unwrap().into_rgb8();
    assert_eq!((pixels.dimensions(), pixels.get_pixel(2, 1).0), ((3, 2), [255, 128, 0]));
}

#[tokio::test]
async fn views_come_in_parts_and_not_twice() {
    let sim = fast().await;
    sim.faults().large_file("big.bin", 1000).unwrap();
    let url = format!("{}/view?filename=big.bin", sim.url());
    let ask = async |name: &str, value: &str| {
        Client::new().get(&url).header(name, value).send().await.unwrap()
    };
    let whole = ask("accept", "*/*").await;
    assert_eq!(
        (whole.status().as_u16(), &whole.headers()["content-length"]),
        (200, &"1000".parse().unwrap())
    );
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    let modified = whole.headers()["last-modified"].to_str().unwrap().to_owned();

    let part = ask("range", "bytes=990-").await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 990-999/1000");
    assert_eq!(part.bytes().await.unwrap().len(), 10);
    let refused = ask("range", "bytes=1000-").await;
    assert_eq!(refused.status(), 416);
    assert_eq!(refused.headers()["content-range"], "bytes */1000");
    assert_eq!(ask("if-none-match", &etag).await.status(), 304);
    assert_eq!(ask("if-modified-since", &modified).await.status(), 304);
    assert_eq!(ask("if-match", "\"other\"").await.status(), 412);
    let head = Client::new().head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "1000");
}

#[tokio::test]
async fn views_are_converted_and_guarded() {
    let sim = fast().await;
    queue(&sim, &json!({"prompt": paced(0.0, 1, 3), "client_id": "A"})).await;
    idle(&sim).await;
    let cases = [
        ("preview=webp;75", "image/webp", "rec_00001_.webp"),
        ("preview=jpeg", "image/jpeg", "rec_00001_.jpeg"),
        ("preview=odd", "image/webp", "rec_00001_.webp"),
        ("channel=rgb", "image/png", "rec_00001_.png"),
        ("channel=a", "image/png", "rec_00001_.png"),
    ];
    for (query, kind, name) in cases {
        let reply = get(&sim, &format!("/view?filename=rec_00001_.png&{query}")).await;
        assert_eq!(reply.headers()["content-type"], kind, "{query}");
        assert_eq!(reply.headers()["content-disposition"], format!("filename=\"{name}\""));
        assert!(image::load_from_memory(&reply.bytes().await.unwrap()).is_ok(), "{query}");
    }
    let refusals = [
        ("filename=no.png", 404),
        ("", 404),
        ("filename=../x.png", 400),
        ("filename=/etc/passwd", 400),
        ("filename=x.png&type=odd", 400),
        ("filename=x.png&subfolder=../..", 403),
        ("filename=rec_00001_.png+%5Boutput%5D&type=input", 200),
    ];
    for (query, status) in refusals {
        assert_eq!(get(&sim, &format!("/view?{query}")).await.status(), status, "{query}");
    }
}

#[tokio::test]
async fn user_data_is_kept_under_encoded_names() {
    let sim = fast().await;
    assert_eq!(get_json(&sim, "/users").await["migrated"], false);
    assert_eq!(get(&sim, "/userdata?dir=workflows").await.status(), 404);
    let file = "/userdata/workflows%2Fa.json";
    let (status, path) = post(&sim, file, &json!({})).await;
    assert_eq!((status, path), (200, json!("workflows/a.json")));
    assert_eq!(get_json(&sim, file).await, json!({}));
    assert_eq!(post(&sim, &format!("{file}?overwrite=false"), &json!({})).await.0, 409);
    let (_, moved) =
        post(&sim, &format!("{file}/move/workflows%2Fb.json?full_info=true"), &json!({})).await;
    assert_eq!((&moved["path"], &moved["size"]), (&json!("workflows/b.json"), &json!(2)));
    assert_eq!(
        get_json(&sim, "/userdata?dir=workflows&split=true").await,
        json!([["b.json", "b.json"]])
    );
    let listed = get_json(&sim, "/v2/userdata").await;
    assert_eq!(listed[0]["type"], "directory");
    assert_eq!(listed[1]["path"], "workflows/b.json");
    let url = format!("{}/userdata/workflows%2Fb.json", sim.url());
    assert_eq!(Client::new().delete(&url).send().await.unwrap().status(), 204);
    assert_eq!(get(&sim, "/userdata/workflows%2Fb.json").await.status(), 404);
    assert_eq!(get(&sim, "/userdata/..%2F..%2Fx").await.status(), 403);
    assert_eq!(get(&sim, "/userdata").await.status(), 400);
}

#[tokio::test]
async fn settings_merge() {
    let sim = fast().await;
    assert_eq!(post(&sim, "/settings", &json!({"a": 1, "b": 2})).await.0, 200);
    assert_eq!(post(&sim, "/api/settings/b", &json!([3])).await.0, 200);
    assert_eq!(get_json(&sim, "/settings").await, json!({"a": 1, "b": [3]}));
    assert_eq!(get_json(&sim, "/settings/none").await, Value::Null);
}
