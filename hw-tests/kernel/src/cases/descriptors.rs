//! Descriptor tables in which CPL 3 finds more than it may: the runtime refuses them.

use alloc::format;
use alloc::string::String;
use core::arch::asm;

use hw_platform::memory::Frame;
use hw_platform::{memory, segments};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{DescriptorTablePointer, EnterError, State, WrongCpu};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::refusal::{by_enter, by_prepare, descriptor, expect, guest, refused, runs, with_gdt};
use crate::registers::{host_segments, set_host_fs, set_host_segments};

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/a_forgotten_ldt_is_refused",
        shown: "No guest is entered while an LDT is loaded.",
        rows: &[Hazard::LdtGate],
        cpus: 1,
        needs: &[],
        run: |bench| stale_ldt(bench.host()?),
    },
    HostCase {
        name: "host/descriptors_that_no_guest_may_have_are_refused",
        shown: "No guest is entered with a GDT that has a call gate, conforming code or what would fault.",
        rows: &[Hazard::LdtGate, Hazard::IretqReads],
        cpus: 1,
        needs: &[],
        run: |bench| descriptors(bench.host()?),
    },
];

/// Executes LLDT.
fn load_ldt(selector: u16) {
    // SAFETY: the selector is null, or that of an LDT's descriptor in the GDT that is loaded. The
    // kernel uses no selector of an LDT.
    unsafe { asm!("lldt {0:x}", in(reg) selector, options(nostack, preserves_flags)) }
}

/// An LDT that a host has forgotten to unload, with a call gate to ring 0 in it, as a guest would
/// put it there that has the memory at its address.
fn stale_ldt(host: &mut BareMetal<'_>) -> Ended {
    let mut table = Frame::new().map_err(|why| format!("an LDT: {why}"))?;
    let gate = u64::from(segments::KERNEL_CS) << 16 | 0xEC << 40;
    table.write(0, &gate.to_le_bytes());
    // Beside the gate lies a segment that a process of the host's has in FS.
    let data = descriptor(0x13, 3, 0xC);
    table.write(8, &data.to_le_bytes());
    let (at_first, of_ldt) = (host_segments(), 8 | 1 << 2 | 3);
    let base = table.address();
    let low = 0xFFF | (base & 0xFF_FFFF) << 16 | 0x82 << 40 | (base >> 24 & 0xFF) << 56;
    let selector = DescriptorTablePointer::gdtr().limit() + 1;
    with_gdt(
        |gdt| gdt.extend([low, base >> 32]),
        || {
            load_ldt(selector);
            Ok(())
        },
    )?;
    set_host_fs(of_ldt);
    let (prepare, enter) = (by_prepare(host), by_enter(host));
    load_ldt(0);
    // FS still has the selector, but it could not be loaded again.
    let stale = by_enter(host);
    // Nor could it by an entry of the GDT that is gone, as a thread's entries are in another GDT.
    with_gdt(
        |gdt| gdt.push(data),
        || {
            set_host_fs(selector | 3);
            Ok(())
        },
    )?;
    let gone = by_enter(host);
    set_host_segments(at_first.0, at_first.1);
    expect("`prepare` with an LDT", prepare, State::Ldtr)?;
    expect("`enter` with an LDT", enter, State::Ldtr)?;
    for said in [stale, gone] {
        match said {
            Ok(why) if why.register == "the host's FS" => {}
            other => {
                return Err(format!("a selector in FS that cannot be loaded again: {other:?}"));
            }
        }
    }
    runs(host)?;
    Ok(1)
}

