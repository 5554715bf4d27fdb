//! GDT and task register.
//!
//! The GDT is built in the order that [`SELECTORS`] wants: SYSCALL loads CS and SS from the first
//! two of its entries, SYSRET from the other three.

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

/// The selectors that STAR will have.
pub const SELECTORS: Selectors = Selectors::DEFAULT;
/// The host's 64-bit code segment.
pub const KERNEL_CS: u16 = SELECTORS.kernel_cs();
/// The host's data segment.
pub const KERNEL_DS: u16 = SELECTORS.kernel_ds();
/// A 32-bit code segment of CPL3.
pub const USER32_CS: u16 = SELECTORS.user32_cs();
/// The data segment of CPL3.
pub const USER_DS: u16 = SELECTORS.user_ds();
/// The 64-bit code segment of CPL3.
pub const USER_CS: u16 = SELECTORS.user_cs();
/// The task state segment, 16 bytes of the GDT.
pub const TSS: u16 = 0x38;

/// A second descriptor with the content of [`USER_CS`].
pub const USER_CS_ALIAS: u16 = 0x4B;
/// A second descriptor with the content of [`USER_DS`].
pub const USER_DS_ALIAS: u16 = 0x53;

/// Builds the GDT in the order that the selectors say.
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
    // SAFETY: the TSS is a static in the per-CPU block, valid for ever.
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
/// Called on that CPU after each of its resets, with the flat segments of boot.rs in force; and on
/// the first once more, when the paging mode is final, with no event in between.
pub(crate) unsafe fn init(cpu: usize) {
    // SAFETY: no event comes, so the hardware does not use the TSS it may have loaded.
    unsafe { percpu::init(cpu) }
    // SAFETY: as above.
    let gdt = unsafe { percpu::place_gdt(cpu, table(cpu)) };
    let base = (&raw const *gdt).addr() as u64;
    let Ok(pointer) = DescriptorTablePointer::new(base, gdt.limit(), high::paging()) else {
        exit::fatal(format_args!("the GDT at {base:#x}"))
    };
    // SAFETY: a table of the GDT's type, which is this CPU's for ever. The registers are loaded
    // below.
    unsafe { pointer.load_gdt() }
    // SAFETY: the GDT has a 64-bit code segment of CPL0 there, the kind that is running.
    unsafe { CS::set_reg(selector(KERNEL_CS)) }
    // SAFETY: a flat writable data segment of CPL0, the kind the stack is in.
    unsafe { SS::set_reg(selector(KERNEL_DS)) }
    let null = SegmentSelector::new(0, Ring0);
    // SAFETY: 64-bit code does not use DS; a null selector cannot leak to CPL3.
    unsafe { DS::set_reg(null) }
    // SAFETY: nor ES.
    unsafe { ES::set_reg(null) }
    // SAFETY: nor does anything here use FS.
    unsafe { FS::set_reg(null) }
    // SAFETY: GS base is written right below; until then nothing uses it.
    unsafe { GS::set_reg(null) }
    // SAFETY: a TSS descriptor for a valid TSS, marked as available.
    unsafe { load_tss(selector(TSS)) }
    // SAFETY: no selector in use is of the LDT. At reset, one of 64 KiB lies at address 0, and any
    // guest could load from it.
    unsafe { asm!("lldt {0:x}", in(reg) 0_u16, options(nostack, preserves_flags)) }
    gs::set_active(percpu::block(cpu).addr() as u64);
    gs::set_inactive(0);
}
