@0xa8de502ccd5197ef;
# Networks and the ports on them.

using Cxx = import "capnp/c++.capnp";
using FdLane = import "fd_lane.capnp";
$Cxx.namespace("volt");

const maxPorts :UInt32 = 1023;
# Ports that a bridge of Linux has at most, be they Volt's or not; that one factory may be made for, and that `Network.info` lists.

const minPrefixLength :UInt8 = 8;
const maxPrefixLength :UInt8 = 30;
# Of an IPv4 subnet, here and in addresses.capnp.
const ipv6PrefixLength :UInt8 = 64;
# Of an IPv6 subnet: behind it an interface identifier has its place (RFC 4291, section 2.5.1).
const minMtu :UInt32 = 1280;
const maxMtu :UInt32 = 65521;
# Bytes: the least that IPv6 runs on, and the most that a TAP takes.

const minVlan :UInt16 = 1;
const maxVlan :UInt16 = 4094;
# Numbers of VLANs (IEEE 802.1Q).

const maxIpv4Addresses :UInt8 = 16;
const maxIpv6Addresses :UInt8 = 16;
# Addresses of one port.
const maxAddressBytes :UInt8 = 72;
# Bytes of one port's addresses, so that they fit its interface's alias: for each family what all of them begin with (3 bytes of IPv4 at most, 15 of
# IPv6), once, and the rest of each. 16 of a /24 and 16 of a /112 take 65; of such as have nothing in common there is room for four of IPv6 and two of IPv4.

const maxRoutes :UInt8 = 16;
# Routes that `PortFactory.createVeth` makes.

const maxRules :UInt8 = 32;
# Rules of one policy.
const maxRanges :UInt32 = 16384;
# Rules of all policies in force together, and ranges of addresses and ports that they take where no two of a policy overlap; one more fails with `exhausted`.

const maxSockets :UInt8 = 64;
# Ports of the host that one call publishes.
const maxPublished :UInt32 = 256;
const maxPublishedByHost :UInt32 = 2048;
# Ports of the host that lead to one port's guest, and to all guests.

const maxListedPorts :UInt32 = 256;
# Ports that `Network.ports` gives at one time.

const minRate :UInt64 = 1000;
const maxRate :UInt64 = 10000000000;
# Bytes a second of a `Rate`, unless it is 0.

const maxWaitingEvents :UInt32 = 256;
# Events of a network that are kept for who watches it and has not taken them yet.

struct NetworkConfig {
  name @0 :Text;
  # Of the bridge interface: 1 to 15 bytes of [A-Za-z0-9_.-], not starting with a dot or a dash, and not "all" or "default".
  gateway @1 :Text;
  # The bridge's own address, such as "10.42.0.1". Empty for a bridge without one.
  prefixLength @2 :UInt8;
  # Of the subnet: `minPrefixLength` to `maxPrefixLength`.
  mtu @3 :UInt32;
  # Bytes, `minMtu` to `maxMtu`; 0 for the one that the network has, or, where it is new, the kernel's default.
  ipv6 @4 :Text;
  # The bridge's own IPv6 address, with its prefix of `ipv6PrefixLength` bits, such as "fd12:3456:789a:1::1/64": global unicast (2000::/3) or unique local
  # (fc00::/7). "auto" for one in the unique local subnet that follows from the installation and the network's name, which is what `Network.info`
  # says then. Empty for a network without IPv6: the host's is off on its bridge.
  kind @5 :NetworkKind;
  nat @6 :Bool;
  # Whether its guests reach what is beyond the host, under the host's address: what host-only ones do, and `bridged` ones where it is set. The host
  # forwards for that. Nothing from beyond the host reaches a guest but answers.
  policy @7 :PolicyRules;
  # What a port has that is made without a policy of its own. Ports that are there keep what they have. Null for none: its guest sends to wherever it
  # likes, but for the metadata of clouds (169.254.169.254, fd00:ec2::254).
  vlan @8 :UInt16;
  # The VLAN that it is of `parent`, `minVlan` to `maxVlan`; 0 for none. Of a `bridged` network without `nat`, or of an `sriov` one. Guests' frames have no tag:
  # it is put on where they leave. What comes from there may be from whomever, but not as a guest or as the bridge.
  parent @9 :Text;
  # The host's interface that carries that VLAN, that the guests of a `macvtap` network are on beside the host, or whose virtual functions those of an `sriov` one
  # have, such as "eth0"; not one of Volt's; empty for none. `mtu` is at most that interface's, which is otherwise left as it is.
  isolate @10 :Bool;
  # Whether its guests are kept from one another: no frame goes from one port to another one, whatever it is, also not what all are sent. They reach the
  # bridge, and what is behind it or behind `parent`; one another only by what the host publishes. Of ports that are there too, at once. Not of `macvtap`,
  # which has a `mode` for that, and not of `sriov`.
  mode @11 :MacvtapMode;
  # Of `macvtap`: whom its guests reach.
  trust @12 :Bool;
  # Of `sriov`: whether its guests' virtual functions are trusted, as those of routers are, to have what is others': some drivers let one that is take frames
  # for whomever, or choose its MAC address. That the card lets out nothing from another MAC address holds for each.
}

