//! `GET /view`: which file it asks for, and the file as it is, as a preview, or one channel of it.
//!
//! Images are decoded up to [`MAX_PIXELS`], two at a time, on threads that serve nobody; formats
//! that are not built in are shown as they are.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use image::error::{LimitError, LimitErrorKind};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult};
use tokio::fs::File;
use tokio::sync::Semaphore;

use super::file_reply::{self, Stamp, media_type};
use super::paths::{inside, split_annotation};
use super::reply::{Answer, Query, Refusal};

/// Pixels of the largest image that is decoded.
pub const MAX_PIXELS: u64 = 64 << 20;
/// Images that are decoded at a time.
static DECODING: Semaphore = Semaphore::const_new(2);

const BAD: Refusal = Refusal::Bare(StatusCode::BAD_REQUEST);
const ABSENT: Refusal = Refusal::Bare(StatusCode::NOT_FOUND);

/// What a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `input`, `output` or `temp`.
    pub folder: &'static str,
    /// As it was given.
    pub subfolder: String,
    /// The file's name, without folders.
    pub name: String,
    preview: Option<String>,
    channel: String,
}

impl Asked {
    /// Reads a query, with ComfyUI's refusals.
    pub fn of(query: &Query) -> Result<Self, Refusal> {
        let given = query.get("filename").ok_or(ABSENT)?;
        let (name, chosen) = split_annotation(given);
        if name.is_empty() || name.starts_with('/') || name.contains("..") {
            return Err(BAD);
        }
        let folder = chosen.or(query.get("type")).unwrap_or("output");
        let folder = ["input", "output", "temp"].into_iter().find(|known| *known == folder);
        let folder = folder.ok_or(BAD)?;
        let subfolder = query.get("subfolder").unwrap_or_default().to_owned();
        if inside(Path::new("/folder"), &subfolder).is_none() {
            return Err(Refusal::Bare(StatusCode::FORBIDDEN));
        }
        let name = name.rsplit('/').next().filter(|name| !name.contains('\0')).ok_or(BAD)?;
        Ok(Self {
            folder,
            subfolder,
            name: name.to_owned(),
            preview: query.get("preview").map(str::to_owned),
            channel: query.get("channel").unwrap_or_default().to_owned(),
        })
    }

    /// Shows the file that lies at `path`. Without a stamp the file's own time is taken.
    pub async fn show(&self, path: &Path, stamp: Option<&Stamp>, headers: &HeaderMap) -> Answer {
        let drawn = match &self.preview {
            Some(wanted) => Some(self.preview(path, wanted).await),
            None if self.channel == "rgb" || self.channel == "a" => Some(self.channel(path).await),
            None => None,
        };
        match drawn {
            Some(Ok(drawn)) => Ok(rendered(drawn)),
            Some(Err(Undrawn::Damaged)) => Err(Refusal::Crash),
            None | Some(Err(Undrawn::Unknown)) => self.plain(path, stamp, headers).await,
        }
    }

    async fn plain(&self, path: &Path, stamp: Option<&Stamp>, headers: &HeaderMap) -> Answer {
        let kind = match media_type(Path::new(&self.name)) {
            // Types that a browser would run are sent as a download.
            "text/html" | "text/css" | "application/javascript" => "application/octet-stream",
            kind => kind,
        };
        let mut response = match stamp {
            None => file_reply::file(path, headers, kind).await?,
            Some(stamp) => {
                let file = File::open(path).await.map_err(|_| ABSENT)?;
                file_reply::opened(file, stamp, headers, kind).await?
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_DISPOSITION, disposition(&self.name));
        if kind == "image/svg+xml" {
            // Opened by itself a drawing may run scripts: not as part of this site.
            let apart = HeaderValue::from_static("sandbox");
            headers.insert(header::CONTENT_SECURITY_POLICY, apart);
        }
        Ok(response)
    }

    async fn preview(&self, path: &Path, wanted: &str) -> Result<Drawn, Undrawn> {
        let jpeg = wanted.split(';').next() == Some("jpeg") && !self.channel.contains('a');
        let quality = wanted.rsplit(';').next().and_then(|text| text.parse::<u8>().ok());
        let quality = quality.unwrap_or(90).clamp(1, 100);
        let flat = jpeg || self.channel == "rgb";
        let bytes = encode(path, move |image, out| {
            let image = if flat { image.into_rgb8().into() } else { image };
            if jpeg {
                let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(out, quality);
                return image.into_rgb8().write_with_encoder(encoder);
            }
            // The encoder knows 8-bit RGB and RGBA only.
            let alpha = image.color().has_alpha();
            let image = if alpha { image.into_rgba8().into() } else { image.into_rgb8().into() };
            DynamicImage::write_to(&image, out, ImageFormat::WebP)
        });
        let (kind, format) = if jpeg { ("image/jpeg", "jpeg") } else { ("image/webp", "webp") };
        Ok(Drawn { bytes: bytes.await?, kind, name: self.name.replace("png", format) })
    }

    async fn channel(&self, path: &Path) -> Result<Drawn, Undrawn> {
        let colours = self.channel == "rgb";
        let bytes = encode(path, move |image, out| {
            let image = if colours { image.into_rgb8().into() } else { alpha_only(image) };
            image.write_to(out, ImageFormat::Png)
        });
        Ok(Drawn { bytes: bytes.await?, kind: "image/png", name: self.name.clone() })
    }
}

/// An image as it was asked for.
struct Drawn {
    bytes: Vec<u8>,
    kind: &'static str,
    name: String,
}

/// Why an image was not drawn.
enum Undrawn {
    /// Its format is not built in.
    Unknown,
    /// It cannot be read.
    Damaged,
}

/// Reads an image file of at most [`MAX_PIXELS`], within the decoder's default limits of memory.
pub fn open(path: &Path) -> ImageResult<DynamicImage> {
    let decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let kind = LimitErrorKind::DimensionError;
        return Err(ImageError::Limits(LimitError::from_kind(kind)));
    }
    DynamicImage::from_decoder(decoder)
}

