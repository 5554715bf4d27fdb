//! What the runtime refuses and exchanges of a CPU's state: each thing is really so on this CPU, for as long
//! as the runtime is asked (spec/hazards.md, rows 51 to 58).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use raw_cpuid::native_cpuid::cpuid_count;

use hw_cases::{Expected, Setup, World, place};
use hw_platform::memory::{Frame, HIGH_BASE, PAGE};
use hw_platform::{gs, memory, percpu, segments};
use switcher_runtime::switcher_gen::arch::RFlags;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{
    Barriers, DataSelectors, DebugCauses, DescriptorTablePointer, Domain, EnterError, Guest,
    InstallError, Mode, State, StateError,
};
use x86_64::registers::model_specific::Msr;

use crate::host::{Ended, PROBE, setup};
use crate::world::{BareMetal, checked_call};

global_asm!(
    r#"
    .text
    // #NM or #UD of this kernel's own code, which is compiled with vector registers: it gets the FPU, as
    // hosts do that switch it lazily, and goes on.
    .global hw_kernel_take_fpu
hw_kernel_take_fpu:
    push    rax
    mov     rax, cr0
    and     eax, {own}
    mov     cr0, rax
    pop     rax
    iretq
"#,
    own = const !(CR0_EM | CR0_TS) as u32,
);

unsafe extern "C" {
    static hw_kernel_take_fpu: u8;
}

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;

/// Runs `then` under a copy of the kernel's IDT, in which #UD and #NM give it the FPU.
fn with_lazy_fpu<T>(then: impl FnOnce() -> T) -> Result<T, String> {
    /// The stack of #DB, which does not come: code of this kernel's has a red zone.
    const IST: u64 = 3 << 32;
    const UD: usize = 6;
    const NM: usize = 7;
    let own = DescriptorTablePointer::idtr();
    let mut page = Frame::new().map_err(|why| format!("an IDT: {why}"))?;
    let handler = (&raw const hw_kernel_take_fpu).addr() as u64;
    for vector in 0..256 {
        let entry =
            core::ptr::with_exposed_provenance::<[u64; 2]>(own.base() as usize + 16 * vector);
        // SAFETY: the IDT that is loaded, a static with 256 gates.
        let mut gate = unsafe { entry.read_volatile() };
        if matches!(vector, UD | NM) {
            let attributes = gate[0] & 0x0000_FF00_FFFF_0000;
            gate[0] = attributes | IST | handler & 0xFFFF | (handler >> 16 & 0xFFFF) << 48;
            gate[1] = handler >> 32;
        }
        page.write(16 * vector, &gate[0].to_le_bytes());
        page.write(16 * vector + 8, &gate[1].to_le_bytes());
    }
    let copy = DescriptorTablePointer::new(page.address(), 4095, memory::paging());
    // SAFETY: the kernel's own table but for two gates, whose handler takes no more than it says.
    unsafe { copy.map_err(|why| format!("{why}"))?.load_idt() };
    let done = then();
    // SAFETY: the kernel's own.
    unsafe { own.load_idt() };
    Ok(done)
}

/// A guest in umod that runs `code`.
fn guest(world: &mut BareMetal<'_>, code: &[u8]) -> Guest {
    let mut rng = fastrand::Rng::with_seed(51);
    let setup = setup(world, &mut rng, Mode::Umod, &[code, PROBE].concat());
    world.prepare(&setup)
}

/// What `enter` says of this CPU's state. That of a guest is of no interest.
fn by_enter(world: &mut BareMetal<'_>) -> Result<StateError, String> {
    let mut guest = guest(world, PROBE);
    refused(world, &mut guest)
}

/// What `enter` says of a guest.
fn refused(world: &mut BareMetal<'_>, guest: &mut Guest) -> Result<StateError, String> {
    match world.cpu_mut().enter(guest) {
        Err(EnterError::State(why)) => Ok(why),
        other => Err(format!("`enter` said {other:?}")),
    }
}

