//! What an instruction is, wherever it and those after it lie: what proofs of it rest on.

use std::hash::Hash;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions};

use crate::target::Target;
use crate::target::around::Around;
use switcher_gen::asm::{HostSymbol, Window};

/// All of an instruction that a proof looks at, but for where it and those after it lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Looks {
    /// Its bytes, without those that say how far it is to an address.
    pub(crate) bytes: Vec<u8>,
    /// An address that the instruction makes a value.
    pub(crate) value: Option<u64>,
    /// Whether that is an address of the code.
    pub(crate) is_label: bool,
    /// Whether it is a number, which does not move with the code.
    pub(crate) is_number: bool,
    /// Where it leaves the code for: a symbol of the host's, or elsewhere.
    pub(crate) leaves: Option<Option<HostSymbol>>,
    pub(crate) windows: Vec<Window>,
    pub(crate) is_iretq: bool,
    /// Whether NMIs are never blocked there.
    pub(crate) is_routine: bool,
    /// What lies around it, without its cache line where that is not looked at.
    pub(crate) around: Around,
}

/// What the instruction at `at` looks like. `in_line` says whether it matters that a branch stays
/// in its cache line.
pub(crate) fn looks(target: &Target, at: u64, in_line: bool) -> Looks {
    let program = &target.program;
    let code = program.from(at);
    let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    let i = decoder.decode();
    let offsets = decoder.get_constant_offsets(&i);
    let mut bytes = code[..i.len()].to_vec();
    let is_direct = i.near_branch_target() != 0;
    if is_direct {
        bytes.truncate(offsets.immediate_offset());
    }
    let value = i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address());
    if value.is_some() {
        let start = offsets.displacement_offset();
        bytes[start..start + offsets.displacement_size()].fill(0);
    }
    let to = i.near_branch_target();
    let leaves = is_direct && !program.contains(to);
    let is_in = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&at));
    let windows = target.windows.iter().filter(|(_, ranges)| is_in(ranges));
    let windows = windows.map(|(window, _)| *window);
    let around = target.around(at);
    Looks {
        bytes,
        value,
        is_label: value.is_some_and(|value| target.has_label(value)),
        is_number: program.linked_gs(&i).is_some(),
        leaves: leaves.then(|| target.of_host(to)),
        windows: windows.collect(),
        is_iretq: target.iretq == Some(at),
        is_routine: target.is_routine(at),
        around: Around { stays_in_line: around.stays_in_line.filter(|_| in_line), ..around },
    }
}
