//! Disk images and requests for the tests.
#![allow(dead_code)]

use std::os::fd::OwnedFd;
use tempfile::NamedTempFile;
use testrig::frontend::*;
use vhost::VhostBackend;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
pub const SEG_MAX: u64 = 1 << 2;
pub const RO: u64 = 1 << 5;
pub const BLK_SIZE: u64 = 1 << 6;
pub const FLUSH: u64 = 1 << 9;
pub const MQ: u64 = 1 << 12;

/// Where the tests put a request's parts.
pub const HEAD: u64 = 0x100000;
pub const STATUS: u64 = 0x100800;
pub const DATA: u64 = 0x200000;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-blk-backend");

pub fn image(size: u64) -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(size).unwrap();
    image
}

/// A backend on the image, as a path, and the connection to it.
pub fn connect(image: &NamedTempFile, more: &[&str]) -> Machine {
    let (ours, theirs) = pair();
    let path = image.path().to_str().unwrap();
    let mut args = vec!["--fd={}", "--blk-file", path];
    args.extend(more);
    Machine::connect(start(PROGRAM, &args, vec![theirs]), ours, 16)
}

pub fn boot(image: &NamedTempFile, more: &[&str], features: u64) -> (Machine, Queue) {
    let mut machine = connect(image, more);
    let mut queues = machine.begin(features, 1, 128);
    (machine, queues.remove(0))
}

pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// One request, start to end; its status.
pub fn request(ram: &Ram, queue: &mut Queue, kind: u32, sector: u64, data: &[Part]) -> u8 {
    ram.write(HEAD, &header(kind, sector));
    ram.write(STATUS, &[0xee]);
    let mut parts = vec![out(HEAD, 16)];
    parts.extend(data);
    parts.push(into(STATUS, 1));
    let written = queue.round_trip(ram, &parts);
    let room: u32 = parts.iter().filter(|part| part.flags & WRITE != 0).map(|part| part.len).sum();
    assert_eq!(written, room);
    ram.read(STATUS, 1)[0]
}

/// A backend that is expected to refuse to start.
pub fn refused(args: &[&str], fds: Vec<OwnedFd>, words: &[&str]) {
    start(PROGRAM, args, fds).fails_saying(words);
}

/// A frontend that has not given its memory yet.
pub fn fresh(more: &[&str]) -> (NamedTempFile, Machine) {
    let image = image(4096);
    let machine = connect(&image, more);
    machine.frontend.set_features(VERSION_1 | PROTOCOL).unwrap();
    (image, machine)
}
