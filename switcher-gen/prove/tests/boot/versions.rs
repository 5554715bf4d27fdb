//! What versions of Linux make of the same table of alternatives.

use super::{Choice, alternative, at_exit, elf, linked, said, verdicts, verdicts_of};

const VARIANT: &str = "intel-4level";

#[track_caller]
fn refused(file: &[u8], choices: &[(Choice, bool)], part: &str) {
    let error = elf::images(file, said(VARIANT, choices)).expect_err(part);
    assert!(error.to_string().contains(part), "{part}: {error}");
}

#[track_caller]
fn proved(file: &[u8], choices: &[(Choice, bool)], images: &[&str]) {
    let all = verdicts_of(file, VARIANT, choices);
    let named: Vec<_> = all.iter().map(|(choices, _)| choices.as_str()).collect();
    assert_eq!(named, images, "{all:?}");
    assert!(all.iter().all(|(_, broken)| broken.is_none()), "{images:?}: {all:?}");
}

/// Linux 6.3 and 6.4 have the entries of later versions, and correct what those before correct.
#[test]
fn a_distance_that_is_not_the_first_depends_on_the_version() {
    let (on, off) = ([(Choice::Since6_5, true)], [(Choice::Since6_5, false)]);
    let moved = |new: &str| at_exit(&(alternative("nop", new, "7 * 32 + 11", 0) + "777:\n"));
    for new in [
        "lfence; .byte 0xe9; .long 777f - . - 4",
        "cmpq $0, %gs:cpu_tss_rw + HOST_RSP(%rip)",
        // To those, a jump of five bytes.
        ".byte 0xeb, 3; nop; nop; nop",
    ] {
        let object = moved(new);
        for file in [&object, &linked(&object)] {
            refused(file, &[], "--boot linux-6.5=on");
            refused(file, &off, "Linux 6.3 and 6.4");
            proved(file, &on, &["7*32+11=off", "7*32+11=on, linux-6.5=on"]);
            // A later version is one of those, and a CPU without the feature needs neither.
            let later = [(Choice::Since6_10, true)];
            proved(file, &later, &["7*32+11=off", "7*32+11=on, linux-6.5=on"]);
            let without = [(Choice::Feature("7*32+11".parse().unwrap()), false)];
            proved(file, &without, &["7*32+11=off"]);
        }
    }
    // What all of them correct, or need not, is judged as ever, and nothing is said of versions.
    for new in [".byte 0xe9; .long 777f - . - 4", "lfence; jmp 1f; 1:", "lfence"] {
        let object = moved(new);
        for file in [&object, &linked(&object)] {
            proved(file, &[], &["7*32+11=off", "7*32+11=on"]);
        }
    }
}

/// Before nested alternatives, each entry is as long as it says.
#[test]
fn entries_of_several_lengths_depend_on_the_version() {
    let second = |length: &str| {
        format!(
            "\t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 893f - .\n\
             \t.short 7 * 32 + 12, 0\n\t.byte {length}, 3\n\t.popsection\n\
             \t.pushsection .altinstr_replacement, \"ax\"\n893:\tnopl (%rax)\n\t.popsection\n"
        )
    };
    // After a shorter entry, what an earlier one has put there would still be there.
    let first =
        alternative("nopl (%rax); nopl (%rax)", "cld; cld; cld; cld; cld", "7 * 32 + 11", 0);
    let object = at_exit(&(first.clone() + &second("3")));
    for file in [&object, &linked(&object)] {
        refused(file, &[], "--boot linux-6.10=on");
        refused(file, &[(Choice::Since6_5, true)], "several lengths");
        refused(file, &[(Choice::Since6_10, false)], "several lengths");
        let all = verdicts_of(file, VARIANT, &[(Choice::Since6_10, true)]);
        assert!(all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
        assert!(all.iter().any(|(choices, _)| choices.contains("linux-6.10=on")), "{all:?}");
    }
    let equal = at_exit(&(first + &second("6")));
    for file in [&equal, &linked(&equal)] {
        let all = verdicts(file, VARIANT);
        let is_right = |(choices, broken): &(String, Option<&str>)| {
            broken.is_none() && !choices.contains("linux")
        };
        assert!(all.iter().all(is_right), "{all:?}");
    }
}

/// The same of entries of the versions before.
#[test]
fn what_old_versions_take_for_a_jump_is_corrected() {
    for new in [".byte 0xe9; .long 0", ".byte 0xeb, 3; nop; nop; nop"] {
        let own = alternative("nop", new, "7 * 32 + 11", 0);
        let own = own.replace("\t.short 7 * 32 + 11, 0\n", "\t.short 7 * 32 + 11\n");
        let object = at_exit(&own);
        assert!(elf::images(&object, said(VARIANT, &[])).is_err(), "{new}");
    }
}
