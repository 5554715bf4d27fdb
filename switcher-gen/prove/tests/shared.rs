//! Proofs that are shared are the proofs there would have been, and no other code gets one.

use std::sync::Arc;

use iced_x86::{Code, Instruction, Register};

use switcher_gen::arch::{RFlags, vector};
use switcher_gen::layout::IretFrame;
use switcher_gen::{Image, Mitigations, Variant};
use switcher_model::Program;
use switcher_prove::elf;
use switcher_prove::mutate;
use switcher_prove::mutate::Operator;
use switcher_prove::{Prover, Report, Setting, Shared, SharingProver, Target, Theorem, Verdict};
use text::text;

mod gas;
mod text;

const THEOREMS: usize = Theorem::ALL.len();
const WITH_EVENTS: usize = THEOREMS + Theorem::EVENTS.len();

/// How many theorems there are about it.
fn theorems(target: &Target) -> usize {
    if target.gates.is_some() { WITH_EVENTS } else { THEOREMS }
}

fn ours(variant: &Variant) -> Target {
    Target::image(&Image::new(variant).unwrap())
}

fn reference() -> Target {
    ours(&Variant::REFERENCE)
}

fn by_hand(replacements: &[(&str, &str)]) -> Target {
    let source = gas::replaced(gas::SWITCHER, replacements);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    Target::foreign(&foreign, Setting::from(&Variant::REFERENCE)).unwrap()
}

/// The same code elsewhere.
fn moved(target: &Target) -> Target {
    const BY: u64 = 0x3040;
    let mut moved = target.clone();
    moved.program = Program::new(target.program.base() + BY, target.program.first_piece().to_vec());
    for at in [&mut moved.enter_guest, &mut moved.return_from_guest, &mut moved.syscall_64] {
        *at += BY;
    }
    for at in [&mut moved.syscall_compat, &mut moved.iretq]
        .into_iter()
        .chain(&mut moved.hand_on)
        .flatten()
    {
        *at += BY;
    }
    // Calls of them say how far they are.
    moved.hooks.iter_mut().for_each(|hook| *hook += BY);
    for gate in moved.gates.iter_mut().flatten() {
        gate.address += BY;
    }
    for range in moved.windows.values_mut().flatten() {
        *range = range.start + BY..range.end + BY;
    }
    for range in moved.routines.iter_mut().chain(&mut moved.extent) {
        *range = range.start + BY..range.end + BY;
    }
    moved
}

#[track_caller]
fn proved(verdict: Verdict) -> Vec<Report> {
    match verdict {
        Verdict::Proved(reports) => reports,
        other => panic!("{other:?}"),
    }
}

/// How many theorems about `second` share a proof with one about `first`.
#[track_caller]
fn sharing(first: &Target, second: &Target) -> usize {
    let shared = Arc::default();
    proved(SharingProver::new(&shared).prove(first));
    let own = shared.shared();
    assert_eq!(shared.proved() + own, theorems(first));
    proved(SharingProver::new(&shared).prove(second));
    assert_eq!(shared.proved() + shared.shared(), theorems(first) + theorems(second));
    shared.shared() - own
}

/// On two threads at once, too.
#[test]
fn a_shared_proof_is_the_one_there_would_have_been() {
    let shared = Arc::<Shared>::default();
    let all = || -> Vec<Vec<Report>> {
        let prove = |variant| proved(SharingProver::new(&shared).prove(&ours(&variant)));
        Variant::representative().map(prove).collect()
    };
    let [one, other] = std::thread::scope(|scope| {
        [scope.spawn(all), scope.spawn(all)].map(|thread| thread.join().unwrap())
    });
    assert_eq!(one, other);
    // PCIDs change no instruction, so about half of them; and all of the second thread's. What asks
    // whether an address is in the image is proved for each size of it.
    let theorems = WITH_EVENTS * Variant::representative().count();
    assert_eq!(shared.proved() + shared.shared(), 2 * theorems);
    assert!(shared.proved() <= theorems * 2 / 3, "{}", shared.proved());
    // Those that were not proved themselves.
    let is_like_another =
        |variant: &Variant| variant.pcid() || variant.mitigations() != Mitigations::NONE;
    for (variant, reports) in Variant::representative().zip(one) {
        if !is_like_another(&variant) {
            continue;
        }
        assert_eq!(proved(Prover::default().prove(&ours(&variant))), reports, "{variant}");
    }
}

