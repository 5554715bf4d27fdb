//! What Linux makes of its code when it boots: each image is judged, by what decides about it, and
//! what the file holds is not taken for what runs.

#[path = "boot/boundaries.rs"]
mod boundaries;
#[path = "boot/branches.rs"]
mod branches;
#[path = "boot/calls.rs"]
mod calls;
#[path = "boot/front.rs"]
mod front;
mod gas;
#[path = "boot/joined.rs"]
mod joined;
#[path = "boot/tables.rs"]
mod tables;
#[path = "boot/versions.rs"]
mod versions;

use switcher_gen::Variant;
use switcher_prove::elf::{self, Choice, Feature, Foreign, ReadError, Request, TableError};
use switcher_prove::{Profile, Prover, Target, Verdict};

const KERNEL: &str = include_str!("gas/kernel.S");
/// In front of the exit's load of the host's root.
const EXIT: &str = "switcher_return_from_guest:\n\torc\n";

fn profile() -> &'static Profile {
    Profile::named("linux-pvm-2024").unwrap()
}

fn variant(name: &str) -> Variant {
    name.parse().unwrap()
}

fn target(foreign: &Foreign, variant: &Variant) -> Target {
    let block = profile().block(foreign).unwrap();
    let features = foreign.features();
    let setting = profile().setting(variant).unwrap().with_block(block).with_features(features);
    profile().with_windows(Target::foreign(foreign, setting).unwrap(), foreign)
}

/// The images of an object, for hosts that a variant is for.
fn images(object: &[u8], variant: &Variant) -> Vec<Foreign> {
    elf::images(object, profile().request().on(variant)).unwrap()
}

/// What is asked on hosts that a variant is for, of a kernel of which this is said.
fn said(name: &str, choices: &[(Choice, bool)]) -> Request {
    let request = profile().request().on(&variant(name));
    let all = choices.iter();
    all.fold(request, |request, (choice, is_on)| request.with_choice(choice.clone(), *is_on))
}

/// The obligation that each image breaks, after what decides about the image.
fn verdicts(object: &[u8], name: &str) -> Vec<(String, Option<&'static str>)> {
    verdicts_of(object, name, &[])
}

/// The same of a kernel of which this is said.
fn verdicts_of(
    object: &[u8],
    name: &str,
    choices: &[(Choice, bool)],
) -> Vec<(String, Option<&'static str>)> {
    let variant = variant(name);
    let mut all: Vec<_> = elf::images(object, said(name, choices))
        .unwrap()
        .iter()
        .map(|image| {
            let verdict = match Prover::default().prove(&target(image, &variant)) {
                Verdict::Proved(_) => None,
                Verdict::Refuted(found) => Some(found.obligation.name),
                Verdict::Unsupported(_) => Some("no code"),
                other => panic!("{other:?}"),
            };
            (elf::choices(&image.choices), verdict)
        })
        .collect();
    all.sort();
    all
}

fn with(symbols: &[(&str, i64)]) -> Vec<u8> {
    gas::assemble(KERNEL, symbols)
}

/// The kernel with this in front of the exit.
fn at_exit(code: &str) -> Vec<u8> {
    let source = gas::replaced(KERNEL, &[(EXIT, &format!("{EXIT}{code}"))]);
    gas::assemble(&source, &[])
}

/// An alternative as Linux writes it since 6.3.
fn alternative(old: &str, new: &str, feature: &str, flags: u16) -> String {
    format!(
        "881:\t{old}\n882:\n\t.skip -(((884f - 883f) - (882b - 881b)) > 0) * \
         ((884f - 883f) - (882b - 881b)), 0x90\n885:\n\
         \t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 883f - .\n\
         \t.short {feature}, {flags}\n\t.byte 885b - 881b, 884f - 883f\n\t.popsection\n\
         \t.pushsection .altinstr_replacement, \"ax\"\n883:\t{new}\n884:\n\t.popsection\n"
    )
}

