@0xaa3c6ad1ffbe48a9;
# Address pools, leases and reservations.
#
# Three lifetimes. A lease is bound to its holder. With its `life` it is continued: who has that descriptor keeps it over any restart of the
# service, and after its connection has ended. A reservation is durable: it says that an address belongs to a workload, whether or not
# anybody holds it, and survives every restart.

using Cxx = import "capnp/c++.capnp";
using FdLane = import "fd_lane.capnp";
using Net = import "network.capnp";
$Cxx.namespace("volt");

const maxPools :UInt32 = 256;
# Pools of one `ipamd`; `definePool` of one more fails with `exhausted`.
const maxLeases :UInt32 = 65536;
# Leases that one allocator may be made for. One connection can hold as many (limits.capnp).
const maxListed :UInt32 = 512;
# Entries that `Pool.leases` gives at one time.
const maxConfigBytes :UInt32 = 65536;
# The longest configuration text.
const graceSeconds :UInt16 = 30;
# How long an address is kept for its workload once nobody holds its lease.

interface Ipam {
  # Holding this allows defining and using every pool. Bootstrap capability of `ipamd` for root, for the user ipamd runs as, and for the one it was
  # started for (--owner). A connection gets it once: who releases it keeps what came of it, and no more.

  definePool @0 (config :Text) -> (pool :Pool);
  # `config` is a JSON text (`maxConfigBytes` at most):
  #   {"network":"volt0","subnet":"10.42.0.0/24","gateway":"10.42.0.1","pool":{"start":"10.42.0.2","end":"10.42.0.254"},
  #    "reservations":{"vm-web":"10.42.0.10","container-db":"10.42.0.20"}}
  # Defines the pool of that network, or changes it if no lease or durable reservation would fall outside. `gateway`, `pool` and `reservations` may be
  # absent: the first address, everything between the gateway and the broadcast address, none. So may `"type"`, which is "bridged" or
  # "host-only", `"nat"`, which is true or, where it is absent, false, and `"mtu"`, the bytes that a frame of the network holds (`minMtu` to `maxMtu` of network.capnp): what its bridge has. `"ipv6":true` gives it IPv6 beside, in
  # a subnet that follows from the installation and its name; `"subnet6"`, such as "fd12:3456:789a:1::/64", in that one, with `"gateway6"` or the subnet's
  # ::1 for the bridge. No address of it is handed out here: a guest's follows from its MAC address (network.capnp). `"policy"` is what its ports
  # have that are made without one: `{"default":"deny","allow":["10.0.0.0/8 tcp 443"]}`, with rules as in `PolicyRules` of network.capnp; "allow" as the default
  # is the rule "any" beside them. Unknown keys are refused.
  # docs/network.schema.json is the JSON schema of it.
  # Errors: invalidArgument (says which key and why), conflict (overlaps another pool, or a live lease would fall outside).

  pool @1 (network :Text) -> (pool :Pool);
  # The pool of a network. `volt0` is built in, with the configuration above less its reservations: it need not be defined by anybody, and is defined by
  # the first who asks for it. Errors: notFound, conflict (of the built-in network only: its subnet overlaps another pool).

  list @2 () -> (pools :List(PoolInfo));
  # Every pool, by name of its network; the built-in one also before it is defined, unless its subnet overlaps another's.

  removePool @3 (network :Text) -> ();
  # Ends the pool of that network, and the reservations that its configuration makes. Calls on capabilities that came of it fail with `revoked`, also
  # if the network is defined again. The built-in one is then as if nobody had asked for it.
  # Errors: notFound, wrongState (an address is leased, a grace period runs, or there is a durable reservation).

  checkPool @4 (config :Text) -> (info :PoolInfo);
  # What `definePool` would define, and with its errors, but nothing changes: for who has something else to do first, such as making the bridge.
  # `free` is what it would be if nothing were leased or reserved.
}

interface Pool {
  # Holding this allows allocating from one pool, and keeping its reservations.

  info @0 () -> (info :PoolInfo);

  allocator @1 (maxLeases :UInt32) -> (allocator :Allocator);
  # A narrower capability: at most `maxLeases` leases at one time (1 to `maxLeases` of this file), no reservations, no list.

  reserve @2 (workload :Text, address :Text) -> (reservation :Reservation, sturdyRef :Data);
  # Sets an address aside for a workload, for good. `address` may be empty: the next free one. The address may lie in the subnet outside the pool's range.
  # `sturdyRef` (32 bytes) restores the reservation later; only its hash is stored, so it cannot be asked for twice.
  # Errors: invalidArgument, alreadyExists (the address, or the workload, is reserved or leased by another), exhausted.

