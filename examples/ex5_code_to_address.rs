//! Step 5. Code -> address: an image runs at any address for which it is linked, and says where a
//! host must be careful.

use std::error::Error;

use switcher_gen::asm::{Label, Window};
use switcher_gen::{Image, LinkError, Variant};

fn main() -> Result<(), Box<dyn Error>> {
    let image = Image::new(&Variant::REFERENCE)?;
    let linked = image.link_without_hooks(0xffff_fe80_0000_0000)?;

    println!("LSTAR = {:#x}", linked.address(Label::Syscall64));
    println!("CSTAR = {:#x}", linked.address(Label::SyscallCompat));

    // A host's NMI handler asks about the RIP that it has interrupted.
    for label in [Label::EnterGuest, Label::Syscall64, Label::SysretqUnsafeStack] {
        let rip = linked.address(label);
        println!(
            "{rip:#x}: guest's root {:5}, guest's stack {:5}  {}",
            linked.is_in(Window::GuestRoot, rip),
            linked.is_in(Window::UnsafeStack, rip),
            label.name(),
        );
    }

    // Addresses that cannot work are refused, with the reason.
    for base in [1 << 47, 0x1008] {
        if let Err(refused) = image.link_without_hooks(base) {
            println!("refused: {refused}");
        }
    }
    let far = linked.base().get() - (1 << 32);
    match linked.rel32_to(Label::ReturnFromGuest, far) {
        Err(refused @ LinkError::Unreachable { .. }) => println!("refused: {refused}"),
        other => println!("reached by {other:?}"),
    }
    Ok(())
}
