//! An NMI, a machine check and a #DB at every instruction boundary of every path of the switcher, on
//! the model of the CPU: what was interrupted comes to the same end as if nothing had happened,
//! whatever the host's hook does to what is not its caller's. The proofs say so of all states; this
//! is one of each path, run for real, with the nesting that theorems take one step at a time.
//!
//! Row numbers are those of spec/hazards.md.

use std::collections::BTreeSet;

use switcher_gen::arch::{RFlags, vector};
use switcher_gen::asm::{HostSymbol, Label};
use switcher_gen::layout::{IretFrame, PerCpu, PtRegs, Pvcs, SwitchFlags, Tss, TssExtra};
use switcher_gen::machine::{
    ARITHMETIC, Arrival, Concrete, EFER, Entry, Flags, Gate, Gpr, Memory, Model, Msrs, Program,
    Region, Sharing, State, Step, cr4,
};
use switcher_gen::{Image, LinkedImage, Variant};

const BASE: u64 = 0xFFFF_FE80_0000_0000;
const HOOKS: u64 = BASE + 0x10_0000;
const PER_CPU: u64 = 0xFFFF_FE00_0000_0000;
const PVCS: u64 = 0xFFFF_FE00_0001_0000;
const SP0: u64 = 0xFFFF_FE00_0000_4000;
const HOST_STACK: u64 = 0xFFFF_C900_0000_4000;
const LANDING: u64 = 0xFFFF_FFFF_8100_0000;
const IST: [u64; 4] =
    [0xFFFF_C910_0000_4000, 0xFFFF_C910_0000_8000, 0xFFFF_C910_0000_C000, 0xFFFF_C910_0001_0000];
const STACK: usize = 4096;

const HOST_CR3: u64 = 0x1000;
const SMOD_CR3: u64 = 0x2000;
const UMOD_CR3: u64 = 0x3000;
const GUEST_GS: u64 = 0x7000_0000;

const ENTRY: u64 = 0x4000_1000;
const RETU: u64 = 0x4000_2000;

mod region {
    pub(crate) const PER_CPU: usize = 0;
    pub(crate) const SP0: usize = 1;
    pub(crate) const PVCS: usize = 2;
    pub(crate) const HOST: usize = 3;
    pub(crate) const IST: usize = 4;
}

/// A switcher with a host around it.
struct Rig {
    d: Concrete,
    model: Model,
    linked: LinkedImage,
    program: Program,
    state: State<Concrete>,
    /// The addresses of all instructions executed.
    executed: BTreeSet<u64>,
    /// How often a hook was called.
    hooks: usize,
}

/// What comes between two instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Interruption {
    Nothing,
    Once(u8),
    /// A second one as soon as the first has ended the blocking.
    Twice(u8),
    /// A machine check at this boundary of the NMI's own entry.
    Nested(usize),
}

/// Where a run begins.
#[derive(Clone, Copy, Debug)]
enum Start {
    Enter(IretFrame, bool),
    Syscall { rip: u64, flags: SwitchFlags, entry: Entry },
    Event(u8),
    Handler,
}

/// What a run has come to: all that somebody could see.
#[derive(Debug, PartialEq)]
struct End {
    gpr: [u64; 16],
    others: [u64; 9],
    memory: Vec<Vec<u8>>,
}

