//! Structs that emitted code shares with its host, as bytes in memory.

use switcher_gen::layout::{
    AsmLayout, IretFrame, PtRegs, Pvcs, PvcsV2026, Revision, Tss, TssExtra,
};

/// Puts a number at `offset`.
fn put(cells: &mut [u8], offset: usize, bytes: &[u8]) {
    cells[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The bytes at `offset`.
fn get<const N: usize>(cells: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&cells[offset..offset + N]);
    bytes
}

/// The 64-bit number at `offset`.
pub(super) fn word(cells: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(get(cells, offset))
}

/// Reads and writes those fields of a struct that are integers.
macro_rules! integers {
    ($put:ident, $get:ident: $struct:ident { $($field:ident: $type:ident),* $(,)? }) => {
        fn $put(value: &$struct, cells: &mut [u8]) {
            $(put(cells, $struct::$field.bytes(), &value.$field.to_le_bytes());)*
        }
        fn $get(cells: &[u8]) -> $struct {
            let mut value = $struct::default();
            $(value.$field = $type::from_le_bytes(get(cells, $struct::$field.bytes()));)*
            value
        }
    };
}

integers!(put_registers, get_registers: PtRegs {
    r15: u64, r14: u64, r13: u64, r12: u64, rbp: u64, rbx: u64, r11: u64, r10: u64, r9: u64, r8: u64,
    rax: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64, rip: u64, cs: u64, eflags: u64, rsp: u64,
    ss: u64,
});

/// A frame, without the bytes of anything else.
pub(super) fn put_frame(frame: &PtRegs, cells: &mut [u8]) {
    put_registers(frame, cells);
    let cause = PtRegs::orig_ax.bytes();
    let orig_ax = u64::from(frame.orig_ax.reason) << 32 | u64::from(frame.orig_ax.error_code);
    put(cells, cause, &orig_ax.to_le_bytes());
}

pub(super) fn get_frame(cells: &[u8]) -> PtRegs {
    let mut frame = get_registers(cells);
    let orig_ax = word(cells, PtRegs::orig_ax.bytes());
    frame.orig_ax.error_code = orig_ax as u32;
    frame.orig_ax.reason = (orig_ax >> 32) as u32;
    frame
}

pub(super) fn get_iret_frame(cells: &[u8]) -> IretFrame {
    IretFrame {
        rip: word(cells, IretFrame::rip.bytes()),
        cs: word(cells, IretFrame::cs.bytes()),
        eflags: word(cells, IretFrame::eflags.bytes()),
        rsp: word(cells, IretFrame::rsp.bytes()),
        ss: word(cells, IretFrame::ss.bytes()),
    }
}

integers!(put_pvcs_fields, get_pvcs: Pvcs {
    event_flags: u64, event_errcode: u32, event_vector: u32, cr2: u64, user_cs: u16, user_ss: u16,
    user_gsbase: u64, eflags: u32, pkru: u32, rip: u64, rsp: u64, rcx: u64, r11: u64,
});

integers!(put_v2026_fields, get_v2026: PvcsV2026 {
    event_flags: u64, cr2: u64, user_cs: u16, user_ss: u16, event_errcode: u16, event_vector: u16,
    user_gsbase: u64, eflags: u32, pkru: u32, rip: u64, rcx: u64, r11: u64,
});

/// Writes a PVCS as the revision lays it out. Reserved fields are zero.
pub(super) fn put_pvcs(pvcs: &Pvcs, revision: Revision, cells: &mut [u8]) {
    cells.fill(0);
    match revision {
        Revision::V2024 => put_pvcs_fields(pvcs, cells),
        Revision::V2026 => put_v2026_fields(&PvcsV2026::from_v2024(pvcs), cells),
    }
}

/// Reads a PVCS, or finds the offset of a reserved field that has been written. Fields that the
/// revision lacks are taken from `before`.
pub(super) fn get_whole_pvcs(
    cells: &[u8],
    revision: Revision,
    before: &Pvcs,
) -> Result<Pvcs, usize> {
    let pvcs = match revision {
        Revision::V2024 => get_pvcs(cells),
        Revision::V2026 => get_v2026(cells).to_v2024(before),
    };
    let mut whole = [0; Pvcs::LAYOUT.size];
    put_pvcs(&pvcs, revision, &mut whole);
    match (0..whole.len()).find(|at| whole[*at] != cells[*at]) {
        Some(offset) => Err(offset),
        None => Ok(pvcs),
    }
}

/// A TSS with two stacks.
pub(super) fn put_tss(cells: &mut [u8], sp0: u64, ist1: u64) {
    cells.fill(0);
    put(cells, Tss::sp0.bytes(), &sp0.to_le_bytes());
    put(cells, Tss::ist1.bytes(), &ist1.to_le_bytes());
    let size = size_of::<Tss>() as u16;
    put(cells, Tss::iomap_base.bytes(), &size.to_le_bytes());
}

/// Writes the `TssExtra`, which follows the TSS.
pub(super) fn put_extra(extra: &TssExtra, cells: &mut [u8]) {
    cells.fill(0);
    for (offset, value) in [
        (TssExtra::host_cr3.bytes(), extra.host_cr3.bits()),
        (TssExtra::host_rsp.bytes(), extra.host_rsp),
        (TssExtra::enter_cr3.bytes(), extra.enter_cr3.bits()),
        (TssExtra::switch_flags.bytes(), extra.switch_flags.bits()),
        (TssExtra::smod_cr3.bytes(), extra.smod_cr3.bits()),
        (TssExtra::umod_cr3.bytes(), extra.umod_cr3.bits()),
        (TssExtra::pvcs.bytes(), extra.pvcs),
        (TssExtra::retu_rip.bytes(), extra.retu_rip),
        (TssExtra::smod_entry.bytes(), extra.smod_entry),
        (TssExtra::smod_gsbase.bytes(), extra.smod_gsbase),
        (TssExtra::smod_rsp.bytes(), extra.smod_rsp),
    ] {
        put(cells, offset, &value.to_le_bytes());
    }
    put(cells, TssExtra::smod_pkru.bytes(), &extra.smod_pkru.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::layout::OrigAx;

    #[test]
    fn a_frame_survives_memory() {
        let mut cells: Vec<u8> = (0..PtRegs::LAYOUT.size as u8).collect();
        let frame = get_frame(&cells);
        assert_eq!(frame.r15, 0x0706_0504_0302_0100);
        assert_eq!(frame.orig_ax, OrigAx { error_code: 0x7B7A_7978, reason: 0x7F7E_7D7C });
        let mut copy = vec![0; cells.len()];
        put_frame(&frame, &mut copy);
        assert_eq!(copy, cells, "every byte belongs to a field");
        cells[0] = !0;
        assert_ne!(get_frame(&cells), frame);
    }

    #[test]
    fn a_pvcs_survives_memory_and_its_reserved_fields_are_watched() {
        let reserved: [(Revision, &[std::ops::Range<usize>]); 2] = [
            (Revision::V2024, &[0x18..0x40, 0x44..0x50]),
            (Revision::V2026, &[0x10..0x40, 0x70..0x80]),
        ];
        for (revision, reserved) in reserved {
            let size = Pvcs::LAYOUT.size;
            let mut before = Pvcs::default();
            before.rsp = 0x5050;
            let all: Vec<u8> = (1..=size as u8).collect();
            assert_eq!(get_whole_pvcs(&all, revision, &before), Err(reserved[0].start));
            let mut cells = all;
            reserved.iter().for_each(|range| cells[range.clone()].fill(0));
            let pvcs = get_whole_pvcs(&cells, revision, &before).unwrap();
            let mut copy = vec![!0; size];
            put_pvcs(&pvcs, revision, &mut copy);
            assert_eq!(copy, cells, "{revision:?}: every other byte belongs to a field");
            assert_eq!(pvcs.rsp == before.rsp, revision == Revision::V2026);
        }
    }
}
