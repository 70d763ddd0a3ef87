//! Missing layers: `strict` refuses and names them, `best-effort` says one line and keeps the others.

use std::collections::BTreeMap;
use std::fs;

use confine::{Error, Layer, Policy, Sandbox, missing};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::harness::{attempt, filter, is_root, sandbox};

/// Makes this process's kernel one that lacks a syscall.
fn kernel_without(syscall: i64) {
    refuse(syscall, libc::ENOSYS);
}

/// Has this process's kernel answer a syscall with an error.
pub fn refuse(syscall: i64, errno: i32) {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let none = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(BTreeMap::from([(syscall, vec![])]), SeccompAction::Allow, none, arch);
    seccompiler::apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
}

fn strict() -> Sandbox {
    Sandbox::new("attempt", Policy::Strict)
}

const LANDLOCK: [Layer; 5] = [Layer::Files, Layer::Truncate, Layer::Network, Layer::DeviceIoctl, Layer::Scopes];

#[test]
fn strict_starts_in_silence_where_nothing_is_missing() {
    if !is_root() {
        return;
    }
    if !missing().is_empty() {
        return testkit::skip!("this kernel lacks {:?}", missing());
    }
    attempt(|| {
        strict().confine().unwrap().enter(&filter()).unwrap();
    })
    .passes()
    .says_nothing();
}

#[test]
fn strict_refuses_a_kernel_without_landlock_and_names_each_layer_with_its_remedy() {
    if !is_root() {
        return;
    }
    attempt(|| {
        kernel_without(libc::SYS_landlock_create_ruleset);
        assert_eq!(missing(), LANDLOCK);
        let error = strict().confine().err().unwrap();
        assert!(matches!(&error, Error::Missing(layers) if *layers == LANDLOCK), "{error}");
        for layer in LANDLOCK {
            assert!(error.to_string().contains(&layer.to_string()), "{error}");
            assert!(error.to_string().contains(layer.remedy()), "{error}");
        }
        assert!(error.to_string().contains("--confinement best-effort"));
        fs::read("/proc/self/status").unwrap(); // It refused before it took anything.
    })
    .passes();
}

#[test]
fn best_effort_without_landlock_says_one_line_and_keeps_the_other_layers() {
    if !is_root() {
        return;
    }
    let without = || {
        kernel_without(libc::SYS_landlock_create_ruleset);
        let confined = sandbox().confine().unwrap();
        fs::read("/proc/self/status").unwrap();
        assert!(confine::caps::read(None, confine::caps::CapSet::Permitted).unwrap().is_empty());
        confined.enter(&filter()).unwrap();
    };
    attempt(without)
        .passes()
        .says_one_line()
        .says("attempt: runs without Landlock file access (needs Linux 5.13")
        .says("Landlock scopes (needs Linux 6.12)");
    attempt(move || {
        without();
        // SAFETY: asks for a number; not in the filter.
        unsafe { libc::getppid() };
    })
    .is_killed_by(libc::SIGSYS);
}

#[test]
fn who_was_told_says_nothing_of_missing_layers_and_keeps_the_others() {
    if !is_root() {
        return;
    }
    attempt(|| {
        kernel_without(libc::SYS_landlock_create_ruleset);
        let confined = Sandbox::new("attempt", Policy::BestEffortQuiet).confine().unwrap();
        fs::read("/proc/self/status").unwrap();
        assert!(confine::caps::read(None, confine::caps::CapSet::Permitted).unwrap().is_empty());
        confined.enter(&filter()).unwrap();
    })
    .passes()
    .says_nothing();
}

#[test]
fn strict_refuses_a_kernel_without_seccomp_and_best_effort_starts_without_filters() {
    if !is_root() {
        return;
    }
    attempt(|| {
        kernel_without(libc::SYS_seccomp);
        let error = strict().confine().err().unwrap();
        assert!(matches!(&error, Error::Missing(layers) if *layers == [Layer::Seccomp]), "{error}");
    })
    .passes();
    attempt(|| {
        kernel_without(libc::SYS_seccomp);
        let confined = sandbox().confine().unwrap();
        let thread = confined.spawn("thread", &filter(), || ()).unwrap();
        confined.enter(&filter()).unwrap();
        thread.join().unwrap();
        fs::read("/proc/self/status").unwrap_err(); // Landlock holds all the same.
    })
    .passes()
    .says_one_line()
    .says("seccomp (needs Linux 4.14");
}

#[test]
fn a_user_that_cannot_cut_the_bounding_set_is_told_so() {
    if !is_root() {
        return;
    }
    let plain = || {
        // SAFETY: takes numbers; the attempt's process has one thread.
        unsafe {
            assert_eq!(libc::setresgid(65534, 65534, 65534), 0);
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
    };
    attempt(move || {
        plain();
        let error = strict().confine().err().unwrap();
        assert!(matches!(&error, Error::Missing(layers) if *layers == [Layer::BoundingSet]), "{error}");
    })
    .passes();
    attempt(move || {
        plain();
        sandbox().confine().unwrap().enter(&filter()).unwrap();
    })
    .passes()
    .says_one_line()
    .says("capability bounding set (needs root");
}