  restore @3 (sturdyRef :Data) -> (reservation :Reservation);
  # Errors: notFound.

  leases @4 (after :Text) -> (leases :List(LeaseInfo));
  # What is held or reserved, by address, at most `maxListed` from the address behind `after` on; empty for the start.

  resume @5 (life :FdLane.FdToken) -> (lease :Lease);
  # A capability on the lease whose `life` this is, beside any other that there is: the way back for who lost its own because the service was restarted,
  # or because it let its connection go. It has to be the open file that `life` gave, or a duplicate of it, still locked.
  # Errors: badToken, notFound (it is not the life of a lease of this pool: that one has ended, or has a newer life; or it is another file, or this
  # one but opened anew).

  reservation @6 (workload :Text) -> (reservation :Reservation);
  # The durable reservation of that workload, without its `sturdyRef`: for who clears away what nobody has the reference of any more.
  # Errors: notFound (nothing is reserved for it, or by the pool's configuration).
}

struct PoolInfo {
  network @0 :Text;
  subnet @1 :Text;
  # In CIDR notation, such as "10.42.0.0/24".
  gateway @2 :Text;
  prefixLength @3 :UInt8;
  rangeStart @4 :Text;
  rangeEnd @5 :Text;
  # First and last address that are handed out without a reservation, both included.
  free @6 :UInt64;
  # Addresses of the range that are neither leased, reserved nor within their grace period.
  config @7 :Text;
  # The JSON text that `definePool` would accept to make this pool again.
  mtu @8 :UInt32;
  # Bytes that a frame of the network holds; 0 where the configuration says nothing of it.
  ipv6 @9 :Text;
  # As `NetworkConfig` of network.capnp has it: the bridge's IPv6 address with its prefix, "auto", or empty for a network without.
  kind @10 :Net.NetworkKind;
  nat @11 :Bool;
  # As `NetworkConfig` has them.
  policy @12 :Net.PolicyRules;
  # As `NetworkConfig` has it; null where the configuration says nothing of it.
  vlan @13 :UInt16;
  parent @14 :Text;
  isolate @15 :Bool;
  mode @16 :Net.MacvtapMode;
  trust @17 :Bool;
  # As `NetworkConfig` has them.
}

interface Allocator {
  # Holding this allows taking addresses from one pool, up to a number, for workloads of any name: also one that an address is reserved for. Who is to
  # have one workload's address gets its `Lease`.

  allocate @0 (workload :Text) -> (lease :Lease);
  # The address for a workload: the one that is reserved for it, else the one it held before if its grace period runs, else a free one.
  # The answer comes after the lease is on disk. Errors: invalidArgument, alreadyExists (the workload holds a lease that is alive), exhausted.
}

interface Lease {
  # Holding this keeps one address. It is bound to its holder: when the last reference is dropped, or the connection ends, or the service is restarted,
  # the address is kept for the same workload for a grace period (`graceSeconds`), and is free after that; but for who has the lease's `life`.

  info @0 () -> (info :LeaseInfo);

  release @1 () -> ();
  # Gives the address back now, without a grace period, whoever has its life. Every later call on the lease fails with `revoked`.

  life @2 () -> (life :FdLane.FdToken);
  # A descriptor of an empty file, open for reading and locked (flock(2)). As long as any process has it or a duplicate open, the lease is held,
  # whatever becomes of this capability, the connection and the service; once the last is closed (or unlocked) and nobody holds the lease
  # otherwise, its grace period begins, some seconds later at most. `Pool.resume` takes it back for a capability.
  # A lease has one life: asking again makes a new one, and the descriptor before it keeps nothing any more.
  # Errors: revoked, overloaded (tokens), exhausted (the file system of the service's state is full).
}

interface Reservation {
  # Holding this allows ending one reservation. Dropping it changes nothing: a reservation is durable.

  info @0 () -> (info :LeaseInfo);

  cancel @1 () -> ();
  # Ends the reservation. A lease on the address lives on as an ordinary one. Later calls fail with `revoked`.
}

struct LeaseInfo {
  workload @0 :Text;
  address @1 :Text;
  prefixLength @2 :UInt8;
  gateway @3 :Text;
  # What the workload is to have as its router. Empty on an isolated network.
  network @4 :Text;
  state @5 :State;
  reserved @6 :Bool;
  # Whether the address is set aside for this workload.

  enum State {
    held @0;
    # Somebody holds the lease, or has its life.
    grace @1;
    # The holder has gone; only the same workload gets the address before the grace period ends.
    idle @2;
    # Reserved, and not leased.
  }
}