/// What `install` says.
fn by_install(world: &BareMetal<'_>) -> Result<StateError, String> {
    let block = NonNull::new(percpu::block(0)).ok_or("no block")?;
    // SAFETY: it is installed here already, with this block; if it is refused, nothing changes, and if
    // not, it is the same once more.
    match hw_platform::cpu::tracked(|| unsafe { world.cpu().switcher().install(block) }) {
        Err(InstallError::State(why)) => Ok(why),
        Err(other) => Err(format!("`install` said {other}")),
        Ok(_) => Err("`install` had no objection".into()),
    }
}

fn expect(what: &str, said: Result<StateError, String>, state: State) -> Result<(), String> {
    match said {
        Ok(why) if why.state == state => Ok(()),
        Ok(why) => Err(format!("{what}: {why}")),
        Err(why) => Err(format!("{what}: {why}")),
    }
}

/// The guest is none the worse for having been refused.
fn runs(world: &mut BareMetal<'_>) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(52);
    let setup = setup(world, &mut rng, Mode::Umod, PROBE);
    crate::host::check(world, &setup, &Expected::unchanged(&setup, Expected::UD))
}

/// Runs `then` under a copy of the GDT with a change. No guest can be entered meanwhile: its root does not
/// map the copy.
fn with_gdt<T>(
    change: impl FnOnce(&mut Vec<u64>),
    then: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let own = DescriptorTablePointer::gdtr();
    let entries = (0..=own.limit() as usize).step_by(8).map(|at| {
        let entry = core::ptr::with_exposed_provenance::<u64>(own.base() as usize + at);
        // SAFETY: the GDT that is loaded, in a static's page.
        unsafe { entry.read_volatile() }
    });
    let mut entries: Vec<u64> = entries.collect();
    change(&mut entries);
    let mut page = Frame::new().map_err(|why| format!("a GDT: {why}"))?;
    for (at, entry) in entries.iter().enumerate() {
        page.write(8 * at, &entry.to_le_bytes());
    }
    let limit = (8 * entries.len() - 1) as u16;
    let copy = DescriptorTablePointer::new(page.address(), limit, memory::paging())
        .map_err(|why| format!("{why}"))?;
    // SAFETY: the same table but for what a case is about, which nothing in ring 0 has loaded.
    unsafe { copy.load_gdt() };
    let done = then();
    // SAFETY: the kernel's own.
    unsafe { own.load_gdt() };
    done
}

/// A code, data or system descriptor: type and S, DPL, flags.
const fn descriptor(kind: u64, dpl: u64, flags: u64) -> u64 {
    const PRESENT: u64 = 1 << 47;
    0xFFFF | kind << 40 | dpl << 45 | PRESENT | 0xF << 48 | flags << 52
}

