//! GDT and task register.
//!
//! The GDT is built in the order of [`SELECTORS`]: SYSCALL loads CS and SS from the first two of
//! its entries, SYSRET loads them from the other three.

use core::arch::asm;

use switcher_gen::arch::Selectors;
use x86_64::PrivilegeLevel;
use x86_64::PrivilegeLevel::Ring0;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, GlobalDescriptorTable};

use crate::boot::BOOT_CS32;
use crate::{exit, gs, high, percpu};
use switcher_runtime::DescriptorTablePointer;

/// The selectors for STAR.
pub const SELECTORS: Selectors = Selectors::DEFAULT;
/// The host's 64-bit code segment.
pub const KERNEL_CS: u16 = SELECTORS.kernel_cs();
/// The host's data segment.
pub const KERNEL_DS: u16 = SELECTORS.kernel_ds();
/// The 32-bit code segment of CPL 3.
pub const USER32_CS: u16 = SELECTORS.user32_cs();
/// The data segment of CPL 3.
pub const USER_DS: u16 = SELECTORS.user_ds();
/// The 64-bit code segment of CPL 3.
pub const USER_CS: u16 = SELECTORS.user_cs();
/// The task state segment, whose descriptor has 16 bytes.
pub const TSS: u16 = 0x38;

/// A second descriptor with the content of [`USER_CS`].
pub const USER_CS_ALIAS: u16 = 0x4B;
/// A second descriptor with the content of [`USER_DS`].
pub const USER_DS_ALIAS: u16 = 0x53;

/// Builds the GDT in the order of the selectors.
fn table(cpu: usize) -> GlobalDescriptorTable<16> {
    let mut gdt = GlobalDescriptorTable::empty();
    let mut add = |descriptor, selector: u16| {
        let got = gdt.append(descriptor);
        assert!(got.0 == selector, "GDT entry {:#x} came out as {:#x}", selector, got.0);
    };
    let kernel32 = DescriptorFlags::KERNEL_CODE32 | DescriptorFlags::ACCESSED;
    add(Descriptor::UserSegment(kernel32.bits()), BOOT_CS32);
    add(Descriptor::kernel_code_segment(), KERNEL_CS);
    add(Descriptor::kernel_data_segment(), KERNEL_DS);
    add(
        Descriptor::UserSegment((DescriptorFlags::USER_CODE32 | DescriptorFlags::ACCESSED).bits()),
        USER32_CS,
    );
    add(Descriptor::user_data_segment(), USER_DS);
    add(Descriptor::user_code_segment(), USER_CS);
    // SAFETY: the TSS is within the per-CPU block, a static, and so is valid for ever.
    add(unsafe { Descriptor::tss_segment_unchecked(percpu::tss(cpu)) }, TSS);
    add(Descriptor::user_code_segment(), USER_CS_ALIAS);
    add(Descriptor::user_data_segment(), USER_DS_ALIAS);
    gdt
}

fn selector(value: u16) -> SegmentSelector {
    SegmentSelector::new(value >> 3, PrivilegeLevel::from_u16(value & 3))
}

/// Loads GDT, segment registers and task register, and points GS at the per-CPU block.
///
/// # Safety
/// Must be called on that CPU after each of its resets, with the flat segments of boot.rs loaded;
/// and on the first CPU once more, when the paging mode is final, with no event in between.
pub(crate) unsafe fn init(cpu: usize) {
    // SAFETY: no event comes, so the hardware does not use the TSS it may have loaded.
    unsafe { percpu::init(cpu) }
    // SAFETY: this CPU has loaded no GDT from there since its reset, or loads the new one before
    // any event comes.
    let gdt = unsafe { percpu::place_gdt(cpu, table(cpu)) };
    let base = (&raw const *gdt).addr() as u64;
    let Ok(pointer) = DescriptorTablePointer::new(base, gdt.limit(), high::paging()) else {
        exit::fatal(format_args!("the GDT is at {base:#x}, which is not canonical"))
    };
    // SAFETY: the place holds a table of the GDT's type, which belongs to this CPU for ever. The
    // segment registers are loaded below.
    unsafe { pointer.load_gdt() }
    // SAFETY: the GDT has a 64-bit code segment of CPL 0 there, which is the kind that is running.
    unsafe { CS::set_reg(selector(KERNEL_CS)) }
    // SAFETY: it is a flat writable data segment of CPL 0, which is the kind in which the stack is.
    unsafe { SS::set_reg(selector(KERNEL_DS)) }
    let null = SegmentSelector::new(0, Ring0);
    // SAFETY: 64-bit code does not use DS; a null selector cannot leak to CPL 3.
    unsafe { DS::set_reg(null) }
    // SAFETY: 64-bit code does not use ES either.
    unsafe { ES::set_reg(null) }
    // SAFETY: nothing here uses FS.
    unsafe { FS::set_reg(null) }
    // SAFETY: GS base is written right below; until then nothing uses it.
    unsafe { GS::set_reg(null) }
    // SAFETY: it is a TSS descriptor for a valid TSS, marked as available.
    unsafe { load_tss(selector(TSS)) }
    // SAFETY: no selector in use is of the LDT. At reset, LDTR describes 64 KiB at address 0, from
    // which any guest could load.
    unsafe { asm!("lldt {0:x}", in(reg) 0_u16, options(nostack, preserves_flags)) }
    gs::set_active(percpu::block(cpu).addr() as u64);
    gs::set_inactive(0);
}
