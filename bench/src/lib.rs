//! Burstbay: `bench`.
