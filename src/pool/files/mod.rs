//! Files of pool mode.
pub mod place;
pub mod prefix;
pub mod scan;
pub mod uploads;