#[test]
fn where_code_lies_does_not_matter() {
    // But for what looks at the IDT, at the IRETQ's address (5), has a handler return to an address
    // of its own (2), or decides by where the routines are (2).
    assert_eq!(sharing(&reference(), &moved(&reference())), WITH_EVENTS - 10);
    // Calls of its own and RETs to after them.
    let mitigated = ours(&"intel-4level+ibrs+rsb+bhb+verw".parse().unwrap());
    assert_eq!(sharing(&mitigated, &moved(&mitigated)), WITH_EVENTS - 10);
    let gap = (
        "\nroutine entry_SYSCALL_compat_switcher\n",
        "\n\t.skip 37, 0xCC\nroutine entry_SYSCALL_compat_switcher\n",
    );
    assert_eq!(sharing(&by_hand(&[]), &by_hand(&[gap])), THEOREMS);
    // One exit more does not change how a guest is entered, nor what answers a 32-bit SYSCALL.
    let longer = ("\tclear_all ecx, edx,", "\tnop\n\tclear_all ecx, edx,");
    assert_eq!(sharing(&by_hand(&[]), &by_hand(&[longer])), 2);
    // What is saved is saved in the same place.
    let enter = ("\tmovq\t%gs:TSS_SP0, %rsp\n\tsubq", "\tnop\n\tmovq\t%gs:TSS_SP0, %rsp\n\tsubq");
    assert_eq!(sharing(&by_hand(&[]), &by_hand(&[enter])), THEOREMS - 1);
}

/// What depends on an address, or might.
#[test]
fn where_code_lies_matters_where_an_address_is_a_value() {
    const EXIT: &str = "\tclear_all ecx, edx,";
    let exit = |more: &str| by_hand(&[(EXIT, &format!("{more}{EXIT}"))]);
    // Three theorems come to the exit. What is said of the same place holds there.
    let call = exit("\tcall\t1f\n\tint3\n1:\tpopq\t%rcx\n");
    assert_eq!(sharing(&call, &call), THEOREMS);
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS - 3);
    // A part of it.
    let part = exit("\tcall\t1f\n\tint3\n1:\tmovb\t3(%rsp), %cl\n\taddq\t$8, %rsp\n");
    assert_eq!(sharing(&part, &moved(&part)), THEOREMS - 3);
    // What is left of it, once a part has been overwritten; nothing is left of the whole.
    let part = exit("\tcall\t1f\n\tint3\n1:\tmovb\t$0, 3(%rsp)\n\taddq\t$8, %rsp\n");
    assert_eq!(sharing(&part, &moved(&part)), THEOREMS - 3);
    let whole = exit("\tcall\t1f\n\tint3\n1:\tmovq\t$0, (%rsp)\n\tpopq\t%rcx\n");
    assert_eq!(sharing(&whole, &moved(&whole)), THEOREMS);
    // Nobody reads it.
    let call = exit("\tcall\t1f\n\tint3\n1:\taddq\t$8, %rsp\n");
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS);
    // Only a RET does.
    let call = exit("\tcall\t1f\n\tjmp\t2f\n1:\tret\n\tint3\n2:\n");
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS);
    let address = exit("\tleaq\t1f(%rip), %rcx\n1:\n");
    assert_eq!(sharing(&address, &address), THEOREMS);
    assert_eq!(sharing(&address, &moved(&address)), THEOREMS - 3);
    // Nobody knows of it what it needs.
    let jump = exit("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n1:\n");
    assert_eq!(sharing(&jump, &moved(&jump)), THEOREMS - 3);
    // It shows on the way.
    let data = exit("\tmovl\tentry_SYSCALL_compat_switcher(%rip), %ecx\n");
    assert_eq!(sharing(&data, &data), THEOREMS - 3);
    let ret = exit("\tleaq\t1f(%rip), %rcx\n\tpushq\t%rcx\n\tret\n\tint3\n1:\n");
    assert_eq!(sharing(&ret, &ret), THEOREMS - 3);
}

