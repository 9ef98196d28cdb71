//! Jobs run where they can.
