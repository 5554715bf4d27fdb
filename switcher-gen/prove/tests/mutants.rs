//! Each failure of spec/hazards.md, put back in: the proofs must object, for the reason in its row.
//!
//! Two switchers are broken: ours, instruction by instruction, and the one written by hand, line by
//! line. Rows without a test here are of what the runtime programs (20, 21, 31).

mod gas;
mod ours;
mod text;

use std::sync::Arc;

use iced_x86::Code;
use switcher_gen::arch::{RFlags, Selectors, vector};
use switcher_gen::asm::{Label, Window};
use switcher_gen::layout::{
    EventFrame, FarFrame, IretFrame, OrigAx, PerCpu, PtRegs, Pvcs, SwitchFlags, Tss, TssExtra,
};
use switcher_gen::{Hazard, Image, Variant};
use switcher_model::Program;
use switcher_prove::elf;
use switcher_prove::mutate;
use switcher_prove::mutate::{Fate, Mutant, Operator, Tally};
use switcher_prove::{
    Counterexample, GuestMemory, Prover, Setting, SharingProver, Target, TargetGate, Theorem,
    Verdict,
};
use text::text;

/// Is it umod's SYSCALL, and does nothing forbid a direct switch?
fn umods_flags() -> String {
    text!(; gs cmp QWORD [PerCpu::tss_extra + TssExtra::switch_flags], SwitchFlags::UMOD.imm32())
}

/// Are the selectors of the PVCS the usual ones?
fn selectors() -> String {
    text!(
        ; cmp DWORD [BYTE rcx + Pvcs::user_cs.pair(Pvcs::user_ss)],
            Selectors::DEFAULT.user_pair().cast_signed()
    )
}

/// What #DB returns to is not traced.
fn untraced() -> String {
    text!(; and QWORD [BYTE rsp + IretFrame::eflags], RFlags::NOT_TRACED.imm32())
}

/// The VERW before a guest is entered.
fn verw_of_guests() -> String {
    text!(; verw WORD [BYTE rsp + IretFrame::ss.below_end().low_word()])
}

/// Those before an event returns: by IRETQ, and by a far RET.
fn verws_of_events() -> (String, String) {
    (
        text!(; verw WORD [BYTE rsp + IretFrame::ss.low_word()]),
        text!(; verw WORD [BYTE rsp + FarFrame::cs.low_word()]),
    )
}

fn ours(variant: &str) -> Target {
    Target::image(&Image::new(&variant.parse().unwrap()).unwrap())
}

#[track_caller]
fn refuted(target: &Target) -> Counterexample {
    match Prover::default().prove(target) {
        Verdict::Refuted(counterexample) => *counterexample,
        other => panic!("not refuted: {other:?}"),
    }
}

/// Refuted by this obligation, which is of this row.
#[track_caller]
fn killed(target: &Target, row: u8, obligation: &str) {
    let found = refuted(target);
    assert_eq!(found.obligation.name, obligation, "{found}");
    assert!(found.obligation.rows.iter().any(|it| it.number() == row), "row {row}: {found}");
}

/// The mutants of one instruction, the `nth` of that text, by one kind of change.
#[track_caller]
fn changes(target: &Target, operator: Operator, text: &str, nth: usize) -> Vec<Mutant> {
    let mutants = mutate::mutants_of(target, text);
    let mut places: Vec<_> = mutants.iter().map(|mutant| mutant.at).collect();
    places.dedup();
    assert!(nth < places.len(), "`{text}` is there {} times", places.len());
    let wanted = |mutant: &Mutant| mutant.operator == operator && mutant.at == places[nth];
    mutants.into_iter().filter(wanted).collect()
}

/// The code without one instruction.
#[track_caller]
fn without(target: &Target, text: &str, nth: usize) -> Target {
    changes(target, Operator::Delete, text, nth).remove(0).target().unwrap()
}

/// The code without the trap after the `nth` of its calls that have one.
#[track_caller]
fn without_trap(target: &Target, nth: usize) -> Target {
    let mutants = mutate::mutants_of(target, "int3");
    let mut traps = mutants.iter().filter(|mutant| {
        let call = target.program.instruction(mutant.at - 5);
        mutant.operator == Operator::Delete && call.is_call_near() && call.next_ip() == mutant.at
    });
    traps.nth(nth).unwrap().target().unwrap()
}

/// The jump after the `nth` instruction of this text, removed.
#[track_caller]
fn without_jump_behind(target: &Target, text: &str, nth: usize) -> Target {
    let compare = changes(target, Operator::Delete, text, nth).remove(0).at;
    let mutants = mutate::mutants(target);
    let mut jumps = mutants.into_iter().filter(|mutant| {
        mutant.operator == Operator::Delete
            && mutant.at > compare
            && mutant.original.starts_with('j')
    });
    jumps.next().unwrap().target().unwrap()
}

/// The change to `changed` of an instruction.
#[track_caller]
fn with(target: &Target, operator: Operator, text: &str, nth: usize, changed: &str) -> Target {
    let mut all = changes(target, operator, text, nth);
    let index = all.iter().position(|mutant| mutant.changed == changed);
    let index = index.unwrap_or_else(|| {
        panic!("{:?}", all.iter().map(|mutant| &mutant.changed).collect::<Vec<_>>())
    });
    all.swap_remove(index).target().unwrap()
}

fn by_hand(replacements: &[(&str, &str)]) -> Target {
    let source = gas::replaced(gas::SWITCHER, replacements);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    Target::foreign(&foreign, Setting::from(&Variant::REFERENCE)).unwrap()
}

#[test]
fn row_1_sysretq_to_an_address_that_was_not_checked() {
    let unchecked = |target| without(&without(&target, "shl rcx,10h", 0), "sar rcx,10h", 0);
    killed(&unchecked(ours("intel-4level")), 1, "sysretq-canonical");
    // AMD's own SYSRETQ would not fault here, but what plays AMD may.
    killed(&unchecked(ours("amd-4level")), 1, "sysretq-canonical");
    killed(&by_hand(&[("\tja\tentry_IRETQ_switcher\n", "")]), 1, "sysretq-canonical");
}

#[test]
fn row_2_sysretq_straight_from_the_entry() {
    let straight = "\nroutine entry_SYSCALL_64_switcher\n\tsysretq\n\tud2\n";
    let target = by_hand(&[("\nroutine entry_SYSCALL_64_switcher\n", straight)]);
    killed(&target, 2, "sysretq-canonical");
}

