//! Code that uses data of the host's besides the switcher's own: what may be done with it, what may
//! not, and that nothing of it gets to a guest.

mod attack;
mod gas;

use attack::arms::TO_SMOD;
use attack::mitigated::EXIT;
use attack::{proved, refuted};
use switcher_gen::Variant;
use switcher_prove::elf::{self, Foreign, Request};
use switcher_prove::{
    DataAt, HostData, Setting, SharingProver, Target, TargetError, Verdict, WrongData,
};

const VERW: &str = "\tswapgs\n\n\t/* SYSRETQ can load";

fn object(changes: &[(&str, &str)]) -> Vec<u8> {
    gas::assemble(&gas::replaced(gas::SWITCHER, changes), &[])
}

/// In an exit, on the host's root.
fn exit(code: &str) -> Vec<u8> {
    object(&[(EXIT, &format!("{code}{EXIT}"))])
}

fn asked() -> Request {
    let per_cpu = ["depth", "spec_ctrl"].into_iter().fold(Request::default(), Request::with_data);
    ["selector", "number"].into_iter().fold(per_cpu, Request::with_fixed_data)
}

fn read(file: &[u8]) -> Foreign {
    elf::read_as(file, asked()).unwrap()
}

fn target(file: &[u8], variant: &str, data: &[fn(&Foreign) -> HostData]) -> Target {
    let foreign = read(file);
    let setting = Setting::from(&variant.parse::<Variant>().unwrap());
    let data = data.iter().map(|of| of(&foreign)).collect();
    Target::foreign(&foreign, setting).unwrap().with_data(data).unwrap()
}

fn at(foreign: &Foreign, name: &str) -> u64 {
    *foreign.data.get(name).unwrap_or_else(|| panic!("no `{name}`: {:?}", foreign.data))
}

fn of_cpu(foreign: &Foreign, name: &str, size: u64) -> HostData {
    HostData::new(name, DataAt::PerCpu(at(foreign, name).cast_signed()), size).unwrap()
}

fn fixed(foreign: &Foreign, name: &str, size: u64) -> HostData {
    HostData::new(name, DataAt::Fixed(at(foreign, name)), size).unwrap()
}

/// As Linux has it for its VERW: in code, or in data.
#[test]
fn a_selector_lies_elsewhere() {
    let own = object(&[(VERW, "\tswapgs\n\tverw\tselector(%rip)\n\n\t/* SYSRETQ can load")]);
    let of = |data| target(&own, "intel-4level+verw", &[data]);
    proved("data", &of(|file| fixed(file, "selector", 2).holding(0x18).unwrap().mapped()));
    // On the guest's root, it has to be mapped.
    refuted("data", &of(|file| fixed(file, "selector", 2).holding(0x18).unwrap()), "mapped");
    // Which descriptor is read must be no secret.
    refuted("data", &of(|file| fixed(file, "selector", 2).mapped()), "descriptors");
    // It is smaller than what is read.
    refuted("data", &of(|file| fixed(file, "selector", 1).mapped()), "memory");
    refuted("data", &target(&own, "intel-4level+verw", &[]), "memory");
}

#[test]
fn a_word_of_each_cpu() {
    for form in ["depth", "depth(%rip)"] {
        let written = exit(&format!("\tmovq\t$-1, %gs:{form}\n"));
        let of = |data| target(&written, "intel-4level", &[data]);
        proved("data", &of(|file| of_cpu(file, "depth", 8).written().unwrap()));
        refuted("data", &of(|file| of_cpu(file, "depth", 8)), "kept");
        refuted("data", &of(|file| of_cpu(file, "depth", 4).written().unwrap()), "memory");
        refuted("data", &target(&written, "intel-4level", &[]), "memory");
    }
    let read = exit("\tmovq\t%gs:spec_ctrl, %rcx\n");
    proved("data", &target(&read, "intel-4level", &[|file| of_cpu(file, "spec_ctrl", 8)]));
}

/// The code's own NMI entry may have written it in between, or an earlier exit.
#[test]
fn what_was_written_is_not_what_is_found() {
    let word: [fn(&Foreign) -> HostData; 1] = [|file| of_cpu(file, "depth", 8).written().unwrap()];
    let judged = |code: &str| target(&exit(code), "intel-4level", &word);
    proved("data", &judged("\tsarq\t$5, %gs:depth\n\tmovq\t%gs:depth, %rcx\n"));
    refuted("data", &judged("\tmovq\t%rsp, %gs:depth\n\tmovq\t%gs:depth, %rsp\n"), "memory");
    refuted(
        "data",
        &judged("\tmovq\t%rsp, %gs:depth\n\tmovq\t%gs:depth, %rcx\n\tmovq\t(%rcx), %rcx\n"),
        "memory",
    );
    // What a guest has in a register comes back by it.
    let never = "\tpushq\t%rax\n\tcmpq\t%rsp, %rsp\n\tjz\t8f\n";
    let arm = |load: &str| {
        format!(
            "{never}\tpopq\t%rax\n{EXIT}\tpushq\t$2\n\tpopfq\n\tpop_all\trbx, rbp, r12, r13, r14, r15\n{load}\tret\n\tud2\n8:\tpopq\t%rax\n"
        )
    };
    proved("data", &judged(&arm("\tincq\t%gs:depth\n\tmovl\t$0, %ebx\n")));
    refuted("data", &judged(&arm("\tmovq\t%gs:depth, %rbx\n")), "exit-scratch");
}

