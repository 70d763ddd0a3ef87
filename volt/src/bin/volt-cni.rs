//! `volt-cni`: containers on Volt's networks, for engines that speak CNI. See `volt::cni`.

fn main() {
    volt::cni()
}
