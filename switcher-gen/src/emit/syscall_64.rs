//! `entry_SYSCALL_64_switcher`: where every 64-bit SYSCALL of a guest lands (MSR LSTAR).
//!
//! **The CPU** was at CPL 3 in 64-bit mode: SYSCALL from compatibility mode goes to CSTAR. It has
//! put RIP into RCX and RFLAGS into R11, has cleared the flags in SFMASK and has loaded CS and SS
//! from STAR. RSP, the active GS base and CR3 are still the guest's.
//! **Live**: all general registers, RSP too. RCX need not be canonical: the SYSCALL may have been
//! the last instruction of the canonical half (spec/hazards.md, row 2).
//! **May be clobbered**: nothing before the decision; afterwards, what the file of each path says.
//!
//! Until RSP is the host's, only NMI, #MC and #DB can get in, and they have stacks of their own. An
//! exit loads the host's RSP, and so does an ERETU that needs a stack. With [`Placement::PerCpu`],
//! only an exit needs the host's GS.

use switcher_macros::asm;

use super::pt_regs::push_below_rdi;
use super::{entry_point, to_smod, to_umod};
use crate::asm::{Label, Sink, Window};
use crate::layout::{
    BlockLayout, ExitReason, IretFrame, OrigAx, Placement, Pvcs, PvcsLayout, PvcsV2026, Revision,
    SwitchFlags,
};
use crate::variant::Variant;

pub(super) fn emit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    match variant.revision() {
        Revision::V2024 => emit_for::<S, B, Pvcs>(a, variant),
        Revision::V2026 => emit_for::<S, B, PvcsV2026>(a, variant),
    }
}

#[rustfmt::skip]
fn emit_for<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let placement = variant.placement();

    a.open(Window::GuestRoot);
    a.open(Window::UnsafeStack);
    entry_point(a, variant, Label::Syscall64);
    if placement == Placement::Gs {
        asm!(a ; swapgs);
    }
    asm!(a
        /// In umod, and nothing inhibits? Each inhibitor is greater than either mode.
        ; percpu cmp QWORD [B::SWITCH_FLAGS], SwitchFlags::UMOD.imm32()
        ; jne   =>Label::NotToSmod
    );

    to_smod::emit::<S, B, P>(a, variant);

    asm!(a
        /// Everything is the guest's but RSP. Nothing may come between its load and SYSRETQ.
        ; =>Label::Sysretq
        ; mov   rsp, QWORD [BYTE rsp + IretFrame::rsp.below_end()]
    );
    a.open(Window::UnsafeStack);
    asm!(a
        ; =>Label::SysretqUnsafeStack
        ; sysretq

        ; =>Label::NotToSmod
        /// In smod, nothing inhibits, and the SYSCALL is ERETU?
        ; ja    =>Label::ExitSyscall
        ; percpu cmp rcx, QWORD [B::RETU_RIP]
        ; jne   =>Label::ExitSyscall
    );

    to_umod::emit::<S, B, P>(a, variant);
}

/// The exit, for a SYSCALL that is no direct switch. It falls through to `return_from_guest`,
/// inside the window of the guest's root.
#[rustfmt::skip]
pub(super) fn exit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();
    let placement = variant.placement();

    asm!(a
        /// ERETU after all, but to other selectors: RCX was found equal to retu_rip.
        ; =>Label::ExitEretu
        ; percpu mov rcx, QWORD [B::RETU_RIP]

        /// Exit: a whole PtRegs below sp0. CS and SS are known, as only 64-bit code gets here.
        ; =>Label::ExitSyscall
        /// No register is free: the guest's RSP goes to the TSS's unused sp2.
        ; percpu mov QWORD [B::SP2], rsp
        ; percpu mov rsp, QWORD [B::SP0]
    );
    a.close(Window::UnsafeStack);
    asm!(a ; =>Label::Syscall64SafeStack);
    if placement == Placement::PerCpu {
        asm!(a ; swapgs);
    }
    asm!(a
        ; push  selectors.user_ds().into()
        ; percpu push QWORD [B::SP2]
        ; push  r11
        ; push  selectors.user_cs().into()
        ; push  rcx
        ; push  BYTE 0
        ; mov   DWORD [BYTE rsp + OrigAx::reason], ExitReason::Syscall as i32
        ; push  rdi
    );
    push_below_rdi(a);
}