impl Rig {
    fn new(variant: &Variant) -> Self {
        let d = Concrete::default();
        let image = Image::new(variant).unwrap();
        let hook = |symbol| {
            let index = HostSymbol::HOOKS.iter().position(|hook| *hook == symbol)?;
            Some(HOOKS + 16 * index as u64)
        };
        let linked = image.link(BASE, hook).unwrap();
        let stack =
            |name, top, above| Region::new(name, top, -(STACK as i64), vec![0; STACK + above]);
        let mut per_cpu = Region::new("block", PER_CPU, 0, vec![0; size_of::<PerCpu>()]);
        let tss = |field: usize| (PerCpu::tss.bytes() + field) as i64;
        per_cpu.write(&d, tss(Tss::sp0.bytes()), 8, SP0);
        for (slot, top) in (0..).zip(IST) {
            per_cpu.write(&d, tss(Tss::ist1.bytes()) + 8 * slot, 8, top);
        }
        let extra = |field: usize| (PerCpu::tss_extra.bytes() + field) as i64;
        for (field, value) in [
            (TssExtra::host_cr3.bytes(), HOST_CR3),
            (TssExtra::enter_cr3.bytes(), UMOD_CR3),
            (TssExtra::smod_cr3.bytes(), SMOD_CR3),
            (TssExtra::umod_cr3.bytes(), UMOD_CR3),
            (TssExtra::pvcs.bytes(), PVCS),
            (TssExtra::retu_rip.bytes(), RETU),
            (TssExtra::smod_entry.bytes(), ENTRY),
            (TssExtra::smod_gsbase.bytes(), 0x6000),
            (TssExtra::smod_rsp.bytes(), 0x5000),
            (TssExtra::switch_flags.bytes(), SwitchFlags::UMOD.bits()),
        ] {
            per_cpu.write(&d, extra(field), 8, value);
        }
        let mut pvcs = Region::new("PVCS", PVCS, 0, vec![0; size_of::<Pvcs>()]);
        pvcs.sharing = Sharing::Guest;
        let mut host = stack("host stack", HOST_STACK, 0);
        host.root = Some(HOST_CR3);
        host.write(&d, -8, 8, LANDING);
        let mut regions = vec![per_cpu, stack("sp0 stack", SP0, 0), pvcs, host];
        for top in IST {
            let mut ist = stack("IST stack", top, 16);
            ist.write(&d, 0, 8, PER_CPU);
            regions.push(ist);
        }
        let selectors = variant.selectors();
        let mut state = State {
            gpr: std::array::from_fn(|n| 0x1111_0000 + n as u64),
            rip: linked.address(Label::EnterGuest),
            flags: Flags::new(&d, RFlags::FIXED.bits()),
            cs: selectors.kernel_cs().into(),
            ss: selectors.kernel_ds().into(),
            cpl: 0,
            gs_base: PER_CPU,
            inactive_gs_base: GUEST_GS,
            fs_base: 7,
            cr3: HOST_CR3,
            cr4: cr4(variant),
            pkru: 0,
            msrs: Msrs {
                star: selectors.star().bits(),
                lstar: linked.address(Label::Syscall64),
                cstar: linked.address(Label::SyscallCompat),
                sfmask: RFlags::SYSCALL_CLEARS.bits(),
                spec_ctrl: 0,
                efer: EFER,
            },
            memory: Memory { regions, hostile: false },
        };
        state.set(Gpr::Rsp, HOST_STACK - 8);
        let program = Program::new(BASE, linked.bytes().to_vec());
        let model = Model::from(variant);
        Self { d, model, linked, program, state, executed: BTreeSet::new(), hooks: 0 }
    }

    fn write(&mut self, region: usize, at: i64, value: u64) {
        self.state.memory.regions[region].write(&self.d, at, 8, value);
    }

    fn deliver(&mut self, number: u8, error_code: Option<u64>) {
        let gate = self.linked.image().gate(number);
        let gate = Gate { handler: BASE + u64::from(gate.offset), ist: gate.ist };
        let arrival = Arrival { error_code, is_fault: error_code.is_some() };
        let tss = PER_CPU + PerCpu::tss.bytes() as u64;
        self.state.deliver(&self.d, &self.model, tss, gate, arrival).unwrap();
    }

