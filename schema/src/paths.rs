//! Where things are on a host, said once: whoever starts the services, whoever calls them and the pages say the same. Pure.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Folder of the sockets, for root.
pub const RUNTIME: &str = "/run/volt-vmm";
/// Folder of what is kept, for root.
pub const STATE: &str = "/var/lib/volt-vmm";
/// What both are called below a plain user's own folders.
pub const FOLDER: &str = "volt-vmm";
/// The environment's variable that names another folder of sockets.
pub const RUNTIME_VARIABLE: &str = "VOLT_RUNTIME_DIR";
/// That of another folder of what is kept.
pub const STATE_VARIABLE: &str = "VOLT_STATE_DIR";
/// That of the users that root gives to services and VMs.
pub const USERS_VARIABLE: &str = "VOLT_UID_RANGE";
/// Whose bytes' locks say which of them are taken. One for the host, as users are.
pub const USERS_LOCK: &str = "/run/volt-vmm-users.lock";
/// Below [`RUNTIME`]: the folder of the VMs' control sockets.
pub const VMS: &str = "vms";
/// Below [`STATE`]: what the services say.
pub const LOG: &str = "services.log";
/// Below [`STATE`]: the installation's name ([`crate::names::is_instance`]).
pub const INSTANCE: &str = "instance";

const SOCKET: &str = ".sock";
const LANE: &str = ".fds";

/// The socket, in `folder`, of the service or VM of that name.
pub fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join([name, SOCKET].concat())
}

/// Of which service or VM this is the socket's file name.
pub fn of_socket(file: &str) -> Option<&str> {
    file.strip_suffix(SOCKET)
}

/// The path of the fd lane (`fd_lane.capnp`) beside the socket at `path`.
pub fn lane(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(LANE);
    PathBuf::from(name)
}

/// Which socket the fd lane at this path is beside.
pub fn of_lane(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(path.file_name()?.to_str()?.strip_suffix(LANE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets_and_lanes_are_told_from_others() {
        let path = socket(Path::new(RUNTIME), "ipamd");
        assert_eq!(path, Path::new("/run/volt-vmm/ipamd.sock"));
        assert_eq!(lane(&path), Path::new("/run/volt-vmm/ipamd.sock.fds"));
        assert_eq!(of_lane(&lane(&path)), Some(path));
        assert_eq!((of_socket("web.sock"), of_socket("web.sock.fds"), of_socket("web")), (Some("web"), None, None));
        assert_eq!(of_lane(Path::new("/run/volt-vmm/ipamd.sock")), None);
    }
}
