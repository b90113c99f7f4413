//! The C API: what programs made for IME link with (`ime_native_*`, `ime_client_native2_*`), and
//! our own additions (`bb_*`).
//!
//! The library lives in other people's processes. No panic and no unwinding leaves it (`guard`), it
//! takes no signal unless it is asked to (`crash`), what is not ours goes to the kernel by raw
//! system calls (`raw`), and a fork is survived (`fork`). A descriptor that it hands out is one of
//! the kernel's (`table`).

mod aio;
mod calls;
mod config;
mod crash;
mod credentials;
mod exports;
mod fork;
mod guard;
mod library;
mod log;
mod monitor;
mod names;
mod open_file;
mod own;
mod paths;
mod raw;
mod residency;
mod ring;
mod table;
mod transfer;