enum NetworkKind {
  bridged @0;
  # Its guests reach one another and the host.
  hostOnly @1;
  # Its guests reach one another, and what is beyond the host. Of the host they reach its echo under the gateway's address, and no service under any.
  macvtap @2;
  # Its guests are on the network of the `parent`, each with a MAC address of its own there, and do not reach the host by it. There is no bridge:
  # `gateway` is that network's own router, and nobody here has its address. The service knows of such a network as long as it has a port or the
  # service runs: defining it is what makes it again. `ipv6` is the router's as well, of a subnet of that network's, and not "auto". No veths and no NAT.
  isolated @3;
  # Its guests reach one another, and nothing else: the bridge is in a network namespace of its own (`Host.defineNetwork`). Nobody has `gateway` or the address
  # of `ipv6`: they say which the subnets are. It has neither `nat` nor a VLAN, and nothing is published for its guests.
  sriov @4;
  # As `macvtap` in its mode `passthru`, each on a virtual function of the `parent`'s (SR-IOV), which is its alone: one that nobody uses is taken, with `vlan` and
  # the guest's MAC address, and given back as it was. They are made by who runs the host, and never by the service.
}

enum MacvtapMode {
  # Whom a guest reaches: what is beyond the parent, in each mode, and of the other guests on that parent
  bridge @0;
  # all, without leaving the host;
  privateMode @1;
  # none, even if what is beyond the parent sends it back;
  vepa @2;
  # those to whom what is beyond the parent sends it back (a switch with "hairpin");
  passthru @3;
  # there is no other: the parent is the guest's alone, and has its MAC address meanwhile.
}

struct PolicyRules {
  # Where a guest may begin to send to. What no rule allows is dropped, but for answers to what others began.

  allow @0 :List(Text);
  # At most `maxRules` of `TARGET [PROTOCOL [PORTS]]`, such as "10.0.0.0/8 tcp 443", "vm-db tcp 5432-5433", "host udp 53" or "any".
  # TARGET: an address, or a subnet in CIDR notation, IPv4 or IPv6; `any`, all addresses of both; `host`, the host's own, which nothing else allows; or
  # the name of a workload (not "any" or "host"), which is that one's addresses on the port's network, whenever it has a port there. Of a subnet
  # that reaches beyond them, and of `any`, 169.254.0.0/16, fe80::/10, fd00:ec2::254 (the metadata of clouds) and multicast (224.0.0.0/4, ff00::/8)
  # are no part: a subnet within one of these allows it. `WORKLOAD@SUBNET` is those of its addresses that are in the subnet.
  # PROTOCOL: `tcp`, `udp`, `icmp` (of IPv4, and of IPv6), or `any`, as where there is none. PORTS, of tcp and udp: 443 or 8000-8080.
}

interface Network {
  # Holding this allows looking at one network and all of its ports, and making factories on it, each with a quota of its own, without a tenant's name.

  info @0 () -> (info :NetworkInfo);

