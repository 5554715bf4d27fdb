//! The switcher written by hand, with mitigations, to have them broken.

use switcher_gen::Variant;
use switcher_prove::elf;
use switcher_prove::{Setting, Target};

use super::Change;
use crate::gas;

pub(crate) const LEAVE: &str = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n";
pub(crate) const ENTER: &str =
    "\tpush_all r15, r14, r13, r12, rbp, rbx\n\tmovq\t%rsp, %gs:HOST_RSP\n";
pub(crate) const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
/// Which mitigations a switcher written by hand has.
#[derive(Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) ibrs: bool,
    pub(crate) rsb: bool,
    pub(crate) bhb: bool,
    pub(crate) verw: bool,
}

pub(crate) const IBRS: Parts = Parts { ibrs: true, rsb: false, bhb: false, verw: false };
pub(crate) const RSB: Parts = Parts { ibrs: false, rsb: true, bhb: false, verw: false };
pub(crate) const BHB: Parts = Parts { ibrs: false, rsb: false, bhb: true, verw: false };
pub(crate) const VERW: Parts = Parts { ibrs: false, rsb: false, bhb: false, verw: true };
pub(crate) const ALL: Parts = Parts { ibrs: true, rsb: true, bhb: true, verw: true };

pub(crate) const WRITE_SPEC_CTRL: &str = "\tmovl\t$0x48, %ecx\n\tmovl\t%gs:HOST_SPEC_CTRL, %eax\n\
                               \txorl\t%edx, %edx\n\twrmsr\n";
pub(crate) const FILL: &str = "\tmovl\t$16, %ecx\n21:\tcall\t22f\n\tint3\n22:\tcall\t23f\n\tint3\n\
                    23:\taddq\t$16, %rsp\n\tdecl\t%ecx\n\tjnz\t21b\n";
/// As Linux has it for CPUs with ITS.
pub(crate) const HISTORY: &str = "\tmovl\t$5, %ecx\n\tcall\t31f\n\tjmp\t35f\n\
                       \t.p2align\t6, 0xCC\n\t.skip\t32 - 5, 0xCC\n31:\tcall\t32f\n\tret\n\tint3\n\
                       \t.p2align\t6, 0xCC\n\t.skip\t32 - 18, 0xCC\n32:\tmovl\t$5, %eax\n33:\tjmp\t34f\n\
                       \tnop\n34:\tsubl\t$1, %eax\n\tjnz\t33b\n\tsubl\t$1, %ecx\n\tjnz\t31b\n\
                       \tret\n\tint3\n35:\n";
pub(crate) const FENCE: &str = "\tlfence\n";
pub(crate) const CLEAR_BUFFERS: &str = "\tverw\tIRET_SS(%rsp)\n";
/// The exit's RET, in the upper half of its line.
pub(crate) const LAST_RET: &str = "\tjmp\t41f\n\t.p2align\t6, 0xCC\n\t.skip\t32, 0xCC\n41:\tret\n";

/// The switcher written by hand, with mitigations, and `changes` of those.
pub(crate) fn mitigated(parts: Parts, changes: &[Change<'_>]) -> Target {
    let part = |is_there: bool, text: &'static str| if is_there { text } else { "" };
    let enter_spec_ctrl = WRITE_SPEC_CTRL.replace("HOST_SPEC_CTRL", "GUEST_SPEC_CTRL");
    let enter = format!("{ENTER}{}", if parts.ibrs { &enter_spec_ctrl } else { "" });
    let frame = "\tswapgs\n\n\t/* SYSRETQ can load";
    let verw = format!("\tswapgs\n{}\n\t/* SYSRETQ can load", part(parts.verw, CLEAR_BUFFERS));
    let exit = format!(
        "\tmovq\t%rax, %rbp\n{}{}{}{}\tmovq\t%rbp, %rax\n{EXIT}",
        part(parts.ibrs, WRITE_SPEC_CTRL),
        part(parts.rsb, FILL),
        part(parts.bhb, HISTORY),
        part(parts.rsb || parts.bhb, FENCE),
    );
    let leave = LEAVE.replace("\tret\n", LAST_RET);
    let source = gas::replaced(
        gas::SWITCHER,
        &[(ENTER, &enter), (frame, &verw), (EXIT, &exit), (LEAVE, &leave)],
    );
    let source = gas::replaced(&source, changes);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    let name = |is_there: bool, name: &'static str| if is_there { name } else { "" };
    let variant = format!(
        "intel-4level{}{}{}{}",
        name(parts.ibrs, "+ibrs"),
        name(parts.rsb, "+rsb"),
        name(parts.bhb, "+bhb"),
        name(parts.verw, "+verw")
    );
    let variant: Variant = variant.parse().unwrap();
    Target::foreign(&foreign, Setting::from(&variant)).unwrap()
}

/// In front of the exit's registers, where all mitigations are done.
pub(crate) const DONE: &str = "\tmovq\t%rbp, %rax\n\tclear_all";
/// Where none is.
pub(crate) const NOT_DONE: &str = "\tmovq\t%rax, %rbp\n";
/// To the next instruction, in the upper half of its line, and trapped.
pub(crate) const INDIRECT: &str = "\tjmp\t51f\n\t.p2align\t6, 0xCC\n\t.skip\t32, 0xCC\n\
                        51:\tleaq\t52f(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n52:\n";
