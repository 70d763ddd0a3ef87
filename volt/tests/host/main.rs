//! The real programs, run as people run them: `volt` with its services, a core and backends, and guests of a few
//! instructions. Each test has a network namespace and directories of its own; whatever runs in that namespace at its
//! end is killed. Needs root, /dev/kvm and the programs of the other packages (`cargo build --workspace --bins`).

mod addresses;
mod bursts;
mod cgroups;
mod cni;
mod console;
mod control;
mod cri;
mod crowded;
mod ends;
mod engines;
mod halfway;
mod host;
mod inherited;
mod isolated;
mod life;
mod mapped;
mod networks;
mod plain;
mod published;
mod refusals;
mod restarts;
mod services;
mod stopped;

use testkit::guest as kernel;
