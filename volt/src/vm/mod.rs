//! One VM: `volt run`, and the helpers that it makes of itself.

pub mod cell;
pub mod console;
pub mod control;
pub mod janitor;
pub mod launcher;
pub mod limits;
pub mod machine;
pub mod packet;
pub mod resources;
pub mod run;
pub mod terminal;
