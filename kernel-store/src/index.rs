//! The index: which kernels the store has, their facts and their names. As a value, and as the text that is on the disk. Pure.
//!
//! The text is written and read by hand, as nothing that does it is linked here: a line a fact, each of which is checked by the type
//! that holds it, and a digest over all.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::digest::Digest;
use crate::image::{Facts, MAX_VERSION};

/// First line of the text.
pub(crate) const TITLE: &str = "volt-kernel-store 1";
/// Stands for no name; cannot be one.
const NO_NAME: &str = "/";
/// Digests of images that are remembered for one kernel.
pub const MAX_SOURCES: usize = 8;
/// Kernels that there may be: what `list` carries in one message.
pub const MAX_KERNELS: usize = schema::kernel_store_capnp::MAX_KERNELS as usize;
/// Names that there may be.
pub const MAX_NAMES: usize = 4096;
/// Fewest digits that may stand for a digest.
const MIN_PREFIX: usize = 8;

/// One kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// SHA-256 of the unpacked ELF.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it says of itself.
    pub facts: Facts,
    /// When it was imported, in seconds since the Unix epoch.
    pub imported: i64,
    /// The name it was given last; empty if none.
    pub name: String,
    /// SHA-256 of images that unpack to it, the latest last.
    pub sources: Vec<Digest>,
}

/// All kernels, in the order of their import, and the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// The kernels.
    pub entries: Vec<Entry>,
    /// Which kernel a name means.
    pub names: BTreeMap<String, Digest>,
}

/// Why a reference means no kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is none.
    NotFound,
    /// There are several.
    Ambiguous,
}