fn linked(object: &[u8]) -> Vec<u8> {
    let defined = gas::assemble(
        "\t.section .data..percpu, \"aw\"\n\t.globl cpu_tss_rw\ncpu_tss_rw:\t.zero 0x1000\n\
         \t.text\n\t.globl native_irq_return_iret\nnative_irq_return_iret:\tiretq\n\tint3\n\
         \t.globl __x86_return_thunk\n__x86_return_thunk:\tret\n\tint3\n",
        &[],
    );
    let script = tempfile::NamedTempFile::new().unwrap();
    let text = "SECTIONS { .text 0xffffffff81000000 : { *(.entry.text) *(.text) } \
                .altinstr_replacement : { *(.altinstr_replacement) } \
                .altinstructions : { *(.altinstructions) } .return_sites : { *(.return_sites) } \
                .ibt_endbr_seal : { *(.ibt_endbr_seal) } \
                .data..percpu 0xffffffff83000000 : { *(.data..percpu) } \
                __jump_table : { *(__jump_table) } }";
    std::fs::write(script.path(), text).unwrap();
    let args = ["-no-pie", "-T", script.path().to_str().unwrap(), "-e", "switcher_enter_guest"];
    gas::process_all("ld", &args, &[object, &defined])
}

#[test]
fn an_alternative_is_what_runs_where_its_feature_is() {
    let object = with(&[("ALTERNATIVES", 1)]);
    for file in [&object, &linked(&object)] {
        // The variant says how many levels there are.
        assert_eq!(verdicts(file, "intel-4level"), [("la57=off".into(), None)]);
        assert_eq!(verdicts(file, "intel-la57"), [("la57=on".into(), None)]);
        // Whoever says nothing is asked.
        let both = elf::images(file, profile().request()).unwrap();
        assert_eq!(both.len(), 2);
        let error = elf::read_as(file, profile().request()).unwrap_err();
        assert!(matches!(&error, ReadError::Open { .. }), "{error}");
        assert!(error.to_string().contains("la57=on"), "{error}");
    }
    // The bytes of the file are those of four levels.
    let plain = with(&[]);
    let five = verdicts(&plain, "intel-la57");
    assert!(matches!(&five[..], [(choices, Some(_))] if choices.is_empty()), "{five:?}");
}

#[test]
fn an_alternative_that_is_wrong_is_refuted_although_the_file_is_right() {
    let source = gas::replaced(KERNEL, &[("\tsar\t$7, %rcx\n", "\tsar\t$8, %rcx\n")]);
    let object = gas::assemble(&source, &[("ALTERNATIVES", 1)]);
    for file in [&object, &linked(&object)] {
        assert_eq!(verdicts(file, "intel-4level"), [("la57=off".into(), None)]);
        let [(_, Some(_))] = &verdicts(file, "intel-la57")[..] else { panic!("not refuted") };
    }
}

#[test]
fn each_combination_of_features_is_judged_by_name() {
    // CLAC is #UD without SMAP, and the alternative knows.
    let clac = at_exit(&alternative("", "clac", "9 * 32 + 20", 0));
    let both = [("smap=off".to_owned(), None), ("smap=on".to_owned(), None)];
    assert_eq!(verdicts(&clac, "intel-4level"), both);
    assert_eq!(verdicts(&linked(&clac), "intel-4level"), both);
    // The other way round, it is executed where it does not exist.
    let inverted = at_exit(&alternative("", "clac", "9 * 32 + 20", 1));
    let expected = [("smap=off".to_owned(), Some("exists")), ("smap=on".to_owned(), None)];
    assert_eq!(verdicts(&inverted, "intel-4level"), expected);
    // Of two, one image each way.
    let two = alternative("", "clac", "9 * 32 + 20", 0)
        + &alternative("", "mov %rax, %gs:0", "7 * 32 + 11", 0);
    let two = verdicts(&at_exit(&two), "intel-4level");
    let wrong: Vec<_> = two.iter().filter(|(_, broken)| broken.is_some()).collect();
    assert_eq!((two.len(), wrong.len()), (4, 2), "{two:?}");
    assert!(wrong.iter().all(|(choices, _)| choices.contains("7*32+11=on")), "{two:?}");
}

