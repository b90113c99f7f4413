//! Burstbay: `cli`.
