//! The C API: programs in C, linked with the library as it is installed, against real servers.

#[expect(dead_code, reason = "made for the other tests")]
#[path = "../real_server/harness.rs"]
mod harness;
#[expect(dead_code, reason = "made for the other tests")]
#[path = "../real_server/namespaces.rs"]
mod namespaces;
#[expect(dead_code, reason = "made for the other tests")]
#[path = "../real_server/several.rs"]
mod several;

mod conformance;
mod effects;
mod failures;
mod headers;
mod mpi;
mod programs;
mod settings;
