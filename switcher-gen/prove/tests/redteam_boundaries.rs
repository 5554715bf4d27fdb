//! Attacks on the prover by what happens on the way: a routine whose end is right, and which an
//! NMI, a machine check or another CPU of the guest's would catch in between (spec/hazards.md, rows
//! 34 to 37); and code that is right at one address only (row 50). Each must be refused for its
//! reason.

mod attack;
mod gas;

use attack::{PLACES, inserted, proved, refuted, target};
use switcher_gen::Variant;
use switcher_gen::arch::Msr;
use switcher_gen::layout::{Offset, Pvcs, Tss};
use switcher_prove::elf;
use switcher_prove::{Area, Setting, Target};

/// A field of the TSS, as the hand-written switcher's operand.
fn tss<T>(field: Offset<Tss, T>) -> String {
    format!("GS_TSS + {:#x}", field.bytes())
}

/// Fields that event entries, the CPU or the next run of the guest rely on.
fn fields() -> Vec<String> {
    let stacks = [Tss::sp0, Tss::sp1].map(tss).into_iter();
    let ists = [Tss::ist1, Tss::ist2, Tss::ist3, Tss::ist4, Tss::ist5, Tss::ist6, Tss::ist7];
    // With what is reserved in front of it: the store has eight bytes.
    let io_map = format!("GS_TSS + {:#x}", Tss::iomap_base.bytes() - 6);
    let named = [
        "HOST_CR3",
        "ENTER_CR3",
        "SMOD_CR3",
        "UMOD_CR3",
        "PVCS",
        "RETU_RIP",
        "SMOD_ENTRY",
        "SMOD_GSBASE",
    ];
    stacks
        .chain(ists.map(tss))
        .chain([io_map])
        .chain(named.map(str::to_owned))
        .chain(["HOST_SPEC_CTRL".to_owned()])
        .collect()
}

#[test]
fn a_field_is_wrong_for_three_instructions() {
    for place in &PLACES {
        for field in fields() {
            let code = format!(
                "\tpushq\t%rax\n\tmovq\t%gs:{field}, %rax\n\tmovq\t$0, %gs:{field}\n\tnop\n\
                 \tmovq\t%rax, %gs:{field}\n\tpopq\t%rax\n"
            );
            refuted(
                &format!("{field}, {}", place.name),
                &inserted("intel-4level", place, &code),
                "kept",
            );
        }
    }
}

/// Even what does not change it: nobody has a reason to.
#[test]
fn a_field_is_written_with_what_it_holds() {
    for place in &PLACES {
        let code =
            "\tpushq\t%rax\n\tmovq\t%gs:HOST_CR3, %rax\n\tmovq\t%rax, %gs:HOST_CR3\n\tpopq\t%rax\n";
        refuted(place.name, &inserted("intel-4level", place, code), "kept");
        let code = format!("\torq\t$0, %gs:{}\n", tss(Tss::ist2));
        refuted(place.name, &inserted("intel-4level", place, &code), "kept");
        let code = format!("\txchgb\t%al, %gs:{}\n", tss(Tss::ist1)).repeat(2);
        refuted(place.name, &inserted("intel-4level", place, &code), "kept");
    }
}

/// The guest's own page has more than the fields that a switch is about.
#[test]
fn the_guests_page_is_used_as_scratch() {
    let reserved = Pvcs::cr2.bytes() + size_of::<u64>();
    let last = Pvcs::user_cs.bytes() - size_of::<u64>();
    let after = Pvcs::user_gsbase.bytes() - size_of::<u64>();
    let places = [Pvcs::event_flags.bytes(), Pvcs::event_errcode.bytes(), Pvcs::cr2.bytes()];
    for at in places.into_iter().chain([reserved + 8, after, last]) {
        let code =
            format!("\tmovq\t{at}(%rdx), %rax\n\tmovq\t$0, {at}(%rdx)\n\tmovq\t%rax, {at}(%rdx)\n");
        refuted(&format!("{at:#x}"), &inserted("intel-4level", &PLACES[1], &code), "kept");
    }
}