impl Index {
    /// The kernel with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.digest == *digest)
    }

    /// The kernel with this digest.
    pub fn get_mut(&mut self, digest: &Digest) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.digest == *digest)
    }

    /// The kernel with this name, this digest, or the only one whose digest begins so.
    ///
    /// # Errors
    /// Where there is none, or more than one.
    pub fn resolve(&self, reference: &str) -> Result<&Entry, Unresolved> {
        if let Some(entry) = self.names.get(reference).and_then(|digest| self.get(digest)) {
            return Ok(entry);
        }
        if reference.len() < MIN_PREFIX {
            return Err(Unresolved::NotFound);
        }
        let mut found = self.entries.iter().filter(|entry| entry.digest.to_string().starts_with(reference));
        match (found.next(), found.next()) {
            (Some(entry), None) => Ok(entry),
            (None, _) => Err(Unresolved::NotFound),
            (Some(_), Some(_)) => Err(Unresolved::Ambiguous),
        }
    }

    /// The kernel that an image with this digest unpacks to.
    pub fn by_source(&self, source: &Digest) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.sources.contains(source))
    }

    /// The name to show for a kernel: the last it was given that it still has, else any it has.
    pub fn name_of<'a>(&'a self, entry: &'a Entry) -> &'a str {
        let has = |name: &str| self.names.get(name) == Some(&entry.digest);
        let any = || self.names.iter().find(|(_, digest)| **digest == entry.digest).map(|(name, _)| name.as_str());
        if has(&entry.name) { &entry.name } else { any().unwrap_or_default() }
    }

    /// Gives a kernel a name, which another one loses; nothing if the name is empty.
    pub fn give_name(&mut self, digest: &Digest, name: &str) {
        if name.is_empty() {
            return;
        }
        self.names.insert(name.to_owned(), *digest);
        if let Some(entry) = self.get_mut(digest) {
            name.clone_into(&mut entry.name);
        }
    }

    /// Remembers that an image with this digest unpacks to a kernel.
    pub fn add_source(&mut self, digest: &Digest, source: Digest) {
        if let Some(entry) = self.get_mut(digest)
            && !entry.sources.contains(&source)
        {
            if entry.sources.len() >= MAX_SOURCES {
                entry.sources.remove(0);
            }
            entry.sources.push(source);
        }
    }

    /// Takes a kernel and its names out.
    pub fn remove(&mut self, digest: &Digest) {
        self.entries.retain(|entry| entry.digest != *digest);
        self.names.retain(|_, named| named != digest);
    }

    /// The text, which ends with a digest of itself.
    pub fn to_text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        // Writing to a string cannot fail.
        for Entry { digest, size, facts, imported, name, sources } in &self.entries {
            let Facts { entry, load_start, load_end, pvh_entry, version } = facts;
            let name = if name.is_empty() { NO_NAME } else { name };
            let _ = writeln!(
                text,
                "kernel {digest} {size} {entry} {load_start} {load_end} {pvh_entry} {imported} {name} {version}"
            );
            for source in sources {
                let _ = writeln!(text, "source {digest} {source}");
            }
        }
        for (name, digest) in &self.names {
            let _ = writeln!(text, "name {digest} {name}");
        }
        let end = Digest::of(text.as_bytes());
        let _ = writeln!(text, "end {end}");
        text
    }

    /// Reads the text.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_text(text: &str) -> Result<Index, String> {
        let mut index = Index::default();
        let (body, end) = text.trim_end_matches('\n').rsplit_once('\n').ok_or("it has no end")?;
        let lines = body.strip_prefix(TITLE).ok_or_else(|| format!("it does not begin with {TITLE:?}"))?;
        if end != format!("end {}", Digest::of(format!("{body}\n").as_bytes())) {
            return Err("its digest does not match its content".into());
        }
        for (number, line) in (1..).zip(lines.lines()).skip(1) {
            index.read_line(line).ok_or_else(|| format!("line {number} is not understood"))?;
        }
        Ok(index)
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let (digest, rest) = rest.split_once(' ')?;
        let digest: Digest = digest.parse().ok()?;
        match kind {
            "kernel" => {
                let mut fields = rest.splitn(8, ' ');
                let mut number = || fields.next()?.parse::<u64>().ok();
                let (size, entry, load_start, load_end, pvh_entry) =
                    (number()?, number()?, number()?, number()?, number()?);
                let imported = fields.next()?.parse().ok()?;
                let name = Some(fields.next()?).filter(|name| *name != NO_NAME).unwrap_or_default().to_owned();
                let version = fields.next()?.to_owned();
                // What the facts say is checked when the kernel is opened.
                let sound =
                    version.len() <= MAX_VERSION && self.entries.len() < MAX_KERNELS && self.get(&digest).is_none();
                let facts = Facts { entry, load_start, load_end, pvh_entry, version };
                sound.then(|| self.entries.push(Entry { digest, size, facts, imported, name, sources: Vec::new() }))
            }
            "source" => {
                let source = rest.parse().ok()?;
                let entry = self.get_mut(&digest).filter(|entry| entry.sources.len() < MAX_SOURCES);
                entry.map(|entry| entry.sources.push(source))
            }
            "name" if is_name(rest) && self.names.len() < MAX_NAMES && self.get(&digest).is_some() => {
                self.names.insert(rest.to_owned(), digest).is_none().then_some(())
            }
            _ => None,
        }
    }
}

/// What [`is_name`] asks for, in words.
pub const NAME_RULE: &str = "a name is 1 to 63 bytes of [A-Za-z0-9._-]";

