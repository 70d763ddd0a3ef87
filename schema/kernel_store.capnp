@0xdd20762e45dfb19a;
# Guest kernels, unpacked and checked in a sandbox, so that no VM ever parses a stranger's image.

using Cxx = import "capnp/c++.capnp";
using FdLane = import "fd_lane.capnp";
$Cxx.namespace("volt");

const maxKernels :UInt32 = 1024;
# Kernels that one store keeps.
const maxImageBytes :UInt64 = 268435456;
# Bytes of an image that is imported.

interface KernelStore {
  # Holding this allows importing kernels, and opening and removing every kernel in the store.
  # Bootstrap capability of `kernel-store` for root, for the user it runs as, and for the one it was started for (--owner). A connection gets it
  # once: who releases it keeps what came of it, and no more.

  importKernel @0 (image :FdLane.FdToken, alias :Text) -> (kernel :Kernel);
  # Reads the kernel image behind `image` (a Linux bzImage whose payload is packed with gzip, xz, lz4 or zstd, or an ELF executable, which may
  # be packed with one of these itself; in a regular file, open for reading, that is in memory, such as a memfd, or on a block device: what a process
  # or another host serves is refused), checks it, and keeps the unpacked ELF under the digest of its content.
  # Importing what the store already has costs no space and gives the kernel that is there. Many may import the same at once: it is done once for all
  # of them. Of images that are new, three are unpacked at one time, at most two of one user and one of one process, a step of each in turn; each for
  # at most a minute of work. Cancelling the call ends that work.
  # The image has at most 256 MiB, and the ELF 512 MiB. The ELF is for x86-64, linked to its place (ET_EXEC), has 1 to 64 program headers and at most
  # 64 KiB of notes; its segments lie between 1 MiB and 1 GiB of guest physical memory and apart from one another, and its entry points are code of
  # the file. What is kept can be run by every guest with memory up to `loadEnd`.
  # `alias` is a name for it, 1 to 63 bytes of [A-Za-z0-9._-]; empty for none. It moves to this kernel if another one carried it.
  # Errors: badImage, badToken, invalidArgument, exhausted (the disk, or the store's size limit), overloaded (256 imports of this process wait,
  # or 1024 of its user).

  get @1 (ref :Text) -> (kernel :Kernel);
  # The kernel with that alias, that digest (64 lower-case hex digits), or a unique prefix of at least 8 digits.
  # Errors: notFound, invalidArgument (the prefix is not unique).

  list @2 () -> (kernels :List(KernelInfo));
  # At most `maxKernels`, the most recently imported first.

  remove @3 (ref :Text) -> ();
  # Forgets a kernel. VMs that run it, and `Kernel` capabilities that were handed out, are not affected.
  # Errors: notFound.
}

interface Kernel {
  # Holding this allows reading one kernel, and nothing else. Dropping it changes nothing in the store.

  info @0 () -> (info :KernelInfo);

  open @1 () -> (image :FdLane.FdToken);
  # The unpacked kernel: a memfd sealed against every change (F_SEAL_SHRINK, GROW, WRITE, SEAL; from Linux 6.3 on EXEC as well) that holds one ELF executable, already checked
  # against the facts in `info`. The descriptor may be shared with other holders: use pread or mmap, never the file offset.
}

struct KernelInfo {
  digest @0 :Text;
  # SHA-256 of the unpacked ELF, 64 lower-case hex digits.
  alias @1 :Text;
  # The name it was imported under; empty if none.
  size @2 :UInt64;
  # Bytes of the unpacked ELF.
  entry @3 :UInt64;
  # Guest physical address of the ELF entry point (the 64-bit entry of the Linux boot protocol).
  loadStart @4 :UInt64;
  # Lowest guest physical address that a loadable segment occupies.
  loadEnd @5 :UInt64;
  # One past the highest such address, .bss included.
  pvhEntry @6 :UInt64;
  # Entry point of the Xen PVH ABI from the XEN_ELFNOTE_PHYS32_ENTRY note; 0 if the kernel has none.
  version @7 :Text;
  # The release string, such as "6.1.0-53-cloud-amd64 (...)", as the image states it; empty if it does not.
  machine @8 :Machine;
  imported @9 :Int64;
  # Seconds since the Unix epoch.
}

enum Machine {
  x8664 @0;
  # EM_X86_64
  aarch64 @1;
  # EM_AARCH64
}