/// What lies beside a field is no part of it, however narrow: the error code of the PVCS of 2026,
/// PKRU.
#[test]
fn what_lies_beside_a_field_is_scratch_for_an_instruction() {
    let after = Pvcs::user_ss.bytes() + size_of::<u16>();
    for (at, size, register) in [
        (after, "w", "ax"),
        (after + 1, "b", "al"),
        (Pvcs::pkru.bytes(), "l", "eax"),
        (Pvcs::user_cs.bytes() - 1, "b", "al"),
    ] {
        let code = format!(
            "\tmov{size}\t{at}(%rdx), %{register}\n\tmov{size}\t$0, {at}(%rdx)\n\
             \tmov{size}\t%{register}, {at}(%rdx)\n"
        );
        refuted(&format!("{at:#x}"), &inserted("intel-4level", &PLACES[1], &code), "kept");
    }
}

#[test]
fn an_msr_is_wrong_for_an_instruction() {
    for msr in [Msr::Star, Msr::Lstar, Msr::Cstar, Msr::Sfmask].map(Msr::address) {
        for place in &PLACES {
            let code = format!(
                "\tpush_all rax, rdx, rcx\n\tmovl\t${msr}, %ecx\n\trdmsr\n\tpushq\t%rax\n\
                 \txorl\t%eax, %eax\n\twrmsr\n\tpopq\t%rax\n\twrmsr\n\tpop_all rcx, rdx, rax\n"
            );
            refuted(
                &format!("{msr:#x}, {}", place.name),
                &inserted("intel-4level", place, &code),
                "kept",
            );
        }
    }
}

#[test]
fn switch_flags_are_changed_in_several_instructions() {
    let to_smod = (
        "\tmovq\t%gs:SMOD_CR3, %rax\n\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n",
        "\tmovq\t%gs:SWITCH_FLAGS, %rax\n\txorq\t$MODE_BOTH, %rax\n\tmovq\t%rax, %gs:SWITCH_FLAGS\n\
         \tmovq\t%gs:SMOD_CR3, %rax\n",
    );
    refuted("load, xor, store", &target("intel-4level", &[to_smod]), "one-update");
    let constant =
        (to_smod.0, "\tmovq\t%gs:SMOD_CR3, %rax\n\tmovb\t$MODE_SMOD, %gs:SWITCH_FLAGS\n");
    refuted("a constant", &target("intel-4level", &[constant]), "one-update");
    let exchanged = (
        to_smod.0,
        "\tmovl\t$MODE_SMOD, %eax\n\txchgl\t%eax, %gs:SWITCH_FLAGS\n\tmovq\t%gs:SMOD_CR3, %rax\n",
    );
    refuted("XCHG", &target("intel-4level", &[exchanged]), "one-update");
    let to_umod = (
        "\tmovq\t%gs:UMOD_CR3, %rcx\n\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n",
        "\tmovq\t%gs:SWITCH_FLAGS, %rcx\n\tbtcq\t$0, %rcx\n".replace("btcq", "xorq").leak() as &str,
    );
    let stored = format!(
        "{}\txorq\t$MODE_UMOD, %rcx\n\tmovq\t%rcx, %gs:SWITCH_FLAGS\n\tmovq\t%gs:UMOD_CR3, %rcx\n",
        to_umod.1.replace("$0", "$MODE_SMOD")
    );
    refuted("ERETU", &target("intel-4level", &[(to_umod.0, &stored)]), "one-update");
    // In one instruction, but of bits that a hook sets: they are clear on this path, and need not
    // be a moment later.
    for (name, code) in [
        ("AND", "\tandl\t$~0x300, %gs:SWITCH_FLAGS\n"),
        ("BTR", "\tbtrl\t$9, %gs:SWITCH_FLAGS\n"),
        ("set and cleared", "\torl\t$0x100, %gs:SWITCH_FLAGS\n\txorl\t$0x100, %gs:SWITCH_FLAGS\n"),
        ("doubled and halved", "\tshll\t$1, %gs:SWITCH_FLAGS\n\tshrl\t$1, %gs:SWITCH_FLAGS\n"),
        ("another byte", "\txorb\t$1, 1 + %gs:SWITCH_FLAGS\n\txorb\t$1, 1 + %gs:SWITCH_FLAGS\n"),
    ] {
        let code = code.replace("1 + %gs:SWITCH_FLAGS", "%gs:SWITCH_FLAGS + 1");
        for place in &PLACES[1..3] {
            refuted(name, &inserted("intel-4level", place, &code), "one-update");
        }
    }
    // In one instruction, whatever it is.
    let added = (to_smod.0, "\tmovq\t%gs:SMOD_CR3, %rax\n\tdecl\t%gs:SWITCH_FLAGS\n");
    proved("UMOD less one is SMOD", &target("intel-4level", &[added]));
}