    /// The host's hook: it finds the host's world, and leaves a mess where it may.
    fn hook(&mut self) {
        self.hooks += 1;
        let state = &mut self.state;
        assert_eq!((state.cr3, state.gs_base), (HOST_CR3, PER_CPU));
        let rsp = state.get(Gpr::Rsp);
        assert_eq!(rsp % 16, 8, "the return address is on a stack that was aligned");
        let stack = state.memory.regions[region::IST..]
            .iter_mut()
            .find(|stack| (stack.base - STACK as u64..stack.base).contains(&rsp))
            .expect("a stack of the IST");
        let end = stack.index(rsp.wrapping_sub(stack.base).cast_signed()).unwrap();
        let back = stack.read(&self.d, stack.offset(end), 8);
        stack.cells[..end + 8].fill(0xA5);
        let clobbered = [
            Gpr::Rax,
            Gpr::Rcx,
            Gpr::Rdx,
            Gpr::Rsi,
            Gpr::Rdi,
            Gpr::R8,
            Gpr::R9,
            Gpr::R10,
            Gpr::R11,
        ];
        for (n, register) in (0_u64..).zip(clobbered) {
            state.set(register, 0xBAD0_0000_0000_0000 | n);
        }
        state.flags = Flags::new(&self.d, ARITHMETIC | RFlags::FIXED.bits());
        state.set(Gpr::Rsp, rsp + 8);
        state.rip = back;
    }

    /// One instruction of ring 0, and what the CPU or a hook makes of it. Whether that was the last.
    fn step(&mut self) -> bool {
        let rip = self.state.rip;
        self.executed.insert(rip);
        let mut unobserved = switcher_gen::machine::Unobserved;
        let step = self.state.step(&self.d, &self.model, &self.program, &mut unobserved);
        match step.unwrap_or_else(|stuck| panic!("{rip:#x}: {stuck}")) {
            Step::Next => false,
            Step::Left if (HOOKS..HOOKS + 32).contains(&self.state.rip) => {
                self.hook();
                false
            }
            Step::Left => {
                assert_eq!(self.state.rip, LANDING);
                true
            }
            Step::Guest { .. } => true,
            Step::Fault(fault) => {
                assert_eq!(rip, self.linked.address(Label::Iretq), "{fault:?}");
                self.deliver(fault.vector, fault.error_code);
                false
            }
            Step::Halted => panic!("{rip:#x}: HLT"),
        }
    }

    /// `number` arrives, its entry runs, and ring 0 is where it was.
    fn interrupt(&mut self, number: u8, nested: Option<usize>) {
        let before = (self.state.rip, self.state.get(Gpr::Rsp), self.state.cr3);
        let bases = (self.state.gs_base, self.state.inactive_gs_base);
        self.deliver(number, None);
        for boundary in 0.. {
            if nested == Some(boundary) {
                self.interrupt(vector::MC, None);
            }
            let is_last = self.program.at(self.state.rip).unwrap().unwrap().is_iretq();
            let has_left = self.step();
            if is_last {
                break;
            }
            assert!(!has_left, "ring 0 goes on");
        }
        assert_eq!((self.state.rip, self.state.get(Gpr::Rsp), self.state.cr3), before);
        assert_eq!((self.state.gs_base, self.state.inactive_gs_base), bases);
    }

