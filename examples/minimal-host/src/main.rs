//! Step 8. A hypervisor in one file: it boots on bare metal, assembles a switcher for the CPU it
//! finds, and runs a guest whose user program makes a system call to its own kernel, without the
//! hypervisor seeing it.
//!
//! Build and run it:
//!
//! ```text
//! cargo build --release -p minimal-host --features bare-metal
//! qemu-system-x86_64 -cpu max -m 256 -kernel target/release/minimal-host \
//!     -display none -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4
//! ```
//!
//! QEMU then exits with 33 (the device doubles the kernel's 16 and adds 1): success.
//!
//! `hw_platform` is the machine: boot, page tables, GDT, TSS, hooks for NMIs, serial port. A
//! hypervisor has its own; it must provide everything that this file uses of `hw_platform`.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::fmt::Display;
use core::ptr::NonNull;

use hw_platform::code_memory::CodeMemory;
use hw_platform::exit::{self, ExitStatus};
use hw_platform::memory::{AddressSpace, Flags, Frame, MapError};
use hw_platform::{Platform, hooks, percpu, serial_println};
use switcher_runtime::switcher_gen::arch::{Cr3, Selectors};
use switcher_runtime::{Detect, Exit, Guest, GuestRoot, HostFeatures, Mapping, Mode, PvcsPage};
use switcher_runtime::{Switcher, Tables, Variant};

hw_platform::kernel_main!(main);

/// The address of the code, at which each mode has a page of its own.
const TEXT: u64 = 0x4000_0000_0000;
/// The address at which umod's SYSCALL lands.
const SMOD_ENTRY: u64 = TEXT + 0x100;

/// The program of umod: `mov eax, 41; syscall; ud2`.
const UMOD: &[u8] = &[0xB8, 41, 0, 0, 0, 0x0F, 0x05, 0x0F, 0x0B];
/// The program of smod, at its entry: `inc eax; syscall`. The SYSCALL is ERETU: RETU_RIP is the
/// address after it.
const SMOD: &[u8] = &[0xFF, 0xC0, 0x0F, 0x05];
/// The address after smod's SYSCALL.
const RETU_RIP: u64 = SMOD_ENTRY + SMOD.len() as u64;

fn main(_: Platform) -> ! {
    // 1. What is this CPU, and which switcher does it need?
    let features = HostFeatures::detect();
    let variant = or_stop(Variant::for_host(&features, Selectors::DEFAULT));

    // 2. Assemble it here and now. The memory is writable, then executable, never both. NMIs and
    //    machine checks that interrupt the switcher come to the hooks.
    let memory = Box::leak(Box::<CodeMemory>::default());
    let switcher = or_stop(Switcher::assemble(&variant, &hooks::hooks(), memory));
    serial_println!("{variant} at {:#x} on {}", switcher.base(), features.brand());

    // 3. Can this CPU use it? Then SYSCALL goes to the switcher's entry.
    let block = or_stop(NonNull::new(percpu::block(0)).ok_or("no per-CPU block"));
    // SAFETY: the block holds the TSS that this CPU has loaded, with a stack at sp0 and four in the
    // IST, and nobody else uses it; the hooks are as the runtime asks.
    let prepared = or_stop(unsafe { switcher.prepare(block, Tables::Hosts) });
    // SAFETY: nothing else writes the MSRs of SYSCALL from now on, and CPL 3 has the guest only.
    let mut cpu = or_stop(unsafe { prepared.activate() });

    // 4. Make a guest: two address spaces with a page of code each, and a PVCS.
    //    Of the host, they map what the runtime lists.
    let pvcs = or_stop(Frame::new());
    let page = or_stop(NonNull::new(pvcs.as_ptr().cast()).ok_or("no PVCS"));
    // SAFETY: the frame is in the host's identity map, is mapped in both roots below, and outlives
    // the guest.
    let page = unsafe { PvcsPage::new(page) };
    let list = || cpu.mappings().into_iter().chain([page.mapping()]);
    let (smod, _smod_frame) = or_stop(address_space(list(), SMOD_ENTRY, SMOD));
    let (umod, _umod_frame) = or_stop(address_space(list(), TEXT, UMOD));
    let mut guest = Guest::new(features.state().paging);
    for (mode, space) in [(Mode::Smod, &smod), (Mode::Umod, &umod)] {
        let cr3 = or_stop(Cr3::new(space.cr3()));
        // SAFETY: every `AddressSpace` maps what is listed as the host does, for the supervisor
        // alone, and the spaces outlive the guest.
        guest.set_root(mode, Some(unsafe { GuestRoot::new(cr3) }));
    }
    guest.set_pvcs(Some(page));
    or_stop(guest.set_smod_entry(SMOD_ENTRY, 0));
    guest.retu_rip = RETU_RIP;
    guest.set_mode(Mode::Umod);
    guest.regs.rip = TEXT;
    guest.regs.cs = variant.selectors().user_cs().into();
    guest.regs.ss = variant.selectors().user_ds().into();

    // 5. Run it. The system call and its return are direct switches; only UD2 comes back.
    match or_stop(cpu.enter(&mut guest)) {
        Exit::Exception(exception) => serial_println!(
            "{:?} came back with vector {} at {:#x}: 41 + 1 = {}",
            guest.mode(),
            exception.vector,
            guest.regs.rip,
            guest.regs.rax,
        ),
        other => exit::fatal(format_args!("unexpected exit: {other:?}")),
    }
    exit::exit(ExitStatus::Success)
}

/// Makes an address space with a list of the host's pages and one page of code.
fn address_space(
    list: impl Iterator<Item = Mapping>,
    at: u64,
    code: &[u8],
) -> Result<(AddressSpace, Frame), MapError> {
    let mut frame = Frame::new()?;
    frame.write((at - TEXT) as usize, code);
    let mut space = AddressSpace::new(list)?;
    space.map(TEXT, frame.address(), Flags::USER | Flags::EXECUTE)?;
    Ok((space, frame))
}

/// Returns the value, or ends the run: a host without a switcher has nothing to do.
fn or_stop<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|why| exit::fatal(format_args!("{why}")))
}
