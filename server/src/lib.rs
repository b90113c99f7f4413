//! Burstbay: `server`.