/// What it holds is the host's.
#[test]
fn nothing_of_it_gets_to_a_guest() {
    let of = |code: &str| object(&[(TO_SMOD, &format!("{code}{TO_SMOD}"))]);
    let data: [fn(&Foreign) -> HostData; 1] = [|file| of_cpu(file, "spec_ctrl", 8).mapped()];
    for leak in [
        "\tmovq\t%gs:spec_ctrl, %rax\n\tmovq\t%rax, PVCS_R11(%rdx)\n",
        "\tcmpb\t$0, %gs:spec_ctrl\n\tsetz\tPVCS_R11(%rdx)\n",
    ] {
        refuted("data", &target(&of(leak), "intel-4level", &data), "no-host-value");
    }
    let known: [fn(&Foreign) -> HostData; 1] =
        [|file| of_cpu(file, "spec_ctrl", 8).mapped().holding(1).unwrap()];
    let decided = "\tcmpb\t$1, %gs:spec_ctrl\n\tjz\t1f\n\tud2\n1:\n";
    proved("data", &target(&of(decided), "intel-4level", &known));
    // Nor on an arm.
    let arm = "\ttestq\t%rcx, %rcx\n\tjz\t1f\n\tmovq\t%gs:spec_ctrl, %rax\n\tmovq\t(%r15,%rax), %rax\n1:\n";
    let arm = exit(&format!("\tpushq\t%rax\n\txorl\t%ecx, %ecx\n{arm}\tpopq\t%rax\n"));
    let data: [fn(&Foreign) -> HostData; 1] = [|file| of_cpu(file, "spec_ctrl", 8)];
    refuted("data", &target(&arm, "intel-4level", &data), "untaken-memory");
}

/// Nobody changes it, and what it holds decides.
#[test]
fn a_number_that_is_only_read() {
    let section = "\t.pushsection\t.rodata\n\t.globl\tnumber\nnumber:\t.byte\t1\n\t.popsection\n";
    let compare = exit(&format!("\tcmpb\t$1, number(%rip)\n\tjz\t1f\n\tud2\n1:\n{section}"));
    let one = |file: &Foreign| fixed(file, "number", 1).holding(1).unwrap();
    let two = |file: &Foreign| fixed(file, "number", 1).holding(2).unwrap();
    let shared = std::sync::Arc::default();
    let prove =
        |data| SharingProver::new(&shared).prove(&target(&compare, "intel-4level", &[data]));
    assert!(matches!(prove(one), Verdict::Proved(_)));
    // Nor is a proof taken for that of code which finds another number.
    assert!(matches!(prove(two), Verdict::Refuted(_)));
    let written = exit("\tmovb\t$1, number(%rip)\n");
    refuted("data", &target(&written, "intel-4level", &[one]), "kept");
}

/// A verdict says what it rests on, and what shares bytes is refused.
#[test]
fn what_is_said_of_data_is_checked_and_listed() {
    let file = exit("\tmovq\t%gs:depth, %rcx\n");
    let foreign = read(&file);
    let target = || Target::foreign(&foreign, Setting::from(&Variant::REFERENCE)).unwrap();
    let depth = |size| of_cpu(&foreign, "depth", size);
    let with = target().with_data(vec![depth(8).written().unwrap()]).unwrap();
    assert!(with.assumed.iter().any(|text| text.contains("`depth`, 8 bytes at GS")));
    let twice = target().with_data(vec![depth(8), depth(4)]);
    assert!(matches!(twice, Err(TargetError::Overlap(_))), "{twice:?}");
    let block = HostData::new("block", DataAt::PerCpu(0x80), 8).unwrap();
    assert!(matches!(target().with_data(vec![block]), Err(TargetError::Overlap(_))));
    let code = HostData::new("code", DataAt::Fixed(foreign.base), 8).unwrap();
    assert!(matches!(target().with_data(vec![code]), Err(TargetError::Overlap(_))));
    let many = (0..=HostData::MOST as i64)
        .map(|number| HostData::new("x", DataAt::PerCpu(0x10_0000 + 8 * number), 8).unwrap());
    let many = target().with_data(many.collect());
    assert!(matches!(many, Err(TargetError::Data(WrongData::TooMany { .. }))), "{many:?}");
}

/// Its address may be anywhere: nothing else is made of it.
#[test]
fn an_address_of_data_is_no_value() {
    for code in [
        "\tleaq\tnumber(%rip), %rcx\n",
        "\tmovq\t$number, %rcx\n",
        "\tjmp\tnumber\n",
        "\tcall\tnumber\n",
        "\tmovb\tnumber, %cl\n",
        "\tmovb\t%gs:number(%rip), %cl\n",
        "\t.long\tnumber - .\n",
    ] {
        let wrong = elf::read_as(&exit(code), asked());
        let why = wrong.map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("`number`"), "{code}: {why}");
    }
}