/// A GDT in which CPL 3 finds more than it may use, or entries that would fault.
fn descriptors(host: &mut BareMetal<'_>) -> Ended {
    const CODE: u64 = 0x1B;
    const DATA: u64 = 0x13;
    const CONFORMING: u64 = 0x1F;
    const DOWN: u64 = 0x17;
    const CALL_GATE: u64 = 0xC;
    const LDT: u64 = 0x2;
    const ACCESSED: u64 = 1;
    const LONG: u64 = 0xA;
    const SIZE32: u64 = 0xC;
    const SIZE16: u64 = 0x8;
    let bad = [
        ("a call gate", descriptor(CALL_GATE, 3, 0)),
        ("an LDT of DPL 3", descriptor(LDT, 3, 0)),
        ("conforming code of DPL 3", descriptor(CONFORMING, 3, LONG)),
        ("conforming code of DPL 0", descriptor(CONFORMING, 0, LONG)),
        ("16-bit code", descriptor(CODE, 3, SIZE16)),
        ("a 16-bit stack", descriptor(DATA, 3, SIZE16)),
        ("a stack that expands down", descriptor(DOWN, 3, SIZE32)),
        ("code that is not accessed", descriptor(CODE - ACCESSED, 3, LONG)),
        ("data that is not accessed", descriptor(DATA - ACCESSED, 3, SIZE32)),
    ];
    for (what, entry) in bad {
        let said = with_gdt(|gdt| gdt.push(entry), || by_prepare(host));
        expect(what, said, State::Gdt)?;
    }
    // These are changes to the descriptors that the switcher itself uses.
    for (index, entry) in [
        (segments::USER_DS / 8, descriptor(DATA, 3, SIZE16)),
        (segments::USER_CS / 8, descriptor(CODE - ACCESSED, 3, LONG)),
        (segments::USER32_CS / 8, descriptor(CODE, 3, LONG)),
    ] {
        let said = with_gdt(|gdt| gdt[usize::from(index)] = entry, || by_prepare(host));
        expect("a selector of the switcher's", said, State::Gdt)?;
    }
    // The limit is too large, and makes descriptors of what follows the table.
    let own = DescriptorTablePointer::gdtr();
    let long = DescriptorTablePointer::new(own.base(), 0xFFFF, memory::paging());
    // SAFETY: the table is the same; nothing loads what lies after it.
    unsafe { long.map_err(|why| format!("{why}"))?.load_gdt() };
    let said = by_prepare(host);
    // SAFETY: this is the kernel's own GDTR.
    unsafe { own.load_gdt() };
    expect("a limit of 64 KiB", said, State::Gdt)?;
    // The GDT has changed since it was checked: a guest with selectors of such descriptors is not
    // entered.
    for (what, entry) in [bad[0], bad[2], bad[5], bad[8]] {
        let mut guest = guest(host, PROBE);
        guest.regs.ss = u64::from(own.limit() + 1) | 3;
        let said = with_gdt(|gdt| gdt.push(entry), || refused(host, &mut guest));
        expect(what, said, State::GeneralRegisters)?;
    }
    // The loaded table is another one, or another part of it, so the entries that guests would find
    // have not been checked.
    let said = with_gdt(|_| (), || by_enter(host));
    expect("another GDT", said, State::Gdt)?;
    let short = DescriptorTablePointer::new(own.base(), own.limit() - 8, memory::paging());
    // SAFETY: the table is the same, without its last entry, which nothing has loaded.
    unsafe { short.map_err(|why| format!("{why}"))?.load_gdt() };
    let said = by_enter(host);
    // SAFETY: this is the kernel's own GDTR.
    unsafe { own.load_gdt() };
    expect("another limit", said, State::Gdt)?;
    another_task(host)?;
    runs(host)?;
    Ok(1)
}

/// Loads TR with another selector, of the same TSS.
fn another_task(host: &mut BareMetal<'_>) -> Result<(), String> {
    const BUSY: u64 = 1 << 41;
    let index = usize::from(segments::TSS / 8);
    let other = DescriptorTablePointer::gdtr().limit() + 1;
    // SAFETY: in the copy of the GDT that is loaded at that time, the selector names an available
    // TSS: the block's, which stays where it is.
    let load = |selector: u16| unsafe {
        asm!("ltr {0:x}", in(reg) selector, options(nostack, preserves_flags));
    };
    with_gdt(
        |gdt| gdt.extend([gdt[index] & !BUSY, gdt[index + 1]]),
        || {
            load(other);
            Ok(())
        },
    )?;
    let mut one = guest(host, PROBE);
    let said = host.cpu_mut().enter(&mut one);
    // The kernel's own descriptor is busy all the time, so it is made available in a copy as well.
    with_gdt(
        |gdt| gdt[index] &= !BUSY,
        || {
            load(segments::TSS);
            Ok(())
        },
    )?;
    // No two CPUs have one TSS, so it looks as if this were another CPU.
    match said {
        Err(EnterError::WrongCpu(WrongCpu::OtherCpu { .. })) => Ok(()),
        said => Err(format!("another TR: `enter` said {said:?}")),
    }
}
