@0xb3cb8b245830dc86;
# The host's network, cut into tenants.
#
# Authority narrows along the chain Host -> Tenant -> Network -> PortFactory -> Port: each step hands out an interface that can do
# less, and nothing that is handed out leads back up.

using Cxx = import "capnp/c++.capnp";
using FdLane = import "fd_lane.capnp";
using Net = import "network.capnp";
$Cxx.namespace("volt");

const maxNetworks :UInt32 = 256;
const maxTenants :UInt32 = 1024;
# Networks and tenants of one `netmgr`; one more fails with `exhausted`.

interface Host {
  # Holding this allows making networks and tenants on this host: the owner's authority. Bootstrap capability of `netmgr` for root, for the user
  # netmgr runs as, and for the one it was started for (--owner). A connection gets it once: who releases it keeps what came of it, and no more.

  defineNetwork @0 (config :Net.NetworkConfig, within :Namespace) -> (network :Net.Network);
  # Makes the network, or adopts it: a bridge of that name that carries this installation's mark, or one without an owner, is brought to `config`;
  # any other is left alone. Defining the same thing twice is no error. The network outlives every capability on it, and its bridge and ports
  # are kept as they are defined: what something else on the host changes is changed back.
  # Errors: invalidArgument, conflict (a foreign interface, or another installation of Volt, has that name; or an address or route of another
  # interface holds one of its subnets; or a port there has an address outside of them), alreadyExists (a gateway is an address of a port there),
  # exhausted (256 networks), unavailable (IPv6, which this host cannot switch on; VLANs, which its kernel lacks; there is no such `parent`).
  #
  # An isolated network is in a network namespace of its own: `within`, which no other network has, and not that of the service. It may be null for one
  # that this service has, and for any other kind it is not looked at. A service that has been started again has none: it learns of each by its next definition, and takes
  # on the bridge and the ports that it finds there. A network that has ports stays in its namespace, and none becomes isolated, or ceases to be, but by being
  # removed and defined anew.
  # Errors beside those above: badToken, invalidArgument (what is in `within` is not what it should be), wrongState (it has ports, in another namespace),
  # permissionDenied (who opened the sockets may not configure that namespace).

  network @1 (network :Text) -> (network :Net.Network);
  # Errors: notFound.

  tenant @2 (tenant :Text, quota :TenantQuota) -> (tenant :Tenant);
  # A tenant is bound to its holder: when the last reference goes, so do the ports made through it.
  # `tenant`: its name, 1 to 63 bytes of [a-z0-9-]. Errors: invalidArgument, alreadyExists.

  removeNetwork @3 (network :Text) -> ();
  # Takes a network that has no ports off the host. Errors: notFound, wrongState (ports are attached).

  networks @4 () -> (networks :List(Text), lost :List(Text));
  # The names of all networks, in order; `maxNetworks` at most. `lost`: those of networks that are not there, though ports of theirs are, as
  # somebody has deleted a bridge while no `netmgr` ran; as many at most. Once such a network is defined again, it has them again.
}

struct Namespace {
  # A network namespace, as sockets that were opened in it by somebody who has CAP_NET_ADMIN there: all that is done within is done through these, and by his
  # right. They are none that somebody reads from or writes to beside: what is not heard fails. None is connected, nothing waits on the first two, and the
  # others are bound (bind(2)).

  rtnetlink @0 :FdLane.FdToken;
  # NETLINK_ROUTE.
  nfnetlink @1 :FdLane.FdToken;
  # NETLINK_NETFILTER, with a buffer for sending of some MiB: a table is sent at once.
  linkChanges @2 :FdLane.FdToken;
  # NETLINK_ROUTE, a member of the groups of links, of neighbours, and of addresses and routes of both families (RTNLGRP_*: 1, 3, 5, 7, 9, 11).
  ruleChanges @3 :FdLane.FdToken;
  # NETLINK_NETFILTER, a member of NFNLGRP_NFTABLES.
}

struct TenantQuota {
  ports @0 :UInt32 = 16;
  # The most ports this tenant may hold at one time, over all its networks; 0 is none at all.
}

interface Tenant {
  # Holding this allows using the host's networks within one quota. It cannot make networks, nor see other tenants.

  portFactory @0 (network :Text) -> (factory :Net.PortFactory);
  # A factory that draws on this tenant's quota. Errors: notFound.
}
