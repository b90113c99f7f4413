//! The cluster map and placement.
