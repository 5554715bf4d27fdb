//! The only list of what emulators do differently from the model and the manuals.
//!
//! A listed vector is executed all the same and has to fail there. A difference that is gone fails
//! the run, as an unknown difference does.

use hw_protocol::vectors::Vector;
use switcher_gen::arch::RFlags;
use switcher_gen::arch::vector::{GP, SS};
use switcher_model::{ARITHMETIC, Gpr};

/// A difference.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The engines whose CPU it is.
    pub engines: &'static [&'static str],
    /// Whether it makes a vector fail, of which this is the name.
    pub concerns: fn(&str, &Vector) -> bool,
    /// What they do, and what is right.
    pub why: &'static str,
}

/// All known differences.
pub const ALL: &[Known] = &[
    Known {
        engines: QEMU,
        concerns: |_, vector| vector.after.vector == SS,
        why: "QEMU 7.2 answers an access to the stack that is not canonical with #GP, not #SS",
    },
    Known {
        engines: QEMU,
        concerns: |name, vector| {
            let is_load = ["wrmsr", "wrfsbase", "wrgsbase"].iter().any(|load| name.contains(load));
            vector.after.vector == GP && is_load
        },
        why: "QEMU 7.2 loads addresses that are not canonical by WRMSR, WRFSBASE and WRGSBASE",
    },
    Known {
        engines: QEMU,
        concerns: |name, vector| {
            vector.after.vector == GP && vector.after.error_code == 0 && name.contains("mov ss")
        },
        // Intel SDM vol. 2, MOV, exceptions in 64-bit mode: CPL < 3 and CPL != RPL. AMD's manual
        // says nothing of RPL; Bochs refuses them as AMD, too.
        why: "QEMU 7.2 loads SS in ring 0 with null selectors of other RPLs",
    },
    Known {
        engines: QEMU,
        concerns: |name, vector| vector.after.vector == GP && name == FAR,
        // Intel SDM vol. 2, RET, operation: #GP(0) before anything is popped; so AMD's vol. 3, RET
        // (Far).
        why: "QEMU 7.2 executes a far RET to an address that is not canonical, and faults there",
    },
    Known {
        engines: QEMU,
        concerns: |name, vector| {
            let is_unaligned = !vector.before.gpr[Gpr::Rcx as usize].is_multiple_of(8);
            let has_flags = vector.after.registers.rflags & LOST != 0;
            vector.after.vector == GP && name == NOWHERE && is_unaligned && has_flags
        },
        // It starts again what is atomic and not aligned, and has put the flags elsewhere by then.
        why: "QEMU 7.2 loses flags where XCHG has an address that is neither canonical nor aligned",
    },
];

/// What [`forms`](crate::forms) calls an XCHG with memory that is not there.
const NOWHERE: &str = "xchg qword_ptr(rcx), rax";

/// The flags that it keeps apart from the others.
const LOST: u64 = ARITHMETIC | RFlags::DF.bits();

/// What [`forms`](crate::forms) calls a far RET to no address.
pub(crate) const FAR: &str = "retfq to no address";

const QEMU: &[&str] =
    &["qemu-tcg-4level", "qemu-tcg-4level-percpu-current", "qemu-tcg-la57", "qemu-tcg-la57-intel"];
