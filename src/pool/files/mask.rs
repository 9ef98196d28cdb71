//! What `/upload/mask` makes: the pixels of one image with the alpha of another, and the texts
//! that the original carries (ComfyUI keeps workflows in them).

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::{ImageFormat, ImageResult};

use crate::comfy::view::open;

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// The signature and the header chunk, which comes first and always has this size.
const HEAD: usize = 8 + 25;
/// Bytes of texts that are kept.
const MAX_TEXTS: u64 = 32 << 20;

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub(super) enum MaskError {
    #[error("the images differ in size")]
    Sizes,
    #[error("images are not written as that")]
    Format,
    #[error(transparent)]
    Image(#[from] image::ImageError),
}

/// The image's file, in the format that its name says.
pub(super) fn composite(original: &Path, mask: &Path, name: &str) -> Result<Vec<u8>, MaskError> {
    let format = ImageFormat::from_path(name).ok();
    let format = format.filter(|f| matches!(f, ImageFormat::Png | ImageFormat::WebP));
    let format = format.ok_or(MaskError::Format)?;
    let mut pixels = open(original)?.into_rgba8();
    let alpha = open(mask)?.into_rgba8();
    if alpha.dimensions() != pixels.dimensions() {
        return Err(MaskError::Sizes);
    }
    for (pixel, with) in pixels.pixels_mut().zip(alpha.pixels()) {
        pixel.0[3] = with.0[3];
    }
    drop(alpha);
    let mut out = Cursor::new(Vec::new());
    pixels.write_to(&mut out, format)?;
    let mut out = out.into_inner();
    if format == ImageFormat::Png {
        let texts = texts(original)?;
        out.splice(HEAD..HEAD, texts);
    }
    Ok(out)
}

/// The text chunks of a PNG, as they are; none of what is no PNG, or is cut off.
fn texts(path: &Path) -> ImageResult<Vec<u8>> {
    let mut file = std::io::BufReader::new(File::open(path)?);
    let mut texts = Vec::new();
    let mut signature = [0; 8];
    if file.read_exact(&mut signature).is_err() || signature != SIGNATURE {
        return Ok(texts);
    }
    let mut head = [0; 8];
    while file.read_exact(&mut head).is_ok() {
        let [a, b, c, d, kind @ ..] = head;
        // Content and checksum.
        let length = u64::from(u32::from_be_bytes([a, b, c, d])) + 4;
        let is_text = matches!(&kind, b"tEXt" | b"zTXt" | b"iTXt");
        if is_text && texts.len() as u64 + length <= MAX_TEXTS {
            let before = texts.len();
            texts.extend_from_slice(&head);
            let read = file.by_ref().take(length).read_to_end(&mut texts)?;
            if (read as u64) < length {
                texts.truncate(before);
            }
        } else {
            std::io::copy(&mut file.by_ref().take(length), &mut std::io::sink())?;
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};

    fn picture(directory: &Path, name: &str, size: u32, pixel: [u8; 4]) -> std::path::PathBuf {
        let path = directory.join(name);
        RgbaImage::from_pixel(size, size, Rgba(pixel)).save(&path).unwrap();
        path
    }

    #[test]
    fn the_masks_alpha_and_the_originals_colours_and_texts_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let original = picture(directory.path(), "o.png", 2, [1, 2, 3, 255]);
        let mask = picture(directory.path(), "m.png", 2, [9, 9, 9, 77]);
        let mut bytes = std::fs::read(&original).unwrap();
        let mut text = b"\0\0\0\x05tEXta\0b=c".to_vec();
        text.extend_from_slice(&crc(&text[4..]).to_be_bytes());
        bytes.splice(HEAD..HEAD, text.clone());
        std::fs::write(&original, &bytes).unwrap();
        let made = composite(&original, &mask, "x.png").unwrap();
        assert_eq!(made[HEAD..][..text.len()], text);
        let made = image::load_from_memory(&made).unwrap().into_rgba8();
        assert!(made.pixels().all(|pixel| pixel.0 == [1, 2, 3, 77]));
        std::fs::write(&original, &bytes[..HEAD + 12]).unwrap();
        assert_eq!(texts(&original).unwrap(), b"", "a text that is cut off is none");
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }

    #[test]
    fn sizes_and_formats_must_fit() {
        let directory = tempfile::tempdir().unwrap();
        let small = picture(directory.path(), "s.png", 2, [0; 4]);
        let large = picture(directory.path(), "l.png", 3, [0; 4]);
        assert!(matches!(composite(&small, &large, "x.png"), Err(MaskError::Sizes)));
        assert!(matches!(composite(&small, &small, "x.jpg"), Err(MaskError::Format)));
    }
}
