//! Writes the archives that a kernel unpacks into its initramfs ("newc" cpio, see the
//! kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`). Pure: bytes in, bytes out.

/// An archive under construction. Parents are made on the way, so order does not matter to the caller.
#[derive(Default, Clone)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: std::collections::BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// An archive that holds nothing yet.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds a directory and its parents.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        self.parent(path);
        self.directories.insert(path.to_owned());
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    /// Adds a regular file; `mode` is its permissions, such as `0o755`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path.trim_matches('/'), 0o100_000 | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entry(path.trim_matches('/'), 0o120_777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parent(path);
        self.entry(path.trim_matches('/'), 0o020_600, (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.trim_matches('/').rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime: fixed, so that equal inputs give equal archives
            content.len() as u32,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum: unused in "newc"
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// The entries as (name, mode, size), read back by the format's own rules.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, usize)> {
        let field = |at: usize, n: usize| {
            let start = at + 6 + n * 8;
            let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let name_size = field(at, 11) as usize;
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return found;
            }
            let size = field(at, 6) as usize;
            found.push((name, field(at, 1), size));
            at = (at + 110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
        }
    }

    #[test]
    fn parents_come_before_what_is_in_them_and_only_once() {
        let mut archive = Archive::new();
        archive.file("/lib/modules/a.ko", 0o644, b"12345");
        archive.file("/lib/modules/b.ko", 0o600, b"");
        archive.symlink("/bin/sh", "busybox");
        archive.character_device("/dev/console", 5, 1);
        let expected = [
            ("lib", 0o040_755, 0),
            ("lib/modules", 0o040_755, 0),
            ("lib/modules/a.ko", 0o100_644, 5),
            ("lib/modules/b.ko", 0o100_600, 0),
            ("bin", 0o040_755, 0),
            ("bin/sh", 0o120_777, 7),
            ("dev", 0o040_755, 0),
            ("dev/console", 0o020_600, 0),
        ];
        let expected = expected.map(|(name, mode, size)| (name.to_owned(), mode, size));
        assert_eq!(entries(&archive.finish()), expected);
    }
}