/// Code at one place, its way to what cannot be gone on from leading through a gap, with this code
/// so many bytes in front of the last place there.
fn fatal_through_a_gap(code: &[u8], offset: usize) -> Target {
    let mut target = ours(&"intel-4level+bhb".parse().unwrap());
    let base = target.program.base();
    // The last before the stubs is within the window of the guest's root.
    let stubs = target.gates.as_ref().unwrap()[0].address - base;
    let mut starts = target.program.first_piece()[..stubs as usize].windows(32);
    let gap = base + (starts.rposition(|bytes| bytes == [0xCC; 32]).unwrap() - offset) as u64;
    // The entry of INT 9, whose first instruction is five bytes, as a jump is.
    let entry = target.gates.as_ref().unwrap()[usize::from(vector::SEGMENT_OVERRUN)].address;
    let entry = target.program.instruction(entry).near_branch_target();
    let length = target.program.instruction(entry).len();
    assert_eq!(length, 5);
    let first = (entry - base) as usize..(entry - base) as usize + length;
    let first = target.program.first_piece()[first].to_vec();
    let jump = |from: u64, to: u64| {
        let distance = i32::try_from(to.wrapping_sub(from + 5).cast_signed()).unwrap();
        [&[0xE9][..], &distance.to_le_bytes()].concat()
    };
    let mut code = code.to_vec();
    code.extend(&first);
    code.extend(jump(gap + code.len() as u64, entry + length as u64));
    target.program.patch(gap, &code);
    target.program.patch(entry, &jump(entry, gap));
    target
}

/// What an INT has pushed is an address, and may lie where one did that a call has pushed.
#[test]
fn where_code_lies_matters_behind_an_int() {
    // A call and its RET, with a trap; and what reads the address that the INT has pushed.
    let call = [0xE8, 2, 0, 0, 0, 0xEB, 2, 0xC3, 0xCC];
    let load = [0x48, 0x8B, 0x04, 0x24];
    for code in [&call[..], &load] {
        let [one, other] = [3, 4].map(|offset| fatal_through_a_gap(code, offset));
        assert_eq!(sharing(&one, &one), WITH_EVENTS);
        // Not what comes by there, on a path or an arm, what looks at the IDT, and what a handler
        // returns to. The fault of an
        // IRETQ to a guest does not: its arms end at the fence before the host's hook.
        assert_eq!(sharing(&one, &other), WITH_EVENTS - 7);
    }
}

/// Among them are some whose calls and RETs lie elsewhere than those of whose proofs they get.
#[test]
fn with_mitigations_too() {
    let shared = Arc::<Shared>::default();
    let names = [
        "intel-4level+ibrs+rsb+bhb",
        "intel-4level+ibrs+rsb+bhb+verw",
        "intel-4level-pcid+ibrs+rsb+bhb+verw",
        "intel-4level-percpu+rsb",
        "intel-4level-percpu+rsb+verw",
    ];
    for name in names {
        let target = ours(&name.parse().unwrap());
        let reports = proved(SharingProver::new(&shared).prove(&target));
        assert_eq!(proved(Prover::default().prove(&target)), reports, "{name}");
    }
    assert_eq!(shared.proved() + shared.shared(), names.len() * WITH_EVENTS);
    // An arm that a guest's #DB does not take leads to the VERW that only some of them have; and
    // what asks for the end of the image is not shared between sizes of it.
    assert!(shared.shared() > 2 * WITH_EVENTS - 6, "{}", shared.shared());
}

/// The obligation, if there is one.
fn verdict(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Proved(_) => None,
        Verdict::Refuted(found) => Some(found.obligation.name),
        Verdict::Unknown(_) => Some("unknown"),
        Verdict::Unsupported(_) => Some("refused"),
        Verdict::Interrupted(_) => Some("interrupted"),
    }
}

