//! Burstbay: `sim`.