#[test]
fn of_several_alternatives_of_one_place_the_last_that_applies_runs() {
    let second = alternative("", "clac", "9 * 32 + 20", 0);
    // The second entry is about the same place, and comes after.
    let more = "\t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 893f - .\n\
         \t.short 7 * 32 + 11, 0\n\t.byte 885b - 881b, 894f - 893f\n\t.popsection\n\
         \t.pushsection .altinstr_replacement, \"ax\"\n893:\tcld\n894:\n\t.popsection\n";
    let all = verdicts(&at_exit(&(second + more)), "intel-4level");
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
}

#[test]
fn code_that_is_moved_leads_where_it_led() {
    // A jump out of the alternative, and an operand that counts from RIP.
    let jump = alternative("nop", "jmp 777f", "7 * 32 + 11", 0) + "777:\n";
    let operand = alternative("nop", "cmpq $0, %gs:cpu_tss_rw + HOST_RSP(%rip)", "7 * 32 + 11", 0);
    for code in [jump, operand] {
        let object = at_exit(&code);
        for file in [&object, &linked(&object)] {
            let all = verdicts_of(file, "intel-4level", &[(Choice::Since6_5, true)]);
            let wrong = |(_, broken): &(String, Option<&str>)| broken.is_some();
            assert!(all.len() == 2 && !all.iter().any(wrong), "{code}: {all:?}");
        }
    }
    // Past the load of the root, it is wrong.
    let away = alternative("nop", "jmp 1f", "7 * 32 + 11", 0);
    let object = at_exit(&away);
    for file in [&object, &linked(&object)] {
        let all = verdicts(file, "intel-4level");
        assert!(all[0].1.is_none() && all[1].1.is_some(), "{all:?}");
    }
}

#[test]
fn returns_are_jumps_to_a_thunk_or_they_are_not() {
    let object = with(&[("THUNKS", 1)]);
    // The object jumps to the thunk, and without a fault of returns Linux puts a RET there.
    for file in [&object, &linked(&object)] {
        assert_eq!(verdicts(file, "intel-4level"), [("return-thunk=off".into(), None)]);
    }
    let on = profile().request().with_choice(Choice::ReturnThunk, true);
    let error = elf::read_as(&object, on).unwrap_err();
    assert!(
        matches!(&error, ReadError::Undefined { symbol, .. } if symbol == "__x86_return_thunk")
    );
}

