//! Burstbay: `commitlog`.
