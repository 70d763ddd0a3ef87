@0xb328be6f292a8266;
# How Volt's services report that a call failed.
#
# A failed call ends in a Cap'n Proto exception. Its *type* says what a program may do next:
#   failed         the request cannot be met as it stands; change something first;
#   overloaded     a limit was reached; the same call may succeed later;
#   disconnected   the other side has gone; reconnect, then ask again;
#   unimplemented  this version does not know the method.
#
# Its *reason* is one line that both people and programs read:
#
#     <code>: <what was tried, on what>: <why it failed>. <what to do about it>.
#
# <code> is the name of one of the enumerants below, exactly as spelled here, and is followed by a colon.
# Most libraries put words of their own before the reason of an exception that came over a connection, once for each connection that it crossed. C++ and
# Python (pycapnp) put "remote exception: ": `kj::Exception::getDescription()` is "remote exception: notFound: …". Take every such prefix off, then
# read up to the first colon. pycapnp's `KjException.description` is the reason; its `str()` has more around it.
#
# A reason that does not begin with a known code comes from the RPC layer itself, or from a newer version: treat it as
# `internal`. The text after the code may change between versions; the code of a given failure does not.

using Cxx = import "capnp/c++.capnp";
$Cxx.namespace("volt");

enum Code {
  internal @0;
  # A defect of the service, or a failure of the host that it has no better name for.

  invalidArgument @1;
  # An argument is malformed, out of range or contradicts another one. Nothing was changed.

  notFound @2;
  # What the call names does not exist.

  alreadyExists @3;
  # What the call would create exists, or the name is held by somebody else.

  permissionDenied @4;
  # The capability in hand, or the process behind it, may not do this.

  exhausted @5;
  # A pool, a quota or a table is full. Raised with the exception type `overloaded`.

  unavailable @6;
  # The host lacks what the call needs (a device node, a kernel feature), or a peer did not answer within its deadline.

  wrongState @7;
  # The object is not in a state in which this call is meaningful, for example `start` on a VM that runs.

  badImage @8;
  # A kernel or disk image is malformed, truncated or of a kind that is not supported.

  revoked @9;
  # The capability was revoked, or the object behind it has been released.

  badToken @10;
  # A file descriptor token is unknown, was used before, has expired, goes the other way, or was made for another user.

  conflict @11;
  # Something on the host that Volt does not own stands in the way (a foreign interface of that name, say). It is left as it is.

  overloaded @12;
  # The service has as much waiting as it takes, from this client or from all. Nothing was done. Ask the same again, ever later: the wait is for others,
  # not for a change. Raised with the exception type `overloaded`.
}