  portFactory @1 (maxPorts :UInt32, policy :Policy) -> (factory :PortFactory);
  # A factory for at most `maxPorts` ports at one time (1 to `maxPorts` of this file). Ports are released when their holder drops them, the factory's end changes nothing.
  # What its ports may send is within `policy`; null for no bound.

  ports @2 (after :Text) -> (ports :List(PortInfo));
  # Its ports in the order of their workloads' names, at most `maxListedPorts` from the one behind `after` on; empty for the start.

  restore @3 (sturdyRef :Data) -> (port :Port);
  # The durable port whose `sturdyRef` (32 bytes) this is: as `createVeth` gave it. Errors: notFound.

  durablePort @4 (workload :Text) -> (port :Port);
  # The durable port of that workload, without its `sturdyRef`: for who clears away what nobody has the reference of any more.
  # Errors: invalidArgument, notFound (the workload has no port here, or one that is not durable).

  policy @5 (rules :PolicyRules) -> (policy :Policy);
  # A policy, which nothing is subject to as yet. Errors: invalidArgument (says which rule, and why).

  setPolicy @6 (workload :Text, policy :Policy) -> ();
  # Has the port of that workload have this policy from the next packet on, in place of what it has; who holds the port can narrow that, and nothing else.
  # Null takes its policy away. Errors: notFound (it has no port here), invalidArgument (it is no policy of this connection), exhausted.

  portPolicy @7 (workload :Text) -> (policy :Policy);
  # What the port of that workload has; null for none. Errors: notFound.

  publish @8 (workload :Text, sockets :List(FdLane.FdToken), guestPort :UInt16) -> (published :List(Published));
  # As `Port.publish`, for the port of that workload, whoever holds it. Errors: notFound (it has no port here).

  unpublish @9 (workload :Text, published :List(Published)) -> ();
  # As `Port.unpublish`, for the port of that workload, whoever has published them.

  setRate @10 (workload :Text, rate :Rate) -> ();
  # Has the port of that workload carry no more than that, from the next packet on; who holds the port can lower it, and nothing else.
  # Errors: notFound (it has no port here), invalidArgument, unavailable (this kernel filters nothing on bridges).

  watch @11 () -> (watcher :PortWatcher);
  # What becomes of its ports from now on: whoever then asks for `ports` misses none.
}

interface PortWatcher {
  # Holding this allows hearing what becomes of the ports of one network.

  next @0 () -> (events :List(PortEvent), missed :Bool);
  # What has come about since the last answer, in order; waits until there is something. `maxWaitingEvents` are kept: `missed` says that older ones are not
  # among these, and that `Network.ports` has to say what there is now. Of several calls one after the other is answered. Errors: revoked (the network was
  # removed).
}

struct PortEvent {
  what @0 :PortChange;
  workload @1 :Text;
  interfaceName @2 :Text;
}

enum PortChange {
  attached @0;
  # It is there, and on the bridge.
  gone @1;
  # It carries nothing any more: it was given back, or lost.
  changed @2;
  # It was given another policy or rate, or brought back to what it should be after something else on the host had changed it.
}

struct Rate {
  # Bytes a second that a port carries each way, from the IP header on, of whatever its guest sends or is sent; `minRate` to `maxRate`, or 0 for as much
  # as there is. Beyond what it carries in a second, 128 KiB go at once. What is more is dropped, and counted. (What a guest sends by a macvtap counts with
  # its Ethernet headers.)

  fromGuest @0 :UInt64;
  toGuest @1 :UInt64;
}

interface Policy {
  # Holding this allows subjecting ports to one policy, where one may, and making narrower ones of it. A port that has it keeps it when this is dropped.

  rules @0 () -> (rules :PolicyRules);
  # As they are enforced: each in its shortest form, less those that others of them say as well.

  narrow @1 (rules :PolicyRules) -> (policy :Policy);
  # What both allow: this one and `rules`. Errors: invalidArgument (a rule is malformed; or what is left takes more than `maxRules`).
}

struct NetworkInfo {
  config @0 :NetworkConfig;
  index @1 :UInt32;
  # Interface index of the bridge; of a `macvtap` or `sriov` network, of its parent.
  ports @2 :List(PortInfo);
  # At most `maxPorts` of this file, and without their addresses, which `Network.ports` says.
}

