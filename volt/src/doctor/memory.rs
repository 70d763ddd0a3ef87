//! Memory: how much there is, huge pages, and what would carry one VM's memory to where others can learn of it.

use super::{Check, probe};
use crate::cli::DEFAULT_MEMORY;

/// What a VM of the default size takes, with its processes, in KiB.
const ONE_VM: u64 = (DEFAULT_MEMORY + (16 << 20)) >> 10;

/// Memory that is available.
pub fn available() -> Check {
    let table = probe::read("/proc/meminfo").unwrap_or_default();
    let Some((free, all)) = field(&table, "MemAvailable:").zip(field(&table, "MemTotal:")) else {
        return Check::limited("memory", "/proc/meminfo cannot be read", "mount /proc");
    };
    let detail = format!("{} of {} MiB available", free >> 10, all >> 10);
    if free < ONE_VM {
        let remedy = format!("free some: a VM of the default size takes {} MiB", DEFAULT_MEMORY >> 20);
        return Check::limited("memory", detail, remedy);
    }
    Check::ok("memory", detail)
}

/// A field of `/proc/meminfo`, in KiB.
fn field(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Huge pages: those that guest RAM gets on demand, and the pools.
pub fn huge_pages() -> Check {
    // SAFETY: advice on no memory at all: the kernel only says whether it knows it.
    let collapse = unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_COLLAPSE) } == 0;
    let mode = |file: &str| {
        let text = probe::read(&format!("/sys/kernel/mm/transparent_hugepage/{file}"));
        text.ok().and_then(|text| Some(chosen(&text)?.to_owned()))
    };
    let pool = |size: &str, kib: u64| {
        let dir = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
        let number = |file: &str| probe::number(&format!("{dir}/{file}"));
        Some(format!("{size}: {} of {} free", number("free_hugepages")?, number("nr_hugepages")?))
    };
    let pools: Vec<String> = [pool("2M", 2048), pool("1G", 1 << 20)].into_iter().flatten().collect();
    let pools = if pools.is_empty() { "no pools".into() } else { pools.join(", ") };
    match (collapse, mode("enabled")) {
        (true, Some(enabled)) => {
            let shared = mode("shmem_enabled").unwrap_or("unknown".into());
            Check::ok("huge-pages", format!("on demand (transparent {enabled}, shared {shared}); {pools}"))
        }
        _ => Check::limited(
            "huge-pages",
            format!("not on demand; {pools}"),
            "Linux 6.1 with CONFIG_TRANSPARENT_HUGEPAGE, for fewer page faults of guests",
        ),
    }
}

/// The one of several words that stands in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// Swap: guest RAM must not reach a disk.
pub fn swap() -> Check {
    match probe::read("/proc/swaps") {
        Ok(table) => match areas(&table).as_slice() {
            [] => Check::ok("swap", "off"),
            areas => {
                let remedy =
                    "swapoff -a, or encrypted swap, where tenants do not trust each other: it keeps guests' memory";
                Check::limited("swap", format!("on: {}", areas.join(", ")), remedy)
            }
        },
        // A kernel without swap has no such file.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Check::ok("swap", "off: not in this kernel"),
        Err(e) => Check::limited("swap", format!("cannot be found out: {e}"), "run as root"),
    }
}

/// The areas that `/proc/swaps` lists, below its heading.
fn areas(table: &str) -> Vec<&str> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

/// Kernel same-page merging: by the time of a write, one tenant learns what another has in memory.
pub fn same_page_merging() -> Check {
    match probe::number("/sys/kernel/mm/ksm/run") {
        Some(1) => {
            let remedy =
                "echo 2 > /sys/kernel/mm/ksm/run, where tenants do not trust each other: it tells one what another has";
            Check::limited("ksm", "runs", remedy)
        }
        Some(_) => Check::ok("ksm", "off"),
        None => Check::ok("ksm", "off: not in this kernel"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_s_tables_are_read_whole_or_cut() {
        assert_eq!(field("MemTotal:  10 kB\nMemAvailable:  7 kB", "MemAvailable:"), Some(7));
        assert_eq!(field("MemAvailable:", "MemAvailable:"), None);
        assert_eq!(field("", "MemTotal:"), None);
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("always"), None);
        assert_eq!(chosen("[alw"), None);
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority";
        assert!(areas(heading).is_empty());
        assert!(areas("").is_empty());
        assert_eq!(
            areas(&format!("{heading}\n/dev/zram0  partition 1 0 100\n/swapfile file 2 0 -2")),
            ["/dev/zram0", "/swapfile"]
        );
    }
}
