//! Runs that fail halfway: the message names thing and remedy, and what was taken until then is given back at once.

use crate::{
    host::{Host, Running},
    kernel::{POWEROFF, SPIN, elf, print},
};

#[test]
fn disk_of_another_vm_is_refused_in_the_backend_s_words() {
    let Some(host) = Host::new("disk_of_another_vm_is_refused_in_the_backend_s_words") else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(&mut host.full("other", &off)).refused(&["in use by another process", "vhost-blk-backend of disk 0"]);
    // Twice in one VM is no better, unless nobody writes.
    let disk = host.path("disk").display().to_string();
    host.run(host.plain("other", &off).args(["--disk", &disk])).refused(&["in use"]);
    assert_eq!(host.free("volt0"), 252);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.run(host.plain("other", &off).args(["--disk", &disk, "--disk", &disk])).refused(&["in use"]);
    let read_only = format!("{disk},ro");
    host.run(host.plain("other", &off).args(["--disk", &read_only, "--disk", &read_only])).ok();
    host.clean();
}

#[test]
fn kernel_or_initrd_that_does_not_fit_the_memory_says_so_and_gives_back_the_address() {
    let Some(host) = Host::new("kernel_or_initrd_that_does_not_fit_the_memory_says_so_and_gives_back_the_address")
    else {
        return;
    };
    let large = host.file("large", &elf(SPIN, 100 << 20));
    host.run(&mut host.full("web", &large)).refused(&["start the VM web", "memory"]);
    assert_eq!(host.free("volt0"), 253);
    let initrd = host.path("initrd");
    std::fs::File::create(&initrd).unwrap().set_len(10 << 30).unwrap();
    let ended = host.run(host.full("web", &host.kernel("spin", &[SPIN])).arg("--initrd").arg(&initrd));
    ended.refused(&["start the VM web", "initrd", "more memory"]);
    assert_eq!(host.free("volt0"), 253);
    host.clean();
}

#[test]
fn exhausted_pool_refuses_and_gives_back_the_port_and_the_address_of_another_card() {
    let Some(host) = Host::new("exhausted_pool_refuses_and_gives_back_the_port_and_the_address_of_another_card") else {
        return;
    };
    let one = r#"{"network":"small","subnet":"10.9.0.0/24","gateway":"10.9.0.1","pool":{"start":"10.9.0.2","end":"10.9.0.2"}}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("small.json", one.as_bytes())])).ok();
    let vm = Running::start(host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])).args(["--net", "small"]));
    vm.says("up");
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let mut second = host.plain("other", &off);
    second.args(["--net", "volt0", "--net", "small"]);
    host.run(&mut second).refused(&["exhausted", "small"]);
    assert_eq!((host.free("volt0"), host.free("small")), (253, 0));
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert_eq!(table.matches("tap-").count(), 1, "{table}");
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.run(&mut second).ok();
    host.clean();
}

#[test]
fn network_that_is_not_defined_or_given_twice_is_refused() {
    let Some(host) = Host::new("network_that_is_not_defined_or_given_twice_is_refused") else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.full("web", &off).args(["--net", "other"])).refused(&["network other", "volt network define"]);
    host.run(host.full("web", &off).args(["--net", "volt0"])).refused(&["volt0 is given twice"]);
    host.clean();
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn runtime_directory_with_too_long_a_name_is_refused() {
    let Some(host) = Host::new("runtime_directory_with_too_long_a_name_is_refused") else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    let long = host.path(&"d".repeat(90));
    host.run(host.plain("web", &kernel).env("VOLT_RUNTIME_DIR", &long)).refused(&["107", "VOLT_RUNTIME_DIR"]);
    assert_eq!(std::fs::read_dir(long.join("vms")).unwrap().count(), 0);
}

#[test]
fn user_without_directories_or_rights_is_told_what_to_set() {
    let Some(host) = Host::new("user_without_directories_or_rights_is_told_what_to_set") else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.plain("web", &kernel).env("VOLT_RUNTIME_DIR", "/dev/null/run"))
        .refused(&["/dev/null/run", "VOLT_RUNTIME_DIR"]);
    std::os::unix::fs::symlink("/tmp", host.path("link")).unwrap();
    let mut command = host.plain("web", &kernel);
    host.run(command.env("VOLT_RUNTIME_DIR", host.path("link"))).refused(&["link", "not a directory"]);
    host.clean();
}
