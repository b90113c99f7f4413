//! A real server as its own process: killed, filled up, damaged, traced. These tests use loopback,
//! files under the target directory, and where they are root a small tmpfs.

mod commands;
mod crashes;
mod damage;
mod full;
mod harness;
mod inspect;
mod trace;
