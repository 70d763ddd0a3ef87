//! One VM: `volt run`, and the helpers that it makes of itself. In the order in which a VM meets them:
//!
//! | module | subject |
//! |---|---|
//! | `run` | from its configuration to its last byte of console |
//! | `limits`, `opened`, `cell` | what it needs of whoever starts it; what was named; its user and cgroup |
//! | `janitor`, `launcher`, `packet` | the helpers, and what is said to the second |
//! | `filters` | what supervisor and launcher may ask of the kernel |
//! | `console`, `terminal`, `signals` | whoever started it: what the guest says, what is typed, what is asked for |
//! | `control` | its control socket |
//! | `resources`, `machine` | what it borrows from the services; its processes, wired |

mod cell;
mod console;
mod control;
mod filters;
mod janitor;
mod launcher;
mod limits;
mod machine;
mod opened;
pub mod packet;
mod resources;
mod run;
mod signals;
mod terminal;

pub use run::run;