#[test]
fn row_3_the_other_paging_modes_width() {
    let (narrow, wide) = (ours("intel-4level"), ours("intel-la57"));
    let wide_on_narrow = wide.clone().with_setting(narrow.setting);
    killed(&wide_on_narrow, 3, "sysretq-canonical");
    // 48-bit addresses are all canonical with 57 bits, but there are others.
    let narrow_on_wide = narrow.with_setting(wide.setting);
    killed(&narrow_on_wide, 3, "sysretq-return");
}

#[test]
fn row_4_rcx_lost_on_the_way_to_the_iretq() {
    let rcx = text!(; mov rcx, QWORD [BYTE rsp + IretFrame::rip.below_end()]);
    killed(&without(&ours("intel-4level"), &rcx, 0), 4, "registers");
    let spoilt = [
        ("\tja\tentry_IRETQ_switcher\n", "\tja\t2f\n"),
        ("\tiretq\n\tud2\n", "\tiretq\n\tud2\n2:\txorl\t%ecx, %ecx\n\tjmp\tentry_IRETQ_switcher\n"),
    ];
    killed(&by_hand(&spoilt), 4, "registers");
}

#[test]
fn row_5_wrgsbase_of_what_the_guest_says() {
    let ours = without(&ours("intel-4level"), "sar r11,10h", 0);
    killed(&ours, 5, "wrgsbase-canonical");
    killed(&by_hand(&[("\tsarq\t$63 - SIGN_BIT, %rcx\n", "")]), 5, "wrgsbase-canonical");
}

#[test]
fn row_6_the_gs_base_is_read_after_it_was_overwritten() {
    let (read, write) = ("\trdgsbase %rax\n", "\twrgsbase %r11\n");
    let (right, wrong) = (format!("{read}{write}"), format!("{write}{read}"));
    killed(&by_hand(&[(&right, &wrong)]), 6, "pvcs-gsbase");
}

#[test]
fn row_7_swapgs_dropped_or_doubled_and_the_label_moved() {
    let ours = ours("intel-4level");
    // On the way in, the first access is to where the guest's GS base points.
    killed(&without(&ours, "swapgs", 1), 7, "memory");
    killed(&without(&ours, "swapgs", 0), 7, "host-gs-kept");
    for (nth, obligation) in [(0, "host-gs-kept"), (1, "memory")] {
        let twice = changes(&ours, Operator::Duplicate, "swapgs", nth).remove(0).target().unwrap();
        killed(&twice, 7, obligation);
    }
    let mut moved = ours;
    moved.iretq = moved.iretq.map(|at| at + 2);
    killed(&moved, 7, "iretq-label");
}

#[test]
fn row_9_a_window_one_instruction_short() {
    for end in [false, true] {
        let mut ours = ours("intel-4level");
        let root = &mut ours.windows.get_mut(&Window::GuestRoot).unwrap()[0];
        // The jump at the end has two bytes, the first instruction five.
        if end {
            root.end -= 2
        } else {
            root.start += 5
        }
        killed(&ours, 9, "window-guest-root");
    }
}

#[test]
fn row_10_a_decision_on_the_guests_rsp() {
    let entry = "\nroutine entry_SYSCALL_64_switcher\n\tswapgs\n";
    let decides =
        "\nroutine entry_SYSCALL_64_switcher\n\tswapgs\n\ttestq\t%rsp, %rsp\n\tjs\t1f\n1:\n";
    killed(&by_hand(&[(entry, decides)]), 10, "no-decision-on-rsp");
}

#[test]
fn row_13_tf_and_rf_through_sysretq() {
    let ours = without_jump_behind(&ours("intel-4level"), "test r11,0FFFFFFFFFFDBB128h", 0);
    killed(&ours, 13, "sysretq-rf-tf");
    let test = "\ttestl\t$FLAGS_RF | FLAGS_TF, %r11d\n\tjnz\tentry_IRETQ_switcher\n";
    killed(&by_hand(&[(test, "")]), 13, "sysretq-rf-tf");
}

#[test]
fn row_14_privileged_flags_from_memory() {
    let ours = ours("intel-4level");
    let and = text!(
        ; and QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_ALLOWED.imm32()
    );
    for nth in 0..3 {
        let broken = without(&ours, &and, nth);
        killed(&broken, 14, "guest-flags");
    }
    killed(&without(&ours, "or r11d,202h", 0), 14, "guest-flags");
    killed(&by_hand(&[("\tandl\t$FLAGS_ALLOWED, %ecx\n", "")]), 14, "guest-flags");
}

#[test]
fn row_15_nt_at_iretq() {
    let mut ours = ours("intel-4level");
    ours.setting.sfmask -= RFlags::NT;
    killed(&ours, 15, "iretq-nt");
}

#[test]
fn row_16_df_and_ac_in_the_host() {
    let ours = without(&without(&ours("intel-4level"), "push 2", 0), "popfq", 0);
    killed(&ours, 16, "exit-flags");
    killed(&by_hand(&[("\tpushq\t$FLAGS_HOST\n\tpopfq\n", "")]), 16, "exit-flags");
}

#[test]
fn row_17_an_open_cstar() {
    let sysretq = ("\tsysretl\n", "\tsysretq\n");
    assert_eq!(refuted(&by_hand(&[sysretq])).theorem, Theorem::SyscallCompat);
    let goes_on = ("\tmovl\t$-ENOSYS, %eax\n", "\tjmp\tentry_SYSCALL_64_switcher\n");
    assert_eq!(refuted(&by_hand(&[goes_on])).theorem, Theorem::SyscallCompat);
}

#[test]
fn row_18_a_null_ss_for_the_next_sysretq() {
    killed(&without(&ours("amd-4level"), "mov ss,cx", 0), 18, "exit-ss");
}

#[test]
fn row_19_a_root_that_is_not_prepared() {
    let ours = without_jump_behind(&ours("intel-4level"), &umods_flags(), 0);
    killed(&ours, 19, "cr3-prepared");
    killed(&by_hand(&[("\tjnz\t.Lnot_to_smod\n", "")]), 19, "cr3-prepared");
}

#[test]
fn row_22_one_more_per_cpu_access() {
    let more = ("\tmovq\t%gs:SMOD_ENTRY, %rcx\n", "\tmovq\t%gs:0x800, %rcx\n");
    killed(&by_hand(&[more]), 22, "memory");
}

