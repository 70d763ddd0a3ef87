//! Settles what std and the C library would otherwise reach for late, through syscalls that no filter should need.
//!
//! Touches the calling process's own memory and environment, while it has one thread.

/// Where a confined process's heap gets its memory, and so which calls the filters of threads that allocate have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heap {
    /// One piece that grows as it has to, and stays: [`base::heap`](crate::base::heap).
    Growing,
    /// The same, and blocks of 4 MiB and more are mapped one by one and given back when they are freed:
    /// [`base::heap`](crate::base::heap) and [`base::blocks`](crate::base::blocks).
    Mapping,
    /// So many bytes, reserved now, of which untouched ones cost nothing: no call at all. What needs more ends the
    /// process.
    Reserved(usize),
}

/// Bytes of the largest pages that there are.
#[cfg(target_env = "gnu")]
const PAGE: usize = 64 << 10;

/// What [`Heap::Mapping`] maps.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 4 << 20;

/// Settles it. Nothing that was allocated before may be larger than 128 KiB.
pub(crate) fn settle(heap: Heap) {
    // SAFETY: the process has one thread, so nobody reads the environment meanwhile. A backtrace would open files.
    unsafe {
        std::env::remove_var("RUST_BACKTRACE");
        std::env::remove_var("RUST_LIB_BACKTRACE");
    }
    std::panic::set_hook(Box::new(|panic| {
        // As std says it, but for the thread's number, which is asked of the kernel.
        let thread = std::thread::current();
        crate::say!("thread '{}' {panic}", thread.name().unwrap_or("without a name"));
    }));
    settle_allocator(heap);
}

#[cfg(target_env = "gnu")]
fn settle_allocator(heap: Heap) {
    // SAFETY: these set numbers of the allocator's, and allocate a block that is freed at once; the process has one
    // thread.
    unsafe {
        // With more arenas, each costs reserved address space and mprotect, and glibc counts CPUs when it makes another.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Before it gives back the end of the heap, it reads a file.
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        // As much as is needed and no more at a time: which thread asks is then no matter of chance.
        libc::mallopt(libc::M_TOP_PAD, 0);
        if heap == Heap::Mapping {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        } else {
            libc::mallopt(libc::M_MMAP_MAX, 0);
        }
        if let Heap::Reserved(bytes) = heap {
            // (A compiler that sees through this sees no use.)
            let block = std::hint::black_box(libc::malloc(bytes));
            // Or one touch may take 2 MiB. The pages that are the block's alone; a kernel without huge pages refuses.
            let first = block.map_addr(|at| at.next_multiple_of(PAGE));
            let _refused = libc::madvise(first, bytes.saturating_sub(2 * PAGE), libc::MADV_NOHUGEPAGE);
            // It is the heap's end, so freeing it leaves all of it there.
            libc::free(block);
        }
    }
}

#[cfg(not(target_env = "gnu"))]
fn settle_allocator(_: Heap) {}
