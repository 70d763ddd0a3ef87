//! The backend side of the `vhost` crate, on which most vhost-user backends in Rust stand, as a judge of our
//! messages: it refuses whatever is not in the protocol, in the order and with the descriptors it wants.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, Result, VhostUserBackendReqHandlerMut};

use super::super::regs::reg;
use super::bench::{Bench, VERSION_1, regions, spec};

/// Accepts what the crate accepts and notes the calls.
#[derive(Default)]
struct Judge(Vec<String>);

impl Judge {
    fn note(&mut self, call: impl Into<String>) -> Result<()> {
        self.0.push(call.into());
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Judge {
    fn set_owner(&mut self) -> Result<()> {
        self.note("owner")
    }
    fn reset_owner(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(VERSION_1 | 1 << 30)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.note(format!("features {features:#x}"))
    }
    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let starts: Vec<u64> = table.iter().map(|region| region.guest_phys_addr).collect();
        self.note(format!("memory {starts:x?} {}", files.len()))?;
        Ok(None)
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.note(format!("num {index} {num}"))
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        _descriptor: u64,
        _used: u64,
        _available: u64,
        _log: u64,
    ) -> Result<()> {
        self.note(format!("addr {index} {}", flags.bits()))
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.note(format!("base {index} {base}"))
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.note(format!("stop {index}"))?;
        Ok(VhostUserVringState::new(index, 0))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.note(format!("kick {index} {}", fd.is_some()))
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.note(format!("call {index} {}", fd.is_some()))
    }
    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::all())
    }
    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.note(format!("protocol {features:#x}"))
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.note(format!("enable {index} {enable}"))
    }
    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = [3; 60];
        Ok(config.get(offset as usize..(offset + size) as usize).unwrap_or_default().to_vec())
    }
    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.note(format!("config {offset} {buf:?}"))
    }
    fn set_backend_req_fd(&mut self, _backend: vhost::vhost_user::Backend) {
        self.0.push("channel".into());
    }
    fn set_gpu_socket(&mut self, _: vhost::vhost_user::GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("unused"))
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("unused"))
    }
    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidOperation("unused"))
    }
    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("unused"))
    }
    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("unused"))
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("unused"))
    }
}

#[test]
fn vhost_crate_accepts_each_message_of_a_devices_life() {
    let judge = Arc::new(Mutex::new(Judge::default()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut handler = BackendReqHandler::from_stream(ours, Arc::clone(&judge));
    std::thread::spawn(move || while handler.handle_request().is_ok() {});
    let bench = Bench::new(spec(2, theirs)).ready();
    assert_eq!(bench.config(61), [&[3; 60][..], &[0]].concat());
    for _ in 0..2 {
        bench.drive(VERSION_1, 1);
        assert_eq!(bench.status(), 15);
        bench.device.write(reg::CONFIG + 32, &[1]);
        bench.write(reg::STATUS, 0);
        assert_eq!(bench.status(), 0);
    }
    let starts: Vec<u64> = regions().iter().map(|region| region.gpa).collect();
    let life = [
        "features 0x140000000".into(),
        format!("memory {starts:x?} 2"),
        "num 0 8".into(),
        "addr 0 0".into(),
        "base 0 0".into(),
        "call 0 true".into(),
        "kick 0 true".into(),
        "enable 0 true".into(),
        "config 32 [1]".into(),
        "enable 0 false".into(),
        "stop 0".into(),
    ];
    let hello = ["owner", "protocol 0x229", "channel", "num 0 256"].map(String::from);
    assert_eq!(judge.lock().unwrap().0, [&hello[..], &life, &life].concat());
}
