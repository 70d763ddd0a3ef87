//! `kernel-store`: guest kernels, unpacked, checked, kept by the digest of their content and handed out sealed (`schema/kernel_store.capnp`).
//!
//! | thread | module | what it may | what it never sees |
//! |---|---|---|---|
//! | control | [`rpc`], [`service`], [`places`], [`cache`] | sockets | an image's content, a path |
//! | unpack | [`reading`], [`image`] | memory, reading at an offset | clients, paths, what other clients imported |
//! | disk | [`store`], [`index`] | the state directory, memory files | clients |
//!
//! The process has no Linux capability and no network.
//!
//! Decisions:
//! * An image is read into memory once (256 MiB at most) and hashed there; one that was imported before is recognised by that hash and not unpacked
//!   again. So `volt run` may import its kernel at every start, and a file that changes while it is read harms nobody.
//! * A decoder's output is not trusted until it is whole: ELF checks run on the result, in memory that nobody else has.
//! * The two kernels that were opened last (256 MiB together at most) stay in memory, sealed: opening one of them again takes microseconds, reading a
//!   kernel of 53 MB back and hashing it tens of milliseconds. This memory is the kernels' own: VMs that run one share it.
//! * Decoders may panic on hostile input: that fails the import, not the service. The thread's memory is another then, and after a panic of the
//!   disk thread all that it has of the store is read from the disk again.

pub mod cache;
pub mod digest;
pub mod dropped_on;
pub mod error;
pub mod filters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod image;
pub mod index;
pub mod memfd;
pub mod places;
pub mod reading;
pub mod rpc;
pub mod service;
pub mod store;
