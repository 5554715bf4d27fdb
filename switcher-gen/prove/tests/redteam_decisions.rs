//! Attacks on the prover by what a guest is told without being told it: a host's value decides
//! which way a run goes, and the guest sees the way; or it lies in a flag that the manuals leave
//! undefined (spec/hazards.md, rows 34, 35, 44 and 47).

mod attack;
mod gas;

use attack::{PLACES, inserted, proved, refuted, target};

/// Both direct switches still keep R11 in the PVCS: the attacks leave the right value in the end.
const PUT_BACK: &str = "\tmovq\t%r11, PVCS_R11(%rdx)\n";

/// Before this, RDX is the PVCS and RAX is free.
fn to_smod(code: &str) -> switcher_prove::Target {
    inserted("intel-4level", &PLACES[1], &format!("{code}{PUT_BACK}"))
}

#[test]
fn a_bit_of_the_hosts_decides_what_is_stored() {
    let secrets = [
        ("a bit of the root", "\tmovq\t%gs:HOST_CR3, %rax\n\tbtq\t$40, %rax\n\tjnc\t1f\n"),
        ("the root is compared", "\tcmpq\t%gs:HOST_CR3, %rcx\n\tjb\t1f\n"),
        ("a bit of CR4", "\tmovq\t%cr4, %rax\n\ttestl\t$1 << 20, %eax\n\tjz\t1f\n"),
        ("what lies on the stack", "\ttestb\t$4, -0x40(%rsp)\n\tjz\t1f\n"),
        ("a bit of GS base", "\trdgsbase\t%rax\n\tbtq\t$13, %rax\n\tjc\t1f\n"),
        ("a bit of RSP", "\ttestb\t$0x10, %spl\n\tjnz\t1f\n"),
        ("where the code lies", "\tleaq\t0(%rip), %rax\n\tbtq\t$21, %rax\n\tjc\t1f\n"),
        (
            "a flag in between",
            "\tcmpq\t%gs:HOST_CR3, %rcx\n\tsetb\t%al\n\ttestb\t%al, %al\n\tjz\t1f\n",
        ),
        ("an undefined flag", "\tmovq\t%gs:HOST_CR3, %rax\n\tshlq\t$5, %rax\n\tjo\t1f\n"),
        ("the parity of the root", "\tmovq\t%gs:HOST_CR3, %rax\n\ttestb\t%al, %al\n\tjp\t1f\n"),
    ];
    let shown = [
        ("a number", "\tmovq\t$1, PVCS_R11(%rdx)\n"),
        ("the guest's own", "\tmovq\t%rcx, PVCS_R11(%rdx)\n"),
        ("when it is stored", "\tmovq\t%r11, PVCS_R11(%rdx)\n"),
        ("that it is read", "\tmovq\t(%rdx), %rax\n"),
    ];
    for (secret, decide) in secrets {
        for (how, show) in shown {
            let code = format!("{decide}{show}1:\n");
            refuted(&format!("{secret}, {how}"), &to_smod(&code), "no-host-value");
        }
    }
}

#[test]
fn a_bit_of_the_hosts_decides_how_often_it_is_stored() {
    let code = "\tmovq\t%gs:HOST_CR3, %rax\n\tshrq\t$12, %rax\n\tandl\t$3, %eax\n1:\tjz\t2f\n\
                \tmovq\t%r11, PVCS_R11(%rdx)\n\tdecl\t%eax\n\tjmp\t1b\n2:\n";
    refuted("a loop", &to_smod(code), "no-host-value");
}

/// A jump to one of two addresses is a decision, too.
#[test]
fn a_bit_of_the_hosts_decides_where_a_jump_leads() {
    let code = "\tpushq\t%rcx\n\tpushq\t%rbx\n\tleaq\t1f(%rip), %rcx\n\tleaq\t2f(%rip), %rbx\n\
                \tmovq\t%gs:HOST_CR3, %rax\n\ttestl\t$0x100000, %eax\n\tcmovzq\t%rbx, %rcx\n\
                \tpopq\t%rbx\n\tjmp\t*%rcx\n\tint3\n1:\tmovq\t%rax, %rcx\n2:\tpopq\t%rcx\n";
    refuted("a jump", &to_smod(code), "no-host-value");
}

/// The guest writes other numbers into the PVCS all the time: which of them arrives tells the bit.
#[test]
fn a_bit_of_the_hosts_decides_which_read_counts() {
    let end = "\tmovq\tPVCS_R11(%rdx), %r11\n";
    let again = format!(
        "{end}\tpushq\t%rax\n\tmovq\t%cr4, %rax\n\tbtq\t$20, %rax\n\tpopq\t%rax\n\tjc\t1f\n{end}1:\n"
    );
    refuted("a second read", &target("intel-4level", &[(end, &again)]), "no-host-value");
    // Both reads come first.
    let chosen = "\tpushq\t%rax\n\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_R11(%rdx), %rax\n\
                  \tpushq\t%rax\n\tmovq\t%cr4, %rax\n\tbtq\t$20, %rax\n\tpopq\t%rax\n\tjc\t1f\n\
                  \tmovq\t%rax, %r11\n1:\tpopq\t%rax\n";
    refuted("a choice", &target("intel-4level", &[(end, chosen)]), "no-host-value");
}