/// Under isolation, guests' roots lack the host's own stack. Whether there is isolation changes no
/// byte, so this holds of all code.
#[test]
fn row_22_the_hosts_stack_on_a_guests_root() {
    let exit = (
        "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n\tmovq\t%gs:HOST_RSP, %rsp\n",
        "\tmovq\t%gs:HOST_RSP, %rsp\n",
    );
    let late = (
        "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n",
        "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tmovq\t%gs:HOST_CR3, %rcx\n\
         \tmovq\t%rcx, %cr3\n\tmovl\t$0, %ecx\n\tret\n",
    );
    let enter = ("\tmovq\t%gs:ENTER_CR3, %rdi\n\tmovq\t%rdi, %cr3\n", "");
    let early = (
        "\tpush_all r15, r14, r13, r12, rbp, rbx\n\tmovq\t%rsp, %gs:HOST_RSP\n",
        "\tmovq\t%gs:ENTER_CR3, %rax\n\tmovq\t%rax, %cr3\n\
         \tpush_all r15, r14, r13, r12, rbp, rbx\n\tmovq\t%rsp, %gs:HOST_RSP\n",
    );
    let entry = "\tmovq\t%gs:SMOD_ENTRY, %rcx\n";
    let direct = format!("\tmovq\t%gs:HOST_RSP, %rcx\n\tmovq\t(%rcx), %rcx\n{entry}");
    for broken in [&[exit, late][..], &[enter, early], &[(entry, direct.as_str())]] {
        let found = refuted(&by_hand(broken));
        assert_eq!((found.obligation.name, found.about), ("mapped", "host stack"), "{found}");
        assert_eq!(found.obligation.rows, [Hazard::MappedSet]);
    }
    // In ours, the window says so first, if there is one.
    let mut without_root = without(&ours("intel-4level"), "mov cr3,rax", 0);
    killed(&without_root, 9, "window-guest-root");
    without_root.windows.clear();
    killed(&without_root, 22, "mapped");
}

#[test]
fn row_23_an_instruction_between_the_rsp_and_the_sysretq() {
    let nop = ("\tpopq\t%rsp\n\tsysretq\n", "\tpopq\t%rsp\n\tnop\n\tsysretq\n");
    killed(&by_hand(&[nop]), 23, "rsp-adjacent");
}

/// What is read again need not be what was checked. Guests with one CPU cannot tell the difference.
#[test]
fn row_24_a_field_of_the_pvcs_read_twice() {
    let base = (
        "\tshlq\t$63 - SIGN_BIT, %rcx\n\tsarq\t$63 - SIGN_BIT, %rcx\n",
        "\tshlq\t$63 - SIGN_BIT, %rcx\n\tsarq\t$63 - SIGN_BIT, %rcx\n\
         \tcmpq\tPVCS_USER_GSBASE(%rdx), %rcx\n\tjne\t1f\n\
         \tmovq\tPVCS_USER_GSBASE(%rdx), %rcx\n1:\n",
    );
    let flags = (
        "\tmovl\tPVCS_EFLAGS(%rdx), %ecx\n\tandl\t$FLAGS_ALLOWED, %ecx\n",
        "\tmovl\tPVCS_EFLAGS(%rdx), %ecx\n\ttestl\t$~FLAGS_ALLOWED, %ecx\n\
         \tmovl\tPVCS_EFLAGS(%rdx), %ecx\n\tjz\t1f\n\tandl\t$FLAGS_ALLOWED, %ecx\n1:\n",
    );
    for (twice, obligation) in [(base, "wrgsbase-canonical"), (flags, "guest-flags")] {
        let found = refuted(&by_hand(&[twice]));
        assert_eq!(found.obligation.name, obligation, "{found}");
        assert_eq!(found.guest_memory, GuestMemory::Racing, "{found}");
    }
}

/// A state that breaks them is found, although few addresses do.
#[test]
fn row_39_what_breaks_by_some_addresses_alone() {
    let ours = ours("amd-4level+ibpb");
    let clear = untraced();
    let other = text!(; and QWORD [BYTE rsp + IretFrame::rsp], RFlags::NOT_TRACED.imm32());
    let found = refuted(&with(&ours, Operator::Displacement, &clear, 0, &other));
    assert_eq!(found.obligation.name, "memory", "{found}");
}

#[test]
fn row_25_selectors_taken_for_granted() {
    let ours = without_jump_behind(&ours("intel-4level"), &selectors(), 0);
    killed(&ours, 25, "kind");
    killed(&by_hand(&[("\tjne\t.Lexit_restore_rdx\n", "")]), 25, "kind");
}

#[test]
fn row_26_mode_and_inhibitors() {
    let ours = ours("intel-4level");
    let narrow = text!(
        ; gs cmp BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()], 2
    );
    let byte = with(&ours, Operator::Size, &umods_flags(), 0, &narrow);
    // Of some inhibitors it is told whether they are set, and of the others not even that is asked.
    killed(&byte, 34, "no-host-value");
    killed(&by_hand(&[("\tcmpq\t%gs:RETU_RIP, %rcx\n\tjne\t.Lexit\n", "")]), 26, "kind");
    let toggles = [
        text!(
            ; xor BYTE [rsp + PerCpu::tss_extra + TssExtra::switch_flags.low_byte()],
                SwitchFlags::MODE_TOGGLE.imm8()
        ),
        text!(
            ; gs xor BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()],
                SwitchFlags::MODE_TOGGLE.imm8()
        ),
    ];
    for toggle in toggles {
        let untoggled = without(&ours, &toggle, 0);
        killed(&untoggled, 26, "root-of-mode");
    }
    let root = without(&ours, "mov cr3,rcx", 0);
    killed(&root, 26, "root-of-mode");
}

#[test]
fn row_27_registers_dropped_or_swapped() {
    let r14 = text!(; mov r14, QWORD [rsp + PtRegs::r14.below_end()]);
    let ours = ours("intel-4level");
    killed(&without(&ours, &r14, 0), 27, "registers");
    killed(&without(&ours, "xor r9d,r9d", 0), 27, "exit-scratch");
    let swapped = changes(&ours, Operator::Swap, "pop r15", 0).remove(0).target().unwrap();
    killed(&swapped, 27, "exit-caller");
    let swapped = changes(&ours, Operator::Swap, "push rsi", 0).remove(0).target().unwrap();
    killed(&swapped, 27, "exit-frame");
}

