@0xf6c1d9a40b7e2385;
# What one client may cost a service of Volt. Beyond that, one client's work never stands in front of another's: each service serves one request of
# each connection in turn, and none has more than half of what waits from one process.
#
# Whatever exceeds a limit fails the call that exceeds it, with `exhausted`, or with `overloaded` where it is only that too much waits (errors.capnp),
# and nothing else: what the connection holds stays, and the same call may succeed once something was given back. A connection ends only for what cannot be answered in another way: a message that is longer
# than `maxMessageWords`, answers that are left unread for `stallSeconds`, and messages that the RPC protocol does not allow.
#
# Limits of one service's own objects are in its schema.

using Cxx = import "capnp/c++.capnp";
$Cxx.namespace("volt");

const maxMessageWords :UInt32 = 65536;
# The longest message that is read, in words of 8 bytes, envelope included. A longer one ends the connection.

const maxCallsInFlight :UInt32 = 64;
# Calls of one connection that run at one time. More wait, unread, until one of them returns; none fails.

const maxCallWords :UInt32 = 262144;
# Words of parameters that the running calls of one connection may have in memory together. More wait; one call always may run.

const maxUnreadWords :UInt32 = 262144;
# Words of answers that a client has not read from its socket. Its next call waits until it has read some.

const stallSeconds :UInt16 = 30;
# How long a client may leave its socket unread while a call waits for that. Then the connection ends.

const maxHeldWords :UInt32 = 10649600;
# Words of answers with capabilities in them, or failures, that a client has not finished, each counted with 128 words on top: enough for
# `maxCapabilities` of them. An answer is finished when its response object is dropped (pycapnp keeps it for as long as a capability from it). The call
# whose answer is one more fails.

const maxCapabilities :UInt32 = 66560;
# References to capabilities that one connection holds: the leases of a full allocator (addresses.capnp) and 1024 others. The call whose answer has one
# more fails; what it did is undone as if its result had been dropped.

const maxCapabilitiesPerMessage :UInt32 = 64;
# Capabilities that the parameters of one call carry. A call with more fails.

const maxCancelledCalls :UInt32 = 16384;
# Calls that were given up before they were answered and that never will be, over the life of one connection. (One whose answer another call is
# pipelined on is answered, and does not count.) After that every new call fails: what the connection holds stays, for new calls connect again.

const maxConnections :UInt32 = 2048;
# Connections of one service in all, on a host that lets it have 65536 descriptors; an eighth of its descriptors where there are fewer, and
# so with the limits below. One more
# is refused at once, as with the limits below: its first message is an Abort whose reason says who has them. Lanes (fd_lane.capnp) count as many, by
# themselves.

const reservedConnections :UInt32 = 256;
# Those of them that are kept for processes which have no connection yet.

const maxConnectionsPerUser :UInt32 = 1536;
# Root is exempt.

const maxConnectionsPerProcess :UInt32 = 64;
# Root is not exempt. Processes are told apart as the kernel does (SO_PEERCRED); those of another pid namespace count as their user's only.
