//! Registers of this CPU that guests must not find, as cases read and change them.

use core::arch::asm;

use hw_platform::gs;

pub(crate) fn cr0() -> u64 {
    let cr0: u64;
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags)) };
    cr0
}

pub(crate) fn cr4() -> u64 {
    let cr4: u64;
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    cr4
}

pub(crate) fn dr7() -> u64 {
    let dr7: u64;
    // SAFETY: reading changes nothing, and DR7.GD is clear.
    unsafe { asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack, preserves_flags)) };
    dr7
}

/// Reads DR0 to DR3.
pub(crate) fn addresses() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3);
    // SAFETY: reading changes nothing, and DR7.GD is clear.
    unsafe {
        asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
            options(nomem, nostack, preserves_flags),
        );
    }
    [dr0, dr1, dr2, dr3]
}

/// Changes DR0 to DR3, and DR6.
pub(crate) fn set_addresses([dr0, dr1, dr2, dr3]: [u64; 4], dr6: u64) {
    // SAFETY: no breakpoint is enabled, DR7.GD is clear, and no #DB is being handled whose causes
    // DR6 has.
    unsafe {
        asm!(
            "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, in(reg) dr6,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The host's selectors in DS, ES, FS and GS, its FS base, and its GS base.
pub(crate) fn host_segments() -> ([u16; 4], u64, u64) {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: the instructions only store the selectors.
    unsafe {
        asm!(
            "mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags),
        );
    }
    let fs_base: u64;
    // SAFETY: CR4.FSGSBASE is set while a switcher is active.
    unsafe { asm!("rdfsbase {}", out(reg) fs_base, options(nomem, nostack, preserves_flags)) };
    ([ds, es, fs, gs], fs_base, gs::base())
}

pub(crate) fn set_host_fs(selector: u16) {
    // SAFETY: the caller passes a flat segment in the tables that are loaded; nothing here uses FS.
    unsafe { asm!("mov fs, {0:x}", in(reg) selector, options(nostack, preserves_flags)) }
}

pub(crate) fn set_host_segments([ds, es, fs, gs]: [u16; 4], fs_base: u64) {
    // SAFETY: the selectors are null, or of flat data of ring 0, which nothing here uses; GS base
    // is restored.
    unsafe {
        asm!(
            "rdgsbase {base}",
            "mov ds, {0:x}", "mov es, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            "wrgsbase {base}",
            "wrfsbase {4}",
            in(reg) ds, in(reg) es, in(reg) fs, in(reg) gs, in(reg) fs_base, base = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
}