/// Where each mode has a PKRU of its own.
#[test]
fn row_27_pkru_of_the_other_mode_or_lost() {
    for policy in ["", "-percpu", "-current", "-percpu-current"] {
        let ours = ours(&format!("intel-4level-pku{policy}"));
        // To smod, then to umod: WRPKRU, and what it loads.
        for nth in [0, 1] {
            killed(&without(&ours, "wrpkru", nth), 27, "pkru");
            killed(&without(&ours, "mov eax,edx", nth), 27, "pkru");
            killed(&without(&ours, "rdpkru", nth), 27, "pkru");
            // RAX and RDX are the guest's.
            killed(&without(&ours, "mov rax,r11", nth), 27, "registers");
            killed(&without(&ours, "mov rdx,rsp", nth), 27, "registers");
            // #GP.
            assert_eq!(refuted(&without(&ours, "xor ecx,ecx", nth)).obligation.name, "exists");
            assert_eq!(refuted(&without(&ours, "xor edx,edx", nth)).obligation.name, "exists");
        }
    }
    // umod's is lost; smod runs with umod's.
    let ours = ours("intel-4level-pku");
    killed(&without(&ours, &text!(; mov DWORD [BYTE rdx + Pvcs::pkru], eax), 0), 27, "pvcs");
    let setting = ours.setting;
    killed(&self::ours("intel-4level").with_setting(setting), 27, "pkru");
    // Where there are no keys, RDPKRU is #UD.
    let setting = self::ours("intel-4level").setting;
    assert_eq!(refuted(&ours.with_setting(setting)).obligation.name, "exists");
}

#[test]
fn row_28_a_conditional_swapgs_without_a_fence() {
    let entry = "\nroutine entry_SYSCALL_64_switcher\n\tswapgs\n";
    let either = "\nroutine entry_SYSCALL_64_switcher\n\ttestq\t%rcx, %rcx\n\tjz\t1f\n\
                  \tswapgs\n\tjmp\t2f\n1:\tswapgs\n2:\n";
    killed(&by_hand(&[(entry, either)]), 28, "swapgs-fenced");
    let fenced = format!("{either}\tlfence\n");
    let fenced = Prover::default().prove(&by_hand(&[(entry, &fenced)]));
    assert!(matches!(fenced, Verdict::Proved(_)), "{fenced:?}");
}

#[test]
fn row_29_mitigations_left_out_or_out_of_order() {
    let intel = ours("intel-4level+ibrs+rsb+bhb+verw");
    let amd = ours("amd-4level+ibpb+rsb");
    // WRMSR of SPEC_CTRL: the entry's, then the exit's. The host's would be the guest's.
    killed(&without(&intel, "wrmsr", 0), 29, "spec-ctrl");
    killed(&without(&intel, "wrmsr", 1), 29, "ibrs-first");
    killed(&without(&amd, "wrmsr", 0), 29, "ibpb-first");
    // What is written then is no IBPB.
    killed(&without(&amd, "mov eax,1", 0), 29, "ibpb-first");
    // One round less; a gadget where there was a trap; speculation goes on before it is filled.
    for target in [&intel, &amd] {
        // One fence serves the buffer and the history.
        killed(&without(target, "lfence", 0), 29, "rsb-filled");
        let short = with(target, Operator::Immediate, "mov ecx,10h", 0, "mov ecx,0Fh");
        killed(&short, 29, "rsb-filled");
        killed(&without_trap(target, 0), 29, "rsb-filled");
    }
    // Returns are not untrained, or the last one is no RET of the thunk's.
    for name in ["amd-4level+untrain", "amd-la57-percpu+ibrs+untrain+rsb"] {
        let untrain = ours(name);
        let setting = untrain.setting;
        let bare = |target: &Target| {
            let mut calls = mutate::mutants(target);
            calls.retain(|mutant| mutant.operator == Operator::Delete);
            let is_call = |mutant: &&Mutant| {
                let instruction = target.program.instruction(mutant.at);
                instruction.is_call_near() && instruction.near_branch_target() == target.returns[0]
            };
            calls.iter().find(is_call).unwrap().target().unwrap()
        };
        killed(&bare(&untrain), 29, "untrained");
        let plain = ours(&name.replace("+untrain", ""));
        let plain_setting = plain.setting;
        killed(&plain.with_setting(setting), 29, "untrained");
        // A host that has none is not called.
        let asked = untrain.clone().with_setting(plain_setting);
        assert!(matches!(Prover::default().prove(&asked), Verdict::Unsupported(_)));
        // What the host's untraining leaves in RCX and RDX is no better than the guest's.
        let at = mutate::mutants_of(&untrain, "xor ecx,ecx").first().unwrap().at;
        let all = mutate::mutants(&untrain);
        let of_exit = all
            .iter()
            .filter(|mutant| mutant.operator == Operator::Delete && mutant.at == at)
            .find(|mutant| mutant.original == "xor ecx,ecx")
            .unwrap();
        killed(&of_exit.target().unwrap(), 29 - 2, "exit-scratch");
    }
    // The untraining's own RET is the first of an exit: moved in front of IBPB.
    let both = ours("amd-4level+ibpb+untrain");
    let start = changes(&both, Operator::Delete, "mov ecx,49h", 0).remove(0).at;
    let calls = (start..start + 32).filter(|at| {
        let instruction = both.program.instruction(*at);
        instruction.is_call_near() && instruction.near_branch_target() == both.returns[0]
    });
    let [call] = calls.collect::<Vec<_>>()[..] else { panic!("one call behind IBPB") };
    let offset = |at: u64| (at - both.program.base()) as usize;
    let mut moved = both.program.first_piece()[offset(start)..offset(call)].to_vec();
    let to = i32::try_from(both.returns[0].wrapping_sub(start + 5).cast_signed()).unwrap();
    moved.splice(0..0, [0xE8].into_iter().chain(to.to_le_bytes()));
    let mut early = both.clone();
    early.program.patch(start, &moved);
    killed(&early, 29, "ibpb-first");
    let history = ours("intel-4level+bhb");
    killed(&without(&history, "lfence", 0), 29, "bhb-cleared");
    let rounds = with(&intel, Operator::Immediate, "mov ecx,5", 0, "mov ecx,4");
    killed(&rounds, 29, "bhb-cleared");
    let branches = with(&intel, Operator::Immediate, "mov eax,5", 0, "mov eax,4");
    killed(&branches, 29, "bhb-cleared");
    killed(&without(&intel, &verw_of_guests(), 0), 29, "verw-last");
    let lite = ours("intel-4level+rsblite");
    killed(&without(&lite, "lfence", 0), 29, "rsb-filled");
    // What one variant needs, another has not.
    let unmitigated = ours("intel-4level");
    for (name, obligation) in [
        ("intel-4level+ibrs", "spec-ctrl"),
        ("intel-4level+rsb", "rsb-filled"),
        ("intel-4level+rsblite", "rsb-filled"),
        ("intel-4level+bhb", "bhb-cleared"),
        ("intel-4level+verw", "verw-last"),
    ] {
        let setting = ours(name).setting;
        killed(&unmitigated.clone().with_setting(setting), 29, obligation);
    }
    // VERW before the guest's registers are loaded, where the per-CPU block is read after it.
    let verw = ours("intel-4level+verw");
    let at = |text: &str| changes(&verw, Operator::Delete, text, 0).remove(0).at;
    let (start, end) = (at("mov cr3,rdi"), at(&verw_of_guests()));
    // The load of CR3's operand, too.
    let start = (start - 15..start).find(|at| {
        let instruction = verw.program.instruction(*at);
        instruction.next_ip() == start && instruction.to_string().starts_with("mov rdi,")
    });
    let start = start.unwrap();
    let len = verw.program.instruction(end).len();
    let offset = |at: u64| (at - verw.program.base()) as usize;
    let mut moved = verw.program.first_piece()[offset(start)..offset(end) + len].to_vec();
    moved.rotate_right(len);
    let mut early = verw.clone();
    early.program.patch(start, &moved);
    killed(&early, 29, "verw-last");
}

