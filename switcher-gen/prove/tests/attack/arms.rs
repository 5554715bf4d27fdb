//! Code in the hand-written switcher that only predictions lead to.

use switcher_prove::Target;

use super::mitigated::EXIT;
use super::target;

/// The variant of the hand-written switcher.
pub(crate) const INTEL: &str = "intel-4level";

/// Jumps to label 9 that a path never takes: by flags of one register, by a number, by what memory
/// holds whenever code comes here.
pub(crate) const NEVER: [&str; 4] = [
    "\tcmpq\t%rsp, %rsp\n\tjne\t9f\n",
    "\txorl\t%ecx, %ecx\n\tjnz\t9f\n",
    "\tmovl\t$3, %ecx\n\tcmpl\t$2, %ecx\n\tjb\t9f\n",
    "\ttestq\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tjz\t9f\n",
];

/// What is added to an exit, with RAX, RCX and RDX to spare.
pub(crate) fn exit(code: &str) -> String {
    format!("\tpushq\t%rax\n{code}\tpopq\t%rax\n{EXIT}")
}

pub(crate) fn exits(code: &str) -> Target {
    target(INTEL, &[(EXIT, &exit(code))])
}

/// In an exit, where a path never goes; `before` is where it does.
pub(crate) fn on_an_arm(before: &str, arm: &str) -> Target {
    exits(&format!("{before}{}\tjmp\t8f\n9:{arm}8:\n", NEVER[0]))
}

/// In a direct switch.
pub(crate) const TO_SMOD: &str = "\t/* The mode and its root belong together. */\n";

/// At that place, where a path never goes.
pub(crate) fn at(place: &str, arm: &str) -> Target {
    let code = format!("{}\tjmp\t8f\n9:{arm}8:\n{place}", NEVER[0]);
    target(INTEL, &[(place, &code)])
}
