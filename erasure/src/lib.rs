//! Systematic N+K erasure codes and CRC32C.