#[test]
fn row_29_a_hook_in_the_middle_of_a_mitigation() {
    let intel = ours("intel-4level+ibrs+rsb+bhb+verw");
    let amd = ours("amd-4level+ibpb+rsb");
    // Behind those of the entry and the exit: that of the hook, and that which undoes it.
    killed(&without(&intel, "wrmsr", 2), 29, "ibrs-first");
    killed(&without(&intel, "wrmsr", 3), 29, "spec-ctrl");
    // What is restored then is what the registers had: nothing that SPEC_CTRL need take.
    killed(&without(&intel, "rdmsr", 0), 48, "exists");
    // The upper half, too.
    let swapped = changes(&intel, Operator::Swap, "push rdx", 4).remove(0).target().unwrap();
    killed(&swapped, 48, "exists");
    killed(&without(&amd, "wrmsr", 1), 29, "ibpb-first");
    killed(&without(&amd, "mov eax,1", 1), 29, "ibpb-first");
    for target in [&intel, &amd] {
        // Behind the exit's, the two that events of a guest have for SWAPGS, that before the host's
        // handler, the far RET's and that before the hook.
        killed(&without(target, "lfence", 6), 29, "rsb-filled");
        let short = with(target, Operator::Immediate, "mov ecx,10h", 1, "mov ecx,0Fh");
        killed(&short, 29, "rsb-filled");
    }
    let rounds = with(&intel, Operator::Immediate, "mov ecx,5", 1, "mov ecx,4");
    killed(&rounds, 29, "bhb-cleared");
    let branches = with(&intel, Operator::Immediate, "mov eax,5", 1, "mov eax,4");
    killed(&branches, 29, "bhb-cleared");
    killed(&without(&ours("intel-4level+bhb"), "lfence", 6), 29, "bhb-cleared");
    killed(&without(&ours("intel-4level+rsblite"), "lfence", 6), 29, "rsb-filled");
    // The return of a machine check by either way, and that of an NMI.
    let (by_iretq, by_retf) = verws_of_events();
    for (text, nth) in [(&by_iretq, 0), (&by_retf, 0), (&by_iretq, 1)] {
        killed(&without(&intel, text, nth), 29, "verw-last");
    }
    // VERW one instruction too early, or too late: RSP points to something else than the frame.
    let verw = ours("intel-4level+verw");
    let early = |text: &str| {
        let swaps = mutate::mutants(&verw).into_iter().filter(|m| m.operator == Operator::Swap);
        let mut swaps = swaps.filter(|m| m.changed == format!("after `{text}`"));
        swaps.next().unwrap().target().unwrap()
    };
    killed(&early(&by_iretq), 61, "untaken-memory");
    killed(&early(&by_retf), 61, "descriptors");
    // host_rsp does not say whether an exit has come to its sequences.
    let ibrs = ours("intel-4level+ibrs");
    let at = |text: &str, nth| changes(&ibrs, Operator::Delete, text, nth).remove(0).at;
    let host_rsp = text!(; gs cmp QWORD [PerCpu::tss_extra + TssExtra::host_rsp], BYTE 0);
    let jump = ibrs.program.instruction(at(&host_rsp, 0)).next_ip();
    let over = u8::try_from(at("push 2", 2) - ibrs.program.instruction(jump).next_ip()).unwrap();
    let mut guessed = ibrs.clone();
    guessed.program.patch(jump + 1, &[over]);
    killed(&guessed, 29, "ibrs-first");
}

/// VERW of anything else than a selector of the frame, and the fence before the stack of a guest.
#[test]
fn row_61_a_secret_chooses_the_descriptor() {
    let verw = ours("intel-4level+verw");
    for target in [&verw, &ours("intel-4level"), &ours("amd-la57-percpu-current")] {
        // Those before the hooks come after it.
        let fence = mutate::mutants_of(target, "lfence").into_iter().rev();
        let mut fence = fence.filter(|mutant| mutant.operator == Operator::Delete).skip(2);
        killed(&fence.next().unwrap().target().unwrap(), 61, "untaken-memory");
    }
    let prover = SharingProver::new(&Arc::default());
    assert!(matches!(prover.prove(&verw), Verdict::Proved(_)));
    let (by_iretq, by_retf) = verws_of_events();
    for text in [by_iretq, by_retf] {
        let mutants = mutate::mutants_of(&verw, &text);
        let mut for_it = 0;
        for mutant in &mutants {
            match mutate::judge(&prover, &verw, mutant) {
                Fate::Killed(_, rows) => {
                    for_it += usize::from(rows.contains(&Hazard::SecretSelector));
                }
                Fate::Refused(_) | Fate::NoCode | Fate::Equivalent => {}
                Fate::Hole(why) => panic!("{mutant}: {why}"),
            }
        }
        assert!(for_it > 0, "{text}: {mutants:?}");
    }
}

