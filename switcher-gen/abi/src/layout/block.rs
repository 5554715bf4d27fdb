//! What emitted code needs of the block of a CPU, whoever has defined it: ours, or that of a kernel
//! whose switcher is to be replaced. Where the fields lie is a parameter of the emitters, as the
//! revision of the PVCS is.

use super::{AsmLayout, Offset, PerCpu, Split64, SwitchFlags, Tss, TssExtra};
use crate::arch::Cr3;

/// A block: a TSS and, after it, the switcher's data. Offsets count from the start of the block.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a per-CPU block",
    label = "`percpu` is for a field of the block: count from its start"
)]
#[expect(missing_docs, reason = "the fields of Tss and TssExtra")]
pub trait BlockLayout: AsmLayout {
    /// The per-CPU variable that the block is; `None` if GS base points to it.
    const VARIABLE: Option<&'static str>;
    /// The switcher's data.
    type Extra: AsmLayout;
    const EXTRA: Offset<Self, Self::Extra>;

    const SP0: Offset<Self, Split64>;
    const SP2: Offset<Self, Split64>;
    const HOST_CR3: Offset<Self, Cr3>;
    const HOST_RSP: Offset<Self, u64>;
    const ENTER_CR3: Offset<Self, Cr3>;
    /// With IBRS only.
    const HOST_SPEC_CTRL: Option<Offset<Self, u32>>;
    /// With IBRS only.
    const GUEST_SPEC_CTRL: Option<Offset<Self, u32>>;
    /// With protection keys only.
    const SMOD_PKRU: Option<Offset<Self, u32>>;
    const SWITCH_FLAGS: Offset<Self, SwitchFlags>;
    const SMOD_CR3: Offset<Self, Cr3>;
    const UMOD_CR3: Offset<Self, Cr3>;
    const PVCS: Offset<Self, u64>;
    const RETU_RIP: Offset<Self, u64>;
    const SMOD_ENTRY: Offset<Self, u64>;
    const SMOD_GSBASE: Offset<Self, u64>;
    const SMOD_RSP: Offset<Self, u64>;
}

/// The offset as it is: `asm!` asks by it, of what `percpu` is in front of, whether it is a field
/// of a block.
#[must_use]
pub const fn in_block<B: BlockLayout, F>(offset: Offset<B, F>) -> Offset<B, F> {
    offset
}

/// Implements [`BlockLayout`] for a struct with the fields `tss` and `tss_extra`. Fields that not
/// every block has are named in the brackets.
macro_rules! impl_block {
    ($block:ident, $extra:ident, $variable:expr,
     [$($optional:ident = $field:ident),*], [$($none:ident),*]) => {
        impl BlockLayout for $block {
            const VARIABLE: Option<&'static str> = $variable;
            type Extra = $extra;
            const EXTRA: Offset<Self, $extra> = Self::tss_extra;
            const SP0: Offset<Self, Split64> = Self::tss.then(Tss::sp0);
            const SP2: Offset<Self, Split64> = Self::tss.then(Tss::sp2);
            const HOST_CR3: Offset<Self, Cr3> = Self::tss_extra.then($extra::host_cr3);
            const HOST_RSP: Offset<Self, u64> = Self::tss_extra.then($extra::host_rsp);
            const ENTER_CR3: Offset<Self, Cr3> = Self::tss_extra.then($extra::enter_cr3);
            $(const $optional: Option<Offset<Self, u32>> =
                Some(Self::tss_extra.then($extra::$field));)*
            $(const $none: Option<Offset<Self, u32>> = None;)*
            const SWITCH_FLAGS: Offset<Self, SwitchFlags> =
                Self::tss_extra.then($extra::switch_flags);
            const SMOD_CR3: Offset<Self, Cr3> = Self::tss_extra.then($extra::smod_cr3);
            const UMOD_CR3: Offset<Self, Cr3> = Self::tss_extra.then($extra::umod_cr3);
            const PVCS: Offset<Self, u64> = Self::tss_extra.then($extra::pvcs);
            const RETU_RIP: Offset<Self, u64> = Self::tss_extra.then($extra::retu_rip);
            const SMOD_ENTRY: Offset<Self, u64> = Self::tss_extra.then($extra::smod_entry);
            const SMOD_GSBASE: Offset<Self, u64> = Self::tss_extra.then($extra::smod_gsbase);
            const SMOD_RSP: Offset<Self, u64> = Self::tss_extra.then($extra::smod_rsp);
        }
    };
}
pub(crate) use impl_block;

impl_block!(
    PerCpu,
    TssExtra,
    None,
    [HOST_SPEC_CTRL = host_spec_ctrl, GUEST_SPEC_CTRL = guest_spec_ctrl, SMOD_PKRU = smod_pkru],
    []
);
