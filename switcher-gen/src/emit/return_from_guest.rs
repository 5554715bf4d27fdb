//! `switcher_return_from_guest`: the common exit, the second half of `switcher_enter_guest`.
//!
//! **Reached** from `syscall_64` (falling through) and by a jump from the host's own handlers of
//! events that interrupted a guest. CPL 0, interrupts off, the host's GS, a guest's root. If an NMI
//! has interrupted the guest, NMIs are blocked, and stay so. RSP points to a whole
//! [`PtRegs`](crate::layout::PtRegs) on the sp0 stack or on one of the IST.
//! **Live**: RSP and the per-CPU block. The general registers are the guest's, already saved.
//! **May be clobbered**: all of them.
//!
//! Returns the frame's address to the caller of `switcher_enter_guest`.

use switcher_macros::asm;

use super::{FILLER, TRAPPED_RET, entry_point, mitigations};
use crate::arch::{RFlags, Vendor};
use crate::asm::{HostSymbol, Label, Length, Sink, Window};
use crate::layout::BlockLayout;
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    // From here on, RSP is the host's, and an NMI may be on its way to the host. Who has event
    // entries of their own need not know.
    if B::VARIABLE.is_none() {
        a.dynamic_label(Label::RoutinesEnd);
    }
    entry_point(a, variant, Label::ReturnFromGuest);
    asm!(a
        /// The host's root.
        ; percpu mov rax, QWORD [B::HOST_CR3]
        ; mov   cr3, rax
    );
    a.close(Window::GuestRoot);
    if variant.vendor() == Vendor::Amd {
        asm!(a
            /// An event from CPL 3 left SS null; the next SYSRETQ would pass its attributes on.
            ; mov   ecx, variant.selectors().kernel_ds().into()
            ; mov   ss, cx
        );
    }
    let is_mitigated = variant.mitigations().at_exit();
    if is_mitigated {
        asm!(a
            /// The host's stack; the frame's address is kept where mitigations leave it alone.
            ; mov   rbp, rsp
        );
    } else {
        asm!(a
            /// The host's stack; the frame's address is the result.
            ; mov   rax, rsp
        );
    }
    asm!(a
        ; percpu mov rsp, QWORD [B::HOST_RSP]
        /// No guest is running any more.
        ; percpu mov QWORD [B::HOST_RSP], 0
    );
    let mut length = Length::new(a.placement());
    back(&mut length, variant);
    mitigations::at_exit::<S, B>(a, variant, length.bytes() - TRAPPED_RET);
    back(a, variant);
    if variant.mitigations().untrain && B::VARIABLE.is_none() {
        a.upper_half(0, FILLER);
        asm!(a
            /// For an image that is linked without a host.
            ; =>Label::NoThunk
            ; ret
        );
    }
}

/// The way back to the host once the mitigations are done. It ends with the RET.
#[rustfmt::skip]
fn back<S: Sink>(a: &mut S, variant: &Variant) {
    let is_mitigated = variant.mitigations().at_exit();
    let cleared = mitigations::ready(a, variant);
    if is_mitigated {
        asm!(a
            /// The frame's address is the result.
            ; mov   rax, rbp
        );
    }
    asm!(a
        /// No flag of the guest reaches host code: DF, AC and NT above all.
        ; push  BYTE RFlags::HOST_EXIT.imm8()
        ; popfq
    );
    if !cleared.rcx {
        asm!(a ; xor ecx, ecx);
    }
    if !cleared.rdx {
        asm!(a ; xor edx, edx);
    }
    asm!(a
        /// Nor a register it could steer speculation with.
        ; xor   esi, esi
        ; xor   edi, edi
        ; xor   r8d, r8d
        ; xor   r9d, r9d
        ; xor   r10d, r10d
        ; xor   r11d, r11d
        ; pop   r15
        ; pop   r14
        ; pop   r13
        ; pop   r12
        ; pop   rbx
        ; pop   rbp
    );
    if variant.mitigations().untrain {
        asm!(a
            /// RET, as all of the host's code does it.
            ; jmp   extern HostSymbol::RETURN_THUNK
        );
    } else {
        asm!(a ; ret);
    }
}
