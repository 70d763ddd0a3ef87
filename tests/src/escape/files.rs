//! Attempts on files: by path, by handle, by what `/proc` shows.

use libc::{AT_FDCWD, O_CREAT, O_DIRECTORY, O_PATH, O_RDONLY, O_RDWR, O_WRONLY};

use super::{
    attempts::{Act, Attempt, Class, call},
    foothold::{Hand, Held},
    scene::Scene,
};

const fn file(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Files, name, act)
}

fn open(hand: &mut Hand, path: &str, flags: i32) -> Result<u64, Held> {
    let path = hand.text(path)?;
    call!(hand, SYS_openat, AT_FDCWD, path, flags, 0o666)
}

/// Tries each of its descriptors that has a path: of a folder, the way up and on to a file of the host's.
fn out_of_folder(
    hand: &mut Hand,
    scene: &Scene,
    act: fn(&mut Hand, i32, u64) -> Result<u64, Held>,
) -> Result<u64, Held> {
    let path = hand.text("../../../../../../../../etc/passwd")?;
    let mut held = Err(Held::Absent);
    for (fd, _) in scene.fds.iter().filter(|(_, name)| name.starts_with('/')) {
        held = act(hand, *fd, path);
        // Who was killed tries no more.
        if !matches!(held, Err(Held::Refused(_))) {
            break;
        }
    }
    held
}