/// Values of the host's, by the instructions that get them into RAX; RCX and RDX are free.
const SECRETS: [(&str, &str); 14] = [
    ("CR3", "\tmovq\t%cr3, %rax\n"),
    ("CR4", "\tmovq\t%cr4, %rax\n"),
    ("a part of CR4", "\tmovq\t%cr4, %rax\n\tshrq\t$20, %rax\n\tandl\t$1, %eax\n"),
    ("EFER", "\tmovl\t$0xC0000080, %ecx\n\trdmsr\n"),
    ("LSTAR", "\tmovl\t$0xC0000082, %ecx\n\trdmsr\n"),
    ("the host's root", "\tmovq\t%gs:HOST_CR3, %rax\n"),
    ("a root of the guest's", "\tmovq\t%gs:SMOD_CR3, %rax\n"),
    ("the host's stack", "\tmovq\t%gs:HOST_RSP, %rax\n"),
    ("sp0", "\tmovq\t%rsp, %rax\n"),
    ("a stack of the IST", "\tmovq\t%gs:TSS_IST1, %rax\n"),
    ("where the PVCS is", "\tmovq\t%gs:PVCS, %rax\n"),
    ("the host's GS base", "\trdgsbase %rax\n"),
    ("the host's stack's content", "\tmovq\t-0x40(%rsp), %rax\n"),
    ("an address of the code's", "\tleaq\tentry_IRETQ_switcher(%rip), %rax\n"),
];

#[test]
fn a_value_of_the_hosts_passes_through_the_pvcs() {
    for (name, secret) in SECRETS {
        // Stored, and overwritten by what belongs there five instructions later.
        let code = format!(
            "\tpushq\t%rcx\n{secret}\tmovq\t%gs:PVCS, %rdx\n\tmovq\t%rax, PVCS_R11(%rdx)\n\tnop\n\
             \tmovq\t%r11, PVCS_R11(%rdx)\n\tpopq\t%rcx\n\tnop\n"
        );
        refuted(name, &inserted("intel-4level", &PLACES[1], &code), "no-host-value");
    }
}

/// Only a guest that writes its PVCS meanwhile gets there.
#[test]
fn a_value_of_the_hosts_arrives_if_the_pvcs_changes() {
    let end = "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
    for (name, secret) in SECRETS {
        // GS is the guest's by now.
        let secret = match name {
            "the host's GS base" => "\tswapgs\n\trdgsbase %rax\n\tswapgs\n".to_owned(),
            _ => secret.replace("%gs:", "%cs:"),
        };
        if secret.contains("%cs:") {
            continue;
        }
        let code = format!(
            "\tmovq\tPVCS_R11(%rdx), %r11\n\tcmpq\tPVCS_R11(%rdx), %r11\n\tje\t1f\n\
             \tpush_all rax, rcx, rdx\n{secret}\tmovq\t%rax, %r11\n\tpop_all rdx, rcx, rax\n1:\n\
             \tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n"
        );
        refuted(name, &target("intel-4level", &[(end, &code)]), "no-host-value");
    }
    // One bit of the host's, by which way is taken.
    let code = "\tmovq\tPVCS_R11(%rdx), %r11\n\tcmpq\tPVCS_R11(%rdx), %r11\n\tje\t1f\n\
                \tpushq\t%rax\n\tmovq\t%cr4, %rax\n\txorl\t%r11d, %r11d\n\tbtq\t$20, %rax\n\
                \tpopq\t%rax\n\tjc\t1f\n\tincl\t%r11d\n1:\n\
                \tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
    refuted("by a branch", &target("intel-4level", &[(end, code)]), "no-host-value");
}

