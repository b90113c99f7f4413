//! Burstbay: `proto`.
