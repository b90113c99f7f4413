//! Memory of the server: mimalloc, as the distribution has it (docs/decisions/0013).

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;

/// Alignment that it gives without being asked, to whatever is at least as large.
const ALIGN_ALWAYS: usize = 16;

#[link(name = "mimalloc")]
unsafe extern "C" {
    fn mi_malloc(size: usize) -> *mut c_void;
    fn mi_malloc_aligned(size: usize, alignment: usize) -> *mut c_void;
    fn mi_zalloc_aligned(size: usize, alignment: usize) -> *mut c_void;
    fn mi_realloc_aligned(p: *mut c_void, newsize: usize, alignment: usize) -> *mut c_void;
    fn mi_free(p: *mut c_void);
}

/// The allocator.
pub struct Mimalloc;

#[global_allocator]
static GLOBAL: Mimalloc = Mimalloc;

// SAFETY: memory of these functions is as large and as aligned as they are asked for, null where
// there is none, nobody else's until it is given back, and survives a reallocation up to the smaller
// of the two sizes. They do not unwind.
unsafe impl GlobalAlloc for Mimalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if align <= ALIGN_ALWAYS && align <= size {
            // SAFETY: takes any size.
            return unsafe { mi_malloc(size) }.cast();
        }
        // SAFETY: the alignment is a power of two.
        unsafe { mi_malloc_aligned(size, align) }.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the alignment is a power of two.
        unsafe { mi_zalloc_aligned(layout.size(), layout.align()) }.cast()
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _: Layout) {
        // SAFETY: the caller got `ptr` from here, and gives it back once.
        unsafe { mi_free(ptr.cast()) };
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller got `ptr` from here with this layout, whose alignment is a power of two.
        unsafe { mi_realloc_aligned(ptr.cast(), new_size, layout.align()) }.cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn mi_is_in_heap_region(p: *const c_void) -> bool;
    }

    fn is_ours<T: ?Sized>(memory: &T) -> bool {
        // SAFETY: looks where the address lies, not what is there.
        unsafe { mi_is_in_heap_region(std::ptr::from_ref(memory).cast()) }
    }

    #[test]
    fn what_the_server_allocates_is_of_mimalloc() {
        let mut grown = vec![1_u8; 10];
        grown.resize(100_000, 2);
        assert!(is_ours(Box::new(7_u64).as_ref()) && is_ours(grown.as_slice()));
        assert!(is_ours(vec![0_u64; 1000].as_slice()));
        let here = 7_u64;
        assert!(!is_ours(&here), "the stack is not");
    }

    #[test]
    fn memory_is_as_aligned_as_it_is_asked_for() {
        for size in [1, 2, 7, 8, 9, 16, 17, 24, 40, 100, 1000, 5000, 70_000, 2 << 20] {
            for align in [1, 2, 4, 8, 16, 32, 64, 256, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                let all = [GLOBAL.alloc_at(layout, false), GLOBAL.alloc_at(layout, true)];
                for (ptr, filled) in all.into_iter().zip([None, Some(0)]) {
                    assert!(!ptr.is_null() && ptr.addr().is_multiple_of(align), "{layout:?}");
                    // SAFETY: of this layout, and for it all zeroed memory is initialised.
                    unsafe {
                        if let Some(byte) = filled {
                            let bytes = std::slice::from_raw_parts(ptr, size);
                            assert!(bytes.iter().all(|found| *found == byte));
                        }
                        ptr.write_bytes(5, size);
                        let longer = GLOBAL.realloc(ptr, layout, 2 * size);
                        assert!(longer.addr().is_multiple_of(align), "{layout:?} grown");
                        let bytes = std::slice::from_raw_parts(longer, size);
                        assert!(bytes.iter().all(|found| *found == 5));
                        GLOBAL.dealloc(longer, Layout::from_size_align(2 * size, align).unwrap());
                    }
                }
            }
        }
    }

    impl Mimalloc {
        fn alloc_at(&self, layout: Layout, zeroed: bool) -> *mut u8 {
            // SAFETY: no layout here is empty.
            unsafe { if zeroed { self.alloc_zeroed(layout) } else { self.alloc(layout) } }
        }
    }
}
