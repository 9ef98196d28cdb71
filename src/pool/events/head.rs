//! The few words of a JSON message that say what it is and which prompt it is about.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, MapAccess};

use super::loose::{Loose, Text};
use crate::comfy::lenient;

type Word<'a> = Option<Cow<'a, str>>;

/// What was read of a message `{"type", "data"}`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// `type`.
    pub(super) name: Word<'a>,
    /// `data`.
    pub(super) data: Data<'a>,
}

/// What was read of its `data`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Data<'a> {
    /// `prompt_id`, if it is a text.
    pub(super) prompt_id: Word<'a>,
    /// `exception_type`, if it is a text.
    pub(super) exception: Word<'a>,
    /// `node`.
    pub(super) node: Node,
}

/// What a `node` is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// Not there.
    #[default]
    Absent,
    /// `null`.
    Null,
    /// Anything else.
    Given,
}

/// Reads a message; `None` when it is not JSON, not even as Python writes it.
pub(super) fn read(text: &[u8]) -> Option<Head<'_>> {
    match serde_json::from_slice(text) {
        Ok(head) => Some(head),
        Err(_) => lenient::from_slice::<Owned>(text).ok().map(|Owned(head)| head),
    }
}

/// Reads the metadata of a preview, which has the keys of a `data`.
pub(super) fn read_data(text: &[u8]) -> Option<Data<'_>> {
    serde_json::from_slice(text).ok()
}

impl<'de> Loose<'de> for Head<'de> {
    fn other() -> Self {
        Self::default()
    }

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "type" => self.name = map.next_value::<Text<'de>>()?.0,
            "data" => self.data = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Loose<'de> for Data<'de> {
    fn other() -> Self {
        Self::default()
    }

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "prompt_id" => self.prompt_id = map.next_value::<Text<'de>>()?.0,
            "exception_type" => self.exception = map.next_value::<Text<'de>>()?.0,
            "node" => self.node = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Loose<'_> for Node {
    fn other() -> Self {
        Self::Given
    }

    fn null() -> Self {
        Self::Null
    }
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<serde::de::IgnoredAny>().map(drop)
}

impl<'de: 'a, 'a> Deserialize<'de> for Head<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Head::<'de>::read(from)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Data::<'de>::read(from)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::read(from)
    }
}

/// A head that keeps nothing of its text.
struct Owned(Head<'static>);

impl<'de> Deserialize<'de> for Owned {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Head { name, data } = Head::deserialize(from)?;
        let owned = |word: Word<'_>| word.map(|word| Cow::Owned(word.into_owned()));
        Ok(Self(Head {
            name: owned(name),
            data: Data {
                prompt_id: owned(data.prompt_id),
                exception: owned(data.exception),
                node: data.node,
            },
        }))
    }
}
