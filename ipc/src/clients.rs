//! Who may connect to a vat. Decided by what the kernel says of the peer (SO_PEERCRED), before a byte of the peer's is read.

use crate::{Code, Fault, Peer};

/// The user that the kernel names in place of every one that this user namespace does not map (/proc/sys/kernel/overflowuid).
const UNMAPPED: u32 = 65_534;

/// Root, and the users that are named: whoever else connects is refused, on the RPC socket and on the fd lane.
///
/// Numbers are those of this process's user namespace: in one of its own, the host's root is a stranger unless it is mapped there.
/// What a connected socket allows goes with its descriptor: whoever is *handed* one speaks as the user who connected it.
#[derive(Clone, Debug)]
pub struct Clients(Vec<u32>);

impl Clients {
    /// Root and these users; but never 65534, who may be anybody.
    pub fn root_and(users: impl IntoIterator<Item = u32>) -> Clients {
        Clients(users.into_iter().chain([0]).filter(|user| *user != UNMAPPED).collect())
    }

    /// Fails with `permissionDenied`.
    pub fn check(&self, peer: Peer) -> Result<(), Fault> {
        if self.0.contains(&peer.uid) {
            return Ok(());
        }
        let why = format!("user {} is neither root nor the user that it serves", peer.uid);
        Err(Fault::new(Code::PermissionDenied, "connect", why, "Have that user hand you a capability"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> Peer {
        Peer { uid, gid: 0, pid: 1, connection: 0 }
    }

    #[test]
    fn root_and_the_named_users_are_admitted_and_their_neighbours_are_not() {
        let clients = Clients::root_and([1000, 70_000]);
        for uid in [0, 1000, 70_000] {
            clients.check(peer(uid)).unwrap();
        }
        for uid in [1, 999, 1001, 69_999, 70_001, u32::MAX] {
            assert_eq!(clients.check(peer(uid)).unwrap_err().code, Code::PermissionDenied, "{uid}");
        }
    }

    #[test]
    fn the_user_that_stands_for_all_unmapped_ones_is_refused_even_if_named() {
        assert!(Clients::root_and([UNMAPPED]).check(peer(UNMAPPED)).is_err());
    }
}
