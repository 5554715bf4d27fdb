//! Code that nobody here emitted: a switcher written by hand in gas, proved and, broken, refuted
//! with a state that anybody can replay.

mod gas;

use switcher_gen::layout::{IretFrame, PtRegs, Pvcs, PvcsV2026, Revision, Tss, TssExtra};
use switcher_gen::{Hazard, Policy, Variant};
use switcher_prove::elf;
use switcher_prove::{
    BadCode, BlockOffsets, ExtraField, Places, Prover, PvcsField, Setting, Target, Verdict,
};

fn setting(block: BlockOffsets) -> Setting {
    Setting::from(&Variant::REFERENCE).with_block(block)
}

fn target(object: &[u8], block: BlockOffsets) -> Target {
    Target::foreign(&elf::read(object).unwrap(), setting(block)).unwrap()
}

#[track_caller]
fn prove(target: &Target) -> Verdict {
    Prover::default().prove(target)
}

#[test]
fn a_switcher_written_by_hand_is_proved() {
    let verdict = prove(&target(&gas::assemble(gas::SWITCHER, &[]), BlockOffsets::default()));
    let Verdict::Proved(reports) = verdict else { panic!("{verdict:?}") };
    assert_eq!(reports.len(), 10);
    assert!(reports.iter().all(|report| report.paths > 0 && report.goals > 0));
}

#[test]
fn linked_it_is_proved_as_well() {
    let object = gas::assemble(gas::SWITCHER, &[]);
    let linked = gas::process("ld", &["-Ttext=0x400000", "-e", "switcher_enter_guest"], &object);
    let verdict = prove(&target(&linked, BlockOffsets::default()));
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
}

#[test]
fn its_data_may_lie_anywhere_but_must_lie_where_it_is_said_to() {
    let elsewhere = BlockOffsets { tss: 0x2000, tss_extra: -0x400 };
    let symbols = [("GS_TSS", elsewhere.tss), ("GS_TSS_EXTRA", elsewhere.tss_extra)];
    let object = gas::assemble(gas::SWITCHER, &symbols);
    assert!(matches!(prove(&target(&object, elsewhere)), Verdict::Proved(_)));
    let Verdict::Refuted(found) = prove(&target(&object, BlockOffsets::default())) else {
        panic!("not refuted")
    };
    assert_eq!(found.obligation.name, "memory", "{found}");
}