/// Whether a kernel can have this name.
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(seed: u8, name: &str) -> Entry {
        let facts = Facts {
            entry: 1 << 24,
            load_start: 1 << 24,
            load_end: 1 << 25,
            pvh_entry: 0,
            version: format!("6.{seed}  x "),
        };
        Entry {
            digest: Digest::of(&[seed]),
            size: 5,
            facts,
            imported: -1,
            name: name.into(),
            sources: vec![Digest::of(&[seed, 1])],
        }
    }

    fn sample() -> Index {
        let mut index = Index { entries: vec![entry(1, ""), entry(2, ""), entry(3, "")], names: BTreeMap::new() };
        index.give_name(&Digest::of(&[1]), "debian");
        index.give_name(&Digest::of(&[2]), "-");
        index
    }

    #[test]
    fn the_text_reads_back_as_the_same_index() {
        for index in [Index::default(), sample()] {
            assert_eq!(Index::from_text(&index.to_text()), Ok(index));
        }
    }

    #[test]
    fn a_text_of_which_a_single_byte_was_changed_or_lost_is_refused() {
        let text = sample().to_text();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(Index::from_text(&text).is_err(), "byte {at}");
            }
            assert!(Index::from_text(&text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_text_with_as_much_as_there_may_be_reads_back_and_one_with_more_does_not() {
        let with = |kernels: usize, sources: usize, names: usize| {
            let digest = |n: usize| Digest::of(&n.to_le_bytes());
            let mut index = Index::default();
            index.entries.extend((0..kernels).map(|n| Entry { digest: digest(n), ..entry(1, "") }));
            index.entries[0].sources = (0..sources).map(digest).collect();
            index.names = (0..names).map(|n| (n.to_string(), digest(0))).collect();
            Index::from_text(&index.to_text()).is_ok()
        };
        assert!(with(MAX_KERNELS, MAX_SOURCES, MAX_NAMES));
        assert!(!with(MAX_KERNELS + 1, 1, 1) && !with(1, MAX_SOURCES + 1, 1) && !with(1, 1, MAX_NAMES + 1));
    }

    #[test]
    fn a_reference_is_a_name_a_digest_or_a_unique_prefix_of_eight_digits() {
        let mut index = sample();
        let first = Digest::of(&[1]).to_string();
        let resolve = |index: &Index, reference: &str| index.resolve(reference).map(|entry| entry.digest);
        for reference in ["debian", &first, &first[..8], &first[..63]] {
            assert_eq!(resolve(&index, reference), Ok(Digest::of(&[1])), "{reference}");
        }
        for reference in ["", "d", &first[..7], &first.to_uppercase(), &format!("{first}0"), "zzzzzzzzz"] {
            assert_eq!(resolve(&index, reference), Err(Unresolved::NotFound), "{reference}");
        }
        let twin: Digest = format!("{}{}", &first[..40], &Digest::of(&[9]).to_string()[40..]).parse().unwrap();
        index.entries.push(Entry { digest: twin, ..entry(4, "") });
        assert_eq!(resolve(&index, &first[..40]), Err(Unresolved::Ambiguous));
        assert_eq!(resolve(&index, &first), Ok(Digest::of(&[1])));
        // A name that looks like a prefix is a name.
        index.give_name(&Digest::of(&[3]), &first[..40]);
        assert_eq!(resolve(&index, &first[..40]), Ok(Digest::of(&[3])));
    }

    #[test]
    fn a_name_moves_to_the_kernel_that_is_given_it_last() {
        let mut index = sample();
        index.give_name(&Digest::of(&[1]), "other");
        index.give_name(&Digest::of(&[2]), "other");
        let shown = |index: &Index, seed: u8| index.name_of(index.get(&Digest::of(&[seed])).unwrap()).to_owned();
        assert_eq!(shown(&index, 1), "debian", "an older name it still has");
        assert_eq!(shown(&index, 2), "other");
        assert_eq!(shown(&index, 3), "");
        index.remove(&Digest::of(&[2]));
        assert_eq!(index.resolve("other"), Err(Unresolved::NotFound));
        assert_eq!(Index::from_text(&index.to_text()), Ok(index));
    }

    #[test]
    fn the_latest_eight_images_of_a_kernel_are_remembered() {
        let mut index = sample();
        for n in 0..MAX_SOURCES as u8 {
            index.add_source(&Digest::of(&[1]), Digest::of(&[1, 100 + n]));
            index.add_source(&Digest::of(&[1]), Digest::of(&[1, 100 + n]));
        }
        assert_eq!(index.by_source(&Digest::of(&[1, 1])), None, "the oldest is forgotten");
        assert_eq!(index.by_source(&Digest::of(&[1, 100])).unwrap().digest, Digest::of(&[1]));
        assert_eq!(index.entries[0].sources.len(), MAX_SOURCES);
    }

    #[test]
    fn names_hold_63_bytes_of_the_portable_set() {
        assert!(is_name("A.b_c-9") && is_name(&"x".repeat(63)));
        for bad in ["", "a/b", "a b", "\u{e9}", "a\n", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), lines in prop::collection::vec("(kernel|source|name|end) [0-9a-f ]{0,90}", 0..4)) {
            let _ = Index::from_text(&text);
            let mut index = Index::default();
            for line in &lines {
                index.read_line(line);
            }
            let body = format!("{TITLE}\n{}\n", lines.join("\n"));
            let _ = Index::from_text(&format!("{body}end {}\n", Digest::of(body.as_bytes())));
        }
    }
}
