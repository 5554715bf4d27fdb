//! Event entries that somebody names by symbols: a right IDT is proved as the stubs are, each wrong
//! one is refuted for its reason, and what cannot be said of an IDT is refused. Needs binutils.

mod gas;

use gas::{SWITCHER, assemble, process, process_all};
use switcher_gen::asm::HostSymbol;
use switcher_gen::{Image, Variant};
use switcher_listing::object_file;
use switcher_prove::elf::{self, Foreign, GateError, Gates, LinkerError, ReadError, Request};
use switcher_prove::{Area, Findings, Prover, Setting, Target, Verdict};

/// What the first stub is called where it is not called as ours.
const THEIRS: &str = "their_entries";

/// One of our objects whose stubs have no names of ours.
fn object() -> Vec<u8> {
    let renamed = format!("--defsym={THEIRS}=switcher_event_stubs");
    let without = ["switcher_event_stubs", "switcher_event_stubs_end"];
    let without = without.map(|name| format!("--strip-symbol={name}"));
    process(
        "strip",
        &without.each_ref().map(String::as_str),
        &process("ld", &["-r", &renamed], &stubs()),
    )
}

fn stubs() -> Vec<u8> {
    object_file(&Image::new(&Variant::REFERENCE).unwrap()).unwrap()
}

/// How many bytes our stubs are apart.
fn stride() -> u64 {
    let image = Image::new(&Variant::REFERENCE).unwrap();
    u64::from(image.gate(1).offset - image.gate(0).offset)
}

/// The stub of `vector`.
fn stub(vector: u8) -> Gates {
    Gates::new(vector..=vector, THEIRS).with_offset(stride() * u64::from(vector))
}

fn all() -> Gates {
    Gates::new(0..=255, THEIRS).with_stride(stride())
}

fn request(gates: impl IntoIterator<Item = Gates>) -> Request {
    let mut gates = gates.into_iter();
    gates.try_fold(Request::default(), Request::with_gates).unwrap()
}

/// A vector's gate, and those of all others.
fn with(gate: Gates, vector: u8) -> Request {
    let after = vector + 1;
    let rest = Gates::new(after..=255, THEIRS)
        .with_offset(stride() * u64::from(after))
        .with_stride(stride());
    let before = Gates::new(0..=vector - 1, THEIRS).with_stride(stride());
    request([gate, before, rest])
}

#[track_caller]
fn read(file: &[u8], request: Request) -> Foreign {
    elf::read_as(file, request).unwrap_or_else(|error| panic!("{error}"))
}

fn target(foreign: &Foreign) -> Target {
    Target::foreign(foreign, Setting::from(&Variant::REFERENCE)).unwrap()
}

#[track_caller]
fn refused(file: &[u8], request: Request) -> ReadError {
    elf::read_as(file, request).unwrap_err()
}

#[track_caller]
fn gate_error(file: &[u8], request: Request) -> GateError {
    match refused(file, request) {
        ReadError::Gate(error) => error,
        other => panic!("{other}"),
    }
}

