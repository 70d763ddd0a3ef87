//! Attempts to do more with a descriptor than it was handed over for: KVM, the TAP, the disk, the guest's memory.
//!
//! What a request points at is not mapped, or is nonsense, so that a success changes nothing: that the kernel looks at
//! it at all is the success.

use libc::{EBUSY, EEXIST, EFAULT, EINVAL};

use super::{
    attempts::{Act, Attempt, Class, call},
    foothold::{Hand, Held},
    scene::Scene,
};

const fn device(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Devices, name, act)
}

const fn kvm(name: &'static str, act: Act) -> Attempt {
    Attempt::within(Class::Devices, name, act)
}

const NOWHERE: u64 = 8;
const KVM: &str = "/dev/kvm";
const VM: &str = "anon_inode:kvm-vm";
const VCPU: &str = "anon_inode:kvm-vcpu";
const TAP: &str = "/dev/net/tun";

fn ask(hand: &mut Hand, scene: &Scene, what: &str, request: u32, argument: u64) -> Result<u64, Held> {
    let fd = scene.fd(what)?;
    call!(hand, SYS_ioctl, fd, request, argument; or [EFAULT, EINVAL, EEXIST, EBUSY, libc::E2BIG])
}

/// What belongs to the disk's image.
fn disk(hand: &mut Hand, scene: &Scene, number: libc::c_long, arguments: &[u64]) -> Result<u64, Held> {
    let fd = scene.fd(&scene.world.own_disk)?;
    hand.call(number, &[&[fd.unsigned_abs().into()], arguments].concat())
}

