//! The heads of binary messages: big-endian `u32`s by hand. A length that lies is told apart by
//! slicing, never followed.

/// A preview without ids.
pub(super) const PREVIEW: u32 = 1;
/// Text of a node.
pub(super) const TEXT: u32 = 3;
/// A preview with metadata.
pub(super) const PREVIEW_WITH_METADATA: u32 = 4;

/// The message's type and what follows; `None` when it is shorter than that.
pub(super) fn split_id(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*head), rest))
}

/// The JSON of a preview's metadata and the image, of what follows its type.
pub(super) fn split_metadata(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = split_id(rest)?;
    rest.split_at_checked(usize::try_from(length).ok()?)
}

/// A preview with metadata, put together.
pub(super) fn with_metadata(metadata: &[u8], image: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(metadata.len()).ok()?;
    let mut bytes = Vec::with_capacity(8 + metadata.len() + image.len());
    bytes.extend_from_slice(&PREVIEW_WITH_METADATA.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(metadata);
    bytes.extend_from_slice(image);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_comes_apart_and_together() {
        let whole = with_metadata(b"{}", b"image").unwrap();
        let (id, rest) = split_id(&whole).unwrap();
        assert_eq!(id, PREVIEW_WITH_METADATA);
        assert_eq!(split_metadata(rest), Some((&b"{}"[..], &b"image"[..])));
    }

    #[test]
    fn lengths_that_lie_are_not_followed() {
        assert_eq!(split_id(&[0, 0, 0]), None);
        assert_eq!(split_metadata(&[0, 0, 0, 3, 1, 2]), None);
        assert_eq!(split_metadata(&[255; 8]), None);
    }
}
