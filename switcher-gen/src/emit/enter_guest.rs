//! `switcher_enter_guest`: `extern "C" fn() -> *mut PtRegs`, the host's call into the guest.
//!
//! **The CPU** has executed a CALL at CPL 0 with interrupts off, on the host's root and stack; GS
//! is the host's, the inactive GS base is the guest's.
//! SS is not null: SYSRETQ on AMD would hand a null SS's attributes to the guest. The exit reloads
//! it; a host that can lose it in between, to an interrupt of a CPL 3 of its own, reloads it too.
//! **Live**: RSP and the callee-saved registers of the System V ABI; the [`PtRegs`] below sp0.
//! **May be clobbered**: everything else. The call returns through `switcher_return_from_guest`.
//!
//! RSP stays at sp0 and the registers are read from below it. Nothing overwrites them there:
//! interrupts are off, and NMI, #MC, #DB and #DF have stacks of their own.

use switcher_macros::asm;

use super::{entry_point, mitigations};
use crate::arch::RFlags;
use crate::asm::{Label, Sink, Window};
use crate::layout::{BlockLayout, IretFrame, PtRegs};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();

    entry_point(a, variant, Label::EnterGuest);
    asm!(a
        /// Save the host. From here on host_rsp says that a guest is being run.
        ; push  rbp
        ; push  rbx
        ; push  r12
        ; push  r13
        ; push  r14
        ; push  r15
        ; percpu mov QWORD [B::HOST_RSP], rsp
    );
    mitigations::at_entry::<S, B>(a, variant);
    asm!(a
        /// RSP = sp0; the guest's registers lie below it.
        ; percpu mov rsp, QWORD [B::SP0]
        ; mov   r15, QWORD [rsp + PtRegs::r15.below_end()]
        ; mov   r14, QWORD [rsp + PtRegs::r14.below_end()]
        ; mov   r13, QWORD [rsp + PtRegs::r13.below_end()]
        ; mov   r12, QWORD [rsp + PtRegs::r12.below_end()]
        ; mov   rbp, QWORD [rsp + PtRegs::rbp.below_end()]
        ; mov   rbx, QWORD [BYTE rsp + PtRegs::rbx.below_end()]
        ; mov   r11, QWORD [BYTE rsp + PtRegs::r11.below_end()]
        ; mov   r10, QWORD [BYTE rsp + PtRegs::r10.below_end()]
        ; mov   r9,  QWORD [BYTE rsp + PtRegs::r9.below_end()]
        ; mov   r8,  QWORD [BYTE rsp + PtRegs::r8.below_end()]
        ; mov   rax, QWORD [BYTE rsp + PtRegs::rax.below_end()]
        ; mov   rcx, QWORD [BYTE rsp + PtRegs::rcx.below_end()]
        ; mov   rdx, QWORD [BYTE rsp + PtRegs::rdx.below_end()]
        ; mov   rsi, QWORD [BYTE rsp + PtRegs::rsi.below_end()]
        /// The guest's root, as late as a free register allows.
        ; percpu mov rdi, QWORD [B::ENTER_CR3]
        ; mov   cr3, rdi
    );
    a.open(Window::GuestRoot);
    asm!(a
        ; mov   rdi, QWORD [BYTE rsp + PtRegs::rdi.below_end()]
        /// GS is the guest's from here on.
        ; swapgs
        ; or    QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_FIXED.imm32()
    );
    mitigations::before_guest(a, variant);
    asm!(a
        /// SYSRETQ loads USER_CS and USER_DS, whatever the frame says.
        ; cmp   DWORD [BYTE rsp + IretFrame::cs.below_end().low_dword()], selectors.user_cs().into()
        ; jne   =>Label::ReturnOtherSelectors
        ; cmp   DWORD [BYTE rsp + IretFrame::ss.below_end().low_dword()], selectors.user_ds().into()
        ; jne   =>Label::ReturnOtherSelectors
    );
    // Falls through to `return_to_guest`.
}
