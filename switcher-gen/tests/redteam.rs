//! Attacks on the prover: switchers that are wrong in ways that were once, or could be, overlooked.
//! Each must be refused, for the reason given.
//!
//! tests/mutants.rs breaks right code a little; what is here was written to deceive.

mod gas;

use switcher_gen::arch::RFlags;
use switcher_gen::machine::{Features, ProgramError};
use switcher_gen::prove::{BadCode, Prover, Setting, Target, Verdict};
use switcher_gen::{Image, Variant, elf};

type Change<'a> = (&'a str, &'a str);

fn target(variant: &str, changes: &[Change<'_>]) -> Target {
    let source = gas::replaced(gas::SWITCHER, changes);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    let variant: Variant = variant.parse().unwrap();
    Target::foreign(&foreign, Setting::from(&variant)).unwrap()
}

fn prove(target: &Target) -> Result<Verdict, BadCode> {
    Prover::default().prove(target)
}

#[track_caller]
fn refuted(target: &Target, obligation: &str) {
    match prove(target) {
        Ok(Verdict::Refuted(found)) => {
            assert_eq!(found.obligation.name, obligation, "{found}");
        }
        Ok(Verdict::Proved(_)) => panic!("proved"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(changes: &[Change<'_>], obligation: &str) {
    refuted(&target("intel-4level", changes), obligation);
}

#[track_caller]
fn proved(target: &Target) {
    match prove(target) {
        Ok(Verdict::Proved(_)) => {}
        Ok(Verdict::Refuted(found)) => panic!("{found}"),
        other => panic!("{other:?}"),
    }
}

/// In the ERETU, once the selectors have been found to be the usual ones.
const ERETU: &str =
    "\t/* smod -> umod: ERETU. No way back from here, so RCX and R11 are free. */\n";
/// In the ERETU, behind everything.
const ERETU_END: &str =
    "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
const ERETU_BASE: &str = "\tmovq\tPVCS_USER_GSBASE(%rdx), %rcx\n\tshlq\t$63 - SIGN_BIT, %rcx\n\
                          \tsarq\t$63 - SIGN_BIT, %rcx\n\twrgsbase %rcx\n";
const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
const EXIT_START: &str = "\tmovq\t%rsp, %rax\n\tmovq\t%gs:HOST_CR3, %rcx\n";
const ENTER: &str = "\tpush_all r15, r14, r13, r12, rbp, rbx\n\tmovq\t%rsp, %gs:HOST_RSP\n";
const LEAVE: &str = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n";

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
    refused(&[(ERETU, &bad)], "unchanged");
}

#[test]
fn a_root_of_the_guests_in_the_slot_if_the_pvcs_changed() {
    let bad =
        format!("{ERETU}{}", flipped("\tmovq\tPVCS_RCX(%rdx), %rcx\n\tmovq\t%rcx, %gs:HOST_CR3\n"));
    refused(&[(ERETU, &bad)], "tss-extra");
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
    refused(&[(ERETU, &bad)], "pvcs");
}

#[test]
fn a_store_behind_the_pvcs_fields_if_the_pvcs_changed() {
    let bad = format!("{ERETU}{}", flipped("\tmovq\t%rsp, 0x20(%rdx)\n"));
    refused(&[(ERETU, &bad)], "unchanged");
}

#[test]
fn a_32_bit_return_with_flags_of_the_guests_if_the_pvcs_changed() {
    let bad = "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\
               \tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tpopq\t%rdx\n\tje\t1f\n\
               \tmovq\tIRET_RSP(%rsp), %rsp\n\tsysretl\n1:\n";
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
    for msr in ["0xC0000081", "0xC0000082", "0xC0000083", "0xC0000084"] {
        let bad = format!(
            "\tpushq\t%rax\n\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\tmovl\t${msr}, %ecx\n\twrmsr\n\tpopq\t%rax\n{EXIT}"
        );
        refused(&[(EXIT, &bad)], "unchanged");
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
    refused(&[wide], "pvcs");
    let wide = (
        "\tmovl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n",
        "\tmovq\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n",
    );
    refused(&[wide], "unchanged");
    let sp1 = format!("\tmovq\t%rax, %gs:GS_TSS + 0x0C\n{EXIT}");
    refused(&[(EXIT, &sp1)], "unchanged");
    let slot = format!("\tmovq\t%rax, %gs:ENTER_CR3\n{EXIT}");
    refused(&[(EXIT, &slot)], "tss-extra");
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
    assert!(matches!(prove(&target("intel-4level", &[(from, to)])), Err(BadCode::Program(_))));
    let to = "\tpushw\t$0x1234\n\tpopq\t%rcx\n\tpushq\t$USER_DS\n\tpushq\t%gs:TSS_SP2\n";
    assert!(matches!(prove(&target("intel-4level", &[(from, to)])), Err(BadCode::Program(_))));
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
        assert!(matches!(prove(&amd), Err(BadCode::Program(_))), "{to}: {:?}", prove(&amd));
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
    let jump = format!("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n1:{EXIT_START}");
    refuted(&target("intel-4level-ibt", &[label, (&start, &format!("\n{jump}"))]), "endbr");
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n\tjmp\t*-8(%rsp)\n";
    let leaves = target("intel-4level-ibt", &[label, (LEAVE, leave)]);
    // On numbers, such a jump is one to elsewhere: there is no counterexample, but no proof either.
    assert!(matches!(prove(&leaves), Ok(Verdict::Unknown(_))));
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
        Err(BadCode::Program(error)) if is_it(error) => {}
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
    // XADD and CMPXCHG are not modelled; to a register, LOCK is #UD.
    for bytes in [
        "0xF0, 0x48, 0x0F, 0xC1, 0x04, 0x24",
        "0xF0, 0x48, 0x0F, 0xB1, 0x04, 0x24",
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
        Ok(Verdict::Refuted(found)) => {
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
    missing(&[], &wrmsr("0xC0000084", 0x47700, 1), "no bits in SFMASK but 0xffffffff");
    missing(&[], &wrmsr("0xC0000082", 0, 0x8000), "a canonical address in LSTAR");
    missing(&[], &wrmsr("0xC0000100", 0, 0x8000), "a canonical address in FS base");
}

/// What the CPU has held is legal there, whatever it is, and less and more of what is known is, too.
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
    exit_proved("\tmovl\t(%rsp), %ecx\n\tandl $7, %ecx\n1:\tdecl\t%ecx\n\tjns\t1b\n");
    let verdict = |code| prove(&target("intel-4level", &[(EXIT, &exit(code))]));
    for code in ["1:\tjmp\t1b\n", "\tmovl $6000, %ecx\n1:\tdecl\t%ecx\n\tjnz\t1b\n"] {
        let verdict = verdict(code);
        assert!(matches!(verdict, Err(BadCode::Loop { .. })), "{code}: {verdict:?}");
    }
    for code in ["1:\tdecq\t%rdi\n\tjnz\t1b\n", "1:\tincl\t%eax\n\tcmpl %eax, %ecx\n\tjne\t1b\n"] {
        let verdict = verdict(code);
        assert!(matches!(verdict, Err(BadCode::Open { .. })), "{code}: {verdict:?}");
    }
}

// Addresses that the host is not told.

#[test]
fn an_iretq_that_the_host_does_not_know() {
    let mut unknown = target("intel-4level", &[]);
    unknown.iretq = None;
    refuted(&unknown, "iretq-label");
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
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n\tjmp\t*8(%rax)\n";
    // On numbers, such a jump is one to elsewhere: there is no counterexample, but no proof either.
    let verdict = prove(&target("intel-4level", &[(LEAVE, leave)]));
    assert!(matches!(verdict, Ok(Verdict::Unknown(_))), "{verdict:?}");
}

#[test]
fn a_frame_in_the_pvcs_is_not_an_iret_frame() {
    let to = "\tpopq\t%rcx\n\tmovq\t%rdx, %rsp\n\tiretq\n";
    refused(&[(ERETU_END, to)], "iretq-label");
}
