//! How much of the heap is live, in a test program that takes this in at its root.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes are live. What a library of C allocates for itself is not among them.
pub(crate) fn live() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// The system's allocator, with a count of what is live.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static HEAP: Counting = Counting;

// SAFETY: both pass what they are given on to the system's allocator, and its answer back. The other methods, as they
// come with the trait, call these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}