/// CPUs make them of the operands, or leave them as they were.
#[test]
fn an_undefined_flag_says_what_it_is_made_of() {
    let root = "\tmovq\t%gs:HOST_CR3, %rax\n";
    for (what, code) in [
        ("OF of SHL", "\tshlq\t$5, %rax\n\tseto\tPVCS_R11(%rdx)\n"),
        ("OF of SHR", "\tshrq\t$5, %rax\n\tseto\tPVCS_R11(%rdx)\n"),
        ("OF of SAR", "\tsarq\t$9, %rax\n\tseto\tPVCS_R11(%rdx)\n"),
        ("CF of SHL by all bits", "\tshlb\t$9, %al\n\tsetc\tPVCS_R11(%rdx)\n"),
        ("SF of BT", "\tbtq\t$40, %rax\n\tsets\tPVCS_R11(%rdx)\n"),
        ("SF from before BT", "\ttestq\t%rax, %rax\n\tbtq\t$3, %rcx\n\tsets\tPVCS_R11(%rdx)\n"),
        ("PF from before BTS", "\ttestb\t%al, %al\n\tbtsq\t$3, %rax\n\tsetp\tPVCS_R11(%rdx)\n"),
        ("AF of AND", "\tandl\t%eax, %eax\n\tpushfq\n\tpopq\tPVCS_R11(%rdx)\n"),
    ] {
        refuted(what, &to_smod(&format!("{root}{code}")), "no-host-value");
    }
    let code = "\tmovq\t%gs:TSS_SP2, %rax\n\tshlq\t$5, %rax\n\tjo\t1f\n1:\n";
    refuted("a decision on the guest's RSP", &to_smod(code), "no-decision-on-rsp");
}

/// Which descriptor is read, a cache tells, and ZF besides (row 61).
#[test]
fn a_secret_chooses_the_descriptor_that_is_read() {
    let root = "\tmovq\t%gs:HOST_CR3, %rax\n";
    for (what, code) in [
        ("VERW of it", "\tverw\t%ax\n"),
        ("in its 32-bit form", "\t.byte\t0x0F, 0x00, 0xE8\n"),
        ("of a part of it", "\tshrq\t$12, %rax\n\tandl\t$0xF8, %eax\n\tverw\t%ax\n"),
        ("in memory", "\tverw\t%gs:HOST_CR3\n"),
        ("in the middle of it", "\tverw\t%gs:HOST_CR3 + 3\n"),
        ("and ZF", "\tverw\t%ax\n\tsetz\tPVCS_R11(%rdx)\n"),
        (
            "of one of two that fit",
            "\tshrl\t$12, %eax\n\tandl\t$0x18, %eax\n\tandl\t$0, %eax\n\tmovq\t%gs:HOST_CR3, %rax\n\tverw\t%ax\n",
        ),
    ] {
        refuted(what, &to_smod(&format!("{root}{code}")), "descriptors");
    }
    let null = format!("{root}\tandl\t$3, %eax\n\tmovl\t%eax, %ss\n");
    refuted("MOV to SS of one of four null selectors", &to_smod(&null), "descriptors");
    for (what, code) in [
        ("the guest's own", "\tmovl\t%r15d, %eax\n\tverw\t%ax\n"),
        ("the code's own", "\tmovl\t$0x18, %eax\n\tverw\t%ax\n"),
        ("no bit of it", "\tmovq\t%gs:HOST_CR3, %rax\n\tandl\t$0, %eax\n\tverw\t%ax\n"),
    ] {
        proved(what, &to_smod(code));
    }
}

/// Neither tells a guest more than it knows.
#[test]
fn what_the_guest_knows_may_decide() {
    for (what, code) in [
        ("the guest's own", "\ttestq\t%r15, %r15\n\tjz\t1f\n\tmovq\t%r11, PVCS_R11(%rdx)\n1:\n"),
        (
            "what is certain",
            "\tcmpl\t$0, %gs:HOST_CR3\n\tmovq\t%gs:SWITCH_FLAGS, %rax\n\ttestb\t$1, %al\n\tjz\t1f\n1:\n",
        ),
        ("which mode it is in", "\ttestb\t$2, %gs:SWITCH_FLAGS\n\tjz\t1f\n1:\n"),
    ] {
        proved(what, &to_smod(code));
    }
}