pub(super) const ALL: &[Attempt] = &[
    kvm("KVM_CREATE_VM", |h, s| ask(h, s, KVM, 0xae01, 0)),
    kvm("KVM_GET_MSR_FEATURE_INDEX_LIST", |h, s| ask(h, s, KVM, 0xc004_ae0a, NOWHERE)),
    kvm("KVM_CREATE_VCPU", |h, s| ask(h, s, VM, 0xae41, 100_000)),
    kvm("KVM_SET_USER_MEMORY_REGION", |h, s| ask(h, s, VM, 0x4020_ae46, NOWHERE)),
    kvm("KVM_GET_DIRTY_LOG", |h, s| ask(h, s, VM, 0x4010_ae42, NOWHERE)),
    kvm("KVM_CREATE_IRQCHIP", |h, s| ask(h, s, VM, 0xae60, 0)),
    kvm("KVM_SET_IRQCHIP", |h, s| ask(h, s, VM, 0x8208_ae63, NOWHERE)),
    kvm("KVM_CREATE_DEVICE", |h, s| ask(h, s, VM, 0xc00c_aee0, NOWHERE)),
    kvm("KVM_ENABLE_CAP", |h, s| ask(h, s, VM, 0x4068_aea3, NOWHERE)),
    kvm("KVM_SET_GSI_ROUTING", |h, s| ask(h, s, VM, 0x4008_ae6a, NOWHERE)),
    kvm("KVM_IRQFD", |h, s| ask(h, s, VM, 0x4020_ae76, NOWHERE)),
    kvm("KVM_IOEVENTFD", |h, s| ask(h, s, VM, 0x4040_ae79, NOWHERE)),
    kvm("KVM_RUN", |h, s| ask(h, s, VCPU, 0xae80, 0)),
    kvm("KVM_SET_SREGS", |h, s| ask(h, s, VCPU, 0x4138_ae84, NOWHERE)),
    kvm("KVM_SET_REGS", |h, s| ask(h, s, VCPU, 0x4090_ae82, NOWHERE)),
    kvm("KVM_GET_REGS", |h, s| ask(h, s, VCPU, 0x8090_ae81, NOWHERE)),
    kvm("KVM_SET_MSRS", |h, s| ask(h, s, VCPU, 0x4008_ae89, NOWHERE)),
    kvm("KVM_SET_CPUID2", |h, s| ask(h, s, VCPU, 0x4008_ae90, NOWHERE)),
    kvm("map a vCPU's state", |h, s| {
        let fd = s.fd(VCPU)?;
        call!(h, SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
    }),
    // No user has the last number: the kernel says so to whoever may set one.
    device("TUNSETOWNER", |h, s| ask(h, s, TAP, 0x4004_54cc, u32::MAX.into())),
    device("TUNSETGROUP", |h, s| ask(h, s, TAP, 0x4004_54ce, u32::MAX.into())),
    device("TUNSETPERSIST", |h, s| ask(h, s, TAP, 0x4004_54cb, 0)),
    device("TUNSETIFF", |h, s| ask(h, s, TAP, 0x4004_54ca, NOWHERE)),
    device("TUNSETQUEUE", |h, s| ask(h, s, TAP, 0x4004_54d9, NOWHERE)),
    device("TUNSETIFINDEX", |h, s| ask(h, s, TAP, 0x4004_54da, NOWHERE)),
    device("TUNSETLINK", |h, s| ask(h, s, TAP, 0x4004_54cd, 1)),
    device("TUNSETDEBUG", |h, s| ask(h, s, TAP, 0x4004_54c9, 0)),
    device("TUNSETOFFLOAD", |h, s| ask(h, s, TAP, 0x4004_54d0, u32::MAX.into())),
    device("TUNSETTXFILTER", |h, s| ask(h, s, TAP, 0x4004_54d1, NOWHERE)),
    device("TUNATTACHFILTER", |h, s| ask(h, s, TAP, 0x4010_54d5, NOWHERE)),
    device("TUNSETSTEERINGEBPF", |h, s| ask(h, s, TAP, 0x8004_54e0, NOWHERE)),
    device("TUNSETVNETHDRSZ", |h, s| ask(h, s, TAP, 0x4004_54d8, NOWHERE)),
    device("TUNSETSNDBUF", |h, s| ask(h, s, TAP, 0x4004_54d4, NOWHERE)),
    device("SIOCSIFHWADDR of the TAP", |h, s| ask(h, s, TAP, 0x8924, NOWHERE)),
    device("SIOCGSKNS of the TAP", |h, s| {
        let fd = s.fd(TAP)?;
        call!(h, SYS_ioctl, fd, 0x894c_u32, 0)
    }),
    device("change the disk image's mode", |h, s| disk(h, s, libc::SYS_fchmod, &[0o600])),
    device("change the disk image's owner", |h, s| disk(h, s, libc::SYS_fchown, &[0, 0])),
    device("change the disk image's size", |h, s| disk(h, s, libc::SYS_ftruncate, &[64 << 10])),
    device("make holes in the disk image", |h, s| disk(h, s, libc::SYS_fallocate, &[3, 4096, 4096])),
    device("put an attribute on the disk image", |h, s| {
        let name = h.text("trusted.volt")?;
        disk(h, s, libc::SYS_fsetxattr, &[name, name, 1, 0])
    }),
    device("give the disk image a second name", |h, s| {
        let (fd, empty, path) = (s.fd(&s.world.own_disk)?, h.text("")?, h.text(&s.world.new)?);
        call!(h, SYS_linkat, fd, empty, libc::AT_FDCWD, path, libc::AT_EMPTY_PATH)
    }),
    device("freeze the disk image's file system", |h, s| {
        // To thaw what is not frozen is refused in another way.
        let fd = s.fd(&s.world.own_disk)?;
        call!(h, SYS_ioctl, fd, 0xc004_5878_u32, 0; or [EINVAL])
    }),
    device("lease the disk image", |h, s| {
        disk(h, s, libc::SYS_fcntl, &[libc::F_SETLEASE.unsigned_abs().into(), libc::F_UNLCK.unsigned_abs().into()])
    }),
    device("resize the guest's memory", |h, s| {
        let fd = s.fd("/memfd:")?;
        call!(h, SYS_ftruncate, fd, 4096)
    }),
    device("seal the guest's memory", |h, s| {
        let fd = s.fd("/memfd:")?;
        call!(h, SYS_fcntl, fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE; or [EBUSY])
    }),
    device("map the guest's memory executable", |h, s| {
        let fd = s.fd("/memfd:")?;
        call!(h, SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED, fd, 0)
    }),
    device("have a signal sent to the neighbour by F_SETOWN", |h, s| {
        let fd = s.fds.first().ok_or(Held::Absent)?.0;
        call!(h, SYS_fcntl, fd, libc::F_SETOWN, s.neighbour)
    }),
];
