//! `entry_SYSCALL_compat_switcher`: the stub that answers a 32-bit SYSCALL (spec/switcher.md,
//! "32-bit SYSCALL"; hazards.md, row 17).

use super::{Host, Outcome, Return, State};
use switcher_gen::arch::RFlags;
use switcher_model::Domain;

/// Linux's "no such system call".
const ENOSYS: i64 = 38;

/// A guest, at CPL 3 in 32-bit code, has executed SYSCALL. It goes on at the next instruction with
/// -ENOSYS in EAX. It is still in 32-bit code, so its registers have 32 bits, and SYSRET reloads
/// SS.
pub fn syscall_compat<D: Domain>(d: &D, host: &Host, state: &mut State<D>) -> Outcome<D::Word> {
    let guest = &mut state.guest;
    guest.rflags = d.mask(guest.rflags, !RFlags::RF.bits());
    guest.registers.rcx = guest.rip;
    guest.registers.r11 = guest.rflags;
    guest.registers.rax = d.word((-ENOSYS).cast_unsigned() & 0xFFFF_FFFF);
    guest.cs = d.word(host.selectors.user32_cs().into());
    guest.ss = d.word(host.selectors.user_ds().into());
    Outcome::Guest(Return::Sysretq)
}
