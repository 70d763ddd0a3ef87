//! The real program, asked what KVM gives: with /dev/kvm, with what is not, and with nothing.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};
use schema::about_kvm::{ARGUMENT, Fact};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmm-core");
/// Nobody's on this host.
const PLAIN_USER: u32 = 0x7300_0001;

/// What it printed, line by line, on standard output and standard error; and its exit code.
fn ask(device: Option<File>) -> (Vec<String>, Option<i32>) {
    ask_by(confine::Spawn::new(Path::new(PROGRAM)), device)
}

fn ask_by(mut spawn: confine::Spawn, device: Option<File>) -> (Vec<String>, Option<i32>) {
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let number = device.map_or(9, |device| spawn.fd(OwnedFd::from(device)));
    spawn.args([ARGUMENT, &number.to_string()]);
    spawn.stderr(to.try_clone().unwrap()).stdout(to).die_with_parent();
    let mut child = spawn.spawn().unwrap();
    let mut text = String::new();
    File::from(from).read_to_string(&mut text).unwrap();
    (text.lines().map(str::to_owned).collect(), child.wait().unwrap().code())
}

fn open(path: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn facts(lines: &[String]) -> Vec<Fact> {
    lines.iter().map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?} is no fact"))).collect()
}

#[test]
fn kvm_s_abilities_and_speed_are_said() {
    let Ok(kvm) = open("/dev/kvm") else { return testkit::skip!("/dev/kvm cannot be opened") };
    says_abilities_and_speed(ask(Some(kvm)));
}

#[test]
fn kvm_s_abilities_and_speed_are_said_to_a_plain_user() {
    let Ok(kvm) = open("/dev/kvm") else { return testkit::skip!("/dev/kvm cannot be opened") };
    // Opened here: that user may not search the folders on the way.
    let (program, null) = (File::open(PROGRAM).unwrap(), open("/dev/null").unwrap());
    let spawn = move || confine::Spawn::from_fd(Path::new("vmm-core"), program.into(), null.into());
    let asked = testkit::user::as_user(PLAIN_USER, move || ask_by(spawn(), Some(kvm)));
    says_abilities_and_speed(asked.join().unwrap());
}

fn says_abilities_and_speed((lines, code): (Vec<String>, Option<i32>)) {
    assert_eq!(code, Some(0), "{lines:?}");
    let facts = facts(&lines);
    let [Fact::Vcpus(most), Fact::Speed(rate)] = facts[..] else { panic!("{facts:?}") };
    assert!(most >= 1 && rate > 0, "{facts:?}");
}

#[test]
fn file_that_is_not_kvm_is_told_apart() {
    let (lines, code) = ask(Some(open("/dev/null").unwrap()));
    assert_eq!(code, Some(0), "{lines:?}");
    let facts = facts(&lines);
    let [Fact::NotKvm, Fact::NoSpeed(why)] = &facts[..] else { panic!("{facts:?}") };
    assert!(why.contains("create a VM") && why.contains("Inappropriate ioctl"), "{why}");
}

#[test]
fn descriptor_that_is_not_open_is_refused_by_its_argument() {
    let (lines, code) = ask(None);
    assert_eq!(code, Some(1));
    assert_eq!(lines, ["vmm-core: Descriptor 9 given as --about-kvm is not open"]);
}
