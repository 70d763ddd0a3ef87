@0x8c6f2b7983e3371d;
# What a Volt device backend serves on its control link, beside the vhost-user socket. A foreign vhost-user backend need not have one.

using Cxx = import "capnp/c++.capnp";
$Cxx.namespace("volt");

interface DeviceBackend {
  # Holding this allows watching one device backend. When the control link ends, the backend ends.

  info @0 () -> (info :DeviceInfo);
}

struct DeviceInfo {
  virtioType @0 :UInt32;
  # Virtio device ID (Virtio 1.2, section 5): 1 network, 2 block.
  features @1 :UInt64;
  # Virtio feature bits that the backend offers.
  ackedFeatures @2 :UInt64;
  # Virtio feature bits that the driver took.
  connected @3 :Bool;
  # Whether a vhost-user frontend is connected.
  queues @4 :List(QueueStats);
}

struct QueueStats {
  started @0 :Bool;
  # Whether the vring is started and enabled.
  chains @1 :UInt64;
  # Descriptor chains handled.
  bytes @2 :UInt64;
  # Payload bytes moved.
  errors @3 :UInt64;
  # Chains that were malformed or that failed.
}