    fn begin(&mut self, start: Start) {
        self.hooks = 0;
        let user = self.model.selectors;
        let running = (PerCpu::tss_extra.bytes() + TssExtra::host_rsp.bytes()) as i64;
        let flags = (PerCpu::tss_extra.bytes() + TssExtra::switch_flags.bytes()) as i64;
        if !matches!(start, Start::Enter(..)) {
            // Of the entry that has led here: the callee-saved registers, and the way back.
            self.write(region::PER_CPU, running, HOST_STACK - 56);
            self.state.cr3 = UMOD_CR3;
            self.state.set(Gpr::Rsp, 0xDEAD_0000);
            (self.state.gs_base, self.state.inactive_gs_base) = (GUEST_GS, PER_CPU);
            (self.state.cpl, self.state.rip) = (3, 0x4000_3000);
            self.state.cs = user.user_cs().into();
            self.state.ss = user.user_ds().into();
            self.state.flags = Flags::new(&self.d, RFlags::GUEST_FIXED.bits() | RFlags::CF.bits());
        }
        match start {
            Start::Enter(frame, alike) => {
                let end = -(size_of::<IretFrame>() as i64);
                let words = [frame.rip, frame.cs, frame.eflags, frame.rsp, frame.ss];
                for (slot, word) in (0..).zip(words) {
                    self.write(region::SP0, end + 8 * slot, word);
                }
                let start = -(size_of::<PtRegs>() as i64);
                let rip = if alike { frame.rip } else { 1 };
                let r11 = RFlags::from_bits_retain(frame.eflags).sanitised().bits();
                self.write(region::SP0, start + PtRegs::rcx.bytes() as i64, rip);
                self.write(region::SP0, start + PtRegs::r11.bytes() as i64, r11);
            }
            Start::Syscall { rip, flags: mode, entry } => {
                self.write(region::PER_CPU, flags, mode.bits());
                let root = if mode.contains(SwitchFlags::SMOD) { SMOD_CR3 } else { UMOD_CR3 };
                (self.state.cr3, self.state.rip) = (root, rip);
                // On Intel there is none in 32-bit code, but emulators go there all the same.
                let lstar = self.state.msrs.lstar;
                if entry == Entry::Compatibility {
                    self.state.msrs.lstar = self.state.msrs.cstar;
                }
                self.state.syscall(&self.d, &self.model, Entry::Long).unwrap();
                self.state.msrs.lstar = lstar;
            }
            Start::Event(number) => {
                let code = vector::pushes_error_code(number).then_some(5);
                self.deliver(number, code);
            }
            Start::Handler => {
                self.deliver(vector::UD, None);
                (self.state.gs_base, self.state.inactive_gs_base) = (PER_CPU, GUEST_GS);
                self.state.set(Gpr::Rsp, SP0 - size_of::<PtRegs>() as u64);
                self.state.rip = self.linked.address(Label::ReturnFromGuest);
            }
        }
    }

    /// From `start` to the end, with `interruption` at a boundary; how many there were, and the end.
    fn run(&self, start: Start, at: usize, interruption: Interruption) -> (usize, Self) {
        let mut rig = Self {
            d: Concrete::default(),
            model: self.model,
            linked: self.linked.clone(),
            program: self.program.clone(),
            state: self.state.clone(),
            executed: BTreeSet::new(),
            hooks: 0,
        };
        rig.begin(start);
        // Until there is an IRETQ, one that has not been handled keeps others of its kind away.
        let mut blocked = if let Start::Event(number) = start { Some(number) } else { None };
        for boundary in 0.. {
            if boundary == at {
                match interruption {
                    Interruption::Once(number) if blocked != Some(number) => {
                        rig.interrupt(number, None);
                    }
                    Interruption::Twice(number) if blocked != Some(number) => {
                        rig.interrupt(number, None);
                        rig.interrupt(number, None);
                    }
                    Interruption::Nested(inner) if blocked.is_none() => {
                        rig.interrupt(vector::NMI, Some(inner));
                    }
                    _ => {}
                }
            }
            if rig.program.at(rig.state.rip).unwrap().unwrap().is_iretq() {
                blocked = None;
            }
            if rig.step() {
                return (boundary + 1, rig);
            }
        }
        unreachable!("a run has an end")
    }

    fn end(&self) -> End {
        let state = &self.state;
        let regions = state.memory.regions.iter().enumerate().map(|(index, region)| {
            // What lies on a stack of the IST below what is left there is nobody's.
            let start = if index >= region::IST { STACK } else { 0 };
            region.cells[start..].to_vec()
        });
        End {
            gpr: state.gpr,
            others: [
                state.rip,
                // RF is spent by an instruction, which the model leaves to who looks.
                state.rflags(&self.d) & if state.cpl == 0 { !RFlags::RF.bits() } else { !0 },
                state.cs,
                state.ss,
                state.cpl.into(),
                state.gs_base,
                state.inactive_gs_base,
                state.fs_base,
                state.cr3,
            ],
            memory: regions.collect(),
        }
    }
}

