//! A vCPU's filter allows no memory to be mapped, so nothing that a guest can make a vCPU do may allocate or free.
//! Counted by an allocator that is the system's otherwise.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::super::regs::{reg, status};
use super::bench::{Bench, VERSION_1, spec};
use super::peer::{Backend, Reaction};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    CALLS.set(CALLS.get() + 1);
}

// SAFETY: each call is the system allocator's own; the count touches a thread-local that needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Calls of the allocator that `what` makes in this thread.
fn calls(what: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    what();
    CALLS.get() - before
}

#[test]
fn allocations_are_counted() {
    assert_eq!(calls(|| drop(std::hint::black_box(vec![1_u8; 10]))), 2);
}

#[test]
fn vcpu_starting_writing_and_resetting_a_device_allocates_nothing() {
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(2, socket)).ready();
    let life = || {
        bench.drive(VERSION_1, 2);
        bench.device.write(reg::CONFIG, &[1; 8]);
        bench.device.read(reg::CONFIG, &mut [0; 8]);
        assert!(bench.status() == 15);
        bench.write(reg::STATUS, 0);
    };
    assert_eq!(calls(life), 0);
}

#[test]
fn vcpu_of_a_device_that_fails_allocates_nothing() {
    for refused in [5, 11, 0] {
        let script =
            move |seen: &super::peer::Seen| if seen.request == refused { Reaction::Nack(1) } else { Reaction::Behave };
        let (socket, _peer) = Backend::default().serve(script);
        let bench = Bench::hurried(spec(2, socket)).ready();
        // Of that which is refused nothing, the thread stands still.
        let (_until, stall) = std::sync::mpsc::channel();
        bench.wiring.registered().stall = (refused == 0).then_some(stall);
        let life = || {
            for _ in 0..2 {
                bench.drive(VERSION_1, 1);
                bench.write(reg::STATUS, 0);
            }
        };
        assert_eq!(calls(life), 0, "{refused} refused");
        assert_eq!(bench.status(), status::NEEDS_RESET);
    }
}
