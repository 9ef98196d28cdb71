//! Binary WebSocket messages as values that can be compared: the id, the declared format, the
//! metadata, and what kind of image it really is and how large; never its pixels.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Larger images than this are not decoded: a preview is far below.
const MAX_SIDE: u32 = 16_384;

/// A message as `{binary: id, …}`.
pub(super) fn describe(base64: &str) -> Value {
    match STANDARD.decode(base64) {
        Ok(bytes) => describe_bytes(&bytes),
        Err(_) => json!({"binary": "not base64"}),
    }
}

fn describe_bytes(bytes: &[u8]) -> Value {
    let Some((id, rest)) = split_u32(bytes) else {
        return json!({"binary": "shorter than its id", "bytes": bytes.len()});
    };
    match id {
        1 => preview(rest),
        4 => preview_with_metadata(rest),
        _ => json!({"binary": id, "bytes": rest.len()}),
    }
}

fn preview(bytes: &[u8]) -> Value {
    let Some((format, image)) = split_u32(bytes) else {
        return json!({"binary": 1, "format": null});
    };
    let declared = match format {
        1 => "image/jpeg",
        2 => "image/png",
        _ => "unknown",
    };
    json!({"binary": 1, "format": format, "image": told(declared, image)})
}

fn preview_with_metadata(bytes: &[u8]) -> Value {
    let Some((metadata, image)) = split_metadata(bytes) else {
        return json!({"binary": 4, "metadata": "unreadable"});
    };
    let declared = metadata.get("image_type").and_then(Value::as_str).unwrap_or("unknown");
    let picture = told(declared, image);
    json!({"binary": 4, "metadata": metadata, "image": picture})
}

fn split_metadata(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let (length, rest) = split_u32(bytes)?;
    let (metadata, image) = rest.split_at_checked(length as usize)?;
    Some((serde_json::from_slice(metadata).ok()?, image))
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*head), rest))
}

/// What an image really is, such as `image/jpeg 64x64`; an error says what is wrong with it.
pub(super) fn picture(declared: &str, bytes: &[u8]) -> Result<String, String> {
    let Ok(format) = image::guess_format(bytes) else {
        return Err(format!("no image, declared as {declared}"));
    };
    let real = format.to_mime_type();
    if real != declared {
        return Err(format!("{real}, declared as {declared}"));
    }
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    match reader.decode() {
        Ok(image) => Ok(format!("{real} {}x{}", image.width(), image.height())),
        Err(_) => Err(format!("{real} that does not decode")),
    }
}

/// Either way in words.
fn told(declared: &str, bytes: &[u8]) -> String {
    picture(declared, bytes).unwrap_or_else(|flaw| flaw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png() -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(3, 2).write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    }

    #[test]
    fn a_preview_tells_its_kind_and_size_and_a_wrong_declaration() {
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 2];
        bytes.extend(png());
        assert_eq!(describe_bytes(&bytes)["image"], "image/png 3x2");
        bytes[7] = 1;
        assert_eq!(describe_bytes(&bytes)["image"], "image/png, declared as image/jpeg");
        bytes.truncate(30);
        bytes[7] = 2;
        assert_eq!(describe_bytes(&bytes)["image"], "image/png that does not decode");
    }

    #[test]
    fn hostile_lengths_are_told_not_followed() {
        assert_eq!(describe_bytes(&[0, 0])["binary"], "shorter than its id");
        assert_eq!(describe_bytes(&[0, 0, 0, 4, 255, 255, 255, 255])["metadata"], "unreadable");
    }
}
