//! The IDT that is loaded while a guest runs.

use alloc::boxed::Box;

use switcher_gen::{GateDescriptor, LinkedImage};
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::structures::DescriptorTablePointer;

/// Exactly a page, so that a guest's root that maps it shows nothing else of the host.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct Idt([GateDescriptor; 256]);

const _: () = assert!(size_of::<Idt>() == 4096, "an IDT is one page");

impl Idt {
    /// Gates to the entries of an image. The CPUs that use it need no more than one.
    pub(crate) fn new(linked: &LinkedImage) -> Box<Self> {
        Box::new(Self(linked.idt()))
    }

    /// Where it lies.
    pub(crate) fn address(&self) -> u64 {
        (&raw const *self).addr() as u64
    }

    /// Loads it; the result is what was loaded before.
    ///
    /// # Safety
    /// At CPL 0 with interrupts off. Where its gates lead is mapped and executable, and this CPU's
    /// TSS has the stacks that they name.
    pub(crate) unsafe fn load(&self) -> HostIdt {
        let host = HostIdt(sidt());
        let pointer = DescriptorTablePointer {
            limit: (size_of::<Self>() - 1) as u16,
            base: VirtAddr::new_truncate(self.address()),
        };
        // SAFETY: the caller vouches for gates and stacks. The table is borrowed for less than it
        // stays loaded; `Cpu::enter` keeps the switcher that owns it until it has put the host's back.
        unsafe { lidt(&pointer) };
        host
    }
}

/// The host's IDT, while another one is loaded.
#[derive(Debug)]
#[must_use = "the host's IDT is to be loaded again"]
pub(crate) struct HostIdt(DescriptorTablePointer);

impl HostIdt {
    /// Loads it again.
    ///
    /// # Safety
    /// At CPL 0, on the CPU and the root it was loaded on.
    pub(crate) unsafe fn restore(self) {
        // SAFETY: this is what LIDT has been given last by the host, on this CPU.
        unsafe { lidt(&self.0) };
    }
}
