//! Burstbay: `client-lib`.