pub(super) const ALL: &[Attempt] = &[
    file("read a file that all may read", |h, s| open(h, &s.world.public, O_RDONLY)),
    file("read /etc/passwd by open", |h, _| {
        let path = h.text("/etc/passwd")?;
        call!(h, SYS_open, path, O_RDONLY)
    }),
    file("read /etc/passwd by openat2", |h, _| {
        let (path, how) = (h.text("/etc/passwd")?, h.room(24)?);
        call!(h, SYS_openat2, AT_FDCWD, path, how, 24)
    }),
    file("read a file by the x32 open", |h, _| {
        let path = h.text("/etc/passwd")?;
        h.call(0x4000_0000 | libc::SYS_open, &[path, 0])
    }),
    file("write a file that all may write", |h, s| open(h, &s.world.public, O_WRONLY)),
    file("make a file", |h, s| open(h, &s.world.new, O_CREAT | O_WRONLY)),
    file("list the host's root directory", |h, _| {
        let root = open(h, "/", O_RDONLY | O_DIRECTORY)?;
        let room = h.room(4096)?;
        let size = call!(h, SYS_getdents64, root, room, 4096)?;
        // One of its own has no such folder.
        let entries = h.get(room, usize::try_from(size).unwrap_or(0))?;
        let etc = entries.windows(5).any(|name| name == b"\0etc\0" || name == b"\x04etc\0");
        if etc { Ok(size) } else { Err(Held::Refused(libc::ENOENT)) }
    }),
    file("list a folder of its own", |h, _| {
        let root = open(h, "/", O_RDONLY | O_DIRECTORY)?;
        let room = h.room(4096)?;
        let size = call!(h, SYS_getdents64, root, room, 4096)?;
        // An empty one has `.` and `..`, of 24 bytes each.
        if size > 48 { Ok(size) } else { Err(Held::Refused(libc::ENOENT)) }
    }),
    file("make a file in a folder of its own", |h, _| open(h, "/", libc::O_TMPFILE | O_WRONLY)),
    file("name a directory", |h, s| open(h, &s.world.dir, O_PATH | O_DIRECTORY)),
    file("stat a file", |h, s| {
        let (path, room) = (h.text(&s.world.public)?, h.room(256)?);
        call!(h, SYS_newfstatat, AT_FDCWD, path, room, 0)
    }),
    file("statx a file", |h, s| {
        let (path, room) = (h.text(&s.world.public)?, h.room(512)?);
        call!(h, SYS_statx, AT_FDCWD, path, 0, 0xfff, room)
    }),
    file("ask by access whether a file is there", |h, s| {
        let path = h.text(&s.world.public)?;
        call!(h, SYS_access, path, libc::R_OK)
    }),
    file("ask by faccessat2 whether a file is there", |h, s| {
        let path = h.text(&s.world.public)?;
        call!(h, SYS_faccessat2, AT_FDCWD, path, libc::F_OK, 0)
    }),
    file("read a symbolic link", |h, _| {
        let (path, room) = (h.text("/proc/self/exe")?, h.room(256)?);
        call!(h, SYS_readlink, path, room, 256)
    }),
    file("read the neighbour's disk", |h, s| open(h, &s.world.disk, O_RDONLY)),
    file("write the neighbour's disk", |h, s| open(h, &s.world.disk, O_WRONLY)),
    file("read ipamd's database", |h, s| open(h, &s.world.database, O_RDONLY)),
    file("write ipamd's database", |h, s| open(h, &s.world.database, O_RDWR)),
    file("list the kernels that are stored", |h, s| open(h, &s.world.kernels, O_RDONLY | O_DIRECTORY)),
    file("write its own memory by /proc/self/mem", |h, _| open(h, "/proc/self/mem", O_RDWR)),
    file("list its own descriptors by /proc/self/fd", |h, _| open(h, "/proc/self/fd", O_RDONLY | O_DIRECTORY)),
    file("open one of its descriptors anew", |h, s| {
        let fd = s.fds.first().ok_or(Held::Absent)?.0;
        open(h, &format!("/proc/self/fd/{fd}"), O_RDWR)
    }),
    file("look out of a folder that it has", |h, s| {
        out_of_folder(h, s, |h, fd, path| {
            let room = h.room(512)?;
            call!(h, SYS_statx, fd, path, 0, 0xfff, room)
        })
    }),
    file("open a file out of a folder that it has", |h, s| {
        out_of_folder(h, s, |h, fd, path| call!(h, SYS_openat, fd, path, libc::O_RDONLY | libc::O_CLOEXEC))
    }),
    file("give its address up for others to have", |h, s| {
        // The lock on the life of the lease is the open file's, whoever made it.
        let life = s.fds.iter().find(|(_, name)| name.contains("/life-")).ok_or(Held::Absent)?.0;
        call!(h, SYS_flock, life, libc::LOCK_UN)
    }),
    file("open /dev/kvm", |h, _| open(h, "/dev/kvm", O_RDWR)),
    file("open /dev/net/tun as the driver's user does", |h, _| {
        open(h, "/dev/net/tun", O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK)
    }),
    file("open the first of the host's macvtaps as the opener does", |h, _| {
        const LARGE: i32 = 0o100_000;
        let flags = O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOFOLLOW | LARGE;
        let path = h.text("/macvtap/1")?;
        // The node leads to the driver, which has no such device.
        call!(h, SYS_openat, AT_FDCWD, path, flags, 0; or [libc::ENODEV, libc::ENXIO])
    }),
    file("open /dev/mem", |h, _| open(h, "/dev/mem", O_RDWR)),
    file("open /dev/null", |h, _| open(h, "/dev/null", O_RDWR)),
    file("open the terminal", |h, _| open(h, "/dev/tty", O_RDWR)),
    file("open one of Volt's programs to write", |h, s| open(h, &s.world.program, O_WRONLY)),
    file("remove a file", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_unlink, path)
    }),
    file("remove a file by unlinkat", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_unlinkat, AT_FDCWD, path, 0)
    }),
    file("remove another VM's control socket", |h, s| {
        let path = h.text(&s.world.vm_victim)?;
        call!(h, SYS_unlink, path)
    }),
    file("rename a file", |h, s| {
        let (from, to) = (h.text(&s.world.victim)?, h.text(&s.world.new)?);
        call!(h, SYS_renameat, AT_FDCWD, from, AT_FDCWD, to)
    }),
    file("rename a file by renameat2", |h, s| {
        let (from, to) = (h.text(&s.world.victim)?, h.text(&s.world.new)?);
        call!(h, SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0)
    }),
    file("give a file a second name", |h, s| {
        let (from, to) = (h.text(&s.world.victim)?, h.text(&s.world.new)?);
        call!(h, SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0)
    }),
    file("make a symbolic link", |h, s| {
        let (to, path) = (h.text("/")?, h.text(&s.world.new)?);
        call!(h, SYS_symlinkat, to, AT_FDCWD, path)
    }),
    file("make a directory", |h, s| {
        let path = h.text(&s.world.new)?;
        call!(h, SYS_mkdirat, AT_FDCWD, path, 0o700)
    }),
    file("make a device node", |h, s| {
        let path = h.text(&s.world.new)?;
        call!(h, SYS_mknodat, AT_FDCWD, path, libc::S_IFCHR | 0o666, 0x103)
    }),
    file("change a file's mode", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_fchmodat, AT_FDCWD, path, 0o666)
    }),
    file("change a file's owner", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_fchownat, AT_FDCWD, path, 0, 0, 0)
    }),
    file("change a file's time", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_utimensat, AT_FDCWD, path, 0, 0)
    }),
    file("cut a file short", |h, s| {
        let path = h.text(&s.world.victim)?;
        call!(h, SYS_truncate, path, 0)
    }),
    file("put an attribute on a file", |h, s| {
        let (path, name) = (h.text(&s.world.victim)?, h.text("trusted.volt")?);
        call!(h, SYS_setxattr, path, name, name, 1, 0)
    }),
    file("watch a directory", |h, s| {
        let inotify = call!(h, SYS_inotify_init1, 0)?;
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_inotify_add_watch, inotify, path, libc::IN_ALL_EVENTS)
    }),
    file("watch a file system by fanotify", |h, _| call!(h, SYS_fanotify_init, libc::FAN_CLASS_CONTENT, 0)),
    file("change its directory", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_chdir, path)
    }),
    file("change its root", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_chroot, path)
    }),
    file("swap its root", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_pivot_root, path, path; or [libc::EINVAL, libc::EBUSY])
    }),
    file("mount a file system", |h, s| {
        let (what, path) = (h.text("tmpfs")?, h.text(&s.world.mount)?);
        call!(h, SYS_mount, what, path, what, 0, 0)
    }),
    file("mount by fsopen", |h, _| {
        let what = h.text("tmpfs")?;
        call!(h, SYS_fsopen, what, 0)
    }),
    file("clone a mount by open_tree", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_open_tree, AT_FDCWD, path, 1)
    }),
    file("unmount a file system", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_umount2, path, 8; or [libc::EINVAL, libc::EBUSY])
    }),
    file("make a file handle", |h, s| {
        let path = h.text(&s.world.public)?;
        let (handle, mount) = (h.put(&[&128_u32.to_ne_bytes()[..], &[0; 132]].concat())?, h.room(4)?);
        call!(h, SYS_name_to_handle_at, AT_FDCWD, path, handle, mount, 0)
    }),
    file("open a file by its handle", |h, _| {
        let handle = h.put(&[&8_u32.to_ne_bytes()[..], &[0; 20]].concat())?;
        call!(h, SYS_open_by_handle_at, AT_FDCWD, handle, 0; or [libc::ESTALE, libc::EINVAL, libc::EBADF])
    }),
    file("map a file of the host's by uselib", |h, s| {
        let path = h.text(&s.world.program)?;
        call!(h, SYS_uselib, path)
    }),
];
