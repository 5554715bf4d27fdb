//! The IDT that is loaded while a guest runs.

use alloc::boxed::Box;

use switcher_gen::arch::{NonCanonical, PagingMode};
use switcher_gen::{GateDescriptor, LinkedImage};

use crate::registers::DescriptorTablePointer;

/// Exactly a page, so that a guest's root that maps it shows nothing else of the host.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct Idt([GateDescriptor; 256]);

const _: () = assert!(size_of::<Idt>() == 4096, "an IDT is one page");

impl Idt {
    /// Gates to the entries of an image. The CPUs that use it need no more than one. It is built
    /// where it stays: hosts have stacks of a few pages.
    ///
    /// # Errors
    /// If the host's allocator gave memory whose address is not canonical in the image's paging
    /// mode.
    pub(crate) fn new(linked: &LinkedImage) -> Result<Box<Self>, NonCanonical> {
        let mut table = Box::<Self>::new_uninit();
        let gates = table.as_mut_ptr().cast::<GateDescriptor>();
        for vector in 0..=u8::MAX {
            // SAFETY: an `Idt` is 256 gates, and this is one of them.
            let place = unsafe { gates.add(vector.into()) };
            // SAFETY: likewise; the box is this function's alone.
            unsafe { place.write(linked.gate(vector)) };
        }
        // SAFETY: all 256 gates, which is all there is of it, have been written.
        let table = unsafe { table.assume_init() };
        // What `load` will need.
        table.pointer(linked.variant().paging())?;
        Ok(table)
    }

    /// Where it lies.
    pub(crate) fn address(&self) -> u64 {
        (&raw const *self).addr() as u64
    }

    /// What LIDT loads for it.
    pub(crate) fn pointer(
        &self,
        paging: PagingMode,
    ) -> Result<DescriptorTablePointer, NonCanonical> {
        DescriptorTablePointer::new(self.address(), (size_of::<Self>() - 1) as u16, paging)
    }

    /// Loads one by its [`pointer`](Self::pointer); the result is what was loaded before.
    ///
    /// # Safety
    /// At CPL 0 with interrupts off. It stays where it is until the host's is loaded again; where
    /// its gates lead is mapped and executable, and this CPU's TSS has the stacks that they name.
    pub(crate) unsafe fn load(pointer: DescriptorTablePointer) -> HostIdt {
        let host = HostIdt(DescriptorTablePointer::idtr());
        // SAFETY: the caller vouches for table, gates and stacks.
        unsafe { pointer.load_idt() };
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
        unsafe { self.0.load_idt() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::{Image, Variant};

    #[test]
    fn the_table_has_the_images_gates_in_order() {
        let linked =
            Image::new(&Variant::REFERENCE).unwrap().link_without_hooks(0xFFFF_8000_0000_0000);
        let linked = linked.unwrap();
        let idt = Idt::new(&linked).unwrap();
        for (vector, gate) in (0..=u8::MAX).zip(&idt.0) {
            assert_eq!(*gate, linked.gate(vector), "{vector}");
        }
        assert_eq!(idt.0, linked.idt());
        assert!(idt.address().is_multiple_of(4096));
    }
}