/// What a hook is told: by the frame, and by no register.
#[test]
fn row_47_a_register_of_what_was_interrupted_in_a_hook() {
    for variant in ["intel-4level", "intel-la57-percpu+ibrs+rsb+bhb+verw", "amd-4level+untrain"] {
        let ours = ours(variant);
        let clears = ["ebx", "ebp", "r12d", "r13d", "r14d", "r15d", "esi", "r8d", "r11d"];
        for register in clears {
            let text = format!("xor {register},{register}");
            let mutants = mutate::mutants_of(&ours, &text);
            let deleted: Vec<_> =
                mutants.iter().filter(|mutant| mutant.operator == Operator::Delete).collect();
            // The last two: of NMI and #MC, and of what is fatal.
            assert!(deleted.len() >= 2, "{variant}: {text}");
            for mutant in &deleted[deleted.len() - 2..] {
                killed(&mutant.target().unwrap(), 47, "hook-registers");
            }
        }
    }
    // What no sequence leaves known, and what the host's untraining leaves.
    let nth = |target: &Target, text: &str| {
        let mutants = mutate::mutants_of(target, text);
        mutants.iter().filter(|mutant| mutant.operator == Operator::Delete).count() - 2
    };
    for (variant, text) in [
        ("intel-4level", "xor ecx,ecx"),
        ("intel-4level+bhb", "xor edx,edx"),
        ("amd-4level+ibrs+untrain", "xor ecx,ecx"),
        ("amd-4level+ibrs+untrain", "xor edx,edx"),
    ] {
        let ours = ours(variant);
        killed(&without(&ours, text, nth(&ours, text)), 47, "hook-registers");
    }
    let untrain = ours("amd-4level+ibrs+untrain");
    killed(&without(&untrain, "xor eax,eax", 0), 47, "hook-registers");
}

/// In each variant, each trap, and each RET's place.
#[test]
fn rows_45_and_46_behind_and_around_a_return() {
    for variant in ["intel-4level+bhb", "amd-4level-percpu+ibpb", "intel-la57-current+ibrs+rsb+bhb"]
    {
        let original = ours(variant);
        let prover = SharingProver::new(&Arc::default());
        assert!(matches!(prover.prove(&original), Verdict::Proved(_)));
        let mutants = mutate::mutants(&original);
        let mut counted = [0; 2];
        for mutant in &mutants {
            let fate = || mutate::judge(&prover, &original, mutant);
            if mutant.original == "int3" && mutant.operator == Operator::Delete {
                let before = [1, 2, 3, 5].map(|by| original.program.instruction(mutant.at - by));
                let of_call = before.iter().any(|i| i.is_call_near() && i.next_ip() == mutant.at);
                let expected = if of_call { "rsb-filled" } else { "trapped" };
                let fate = fate();
                assert!(
                    matches!(fate, Fate::Killed(name, _) if name == expected),
                    "{mutant}: {fate:?}"
                );
                counted[0] += 1;
            }
            if mutant.operator == Operator::Line {
                let fate = fate();
                let is_asked = original.setting.variant.mitigations().bhb.is_on();
                let fits = match fate {
                    Fate::Killed(name, _) => is_asked && name == "upper-half",
                    // A RET elsewhere is the same RET to CPUs that have no such fault.
                    Fate::Equivalent => !is_asked,
                    _ => false,
                };
                assert!(fits, "{mutant}: {fate:?}");
                counted[1] += 1;
            }
        }
        assert!(counted[0] >= 6 && counted[1] >= 1, "{variant}: {counted:?}");
    }
}

/// What has no effect is nothing.
#[test]
fn rows_42_and_43_what_only_looks_like_a_mitigation() {
    let (mut counted, mut doubled) = (0, 0);
    for variant in ["intel-4level+rsb+bhb+verw", "amd-la57+rsb", "intel-4level-percpu+rsblite"] {
        let original = ours(variant);
        let prover = SharingProver::new(&Arc::default());
        assert!(matches!(prover.prove(&original), Verdict::Proved(_)));
        let mutants = mutate::mutants(&original);
        for mutant in mutants.iter().filter(|mutant| mutant.operator == Operator::Lookalike) {
            let fate = mutate::judge(&prover, &original, mutant);
            // Before the hook, the one of the mitigations comes after it.
            if matches!(fate, Fate::Equivalent) && mutant.original == "lfence" {
                doubled += 1;
                continue;
            }
            let Fate::Killed(name, rows) = fate else { panic!("{mutant}: {fate:?}") };
            let (expected, row) = match &*mutant.original {
                "lfence" if name == "untaken-memory" => (&[name][..], Hazard::SecretSelector),
                "lfence" if name == "untaken-code" => (&[name][..], Hazard::EarlyBranch),
                "lfence" if name == "hook-root" => (&[name][..], Hazard::NmiRoot),
                "lfence" => (&["swapgs-fenced", "rsb-filled"][..], Hazard::NoFence),
                _ if name == "verw-last" => (&[name][..], Hazard::BuffersCleared),
                _ => (&["descriptors", "untaken-memory"][..], Hazard::SecretSelector),
            };
            assert!(expected.contains(&name) && rows.contains(&row), "{mutant}: {name}");
            counted += 1;
        }
    }
    // Three for each LFENCE, of which events have two with `gs`, one before the far RET and three
    // before code of the host's, and one for each VERW.
    assert_eq!((counted, doubled), (3 * 7 + 4 + 3 * 7 + 3 * 5, 3 * 3));
}

#[test]
fn row_30_falling_through_a_trap() {
    let ours = ours("intel-4level");
    killed(&without(&ours, "int 9", 0), 30, "no-trap");
    killed(&by_hand(&[("\tsysretl\n", "")]), 30, "no-trap");
}

/// The same failures where direct switches have neither SWAPGS nor a stack.
#[test]
fn per_cpu_code_is_refused_for_the_same_reasons() {
    for revision in ["", "-current"] {
        let ours = ours(&format!("intel-4level-percpu{revision}"));
        // Row 1: the upper half is looked at, and found canonical or not.
        killed(&without_jump_behind(&ours, "shr rsp,2Fh", 0), 1, "sysretq-canonical");
        let unchecked = without_jump_behind(&ours, "cmp rsp,rcx", 0);
        assert_eq!(refuted(&unchecked).obligation.name, "sysretq-return");
        let both = without(&without(&ours, "shl rsp,10h", 0), "sar rsp,10h", 0);
        killed(&both, 1, "sysretq-canonical");
        // Row 5.
        killed(&without(&ours, "sar r11,10h", 0), 5, "wrgsbase-canonical");
        // Row 7: a SWAPGS where there is none, and none where an exit needs it.
        killed(&without(&ours, "swapgs", 1), 7, "exit-gs");
        // Row 14, and 13: what is found first is the IRETQ with the flags that were not looked at.
        killed(&without_jump_behind(&ours, "test r11d,0FFDBB128h", 0), 14, "guest-flags");
        killed(&without(&ours, "or esp,202h", 0), 14, "guest-flags");
        // Row 23.
        let swapped = changes(&ours, Operator::Swap, "mov r11d,202h", 0).remove(0);
        killed(&swapped.target().unwrap(), 23, "rsp-adjacent");
        // Row 25.
        killed(&without_jump_behind(&ours, &selectors(), 0), 25, "kind");
    }
}

