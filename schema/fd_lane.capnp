@0xadd8407295c08e72;
# The fd lane: how file descriptors travel beside a Cap'n Proto connection, which cannot carry them itself.
#
# Every vat that hands out or takes file descriptors has a companion socket of type AF_UNIX/SOCK_SEQPACKET:
#   * for a vat on the named socket PATH, the lane listens on PATH with ".fds" appended;
#   * for a vat on an inherited descriptor, the lane's descriptor is inherited beside it.
#
# One packet is one operation and carries at most one file descriptor (SCM_RIGHTS). A client sends a request, then reads
# one reply; requests are answered in order.
#
#   request   byte 0      operation: `opDeposit` or `opClaim`
#             bytes 1-16  the token (opClaim), absent for opDeposit
#             ancillary   exactly one descriptor (opDeposit), none (opClaim)
#   reply     byte 0      status: `statusOk`, or one of the other statuses, which ends the packet
#             bytes 1-16  the token (opDeposit), absent for opClaim
#             ancillary   exactly one descriptor (opClaim), none (opDeposit)
#
# A client that wants to pass a descriptor deposits it, and gives the token it gets to the RPC method that asks for one.
# A client that is given a token by an RPC method claims the descriptor with it.
#
# A token is 128 random bits. It is good once, for `tokenLifetimeSeconds`, only for the user (SO_PEERCRED) it was made for, only at this vat, and
# only the way it goes: one from a deposit cannot be claimed, and one to claim cannot be given to a method that takes a descriptor.
# One to claim ends with the connection that it was given on; a deposited descriptor waits for its whole time.
# The lane is open to those who may connect to the vat, and to nobody else.
# A packet of any other length, with a surplus descriptor, or with truncated ancillary data ends the lane; every descriptor in it is closed.

using Cxx = import "capnp/c++.capnp";
$Cxx.namespace("volt");

const opDeposit :UInt8 = 1;
const opClaim :UInt8 = 2;

const statusOk :UInt8 = 0;
const statusBadToken :UInt8 = 1;
# The token is unknown, was used, has expired, goes the other way, or was made for another user.
const statusExhausted :UInt8 = 2;
# This process has `maxTokensPerProcess` descriptors waiting, or this user `maxTokensPerUser`; redeem some or let them expire. Or the service has no
# room for one just now, or takes none at all, as the supervisor of a VM.

const tokenLength :UInt8 = 16;
# Bytes.
const tokenLifetimeSeconds :UInt16 = 30;
const maxTokensPerUser :UInt16 = 256;
# Root is exempt: its processes count one by one.
const maxTokensPerProcess :UInt16 = 64;
# As the kernel tells processes apart (SO_PEERCRED); those of another pid namespace count as their user's only.

const statusTooManyLanes :UInt8 = 3;
# Sent unasked, as the only packet of a lane that is refused: the service has as many as it may of this process, of this user or in all (limits.capnp).

struct FdToken {
  # Names one file descriptor that waits on the lane of the connection this message travels on.
  bytes @0 :Data;
  # Exactly `tokenLength` bytes.
}
