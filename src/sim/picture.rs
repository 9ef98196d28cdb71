//! Images as nodes pass them on: described, and only rendered when written, so that a node
//! cache holds a few bytes. What is rendered depends on the description alone.

use std::io::{Cursor, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::codecs::jpeg::JpegEncoder;
use image::error::{LimitError, LimitErrorKind};
use image::{DynamicImage, ImageError, ImageFormat, ImageResult, Rgb, RgbImage};

use crate::comfy::view::{MAX_PIXELS, open};

/// Side of the images that `PacedImage` makes.
pub(super) const SIDE: u32 = 64;
/// How many shades the previews go through from the first step to the last.
const SHADES: usize = 16;

/// An image, not yet rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Picture {
    /// Noise of a seed, 64 by 64.
    Seed(u64),
    /// One colour.
    Plain {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// `0xRRGGBB`.
        color: u32,
    },
    /// A file's pixels.
    File(PathBuf),
}

impl Picture {
    /// Renders and writes the image as PNG without metadata.
    pub(super) fn write_png(&self, path: &Path) -> ImageResult<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        self.encode(&mut file)?;
        Ok(file.flush()?)
    }

    /// Whether the image can be made: a file must be readable as an image, a size bearable.
    pub(super) fn check(&self) -> ImageResult<()> {
        match self {
            Self::File(path) => open(path).map(drop),
            _ => self.render().map(drop),
        }
    }

    fn encode(&self, out: &mut (impl Write + Seek)) -> ImageResult<()> {
        self.render()?.write_to(out, ImageFormat::Png)
    }

    fn render(&self) -> ImageResult<DynamicImage> {
        match self {
            Self::Seed(seed) => Ok(noise(*seed).into()),
            Self::Plain { width, height, color } => {
                if u64::from(*width) * u64::from(*height) > MAX_PIXELS {
                    let kind = LimitErrorKind::DimensionError;
                    return Err(ImageError::Limits(LimitError::from_kind(kind)));
                }
                let [_, red, green, blue] = color.to_be_bytes();
                Ok(RgbImage::from_pixel(*width, *height, Rgb([red, green, blue])).into())
            }
            Self::File(path) => Ok(open(path)?.into_rgb8().into()),
        }
    }
}

/// The PNG that a workflow `PacedImage(seed) → SaveImage` writes: the same bytes for the same
/// seed, without metadata, so that a test can tell whose output it was given.
pub fn image_of_seed(seed: u64) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    // Encoding into memory has nothing to fail on; an empty answer fails the comparing test.
    if Picture::Seed(seed).encode(&mut out).is_err() {
        return Vec::new();
    }
    out.into_inner()
}

/// A JPEG preview of step `value` of `max`.
pub(super) fn preview(value: u64, max: u64) -> &'static [u8] {
    static PREVIEWS: [OnceLock<Vec<u8>>; SHADES] = [const { OnceLock::new() }; SHADES];
    let index = (value * (SHADES as u64 - 1) / max.max(1)).min(SHADES as u64 - 1) as usize;
    PREVIEWS[index].get_or_init(|| {
        let shade = (index * 255 / (SHADES - 1)) as u8;
        let image = RgbImage::from_pixel(SIDE, SIDE, Rgb([shade, 255 - shade, 128]));
        let mut out = Vec::new();
        // As above: memory cannot fail, and an empty preview would be seen.
        let _ = JpegEncoder::new_with_quality(&mut out, 95).encode_image(&image);
        out
    })
}

/// Noise from splitmix64: cheap, and any two seeds differ in almost every pixel.
fn noise(seed: u64) -> RgbImage {
    let mut state = seed;
    RgbImage::from_fn(SIDE, SIDE, |_, _| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [red, green, blue, ..] = (mixed ^ (mixed >> 31)).to_be_bytes();
        Rgb([red, green, blue])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_bytes_and_another_seed_others() {
        assert_eq!(image_of_seed(7), image_of_seed(7));
        assert_ne!(image_of_seed(7), image_of_seed(8));
        let image = image::load_from_memory(&image_of_seed(7)).unwrap();
        assert_eq!((image.width(), image.height()), (SIDE, SIDE));
    }

    #[test]
    fn previews_are_jpegs_that_change_over_the_steps() {
        assert_eq!(preview(1, 3)[..3], [0xff, 0xd8, 0xff]);
        assert_ne!(preview(1, 3), preview(3, 3));
        assert_eq!(preview(u64::from(u32::MAX), 1), preview(1, 1));
    }

    #[test]
    fn an_unbearable_size_is_an_error() {
        assert!(Picture::Plain { width: 16384, height: 16384, color: 0 }.check().is_err());
    }
}