/// Somebody else's structs: fields in another order, others between them, and a larger PVCS.
#[test]
fn its_structs_may_be_laid_out_in_another_way() {
    let extra = [
        ("HOST_CR3", "host_cr3", 0x00, 0x00),
        ("HOST_RSP", "host_rsp", 0x08, 0x08),
        ("ENTER_CR3", "enter_cr3", 0x10, 0x18),
        ("SWITCH_FLAGS", "switch_flags", 0x40, 0x80),
        ("SMOD_CR3", "smod_cr3", 0x48, 0x90),
        ("UMOD_CR3", "umod_cr3", 0x50, 0x88),
        ("PVCS", "pvcs", 0x58, 0xC8),
        ("RETU_RIP", "retu_rip", 0x60, 0x98),
        ("SMOD_ENTRY", "smod_entry", 0x68, 0xA0),
        ("SMOD_GSBASE", "smod_gsbase", 0x70, 0xA8),
        ("SMOD_RSP", "smod_rsp", 0x78, 0xB0),
    ];
    let pvcs = [
        ("PVCS_USER_CS_SS", "user_cs", 0x40, 0x100),
        ("PVCS_USER_GSBASE", "user_gsbase", 0x50, 0x108),
        ("PVCS_EFLAGS", "eflags", 0x58, 0x88),
        ("PVCS_RIP", "rip", 0x60, 0x90),
        ("PVCS_RSP", "rsp", 0x68, 0x98),
        ("PVCS_RCX", "rcx", 0x70, 0xA0),
        ("PVCS_R11", "r11", 0x78, 0xA8),
    ];
    let mut source = gas::SWITCHER.to_owned();
    for (name, _, from, to) in extra {
        let line = |at| format!("\t.set\t{name}, GS_TSS_EXTRA + {at:#04X}\n").replace("0X", "0x");
        source = gas::replaced(&source, &[(&line(from), &line(to))]);
    }
    for (name, _, from, to) in pvcs {
        let line = |at| format!("\t.set\t{name}, {at:#04X}\n").replace("0X", "0x");
        source = gas::replaced(&source, &[(&line(from), &line(to))]);
    }
    let named = |fields: &[(&str, &'static str, u64, u64)]| {
        fields.iter().map(|(_, name, _, to)| (*name, *to, None)).collect::<Vec<_>>()
    };
    let theirs = Places::<ExtraField>::new(
        Some(0xD0),
        named(&extra).into_iter().chain([("host_gs_base", 0x10, Some(8))]),
    );
    let shared = named(&pvcs).into_iter().chain([("user_ss", 0x102, Some(2))]);
    let setting = setting(BlockOffsets::default())
        .with_extra(theirs.unwrap())
        .unwrap()
        .with_pvcs(Places::<PvcsField>::new(Some(0x200), shared).unwrap())
        .unwrap();
    let of = |source: &str| {
        let foreign = elf::read(&gas::assemble(source, &[])).unwrap();
        Target::foreign(&foreign, setting).unwrap()
    };
    let verdict = prove(&of(&source));
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    // It is no other layout's.
    let Verdict::Refuted(_) = prove(&of(gas::SWITCHER)) else { panic!("not refuted") };
    // What only they have is the host's: nobody may change it, and no guest may learn it.
    for (from, to, obligation) in [
        ("\tpopq\t%rdi\n\t/* orig", "\tpopq\t%rdi\n\tmovq\t%rdi, %gs:0x90\n\t/* orig", "kept"),
        ("\tpopq\t%rdi\n\t/* orig", "\tmovq\t%gs:0x90, %rdi\n\t/* orig", "no-host-value"),
    ] {
        let broken = of(&gas::replaced(&source, &[(from, to)]));
        let Verdict::Refuted(found) = prove(&broken) else { panic!("{to:?} is not refuted") };
        let findings = Prover::default().findings(&broken).unwrap();
        let names: Vec<_> = findings.refuted.iter().map(|f| f.obligation.name).collect();
        assert!(names.contains(&obligation), "{to:?}: {names:?}\n{found}");
    }
}

/// A field of the PVCS, from where the one of 2024 has it to where that of 2026 does.
fn moved(name: &str, from: usize, to: usize) -> (String, String) {
    (format!("{name}, 0x{from:02X}"), format!("{name}, 0x{to:02X}"))
}

/// From the PVCS of 2024 to that of 2026: fields move, and RSP passes through.
fn to_current() -> Vec<(String, String)> {
    let moved = [
        moved("PVCS_USER_GSBASE", Pvcs::user_gsbase.bytes(), PvcsV2026::user_gsbase.bytes()),
        moved("PVCS_EFLAGS", Pvcs::eflags.bytes(), PvcsV2026::eflags.bytes()),
        moved("PVCS_RIP", Pvcs::rip.bytes(), PvcsV2026::rip.bytes()),
        moved("PVCS_RCX", Pvcs::rcx.bytes(), PvcsV2026::rcx.bytes()),
        moved("PVCS_R11", Pvcs::r11.bytes(), PvcsV2026::r11.bytes()),
    ];
    let passes_through = [
        ("\tpushq\t%gs:SMOD_RSP\n", "\tpushq\t%gs:TSS_SP2\n"),
        ("\tmovq\t%gs:TSS_SP2, %rax\n\tmovq\t%rax, PVCS_RSP(%rdx)\n", ""),
        ("\tmovq\t%gs:TSS_SP2, %rcx\n\tmovq\t%rcx, %gs:SMOD_RSP\n", ""),
    ];
    let passes_through = passes_through.map(|(from, to)| (from.to_owned(), to.to_owned()));
    moved.into_iter().chain(passes_through).collect()
}

/// The hand-written switcher has its numbers from nowhere: where a field has moved, this says so.
#[test]
fn its_numbers_are_those_of_the_layouts() {
    let (tss, extra) = ("GS_TSS + ", "GS_TSS_EXTRA + ");
    let fields = [
        ("TSS_SP0", tss, Tss::sp0.bytes()),
        ("TSS_SP1", tss, Tss::sp1.bytes()),
        ("TSS_SP2", tss, Tss::sp2.bytes()),
        ("TSS_IST1", tss, Tss::ist1.bytes()),
        ("HOST_CR3", extra, TssExtra::host_cr3.bytes()),
        ("HOST_RSP", extra, TssExtra::host_rsp.bytes()),
        ("ENTER_CR3", extra, TssExtra::enter_cr3.bytes()),
        ("HOST_SPEC_CTRL", extra, TssExtra::host_spec_ctrl.bytes()),
        ("GUEST_SPEC_CTRL", extra, TssExtra::guest_spec_ctrl.bytes()),
        ("SWITCH_FLAGS", extra, TssExtra::switch_flags.bytes()),
        ("SMOD_CR3", extra, TssExtra::smod_cr3.bytes()),
        ("UMOD_CR3", extra, TssExtra::umod_cr3.bytes()),
        ("PVCS", extra, TssExtra::pvcs.bytes()),
        ("RETU_RIP", extra, TssExtra::retu_rip.bytes()),
        ("SMOD_ENTRY", extra, TssExtra::smod_entry.bytes()),
        ("SMOD_GSBASE", extra, TssExtra::smod_gsbase.bytes()),
        ("SMOD_RSP", extra, TssExtra::smod_rsp.bytes()),
        ("PVCS_USER_CS_SS", "", Pvcs::user_cs.bytes()),
        ("PVCS_USER_GSBASE", "", Pvcs::user_gsbase.bytes()),
        ("PVCS_EFLAGS", "", Pvcs::eflags.bytes()),
        ("PVCS_RIP", "", Pvcs::rip.bytes()),
        ("PVCS_RSP", "", Pvcs::rsp.bytes()),
        ("PVCS_RCX", "", Pvcs::rcx.bytes()),
        ("PVCS_R11", "", Pvcs::r11.bytes()),
        ("IRET_RIP", "", IretFrame::rip.bytes()),
        ("IRET_CS", "", IretFrame::cs.bytes()),
        ("IRET_FLAGS", "", IretFrame::eflags.bytes()),
        ("IRET_RSP", "", IretFrame::rsp.bytes()),
        ("IRET_SS", "", IretFrame::ss.bytes()),
        ("PT_REGS_SIZE", "", size_of::<PtRegs>()),
    ];
    let of_a_struct =
        |name: &str| ["TSS_", "PVCS_", "IRET_"].iter().any(|kind| name.starts_with(kind));
    for line in gas::SWITCHER.lines().filter_map(|line| line.strip_prefix("\t.set\t")) {
        let (name, value) = line.split_once(", ").expect("a name and its value");
        let known = fields.iter().find(|field| field.0 == name);
        assert!(known.is_some() || !of_a_struct(name), "{name} is not looked at");
        if let Some((_, base, at)) = known {
            assert_eq!(value, format!("{base}0x{at:02X}"), "{name}");
        }
    }
    let set = |name: &str| gas::SWITCHER.contains(&format!("\t.set\t{name}, "));
    assert!(fields.iter().all(|(name, ..)| set(name)), "a name is gone");
}
/// This must go, too: the frame holds the guest's own RSP already.
const RSP_OF_THE_PVCS: &str = "\tmovq\tPVCS_RSP(%rdx), %r11\n\tmovq\t%r11, 8 + IRET_RSP(%rsp)\n";

#[test]
fn of_the_current_revision_it_is_proved_as_such_and_as_no_other() {
    let changes = to_current();
    let changes: Vec<_> = changes.iter().map(|(from, to)| (&**from, &**to)).collect();
    let moved = gas::replaced(gas::SWITCHER, &changes);
    let current = gas::replaced(&moved, &[(RSP_OF_THE_PVCS, "")]);
    let as_revision = |source: &str, revision| {
        let object = gas::assemble(source, &[]);
        let variant = Variant::REFERENCE.with_policy(Policy { revision, ..Policy::DEFAULT });
        let setting = Setting::from(&variant);
        prove(&Target::foreign(&elf::read(&object).unwrap(), setting).unwrap())
    };
    let verdict = as_revision(&current, Revision::V2026);
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    // Each taken for the other, and a leftover of the old one.
    for (source, revision) in [
        (current.as_str(), Revision::V2024),
        (gas::SWITCHER, Revision::V2026),
        (moved.as_str(), Revision::V2026),
    ] {
        let Verdict::Refuted(found) = as_revision(source, revision) else { panic!("not refuted") };
        assert!(found.to_string().contains("Replayed"), "{found}");
    }
}

#[test]
fn a_counterexample_names_state_path_and_reason_and_was_replayed() {
    let unchecked = gas::replaced(gas::SWITCHER, &[("\tja\tentry_IRETQ_switcher\n", "")]);
    let broken = target(&gas::assemble(&unchecked, &[]), BlockOffsets::default());
    let Verdict::Refuted(found) = prove(&broken) else { panic!("not refuted") };
    assert_eq!(found.obligation.rows[0], Hazard::SysretNonCanonical);
    let rcx = found.state.iter().find(|(name, _)| name == "frame.rcx").unwrap().1;
    let paging = Variant::REFERENCE.paging();
    assert!(!paging.is_canonical(rcx), "{rcx:#x}");
    let (at, last) = found.path.last().unwrap();
    assert_eq!(found.at, Some(*at));
    assert_eq!(last, "sysretq");
    // Anybody can run it again; the code as it was does the right thing from the same state.
    assert!(found.replay(&broken));
    let right = target(&gas::assemble(gas::SWITCHER, &[]), BlockOffsets::default());
    assert!(!found.replay(&right));
    let text = found.to_string();
    for expected in ["`sysretq-canonical`", "row 1", "frame.rcx", "<--", "Replayed"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn code_that_is_none_is_refused_with_its_address() {
    type Check = fn(&BadCode) -> bool;
    let cases: [(&str, &str, Check); 5] = [
        ("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "\tcpuid\n", |bad| {
            matches!(bad, BadCode::Program(_)) && bad.to_string().contains("`cpuid`")
        }),
        ("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "1:\tjmp\t1b\n", |bad| {
            matches!(bad, BadCode::Loop { .. })
        }),
        ("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "\tmovb\t$0, 1f(%rip)\n1:\n", |bad| {
            matches!(bad, BadCode::SelfModifying { .. })
        }),
        ("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "\tmovl\t$0x123, %ecx\n\twrmsr\n", |bad| {
            matches!(bad, BadCode::Msr { .. })
        }),
        ("\tsysretl\n\tud2\n", "", |bad| matches!(bad, BadCode::Leaves { .. })),
    ];
    for (from, to, expected) in cases {
        let object = gas::assemble(&gas::replaced(gas::SWITCHER, &[(from, to)]), &[]);
        match Prover::default().prove(&target(&object, BlockOffsets::default())) {
            Verdict::Unsupported(bad) => assert!(expected(&bad), "{to:?}: {bad}"),
            verdict => panic!("{to:?}: {verdict:?}"),
        }
    }
}

#[test]
fn a_missing_symbol_is_named() {
    let object = gas::assemble("\t.globl f\nf:\tret\n", &[]);
    let foreign = elf::read(&object).unwrap();
    let error =
        Target::foreign(&foreign, setting(BlockOffsets::default())).unwrap_err().to_string();
    assert!(error.contains("switcher_enter_guest"), "{error}");
}
