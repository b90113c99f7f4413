//! Only where `IM_CLIENT_CATCH_SIGSEGV` asks for it: says where the program crashed, then lets it.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::log;
use crate::raw;

static CAUGHT: AtomicBool = AtomicBool::new(false);

/// Installs the handler, once, and never over one of the program's own.
pub fn catch() {
    if CAUGHT.swap(true, Ordering::AcqRel) {
        return;
    }
    // SAFETY: both are plain structures for which zeros are valid, and the handler takes three
    // arguments as SA_SIGINFO says.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        let asked = libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut old);
        if asked != 0 || old.sa_sigaction != libc::SIG_DFL {
            return;
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = crashed;
        new.sa_sigaction = handler as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const new, std::ptr::null_mut());
    }
}

/// Back to the instruction, which faults again: the handler is reset by then, and the process ends
/// as it would have.
extern "C" fn crashed(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let mut text = *b"burstbay: SIGSEGV at address 0x0000000000000000; backtrace:\n";
    // SAFETY: the kernel gives a valid structure.
    let mut address = unsafe { (*info).si_addr() } as usize;
    for digit in text[31..47].iter_mut().rev() {
        *digit = b"0123456789abcdef"[address & 15];
        address >>= 4;
    }
    let fd = log::fd();
    raw::write_all(fd, &text);
    let mut frames: [*mut c_void; 64] = [std::ptr::null_mut(); 64];
    // SAFETY: room for 64 frames. Both functions write to descriptors and memory given here only.
    unsafe {
        let count = libc::backtrace(frames.as_mut_ptr(), 64);
        libc::backtrace_symbols_fd(frames.as_ptr(), count, fd);
    }
}
