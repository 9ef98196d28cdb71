//! tmp
pub mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
