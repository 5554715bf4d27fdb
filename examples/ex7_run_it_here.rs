//! Step 7. Execution: the emitted bytes run on this CPU, in user mode. SWAPGS, MOV CR3 and SYSRETQ
//! fault there and are emulated; the CPU itself executes everything else.

use std::error::Error;

use switcher_engine::native;
use switcher_engine::native::{Machine, Mode};
use switcher_gen::Variant;

fn main() -> Result<(), Box<dyn Error>> {
    println!("guests' SYSCALLs are intercepted by {:?}", native::supported()?);
    let mut machine = Machine::new(&Variant::REFERENCE)?;

    // umod executes: MOV EAX, 41; SYSCALL; UD2. smod executes: INC EAX; SYSCALL, which is ERETU.
    machine.load(Mode::Umod, 0, &[0xB8, 41, 0, 0, 0, 0x0F, 0x05, 0x0F, 0x0B])?;
    machine.load(Mode::Smod, 0, &[0xFF, 0xC0, 0x0F, 0x05])?;
    let mut setup = machine.setup(Mode::Umod);
    setup.extra.retu_rip = machine.code(Mode::Smod).start + 4;

    let outcome = machine.run(&setup)?;
    println!("the guest came back with vector {}", outcome.frame.orig_ax.reason);
    println!("41 + 1 = {}", outcome.frame.rax);
    println!("{} ways through the switcher, the host's two included", outcome.crossings_total);
    Ok(())
}