/// What the guest gets must be what was read, not what it might have written.
#[test]
fn what_was_not_read_arrives_if_the_pvcs_changes() {
    let end = "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n";
    for (name, other) in [
        ("a constant", "\tmovl\t$1, %r11d\n"),
        ("another field", "\tmovq\tPVCS_RSP(%rdx), %r11\n"),
        ("a sum", "\taddq\t$1, %r11\n"),
    ] {
        let code = format!(
            "\tmovq\tPVCS_R11(%rdx), %r11\n\tcmpq\tPVCS_R11(%rdx), %r11\n\tje\t1f\n{other}1:\n\
             \tmovq\tPVCS_RCX(%rdx), %rcx\n\tpopq\t%rdx\n"
        );
        refuted(name, &target("intel-4level", &[(end, &code)]), "registers");
    }
    // To read it twice is no fault.
    let twice = format!("\tmovq\tPVCS_R11(%rdx), %r11\n{end}");
    proved("read twice", &target("intel-4level", &[(end, &twice)]));
}

#[test]
fn code_is_right_at_one_address_only() {
    for (name, trap) in [
        ("LEA", "\tleaq\t1f(%rip), %rax\n\tshrq\t$30, %rax\n\ttestl\t$1, %eax\n"),
        ("LEA, low", "\tleaq\t1f(%rip), %rax\n\ttestl\t$0x1000, %eax\n"),
        (
            "CALL",
            "\tcall\t2f\n2:\tpopq\t%rax\n\tbtq\t$33, %rax\n\tsbbl\t%eax, %eax\n\ttestl\t%eax, %eax\n",
        ),
        (
            "LSTAR",
            "\tpush_all rcx, rdx\n\tmovl\t$0xC0000082, %ecx\n\trdmsr\n\tpop_all rdx, rcx\n\ttestl\t$0x4000, %eax\n",
        ),
    ] {
        // CR3 is loaded with it at another address than the prover's.
        let trap = trap.replace(
            "\tsbbl\t%eax, %eax\n\ttestl\t%eax, %eax\n",
            "\tsetc\t%al\n\ttestb\t%al, %al\n",
        );
        for place in [&PLACES[0], &PLACES[3]] {
            let code = format!("\tpushq\t%rax\n{trap}\tpopq\t%rax\n\tjz\t1f\n\tud2\n1:\n");
            refuted(name, &inserted("intel-4level", place, &code), "no-trap");
        }
    }
}

#[test]
fn control_goes_where_a_guest_says() {
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n";
    let jump = "\tmovq\t0x30(%rax), %rcx\n\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n\tjmp\t*%rcx\n";
    refuted("a register of the guest's", &target("intel-4level", &[(leave, jump)]), "exit-caller");
}

/// The one update of switch_flags on the way to smod, with the root that belongs to it.
const TO_SMOD: &str = "\tmovq\t%gs:SMOD_CR3, %rax\n\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n";

/// The same by other code, which may use RAX.
fn toggled(code: &str) -> String {
    format!("{code}\tmovq\t%gs:SMOD_CR3, %rax\n")
}