/// The same of `target` by itself and with what was shown of `original`.
#[track_caller]
fn verdict_beside(original: &Arc<Shared>, target: &Target) -> Option<&'static str> {
    let own = Prover::default().prove(target);
    let shared = SharingProver::new(&original.fork()).prove(target);
    let theorem = |verdict: &Verdict| match verdict {
        Verdict::Refuted(found) => Some(found.theorem),
        _ => None,
    };
    assert_eq!(theorem(&shared), theorem(&own));
    let own = verdict(own);
    assert_eq!(verdict(shared), own);
    own
}

/// An MSR may hold an address of the code, or be to hold it.
#[test]
fn what_an_msr_says_of_an_address_is_not_shared() {
    // LSTAR, found to be what it is; and written, to what it is.
    let number = "\tmovq\t%rax, %rsi\n\tmovl\t$0xC0000082, %ecx\n";
    let read = "\trdmsr\n\tmovabsq\t$entry_SYSCALL_64_switcher, %rcx\n\tcmpl\t%ecx, %eax\n\
                \tje\t1f\n\tud2\n1:\tmovq\t%rsi, %rax\n";
    let written = "\tmovabsq\t$entry_SYSCALL_64_switcher, %rax\n\tmovq\t%rax, %rdx\n\
                   \tshrq\t$32, %rdx\n\twrmsr\n\tmovq\t%rsi, %rax\n";
    // The file says where it lies, so that what is read there is right; and wrong elsewhere.
    for (access, there, elsewhere) in
        [(read, None, Some("no-trap")), (written, Some("kept"), Some("kept"))]
    {
        const EXIT: &str = "\tclear_all ecx, edx,";
        let target = by_hand(&[(EXIT, &format!("{number}{access}{EXIT}"))]);
        let shared = Arc::<Shared>::default();
        assert_eq!(verdict_beside(&shared, &target), there);
        assert_eq!(verdict_beside(&shared, &moved(&target)), elsewhere);
    }
}

/// What stacks the IDT names, the theorems about events take for granted.
#[test]
fn other_stacks_need_proofs_of_their_own() {
    let mut other = reference();
    for gate in other.gates.iter_mut().flatten() {
        gate.ist = match gate.vector {
            vector::NMI => 4,
            vector::MC => 2,
            _ => gate.ist,
        };
    }
    let ists = |target: &Target| {
        target.gates.iter().flatten().map(|gate| (gate.vector, gate.ist)).collect::<Vec<_>>()
    };
    assert_ne!(ists(&other), ists(&reference()));
    assert_eq!(sharing(&reference(), &other), THEOREMS);
}

/// Nor are theorems that a mitigation is asked of those that it is not asked of.
#[test]
fn a_proof_without_mitigations_is_none_with_them() {
    let unmitigated = reference();
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&unmitigated));
    for (name, obligation) in [
        ("intel-4level+ibrs", "spec-ctrl"),
        ("intel-4level+rsb", "rsb-filled"),
        ("intel-4level+bhb", "bhb-cleared"),
        ("intel-4level+verw", "verw-last"),
    ] {
        let setting = ours(&name.parse().unwrap()).setting;
        let asked = unmitigated.clone().with_setting(setting);
        assert_eq!(verdict_beside(&shared, &asked), Some(obligation), "{name}");
    }
    let setting = ours(&"amd-4level+untrain".parse().unwrap()).setting;
    let amd = ours(&"amd-4level".parse().unwrap());
    proved(SharingProver::new(&shared).prove(&amd));
    assert_eq!(verdict_beside(&shared, &amd.with_setting(setting)), Some("untrained"));
    // Of a hook alone, all else having what it needs.
    let verw = ours(&"intel-4level+verw".parse().unwrap());
    let without = Setting::from(&Variant::REFERENCE);
    let hooks =
        mutate::mutants_of(&verw, &text!(; verw WORD [BYTE rsp + IretFrame::ss.low_word()]));
    let hooks = hooks.iter().find(|mutant| mutant.operator == Operator::Delete).unwrap();
    let hooks = hooks.target().unwrap();
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&hooks.clone().with_setting(without)));
    assert_eq!(verdict_beside(&shared, &hooks), Some("verw-last"));
}