/// The proof takes the block to lie where the code looks for it: a page in front.
#[test]
fn per_cpu_code_somewhere_else_than_its_block_is_refused() {
    let ours = ours("intel-4level-percpu");
    let bytes = ours.program.first_piece().to_vec();
    // The same code, 16 bytes further on in its region.
    let mut moved = vec![0xCC; 16];
    moved.extend(bytes);
    let mut elsewhere = ours.clone();
    elsewhere.program = Program::new(Target::BASE, moved);
    let required =
        [&mut elsewhere.enter_guest, &mut elsewhere.return_from_guest, &mut elsewhere.syscall_64];
    let optional = [&mut elsewhere.syscall_compat, &mut elsewhere.iretq];
    for entry in required.into_iter().chain(optional.into_iter().flatten()) {
        *entry += 16;
    }
    elsewhere.windows.clear();
    (elsewhere.gates, elsewhere.routines) = (None, None);
    killed(&elsewhere, 36, "kept");
}

#[test]
fn row_33_no_endbr64_under_ibt() {
    let ours = ours("intel-4level-ibt");
    // The routines, and entries of the IDT.
    for nth in (0..4).chain(5..9) {
        killed(&without(&ours, "endbr64", nth), 33, "endbr");
    }
}

/// The same code, an instruction of which has other bytes.
#[track_caller]
fn patched(target: &Target, text: &str, nth: usize, at: u64, bytes: &[u8]) -> Target {
    let place = changes(target, Operator::Delete, text, nth)[0].at;
    let mut patched = target.clone();
    patched.program.patch(place + at, bytes);
    patched
}

/// The entry of the IDT for `vector`, changed.
fn with_gate(target: &Target, vector: u8, change: impl Fn(&mut TargetGate)) -> Target {
    let mut changed = target.clone();
    let mut gates = changed.gates.iter_mut().flatten();
    change(gates.find(|gate| gate.vector == vector).unwrap());
    changed
}

/// What tells the hook of a machine check from that of an NMI.
fn which_hook() -> String {
    text!(
        ; cmp BYTE [BYTE rdi + PtRegs::orig_ax + OrigAx::reason.low_byte()],
            vector::MC.cast_signed()
    )
}

/// The test that tells a guest's NMI from ring 0's; a machine check's comes after it.
fn nmi_from() -> String {
    text!(
        ; test BYTE [BYTE rsp + EventFrame::iret + IretFrame::cs.low_byte()],
            Selectors::RPL.cast_signed()
    )
}

#[test]
fn row_7_events_with_the_wrong_gs_and_an_iretq_that_is_not_recognised() {
    let ours = ours("intel-4level");
    // The last two: a guest's event, the same on a stack of the IST.
    let mut places: Vec<_> =
        mutate::mutants_of(&ours, "swapgs").iter().map(|mutant| mutant.at).collect();
    places.dedup();
    for nth in [places.len() - 2, places.len() - 1] {
        killed(&without(&ours, "swapgs", nth), 7, "memory");
    }
    // Back to the base that was interrupted, and before that to the host's.
    killed(&without(&ours, "wrgsbase rax", 1), 7, "resumed-gs");
    // The hook of an NMI or a machine check, that of what is fatal. Where GS is needed for more
    // than the hook, that fails first.
    let per_cpu = self::ours("intel-4level-percpu");
    // A guest's is first: it may be taken for ring 0's.
    for nth in [0, 2] {
        killed(&without(&ours, "wrgsbase rax", nth), 28, "swapgs-fenced");
        killed(&without(&per_cpu, "wrgsbase rax", nth), 7, "hook-gs");
    }
    // The fault of the IRETQ is looked for at the next instruction.
    let lea = changes(&ours, Operator::Delete, "push rax", 2).remove(0).at + 1;
    let instruction = ours.program.instruction(lea);
    let displacement = instruction.ip_rel_memory_address().wrapping_sub(instruction.next_ip());
    let mut moved = ours.clone();
    moved.program.patch(lea + 3, &(displacement as i32 + 2).to_le_bytes());
    // Where it goes on instead, there is no room either.
    ours::refused(&moved, 7, "iretq-label");
}

#[test]
fn row_8_an_nmi_that_leaves_the_root_to_chance() {
    let ours = ours("intel-4level");
    killed(&without(&ours, "mov cr3,rax", 1), 8, "resumed-root");
    // The hook of an NMI or a machine check, that of what is fatal.
    for nth in [1, 2] {
        killed(&without(&ours, "mov cr3,rcx", nth), 8, "hook-root");
    }
    // An NMI for a machine check, and the other way round.
    let is_nmi = text!(
        ; cmp BYTE [BYTE rdi + PtRegs::orig_ax + OrigAx::reason.low_byte()],
            vector::NMI.cast_signed()
    );
    killed(&without_jump_behind(&ours, &which_hook(), 0), 8, "hook");
    killed(&with(&ours, Operator::Immediate, &which_hook(), 0, &is_nmi), 8, "hook");
    // On the guest's root before anything says so: an NMI would stay on it.
    let enter = ("\tmovq\t%gs:ENTER_CR3, %rdi\n\tmovq\t%rdi, %cr3\n", "");
    let early = (
        "\tmovq\t%rsp, %gs:HOST_RSP\n",
        "\tmovq\t%gs:ENTER_CR3, %rax\n\tmovq\t%rax, %cr3\n\tmovq\t%rsp, %gs:HOST_RSP\n",
    );
    killed(&by_hand(&[enter, early]), 8, "host-rsp-set");
}

