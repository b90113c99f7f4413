//! Real servers as processes of their own: killed, filled up, damaged, traced. These tests use loopback,
//! files under the target directory, and where they are root a small tmpfs.

mod commands;
mod crashes;
mod credentials;
mod damage;
mod faults;
mod full;
mod harness;
mod inspect;
mod load;
mod namespaces;
mod reactors;
mod several;
mod several_servers;
mod trace;
