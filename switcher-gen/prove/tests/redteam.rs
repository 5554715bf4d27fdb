//! Attacks on the prover: switchers that are wrong in ways that were once, or could be, overlooked.
//! Each must be refused, for the reason given.
//!
//! tests/mutants.rs breaks right code a little; what is here was written to deceive.

mod attack;
mod gas;

use std::sync::Arc;

use attack::mitigated::{
    ALL, BHB, CLEAR_BUFFERS, DONE, ENTER, EXIT, FENCE, FILL, HISTORY, IBRS, INDIRECT, LAST_RET,
    LEAVE, NOT_DONE, Parts, RSB, VERW, WRITE_SPEC_CTRL, mitigated,
};
use attack::{Change, prove, target};
use switcher_gen::arch::{Msr, RFlags};
use switcher_gen::layout::Pvcs;
use switcher_gen::{Image, Variant};
use switcher_model::{Features, ProgramError};
use switcher_prove::{
    Area, BadCode, Prove, Prover, Setting, Shared, SharingProver, Target, Verdict,
};

#[track_caller]
fn refuted(target: &Target, obligation: &str) {
    attack::refuted("it", target, obligation);
}

#[track_caller]
fn refused(changes: &[Change<'_>], obligation: &str) {
    refuted(&target("intel-4level", changes), obligation);
}

#[track_caller]
fn proved(target: &Target) {
    attack::proved("it", target);
}

/// In the ERETU, once the selectors have been found to be the usual ones.
const ERETU: &str =
    "\t/* smod -> umod: ERETU. No way back from here, so RCX and R11 are free. */\n";
/// In the ERETU, after everything.
const ERETU_END: &str =
    "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
const ERETU_BASE: &str = "\tmovq\tPVCS_USER_GSBASE(%rdx), %rcx\n\tshlq\t$63 - SIGN_BIT, %rcx\n\
                          \tsarq\t$63 - SIGN_BIT, %rcx\n\twrgsbase %rcx\n";
const EXIT_START: &str = "\tmovq\t%rsp, %rax\n\tmovq\t%gs:HOST_CR3, %rcx\n";

/// `code` where the selectors, read again, are others: a guest with one CPU never gets there.
fn flipped(code: &str) -> String {
    format!("\tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tje\t1f\n{code}1:\n")
}

// A guest that writes the PVCS meanwhile.

#[test]
fn an_exit_after_the_mode_was_toggled() {
    let late = "\t/* What the guest wants goes into the frame, 8 bytes up. Only the frame is looked at later. */\n";
    let again =
        format!("{late}\tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tjne\t.Lexit_restore_rdx\n");
    refused(&[(late, &again)], "switch-flags");
}

#[test]
fn an_exit_whose_frame_is_wrong_if_the_pvcs_changed() {
    let bad = format!("{ERETU}{}", flipped("\txorl\t%ebx, %ebx\n\tjmp\t.Lexit_restore_rdx\n"));
    refused(&[(ERETU, &bad)], "exit-frame");
}

#[test]
fn an_exit_with_the_mode_toggled_if_the_pvcs_changed() {
    let bad = format!(
        "{ERETU}{}",
        flipped("\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tjmp\t.Lexit_restore_rdx\n")
    );
    refused(&[(ERETU, &bad)], "switch-flags");
}

#[test]
fn a_store_to_the_tss_if_the_pvcs_changed() {
    let bad = format!("{ERETU}{}", flipped("\tmovq\t$0, %gs:TSS_SP0\n"));
    refused(&[(ERETU, &bad)], "kept");
}

#[test]
fn a_root_of_the_guests_in_the_slot_if_the_pvcs_changed() {
    let bad =
        format!("{ERETU}{}", flipped("\tmovq\tPVCS_RCX(%rdx), %rcx\n\tmovq\t%rcx, %gs:HOST_CR3\n"));
    refused(&[(ERETU, &bad)], "kept");
}

#[test]
fn a_host_value_in_a_callee_saved_register_if_the_pvcs_changed() {
    let bad = format!("{ERETU}{}", flipped("\tmovq\t%gs:HOST_RSP, %rbx\n"));
    refused(&[(ERETU, &bad)], "registers");
}

#[test]
fn a_host_value_in_r11_if_the_pvcs_changed() {
    let bad = "\tmovq\tPVCS_R11(%rdx), %r11\n\tcmpq\tPVCS_R11(%rdx), %r11\n\tje\t1f\n\
               \tmovq\t%rsp, %r11\n1:\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
    refused(&[(ERETU_END, bad)], "no-host-value");
}

#[test]
fn a_host_value_in_the_pvcs_if_the_pvcs_changed() {
    let bad = format!("{ERETU}{}", flipped("\tmovq\t%rsp, PVCS_RSP(%rdx)\n"));
    refused(&[(ERETU, &bad)], "no-host-value");
}

#[test]
fn a_store_behind_the_pvcs_fields_if_the_pvcs_changed() {
    let bad = format!(
        "{ERETU}{}",
        flipped(&format!("\tmovq\t%rsp, {}(%rdx)\n", Pvcs::user_cs.bytes() - 0x20))
    );
    refused(&[(ERETU, &bad)], "no-host-value");
}

#[test]
fn a_32_bit_return_with_flags_of_the_guests_if_the_pvcs_changed() {
    let bad = "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\
               \tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tpopq\t%rdx\n\tje\t1f\n\
               \tmovq\tIRET_RSP(%rsp), %rsp\n\tsysretl\n\tud2\n1:\n";
    refused(&[(ERETU_END, bad)], "selectors");
}

#[test]
fn a_direct_switch_that_is_not_an_eretu_if_the_pvcs_changed() {
    let from = "\tcmpq\t%gs:RETU_RIP, %rcx\n\tjne\t.Lexit\n\tpushq\t%rdx\n\tmovq\t%gs:PVCS, %rdx\n";
    let to = "\tpushq\t%rdx\n\tmovq\t%gs:PVCS, %rdx\n\
              \tmovq\tPVCS_RIP(%rdx), %r11\n\tcmpq\tPVCS_RIP(%rdx), %r11\n\tmovq\t16+8(%rsp), %r11\n\tjne\t1f\n\
              \tcmpq\t%gs:RETU_RIP, %rcx\n\tjne\t.Lexit_restore_rdx\n1:\n";
    refused(&[(from, to)], "kind");
}

#[test]
fn a_guest_msr_base_that_was_read_twice() {
    let bad = "\tpushq\t%rax\n\tmovq\tPVCS_USER_GSBASE(%rdx), %r11\n\tmovq\t%r11, %rcx\n\
               \tshlq\t$63 - SIGN_BIT, %rcx\n\tsarq\t$63 - SIGN_BIT, %rcx\n\tcmpq\t%rcx, %r11\n\
               \tjne\t1f\n\tmovq\tPVCS_USER_GSBASE(%rdx), %rcx\n1:\n\tmovq\t%rcx, %rax\n\
               \tpushq\t%rdx\n\tmovq\t%rcx, %rdx\n\tshrq\t$32, %rdx\n\tmovl\t$0xC0000101, %ecx\n\
               \twrmsr\n\tpopq\t%rdx\n\tpopq\t%rax\n";
    refused(&[(ERETU_BASE, bad)], "wrgsbase-canonical");
}

// What the host has not prepared.

#[test]
fn the_pvcs_is_read_although_there_is_none() {
    let from = "\ttestq\t$NO_DS_TO_UMOD, %gs:SWITCH_FLAGS\n\tjnz\t.Lexit\n\
                \tcmpq\t%gs:RETU_RIP, %rcx\n\tjne\t.Lexit\n\tpushq\t%rdx\n\tmovq\t%gs:PVCS, %rdx\n\
                \tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tjne\t.Lexit_restore_rdx\n";
    let to = "\tpushq\t%rdx\n\tmovq\t%gs:PVCS, %rdx\n\
              \tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tjne\t.Lexit_restore_rdx\n\
              \ttestq\t$NO_DS_TO_UMOD, %gs:SWITCH_FLAGS\n\tjnz\t.Lexit_restore_rdx\n\
              \tcmpq\t%gs:RETU_RIP, %rcx\n\tjne\t.Lexit_restore_rdx\n";
    refused(&[(from, to)], "pvcs-registered");
}

#[test]
fn the_pvcs_is_touched_on_an_exit() {
    let bad = format!("\tmovq\t%gs:PVCS, %rcx\n\ttestb\t$1, (%rcx)\n{EXIT}");
    refused(&[(EXIT, &bad)], "pvcs-registered");
}

#[test]
fn more_stack_than_the_host_gives() {
    let bad = "\t.rept 26\n\tpushq\t$0\n\t.endr\n\taddq\t$208, %rsp\n";
    let start = format!("\n{bad}{EXIT_START}");
    refused(&[(&format!("\n{EXIT_START}"), &start)], "memory");
}

// What is changed behind the specification's back.

#[test]
fn an_msr_of_the_hosts_is_overwritten() {
    for msr in [Msr::Star, Msr::Lstar, Msr::Cstar, Msr::Sfmask].map(Msr::address) {
        let bad = format!(
            "\tpushq\t%rax\n\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\tmovl\t${msr}, %ecx\n\twrmsr\n\tpopq\t%rax\n{EXIT}"
        );
        refused(&[(EXIT, &bad)], "kept");
    }
}

#[test]
fn fs_base_and_the_guests_gs_base_at_an_exit() {
    let bad = format!("\txorl\t%ecx, %ecx\n\twrfsbase %rcx\n{EXIT}");
    refused(&[(EXIT, &bad)], "unchanged");
    let bad = format!("\tswapgs\n\txorl\t%ecx, %ecx\n\twrgsbase %rcx\n\tswapgs\n\tlfence\n{EXIT}");
    refused(&[(EXIT, &bad)], "exit-gs");
}

#[test]
fn reserved_bytes_and_fields_of_the_host() {
    let wide = ("\tmovl\t%r11d, PVCS_EFLAGS(%rdx)\n", "\tmovq\t%r11, PVCS_EFLAGS(%rdx)\n");
    refused(&[wide], "kept");
    let wide = (
        "\tmovl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n",
        "\tmovq\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n",
    );
    refused(&[wide], "kept");
    let sp1 = format!("\tmovq\t%rax, %gs:TSS_SP1\n{EXIT}");
    refused(&[(EXIT, &sp1)], "kept");
    let slot = format!("\tmovq\t%rax, %gs:ENTER_CR3\n{EXIT}");
    refused(&[(EXIT, &slot)], "kept");
    // By an address that a guest has a hand in, however it comes about.
    for address in [
        "%gs:(%rdi)",
        "%gs:0x80(%rdi)",
        "(%rsp,%rdi)",
        "-0x40(%rsp,%rdi,8)",
        "%fs:(%rsp)",
        "%fs:0(%rip)",
        "%gs:(%rsp)",
    ] {
        let load = format!("{ERETU}\tpushq\t%rax\n\tmovb\t{address}, %al\n\tpopq\t%rax\n");
        refused(&[(ERETU, &load)], "memory");
    }
    // The caller's stack.
    let above = format!("\tmovq\t%rax, 0x38(%rsp)\n{EXIT}");
    refused(&[(EXIT, &above)], "memory");
}

#[test]
fn what_the_guest_changes_is_saved_when_it_is_entered_and_restored_when_it_leaves() {
    // The mode.
    let enter = format!("\tpushq\t%gs:SWITCH_FLAGS\n{ENTER}");
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%gs:SWITCH_FLAGS\n\tret\n";
    refused(&[(ENTER, &enter), (LEAVE, leave)], "saved");
    // smod's stack.
    let enter = format!("\tpushq\t%gs:SMOD_RSP\n{ENTER}");
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%gs:SMOD_RSP\n\tret\n";
    refused(&[(ENTER, &enter), (LEAVE, leave)], "saved");
    // GS base.
    let enter = format!("\tswapgs\n\trdgsbase %rax\n\tswapgs\n\tpushq\t%rax\n{ENTER}");
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%rcx\n\tswapgs\n\
                 \twrgsbase %rcx\n\tswapgs\n\tmovl\t$0, %ecx\n\tret\n";
    refused(&[(ENTER, &enter), (LEAVE, leave)], "saved");
    // FS base.
    let enter = format!("\trdfsbase %rax\n\tpushq\t%rax\n{ENTER}");
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%rcx\n\
                 \twrfsbase %rcx\n\tmovl\t$0, %ecx\n\tret\n";
    refused(&[(ENTER, &enter), (LEAVE, leave)], "saved");
}

// Flags in ring 0.

#[test]
fn interrupts_are_let_in() {
    let bad = format!("\tsti\n\tnop\n\tcli\n{EXIT}");
    refused(&[(EXIT, &bad)], "ring-0-flags");
    let bad = (
        "\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tmovq\t%rax, %cr3\n",
        "\tsti\n\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tmovq\t%rax, %cr3\n",
    );
    refused(&[bad], "ring-0-flags");
    let popped = format!("\tpushq\t$0x102\n\tpopfq\n\tpushq\t$2\n\tpopfq\n{EXIT}");
    refused(&[(EXIT, &popped)], "ring-0-flags");
}

#[test]
fn syscall_leaves_flags_of_the_guests() {
    for flag in [RFlags::IF, RFlags::TF] {
        for mut target in
            [target("intel-4level", &[]), Target::image(&Image::new(&Variant::REFERENCE).unwrap())]
        {
            target.setting.sfmask -= flag;
            refuted(&target, "ring-0-flags");
        }
    }
    for flag in [RFlags::DF, RFlags::AC] {
        let mut target = target("intel-4level", &[]);
        target.setting.sfmask -= flag;
        refuted(&target, "sfmask");
    }
}

#[test]
fn the_host_gets_an_io_privilege_level() {
    refused(&[("\tpushq\t$FLAGS_HOST\n", "\tpushq\t$FLAGS_HOST | 0x3000\n")], "exit-flags");
}

// RSP.

#[test]
fn the_guests_rsp_is_loaded_twice() {
    let from = "\tmovq\tIRET_RSP(%rsp), %rsp\n\tsysretq\n";
    let to = "\tmovq\tIRET_RSP(%rsp), %rsp\n\tnop\n\tmovq\t%rsp, %rsp\n\tsysretq\n";
    refused(&[(from, to)], "rsp-adjacent");
}

// Instructions.

#[test]
fn a_push_of_16_bits() {
    let from = "\tpushq\t$USER_DS\n\tpushq\t%gs:TSS_SP2\n";
    let to = "\tpushw\t$USER_DS\n\tpushq\t%gs:TSS_SP2\n";
    assert!(matches!(
        prove(&target("intel-4level", &[(from, to)])),
        Verdict::Unsupported(BadCode::Program(_))
    ));
    let to = "\tpushw\t$0x1234\n\tpopq\t%rcx\n\tpushq\t$USER_DS\n\tpushq\t%gs:TSS_SP2\n";
    assert!(matches!(
        prove(&target("intel-4level", &[(from, to)])),
        Verdict::Unsupported(BadCode::Program(_))
    ));
}

/// AMD's take the prefix for 16 bits, Intel's ignore it.
#[test]
fn a_branch_with_an_operand_size_prefix() {
    for (from, to) in [
        (LEAVE, "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\t.byte\t0x66\n\tret\n"),
        ("\tjmp\t.Lreturn_to_guest\n", "\t.byte 0x66, 0xE9\n\t.long .Lreturn_to_guest - 9f\n9:\n"),
        (
            "\tja\tentry_IRETQ_switcher\n",
            "\t.byte 0x66, 0x0F, 0x87\n\t.long entry_IRETQ_switcher - 9f\n9:\n",
        ),
    ] {
        let mov_ss = "\tmovl\t$0x18, %ecx\n\tmovl\t%ecx, %ss\n";
        let exit = format!("{mov_ss}{EXIT}");
        let amd = target("amd-4level", &[(EXIT, &exit), (from, to)]);
        assert!(
            matches!(prove(&amd), Verdict::Unsupported(BadCode::Program(_))),
            "{to}: {:?}",
            prove(&amd)
        );
    }
}

/// CR3 is read without NOFLUSH.
#[test]
fn cr3_is_compared_with_a_slot() {
    let bad =
        format!("\tmovq\t%cr3, %rax\n\tcmpq\t%gs:HOST_CR3, %rax\n\tje\t1f\n\tud2\n1:\n{ENTER}");
    refuted(&target("intel-4level-pcid", &[(ENTER, &bad)]), "no-trap");
}

#[test]
fn an_indirect_jump_to_anything_under_ibt() {
    let label = ("\n\\name:\n", "\n\\name:\n\tendbr64\n");
    proved(&target("intel-4level-ibt", &[label]));
    let start = format!("\n{EXIT_START}");
    let jump = format!("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n1:{EXIT_START}");
    refuted(&target("intel-4level-ibt", &[label, (&start, &format!("\n{jump}"))]), "endbr");
    let leave =
        "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n\tjmp\t*-8(%rsp)\n\tint3\n";
    let leaves = target("intel-4level-ibt", &[label, (LEAVE, leave)]);
    refuted(&leaves, "endbr");
}

// Two decoders, and what CPUs ignore.

/// What is added to an exit, with a register to spare.
fn exit(code: &str) -> String {
    format!("\tpushq\t%rax\n{code}\tpopq\t%rax\n{EXIT}")
}

#[track_caller]
fn unread(code: &str, is_it: fn(&ProgramError) -> bool) {
    let verdict = prove(&target("intel-4level", &[(EXIT, &exit(code))]));
    match &verdict {
        Verdict::Unsupported(BadCode::Program(error)) if is_it(error) => {}
        other => panic!("{code}: {other:?}"),
    }
}

#[track_caller]
fn exit_proved(code: &str) {
    proved(&target("intel-4level", &[(EXIT, &exit(code))]));
}

#[test]
fn xchg_that_is_pause_to_one_decoder() {
    for bytes in ["0xF3, 0x41, 0x90", "0xF3, 0x49, 0x90", "0xF3, 0x45, 0x90"] {
        let code = format!("\t.byte\t{bytes}\n");
        unread(&code, |error| matches!(error, ProgramError::Disagreement { .. }));
    }
}

#[test]
fn a_prefix_that_means_nothing() {
    for bytes in [
        // SWAPGS twice; MOV RAX, RAX; LFENCE; CLD; WRMSR would be refused for itself.
        "0x66, 0x0F, 0x01, 0xF8, 0x0F, 0x01, 0xF8",
        "0x48, 0x0F, 0x01, 0xF8, 0x0F, 0x01, 0xF8",
        "0x2E, 0x0F, 0x01, 0xF8, 0x0F, 0x01, 0xF8",
        "0x66, 0x48, 0x89, 0xC0",
        "0x4A, 0x89, 0xC0",
        "0x66, 0x66, 0x89, 0xC0",
        "0x36, 0x48, 0x89, 0xC0",
        "0x48, 0x66, 0x89, 0xC0",
        "0x67, 0x48, 0x89, 0xC0",
        "0x3E, 0x48, 0x8B, 0x04, 0x24",
        "0x48, 0xFC",
        "0x65, 0x48, 0x8D, 0x00",
    ] {
        let code = format!("\t.byte\t{bytes}\n");
        unread(&code, |error| matches!(error, ProgramError::Prefix { .. }));
    }
    // What is not modelled, or no instruction, stays so.
    for bytes in ["0xF3, 0x48, 0x89, 0xC0", "0xF2, 0x48, 0x89, 0xC0", "0xF0, 0x48, 0x89, 0xC0"] {
        unread(&format!("\t.byte\t{bytes}\n"), |_| true);
    }
}

#[test]
fn prefixes_that_are_known() {
    exit_proved("\t.byte\t0x66, 0x90\n");
    exit_proved("\t.byte\t0xF3, 0x90\n");
    exit_proved("\t.byte\t0xF3, 0x0F, 0x1E, 0xFA\n");
    exit_proved("\t.byte\t0x66, 0x66, 0x2E, 0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0\n");
    exit_proved("\t.byte\t0x2E, 0xEB, 0x01, 0xCC\n");
    exit_proved("\t.byte\t0x41, 0x90, 0x41, 0x90\n");
}

#[test]
fn lock_where_a_cpu_takes_it() {
    for code in [
        "\tlock addq\t$1, (%rsp)\n\tlock subq $1, (%rsp)\n",
        "\tlock notq\t(%rsp)\n\tlock notq (%rsp)\n",
        "\tlock negl\t(%rsp)\n\tlock negl (%rsp)\n",
        "\tlock btsq\t$2, (%rsp)\n\tlock btrq $2, (%rsp)\n\tmovq %rax, (%rsp)\n",
        "\tlock xchgq\t%rcx, (%rsp)\n\tlock xchgq\t%rcx, (%rsp)\n",
        "\tlock incb\t(%rsp)\n\tlock decb (%rsp)\n",
    ] {
        exit_proved(code);
    }
    let toggle = "\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tmovq\t%rax, %cr3\n";
    proved(&target("intel-4level", &[(toggle, &format!("\tlock\n{toggle}"))]));
    // One bit less is still refuted for what it does.
    let other = toggle.replace("$MODE_BOTH", "$MODE_BOTH + 4");
    refused(&[(toggle, &format!("\tlock\n{other}"))], "switch-flags");
    // To a register, LOCK is #UD.
    for bytes in [
        "0xF0, 0x48, 0x0F, 0xC1, 0xC8",
        "0xF0, 0x48, 0x0F, 0xB1, 0xC8",
        "0xF0, 0x48, 0x01, 0xC0",
        "0xF0, 0x48, 0x03, 0x04, 0x24",
        "0xF0, 0xFC",
    ] {
        unread(&format!("\t.byte\t{bytes}\n"), |_| true);
    }
}

// What a CPU has.

/// An exit with `code`, on a CPU with `features`.
fn on(features: &[&str], code: &str) -> Target {
    let mut target = target("intel-4level", &[(EXIT, &exit(code))]);
    target.setting.features =
        features.iter().map(|name| name.parse::<Features>().unwrap()).collect();
    target
}

#[track_caller]
fn missing(features: &[&str], code: &str, why: &str) {
    match prove(&on(features, code)) {
        Verdict::Refuted(found) => {
            assert_eq!(found.obligation.name, "exists", "{found}");
            assert!(found.to_string().contains(why), "{found}");
        }
        other => panic!("{code}: {other:?}"),
    }
}

fn wrmsr(msr: &str, low: u64, high: u64) -> String {
    format!("\tmovl\t${low}, %eax\n\tmovl ${high}, %edx\n\tmovl ${msr}, %ecx\n\twrmsr\n")
}

#[test]
fn instructions_that_only_some_cpus_have() {
    for code in ["\tclac\n", "\tstac\n\tclac\n"] {
        missing(&[], code, "needs a CPU with smap");
        proved(&on(&["smap"], code));
    }
    let read = "\txorl\t%ecx, %ecx\n\trdpkru\n";
    missing(&[], read, "`rdpkru` needs CR4.PKE");
}

#[test]
fn reserved_bits_of_msrs() {
    let ibpb = |value| wrmsr("0x49", value, 0);
    missing(&[], &ibpb(1), "needs a CPU with ibpb, sbpb");
    missing(&["ibpb"], &ibpb(0x81), "no bits in PRED_CMD but 0x1: ");
    missing(&["sbpb"], &ibpb(1), "no bits in PRED_CMD but 0x80: ");
    missing(&["ibpb"], &wrmsr("0x49", 1, 1), "PRED_CMD");
    missing(&["ibpb"], "\tmovl\t$0x49, %ecx\n\trdmsr\n", "PRED_CMD cannot");
    proved(&on(&["ibpb"], &ibpb(1)));
    proved(&on(&["ibpb", "sbpb"], &ibpb(0x81)));
    missing(&[], &wrmsr("0x48", 1, 0), "needs a CPU with ibrs");
    missing(&["ibrs"], &wrmsr("0x48", 5, 0), "no bits in SPEC_CTRL but 0x1: ");
    missing(&["ibrs", "ssbd"], &wrmsr("0x48", 0x15, 0), "no bits in SPEC_CTRL but 0x5: ");
    missing(&["ibrs"], &wrmsr("0x48", 1, 1), "SPEC_CTRL");
    refuted(&on(&["ibrs"], &wrmsr("0x48", 1, 0)), "spec-ctrl");
    // Nobody may write these at all.
    refuted(&on(&[], &wrmsr("0xC0000084", 0x47700, 1)), "kept");
    refuted(&on(&[], &wrmsr("0xC0000082", 0, 0x8000)), "kept");
    missing(&[], &wrmsr("0xC0000100", 0, 0x8000), "a canonical address in FS base");
}

/// What the CPU has held is legal there, whatever it is, and less and more of what is known is,
/// too.
#[test]
fn an_msr_is_borrowed_and_given_back() {
    let back = "\tmovl\t%r8d, %eax\n\twrmsr\n";
    let read = "\tmovl\t$0x48, %ecx\n\trdmsr\n\tmovl\t%eax, %r8d\n";
    for change in ["", "\torl\t$1, %eax\n\twrmsr\n", "\tandl\t$-3, %eax\n\twrmsr\n"] {
        proved(&on(&["ibrs"], &format!("{read}{change}{back}")));
    }
    let more = format!("{read}\torl\t$4, %eax\n\twrmsr\n{back}");
    missing(&["ibrs"], &more, "reserved without one of");
    proved(&on(&["ibrs", "ssbd"], &more));
}

#[test]
fn fs_base_is_borrowed_and_given_back() {
    let own = "\trdgsbase %rdx\n\twrfsbase %rdx\n";
    let field = "\trdgsbase %rdx\n\taddq $SWITCH_FLAGS, %rdx\n\twrfsbase %rdx\n";
    for borrow in [own, field] {
        exit_proved(&format!("\trdfsbase %rcx\n{borrow}\twrfsbase %rcx\n"));
        exit_proved(&format!(
            "\trdfsbase %rcx\n\tpushq %rcx\n{borrow}\tpopq %rcx\n\twrfsbase %rcx\n"
        ));
        // As wide as any CPU has it.
        let wide = "\tshlq $7, %rcx\n\tsarq $7, %rcx\n";
        exit_proved(&format!("\trdfsbase %rcx\n{borrow}{wide}\twrfsbase %rcx\n"));
        let kept = format!("\trdfsbase %rcx\n{borrow}");
        refused(&[(EXIT, &exit(&kept))], "unchanged");
        // A CPU with LA57 has wider ones.
        let cut = "\tshlq $16, %rcx\n\tsarq $16, %rcx\n";
        let cut = format!("\trdfsbase %rcx\n{borrow}{cut}\twrfsbase %rcx\n");
        refused(&[(EXIT, &exit(&cut))], "unchanged");
    }
    exit_proved("\tmovl $0xC0000100, %ecx\n\trdmsr\n\twrmsr\n");
    let guests = "\trdfsbase %rcx\n\twrfsbase %rdi\n\twrfsbase %rcx\n";
    missing(&[], guests, "a canonical address in FS base");
}

// Loops.

#[test]
fn a_loop_with_a_bound_and_one_without() {
    exit_proved("\tmovl\t$2000, %ecx\n1:\tdecl\t%ecx\n\tjnz\t1b\n");
    exit_proved("\tmovl\t$16, %ecx\n1:\tpushq\t$0\n\tpopq\t%rdx\n\tdecl\t%ecx\n\tjnz\t1b\n");
    // The state's own bound is one, too, if it is small.
    exit_proved("\tmovl\t%edi, %ecx\n\tandl $7, %ecx\n1:\tdecl\t%ecx\n\tjns\t1b\n");
    let verdict = |code| prove(&target("intel-4level", &[(EXIT, &exit(code))]));
    for code in ["1:\tjmp\t1b\n", "\tmovl $6000, %ecx\n1:\tdecl\t%ecx\n\tjnz\t1b\n"] {
        let verdict = verdict(code);
        assert!(
            matches!(verdict, Verdict::Unsupported(BadCode::Loop { .. })),
            "{code}: {verdict:?}"
        );
    }
    for code in ["1:\tdecq\t%rdi\n\tjnz\t1b\n", "1:\tincl\t%eax\n\tcmpl %eax, %ecx\n\tjne\t1b\n"] {
        let verdict = verdict(code);
        assert!(
            matches!(verdict, Verdict::Unsupported(BadCode::Open { .. })),
            "{code}: {verdict:?}"
        );
    }
}

// Addresses that the host is not told.

#[test]
fn an_iretq_that_the_host_does_not_know() {
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let mut unknown = Target::image(&image);
    unknown.iretq = None;
    refuted(&unknown, "iretq-label");
    // Without event entries, nobody is judged who looks for it.
    let mut by_hand = target("intel-4level", &[]);
    by_hand.iretq = None;
    assert!(matches!(Prover::default().prove(&by_hand), Verdict::Proved(_)));
    assert!(by_hand.not_judged().iter().any(|it| it.area == Area::IretqFault));
}

// Mitigations that are there and have no effect (hazards.md, rows 41 to 46).

/// What lies around an instruction is asked again of code that looks the same: where a call goes on
/// after its trap, and whether a branch stays in its line.
#[test]
fn what_lies_around_an_instruction_is_not_shared() {
    let fill = |behind: &str| {
        let fill = format!(
            "\tmovl\t$32, %ecx\n21:\tcall\t22f\n\tint3\n{behind}22:\taddq\t$8, %rsp\n\
             \tdecl\t%ecx\n\tjnz\t21b\n"
        );
        mitigated(RSB, &[(FILL, &fill)])
    };
    let history = |between: &str| {
        let history = format!(
            "\t.p2align\t6, 0x90\n\tmovl\t$40, %ecx\n1:\tjmp\t2f\n\tnop\n{between}\
             2:\tdecl\t%ecx\n\tjnz\t1b\n"
        );
        mitigated(BHB, &[(HISTORY, &history)])
    };
    for (right, wrong, obligation) in [
        (fill(""), fill("\tnop\n"), "rsb-filled"),
        (fill(""), fill("\tjmp\t*%r15\n"), "rsb-filled"),
        // To the same place in the next line.
        (history(""), history("\t.skip\t64, 0xCC\n"), "bhb-cleared"),
    ] {
        refuted(&wrong, obligation);
        let shared = Arc::<Shared>::default();
        proved_with(&SharingProver::new(&shared), &right);
        match SharingProver::new(&shared).prove(&wrong) {
            Verdict::Refuted(found) => assert_eq!(found.obligation.name, obligation),
            other => panic!("{obligation}: {other:?}"),
        }
    }
}

fn proved_with(prover: &impl Prove, target: &Target) {
    assert!(matches!(prover.prove(target), Verdict::Proved(_)));
}

#[test]
fn mitigations_by_hand_are_proved() {
    for parts in [IBRS, RSB, BHB, VERW, ALL, Parts::default()] {
        proved(&mitigated(parts, &[]));
    }
}

#[test]
fn an_indirect_branch_before_it_is_safe() {
    let early = format!("{NOT_DONE}{INDIRECT}");
    for parts in [IBRS, BHB, ALL] {
        refuted(&mitigated(parts, &[(NOT_DONE, &early)]), "indirect-first");
    }
    // A call.
    let call =
        early.replace("jmp\t*%rcx\n\tint3\n52:\n", "call\t*%rcx\n\tint3\n52:\taddq\t$8, %rsp\n");
    refuted(&mitigated(ALL, &[(NOT_DONE, &call)]), "indirect-first");
    // Through memory.
    let memory = early.replace("jmp\t*%rcx\n", "pushq\t%rcx\n\taddq\t$8, %rsp\n\tjmp\t*-8(%rsp)\n");
    refuted(&mitigated(ALL, &[(NOT_DONE, &memory)]), "indirect-first");
    // On the entry itself, before anything is decided.
    let entry = "\tmovq\t%gs:TSS_SP0, %rsp\n\n\ttestq\t$NO_DS_TO_SMOD";
    let at_once = format!(
        "\tmovq\t%gs:TSS_SP0, %rsp\n\tpushq\t%rcx\n{INDIRECT}\tpopq\t%rcx\n\ttestq\t$NO_DS_TO_SMOD"
    );
    for parts in [IBRS, BHB, ALL] {
        refuted(&mitigated(parts, &[(entry, &at_once)]), "indirect-first");
    }
    // On a direct switch.
    let switch = "\tmovq\t%gs:SMOD_ENTRY, %rcx\n";
    refuted(&mitigated(IBRS, &[(switch, &format!("{INDIRECT}{switch}"))]), "indirect-first");
    // The guest's SPEC_CTRL is not what the host's code was restricted by.
    let written = "\twrmsr\n\n\tmovq\t%gs:TSS_SP0";
    let guests = format!("\twrmsr\n{INDIRECT}\n\tmovq\t%gs:TSS_SP0");
    refuted(&mitigated(IBRS, &[(written, &guests)]), "indirect-first");
    proved(&mitigated(IBRS, &[(ENTER, &format!("{INDIRECT}{ENTER}"))]));
    // Afterwards it is as good as any of the host's; without these mitigations, everywhere.
    let late = format!("{INDIRECT}{DONE}");
    proved(&mitigated(IBRS, &[(DONE, &late)]));
    for parts in [Parts::default(), VERW] {
        proved(&mitigated(parts, &[(NOT_DONE, &early)]));
    }
}

#[test]
fn buffers_that_are_not_cleared_or_filled_again() {
    let with = |code: &str| mitigated(VERW, &[(CLEAR_BUFFERS, code)]);
    refuted(&with("\tpushq\t%rax\n\tmovl\t$0x18, %eax\n\tverw\t%ax\n\tpopq\t%rax\n"), "verw-last");
    // A value of the host's, loaded, stored or read from elsewhere; and one that VERW comes too
    // early for.
    let again = |code: &str| with(&format!("{CLEAR_BUFFERS}{code}"));
    refuted(&again("\tpushq\t%rsp\n\taddq\t$8, %rsp\n"), "verw-last");
    refuted(&again("\tpushq\t%rax\n\tmovq\t%cr3, %rax\n\tpopq\t%rax\n"), "verw-last");
    refuted(
        &again("\tswapgs\n\tpushq\t%rax\n\tmovq\t%gs:HOST_RSP, %rax\n\tpopq\t%rax\n\tswapgs\n"),
        "verw-last",
    );
    refuted(
        &again("\tswapgs\n\tpushq\t%rax\n\trdgsbase %rax\n\tpopq\t%rax\n\tswapgs\n"),
        "verw-last",
    );
    refuted(
        &with("\tpushq\t%rax\n\tmovq\t%rsp, %rax\n\tverw\tIRET_SS + 8(%rsp)\n\tpopq\t%rax\n"),
        "verw-last",
    );
    // A VERW of a register clears nothing, and reads a descriptor.
    refuted(&again("\tverw\t%sp\n"), "descriptors");
    refuted(&again("\tverw\t%ax\n"), "verw-last");
    // Of the guest's own registers, anything may be.
    proved(&again("\tpushq\t%rax\n\tpopq\t%rax\n"));
}

#[test]
fn what_does_not_fence() {
    for (parts, obligation) in [(RSB, "rsb-filled"), (BHB, "bhb-cleared")] {
        for other in ["mfence", "sfence", "pause", "nop"] {
            let other = format!("\t{other}\n");
            refuted(&mitigated(parts, &[(FENCE, &other)]), obligation);
        }
        // A WRMSR need not serialise.
        let wrmsr = "\tmovl\t$0xC0000100, %ecx\n\trdmsr\n\twrmsr\n";
        refuted(&mitigated(parts, &[(FENCE, wrmsr)]), obligation);
        // MOV to CR3 does.
        proved(&mitigated(parts, &[(FENCE, "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n")]));
    }
    let late = format!("{FILL}{WRITE_SPEC_CTRL}");
    let parts = Parts { ibrs: true, ..RSB };
    refuted(&mitigated(parts, &[(WRITE_SPEC_CTRL, ""), (FILL, &late), (FENCE, "")]), "rsb-filled");
    // Row 28.
    let entry = "\nroutine entry_SYSCALL_64_switcher\n\tswapgs\n";
    for fence in ["mfence", "sfence", "pause"] {
        let either = format!(
            "\nroutine entry_SYSCALL_64_switcher\n\ttestq\t%rcx, %rcx\n\tjz\t1f\n\
             \tswapgs\n\tjmp\t2f\n1:\tswapgs\n2:\n\t{fence}\n"
        );
        refused(&[(entry, &either)], "swapgs-fenced");
    }
}

#[test]
fn a_return_stack_that_is_used_up() {
    // A RET that no call of its own belongs to, once or for each entry.
    let pop = "\tleaq\t1f(%rip), %rcx\n\tpushq\t%rcx\n\tret\n\tint3\n1:\n";
    for times in [1, 2, 32] {
        let used = format!("{FENCE}{}", pop.repeat(times));
        refuted(&mitigated(RSB, &[(FENCE, &used)]), "rsb-filled");
        let used = format!("{}{FENCE}", pop.repeat(times));
        refuted(&mitigated(RSB, &[(FENCE, &used)]), "rsb-filled");
    }
    // Calls that are returned from fill nothing, and take nothing away.
    let own = "\tcall\t61f\n\tint3\n\tjmp\t62f\n61:\taddq\t$1, (%rsp)\n\tret\n\tint3\n62:\n";
    let pair = "\tcall\t61f\n\tjmp\t62f\n61:\tret\n\tint3\n62:\n";
    proved(&mitigated(RSB, &[(FENCE, &format!("{FENCE}{pair}"))]));
    assert!(!matches!(
        prove(&mitigated(RSB, &[(FENCE, &format!("{FENCE}{own}"))])),
        Verdict::Proved(_)
    ));
    let returned = "\tmovl\t$32, %ecx\n21:\tcall\t22f\n\tjmp\t23f\n22:\tret\n\tint3\n23:\tdecl\t%ecx\n\tjnz\t21b\n";
    refuted(&mitigated(RSB, &[(FILL, returned)]), "rsb-filled");
    // To somewhere else than right after the trap: what is predicted to return goes on there.
    let beside = FILL.replace("\tint3\n22:", "\tint3\n\tnop\n22:");
    refuted(&mitigated(RSB, &[(FILL, &beside)]), "rsb-filled");
    let gadget = FILL.replace("\tint3\n22:", "22:");
    refuted(&mitigated(RSB, &[(FILL, &gadget)]), "rsb-filled");
    let less = FILL.replace("$16, %ecx", "$15, %ecx");
    refuted(&mitigated(RSB, &[(FILL, &less)]), "rsb-filled");
    // On another call, which is not returned from.
    let over = format!("{FENCE}\tcall\t71f\n\tnop\n71:\taddq\t$8, %rsp\n");
    refuted(&mitigated(RSB, &[(FENCE, &over)]), "rsb-filled");
}

#[test]
fn a_history_that_is_the_guests_again() {
    let behind = |code: &str| mitigated(BHB, &[(FENCE, &format!("{FENCE}{code}"))]);
    for condition in [
        "\ttestq\t%r15, %r15\n",
        // Which mode it is in, it chooses.
        "\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n",
        "\tcmpq\t$0, %gs:SMOD_GSBASE\n",
        "\tcmpl\t$0, (%rbp)\n",
    ] {
        refuted(&behind(&format!("{condition}\tjz\t1f\n1:\n")), "bhb-cleared");
        // Between the branches and their fence.
        let before = format!("{condition}\tjz\t1f\n1:\n{FENCE}");
        refuted(&mitigated(BHB, &[(FENCE, &before)]), "bhb-cleared");
    }
    refuted(&behind(INDIRECT), "bhb-cleared");
    // What the host says, a guest has no hand in; nor in what is always taken.
    proved(&behind("\tmovq\t%gs:HOST_CR3, %rcx\n\ttestq\t%rcx, %rcx\n\tjz\t1f\n1:\n"));
    proved(&behind("\tmovl\t$3, %ecx\n1:\tdecl\t%ecx\n\tjnz\t1b\n"));
}

#[test]
fn a_history_sequence_elsewhere_in_its_lines() {
    let with =
        |changes: &[Change<'_>]| mitigated(BHB, &[(HISTORY, &gas::replaced(HISTORY, changes))]);
    // A jump of the innermost loop leads to another line, or comes from one.
    let line = "\t.p2align\t6, 0xCC\n\t.skip\t32 - 18, 0xCC\n32:";
    let next = "\t.p2align\t6, 0xCC\n\t.skip\t32, 0x90\n34:";
    let split = with(&[(line, "32:"), ("\tnop\n34:", next)]);
    refuted(&split, "bhb-cleared");
    // Nor is the proof of the one taken for the other's: the same is executed.
    let shared = std::sync::Arc::default();
    let right = SharingProver::new(&shared).prove(&mitigated(BHB, &[]));
    assert!(matches!(right, Verdict::Proved(_)), "{right:?}");
    match SharingProver::new(&shared).prove(&split) {
        Verdict::Refuted(found) => assert_eq!(found.obligation.name, "bhb-cleared", "{found}"),
        other => panic!("{other:?}"),
    }
    let back =
        "\tsubl\t$1, %eax\n\tjmp\t8f\n\t.p2align\t6, 0xCC\n8:\tjnz\t33b\n\t.skip\t26, 0x90\n";
    let split = with(&[("\tsubl\t$1, %eax\n\tjnz\t33b\n", back)]);
    refuted(&split, "bhb-cleared");
    // Short of a round, of a branch.
    refuted(&with(&[("movl\t$5, %ecx", "movl\t$4, %ecx")]), "bhb-cleared");
    refuted(&with(&[("movl\t$5, %eax", "movl\t$4, %eax")]), "bhb-cleared");
}

#[test]
fn spec_ctrl_is_the_hosts_and_was_written() {
    // Undone before the RET.
    let undone = format!(
        "{WRITE_SPEC_CTRL}{}",
        WRITE_SPEC_CTRL.replace("HOST_SPEC_CTRL", "GUEST_SPEC_CTRL")
    );
    refuted(&mitigated(IBRS, &[(WRITE_SPEC_CTRL, &undone)]), "ibrs-first");
    // Left as it is if it is the host's already: a CPU may have to be told again.
    let spared = format!(
        "\tmovl\t$0x48, %ecx\n\trdmsr\n\tshlq\t$32, %rdx\n\torq\t%rdx, %rax\n\
         \tmovl\t%gs:HOST_SPEC_CTRL, %ecx\n\tcmpq\t%rcx, %rax\n\tje\t81f\n{WRITE_SPEC_CTRL}81:\n"
    );
    refuted(&mitigated(IBRS, &[(WRITE_SPEC_CTRL, &spared)]), "ibrs-first");
}

#[test]
fn nothing_stops_what_goes_straight_on() {
    let traps = [
        ("\tpopq\t%rsp\n\tsysretq\n\tud2\n", "\tpopq\t%rsp\n\tsysretq\n"),
        ("\tsysretl\n\tud2\n", "\tsysretl\n\tnop\n"),
        ("\tiretq\n\tud2\n", "\tiretq\n\tnop\n"),
        ("\tret\n\tud2\n", "\tret\n\tnop\n"),
        // Neither stops speculation.
        ("\tret\n\tud2\n", "\tret\n\thlt\n"),
        ("\tret\n\tud2\n", "\tret\n\tpause\n"),
        // Behind the end of the code, nobody knows.
        ("\tsysretl\n\tud2\n", "\tsysretl\n"),
    ];
    for (from, to) in traps {
        refused(&[(from, to)], "trapped");
    }
    let jump = format!("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n1:{EXIT}");
    refused(&[(EXIT, &jump)], "trapped");
    let trapped = format!("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n1:{EXIT}");
    proved(&target("intel-4level", &[(EXIT, &trapped)]));
}

#[test]
fn a_return_in_the_lower_half_of_its_line() {
    let lower = LAST_RET.replace("\t.skip\t32, 0xCC\n", "");
    refuted(&mitigated(BHB, &[(LAST_RET, &lower)]), "upper-half");
    // Its last byte decides.
    let long =
        |at: u32| LAST_RET.replace("32, 0xCC\n41:\tret\n", &format!("{at}, 0xCC\n41:\tret\t$0\n"));
    refuted(&mitigated(BHB, &[(LAST_RET, &long(62))]), "upper-half");
    proved(&mitigated(BHB, &[(LAST_RET, &long(30))]));
    for (from, to) in [(".skip\t32 - 5, 0xCC\n", ""), ("\t.skip\t32 - 18, 0xCC\n", "")] {
        let history = gas::replaced(HISTORY, &[(from, to)]);
        refuted(&mitigated(BHB, &[(HISTORY, &history)]), "upper-half");
    }
    // An own RET where no guest is left yet.
    let own =
        format!("\tcall\t61f\n\tjmp\t62f\n\t.p2align\t6, 0xCC\n61:\tret\n\tint3\n62:\n{ENTER}");
    refuted(&mitigated(BHB, &[(ENTER, &own)]), "upper-half");
    // The same code, half a line further on.
    let right = mitigated(BHB, &[]);
    let pieces = right.program.pieces().map(|(start, bytes)| (start + 32, bytes.to_vec()));
    let pieces: Vec<_> = pieces.collect();
    let by = |at: u64| at + 32;
    let mut moved = right.clone();
    moved.program = switcher_model::Program::of_pieces(right.program.base(), pieces);
    moved.enter_guest = by(right.enter_guest);
    moved.return_from_guest = by(right.return_from_guest);
    moved.syscall_64 = by(right.syscall_64);
    moved.syscall_compat = right.syscall_compat.map(by);
    moved.iretq = right.iretq.map(by);
    refuted(&moved, "upper-half");
    // CPUs without the fault have no halves.
    let setting = Setting::from(&Variant::REFERENCE);
    proved(&mitigated(Parts::default(), &[(LAST_RET, &lower)]).with_setting(setting));
}

// Already refused when they were written.

#[test]
fn halves_and_widths() {
    refused(
        &[("\tmovl\t$REASON_SYSCALL, 4(%rsp)\n", "\tmovl\t$REASON_SYSCALL, (%rsp)\n")],
        "exit-frame",
    );
    refused(&[("\tpushq\t$USER_CS\n", "\tpushq\t$USER_CS - 16\n")], "exit-frame");
    refused(&[("\tcmpq\t%gs:RETU_RIP, %rcx\n", "\tcmpl\t%gs:RETU_RIP, %ecx\n")], "kind");
    refused(
        &[(
            "\tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n",
            "\tcmpw\t$USER_CS, PVCS_USER_CS_SS(%rdx)\n",
        )],
        "kind",
    );
    refused(
        &[("\tcmpq\t%r11, IRET_FLAGS(%rsp)\n", "\tcmpl\t%r11d, IRET_FLAGS(%rsp)\n")],
        "registers",
    );
}

#[test]
fn the_return_address_is_taken_from_the_guest() {
    let leave =
        "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n\tjmp\t*8(%rax)\n\tint3\n";
    refused(&[(LEAVE, leave)], "exit-caller");
}

#[test]
fn a_frame_in_the_pvcs_is_not_an_iret_frame() {
    let to = "\tpopq\t%rcx\n\tmovq\t%rdx, %rsp\n\tiretq\n\tud2\n";
    refused(&[(ERETU_END, to)], "iretq-label");
}