#[test]
fn a_static_branch_goes_both_ways() {
    let branch = |to: &str| {
        format!(
            "991:\t.byte 0x0F, 0x1F, 0x44, 0x00, 0x00\n\t.pushsection __jump_table, \"aw\"\n\
             \t.long 991b - ., {to} - .\n\t.quad 0\n\t.popsection\n992:\n"
        )
    };
    let right = at_exit(&branch("992f"));
    for file in [&right, &linked(&right)] {
        let all = verdicts(file, "intel-4level");
        assert!(all.len() == 2 && all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
    }
    // Past the load of the root.
    let wrong = at_exit(&branch("1f"));
    for file in [&wrong, &linked(&wrong)] {
        let all = verdicts(file, "intel-4level");
        let broken: Vec<_> = all.iter().filter(|(_, broken)| broken.is_some()).collect();
        assert!(all.len() == 2 && broken.len() == 1, "{all:?}");
        assert!(broken[0].0.contains("=on"), "{all:?}");
    }
}

#[test]
fn a_landing_pad_that_is_sealed_is_none() {
    let pad = |label: &str| (format!("{label}:\n"), format!("{label}:\n\tendbr64\n"));
    let labels = ["entry_SYSCALL_64_switcher", "entry_SYSCALL_compat_switcher"].map(pad);
    let mut source = KERNEL.to_owned();
    for (from, to) in &labels {
        source = gas::replaced(&source, &[(from, to)]);
    }
    let ibt = "intel-4level-ibt";
    let proved = verdicts(&gas::assemble(&source, &[]), ibt);
    assert!(matches!(&proved[..], [(_, None)]), "{proved:?}");
    let sealed = format!(
        "{source}\n\t.section .ibt_endbr_seal, \"a\"\n\t.long entry_SYSCALL_64_switcher - .\n"
    );
    let object = gas::assemble(&sealed, &[]);
    for file in [&object, &linked(&object)] {
        let refuted = verdicts_of(file, ibt, &[(Choice::FineIbt, false)]);
        assert!(matches!(&refuted[..], [(_, Some("endbr"))]), "{refuted:?}");
    }
}

/// Versions of Linux have entries of other sizes.
#[test]
fn entries_of_other_versions_are_read_and_others_are_refused() {
    let table = |entry: &str| {
        at_exit(&format!(
            "881:\tnop\n\tnop\n\tnop\n882:\n\t.pushsection .altinstructions, \"a\"\n\
             \t.long 881b - ., 883f - .\n{entry}\t.popsection\n\
             \t.pushsection .altinstr_replacement, \"ax\"\n883:\tclac\n884:\n\t.popsection\n"
        ))
    };
    let smap = "\t.short 9 * 32 + 20\n";
    for (rest, on, off) in [
        (format!("{smap}\t.byte 882b - 881b, 884f - 883f\n"), None, None),
        (format!("{smap}\t.byte 882b - 881b, 884f - 883f, 0\n"), None, None),
        // The bit that means "not" there.
        (
            "\t.short 0x8000 | 9 * 32 + 20\n\t.byte 882b - 881b, 884f - 883f\n".to_owned(),
            None,
            Some("exists"),
        ),
    ] {
        let expected = [("smap=off".to_owned(), off), ("smap=on".to_owned(), on)];
        assert_eq!(verdicts(&table(&rest), "intel-4level"), expected, "{rest}");
    }
    let request = || profile().request().on(&variant("intel-4level"));
    for wrong in [
        // More is put there than there is room; a flag that nobody knows; another size.
        format!("{smap}\t.short 0\n\t.byte 1, 884f - 883f\n"),
        format!("{smap}\t.short 2\n\t.byte 882b - 881b, 884f - 883f\n"),
        format!("{smap}\t.byte 882b - 881b, 884f - 883f, 0, 0, 0, 0\n"),
    ] {
        let error = elf::images(&table(&wrong), request()).unwrap_err();
        assert!(matches!(&error, ReadError::Patched { .. }), "{wrong}: {error}");
    }
}

#[test]
fn more_ways_to_boot_than_can_be_judged_are_refused_with_a_way_out() {
    let all: String = (0..7)
        .map(|bit| {
            let own = alternative("", &format!("mov ${bit}, %cl"), &format!("7 * 32 + {bit}"), 0);
            (881..=885)
                .fold(own, |own, label| own.replace(&label.to_string(), &format!("{label}{bit}")))
        })
        .collect();
    let object = at_exit(&all);
    let request = profile().request().on(&variant("intel-4level"));
    let error = elf::images(&object, request.clone()).unwrap_err();
    assert!(matches!(&error, ReadError::Combinations { .. }), "{error}");
    assert!(error.to_string().contains("--boot"), "{error}");
    let choices =
        |number: u16| Choice::Feature(format!("7*32+{number}").parse::<Feature>().unwrap());
    let fewer =
        (2..7).fold(request, |request: Request, bit| request.with_choice(choices(bit), false));
    assert_eq!(elf::images(&object, fewer).unwrap().len(), 4);
}

/// Two images of the same bytes are two, if the CPUs differ that they run on.
#[test]
fn the_same_bytes_on_another_cpu_are_another_image() {
    let first = alternative("", "clac", "7 * 32 + 11", 0);
    let second = "\t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 883b - .\n\
         \t.short 9 * 32 + 20, 0\n\t.byte 885b - 881b, 884b - 883b\n\t.popsection\n";
    let all = verdicts(&at_exit(&(first + second)), "intel-4level");
    let wrong: Vec<_> = all.iter().filter(|(_, broken)| *broken == Some("exists")).collect();
    assert!(matches!(wrong[..], [(choices, _)] if choices == "7*32+11=on, smap=off"), "{all:?}");
}

/// Before 6.3, Linux corrects the distance of a call and of a jump that comes first, and no other.
#[test]
fn old_versions_correct_few_distances() {
    let old = |new: &str| {
        let own = alternative("nop", new, "7 * 32 + 11", 0);
        at_exit(&(own.replace("\t.short 7 * 32 + 11, 0\n", "\t.short 7 * 32 + 11\n") + "777:\n"))
    };
    let jump = verdicts(&old(".byte 0xe9; .long 777f - . - 4"), "intel-4level");
    assert!(jump.len() == 2 && jump.iter().all(|(_, broken)| broken.is_none()), "{jump:?}");
    for wrong in
        ["cmpq $0, %gs:cpu_tss_rw + HOST_RSP(%rip)", ".byte 0x0f, 0x84; .long 777f - . - 4"]
    {
        let request = profile().request().on(&variant("intel-4level"));
        let error = elf::images(&old(wrong), request).unwrap_err();
        assert!(error.to_string().contains("does not correct"), "{wrong}: {error}");
    }
}

/// Returns come first, then alternatives, then landing pads that are still there.
#[test]
fn what_is_patched_last_runs() {
    let stuck = "cmp %rax, %rax\n\tjne .";
    let over = gas::replaced(
        KERNEL,
        &[(
            "771:\tjmp\t__x86_return_thunk\n",
            &alternative("jmp __x86_return_thunk", stuck, "7 * 32 + 11", 0).replacen(
                "881:",
                "881:\n771:",
                1,
            ),
        )],
    );
    let object = gas::assemble(&over, &[("THUNKS", 1)]);
    let variant = variant("intel-4level");
    let images = images(&object, &variant);
    assert_eq!(images.len(), 2);
    for image in images {
        let is_on = image.choices[&Choice::Feature("7*32+11".parse().unwrap())];
        let verdict = Prover::default().prove(&target(&image, &variant));
        assert_eq!(matches!(verdict, Verdict::Proved(_)), !is_on, "{verdict:?}");
    }
}

/// Linux makes another jump of those returns that are named, and leaves a plain RET to the others.
#[test]
fn a_return_that_is_to_be_untrained_is_named() {
    let named = "\t.pushsection .return_sites, \"a\"\n\t.long\t771b - .\n\t.popsection\n";
    let source = gas::replaced(KERNEL, &[(named, "")]);
    let unnamed = gas::assemble(&source, &[("THUNKS", 1)]);
    let thunk = said("amd-4level+untrain", &[])
        .with_symbol("switcher_host_return_thunk", "__x86_return_thunk")
        .unwrap();
    let error = elf::images(&unnamed, thunk.clone()).unwrap_err();
    assert!(error.to_string().contains("run objtool on the file first"), "{error}");
    // Once it is linked with the thunk, nothing but the address tells where it leads.
    let error = elf::images(&linked(&unnamed), thunk.clone()).unwrap_err();
    assert!(error.to_string().contains("run objtool on the file first"), "{error}");
    let named = gas::assemble(KERNEL, &[("THUNKS", 1)]);
    let images = elf::images(&named, thunk);
    assert!(images.is_ok(), "{}", images.unwrap_err());
}

#[test]
fn a_jump_that_leads_elsewhere_is_no_return() {
    let source = gas::replaced(
        KERNEL,
        &[(
            "\tjmp\t__x86_return_thunk\n",
            "\tjmp\tentry_SYSCALL_compat_switcher\n\t.skip 3, 0xCC\n",
        )],
    );
    let object = gas::assemble(&source, &[("THUNKS", 1)]);
    for file in [&object, &linked(&object)] {
        let all = verdicts(file, "intel-4level");
        assert!(matches!(&all[..], [(_, Some(_))]), "{all:?}");
    }
}

/// NOPs become fewer, and code that leads between them leads into one.
#[test]
fn nothing_leads_into_the_middle_of_what_is_changed() {
    let request = || profile().request().on(&variant("intel-4level"));
    for (old, new) in [
        (".skip 4, 0x90; 999: .skip 4, 0x90", "clac"),
        // Of several bytes each.
        ("nopl 0(%rax,%rax); 999: nopl (%rax)", "clac"),
        // What comes first may be put there.
        ("cld; cld; cld; 999: cld; cld", "clac"),
    ] {
        let middle = at_exit(&format!("\tjmp 999f\n{}", alternative(old, new, "9 * 32 + 20", 0)));
        let error = elf::images(&middle, request()).unwrap_err();
        assert!(error.to_string().contains("into the middle"), "{old}: {error}");
    }
    // A loop of its own is no middle.
    let own =
        alternative("mov $3, %ecx; 999: dec %ecx; jnz 999b", "xor %ecx, %ecx", "9 * 32 + 20", 0);
    let all = verdicts(&at_exit(&own), "intel-4level");
    assert!(all.len() == 2 && all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
}

/// Where two tables meet, the order decides, and versions differ.
#[test]
fn places_that_several_tables_change_are_refused() {
    let request = || profile().request().on(&variant("intel-4level"));
    let clac = alternative("nop; nop; nop; nop; nop", "clac", "9 * 32 + 20", 0);
    let table = |section: &str, more: &str| {
        format!("{clac}\t.pushsection {section}, \"aw\"\n\t.long 881b - .{more}\n\t.popsection\n")
    };
    let branch = clac.replace("nop; nop; nop; nop; nop", ".byte 0x0F, 0x1F, 0x44, 0x00, 0x00");
    let branch = format!(
        "{branch}\t.pushsection __jump_table, \"aw\"\n\t.long 881b - ., 885b - .\n\t.quad 0\n\t.popsection\n"
    );
    // Code that is put somewhere is changed before.
    let source = format!(
        "{clac}\t.pushsection .altinstructions, \"a\"\n\t.long 883b - ., 893f - .\n\
         \t.short 7 * 32 + 11, 0\n\t.byte 3, 3\n\t.popsection\n\
         \t.pushsection .altinstr_replacement, \"ax\"\n893:\tnop; nop; nop\n\t.popsection\n"
    );
    for wrong in [table(".ibt_endbr_seal", ""), branch, source] {
        let error = elf::images(&at_exit(&wrong), request()).unwrap_err();
        assert!(error.to_string().contains("not modelled"), "{wrong}: {error}");
    }
}

/// What is put somewhere is code like any other, of this file.
#[test]
fn what_is_put_there_is_what_the_file_has() {
    let request = || profile().request().on(&variant("intel-4level"));
    let own = alternative("", "clac", "9 * 32 + 20", 0);
    let refused = |code: String, part: &str| {
        let error = elf::images(&at_exit(&code), request()).expect_err(part);
        assert!(error.to_string().contains(part), "{part}: {error}");
    };
    refused(own.replace("\"ax\"", "\"awx\""), "writable");
    refused(own.replace("\"ax\"", "\"axG\", @progbits, some, comdat"), "group");
    refused(
        own.replace("883f - .", "mine - .").replace("883:", "\t.weak mine\nmine:\n883:"),
        "alternatives",
    );
}

/// A thunk that this file defines itself is not one that Linux rewrites.
#[test]
fn a_local_thunk_is_no_return() {
    let local = format!(
        "{KERNEL}\n\t.section .entry.text, \"ax\"\n__x86_return_thunk:\tmov %rax, %cr3\n\tret\n\tint3\n"
    );
    let all = verdicts(&gas::assemble(&local, &[("THUNKS", 1)]), "intel-4level");
    assert!(matches!(&all[..], [(_, Some(_))]), "{all:?}");
}

/// What is not known of an entry counts where the code reaches its place.
#[test]
fn an_entry_of_an_unknown_kind_counts_where_it_is_reached() {
    let unknown = alternative("nop", "nop", "7 * 32 + 11", 2);
    let elsewhere = format!("\t.pushsection .text, \"ax\"\n\tret\n{unknown}\t.popsection\n");
    let both = elsewhere + &alternative("", "clac", "9 * 32 + 20", 0).replace("88", "87");
    let all = verdicts(&at_exit(&both), "intel-4level");
    assert!(all.len() == 2 && all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
    let request = profile().request().on(&variant("intel-4level"));
    let error = elf::images(&at_exit(&unknown), request).unwrap_err();
    assert!(error.to_string().contains("not modelled"), "{error}");
}

/// Linux takes the longest of several entries about one place.
#[test]
fn the_longest_entry_says_how_much_of_a_place_there_is() {
    let first = alternative("nop; nop; nop; nop; nop; nop", "clac", "9 * 32 + 20", 0);
    let second = "\t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 893f - .\n\
         \t.short 7 * 32 + 11, 0\n\t.byte 3, 894f - 893f\n\t.popsection\n\
         \t.pushsection .altinstr_replacement, \"ax\"\n893:\tcld\n894:\n\t.popsection\n";
    let object = at_exit(&(first + second));
    let all = verdicts_of(&object, "intel-4level", &[(Choice::Since6_10, true)]);
    assert!(all.len() == 4 && all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
}

#[test]
fn a_number_of_a_table_that_is_relocated_is_not_read() {
    let own = alternative("", "clac", "9 * 32 + 20", 0)
        .replace("\t.short 9 * 32 + 20, 0\n", "\t.short 9 * 32 + 20, other\n");
    let request = profile().request().on(&variant("intel-4level"));
    let error = elf::images(&at_exit(&own), request).unwrap_err();
    assert!(matches!(&error, ReadError::Patched { .. }), "{error}");
}

/// A kernel may leave landing pads alone on a CPU that has them, and then the CPU still has them.
#[test]
fn a_variant_without_landing_pads_says_nothing_of_the_cpu() {
    let right = at_exit(&alternative("", "cld", "18 * 32 + 20", 0));
    let wrong = at_exit(&alternative("", "mov %rax, %gs:0", "18 * 32 + 20", 0));
    let all = verdicts(&right, "intel-4level");
    assert_eq!(all, [("ibt=off".to_owned(), None), ("ibt=on".to_owned(), None)]);
    let all = verdicts(&wrong, "intel-4level");
    assert!(matches!(&all[..], [(_, None), (on, Some(_))] if on == "ibt=on"), "{all:?}");
    let off = [(Choice::Feature(Feature::IBT), false)];
    assert_eq!(verdicts_of(&wrong, "intel-4level", &off), [("ibt=off".to_owned(), None)]);
}

/// The verdict says which bytes it is about.
#[test]
fn what_was_chosen_is_said() {
    let variant = variant("intel-4level");
    for (symbols, part) in
        [([("THUNKS", 1)], "return-thunk=off"), ([("ALTERNATIVES", 1)], "la57=off")]
    {
        let images = images(&with(&symbols), &variant);
        let assumed = target(&images[0], &variant).assumed;
        assert!(assumed.iter().any(|text| text.contains(part)), "{assumed:?}");
    }
    let request = profile().request().with_choice(Choice::Branch("nowhere".into()), true);
    let error = elf::images(&with(&[]), request).unwrap_err();
    assert!(error.to_string().contains("branch@nowhere"), "{error}");
}
