//! `switcher_enter_guest`: `extern "C" fn() -> *mut PtRegs`, the host's call into the guest.
//!
//! **The CPU** has executed a CALL at CPL 0 with interrupts off, on the host's root and stack; GS
//! is the host's, the inactive GS base is the guest's.
//! SS is not null: SYSRETQ on AMD would hand a null SS's attributes to the guest. The exit reloads
//! it; a host that can lose it in between, to an interrupt of a CPL 3 of its own, reloads it too.
//! **Live**: RSP and the callee-saved registers of the System V ABI; the [`PtRegs`] below sp0.
//! **May be clobbered**: everything else. The call returns through `switcher_return_from_guest`.
//!
//! While registers are loaded, RSP points to the frame's `rip` and the general registers lie below
//! it. Nothing overwrites them there: interrupts are off, and NMI, #MC, #DB and #DF have stacks of
//! their own.

use switcher_macros::asm;

use super::entry_point;
use crate::arch::RFlags;
use crate::asm::{Label, Sink, Window};
use crate::layout::{IretFrame, PerCpu, PtRegs, Tss, TssExtra};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
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
        ; gs mov QWORD [PerCpu::tss_extra + TssExtra::host_rsp], rsp
        /// RSP = the IRET frame that ends at sp0; the other registers lie below it.
        ; gs mov rsp, QWORD [PerCpu::tss + Tss::sp0]
        ; sub   rsp, BYTE size_of::<IretFrame>() as i8
        ; mov   r15, QWORD [BYTE rsp + PtRegs::r15.from(PtRegs::rip)]
        ; mov   r14, QWORD [BYTE rsp + PtRegs::r14.from(PtRegs::rip)]
        ; mov   r13, QWORD [BYTE rsp + PtRegs::r13.from(PtRegs::rip)]
        ; mov   r12, QWORD [BYTE rsp + PtRegs::r12.from(PtRegs::rip)]
        ; mov   rbp, QWORD [BYTE rsp + PtRegs::rbp.from(PtRegs::rip)]
        ; mov   rbx, QWORD [BYTE rsp + PtRegs::rbx.from(PtRegs::rip)]
        ; mov   r11, QWORD [BYTE rsp + PtRegs::r11.from(PtRegs::rip)]
        ; mov   r10, QWORD [BYTE rsp + PtRegs::r10.from(PtRegs::rip)]
        ; mov   r9,  QWORD [BYTE rsp + PtRegs::r9.from(PtRegs::rip)]
        ; mov   r8,  QWORD [BYTE rsp + PtRegs::r8.from(PtRegs::rip)]
        ; mov   rax, QWORD [BYTE rsp + PtRegs::rax.from(PtRegs::rip)]
        ; mov   rcx, QWORD [BYTE rsp + PtRegs::rcx.from(PtRegs::rip)]
        ; mov   rdx, QWORD [BYTE rsp + PtRegs::rdx.from(PtRegs::rip)]
        ; mov   rsi, QWORD [BYTE rsp + PtRegs::rsi.from(PtRegs::rip)]
        /// The guest's root, as late as a free register allows.
        ; gs mov rdi, QWORD [PerCpu::tss_extra + TssExtra::enter_cr3]
        ; mov   cr3, rdi
    );
    a.open(Window::GuestRoot);
    asm!(a
        ; mov   rdi, QWORD [BYTE rsp + PtRegs::rdi.from(PtRegs::rip)]
        /// GS is the guest's from here on.
        ; swapgs
        ; or    QWORD [BYTE rsp + IretFrame::eflags], RFlags::GUEST_FIXED.imm32()
        /// SYSRETQ loads USER_CS and USER_DS, whatever the frame says.
        ; cmp   DWORD [BYTE rsp + IretFrame::cs.low_dword()], selectors.user_cs().into()
        ; jne   =>Label::ReturnOtherSelectors
        ; cmp   DWORD [BYTE rsp + IretFrame::ss.low_dword()], selectors.user_ds().into()
        ; jne   =>Label::ReturnOtherSelectors
    );
    // Falls through to `return_to_guest`.
}
