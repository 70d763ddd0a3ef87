//! `ipamd`: address pools, leases and reservations, handed out as capabilities (`schema/addresses.capnp`).
//!
//! A request passes through these parts, from the bottom of the table up:
//!
//! | module | what it does | what it never sees |
//! |---|---|---|
//! | [`config`] | checks the text that defines a pool | files, time, clients |
//! | [`policy`] | says which address comes next | workloads, time, files, clients |
//! | [`mod@file`] | opens the database, or says why not | clients |
//! | [`store`] | rows in SQLite; the database itself refuses a double allocation | clients, time |
//! | [`reserve`] | space on the disk that is kept for giving things back | clients |
//! | [`lives`] | the locked files by which a lease outlives its connection | clients, time |
//! | [`ledger`] | the rules: who may have which address, until when | clients, secrets |
//! | [`database`] | the thread that has the file; one commit for all that waits | sockets |
//! | [`rpc`] | the capabilities; what is dropped is given back | files |
//!
//! Two threads. The main one talks to clients and has no syscall on files; the database thread has the state directory and no socket.
//! The process has no Linux capability and no network.
//!
//! Decisions:
//! * An answer comes after its commit is on the disk (`synchronous=FULL`), also that of a call which only reads.
//! * A lease in its grace period counts against the allocator it came from: otherwise one allocator could empty the pool by dropping leases.
//! * The address that was given back last is handed out last, also where this process ended meanwhile: neighbours, the host among them, have
//!   the last holder's MAC address for it.
//! * A lease is held as long as a capability on it lives, or its life is locked, which the kernel sees to. Neither a connection's end nor this
//!   process's is taken for the end of its holder.
//! * An address whose life somebody has is given to nobody else, whatever the database says of it: it may be a backup that was restored.
//! * What gives something back succeeds on a full disk. What is new is refused while the space that is kept for that is not all there.
//! * The name of a pool or lease is never used for another one: what an old capability names is gone for good.
//! * A workload that is given a reservation keeps the address it leases until it allocates again.
//! * A reservation whose caller has gone before it was on the disk is taken back: nobody has its SturdyRef.

pub mod config;
pub mod database;
pub mod error;
pub mod fault;
pub mod file;
pub mod filters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod json;
pub mod ledger;
pub mod lives;
pub mod policy;
pub mod reserve;
pub mod rpc;
pub mod store;