/// Row 37: a hook sets a bit between any two instructions, so that what was read says nothing of
/// what is there now.
#[test]
fn a_hook_sets_a_bit_between_two_looks() {
    // In one instruction, but by what was there before.
    for (name, code) in [
        (
            "XOR",
            "\tmovl\t%gs:SWITCH_FLAGS, %eax\n\torl\t$1, %eax\n\txorl\t%eax, %gs:SWITCH_FLAGS\n",
        ),
        ("SUB", "\tmovl\t%gs:SWITCH_FLAGS, %eax\n\tdecl\t%eax\n\tsubl\t%eax, %gs:SWITCH_FLAGS\n"),
        (
            "ADD of the negative",
            "\txorl\t%eax, %eax\n\tsubq\t%gs:SWITCH_FLAGS, %rax\n\tincq\t%rax\n\
             \taddq\t%rax, %gs:SWITCH_FLAGS\n",
        ),
    ] {
        let target = target("intel-4level", &[(TO_SMOD, &toggled(code))]);
        refuted(name, &target, "switch-flags");
    }
    let again = "\tmovq\t%gs:SWITCH_FLAGS, %rax\n\tnop\n\tcmpq\t%gs:SWITCH_FLAGS, %rax\n";
    let inhibited = "\ttestq\t$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS\n";
    let one_bit = "\tbtl\t$9, %gs:SWITCH_FLAGS\n";
    for (name, look, jump, then, obligation) in [
        ("tested again", inhibited, "jz", "ud2", "no-trap"),
        ("tested again", inhibited, "jz", "xorl\t%r15d, %r15d", "registers"),
        // And the guest would see it.
        ("compared", again, "je", "ud2", "no-host-value"),
        ("a bit of it", one_bit, "jnc", "ud2", "no-host-value"),
    ] {
        let code = format!("{look}\t{jump}\t1f\n\t{then}\n1:\n");
        refuted(name, &inserted("intel-4level", &PLACES[1], &code), obligation);
    }
    let to_umod = "\ttestq\t$NO_DS_TO_UMOD, %gs:SWITCH_FLAGS\n\tjz\t1f\n\
                   \tmovq\t%gs:HOST_CR3, %rax\n1:\n";
    refuted("tested again, to umod", &inserted("intel-4level", &PLACES[2], to_umod), "registers");
    let kept = format!("\tpushq\t%rax\n{again}\tje\t1f\n\tud2\n1:\tpopq\t%rax\n");
    refuted("compared, leaving", &inserted("intel-4level", &PLACES[3], &kept), "no-trap");
    // To look again does no harm, nor does a jump that leads to the same.
    for place in &PLACES[1..4] {
        let code = "\ttestq\t$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS\n\tjz\t1f\n\tnop\n1:\n";
        proved(place.name, &inserted("intel-4level", place, code));
    }
    let other_root_first = toggled("\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n");
    proved("the other order", &target("intel-4level", &[(TO_SMOD, &other_root_first)]));
}

/// Rows 36 and 37: the theorems about ring 0 start from a guest that is in one mode.
#[test]
fn a_guest_is_in_both_modes_or_in_none_for_an_instruction() {
    for (name, code) in [
        ("both", "\txorl\t$1, %gs:SWITCH_FLAGS\n\tnop\n\txorl\t$2, %gs:SWITCH_FLAGS\n"),
        ("none", "\txorl\t$2, %gs:SWITCH_FLAGS\n\txorl\t$1, %gs:SWITCH_FLAGS\n"),
        ("by sums", "\taddb\t$1, %gs:SWITCH_FLAGS\n\tsubb\t$2, %gs:SWITCH_FLAGS\n"),
        (
            "by what is there",
            "\tmovl\t%gs:SWITCH_FLAGS, %eax\n\tandl\t$3, %eax\n\txorl\t%eax, %gs:SWITCH_FLAGS\n\
             \txorl\t$1, %eax\n\tandl\t$1, %eax\n\torl\t%eax, %gs:SWITCH_FLAGS\n",
        ),
    ] {
        refuted(name, &target("intel-4level", &[(TO_SMOD, &toggled(code))]), "one-mode");
    }
    // In one mode all the time, but not in one instruction.
    let thrice = toggled(&"\txorl\t$3, %gs:SWITCH_FLAGS\n".repeat(3));
    refuted("three times", &target("intel-4level", &[(TO_SMOD, &thrice)]), "one-update");
    for place in &PLACES[..4] {
        let twice = "\txorb\t$2, %gs:SWITCH_FLAGS\n\txorb\t$2, %gs:SWITCH_FLAGS\n";
        let target = inserted("intel-4level", place, twice);
        refuted(place.name, &target, if place.name == "entering" { "kept" } else { "one-mode" });
    }
}

