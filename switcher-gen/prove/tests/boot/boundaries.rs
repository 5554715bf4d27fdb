//! Linux writes other bytes of the same meaning, and takes some for what they are not.

use super::{Choice, ReadError, alternative, at_exit, elf, linked, said, verdicts_of};

const VARIANT: &str = "intel-4level";

#[track_caller]
fn refused(code: &str, choices: &[(Choice, bool)], part: &str) {
    let object = at_exit(code);
    for file in [&object, &linked(&object)] {
        let error = elf::images(file, said(VARIANT, choices)).expect_err(part);
        assert!(matches!(error, ReadError::Patched { .. }), "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[track_caller]
fn proved(code: &str, choices: &[(Choice, bool)], images: usize) {
    let object = at_exit(code);
    for file in [&object, &linked(&object)] {
        let all = verdicts_of(file, VARIANT, choices);
        assert_eq!(all.len(), images, "{code}: {all:?}");
        assert!(all.iter().all(|(_, broken)| broken.is_none()), "{code}: {all:?}");
    }
}

fn about(old: &str, new: &str) -> String {
    alternative(old, new, "7 * 32 + 11", 0)
}

/// The entry of Linux up to 5.12, which says how much of the place is padding.
fn padded(old: &str, padding: u8) -> String {
    let rest = "\t.short 7 * 32 + 11, 0\n\t.byte 885b - 881b, 884f - 883f\n";
    let own = format!("\t.short 7 * 32 + 11\n\t.byte 885b - 881b, 884f - 883f, {padding}\n");
    about(old, "cld").replace(rest, &own)
}

/// An operand may be code to who jumps there, until Linux has written the instruction anew.
#[test]
fn what_is_changed_is_executed_from_where_its_instructions_begin() {
    const MIDDLE: &str = "from, or over, the middle";
    let hidden = "jmp 998f; .byte 0xb9; 998: .byte 0xfc, 0xfc, 0xfc, 0xfc; cld";
    refused(&about("nop", hidden), &[], MIDDLE);
    refused(&about(&format!("{hidden}; nop"), "cld"), &[], MIDDLE);
    let open = "jmp 998f; mov $3, %ecx; 998: cld";
    proved(&about("nop", open), &[], 2);
    proved(&about(&format!("{open}; nop"), "cld"), &[], 2);
    // What begins, or ends, in the middle of an instruction.
    refused(&(".byte 0xb9\n".to_owned() + &about("cld; cld; cld; cld", "cld")), &[], MIDDLE);
    refused(&(about("cld; .byte 0xb9", "cld") + "cld; cld; cld; cld\n"), &[], MIDDLE);
}

/// Where a computed jump leads, only the proof finds out.
#[test]
fn a_computed_jump_leads_to_where_an_instruction_begins() {
    let at = |by: u8| {
        let changed = about("mov $0xFCFCFCFC, %ecx; nop", "mov $0xFCFCFCFC, %ecx; cld");
        format!(
            "\tlea\t881f(%rip), %rcx\n\tadd\t${by}, %rcx\n\tjmp\t*%rcx\n\tint3\n{changed}\
             \txor\t%ecx, %ecx\n"
        )
    };
    let middle = |code: &str| {
        let file = linked(&at_exit(code));
        let all = verdicts_of(&file, VARIANT, &[]);
        all.iter().filter(|(_, broken)| *broken == Some("no code")).count()
    };
    assert_eq!(middle(&at(0)), 0);
    assert_eq!(middle(&at(5)), 0);
    for by in [1, 2, 3, 4] {
        assert_eq!(middle(&at(by)), 2, "{by}");
    }
}

/// By its opcode, XCHG with R8 is one that does nothing.
/// Of several NOPs Linux makes others, in which nothing begins where the second one did.
#[test]
fn no_computed_jump_leads_behind_a_nop_that_may_be_merged() {
    let at = |nops: &str, by: u8| {
        let other = if nops.starts_with("mov") { "mov $6, %ecx; nop" } else { "cld" };
        let changed = about(nops, other);
        format!(
            "\tlea\t881f(%rip), %rcx\n\tadd\t${by}, %rcx\n\tjmp\t*%rcx\n\tint3\n{changed}\
             \txor\t%ecx, %ecx\n"
        )
    };
    let broken = |code: &str| {
        let all = verdicts_of(&at_exit(code), VARIANT, &[]);
        all.iter().any(|(_, broken)| broken.is_some())
    };
    let (two, long) = (".byte 0x66, 0x90; nopl (%rax)", ".skip 16, 0x90");
    for (nops, by, is_right) in [
        (two, 0, true),
        (two, 2, false),
        (two, 5, true),
        (long, 8, false),
        (long, 16, true),
        ("jmp 997f; nopl (%rax); 997: mov $5, %ecx", 2, false),
        ("mov $5, %ecx; nop", 5, true),
    ] {
        assert_eq!(broken(&at(nops, by)), !is_right, "{nops} + {by}");
    }
}

/// Linux's decoder knows fewer instructions, and of some another length.
#[test]
fn what_linux_reads_with_another_length_is_refused() {
    const ALIKE: &str = "as one of another length";
    // The immediate, which is executed by nobody, would be four NOPs to Linux.
    let control = "mov %cr3, %rcx; .byte 0x0f, 0x22, 0x99; mov $0x90909090, %ecx";
    refused(&(about(control, "cld") + "xor %ecx, %ecx\n"), &[], ALIKE);
    refused(&(about("nop", control) + "xor %ecx, %ecx\n"), &[], ALIKE);
    for filler in [
        "0x8f, 0xe8, 0x78, 0xa2, 0xc1, 0x90",
        "0x0f, 0xff, 0x80, 0x90, 0x90, 0x90, 0x90",
        "0x66, 0x0f, 0x78, 0xc0, 0x90, 0x90",
    ] {
        let over = format!("jmp 996f; .byte {filler}; 996: cld");
        refused(&about(&over, "cld"), &[], ALIKE);
        refused(&about("nop", &over), &[], ALIKE);
    }
    let control = "mov %cr3, %rcx; mov %rcx, %cr3; mov $0x90909090, %ecx";
    proved(&(about(control, "cld") + "xor %ecx, %ecx\n"), &[], 2);
}

#[test]
fn what_linux_takes_for_a_nop_does_nothing() {
    let (odd, even) = ("xchg %r8, %rax; nop", "xchg %r8, %rcx; xchg %r8, %rcx; nop");
    refused(&about(odd, "cld"), &[], "by its opcode");
    refused(&about("nop", odd), &[], "by its opcode");
    proved(&about(even, "cld"), &[], 2);
    proved(&about("nop", even), &[], 2);
}

/// Linux shortens a jump of five bytes by a distance that counts from where it was.
#[test]
fn a_long_jump_within_what_is_put_there_may_be_shortened_wrongly() {
    for long in [".byte 0xe9; .long 1; cld; cld", ".byte 0xe9; .long 0"] {
        for choices in [&[][..], &[(Choice::Since6_5, true)]] {
            refused(&about("nop", long), choices, "write a short jump");
        }
    }
    proved(&about("nop", ".byte 0xeb, 1; cld; cld"), &[], 2);
    // One with a prefix is longer than Linux takes it for.
    let prefixed = ".byte 0x2e, 0xe9; .long 995f - . - 4";
    refused(&(about("nop", prefixed) + "995:\n"), &[], "write it without");
    // Versions with other entries do not.
    let old = about("nop", ".byte 0xe9; .long 1; cld; cld")
        .replace("\t.short 7 * 32 + 11, 0\n", "\t.short 7 * 32 + 11\n");
    proved(&old, &[], 2);
}

/// Linux up to 5.12 looks at the first bytes and overwrites the last ones.
#[test]
fn padding_is_at_the_end_of_a_place_and_is_nops() {
    refused(&padded("nop; nop; nop; cld; cld; cld", 3), &[], "padding");
    refused(&padded("cld; nop; nop; nop", 5), &[], "padding");
    refused(&padded("cld; nopl (%rax)", 3), &[], "padding");
    proved(&padded("cld; cld; cld; nop; nop; nop", 3), &[], 2);
    proved(&padded("nop; nop; nop; nop", 4), &[], 2);
}

/// What lies behind a return may be the mark by which Linux knows a trampoline.
#[test]
fn a_return_in_front_of_a_mark_is_rewritten() {
    let code = |mark: &str| {
        format!(
            "\tjmp 1f\n2:\tjmp 3f\n0:\tret\n1:\tnop\n\tnop\n\tjmp 2b\n\t.byte {mark}\n3:\n\
             \t.pushsection .return_sites, \"a\"\n\t.long 0b - .\n\t.popsection\n"
        )
    };
    refused(&code("0x0f, 0xb9, 0xcc"), &[], "trampoline");
    proved(&code("0x0f, 0x0b, 0xcc"), &[], 1);
}

/// Versions of Linux take other instructions for landing pads, and put other bytes there.
#[test]
fn what_is_sealed_is_a_whole_landing_pad() {
    let off = [(Choice::FineIbt, false)];
    let sealed = |code: &str| {
        format!("{code}\n\t.pushsection .ibt_endbr_seal, \"a\"\n\t.long 71b - .\n\t.popsection\n")
    };
    refused(&sealed("71:\tendbr32"), &off, "not ENDBR64");
    refused(&sealed("\t.byte 0xb9\n71:\t.long 0xfb1e0ff3"), &off, "not ENDBR64");
    refused(&sealed("\t.byte 0xb9\n71:\t.long 0xfa1e0ff3"), &off, "the middle");
    refused(&sealed("\tmov 71f(%rip), %ecx\n\tjmp 72f\n71:\tendbr64\n72:"), &off, "is read");
    proved(&sealed("71:\tendbr64"), &off, 1);
    // What is not reached may be anything.
    proved(&sealed("\tjmp 72f\n71:\tendbr32\n72:"), &off, 1);
}