/// Does work on images away from the threads that serve, when its turn has come.
pub async fn decoding<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let turn = DECODING.acquire().await.ok()?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.ok()
}

fn alpha_only(image: DynamicImage) -> DynamicImage {
    let mut alpha = image.into_rgba8();
    for pixel in alpha.pixels_mut() {
        pixel.0 = [0, 0, 0, pixel.0[3]];
    }
    alpha.into()
}

/// Reads an image and writes it anew.
async fn encode(
    path: &Path,
    with: impl FnOnce(DynamicImage, &mut Cursor<Vec<u8>>) -> ImageResult<()> + Send + 'static,
) -> Result<Vec<u8>, Undrawn> {
    let path = PathBuf::from(path);
    let encoded = decoding(move || {
        let mut out = Cursor::new(Vec::new());
        with(open(&path)?, &mut out)?;
        Ok::<_, ImageError>(out.into_inner())
    });
    match encoded.await {
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err(ImageError::Unsupported(_))) => Err(Undrawn::Unknown),
        Some(Err(_)) | None => Err(Undrawn::Damaged),
    }
}

fn rendered(drawn: Drawn) -> Response {
    let mut response = Response::new(Body::from(drawn.bytes));
    let kind = HeaderValue::from_static(drawn.kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition(&drawn.name));
    response
}

fn disposition(name: &str) -> HeaderValue {
    let safe: String = name.chars().filter(|c| !c.is_control() && *c != '"').collect();
    HeaderValue::from_bytes(format!("filename=\"{safe}\"").as_bytes())
        .unwrap_or(HeaderValue::from_static("filename=\"file\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<Asked, StatusCode> {
        let uri = format!("/view?{query}").parse().unwrap();
        Asked::of(&Query::of(&uri)).map_err(|refusal| match refusal {
            Refusal::Bare(status) => status,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn names_are_read_and_refused_as_comfyui_does() {
        let found = asked("filename=a/b.png%20[temp]&type=input&subfolder=x").unwrap();
        assert_eq!((found.folder, &*found.subfolder, &*found.name), ("temp", "x", "b.png"));
        assert_eq!(asked("filename=a.png").unwrap().folder, "output");
        assert_eq!(asked("type=input"), Err(StatusCode::NOT_FOUND));
        for bad in ["filename=", "filename=/a", "filename=..", "filename=a&type=x", "filename=%00"]
        {
            assert_eq!(asked(bad), Err(StatusCode::BAD_REQUEST), "{bad}");
        }
        for escape in ["..", "/etc", "a/../../b"] {
            let query = format!("filename=a&subfolder={escape}");
            assert_eq!(asked(&query), Err(StatusCode::FORBIDDEN), "{escape}");
        }
    }

    #[tokio::test]
    async fn a_drawing_that_is_opened_by_itself_runs_nothing_here() {
        let folder = tempfile::tempdir().unwrap();
        for (name, policy) in [("a.SVG", Some("sandbox")), ("a.png", None)] {
            let path = folder.path().join(name);
            std::fs::write(&path, "<svg/>").unwrap();
            let asked = asked(&format!("filename={name}")).unwrap();
            let shown = asked.show(&path, None, &HeaderMap::new()).await.unwrap();
            let said = shown.headers().get(header::CONTENT_SECURITY_POLICY);
            assert_eq!(said.map(|said| said.to_str().unwrap()), policy, "{name}");
        }
    }
}