interface PortFactory {
  # Holding this allows attaching workloads to one network, up to a number of ports at one time: for all who hold it together, and over all
  # factories of one tenant.

  createTap @0 (workload :Text, mac :Data, addresses :List(Text), policy :Policy, handOut :Bool) -> (port :Port, tap :FdLane.FdToken);
  # A TAP interface on the bridge for the workload of that name (1 to 63 bytes of [a-z0-9-], such as "vm-web"). The interface is called
  # tap-<id>, where <id> is the workload without "vm-"; a name that does not fit in 15 bytes is shortened with a hash and the
  # full one kept as alternative name. `mac` is the guest's address, 6 bytes, unicast; empty for the address that is derived from network and workload.
  # `addresses` are those that the guest may send from, such as "10.42.0.10" or "fd00::10": whoever holds a lease gives its address. None of a family: the
  # guest sends nothing of it. At most `maxIpv4Addresses`, `maxIpv6Addresses` and `maxAddressBytes`. One of IPv4 is a host's of the network's subnet and not
  # the gateway (on a network without a gateway: any unicast address that is not of the loopback network). One of IPv6 is of the network's IPv6 subnet
  # and not the gateway (on a network without: any that is global unicast, 2000::/3, or unique local, fc00::/7), and not the first of its subnet of
  # `ipv6PrefixLength` bits, which is any router's (RFC 4291, section 2.6.1). "::" stands for the one of the network's IPv6 subnet that follows from the
  # MAC address, as a guest makes it by itself that hears of the subnet from a router (RFC 4291, appendix A); so does the link-local one, which any guest
  # with an IPv6 address may send from too. They stay as they are as long as the port is there.
  # Errors: invalidArgument, alreadyExists (the workload has a port on this network, or the MAC address or one of `addresses` is another port's), exhausted
  # (quota, or `maxPorts` on the bridge), unavailable (no /dev/net/tun).
  # On a network of macvtaps it is a macvtap, mvt-<id>, on the network's parent: whoever has this call has no other one to know, and what `Port.tap` gives
  # is used as a TAP. Such a port has no `policy`. Errors, beside: unavailable (no driver, no parent), conflict (the parent is a bridge's, or another's alone).
  # So it is on a network of virtual functions. Errors, beside: exhausted (none is free), unavailable (the parent has none, or is down).
  # `policy` is in force before the port is up; null for what the factory's ports have (`policy` below), of which it is narrowed to what both allow.
  # `tap` is what `Port.tap` answers, for who asks for it by `handOut` and so need not ask again; else null. Where no token can be had (overloaded), no port is made.

  createVeth @1 (workload :Text, mac :Data, addresses :List(Text), netns :FdLane.FdToken, netlink :FdLane.FdToken, insideName :Text = "eth0",
      routes :List(Text), durable :Bool, policy :Policy, router :Text) -> (port :Port, sturdyRef :Data);
  # A pair of veths for the container of that workload: veth-<id>-h on the bridge, where <id> is the workload without "container-" (shortened as a TAP's
  # name), and `insideName` (1 to 15 bytes, as a network's name) in the container's network namespace, with the alternative name veth-<id>-c. `workload`, `mac`
  # and `addresses` are as in `createTap`, and what the container sends is looked at as what a guest sends.
  # `netns` is a descriptor of that namespace, and `netlink` one of a socket (AF_NETLINK, NETLINK_ROUTE, not connected, with nothing waiting to be read)
  # that was opened in it by somebody who has CAP_NET_ADMIN there: all that is done within is done through it, and by its right. Within, `lo` is
  # brought up, and the interface gets its MAC address, its MTU and `addresses` with the network's prefix lengths, comes up, and
  # has a route by way of the network's gateway for each of `routes`: subnets in CIDR notation, such as "0.0.0.0/0" or "::/0"; at most `maxRoutes`.
  # Those of IPv4 lead by way of `router` in its place, an address of the network's IPv4 subnet, where that is not empty.
  # The port is bound to its holder, as a TAP's; or, if it is `durable`, it stays whatever becomes of its capabilities, of its connection and of the service,
  # until `Port.release` or until the namespace ends, which is an end of both kinds. `sturdyRef` (32 bytes; empty for one that is not durable) restores a
  # durable one (`Network.restore`); only its hash is kept, so it cannot be asked for twice. A tenant's factory makes no durable ones.
  # Errors: those of `createTap` but for /dev/net/tun; badToken; conflict (there is an interface `insideName` within, or a route in the way);
  # invalidArgument (`netns` or `netlink` is not what it should be, or not of the same namespace, or it is that of the service), permissionDenied
  # (who opened `netlink` may not configure that namespace; `durable`, of a tenant's), unavailable (nothing is heard on `netlink`).

