//! Proofs that are shared are the proofs there would have been, and no other code gets one.

use std::sync::Arc;

use switcher_gen::arch::RFlags;
use switcher_gen::machine::Program;
use switcher_gen::mutate;
use switcher_gen::prove::{BadCode, Prover, Report, Setting, Shared, Target, Theorem, Verdict};
use switcher_gen::{Image, Mitigations, Variant, elf};

mod gas;

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
    moved.program = Program::new(target.program.base() + BY, target.program.bytes().to_vec());
    for at in [&mut moved.enter_guest, &mut moved.return_from_guest, &mut moved.syscall_64] {
        *at += BY;
    }
    for at in [&mut moved.syscall_compat, &mut moved.iretq].into_iter().flatten() {
        *at += BY;
    }
    // Calls of them say how far they are.
    moved.hooks.iter_mut().for_each(|hook| *hook += BY);
    for gate in moved.gates.iter_mut().flatten() {
        gate.address += BY;
    }
    for (_, range) in moved.windows.iter_mut().flatten() {
        *range = range.start + BY..range.end + BY;
    }
    moved
}

#[track_caller]
fn proved(verdict: Result<Verdict, BadCode>) -> Vec<Report> {
    match verdict {
        Ok(Verdict::Proved(reports)) => reports,
        other => panic!("{other:?}"),
    }
}

/// How many theorems about `second` share a proof with one about `first`.
#[track_caller]
fn sharing(first: &Target, second: &Target) -> usize {
    let shared = Arc::default();
    proved(Prover::sharing(&shared).prove(first));
    let own = shared.shared();
    assert_eq!(shared.proved() + own, theorems(first));
    proved(Prover::sharing(&shared).prove(second));
    assert_eq!(shared.proved() + shared.shared(), theorems(first) + theorems(second));
    shared.shared() - own
}

/// On two threads at once, too.
#[test]
fn a_shared_proof_is_the_one_there_would_have_been() {
    let shared = Arc::<Shared>::default();
    let all = || -> Vec<Vec<Report>> {
        let prove = |variant| proved(Prover::sharing(&shared).prove(&ours(&variant)));
        Variant::representative().map(prove).collect()
    };
    let [one, other] = std::thread::scope(|scope| {
        [scope.spawn(all), scope.spawn(all)].map(|thread| thread.join().unwrap())
    });
    assert_eq!(one, other);
    // PCIDs change no instruction, so about half of them; and all of the second thread's.
    let theorems = WITH_EVENTS * Variant::representative().count();
    assert_eq!(shared.proved() + shared.shared(), 2 * theorems);
    assert!(shared.proved() <= theorems * 3 / 5, "{}", shared.proved());
    // Those that were not proved themselves.
    let is_like_another =
        |variant: &Variant| variant.axes().pcid || variant.axes().mitigations != Mitigations::NONE;
    for (variant, reports) in Variant::representative().zip(one) {
        if !is_like_another(&variant) {
            continue;
        }
        assert_eq!(proved(Prover::default().prove(&ours(&variant))), reports, "{variant}");
    }
}

#[test]
fn where_code_lies_does_not_matter() {
    // But for what looks at the IDT, at the IRETQ's address (4), or goes to another stack by an
    // IRETQ to an address of its own (4).
    assert_eq!(sharing(&reference(), &moved(&reference())), WITH_EVENTS - 9);
    // Calls of its own and RETs to behind them.
    let mitigated = ours(&"intel-4level+ibrs+rsb+bhb+verw".parse().unwrap());
    assert_eq!(sharing(&mitigated, &moved(&mitigated)), WITH_EVENTS - 9);
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
    let call = exit("\tcall\t1f\n1:\tpopq\t%rcx\n");
    assert_eq!(sharing(&call, &call), THEOREMS);
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS - 3);
    // A part of it.
    let part = exit("\tcall\t1f\n1:\tmovb\t3(%rsp), %cl\n\taddq\t$8, %rsp\n");
    assert_eq!(sharing(&part, &moved(&part)), THEOREMS - 3);
    // Nobody reads it.
    let call = exit("\tcall\t1f\n1:\taddq\t$8, %rsp\n");
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS);
    // Only a RET does.
    let call = exit("\tcall\t1f\n\tjmp\t2f\n1:\tret\n2:\n");
    assert_eq!(sharing(&call, &moved(&call)), THEOREMS);
    let address = exit("\tleaq\t1f(%rip), %rcx\n1:\n");
    assert_eq!(sharing(&address, &address), THEOREMS);
    assert_eq!(sharing(&address, &moved(&address)), THEOREMS - 3);
    // Nobody knows of it what it needs.
    let jump = exit("\tleaq\t1f(%rip), %rcx\n\tjmp\t*%rcx\n1:\n");
    assert_eq!(sharing(&jump, &moved(&jump)), THEOREMS - 3);
    // It shows on the way.
    let data = exit("\tmovl\tentry_SYSCALL_compat_switcher(%rip), %ecx\n");
    assert_eq!(sharing(&data, &data), THEOREMS - 3);
    let ret = exit("\tleaq\t1f(%rip), %rcx\n\tpushq\t%rcx\n\tret\n1:\n");
    assert_eq!(sharing(&ret, &ret), THEOREMS - 3);
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
        let reports = proved(Prover::sharing(&shared).prove(&target));
        assert_eq!(proved(Prover::default().prove(&target)), reports, "{name}");
    }
    assert_eq!(shared.proved() + shared.shared(), names.len() * WITH_EVENTS);
    assert!(shared.shared() >= 2 * WITH_EVENTS, "{}", shared.shared());
}

/// The obligation, if there is one.
fn verdict(verdict: Result<Verdict, BadCode>) -> Option<&'static str> {
    match verdict {
        Ok(Verdict::Proved(_)) => None,
        Ok(Verdict::Refuted(found)) => Some(found.obligation.name),
        Ok(Verdict::Unknown(_)) => Some("unknown"),
        Err(_) => Some("refused"),
    }
}

#[test]
fn a_mutant_is_not_taken_for_the_original() {
    let original = reference();
    let shared = Arc::<Shared>::default();
    proved(Prover::sharing(&shared).prove(&original));
    let judged = |target: &Target| {
        let own = verdict(Prover::default().prove(target));
        assert_eq!(verdict(Prover::sharing(&shared.fork()).prove(target)), own);
        own
    };
    let mutants = mutate::mutants(&original);
    // Of what NMI and #MC do behind the hook: CR3 is not restored, or not to what it was.
    let nmis = mutants.iter().filter(|mutant| mutant.original == "mov cr3,r12");
    let refuted: Vec<_> =
        nmis.filter_map(mutate::Mutant::target).filter_map(|target| judged(&target)).collect();
    assert!(refuted.contains(&"resumed-root"), "{refuted:?}");
    let targets = mutants.iter().step_by(211).filter_map(mutate::Mutant::target);
    let refuted = targets.filter(|target| judged(target).is_some()).count();
    assert!(refuted > 15, "{refuted}");

    // What is no instruction.
    let mut label = original.clone();
    label.iretq = original.iretq.map(|at| at + 2);
    assert_eq!(judged(&label), Some("iretq-label"));
    let mut window = original.clone();
    window.windows.as_mut().unwrap()[0].1.start += 5;
    assert!(judged(&window).is_some());
    let mut flags = original.clone();
    flags.setting.sfmask -= RFlags::NT;
    assert_eq!(judged(&flags), Some("iretq-nt"));
    let mut wide = original;
    wide.setting = Setting::from(&"intel-la57".parse().unwrap());
    assert_eq!(judged(&wide), Some("kind"));
}