/// An NMI's entry that takes NOFLUSH away and sets it again, as may be done where there are PCIDs.
#[test]
fn what_events_ask_of_the_cpu_is_not_shared() {
    let ours = reference();
    let routines = ours.routines.clone().unwrap();
    let roots = mutate::mutants_of(&ours, "mov cr3,rcx");
    let at = roots.iter().map(|mutant| mutant.at).find(|at| !routines.contains(at)).unwrap();
    let bit = |code| Instruction::with2(code, Register::RCX, 63).unwrap();
    let code = [
        // No arm decides by a bit of the host's.
        Instruction::with(Code::Lfence),
        bit(Code::Btr_rm64_imm8),
        Instruction::with_branch(Code::Jae_rel32_64, mutate::behind(&ours)).unwrap(),
        bit(Code::Bts_rm64_imm8),
    ];
    let alone = mutate::inserted(&ours, at, &code).unwrap();
    let setting = Setting::from(&"intel-4level-pcid".parse().unwrap());
    let with_pcids = alone.clone().with_setting(setting);
    let shared = Arc::<Shared>::default();
    let own = verdict(Prover::default().prove(&alone));
    assert!(own.is_some());
    proved(SharingProver::new(&shared).prove(&with_pcids));
    assert_eq!(verdict_beside(&shared, &alone), own);
}

/// The same code so many bytes further on, at the same address.
fn further_on(target: &Target, by: u64) -> Target {
    let bytes = [&vec![0xCC; by as usize][..], target.program.first_piece()].concat();
    let mut moved = target.clone();
    moved.program = Program::new(target.program.base(), bytes);
    for at in [&mut moved.enter_guest, &mut moved.return_from_guest, &mut moved.syscall_64] {
        *at += by;
    }
    for at in [&mut moved.syscall_compat, &mut moved.iretq]
        .into_iter()
        .chain(&mut moved.hand_on)
        .flatten()
    {
        *at += by;
    }
    for gate in moved.gates.iter_mut().flatten() {
        gate.address += by;
    }
    for range in moved.windows.values_mut().flatten() {
        *range = range.start + by..range.end + by;
    }
    for range in moved.routines.iter_mut().chain(&mut moved.extent) {
        *range = range.start + by..range.end + by;
    }
    // Calls of hooks say how far they are.
    moved.hooks.iter_mut().for_each(|hook| *hook += by);
    moved
}

/// What a CPU does beside executing an instruction depends on where that is in its cache line, and
/// on what is after it: proofs that look at this are not shared with code where it is otherwise.
#[test]
fn halves_of_lines_and_what_lies_behind_are_not_shared() {
    let right = ours(&"intel-4level+bhb".parse().unwrap());
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&right));
    assert_eq!(verdict_beside(&shared, &further_on(&right, 64)), None);
    assert_eq!(verdict_beside(&shared, &further_on(&right, 32)), Some("upper-half"));
    assert_eq!(verdict_beside(&shared, &further_on(&right, 33)), Some("upper-half"));
    // Without the mitigation, nobody looks at halves.
    let without = reference();
    proved(SharingProver::new(&shared).prove(&without));
    assert_eq!(verdict_beside(&shared, &further_on(&without, 32)), None);
    // Each trap that is not executed: a NOP is as long.
    let mut untrapped = 0;
    for target in [&right, &without] {
        for mutant in mutate::mutants_of(target, "int3") {
            let before = target.program.instruction(mutant.at - 2).mnemonic();
            let is_return = matches!(before, iced_x86::Mnemonic::Iretq);
            if mutant.operator == Operator::Delete && is_return {
                let mut without = target.clone();
                without.program.patch(mutant.at, &[0x90]);
                assert_eq!(verdict_beside(&shared, &without), Some("trapped"));
                untrapped += 1;
            }
        }
    }
    assert!(untrapped >= 4, "{untrapped}");
}

