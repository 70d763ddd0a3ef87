//! What the lab's driver, the host tests and `xtask` share: the archive writer, processes with a
//! console, and the check that nothing was left behind.

pub mod console;
pub mod cpio;
