//! The table of placements: a client's key, the name of its backend, when it was last seen.
//!
//! Backends are kept by name, for their numbers are those of one process. A record of a backend
//! that is gone is for the caller to drop.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{State, StateError, storage};
use crate::affinity::Seconds;
use crate::identity::ClientKey;

/// Client key → (backend, last used in Unix seconds, flags).
const PLACEMENTS: TableDefinition<'_, &[u8; 16], (&str, u32, u8)> =
    TableDefinition::new("placements");
const BY_HAND: u8 = 1;

/// A placement as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRecord {
    /// The backend's name.
    pub backend: String,
    /// When the client was last seen.
    pub last_used: Seconds,
    /// The client chose this backend itself.
    pub by_hand: bool,
}

pub(super) fn make_table(transaction: &WriteTransaction) -> Result<(), StateError> {
    transaction.open_table(PLACEMENTS).map_err(storage)?;
    Ok(())
}

impl State {
    /// Writes changed placements, `None` for those that are gone, in one durable transaction.
    pub fn save_placements(
        &self,
        changes: &[(ClientKey, Option<PlacementRecord>)],
    ) -> Result<(), StateError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(PLACEMENTS).map_err(storage)?;
            for (key, record) in changes {
                let key = &key.to_bytes();
                if let Some(record) = record {
                    let flags = if record.by_hand { BY_HAND } else { 0 };
                    let value = (record.backend.as_str(), record.last_used.0, flags);
                    table.insert(key, value).map_err(storage)?;
                } else {
                    table.remove(key).map_err(storage)?;
                }
            }
            Ok(())
        })
    }

    /// The placements last used at `newer_than` or later, the oldest first; of more than `limit`
    /// the newest ones. Those older are removed from the table on the way.
    pub fn load_placements(
        &self,
        limit: usize,
        newer_than: Seconds,
    ) -> Result<Vec<(ClientKey, PlacementRecord)>, StateError> {
        let (mut kept, expired) = self.read_placements(newer_than)?;
        let gone: Vec<_> = expired.into_iter().map(|key| (key, None)).collect();
        self.save_placements(&gone)?;
        kept.sort_by_key(|(_, record)| record.last_used);
        kept.drain(..kept.len().saturating_sub(limit));
        Ok(kept)
    }

    #[expect(clippy::type_complexity, reason = "two lists, taken apart where they are made")]
    fn read_placements(
        &self,
        newer_than: Seconds,
    ) -> Result<(Vec<(ClientKey, PlacementRecord)>, Vec<ClientKey>), StateError> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(PLACEMENTS).map_err(storage)?;
        let (mut kept, mut expired) = (Vec::new(), Vec::new());
        for entry in table.iter().map_err(storage)? {
            let (key, value) = entry.map_err(storage)?;
            let key = ClientKey::from_bytes(*key.value());
            let (backend, last_used, flags) = value.value();
            let last_used = Seconds(last_used);
            if last_used < newer_than {
                expired.push(key);
                continue;
            }
            let by_hand = flags & BY_HAND != 0;
            kept.push((key, PlacementRecord { backend: backend.to_owned(), last_used, by_hand }));
        }
        Ok((kept, expired))
    }
}
