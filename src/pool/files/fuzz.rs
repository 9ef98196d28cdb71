//! What a fuzzer calls of this module: see [`crate::fuzz`].

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a target tells of a broken promise by panicking"
)]

use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use http::header;

use super::form::Form;
use super::place::{Folder, Place};
use super::uploads::Uploads;
use crate::fuzz::{Input, block_on};

/// Bytes of a body at most.
const LIMIT: u64 = 1 << 20;

/// An empty store in a folder of this process's own.
pub(crate) fn store() -> Option<Arc<Uploads>> {
    static STORE: OnceLock<Option<Arc<Uploads>>> = OnceLock::new();
    let open = || {
        let dir = std::env::temp_dir().join(format!("comfygate-fuzz-{}", std::process::id()));
        Uploads::open(&dir, 64 << 20).ok()
    };
    STORE.get_or_init(open).clone()
}

/// The body of an upload; its first line stands for the boundary.
pub fn form(data: &[u8]) {
    let mut input = Input(data);
    let boundary = String::from_utf8_lossy(input.line());
    let body = input.0.to_vec();
    let length = body.len() as u64;
    let request = Request::post("/upload/image")
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .body(axum::body::Body::from(body));
    let (Ok(request), Some(store)) = (request, store()) else { return };
    let read = block_on(Form::read(request, &store, LIMIT));
    let Some(Ok(form)) = read else { return };
    let texts = ["type", "subfolder", "overwrite", "original_ref", ""];
    let texts: Vec<_> = texts.iter().filter_map(|name| form.text(name)).collect();
    let image = form.image.as_ref();
    let kept = texts.iter().map(|text| text.len() as u64).sum::<u64>()
        + image.map_or(0, |image| image.content.size);
    assert!(kept <= length, "no more than was sent");
    if let Some(image) = image {
        assert!(!image.name.starts_with(['/', '\\']), "{:?}", image.name);
        let stored = std::fs::read(image.content.path()).expect("it is on the disk");
        assert_eq!(stored.len() as u64, image.content.size);
        assert!(stored.is_empty() || input.0.windows(stored.len()).any(|part| part == stored));
        let subfolder = form.text("subfolder").unwrap_or_default();
        if let Some(place) = Place::new(Folder::Input, subfolder, &image.name) {
            assert!(!place.path().split(['/', '\\']).any(|part| part == ".."));
        }
    }
}
