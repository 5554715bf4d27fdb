//! The IDT that is loaded while a guest runs.

use alloc::boxed::Box;

use switcher_gen::arch::{NonCanonical, PagingMode};
use switcher_gen::{GateDescriptor, LinkedImage};

use crate::registers::DescriptorTablePointer;

/// An IDT is exactly a page, so that a guest's root that maps it shows nothing else of the host.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct Idt([GateDescriptor; 256]);

const _: () = assert!(size_of::<Idt>() == 4096, "an IDT is one page");

impl Idt {
    /// An IDT with gates to the entries of an image. All CPUs that use the image share it. It is
    /// built where it stays, because hosts have stacks of a few pages.
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
            // SAFETY: the place lies within the box, which is this function's alone.
            unsafe { place.write(linked.gate(vector)) };
        }
        // SAFETY: all 256 gates have been written, and an `Idt` has nothing else.
        let table = unsafe { table.assume_init() };
        // This fails now if `load` would need an address that cannot be had.
        table.pointer(linked.variant().paging())?;
        Ok(table)
    }

    /// The address of the table.
    pub(crate) fn address(&self) -> u64 {
        (&raw const *self).addr() as u64
    }

    /// The operand of LIDT for this table.
    pub(crate) fn pointer(
        &self,
        paging: PagingMode,
    ) -> Result<DescriptorTablePointer, NonCanonical> {
        DescriptorTablePointer::new(self.address(), (size_of::<Self>() - 1) as u16, paging)
    }

    /// Loads the table that [`pointer`](Self::pointer) names. The result is the one that was loaded
    /// before.
    ///
    /// # Safety
    /// Must be called at CPL 0 with interrupts off. The table stays where it is until the host's is
    /// loaded again; the code to which its gates lead is mapped and executable, and this CPU's TSS
    /// has the stacks that they name.
    pub(crate) unsafe fn load(pointer: DescriptorTablePointer) -> HostIdt {
        let host = HostIdt(DescriptorTablePointer::idtr());
        // SAFETY: the caller vouches for CPL 0, the table, its gates and the stacks.
        unsafe { pointer.load_idt() };
        host
    }
}

/// The host's IDT, while another one is loaded.
#[derive(Debug)]
#[must_use = "the host's IDT is to be loaded again"]
pub(crate) struct HostIdt(DescriptorTablePointer);

impl HostIdt {
    /// Loads the host's IDT again.
    ///
    /// # Safety
    /// Must be called at CPL 0, on the CPU on which the other table was loaded, and on the same
    /// root.
    pub(crate) unsafe fn restore(self) {
        // SAFETY: the host itself has loaded this table last on this CPU, so it is fit for the
        // host's events.
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