#[test]
fn row_10_an_nmi_that_is_told_by_the_guests_rsp() {
    let ours = ours("intel-4level");
    // The saved RSP instead of the saved CS.
    killed(&patched(&ours, &nmi_from(), 1, 3, &[0x28]), 10, "no-decision-on-rsp");
    let own_stack = |vector| with_gate(&ours, vector, |gate| gate.ist = 0);
    for vector in [2, 18] {
        killed(&own_stack(vector), 10, "gate-ist");
    }
    let shared = with_gate(&ours, 18, |gate| gate.ist = 2);
    killed(&shared, 10, "gate-ist");
}

#[test]
fn row_11_an_nmi_that_leaves_nmis_blocked_for_ever_or_for_too_short() {
    let ours = ours::Ours::new("intel-4level");
    // Ring 0's returns by a far RET.
    let iretq = ours.code(Label::InterruptionOver, Code::Iretq);
    ours::refused(&ours.patched(iretq + 1, &[0xCB]), 11, "nmi-unblocked");
    // A guest's leaves its stack by an IRETQ, before the host has handled it.
    let pop = ours.find(Label::EventIstFromGuest, "pop rdi");
    let iretq = mutate::mutants(&ours.target).into_iter();
    let mut iretq = iretq.filter(|it| it.at == pop && it.operator == Operator::Unblock);
    ours::refused(&iretq.next().unwrap().target().unwrap(), 39, "nmi-blocked");
}

#[test]
fn row_12_a_debug_exception_on_the_guests_stack() {
    let ours = ours("intel-4level");
    killed(&with_gate(&ours, 1, |gate| gate.ist = 0), 12, "gate-ist");
    // One that is met again and again, or that goes on tracing.
    let resume = text!(; or QWORD [BYTE rsp + IretFrame::eflags], RFlags::RF.imm32());
    killed(&without(&ours, &resume, 0), 12, "resumed");
    killed(&without(&ours, &untraced(), 0), 12, "resumed");
}

#[test]
fn row_16_df_and_ac_in_a_hook() {
    let ours = ours("intel-4level");
    // What the flags are popped from is pushed before; an NMI's vector is a 2 as well.
    for (push, pop) in [(2, 2), (3, 3)] {
        let ours = without(&without(&ours, "popfq", pop), "push 2", push);
        killed(&ours, 16, "hook-flags");
    }
}

#[test]
fn row_22_an_event_with_one_more_per_cpu_access() {
    let sp0 = text!(; gs mov rdi, QWORD [PerCpu::tss + Tss::sp0]);
    // A page further on.
    let at = (PerCpu::tss + Tss::sp0).bytes() + 0x1000;
    let further = format!("mov rdi,gs:[{at:X}h]");
    let more = with(&ours("intel-4level"), Operator::Displacement, &sp0, 0, &further);
    killed(&more, 22, "memory");
}

#[test]
fn row_27_a_register_of_an_event_dropped_or_swapped() {
    let ours = ours("intel-4level");
    // Behind that of the common exit.
    let swapped = changes(&ours, Operator::Swap, "pop r15", 1).remove(0).target().unwrap();
    killed(&swapped, 27, "resumed-registers");
    let swapped = changes(&ours, Operator::Swap, "push rdx", 1).remove(0).target().unwrap();
    killed(&swapped, 27, "exit-frame");
    let swapped = changes(&ours, Operator::Swap, "push rdx", 3).remove(0).target().unwrap();
    killed(&swapped, 27, "hook-frame");
    // A stub like others, with another's vector.
    let stub = ours.gates.as_ref().unwrap()[32].address;
    let mut other = ours.clone();
    other.program.patch(stub + 1, &[33]);
    killed(&other, 27, "exit-frame");
}

#[test]
fn row_28_an_event_entry_without_its_fence() {
    let ours = ours("intel-4level");
    for nth in [0, 2] {
        killed(&without(&ours, "lfence", nth), 28, "swapgs-fenced");
    }
    killed(&without(&ours, "lfence", 1), 41, "untaken-code");
}

#[test]
fn row_30_what_is_fatal_goes_on() {
    killed(&without(&ours("intel-4level"), "ud2", 1), 30, "fatal-trap");
}

#[test]
fn row_32_one_more_gate_for_guests() {
    let ours = ours("intel-4level");
    for vector in [0, 2, 13, 14, 0x81, 255] {
        killed(&with_gate(&ours, vector, |gate| gate.dpl = 3), 32, "gate-dpl");
    }
    killed(&with_gate(&ours, 0x80, |gate| gate.dpl = 0), 32, "gate-dpl");
}

/// R10 is what the PVCS says of R11: only a state in which these differ shows it, whatever the
/// prover has been asked before.
#[test]
fn a_counterexample_is_found_whatever_was_asked_before() {
    let r11 = text!(; mov r11, QWORD [BYTE rcx + Pvcs::r11]);
    let prover = Prover::default();
    for variant in ["intel-4level", "amd-la57"] {
        let original = ours(variant);
        // The first read another width.
        for operator in [Operator::Size, Operator::Register] {
            for mutant in changes(&original, operator, &r11, 0) {
                let fate = mutate::judge(&prover, &original, &mutant);
                assert!(!matches!(fate, Fate::Hole(_)), "{variant}: {mutant}: {fate:?}");
            }
        }
    }
}

/// sp0 is an address of the host's, but which one is not known.
#[test]
fn a_counterexample_may_need_an_address_of_the_hosts() {
    let broken = with(&ours("intel-4level"), Operator::Register, "wrgsbase r11", 0, "wrgsbase rsp");
    killed(&broken, 5, "wrgsbase-canonical");
}

/// A sample: `switcher mutate --all` does them all.
#[test]
fn no_mutant_survives_unexplained() {
    let mut tally = Tally::default();
    for (variant, step) in [
        ("intel-4level", 37),
        ("amd-la57-pcid", 41),
        ("intel-4level-percpu", 53),
        ("intel-4level-current", 151),
        ("amd-la57-percpu-current", 151),
    ] {
        let original = ours(variant);
        // What a mutant has in common with the original is proved once.
        let shared = Arc::default();
        let prover = SharingProver::new(&shared);
        assert!(matches!(prover.prove(&original), Verdict::Proved(_)));
        for mutant in mutate::mutants(&original).iter().step_by(step) {
            let fate = mutate::judge(&prover, &original, mutant);
            if let Fate::Refused(bad) = &fate {
                println!("{mutant}: {bad}");
            }
            tally.count(mutant, &fate);
        }
        assert!(shared.shared() > 50, "{}", shared.shared());
    }
    assert!(tally.mutants > 400, "{}", tally.mutants);
    assert!(tally.holes.is_empty(), "{:#?}", tally.holes);
}
