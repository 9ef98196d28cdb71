//! `GET /history`: which entries, and the reply without reading any of them.

use std::ops::Range;

use bytes::Bytes;

use super::super::splice::quoted;
use super::Values;
use crate::rejection::{Kind, Rejection};

/// A page of history, of which the oldest entry is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    max_items: Option<i64>,
    offset: i64,
}

impl Page {
    /// Reads `max_items` and `offset` of a query.
    pub fn read(query: &str) -> Result<Self, Rejection> {
        let values = Values::of(query);
        let whole = |name: &str| {
            values.whole(name).transpose().map_err(|()| {
                Rejection::new(Kind::InvalidValue, format!("{name} is no whole number"))
                    .cure("leave it out to see everything")
            })
        };
        Ok(Self { max_items: whole("max_items")?, offset: whole("offset")?.unwrap_or(-1) })
    }

    /// Which of so many entries it shows: without an offset the newest ones.
    pub fn of(self, entries: usize) -> Range<usize> {
        let all = i64::try_from(entries).unwrap_or(i64::MAX);
        let start = match self.max_items {
            Some(max) if self.offset < 0 => all.saturating_sub(max),
            _ => self.offset,
        };
        // ComfyUI adds an entry before it looks at the bound, so that zero gives one.
        let take = self.max_items.map_or(i64::MAX, |max| max.max(1));
        let start = start.clamp(0, all);
        start as usize..start.saturating_add(take).min(all) as usize
    }
}

/// Writes the reply that holds entries by their ids, in pieces that share their bytes.
#[derive(Debug, Default)]
pub struct Writer {
    begun: bool,
}

impl Writer {
    /// The next entries.
    pub fn write<'a>(&mut self, entries: impl IntoIterator<Item = (&'a str, Bytes)>) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        for (id, entry) in entries {
            let before = if std::mem::replace(&mut self.begun, true) { ", " } else { "{" };
            pieces.push(Bytes::from(format!("{before}{}: ", quoted(id))));
            pieces.push(entry);
        }
        pieces
    }

    /// There are no more.
    pub fn end(&self) -> Bytes {
        Bytes::from_static(if self.begun { b"}" } else { b"{}" })
    }
}

/// The whole reply.
pub fn history<'a>(entries: impl IntoIterator<Item = (&'a str, Bytes)>) -> Vec<Bytes> {
    let mut writer = Writer::default();
    let mut pieces = writer.write(entries);
    pieces.push(writer.end());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(query: &str) -> Range<usize> {
        Page::read(query).unwrap().of(10)
    }

    #[test]
    fn pages_are_those_of_comfyui() {
        assert_eq!(page(""), 0..10);
        assert_eq!(page("max_items=3"), 7..10);
        assert_eq!(page("max_items=3&offset=0"), 0..3);
        assert_eq!(page("max_items=3&offset=8"), 8..10);
        assert_eq!(page("offset=4"), 4..10);
        assert_eq!(page("max_items=0"), 10..10);
        assert_eq!(page("max_items=0&offset=2"), 2..3);
        assert_eq!(page("max_items=99&offset=-5"), 0..10);
        assert_eq!(page("offset=99999999999999999999"), 10..10);
        assert!(Page::read("max_items=x").is_err());
    }

    #[test]
    fn entries_are_put_together_as_they_are() {
        let entries =
            [("a", Bytes::from_static(b"{\"x\":NaN}")), ("b\"", Bytes::from_static(b"2"))];
        assert_eq!(history(entries).concat(), br#"{"a": {"x":NaN}, "b\"": 2}"#);
        assert_eq!(history([]).concat(), b"{}");
    }

    proptest! {
        #[test]
        fn a_page_lies_within(max in any::<i64>(), offset in any::<i64>(), len in 0usize..50) {
            let page = Page { max_items: Some(max), offset }.of(len);
            prop_assert!(page.start <= page.end && page.end <= len);
        }
    }
}