/// A GDT in which CPL 3 finds more than it may, or what would fault.
pub(crate) fn descriptors(world: &mut BareMetal<'_>) -> Ended {
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
        let said = with_gdt(|gdt| gdt.push(entry), || by_install(world));
        expect(what, said, State::Gdt)?;
    }
    // What the switcher itself uses.
    for (index, entry) in [
        (segments::USER_DS / 8, descriptor(DATA, 3, SIZE16)),
        (segments::USER_CS / 8, descriptor(CODE - ACCESSED, 3, LONG)),
        (segments::USER32_CS / 8, descriptor(CODE, 3, LONG)),
    ] {
        let said = with_gdt(|gdt| gdt[usize::from(index)] = entry, || by_install(world));
        expect("a selector of the switcher's", said, State::Gdt)?;
    }
    // A limit that makes descriptors of what follows.
    let own = DescriptorTablePointer::gdtr();
    let long = DescriptorTablePointer::new(own.base(), 0xFFFF, memory::paging());
    // SAFETY: the same table; nothing loads what lies behind it.
    unsafe { long.map_err(|why| format!("{why}"))?.load_gdt() };
    let said = by_install(world);
    // SAFETY: the kernel's own.
    unsafe { own.load_gdt() };
    expect("a limit of 64 KiB", said, State::Gdt)?;
    // The GDT has changed since: a guest with selectors of such descriptors is not entered.
    for (what, entry) in [bad[0], bad[2], bad[5], bad[8]] {
        let mut guest = guest(world, PROBE);
        guest.regs.ss = u64::from(own.limit() + 1) | 3;
        let said = with_gdt(|gdt| gdt.push(entry), || refused(world, &mut guest));
        expect(what, said, State::GeneralRegisters)?;
    }
    // It is another table, or another part of it: which entries guests would find, nobody has judged.
    let said = with_gdt(|_| (), || by_enter(world));
    expect("another GDT", said, State::Gdt)?;
    let short = DescriptorTablePointer::new(own.base(), own.limit() - 8, memory::paging());
    // SAFETY: the same table but for its last entry, which nothing has loaded.
    unsafe { short.map_err(|why| format!("{why}"))?.load_gdt() };
    let said = by_enter(world);
    // SAFETY: the kernel's own.
    unsafe { own.load_gdt() };
    expect("another limit", said, State::Gdt)?;
    another_task(world)?;
    runs(world)?;
    Ok(1)
}

/// TR by another selector, of the same TSS.
fn another_task(world: &mut BareMetal<'_>) -> Result<(), String> {
    const BUSY: u64 = 1 << 41;
    let index = usize::from(segments::TSS / 8);
    let other = DescriptorTablePointer::gdtr().limit() + 1;
    // SAFETY: in the copy of the GDT that is loaded then, an available TSS: the block's, which stays.
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
    let said = by_enter(world);
    // The kernel's own descriptor is busy all the time, so it is made available in a copy as well.
    with_gdt(
        |gdt| gdt[index] &= !BUSY,
        || {
            load(segments::TSS);
            Ok(())
        },
    )?;
    expect("another TR", said, State::Tr)
}

/// Executes LLDT.
fn load_ldt(selector: u16) {
    // SAFETY: null, or of an LDT's descriptor in the GDT that is loaded. The kernel uses none of its.
    unsafe { asm!("lldt {0:x}", in(reg) selector, options(nostack, preserves_flags)) }
}

/// An LDT that a host has forgotten, with a call gate to ring 0 in it: what a guest would put there that has
/// the memory at its address.
pub(crate) fn stale_ldt(world: &mut BareMetal<'_>) -> Ended {
    let mut table = Frame::new().map_err(|why| format!("an LDT: {why}"))?;
    let gate = u64::from(segments::KERNEL_CS) << 16 | 0xEC << 40;
    table.write(0, &gate.to_le_bytes());
    // And what a process of the host's has there, for FS.
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
    let (install, enter) = (by_install(world), by_enter(world));
    load_ldt(0);
    // FS has what it had, but would not load again.
    let stale = by_enter(world);
    // Nor would it by an entry of the GDT that is gone, as a thread's are in another GDT.
    with_gdt(
        |gdt| gdt.push(data),
        || {
            set_host_fs(selector | 3);
            Ok(())
        },
    )?;
    let gone = by_enter(world);
    set_host_segments(at_first.0, at_first.1);
    expect("`install` with an LDT", install, State::Ldtr)?;
    expect("`enter` with an LDT", enter, State::Ldtr)?;
    for said in [stale, gone] {
        match said {
            Ok(why) if why.register == "the host's FS" => {}
            other => return Err(format!("FS that would not load again: {other:?}")),
        }
    }
    runs(world)?;
    Ok(1)
}

fn cr0() -> u64 {
    let cr0: u64;
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags)) };
    cr0
}

fn cr4() -> u64 {
    let cr4: u64;
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    cr4
}

