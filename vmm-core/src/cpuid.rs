//! What CPUID tells the guest: what KVM supports on this host, with a topology of its own, without nested virtualisation and
//! performance counters, and with the frequencies that spare the guest their calibration.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;

const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const ECX_PDCM: u32 = 1 << 15;
const EDX_HTT: u32 = 1 << 28;
/// Of leaf 0x8000_0001.
const ECX_SVM: u32 = 1 << 2;
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_PERFCTR: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// First leaf of the hypervisor's own.
const HYPERVISOR: u32 = 0x4000_0000;
/// Frequencies of TSC and APIC timer in kHz, as VMware defined the leaf and QEMU gives it.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's APIC timer counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;

/// Leaves of every vCPU, and how they differ from one to the next.
pub struct Template {
    leaves: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl Template {
    /// Asks KVM what it supports. `tsc_khz` is the guest's TSC frequency, if known.
    pub fn new(kvm: &Kvm, vcpus: u16, tsc_khz: Option<u32>) -> Result<Template, Error> {
        let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(Error::kvm("tell which CPU features it supports"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Template::of(supported.as_slice(), vcpus.into(), tsc_khz, deadline))
    }

    fn of(supported: &[kvm_cpuid_entry2], vcpus: u32, tsc_khz: Option<u32>, deadline: bool) -> Template {
        let has_topology = supported.iter().any(|leaf| leaf.function == 0 && leaf.eax >= 0xb);
        let mut leaves: Vec<_> = supported
            .iter()
            .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | HYPERVISOR_TIMING | 0x8000_001d | 0x8000_001e))
            .copied()
            .collect();
        for leaf in &mut leaves {
            match leaf.function {
                1 => {
                    leaf.ecx &= !(ECX_VMX | ECX_PDCM);
                    leaf.ecx |= ECX_HYPERVISOR | ECX_X2APIC;
                    if deadline {
                        leaf.ecx |= ECX_TSC_DEADLINE;
                    }
                    // Addressable ids in the package, and whether there is more than one.
                    leaf.edx &= !EDX_HTT;
                    leaf.edx |= if vcpus > 1 { EDX_HTT } else { 0 };
                    leaf.ebx = leaf.ebx & 0xffff | vcpus.next_power_of_two().min(255) << 16;
                }
                // Intel's caches: first levels belong to one vCPU, the last to all; all vCPUs are cores of one package.
                4 if leaf.eax & 0x1f != 0 => {
                    let level = leaf.eax >> 5 & 7;
                    let sharing = if level >= 3 { vcpus.next_power_of_two() - 1 } else { 0 };
                    let cores = (vcpus.next_power_of_two() - 1).min(63);
                    leaf.eax = leaf.eax & 0x3fff | sharing << 14 | cores << 26;
                }
                // No performance counters.
                0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
                HYPERVISOR if tsc_khz.is_some() => leaf.eax = leaf.eax.max(HYPERVISOR_TIMING),
                0x8000_0001 => {
                    leaf.ecx &= !(ECX_SVM | ECX_CMP_LEGACY | ECX_PERFCTR);
                    leaf.ecx |= if vcpus > 1 { ECX_CMP_LEGACY } else { 0 };
                }
                // AMD's core count and width of core ids.
                0x8000_0008 => leaf.ecx = vcpus.next_power_of_two().ilog2() << 12 | (vcpus - 1),
                0x8000_000a => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
                _ => {}
            }
        }
        if has_topology {
            // Two levels: one thread a core, all cores in one package.
            let level = |index: u32, eax, ebx, kind: u32| kvm_cpuid_entry2 {
                function: 0xb,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: kind << 8 | index,
                ..Default::default()
            };
            leaves.push(level(0, 0, 1, 1));
            leaves.push(level(1, vcpus.next_power_of_two().ilog2(), vcpus, 2));
        }
        if let Some(khz) = tsc_khz {
            leaves.push(kvm_cpuid_entry2 {
                function: HYPERVISOR_TIMING,
                eax: khz,
                ebx: APIC_KHZ,
                ..Default::default()
            });
        }
        Template { leaves, vcpus }
    }

    /// Width of guest physical addresses, in bits.
    pub fn physical_bits(&self) -> u32 {
        self.leaves.iter().find(|leaf| leaf.function == 0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff)
    }

    /// The leaves of the vCPU whose APIC id is `id`.
    pub fn vcpu(&self, id: u8) -> Result<CpuId, Error> {
        let id = u32::from(id).min(self.vcpus);
        let leaves: Vec<_> = self
            .leaves
            .iter()
            .map(|leaf| match leaf.function {
                1 => kvm_cpuid_entry2 { ebx: leaf.ebx & 0x00ff_ffff | id << 24, ..*leaf },
                0xb => kvm_cpuid_entry2 { edx: id, ..*leaf },
                _ => *leaf,
            })
            .collect();
        CpuId::from_entries(&leaves).map_err(|_| Error::KvmLacks("room for its own CPU features"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn get(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|leaf| leaf.function == function && leaf.index == index).unwrap()
    }

    fn template(vcpus: u32) -> Template {
        let host = [
            leaf(0, 0xd, 0, 0, 0),
            leaf(1, 0, 0x1234_5678, ECX_VMX, EDX_HTT),
            leaf(0xa, 7, 7, 7, 7),
            leaf(0xb, 1, 2, 3, 4),
            leaf(HYPERVISOR, HYPERVISOR + 1, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, ECX_SVM | ECX_PERFCTR | 1, 0),
            leaf(0x8000_0008, 0x302e, 0, 0x7777, 0),
        ];
        Template::of(&host, vcpus, Some(2_500_000), true)
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_in_one_package() {
        for (vcpus, width) in [(1, 0), (2, 1), (3, 2), (4, 2), (254, 8)] {
            let template = template(vcpus);
            for id in [0, vcpus as u8 - 1] {
                let cpuid = template.vcpu(id).unwrap();
                assert_eq!(get(&cpuid, 1, 0).ebx >> 24, u32::from(id));
                assert_eq!(get(&cpuid, 1, 0).edx & EDX_HTT != 0, vcpus > 1);
                let (thread, core) = (get(&cpuid, 0xb, 0), get(&cpuid, 0xb, 1));
                assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, u32::from(id)));
                assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (width, vcpus, 0x201, u32::from(id)));
                assert_eq!(get(&cpuid, 0x8000_0008, 0).ecx, width << 12 | (vcpus - 1));
            }
        }
    }

    #[test]
    fn guest_sees_no_nested_virtualisation_and_no_performance_counters() {
        let cpuid = template(2).vcpu(0).unwrap();
        assert_eq!(get(&cpuid, 1, 0).ecx & ECX_VMX, 0);
        assert_eq!(get(&cpuid, 0x8000_0001, 0).ecx, 1 | ECX_CMP_LEGACY);
        assert_eq!(get(&cpuid, 0xa, 0).eax, 0);
    }

    #[test]
    fn guest_is_told_its_frequencies() {
        let cpuid = template(1).vcpu(0).unwrap();
        assert_eq!(get(&cpuid, HYPERVISOR, 0).eax, HYPERVISOR_TIMING);
        let timing = get(&cpuid, HYPERVISOR_TIMING, 0);
        assert_eq!((timing.eax, timing.ebx), (2_500_000, APIC_KHZ));
        assert_ne!(get(&cpuid, 1, 0).ecx & ECX_TSC_DEADLINE, 0);
        assert_eq!(template(1).physical_bits(), 0x2e);
    }
}
