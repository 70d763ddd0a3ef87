@0xa2c3a8e2ea0e5565;
# Control of one virtual machine.

using Cxx = import "capnp/c++.capnp";
$Cxx.namespace("volt");

const maxGraceMilliseconds :UInt32 = 600000;
# The longest time that `stop` gives a guest to power itself off.

interface Vm {
  # Holding this allows starting, watching and stopping one VM. It leads neither to the VM's memory nor to its devices.
  # Bootstrap capability of `vmm-core` on its control link, and of `volt run` on /run/volt-vmm/vms/NAME.sock for root and whoever started the VM.
  # A connection gets it once.
  # When the control link of `vmm-core` ends, the VM ends with it.

  start @0 () -> ();
  # Lets the vCPUs run. Errors: wrongState (it was started before), unavailable (a device backend did not answer).

  info @1 () -> (info :VmInfo);

  stop @2 (graceMilliseconds :UInt32) -> ();
  # Presses the ACPI power button and, when the guest has not powered itself off within that time (0 to `maxGraceMilliseconds`), ends the VM. Returns once
  # the VM has ended. Stopping a VM that has ended is no error.

  wait @3 () -> (exit :Exit);
  # Returns when the VM has ended. Cancelling the call changes nothing.
}

struct VmInfo {
  state @0 :State;
  vcpus @1 :UInt16;
  memory @2 :UInt64;
  # Bytes of guest RAM.
  exit @3 :Exit;
  # Why it ended; set once `state` is `stopped`.
  consoleDropped @4 :UInt64;
  # Bytes of serial output that were dropped because nobody read the console fast enough.
  name @5 :Text;
  # Empty on vmm-core's own link, which does not know it.

  enum State {
    created @0;
    running @1;
    stopped @2;
  }
}

struct Exit {
  reason @0 :Reason;
  detail @1 :Text;
  # For people; empty for an orderly end.

  enum Reason {
    none @0;
    # It has not ended.
    poweroff @1;
    # The guest powered off (ACPI S5).
    reset @2;
    # The guest asked for a reset (i8042, ACPI reset register, or a triple fault).
    stopped @3;
    # A holder of this capability stopped it.
    deviceFailed @4;
    # A device backend ended or broke the vhost-user protocol; `detail` says which.
    internalError @5;
    # KVM reported an error; `detail` says which.
  }
}
