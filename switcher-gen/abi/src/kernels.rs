//! The structs of kernels that have a switcher of their own: what is emitted in its place reads and
//! writes these. They are after what is known of their layouts (spec/foreign.md); no code is
//! theirs.

use crate::arch::Cr3;
use crate::layout::{AsmLayout, BlockLayout, Offset, Split64, SwitchFlags, Tss, impl_block};

/// The switcher's data in the out-of-tree module of 2026. Its event entries use `host_gs_base`,
/// which the host's C code writes.
#[derive(Clone, Copy, Debug, Default, AsmLayout)]
#[repr(C, align(64))]
#[asm(size = 0x80, align = 64)]
#[expect(missing_docs, reason = "the fields of TssExtra")]
pub struct ModuleExtra {
    #[asm(at = 0x00)]
    pub host_cr3: Cr3,
    #[asm(at = 0x08)]
    pub host_rsp: u64,
    /// No switcher of ours uses it.
    #[asm(at = 0x10)]
    pub host_gs_base: u64,
    #[asm(at = 0x18)]
    pub enter_cr3: Cr3,
    _line0: [u64; 4],
    #[asm(at = 0x40)]
    pub switch_flags: SwitchFlags,
    #[asm(at = 0x48)]
    pub smod_cr3: Cr3,
    #[asm(at = 0x50)]
    pub umod_cr3: Cr3,
    #[asm(at = 0x58)]
    pub pvcs: u64,
    #[asm(at = 0x60)]
    pub retu_rip: u64,
    #[asm(at = 0x68)]
    pub smod_entry: u64,
    #[asm(at = 0x70)]
    pub smod_gsbase: u64,
    #[asm(at = 0x78)]
    pub smod_rsp: u64,
}

/// The block of the out-of-tree module of 2026: the start of Linux's variable of each CPU's TSS.
#[derive(Clone, Copy, Debug, Default, AsmLayout)]
#[repr(C, align(256))]
#[asm(size = 0x100, align = 256)]
pub struct ModuleBlock {
    /// The hardware's part.
    #[asm(at = 0x00, nested)]
    pub tss: Tss,
    /// The switcher's part.
    #[asm(at = 0x80, nested)]
    pub tss_extra: ModuleExtra,
}

impl_block!(
    ModuleBlock,
    ModuleExtra,
    Some("cpu_tss_rw"),
    [],
    [HOST_SPEC_CTRL, GUEST_SPEC_CTRL, SMOD_PKRU]
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PerCpu;

    #[test]
    fn a_field_has_its_own_place_in_each_block() {
        assert_eq!(PerCpu::ENTER_CR3.bytes(), 0x90);
        assert_eq!(ModuleBlock::ENTER_CR3.bytes(), 0x98);
        assert_eq!(PerCpu::HOST_SPEC_CTRL.map(Offset::bytes), Some(0xB8));
        assert!(ModuleBlock::HOST_SPEC_CTRL.is_none());
    }
}
