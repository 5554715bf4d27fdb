//! Regions that proofs take to be apart from each other, and that are numbers: whoever says where
//! they lie can be wrong.
//!
//! Regions with unknown addresses are apart by assumption. The per-CPU block's parts have offsets
//! from one address, the code has an address, and with placement `percpu` so has the block.

use crate::host_data::DataAt;
use crate::target::Target;
use switcher_gen::layout::{PerCpu, Placement, Tss};
/// Two regions that share bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} and {} overlap: say where the code has them (`--gs-tss`, `--gs-tss-extra`, `--per-cpu`, \
     `--read-only`), or put them apart", .regions[0], .regions[1]
)]
pub struct Overlap {
    /// The names of the two, and where they lie.
    pub regions: [String; 2],
}

/// Where a region lies: at a number, or relative to the per-CPU block.
#[derive(Clone, Copy)]
struct Span<'a> {
    name: &'a str,
    /// Whether the start counts from an unknown address.
    is_relative: bool,
    start: u64,
    size: u64,
}

impl Span<'_> {
    const fn overlaps(&self, other: &Self) -> bool {
        self.is_relative == other.is_relative
            && share_a_byte((self.start, self.size), (other.start, other.size))
    }

    fn text(&self) -> String {
        let Self { name, start, size, is_relative } = self;
        let offset = start.cast_signed();
        match (is_relative, offset < 0) {
            (false, _) => format!("{name} ({size:#x} bytes at {start:#x})"),
            (true, false) => format!("{name} ({size:#x} bytes at GS+{start:#x})"),
            (true, true) => format!("{name} ({size:#x} bytes at GS-{:#x})", offset.unsigned_abs()),
        }
    }
}

/// Whether two regions share a byte, by their starts and sizes. Addresses wrap around.
pub(crate) const fn share_a_byte(one: (u64, u64), other: (u64, u64)) -> bool {
    other.0.wrapping_sub(one.0) < one.1 || one.0.wrapping_sub(other.0) < other.1
}

/// Refuses a target of which two regions share bytes.
pub(crate) fn check(target: &Target) -> Result<(), Overlap> {
    let Target { program, setting, hooks, returns, .. } = target;
    let (is_relative, block) = match setting.variant.placement() {
        Placement::Gs => (true, 0),
        Placement::PerCpu => (false, program.base().wrapping_sub(PerCpu::BEFORE_CODE)),
    };
    let of_block = |name, at: i64, size: u64| Span {
        name,
        is_relative,
        start: block.wrapping_add_signed(at),
        size,
    };
    let last = program.pieces().last();
    let end = last.map_or(program.base(), |(start, bytes)| start + bytes.len() as u64);
    let mut all = vec![
        of_block("the TSS", setting.block.tss, size_of::<Tss>() as u64),
        of_block("the switcher's data", setting.block.tss_extra, setting.extra.size() as u64),
        // This is all of it: what lies between its pieces is code, too.
        Span {
            name: "the code",
            is_relative: false,
            start: program.base(),
            size: end.wrapping_sub(program.base()),
        },
    ];
    // The host's routines are not looked at: the code's own bytes would not be.
    // 0 stands for one that there is not.
    let is_within = |address: &&u64| **address != 0 && program.contains(**address);
    let hosts = hooks.iter().chain(returns).filter(is_within);
    all.extend(hosts.map(|address| Span {
        name: "a routine of the host's",
        is_relative: false,
        start: *address,
        size: 1,
    }));
    all.extend(target.data.iter().map(|data| {
        let (is_relative, start) = match data.at {
            DataAt::PerCpu(at) => (true, at.cast_unsigned()),
            DataAt::Fixed(at) => (false, at),
        };
        Span { name: &data.name, is_relative, start, size: data.size.into() }
    }));
    for (number, one) in all.iter().enumerate() {
        if let Some(other) = all[number + 1..].iter().find(|other| one.overlaps(other)) {
            return Err(Overlap { regions: [one.text(), other.text()] });
        }
    }
    Ok(())
}
