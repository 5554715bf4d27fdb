//! LOCK, and XCHG with memory: over two cache lines it holds up the whole machine, and where the
//! host has CPUs detect that, it is #AC, in ring 0 too (Intel SDM vol. 3, 9.1.2.3, "split-lock
//! detection").

use switcher_model::RegionName;

/// Whether `size` bytes, so far from the base of a region, are certain to be in one cache line: a
/// power of two that divides its address is. Bases are multiples of 8, but for that of a stack that
/// an event has interrupted anywhere.
pub(crate) fn is_in_one_line(region: RegionName, at: i64, size: usize) -> bool {
    let is_aligned = matches!(size, 1 | 2 | 4 | 8) && at.rem_euclid(size as i64) == 0;
    size == 1 || is_aligned && region != RegionName::InterruptedStack
}
