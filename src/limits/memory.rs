//! How much memory prompts may take: `limits.prompt_memory`, and never more than half of what the
//! machine, or the container, has. So clients get a 503 before the kernel ends the process.

use std::fs;
use std::sync::LazyLock;

/// Bytes of memory this process may have; `None` where nobody says.
static THERE_IS: LazyLock<Option<u64>> = LazyLock::new(|| {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = cgroup.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    [total, limit].into_iter().flatten().min()
});

/// The bound that holds when `asked` was asked for.
pub fn bound(asked: u64) -> u64 {
    THERE_IS.map_or(asked, |there_is| asked.min(there_is / 2))
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_promised_than_half_of_what_there_is() {
        assert_eq!(total("MemTotal:       24689764 kB\nMemFree: 1 kB\n"), Some(24_689_764 << 10));
        assert_eq!(total("MemTotal: many\n"), None);
        assert_eq!(bound(1 << 20), 1 << 20);
        assert!(bound(u64::MAX) < u64::MAX);
    }
}