/// A start for each path there is.
fn starts(rig: &mut Rig) -> Vec<(&'static str, Start)> {
    let user = rig.model.selectors;
    let frame = IretFrame {
        rip: 0x4000_0000,
        cs: user.user_cs().into(),
        eflags: RFlags::GUEST_FIXED.bits(),
        rsp: 0x4100_0000,
        ss: user.user_ds().into(),
    };
    let d = &rig.d;
    let pvcs = &mut rig.state.memory.regions[region::PVCS];
    pvcs.write(d, Pvcs::user_cs.bytes() as i64, 2, user.user_cs().into());
    pvcs.write(d, Pvcs::user_ss.bytes() as i64, 2, user.user_ds().into());
    pvcs.write(d, Pvcs::eflags.bytes() as i64, 4, RFlags::GUEST_FIXED.bits());
    pvcs.write(d, Pvcs::r11.bytes() as i64, 8, RFlags::GUEST_FIXED.bits());
    pvcs.write(d, Pvcs::rip.bytes() as i64, 8, 0x4000_4000);
    pvcs.write(d, Pvcs::rcx.bytes() as i64, 8, 0x4000_4000);
    pvcs.write(d, Pvcs::user_gsbase.bytes() as i64, 8, 0x8000);
    let no_address = 1 << (rig.model.paging.address_bits() - 1);
    let syscall = |rip, flags, entry| Start::Syscall { rip, flags, entry };
    let (smod, umod) = (SwitchFlags::SMOD, SwitchFlags::UMOD);
    vec![
        ("enter by SYSRETQ", Start::Enter(frame, true)),
        ("enter by IRETQ", Start::Enter(frame, false)),
        ("enter with TF", {
            let eflags = frame.eflags | RFlags::TF.bits();
            Start::Enter(IretFrame { eflags, ..frame }, true)
        }),
        ("enter with IOPL", {
            let eflags = frame.eflags | RFlags::IOPL.bits();
            Start::Enter(IretFrame { eflags, ..frame }, true)
        }),
        ("enter 32-bit code", {
            Start::Enter(IretFrame { cs: user.user32_cs().into(), ..frame }, true)
        }),
        ("a refused IRETQ", Start::Enter(IretFrame { rip: no_address, ..frame }, true)),
        ("SYSCALL in umod", syscall(0x4000_3000, umod, Entry::Long)),
        ("ERETU", syscall(RETU, smod, Entry::Long)),
        ("SYSCALL in smod", syscall(0x4000_3000, smod, Entry::Long)),
        ("an inhibited SYSCALL", syscall(0x4000_3000, umod | SwitchFlags::IRQ_WIN, Entry::Long)),
        ("a 32-bit SYSCALL", syscall(0x4000_3000, umod, Entry::Compatibility)),
        ("a handler's exit", Start::Handler),
        ("a page fault", Start::Event(vector::PF)),
        ("an interrupt", Start::Event(0x40)),
        ("#DB", Start::Event(vector::DB)),
        ("an NMI", Start::Event(vector::NMI)),
        ("a machine check", Start::Event(vector::MC)),
        ("a double fault", Start::Event(vector::DF)),
    ]
}

