//! Values that must not show, and the ways to give one.

use serde_yaml::Value;

use super::raw::{MAX_TEXT, Node, is_clean, plain, shorten};
use super::yaml;

/// A value that must not show in logs and replies: `Debug` and `Display` print `MASKED`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MASKED")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MASKED")
    }
}

impl Node<'_> {
    /// A text, `{env: NAME}` or `{file: PATH}`; never shown.
    pub(super) fn secret(&self) -> Option<Secret> {
        let taken = match self.value()? {
            Value::String(text) => Ok(text.clone()),
            Value::Mapping(map) if map.len() == 1 => self.referred(),
            _ => Err("use a text in quotes, {env: NAME} or {file: PATH}".to_owned()),
        };
        match taken {
            Ok(text) if is_clean(&text) => Some(Secret::new(text)),
            Ok(_) => {
                let cure = format!("use 1 to {MAX_TEXT} characters on one line");
                self.masked_problem(cure);
                None
            }
            Err(cure) => {
                self.masked_problem(cure);
                None
            }
        }
    }

    /// The secret that `{env: NAME}` or `{file: PATH}` refers to, or what to do.
    fn referred(&self) -> Result<String, String> {
        let name = |key: &str| self.get(key).value().and_then(plain);
        if let Some(name) = name("env") {
            let value = self.reading().env.get(&name).filter(|value| !value.is_empty());
            return value
                .cloned()
                .ok_or_else(|| format!("set the environment variable {}", shorten(&name)));
        }
        if let Some(path) = name("file") {
            let path = self.reading().resolve(&path);
            let text = yaml::read(&path)
                .map_err(|refusal| format!("file {}: {}", path.display(), refusal.cure))?;
            return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
        }
        Err("use a text in quotes, {env: NAME} or {file: PATH}".to_owned())
    }
}