/// Control bits under which ring 0 would fault with a guest's state loaded, or a guest could do what it may
/// not.
pub(crate) fn control_bits(world: &mut BareMetal<'_>) -> Ended {
    const MP_NE_WP: [(&str, u64); 2] = [("NE", 1 << 5), ("WP", 1 << 16)];
    const CR4_CET: u64 = 1 << 23;
    const PVI: u64 = 1 << 1;
    const PCE: u64 = 1 << 8;
    let mut guest = guest(world, PROBE);
    for (what, bit) in [("CR0.TS", CR0_TS), ("CR0.EM", CR0_EM)] {
        let said = with_lazy_fpu(|| refused_with_cr0(world, &mut guest, cr0() | bit))?;
        expect(what, said, State::Cr0)?;
    }
    for (what, bit) in MP_NE_WP {
        let own = cr0();
        // Where CR4.CET is set, the CPU itself does not take a CR0 without WP (Intel SDM vol. 3, 2.5).
        if what == "WP" && cr4() & CR4_CET != 0 {
            continue;
        }
        // SAFETY: no FPU error is pending, and nothing writes to a page that is read-only.
        unsafe { asm!("mov cr0, {}", in(reg) own & !bit, options(nostack, preserves_flags)) };
        let (install, enter) = (by_install(world), by_enter(world));
        // SAFETY: as it was.
        unsafe { asm!("mov cr0, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect(what, install, State::Cr0)?;
        expect(what, enter, State::Cr0)?;
    }
    // Key Locker, and masking of the upper half's addresses, where the CPU has them.
    let (leaf, more) = (cpuid_count(7, 0), cpuid_count(7, 1));
    let exists = |word: u32, bit: u32| word >> bit & 1 != 0;
    let mut forbidden =
        alloc::vec![("CR4.PVI", PVI, State::Cr4User), ("CR4.PCE", PCE, State::Cr4User)];
    if exists(leaf.ecx, 23) {
        forbidden.push(("CR4.KL", 1 << 19, State::Cr4User));
    }
    if leaf.eax >= 1 && exists(more.eax, 26) {
        forbidden.push(("CR4.LAM_SUP", 1 << 28, State::Cr4Paging));
    }
    for (what, bit, state) in forbidden {
        let own = cr4();
        // SAFETY: they rule CPL 3 alone, or addresses that nothing here has.
        unsafe { asm!("mov cr4, {}", in(reg) own | bit, options(nostack, preserves_flags)) };
        let said = by_enter(world);
        // SAFETY: as it was.
        unsafe { asm!("mov cr4, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect(what, said, state)?;
    }
    // What the host had when the switcher was installed, it has to have when a guest is entered.
    for (bit, state) in [
        (1 << 20, State::Cr4Paging),
        (1 << 21, State::Cr4Paging),
        (1 << 11, State::DescriptorRegisters),
    ] {
        let own = cr4();
        if own & bit == 0 {
            continue;
        }
        // SAFETY: SMEP, SMAP or UMIP; the kernel runs without as well.
        unsafe { asm!("mov cr4, {}", in(reg) own & !bit, options(nostack, preserves_flags)) };
        let said = by_enter(world);
        // SAFETY: as it was.
        unsafe { asm!("mov cr4, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect("CR4 without a bit", said, state)?;
    }
    // A stack selector of another level, which a host that builds frames itself may make a mistake about.
    for ss in [0, u64::from(segments::KERNEL_DS)] {
        guest.regs.ss = ss;
        expect("SS", refused(world, &mut guest), State::GeneralRegisters)?;
    }
    runs(world)?;
    Ok(1)
}

/// Asks `enter` under another CR0, of which it looks at the value that the host has set.
#[inline(never)]
fn refused_with_cr0(
    world: &mut BareMetal<'_>,
    guest: &mut Guest,
    value: u64,
) -> Result<StateError, String> {
    let own = cr0();
    // SAFETY: it differs in TS or EM: `with_lazy_fpu` sees to the faults.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
    let said = refused(world, guest);
    // SAFETY: as it was.
    unsafe { asm!("mov cr0, {}", in(reg) own, options(nostack, preserves_flags)) };
    said
}

/// DR7 as a call of the switcher finds it, and DEBUGCTL.
static DR7: AtomicU64 = AtomicU64::new(0);
static DEBUGCTL: AtomicU64 = AtomicU64::new(0);
const DEBUGCTL_MSR: u32 = 0x1D9;

fn dr7() -> u64 {
    let dr7: u64;
    // SAFETY: reading changes nothing, and DR7.GD is clear.
    unsafe { asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack, preserves_flags)) };
    dr7
}

/// Notes what the guest is about to run with.
///
/// # Safety
/// As for `checked_call`.
unsafe fn noting_call(entry: u64) -> *mut PtRegs {
    DR7.store(dr7(), Ordering::Relaxed);
    // SAFETY: every 64-bit CPU has it.
    DEBUGCTL.store(unsafe { Msr::new(DEBUGCTL_MSR).read() }, Ordering::Relaxed);
    // SAFETY: as the caller says.
    unsafe { checked_call(entry) }
}

/// Breakpoints and DEBUGCTL of the host's: the former are refused, the latter is not the guest's.
pub(crate) fn debugging(world: &mut BareMetal<'_>) -> Ended {
    const DISABLED: u64 = 1 << 10;
    const BTF_AND_LBR: u64 = 0b11;
    // Nothing is mapped there.
    let nowhere = HIGH_BASE + 300 * PAGE;
    for live in [1_u64, 1 << 1, 1 << 7] {
        // SAFETY: nothing accesses that address.
        unsafe {
            asm!("mov dr0, {0}", "mov dr3, {0}", "mov dr7, {1}", in(reg) nowhere, in(reg) DISABLED | live);
        }
        let said = by_enter(world);
        // SAFETY: no breakpoint at all.
        unsafe {
            asm!("mov dr7, {1}", "mov dr0, {0}", "mov dr3, {0}", in(reg) 0_u64, in(reg) DISABLED);
        }
        expect("a breakpoint of the host's", said, State::DebugRegisters)?;
    }

    what_the_host_has_left(world)?;

    // SAFETY: every 64-bit CPU has it; it has no effect without TF.
    unsafe { Msr::new(DEBUGCTL_MSR).write(BTF_AND_LBR) };
    // SAFETY: as above. An emulator may have none of its bits.
    let host = unsafe { Msr::new(DEBUGCTL_MSR).read() };
    let mut rng = fastrand::Rng::with_seed(57);
    let mut setup = setup(world, &mut rng, Mode::Umod, &[&[0xEB, 0x00][..], PROBE].concat());
    setup.regs.eflags = RFlags::GUEST_FIXED.bits() | RFlags::TF.bits();
    // A jump under TF traps with and without BTF; what BTF would hide is the NOP's.
    // SAFETY: `noting_call` is `checked_call`.
    let outcome = unsafe { world.run_by(&setup, noting_call) };
    // SAFETY: as above.
    let after = unsafe { Msr::new(DEBUGCTL_MSR).read() };
    // SAFETY: as above.
    unsafe { Msr::new(DEBUGCTL_MSR).write(0) };
    let outcome = outcome.map_err(|why| format!("{why:?}"))?;
    let seen = DEBUGCTL.load(Ordering::Relaxed);
    if outcome.exit != Expected::SINGLE_STEP || seen != 0 || after != host {
        return Err(format!(
            "{:?}; DEBUGCTL was {seen:#x} for the guest and {after:#x} afterwards, not {host:#x}",
            outcome.exit
        ));
    }
    if DR7.load(Ordering::Relaxed) & 0xFF != 0 || dr7() & 0xFF != 0 {
        return Err("a breakpoint was armed that nobody has".into());
    }
    runs(world)?;
    Ok(4)
}

/// DR0 to DR3, disarmed, and DR6 with causes of the host's, those that a clear bit says among them: a guest's #DB has
/// its own causes alone, whether it has breakpoints or not, and the host its addresses afterwards.
fn what_the_host_has_left(world: &mut BareMetal<'_>) -> Result<(), String> {
    /// An access to a debug register, a task switch, four matches; of bits that the hardware keeps set, none.
    const STALE: u64 = 1 << 15 | 1 << 13 | 0b1111;
    let mine = [place::UMOD_CODE, place::UMOD_CODE + 2, HIGH_BASE, 8];
    let no_debug = world.debug().clone();
    for debug in [None, Some(no_debug)] {
        let mut stepped = guest(world, &[0xEB, 0x00]);
        stepped.regs.eflags |= RFlags::TF.bits();
        let has = debug.is_some();
        stepped.debug = debug;
        set_addresses(mine, STALE);
        let ended = world.cpu_mut().enter(&mut stepped);
        let left = addresses();
        set_addresses([0; 4], DebugCauses::DR6_CLEAR);
        match ended {
            Ok(exit) if exit == Expected::SINGLE_STEP && left == mine => {}
            other => {
                return Err(format!(
                    "with breakpoints: {has}; {other:?}, {left:x?}, not {mine:x?}"
                ));
            }
        }
    }
    Ok(())
}

fn addresses() -> [u64; 4] {
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

fn set_addresses([dr0, dr1, dr2, dr3]: [u64; 4], dr6: u64) {
    // SAFETY: no breakpoint is armed, DR7.GD is clear, and nobody has a #DB to ask DR6 about.
    unsafe {
        asm!(
            "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, in(reg) dr6,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The host's segment registers and FS base, and each guest's: nobody sees another one's.
pub(crate) fn segment_registers(world: &mut BareMetal<'_>) -> Ended {
    /// MOV EAX, DS; MOV EBX, ES; MOV ECX, FS; MOV EDX, GS; RDFSBASE RSI.
    const READ: &[u8] =
        &[0x8C, 0xD8, 0x8C, 0xC3, 0x8C, 0xE1, 0x8C, 0xEA, 0xF3, 0x48, 0x0F, 0xAE, 0xC6];
    /// MOV DS, EAX; MOV ES, EBX; MOV FS, ECX; MOV GS, EDX; WRFSBASE RSI.
    const WRITE: &[u8] =
        &[0x8E, 0xD8, 0x8E, 0xC3, 0x8E, 0xE1, 0x8E, 0xEA, 0xF3, 0x48, 0x0F, 0xAE, 0xD6];
    const HOST_FS: u64 = 0x0000_1234_5678_9ABC;
    const GUEST_FS: u64 = 0xFFFF_8765_4321_0FED;

    let kernel = segments::KERNEL_DS;
    let (user, code, code32) = (segments::USER_DS, segments::USER_CS, segments::USER32_CS);
    let at_first = host_segments();
    set_host_segments([kernel; 4], HOST_FS);
    let mine = host_segments();

    let mut entered = 0;
    let mut ended = Ok(());
    // Null selectors with an RPL are not among them: IRETQ makes some of them 0.
    for theirs in [[user, code, code32, user], [0, 0, user, 0], [code32, user, 0, 0]] {
        let result = (|| {
            let is = |guest: &Guest, what: &str| {
                let regs = guest.regs;
                let found = [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|reg| reg as u16);
                Err(format!("{what}: {found:x?}, {:#x}, not {theirs:x?}", regs.rsi))
            };
            // A new guest has nothing of the host's.
            let mut one = guest(world, READ);
            enter(world, &mut one)?;
            let regs = one.regs;
            if (regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi) != (0, 0, 0, 0, 0) {
                return is(&one, "a new guest");
            }
            // It makes its own, and has them the next time, whoever has run in between.
            let mut two = guest(world, WRITE);
            let [ds, es, fs, gs] = theirs;
            two.regs.rax = ds.into();
            (two.regs.rbx, two.regs.rcx, two.regs.rdx) = (es.into(), fs.into(), gs.into());
            two.regs.rsi = GUEST_FS;
            enter(world, &mut two)?;
            if two.selectors != (DataSelectors { ds, es, fs, gs }) || two.fs_base() != GUEST_FS {
                return Err(format!("{:x?}, {:#x}", two.selectors, two.fs_base()));
            }
            if host_segments() != mine {
                return Err(format!("the host has {:x?}, not {mine:x?}", host_segments()));
            }
            let mut other = guest(world, READ);
            enter(world, &mut other)?;
            if other.regs.rsi != 0 || other.regs.rax != 0 {
                return is(&other, "another guest");
            }
            let again = guest(world, READ);
            (two.regs, _) = (again.regs, again);
            enter(world, &mut two)?;
            let regs = two.regs;
            let found = [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|reg| reg as u16);
            if found != theirs || regs.rsi != GUEST_FS {
                return is(&two, "the guest's second time");
            }
            entered += 4;
            Ok(())
        })();
        ended = ended.and(result);
    }
    // What does not load is refused, and nothing has been loaded.
    for bad in [kernel, kernel | 3, user & !3, user | 4, segments::TSS | 3, 0xFFFB] {
        let mut guest = guest(world, PROBE);
        guest.selectors.es = bad;
        let said = refused(world, &mut guest);
        ended = ended.and(expect(&format!("ES {bad:#x}"), said, State::Segments));
    }
    if host_segments() != mine {
        ended = ended.and(Err(format!("the host has {:x?}, not {mine:x?}", host_segments())));
    }
    set_host_segments(at_first.0, at_first.1);
    ended.map(|()| entered)
}

/// Enters a guest that ends at its probe. Nothing is allocated for that: GS base is the switcher's.
fn enter(world: &mut BareMetal<'_>, guest: &mut Guest) -> Result<(), String> {
    memory::watch(gs::base());
    let ended = world.cpu_mut().enter(guest);
    match memory::watched() {
        0 => {}
        times => return Err(format!("`enter` has used the allocator {times} times")),
    }
    match ended {
        Ok(exit) if exit == Expected::UD => Ok(()),
        other => Err(format!("{other:?}: {guest:x?}")),
    }
}

/// DS, ES, FS and GS; FS base; GS base.
fn host_segments() -> ([u16; 4], u64, u64) {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: they only store the selectors.
    unsafe {
        asm!(
            "mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags),
        );
    }
    let fs_base: u64;
    // SAFETY: CR4.FSGSBASE is set while a switcher is installed.
    unsafe { asm!("rdfsbase {}", out(reg) fs_base, options(nomem, nostack, preserves_flags)) };
    ([ds, es, fs, gs], fs_base, gs::base())
}

fn set_host_fs(selector: u16) {
    // SAFETY: the caller has a flat segment there, in the tables that are loaded; nothing here uses FS.
    unsafe { asm!("mov fs, {0:x}", in(reg) selector, options(nostack, preserves_flags)) }
}

fn set_host_segments([ds, es, fs, gs]: [u16; 4], fs_base: u64) {
    // SAFETY: null, or flat data of ring 0, which nothing here uses; GS base is what it was.
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

/// Guests of two machines by turns on one CPU: a barrier at each change, and nowhere else (spec/hazards.md,
/// row 54).
pub(crate) fn two_guests(world: &mut BareMetal<'_>) -> Ended {
    let mut guests = [guest(world, PROBE), guest(world, PROBE)];
    let [a, b] = [Domain::new(), Domain::new()];
    guests[0].set_domain(a);
    guests[1].set_domain(b);
    let mut entered = 0;
    // Who runs, and whether a barrier comes first. A second virtual CPU of `b` is no stranger to it.
    let turns = [(0, true), (0, false), (1, true), (0, true), (0, false), (1, true), (1, false)];
    for (who, barrier) in turns.into_iter().cycle().take(70).skip(1).chain([(1, false)]) {
        let before = world.cpu().barriers();
        let mut vcpu = guests[who].clone();
        enter(world, &mut vcpu)?;
        let came = world.cpu().barriers() - before;
        // The first of all follows the guests of other cases.
        if entered > 0 && came != u64::from(barrier) {
            return Err(format!("turn {entered}, guest {who}: {came} barriers"));
        }
        entered += 1;
    }
    // The host's own user mode comes behind one barrier, whoever has run.
    let before = world.cpu().barriers();
    world.cpu_mut().barrier_before_user_mode();
    world.cpu_mut().barrier_before_user_mode();
    if world.cpu().barriers() - before != 1 {
        return Err("user mode after a guest: not one barrier".into());
    }
    // And the next guest behind another one: user mode has trained, too.
    let before = world.cpu().barriers();
    enter(world, &mut guests[1].clone())?;
    enter(world, &mut guests[1].clone())?;
    entered += 2;
    if world.cpu().barriers() - before != 1 {
        return Err("a guest after user mode: not one barrier".into());
    }
    // Left to the host, there is none.
    world.cpu_mut().set_barriers(Barriers::Host);
    let before = world.cpu().barriers();
    for who in [0, 1, 0] {
        enter(world, &mut guests[who].clone())?;
        entered += 1;
    }
    world.cpu_mut().set_barriers(Barriers::Enter);
    let came = world.cpu().barriers() - before;
    if came != 0 {
        return Err(format!("left to the host: {came} barriers"));
    }
    // But it is not forgotten that another one has run since the last of them, and user mode's barrier comes
    // all the same.
    enter(world, &mut guests[0].clone())?;
    entered += 1;
    let came = world.cpu().barriers() - before;
    if came != 1 {
        return Err(format!("after barriers of the host's: {came}"));
    }
    world.cpu_mut().set_barriers(Barriers::Host);
    enter(world, &mut guests[1].clone())?;
    entered += 1;
    world.cpu_mut().barrier_before_user_mode();
    world.cpu_mut().set_barriers(Barriers::Enter);
    match world.cpu().barriers() - before {
        2 => Ok(entered),
        came => Err(format!("user mode, with barriers of the host's: {came} in all")),
    }
}

/// A root on the page of a dead one, under the same PCID, flushed by nobody: its guest has its own memory
/// (spec/hazards.md, row 53). No emulator here keeps translations under PCIDs, so there a runtime that takes a
/// root for its address passes, too: the unit tests of `runtime/src/pcid.rs` hold that.
pub(crate) fn recycled_root(world: &mut BareMetal<'_>) -> Ended {
    /// MOV AL, [RDI].
    const LOAD: &[u8] = &[0x8A, 0x07];
    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(53);
    let mut entered = 0;
    for round in 0..20_u8 {
        let secret = 0x80 | round;
        world.recycle_umod(secret).map_err(|why| format!("umod's stack: {why}"))?;
        // Entered in umod, and by a direct switch.
        for mode in [Mode::Umod, Mode::Smod] {
            let code = [LOAD, PROBE].concat();
            let mut setup = Setup::random(&mut rng, &platform, mode)
                .with(Mode::Smod, place::ERETU, crate::host::SYSCALL)
                .with(Mode::Umod, place::UMOD_CODE, &code);
            setup.regs.rdi = place::STACK + 8;
            setup.regs.eflags = RFlags::GUEST_FIXED.bits();
            setup.pvcs.eflags = RFlags::GUEST_FIXED.bits() as u32;
            if mode == Mode::Umod {
                setup.regs.rip = place::UMOD_CODE;
            }
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            if outcome.exit != Expected::UD || outcome.regs.rax as u8 != secret {
                return Err(format!(
                    "round {round}, from {mode:?}: {:?}, {:#x}, not {secret:#x}",
                    outcome.exit, outcome.regs.rax
                ));
            }
            entered += 1;
        }
    }
    Ok(entered)
}