/// Mitigations are asked of each RET, where a theorem has none as a rule, too.
#[test]
fn a_ret_where_there_is_none_as_a_rule_is_judged_the_same_alone_and_shared() {
    const ENTER: &str = "\tpush_all r15, r14, r13, r12, rbp, rbx\n";
    let own = |align: &str| {
        let pair = format!("\tcall\t1f\n\tjmp\t2f\n{align}1:\tret\n\tint3\n2:\n{ENTER}");
        by_hand(&[(ENTER, &pair)])
    };
    let lower = "\t.p2align\t6, 0xCC\n";
    for (name, expected) in
        [("intel-4level+bhb", "upper-half"), ("intel-4level+ibrs", "ibrs-first")]
    {
        let code = own(lower);
        let shared = Arc::<Shared>::default();
        proved(SharingProver::new(&shared).prove(&code));
        let setting = Setting::from(&name.parse::<Variant>().unwrap());
        assert_eq!(verdict_beside(&shared, &code.with_setting(setting)), Some(expected), "{name}");
    }
    // The same of an indirect branch, where it is the first that is looked at.
    let jump = format!("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n1:\n{ENTER}");
    let jump = by_hand(&[(ENTER, &format!("{lower}{jump}"))]);
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&jump));
    let setting = Setting::from(&"intel-4level+bhb".parse::<Variant>().unwrap());
    assert!(verdict_beside(&shared, &jump.with_setting(setting)).is_some());
}

/// A sample of all variants, each alone and with the proofs of those before it.
#[test]
fn a_sample_of_variants_is_judged_the_same_both_ways() {
    let shared = Arc::<Shared>::default();
    for variant in Variant::all().step_by(211) {
        let target = ours(&variant);
        let alone = proved(Prover::default().prove(&target));
        assert_eq!(proved(SharingProver::new(&shared).prove(&target)), alone, "{variant}");
    }
}

#[test]
fn a_mutant_is_not_taken_for_the_original() {
    let original = reference();
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&original));
    let judged = |target: &Target| verdict_beside(&shared, target);
    let mutants = mutate::mutants(&original);
    // Of what NMI and #MC do after the hook: CR3 is not restored, or not to what it was.
    let nmis = mutants.iter().filter(|mutant| mutant.original == "mov cr3,rax");
    let refuted: Vec<_> =
        nmis.filter_map(mutate::Mutant::target).filter_map(|target| judged(&target)).collect();
    assert!(refuted.contains(&"resumed-root"), "{refuted:?}");
    let targets = mutants.iter().step_by(211).filter_map(mutate::Mutant::target);
    let refuted = targets.filter(|target| judged(target).is_some()).count();
    assert!(refuted > 15, "{refuted}");

    // The trap after a call that does not return, by a NOP that is as long.
    let traps = mutants.iter().rfind(|mutant| mutant.original == "ud2").unwrap();
    let mut untrapped = original.clone();
    untrapped.program.patch(traps.at, &[0x66, 0x90]);
    assert_eq!(judged(&untrapped), Some("fatal-trap"));

    // What is no instruction.
    let mut hooks = original.clone();
    hooks.hooks.swap(0, 1);
    assert_eq!(judged(&hooks), Some("hook"));
    let mut label = original.clone();
    label.iretq = original.iretq.map(|at| at + 2);
    assert_eq!(judged(&label), Some("iretq-label"));
    let mut window = original.clone();
    window.windows.values_mut().next().unwrap()[0].start += 5;
    assert!(judged(&window).is_some());
    let mut flags = original.clone();
    flags.setting.sfmask -= RFlags::NT;
    assert_eq!(judged(&flags), Some("iretq-nt"));
    let mut wide = original;
    wide.setting = Setting::from(&"intel-la57".parse().unwrap());
    assert_eq!(judged(&wide), Some("sysretq-return"));
}

/// Code that makes `code` a part of an exit where no path goes, with `data` after the last
/// routine.
fn with_an_arm(code: &str, data: &str) -> Target {
    const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    const END: &str = "end_routine entry_SYSCALL_compat_switcher\n";
    let leak = "\tmovq\t%gs:HOST_CR3(%rdx), %rcx\n\tmovq\t(%r15,%rcx), %rcx\n";
    let arm = format!(
        "\tpushq\t%rax\n\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t8f\n9:{code}{leak}8:\tpopq\t%rax\n{EXIT}"
    );
    by_hand(&[(EXIT, &arm), (END, &format!("{END}{data}"))])
}