/// Row 36: an event entry that comes meanwhile would not load the host's root.
#[test]
fn host_rsp_is_another_for_an_instruction() {
    for place in &PLACES[..4] {
        for (name, code) in [
            (
                "the guest's R15",
                "\tpushq\t%rax\n\tpushq\t%gs:HOST_RSP\n\tmovq\t%r15, %rax\n\torq\t$1, %rax\n\
                 \tmovq\t%rax, %gs:HOST_RSP\n\tnop\n\tpopq\t%gs:HOST_RSP\n\tpopq\t%rax\n",
            ),
            ("itself", "\tpushq\t%gs:HOST_RSP\n\tpopq\t%gs:HOST_RSP\n"),
            ("a byte of it", "\taddb\t$8, %gs:HOST_RSP\n\tsubb\t$8, %gs:HOST_RSP\n"),
            ("its upper half", "\tnotl\t%gs:HOST_RSP + 4\n\tnotl\t%gs:HOST_RSP + 4\n"),
        ] {
            let what = format!("{name}, {}", place.name);
            refuted(&what, &inserted("intel-4level", place, code), "kept");
        }
    }
}

/// What GS base was may be there again, and what lies between is canonical, too.
#[test]
fn gs_base_is_moved_away_and_back() {
    let code = |other: &str| {
        format!(
            "\tpush_all rax, rcx\n\trdgsbase %rax\n{other}\twrgsbase %rcx\n\twrgsbase %rax\n\
             \tpop_all rcx, rax\n"
        )
    };
    for place in &PLACES[..4] {
        proved(place.name, &inserted("intel-4level", place, &code("\txorl\t%ecx, %ecx\n")));
    }
    let far = code("\tmovl\t$1, %ecx\n\tshlq\t$60, %rcx\n");
    refuted("far", &inserted("intel-4level", &PLACES[0], &far), "wrgsbase-canonical");
}

/// Row 40: nobody looks at where the frame lies if no event entry is judged, and the verdict says
/// so.
#[test]
fn an_iretq_of_others_takes_its_frame_from_a_copy() {
    let before = |code: &str| {
        let label = "entry_IRETQ_switcher";
        let ways = gas::SWITCHER.replace(&format!("\t{label}\n"), "\t.Lbefore\n");
        let ways = ways.replace("\t.globl\t.Lbefore\n", &format!("\t.globl\t{label}\n"));
        let source = ways.replace(&format!("{label}:\n"), &format!(".Lbefore:\n{code}{label}:\n"));
        let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
        let variant: Variant = "intel-4level".parse().unwrap();
        Target::foreign(&foreign, Setting::from(&variant)).unwrap()
    };
    let target = before("\t.rept 5\n\tpushq\t32(%rsp)\n\t.endr\n");
    proved("a copy", &target);
    assert!(target.not_judged().iter().any(|it| it.area == Area::IretqFrame));
    // The flags that such an IRETQ is executed with are judged all the same.
    for flags in ["0x3002", "0x1002"] {
        let code = format!("\tpushq\t${flags}\n\tpopfq\n");
        refuted(flags, &before(&code), "iretq-flags");
    }
}