  policy @2 () -> (policy :Policy);
  # What a port has that is made here without a policy: the one that the factory was made with, or the network's. Where there is none, one that allows
  # everything, to be narrowed.
}

interface Port {
  # Holding this keeps one port attached. It is bound to its holder: when the last reference is dropped, or the connection it came over
  # ends, it is given back, as by `release`. But for a durable one: that stays until `release`, or until its network namespace ends.

  info @0 () -> (info :PortInfo);

  tap @1 () -> (tap :FdLane.FdToken);
  # The TAP's queue, opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR and ready to carry frames behind a 12-byte
  # virtio_net_hdr_v1. The same open file each time: it has one queue. Errors: overloaded (tokens), revoked (released, or lost), wrongState (it is a
  # veth's port).

  release @2 () -> ();
  # Gives the port back now. Once this is answered, nothing comes from its interface or goes to it any more, whoever has its TAP open still: it is down,
  # and stays so though netmgr end. The workload's name, the MAC address, the addresses and the places in quotas are free. The interface itself is off
  # the host within a second, or once the next netmgr has started; both ends of a veth are gone once this is answered. Every later call on it fails with
  # `revoked`.

  lost @3 () -> (why :Text);
  # Answers when the port is lost: something else on the host has deleted its interface, or made it its own. From then on every call on it
  # fails with `revoked`. Waits as long as the port is there, which a call that waits does not change. Errors: revoked (it was given back).

  setPolicy @4 (policy :Policy) -> ();
  # Has the port have this policy from the next packet on, within what bounds it: the policy of its factory (of a tenant's, the network's), or what
  # `Network.setPolicy` has put in its place. Null for that bound itself. What the guest has begun and may not send to any more ends at once; what
  # others have begun is answered still. Errors: invalidArgument (it is no policy of this connection), revoked, exhausted.

  policy @5 () -> (policy :Policy);
  # What it has; null for none.

  stats @6 () -> (stats :PortStats);
  # What it has carried, and what was dropped. Errors: revoked.

  publish @7 (sockets :List(FdLane.FdToken), guestPort :UInt16) -> (published :List(Published));
  # Has ports of the host lead to the guest: what comes to what the first of `sockets` (1 to `maxSockets`) is bound to goes to the guest's `guestPort`, the
  # second's to the next one, and so on; all of them, or none. Each is a descriptor of a socket of TCP or UDP, IPv4 or IPv6, in the network namespace of
  # the service, bound to an address of the host's, or to all of them of its family ("0.0.0.0"; "::", with IPV6_V6ONLY), and to a port that it shares
  # with nobody: without SO_REUSEPORT, and without SO_REUSEADDR unless it listens. That somebody could bind it shows that he may have the port, and as long as it leads
  # to the guest the service keeps the socket, so that nobody else has it; nothing is ever read from it. What comes is from
  # other hosts, from the host itself and from guests of all networks; nothing that is not for an address of the host's own is led anywhere. From other hosts
  # and from the host, the guest sees who sends; from guests, and from the host's loopback network, its gateway. Of IPv6 nothing comes over ::1.
  # The host forwards for that. Connections by way of one of these ports that are there already end. It ends with `unpublish`, or with the port, and lasts over the end of
  # the service; the next one takes the ports again that nobody has bound meanwhile, those who have kept a descriptor of the socket included.
  # Errors: badToken, invalidArgument (says what a socket lacks), notFound (the guest has no address of that family), alreadyExists (it leads somewhere
  # already), exhausted (`maxPublished`, `maxPublishedByHost`), unavailable (the kernel lacks what it takes, or the host cannot be had forward), revoked.

