//! Attacks on the prover by what only a guest leads to whose other CPU writes the PVCS meanwhile:
//! event entries that read it, and paths that no quiet guest takes (spec/hazards.md, rows 12, 13
//! and 34).

mod attack;
mod gas;

use attack::{proved, refuted, target};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use switcher_gen::Image;
use switcher_gen::asm::Label;
use switcher_gen::layout::{PerCpu, Pvcs, TssExtra};
use switcher_prove::Target;
use switcher_prove::mutate;

fn gs(offset: usize) -> MemoryOperand {
    let at = (PerCpu::tss_extra.bytes() + offset) as i64;
    MemoryOperand::new(Register::None, Register::None, 1, at, 8, false, Register::GS)
}

/// Does `wrong` if two reads of the PVCS find the same (`if_same`), or not.
fn by_two_reads(target: &Target, at: u64, if_same: bool, wrong: Instruction) -> Target {
    let rip = MemoryOperand::with_base_displ(Register::RDX, Pvcs::rip.bytes() as i64);
    let behind = mutate::behind(target);
    let jump = if if_same { Code::Jne_rel32_64 } else { Code::Je_rel32_64 };
    let code = [
        // Only where there is a PVCS.
        Instruction::with2(Code::Test_rm64_imm32, gs(TssExtra::switch_flags.bytes()), -3),
        Instruction::with_branch(Code::Jne_rel32_64, behind),
        Instruction::with2(Code::Mov_r64_rm64, Register::RDX, gs(TssExtra::pvcs.bytes())),
        Instruction::with2(Code::Mov_r64_rm64, Register::RAX, rip),
        Instruction::with2(Code::Cmp_rm64_r64, rip, Register::RAX),
        Instruction::with_branch(jump, behind),
        Ok(wrong),
    ];
    mutate::inserted(target, at, &code.map(Result::unwrap)).unwrap()
}

/// An exit by an event: the host's root is loaded from what a guest has written.
#[test]
fn an_event_entry_believes_the_pvcs() {
    let image = Image::new(&"intel-4level".parse().unwrap()).unwrap();
    let ours = Target::image(&image);
    let mut at = Target::BASE + u64::from(image.offset(Label::EventOnSp0));
    while ours.program.instruction(at).code() != Code::Jmp_rel32_64 {
        at = ours.program.instruction(at).next_ip();
    }
    let store = |to| Instruction::with2(Code::Mov_rm64_r64, to, Register::RAX).unwrap();
    let frame = MemoryOperand::with_base_displ(Register::RSP, 0x70);
    for if_same in [false, true] {
        let root = store(gs(TssExtra::host_cr3.bytes()));
        refuted("host_cr3", &by_two_reads(&ours, at, if_same, root), "kept");
        refuted("the frame", &by_two_reads(&ours, at, if_same, store(frame)), "exit-frame");
    }
}

/// In front of the question for `user_cs`, ERETU reads it twice.
const COMPARE: &str = "\tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tjne\t.Lexit_restore_rdx\n";
const TWICE: &str = "\tpushq\t%rax\n\tmovl\tPVCS_USER_CS_SS(%rdx), %eax\n\
                     \tcmpl\tPVCS_USER_CS_SS(%rdx), %eax\n\tpopq\t%rax\n\tjne\t.Lrace\n";

/// Where they differ, it exits by this code.
fn race(code: &str) -> Target {
    let exit = ".Lexit_restore_rdx:\n";
    let changes =
        [(COMPARE, &*format!("{TWICE}{COMPARE}")), (exit, &format!(".Lrace:\n{code}{exit}"))];
    target("intel-4level", &changes)
}

/// An exit of its own, in which host_rsp is cleared `early`, while the root is a guest's, or not.
fn exit(early: bool) -> String {
    let clear = "\txorl\t%edx, %edx\n\tmovq\t%rdx, %gs:HOST_RSP\n";
    let (before, after) = if early { (clear, "") } else { ("", clear) };
    format!(
        "\tpopq\t%rdx\n\tpushq\t$0\n\tmovl\t$REASON_SYSCALL, 4(%rsp)\n\
         \tpush_all rdi, rsi, rdx, rcx, rax, r8, r9, r10, r11, rbx, rbp, r12, r13, r14, r15\n\
         \tmovq\t%rsp, %rax\n\tmovq\t%gs:HOST_RSP, %rsi\n{before}\
         \tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n{after}\tmovq\t%rsi, %rsp\n\
         \tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n\tpushq\t$FLAGS_HOST\n\tpopfq\n\
         \tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n"
    )
}

#[test]
fn a_path_that_only_a_race_takes_is_held_to_everything() {
    proved("cleared in time", &race(&exit(false)));
    refuted("cleared too early", &race(&exit(true)), "host-rsp-set");
    let arm = "\tlfence\n\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t.Lexit_restore_rdx\n\
               9:\tjmp\t*%r15\n\tint3\n";
    refuted("an arm", &race(arm), "untaken-target");
}