/// The theorems and obligations of all findings, each once.
fn findings(target: &Target) -> Vec<(&'static str, &'static str)> {
    let Findings { refuted, unknown, .. } = Prover::default().findings(target).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    let mut found: Vec<_> =
        refuted.iter().map(|found| (found.theorem.name(), found.obligation.name)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn entries_by_symbol_are_proved_as_stubs_are() {
    let ours = target(&read(&stubs(), Request::default()));
    // Nothing says where they are.
    let unsaid = target(&read(&object(), Request::default()));
    assert!(unsaid.gates.is_none() && unsaid.not_judged().iter().any(|it| it.area == Area::Events));

    let said = target(&read(&object(), request([all()])));
    assert_eq!(said.gates, ours.gates);
    let is_of_idt = |text: &&String| text.starts_with("the IDT leads");
    let [assumed] = said.assumed.iter().filter(is_of_idt).collect::<Vec<_>>()[..] else {
        panic!("{:?}", said.assumed)
    };
    let to = format!("vectors 0 to 255 to every {} bytes from `{THEIRS}` on", stride());
    assert_eq!(*assumed, format!("the IDT leads, as `--gate` says, {to}"));
    let reports = [&ours, &said].map(|target| match Prover::default().prove(target) {
        Verdict::Proved(report) => report,
        other => panic!("{other:?}"),
    });
    assert_eq!(reports[0], reports[1]);

    // So are those of a linked file, whichever way they are said.
    let args = ["-e", "switcher_enter_guest", "-Ttext=0x400000"];
    let hooks =
        (6..).zip(HostSymbol::HOOKS).map(|(at, hook)| format!("--defsym={}=0x{at}00000", hook.0));
    let hooks: Vec<_> = hooks.collect();
    let hooks: Vec<_> = hooks.iter().map(String::as_str).collect();
    let linked = process("ld", &[&args[..], &hooks].concat(), &object());
    let linked = read(&linked, with(stub(14), 14));
    assert_eq!(linked.gates.len(), 256);
    let first = linked.symbols[THEIRS];
    for gate in &linked.gates {
        assert_eq!(gate.address, first + stride() * u64::from(gate.vector));
    }
    assert_eq!(findings(&target(&linked)), []);
}

#[test]
fn a_gate_goes_before_the_files_stubs() {
    let ours = target(&read(&stubs(), Request::default()));
    let entry = Gates::new(14..=14, "switcher_event_stubs").with_offset(14 * stride());
    let same = target(&read(&stubs(), request([entry.clone()])));
    assert_eq!(same.gates, ours.gates);
    let other = target(&read(&stubs(), request([entry.with_ist(5)])));
    let differs = other.gates.iter().flatten().zip(ours.gates.iter().flatten());
    let differs: Vec<_> = differs.filter(|(a, b)| a != b).map(|(a, _)| (a.vector, a.ist)).collect();
    assert_eq!(differs, [(14, 5)]);
    assert!(findings(&other).contains(&("gates", "gate-ist")));
}

#[test]
fn a_gate_that_leads_to_anothers_entry_is_refuted() {
    /// The vector in the frame is another one, wherever the event was.
    const OF_ANOTHER: [(&str, &str); 4] = [
        ("IRETQ (others)", "hook-frame"),
        ("event", "exit-frame"),
        ("ring 0 (others)", "handed-on"),
        ("ring 0 (others)", "hook-frame"),
    ];
    let to_other = Gates::new(32..=32, THEIRS).with_offset(33 * stride());
    let found = findings(&target(&read(&object(), with(to_other, 32))));
    assert_eq!(found, OF_ANOTHER);
    // Several that lead to one entry are told apart by nobody.
    let shared = Gates::new(32..=255, THEIRS).with_offset(32 * stride()).with_stride(0);
    let before = Gates::new(0..=31, THEIRS).with_stride(stride());
    let found = findings(&target(&read(&object(), request([before, shared]))));
    assert_eq!(found, OF_ANOTHER);
}

#[test]
fn a_wrong_stack_or_privilege_level_is_refuted() {
    let judged = |gate, vector| findings(&target(&read(&object(), with(gate, vector))));
    let without_ist = judged(stub(2).with_ist(0), 2);
    assert!(without_ist.contains(&("gates", "gate-ist")), "{without_ist:?}");
    assert_eq!(judged(stub(14).with_dpl(3), 14), [("gates", "gate-dpl")]);
    assert_eq!(judged(stub(3).with_dpl(0), 3), [("gates", "gate-dpl")]);
    // A stack of its own is as good as ours.
    assert_eq!(judged(stub(2).with_ist(6), 2), []);
}

/// What nothing but a gate leads to is judged.
#[test]
fn what_gates_lead_to_is_looked_at() {
    let entry = "\t.section .text\n\t.globl\ttheir_fault\ntheir_fault:\n\tud2\n\tud2\n";
    let both = process_all("ld", &["-r"], &[object(), assemble(entry, &[])]);
    let fault = Gates::new(14..=14, "their_fault").with_offset(2);
    let foreign = read(&both, with(fault, 14));
    let address = foreign.symbols["their_fault"] + 2;
    assert!(
        foreign
            .pieces
            .iter()
            .any(|(start, bytes)| { (*start..*start + bytes.len() as u64).contains(&address) })
    );
    assert!(!findings(&target(&foreign)).is_empty());
}

#[test]
fn what_cannot_be_said_of_an_idt_is_refused() {
    let wrong = |gates: Gates| Request::default().with_gates(gates).unwrap_err();
    let (first, last) = (32, 255);
    assert_eq!(wrong(Gates::new(32..=255, "x")), GateError::NoStride { first, last });
    assert_eq!(wrong(stub(32).with_stride(8)), GateError::Stride { vector: 32 });
    #[expect(clippy::reversed_empty_ranges, reason = "a user may write one")]
    let reversed = Gates::new(33..=32, "x").with_stride(8);
    assert_eq!(wrong(reversed), GateError::NoVectors { first: 33, last: 32 });
    assert_eq!(wrong(stub(2).with_ist(8)), GateError::Ist { ist: 8 });
    assert_eq!(wrong(stub(2).with_dpl(4)), GateError::Dpl { dpl: 4 });
    let twice = request([stub(2)]).with_gates(all()).unwrap_err();
    assert_eq!(twice, GateError::Twice { vector: 2 });
    let twice = request([all()]).with_gates(stub(200)).unwrap_err();
    assert_eq!(twice, GateError::Twice { vector: 200 });
}

#[test]
fn without_stubs_all_vectors_need_a_gate() {
    let some = Gates::new(32..=128, THEIRS).with_stride(stride());
    let error = gate_error(&object(), request([stub(0), stub(14), some]));
    assert_eq!(error, GateError::Missing { vectors: vec![1..=13, 15..=31, 129..=255] });
    let text = error.to_string();
    let named = "any of vectors 1 to 13, any of vectors 15 to 31 or any of vectors 129 to 255";
    assert!(text.contains(named) && text.contains("switcher_event_stubs"), "{text}");
    let every_other = (0..=u8::MAX).step_by(2).map(stub);
    let text = gate_error(&object(), request(every_other)).to_string();
    assert!(text.contains("vector 15 or any of 120 more ranges leads"), "{text}");
}

#[test]
fn a_gate_leads_to_code() {
    let size = stride() * 256 + 0x10_0000;
    let address = |file: &[u8]| read(file, request([all()])).symbols[THEIRS];
    let start = address(&object());
    let far = Gates::new(14..=14, THEIRS).with_offset(size);
    let (vector, symbol) = (14, THEIRS.to_owned());
    let expected = GateError::NotCode { vector, symbol, address: Some(start + size) };
    assert_eq!(gate_error(&object(), with(far, 14)), expected);
    // A stride may be too much for the last ones alone, and for any address.
    for (stride, is_known) in [(0x1000, true), (u64::MAX / 2, false)] {
        let all = Gates::new(0..=255, THEIRS).with_stride(stride);
        match gate_error(&object(), request([all])) {
            GateError::NotCode { address, .. } => assert!(!is_known || address.is_some()),
            other => panic!("{other}"),
        }
    }
    let beyond = Gates::new(14..=14, THEIRS).with_offset(u64::MAX);
    let error = gate_error(&object(), with(beyond, 14));
    assert!(error.to_string().contains("beyond all addresses"), "{error}");
    // No stride leads backwards.
    let back = Gates::new(0..=1, THEIRS).with_offset(8).with_stride(u64::MAX - 7);
    let symbol = THEIRS.to_owned();
    let expected = GateError::NotCode { vector: 1, symbol, address: None };
    assert_eq!(gate_error(&object(), request([back])), expected);
    // In data, and in another section of code.
    let elsewhere = |section: &str| {
        let entry = format!("\t.section {section}\n\t.globl\tx\nx:\n\tud2\n\tud2\n");
        let both = process_all("ld", &["-r"], &[object(), assemble(&entry, &[])]);
        refused(&both, with(Gates::new(14..=14, "x"), 14))
    };
    let found = elsewhere(".data");
    assert!(matches!(&found, ReadError::NotCode { symbol } if symbol == "x"), "{found}");
    let found = elsewhere(".two, \"ax\"");
    let is_two = |section: &str| section == ".two";
    assert!(
        matches!(&found, ReadError::SecondSection { section, .. } if is_two(section)),
        "{found}"
    );
}

/// The names of entries are as strict as those of routines.
#[test]
fn a_gate_leads_to_the_one_symbol_of_its_name() {
    let of = |source: &str| {
        let both = process_all("ld", &["-r"], &[object(), assemble(source, &[])]);
        elf::read_as(&both, with(Gates::new(14..=14, "x"), 14))
    };
    let text = "\t.text\n";
    let weak = of(&format!("{text}\t.weak\tx\nx:\n\tud2\n\tud2\n")).unwrap_err();
    assert!(matches!(&weak, ReadError::Weak { symbol } if symbol == "x"), "{weak}");
    let other =
        format!("{text}\t.globl\tx\n\t.type\tx, @gnu_indirect_function\nx:\n\tud2\n\tud2\n");
    let indirect = of(&other).unwrap_err();
    assert!(matches!(&indirect, ReadError::Indirect { symbol } if symbol == "x"), "{indirect}");
    let at_end = of(&format!("{text}\tud2\n\t.globl\tx\nx:\n")).unwrap_err();
    let is_at_end =
        matches!(&at_end, ReadError::Linker(LinkerError::AtEnd { symbol, .. }) if symbol == "x");
    assert!(is_at_end, "{at_end}");
    // A local one is one, and two are not.
    let local = format!("{text}x:\n\tud2\n\tud2\n");
    assert!(of(&local).is_ok());
    let two = [object(), assemble(&local, &[]), assemble(&local, &[])];
    let two = process_all("ld", &["-r"], &two);
    let found = refused(&two, with(Gates::new(14..=14, "x"), 14));
    assert!(matches!(&found, ReadError::Ambiguous { symbol, .. } if symbol == "x"), "{found}");
    let caller = "\t.text\n\tcall\tx\n\tud2\n";
    let undefined =
        process_all("ld", &["-r"], &[object(), assemble(&local, &[]), assemble(caller, &[])]);
    let found = refused(&undefined, with(Gates::new(14..=14, "x"), 14));
    assert!(matches!(&found, ReadError::LocalAndUndefined { symbol } if symbol == "x"), "{found}");
}

#[test]
fn an_unknown_entry_is_answered_with_those_that_are_like_it() {
    let others: String = (0..40).map(|number| format!("other_{number}:\n")).collect();
    let others = assemble(&format!("\t.text\n{others}\tud2\n"), &[]);
    let many = process_all("ld", &["-r"], &[others, object()]);
    let found = refused(&many, with(Gates::new(14..=14, "their_entry"), 14));
    let ReadError::NoSymbol { name, known } = &found else { panic!("{found}") };
    assert_eq!(name, "their_entry");
    assert_eq!((known.first().map(String::as_str), known.len()), (Some(THEIRS), 12));
    // A file without a switcher is refused for that.
    let found = refused(&assemble("\t.text\nx:\n\tud2\n", &[]), request([all()]));
    assert!(matches!(&found, ReadError::NoSymbol { name, .. } if name != THEIRS), "{found}");
    // One that `--symbol` gives another meaning is the same one.
    let renamed = with(Gates::new(14..=14, "my_iretq"), 14);
    let renamed = renamed.with_symbol("entry_IRETQ_switcher", "my_iretq").unwrap();
    let named = process("ld", &["-r", "--defsym=my_iretq=entry_IRETQ_switcher"], &object());
    let foreign = read(&named, renamed);
    let gate = foreign.gates.iter().find(|gate| gate.vector == 14).unwrap();
    assert_eq!(gate.address, foreign.symbols["entry_IRETQ_switcher"]);
}

/// The switcher by hand has no event entries at all.
#[test]
fn a_switcher_without_entries_needs_none() {
    let unsaid = target(&read(&assemble(SWITCHER, &[]), Request::default()));
    assert!(unsaid.gates.is_none() && !unsaid.assumed.iter().any(|text| text.contains("IDT")));
}
