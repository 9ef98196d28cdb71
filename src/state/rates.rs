//! The table of rates: what was learnt of each backend's speed, so that `least_wait` need not start
//! from nothing after a restart.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{State, StateError, storage};

/// Backend → [`Rate`] as JSON.
const RATES: TableDefinition<'_, &str, &str> = TableDefinition::new("rates");

/// What was learnt of a backend. Missing fields are zero, unknown ones ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Recent seconds per prompt.
    pub seconds_per_prompt: f64,
    /// Prompts that taught it.
    pub prompts: u64,
    /// Seconds of the longest prompt it ever finished.
    pub longest_prompt: f64,
}

pub(super) fn make_table(transaction: &WriteTransaction) -> Result<(), StateError> {
    transaction.open_table(RATES).map_err(storage)?;
    Ok(())
}

impl State {
    /// Writes the rates of these backends, `None` for those that are gone.
    pub fn save_rates(&self, rates: &[(&str, Option<Rate>)]) -> Result<(), StateError> {
        if rates.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(RATES).map_err(storage)?;
            for (backend, rate) in rates {
                if let Some(rate) = rate {
                    let text = serde_json::to_string(rate)?;
                    table.insert(*backend, text.as_str()).map_err(storage)?;
                } else {
                    table.remove(*backend).map_err(storage)?;
                }
            }
            Ok(())
        })
    }

    /// All rates by backend; an unreadable one is left out.
    pub fn load_rates(&self) -> Result<Vec<(String, Rate)>, StateError> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(RATES).map_err(storage)?;
        let mut rates = Vec::new();
        for entry in table.iter().map_err(storage)? {
            let (backend, text) = entry.map_err(storage)?;
            if let Ok(rate) = serde_json::from_str(text.value()) {
                rates.push((backend.value().to_owned(), rate));
            }
        }
        Ok(rates)
    }
}
