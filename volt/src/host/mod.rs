//! What is the host's and not one VM's: where things are, who is who, and the services.

pub mod absence;
pub mod identity;
pub mod keeper;
pub mod networks;
pub mod paths;
pub mod services;
pub mod told;
