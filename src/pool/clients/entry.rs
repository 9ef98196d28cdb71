//! A frame that waits for a socket.

use crate::pool::frame::{Frame, Meaning};
use crate::pool::job::JobId;

/// What a waiting frame costs beside its bytes.
const OVERHEAD: usize = 128;
/// Metadata of a preview in which its image type is looked for.
const METADATA: usize = 64 << 10;

/// A frame that waits.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its job; none for what belongs to the `clientId` alone.
    pub(super) job: Option<JobId>,
    /// How many `executing` its job had.
    pub(super) epoch: u32,
    /// What it is.
    pub(super) meaning: Meaning,
    /// It is of a job of this `clientId`, and so is kept for it when the connection breaks.
    pub(super) own: bool,
    /// A preview that is likely a result.
    pub(super) result: bool,
    /// The message.
    pub(super) frame: Frame,
}

impl Entry {
    /// A frame of a job of the session's own.
    pub(super) fn own(job: JobId, epoch: u32, meaning: Meaning, frame: Frame) -> Self {
        let result = meaning == Meaning::Preview && is_result(&frame);
        Self { job: Some(job), epoch, meaning, own: true, result, frame }
    }

    /// A frame that is not kept when the connection breaks.
    pub(super) fn passing(job: Option<JobId>, meaning: Meaning, frame: Frame) -> Self {
        let result = meaning == Meaning::Preview && is_result(&frame);
        Self { job, epoch: 0, meaning, own: false, result, frame }
    }

    /// What it counts against the bounds.
    pub(super) fn cost(&self) -> usize {
        self.frame.bytes.len() + OVERHEAD
    }

    /// Only tells a state, which the next of its kind tells anew.
    pub(super) fn is_passing_state(&self) -> bool {
        matches!(self.meaning, Meaning::Progress | Meaning::ProgressState)
            || (self.meaning == Meaning::Preview && !self.result)
    }
}

/// Whether a preview is a PNG, as nodes send results; samplers draw in JPEG.
fn is_result(frame: &Frame) -> bool {
    let word = |at: usize| {
        let bytes = frame.bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match word(0) {
        Some(1) => word(4) == Some(2),
        Some(4) => {
            let length = word(4).map_or(0, |length| length as usize).min(METADATA);
            let metadata = frame.bytes.get(8..).unwrap_or_default();
            let metadata = &metadata[..length.min(metadata.len())];
            let png = b"image/png";
            metadata.windows(png.len()).any(|window| window == png)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn result(bytes: &[u8]) -> bool {
        is_result(&Frame { binary: true, bytes: Bytes::copy_from_slice(bytes) })
    }

    #[test]
    fn previews_in_png_are_results() {
        assert!(result(&[0, 0, 0, 1, 0, 0, 0, 2, 0x89]));
        assert!(!result(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff]));
        let with_metadata = |metadata: &str| {
            let length = (metadata.len() as u32).to_be_bytes();
            result(&[&[0, 0, 0, 4], &length[..], metadata.as_bytes(), b"image/png"].concat())
        };
        assert!(with_metadata(r#"{"image_type": "image/png"}"#));
        assert!(!with_metadata(r#"{"image_type": "image/jpeg"}"#));
        assert!(!result(&[0, 0, 0, 3, 0, 0, 0, 2]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0..6u8, bytes: Vec<u8>) {
            result(&bytes);
            result(&[&[0, 0, 0, kind], &bytes[..]].concat());
        }
    }
}