/// Rows 8 to 12.
#[test]
fn whatever_comes_between_two_instructions_the_end_is_the_same() {
    for name in ["intel-4level", "amd-la57-pcid"] {
        let mut rig = Rig::new(&name.parse().unwrap());
        let starts = starts(&mut rig);
        let mut executed = BTreeSet::new();
        for (what, start) in starts {
            let (boundaries, through) = rig.run(start, usize::MAX, Interruption::Nothing);
            executed.extend(through.executed.iter().copied());
            let expected = through.end();
            let mut hooks = 0;
            let nmi = (0..60).map(Interruption::Nested);
            let once = [vector::NMI, vector::MC, vector::DB].map(Interruption::Once);
            let twice = [vector::NMI, vector::MC].map(Interruption::Twice);
            for at in 0..boundaries {
                // Within an NMI it does not matter what it has interrupted: a few will do.
                let nested =
                    if at % 16 == 3 { nmi.clone() } else { (0..0).map(Interruption::Nested) };
                for interruption in once.into_iter().chain(twice).chain(nested) {
                    let (_, interrupted) = rig.run(start, at, interruption);
                    assert!(
                        interrupted.end() == expected,
                        "{name}: {what}: {interruption:?} at {at}"
                    );
                    hooks += interrupted.hooks;
                    executed.extend(interrupted.executed);
                }
            }
            // The others of its kind wait for the end of an NMI or a machine check.
            let waits = matches!(start, Start::Event(vector::NMI | vector::MC));
            assert!(waits || hooks >= 6 * boundaries, "{what}: {hooks} calls");
        }
        untried(&rig, &executed);
    }
}

/// Nothing but what stops the machine, and an ERETU to other selectors, has been left out.
fn untried(rig: &Rig, executed: &BTreeSet<u64>) {
    let at = |label| rig.linked.address(label);
    let fatal = [
        at(Label::EventUnexpected)..at(Label::EventDb),
        at(Label::EventDf)..at(Label::EventStubs),
        at(Label::ExitEretu)..at(Label::ExitSyscall),
    ];
    let mut next = BASE;
    while next < at(Label::EventStubs) {
        let instruction = rig.program.instruction(next);
        let is_filler = instruction.mnemonic() == iced_x86::Mnemonic::Int3;
        let is_fatal = fatal.iter().any(|range| range.contains(&next));
        assert!(is_filler || is_fatal || executed.contains(&next), "{next:#x}: {instruction}");
        next = instruction.next_ip();
    }
}

/// Row 11: an NMI of a guest's leaves its stack to the next one before the exit.
#[test]
fn a_second_nmi_during_the_exit_of_the_first_has_the_stack_for_itself() {
    let mut rig = Rig::new(&Variant::REFERENCE);
    let _ = starts(&mut rig);
    let start = Start::Event(vector::NMI);
    let (boundaries, through) = rig.run(start, usize::MAX, Interruption::Nothing);
    let calls = (0..boundaries).map(|at| {
        let (_, interrupted) = rig.run(start, at, Interruption::Once(vector::NMI));
        assert_eq!(interrupted.end(), through.end(), "at {at}");
        interrupted.hooks
    });
    // Blocked up to the IRETQ, and at no instruction after it.
    let calls: Vec<_> = calls.collect();
    let first = calls.iter().position(|calls| *calls == 1).unwrap();
    assert!(calls[..first].iter().all(|calls| *calls == 0));
    assert!(calls[first..].iter().all(|calls| *calls == 1));
    assert!(first < 40 && boundaries - first >= 35, "{first} of {boundaries}");
}

/// A hook that is not called for an NMI of the host's own, on a root of its own, would be lost.
#[test]
fn an_nmi_of_the_hosts_own_code_stays_on_its_root() {
    let mut rig = Rig::new(&Variant::REFERENCE);
    let extra = PerCpu::tss_extra.bytes() as i64;
    // The roots of the last guest mean nothing any more.
    rig.write(region::PER_CPU, extra + TssExtra::host_cr3.bytes() as i64, 0xBAD000);
    rig.state.memory.regions[region::HOST].root = None;
    rig.state.rip = LANDING;
    let before = rig.end();
    rig.interrupt(vector::NMI, None);
    assert_eq!((rig.hooks, rig.end()), (1, before));
}