/// What an arm makes of addresses, and of what lies in the code, is not another's: one of these
/// reads what a guest may know, the other one a root.
#[test]
fn what_arms_make_of_addresses_is_not_shared() {
    const OPEN: u64 = 0x70;
    const SECRET: u64 = 0x48;
    let distance = |by: u64| {
        let code = "\tleaq\t.La(%rip), %rcx\n\tleaq\t.Lb(%rip), %rdx\n\tsubq\t%rcx, %rdx\n";
        with_an_arm(code, &format!(".La:\t.skip\t{by}, 0xCC\n.Lb:\tint3\n"))
    };
    let memory = |by: u64| {
        let code = "\tleaq\t.La(%rip), %rcx\n\tleaq\t.Lb(%rip), %rdx\n\tpushq\t%rcx\n\
                    \tsubq\t(%rsp), %rdx\n\tpopq\t%rcx\n";
        with_an_arm(code, &format!(".La:\t.skip\t{by}, 0xCC\n.Lb:\tint3\n"))
    };
    let constant = |by: u64| {
        let data = format!("\t.p2align\t3, 0xCC\n.La:\t.quad\t{by}\n");
        with_an_arm("\tmovq\t.La(%rip), %rdx\n", &data)
    };
    let pushed = |by: u64| {
        let code = "\tcall\t1f\n.Lr:\tint3\n1:\tpopq\t%rcx\n\tleaq\t.Lb(%rip), %rdx\n\
                    \tsubq\t%rcx, %rdx\n\tandl\t$0x78, %edx\n";
        let data = format!(
            "\t.p2align\t7, 0xCC\n.Lx:\t.skip\t((.Lr - .Lx) & 0x7F) + {by}, 0xCC\n.Lb:\tint3\n"
        );
        with_an_arm(code, &data)
    };
    let kinds: [&dyn Fn(u64) -> Target; 4] = [&distance, &memory, &constant, &pushed];
    for (kind, make) in kinds.into_iter().enumerate() {
        let shared = Arc::default();
        proved(SharingProver::new(&shared).prove(&make(OPEN)));
        let found = verdict(SharingProver::new(&shared).prove(&make(SECRET)));
        assert_eq!(found, Some("untaken-memory"), "{kind}");
        // The other way round.
        let shared = Arc::default();
        let _refuted = SharingProver::new(&shared).prove(&make(SECRET));
        proved(SharingProver::new(&shared).prove(&make(OPEN)));
    }
}

/// Where a RET on an arm leads by a number, the distance between the code's addresses matters: the
/// same instructions with other code there are not the same.
#[test]
fn a_ret_on_an_arm_leads_to_other_code() {
    const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    const END: &str = "end_routine entry_SYSCALL_compat_switcher\n";
    let arm = "\tpushq\t%rax\n\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tcmpq\t%rsp, %rsp\n\tjne\t.Lcode\n\
        \tjmp\t8f\n9:\tleaq\t.Lto(%rip), %rcx\n\tpushq\t%rcx\n\tret\n\tint3\n8:\tpopq\t%rax\n";
    // `.Lto` is an LFENCE with ten bytes before the code, and what comes after them with one.
    let with = |before: usize| {
        let code = format!(
            "\t.skip\t256, 0xCC\n.Lend:\n\t.set\t.Lto, .Lend+10\n\t.skip\t{before}, 0xCC\n.Lcode:\n\
            \tlfence\n\tlfence\n\tlfence\n\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n\tud2\n"
        );
        by_hand(&[(EXIT, &format!("{arm}{EXIT}")), (END, &format!("{END}{code}"))])
    };
    let (right, wrong) = (with(10), with(1));
    assert_eq!(verdict_beside(&Arc::default(), &wrong), Some("untaken-memory"));
    let shared = Arc::<Shared>::default();
    proved(SharingProver::new(&shared).prove(&right));
    assert_eq!(verdict_beside(&shared, &wrong), Some("untaken-memory"));
}