  unpublish @8 (published :List(Published)) -> ();
  # Takes back that these are published for the guest, by their protocols, addresses and ports; all of them, or none. Connections by way of them end.
  # Errors: notFound (one is not).

  setRate @9 (rate :Rate) -> ();
  # Has it carry no more than that, from the next packet on, each way within what `Network.setRate` has said. Errors: revoked, invalidArgument, unavailable
  # (this kernel filters nothing on bridges).

  virtualFunction @10 () -> (virtualFunction :VirtualFunction);
  # The virtual function that it has, of a port on an `sriov` network. Errors: revoked.
}

interface VirtualFunction {
  # Holding this allows looking at which virtual function a port has, for as long as it has it. It keeps neither; once the port has given it back, every call
  # fails with `revoked`.

  info @0 () -> (info :VirtualFunctionInfo);
  # Errors: revoked, wrongState (the port is on a network of another kind, and has none).
}

struct VirtualFunctionInfo {
  parent @0 :Text;
  # The interface of the card's physical function.
  number @1 :UInt32;
  # Which of its virtual functions it is, from 0 on: as `ip link show` counts them.
  address @2 :Text;
  # Its PCI address, such as "0000:01:10.0".
  mac @3 :Data;
  # The MAC address that the card has for it, 6 bytes: the guest's.
  vlan @4 :UInt16;
  # The VLAN that the card puts on what it sends; 0 for none.
}

struct Published {
  # A port of the host that leads to a guest.

  protocol @0 :Protocol;
  address @1 :Text;
  # One of the host's own, or "0.0.0.0" or "::" for all of its family.
  port @2 :UInt16;
  guestPort @3 :UInt16;
  # Where it leads, at the guest's first address of the same family.

  enum Protocol {
    tcp @0;
    udp @1;
  }
}

struct PortStats {
  # Packets, and their bytes.

  allowedPackets @0 :UInt64;
  allowedBytes @1 :UInt64;
  deniedPackets @2 :UInt64;
  deniedBytes @3 :UInt64;
  # What its policy has let through, and dropped, since it has one: IPv4 and IPv6 that its guest has sent as itself, in bytes from the IP header on. What is
  # forged, ARP and neighbour discovery on its link are not in here.
  policed @4 :Bool;
  # Whether it has a policy.
  forgedPackets @5 :UInt64;
  forgedBytes @6 :UInt64;
  # Dropped as no guest of this port may send it: from another's addresses, or what only routers and servers send.
  overFromPackets @7 :UInt64;
  overFromBytes @8 :UInt64;
  overToPackets @9 :UInt64;
  overToBytes @10 :UInt64;
  # Dropped beyond its rate, of what its guest has sent and of what it was sent, since it has one that way.
  fromPackets @11 :UInt64;
  fromBytes @12 :UInt64;
  toPackets @13 :UInt64;
  toBytes @14 :UInt64;
  # What its interface has taken from its guest, dropped or not (of a macvtap: less what was dropped), and handed to it: frames, with their Ethernet
  # headers. What guest and host exchange unsplit counts as one.
}

struct PortInfo {
  workload @0 :Text;
  interfaceName @1 :Text;
  # Name of the host's interface.
  index @2 :UInt32;
  # Its interface index.
  mac @3 :Data;
  # The guest's MAC address, 6 bytes.
  network @4 :Text;
  mtu @5 :UInt32;
  # Bytes.
  addresses @6 :List(Text);
  # Those that the guest may send from: IPv4, then IPv6, each in order. Empty for a port that an earlier release has made.
  gateways @7 :List(Text);
  # The bridge's own addresses, each with its prefix, such as "10.42.0.1/24": IPv4, then IPv6. Not in `NetworkInfo`, whose `config` has them.
  stats @8 :PortStats;
  published @9 :List(Published);
  # Which ports of the host lead to its guest.
  rate @10 :Rate;
  # These three only from `Network.ports`.
}
