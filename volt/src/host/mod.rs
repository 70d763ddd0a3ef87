//! What is the host's and not one VM's, in the order in which a command meets it:
//!
//! | module | subject |
//! |---|---|
//! | `paths`, `identity` | where things are; whose users they are |
//! | `told` | what the host lacks, said once a boot |
//! | `lock`, `sockets` | who may make or remove sockets, and removing them |
//! | `services`, `keeper` | finding services, and starting those that are missing |
//! | `links` | talking to services and VMs |
//! | `isolated` | network namespaces that networks of their own are in |
//! | `networks`, `published`, `kernels` | what the services are asked for by more than one command |
//! | `absence` | that a service has ended, and is there again |

pub mod absence;
pub mod identity;
pub mod isolated;
pub mod keeper;
pub mod kernels;
pub mod links;
pub mod lock;
pub mod networks;
pub mod paths;
pub mod published;
pub mod services;
pub mod sockets;
pub mod told;
pub mod unpinner;
