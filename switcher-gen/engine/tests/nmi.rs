//! An NMI, a machine check and a #DB at every instruction boundary of every path of the switcher,
//! on the model of the CPU: what was interrupted comes to the same end as if nothing had happened,
//! whatever the host's hook does to what is not its caller's. The proofs say so of all states; this
//! is one of each path, run for real, with the nesting that theorems take one step at a time.
//!
//! Row numbers are those of spec/hazards.md.

use std::collections::BTreeSet;

use iced_x86::Mnemonic;
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::asm::{HostSymbol, Label};
use switcher_gen::layout::{IretFrame, PerCpu, PtRegs, Pvcs, SwitchFlags, Tss, TssExtra};
use switcher_gen::{Image, LinkedImage, Variant};
use switcher_model::{
    ARITHMETIC, Arrival, Concrete, CpuModel, EFER, Features, Flags, Gate, Gpr, Memory, Msrs,
    Program, Region, RegionName, Sharing, State, Step, SyscallKind, cr4,
};

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
/// What the entry of a guest has pushed on the stack of its caller, which has pushed the address to
/// return to.
const SAVED: usize = 56;

const HOST_CR3: u64 = 0x1000;
const SMOD_CR3: u64 = 0x2000;
const UMOD_CR3: u64 = 0x3000;
const GUEST_GS: u64 = 0x7000_0000;
/// A CPU that takes the values of SPEC_CTRL here.
fn with_spec_ctrl(model: CpuModel) -> CpuModel {
    let more = Features::IBRS | Features::STIBP | Features::SSBD;
    CpuModel { features: model.features | more, ..model }
}

const HOST_SPEC_CTRL: u64 = 5;
const GUEST_SPEC_CTRL: u64 = 4;

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
    model: CpuModel,
    linked: LinkedImage,
    program: Program,
    state: State<Concrete>,
    /// The addresses of all instructions executed.
    executed: BTreeSet<u64>,
    /// How often a hook was called.
    hooks: usize,
    /// How many NMIs wait until they are no longer blocked.
    pending: usize,
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
    Syscall { rip: u64, flags: SwitchFlags, entry: SyscallKind },
    Event(u8),
    Handler,
}

/// What a run has come to: all that somebody could see.
#[derive(Debug, PartialEq)]
struct End {
    gpr: [u64; 16],
    others: [u64; 10],
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
        let mut per_cpu = Region::new(RegionName::PerCpu, PER_CPU, 0, vec![0; size_of::<PerCpu>()]);
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
            // And the guest's after it.
            (TssExtra::host_spec_ctrl.bytes(), HOST_SPEC_CTRL | GUEST_SPEC_CTRL << 32),
        ] {
            per_cpu.write(&d, extra(field), 8, value);
        }
        let mut pvcs = Region::new(RegionName::Pvcs, PVCS, 0, vec![0; size_of::<Pvcs>()]);
        pvcs.sharing = Sharing::Guest;
        let mut host = stack(RegionName::HostStack, HOST_STACK, 0);
        host.root = Some(HOST_CR3);
        host.write(&d, -8, 8, LANDING);
        let mut regions = vec![per_cpu, stack(RegionName::Sp0Stack, SP0, 0), pvcs, host];
        for top in IST {
            let mut ist = stack(RegionName::IstStack, top, 16);
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
            nmi_blocked: false,
            msrs: Msrs {
                star: selectors.star().bits(),
                lstar: linked.address(Label::Syscall64),
                cstar: linked.address(Label::SyscallCompat),
                sfmask: RFlags::SYSCALL_CLEARS.bits(),
                spec_ctrl: HOST_SPEC_CTRL,
                efer: EFER,
            },
            memory: Memory { regions, racing: false },
        };
        state.set(Gpr::Rsp, HOST_STACK - 8);
        let program = Program::new(BASE, linked.bytes().to_vec());
        let model = with_spec_ctrl(CpuModel::from(variant));
        Self { d, model, linked, program, state, executed: BTreeSet::new(), hooks: 0, pending: 0 }
    }

    fn write(&mut self, region: usize, at: i64, value: u64) {
        self.state.memory.regions[region].write(&self.d, at, 8, value);
    }

    fn deliver(&mut self, number: u8, error_code: Option<u64>) {
        let gate = self.linked.image().gate(number);
        let gate = Gate { handler: BASE + u64::from(gate.offset), ist: gate.ist };
        let is_nmi = number == vector::NMI;
        assert!(!(is_nmi && self.state.nmi_blocked), "it is blocked");
        let arrival = Arrival { error_code, is_fault: error_code.is_some(), is_nmi };
        let tss = PER_CPU + PerCpu::tss.bytes() as u64;
        self.state.deliver(&self.d, &self.model, tss, gate, arrival).unwrap();
    }

    /// The host's hook: it finds the host's world, and leaves a mess where it may.
    fn hook(&mut self) {
        self.hooks += 1;
        let state = &mut self.state;
        assert_eq!((state.cr3, state.gs_base), (HOST_CR3, PER_CPU));
        if self.linked.variant().mitigations().ibrs {
            assert_eq!(state.msrs.spec_ctrl, HOST_SPEC_CTRL);
        }
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

    /// One instruction of ring 0, and what the CPU or a hook makes of it. Whether that was the
    /// last.
    fn step(&mut self) -> bool {
        let rip = self.state.rip;
        if (HOOKS..HOOKS + 32).contains(&rip) {
            self.hook();
            return false;
        }
        self.executed.insert(rip);
        let mut unobserved = switcher_model::Unobserved;
        let step = self.state.step(&self.d, &self.model, &self.program, &mut unobserved);
        match step.unwrap_or_else(|stuck| panic!("{rip:#x}: {stuck}")) {
            Step::Next => false,
            Step::Left if (HOOKS..HOOKS + 32).contains(&self.state.rip) => false,
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

    /// `number` arrives, its entry runs, and ring 0 is where it was. How many boundaries it had.
    fn interrupt(&mut self, number: u8, nested: Option<usize>) -> usize {
        let before = (self.state.rip, self.state.get(Gpr::Rsp), self.state.cr3);
        let bases = (self.state.gs_base, self.state.inactive_gs_base);
        let spec_ctrl = self.state.msrs.spec_ctrl;
        self.deliver(number, None);
        let mut boundaries = 0;
        loop {
            let boundary = boundaries;
            boundaries += 1;
            if nested == Some(boundary) {
                self.interrupt(vector::MC, None);
            }
            let is_last = self.is_return();
            let has_left = self.step();
            if is_last {
                break;
            }
            assert!(!has_left, "ring 0 goes on");
        }
        assert_eq!((self.state.rip, self.state.get(Gpr::Rsp), self.state.cr3), before);
        assert_eq!((self.state.gs_base, self.state.inactive_gs_base), bases);
        assert_eq!(self.state.msrs.spec_ctrl, spec_ctrl);
        boundaries
    }

    fn is_iretq(&self, at: u64) -> bool {
        self.program.instruction(at).mnemonic() == Mnemonic::Iretq
    }

    /// Whether the next instruction returns to ring 0 from an event.
    fn is_return(&self) -> bool {
        let rip = self.state.rip;
        self.program.contains(rip)
            && matches!(self.program.instruction(rip).mnemonic(), Mnemonic::Iretq | Mnemonic::Retf)
    }

    /// What an event in ring 0 must leave as it is. Of the stack, where ring 0 has one: that is
    /// what code may use below RSP.
    fn kept(&self) -> ([u64; 6], Vec<u8>) {
        let state = &self.state;
        let rsp = state.get(Gpr::Rsp);
        let registers = [
            state.rip,
            rsp,
            state.cr3,
            state.gs_base,
            state.inactive_gs_base,
            state.msrs.spec_ctrl,
        ];
        let routines =
            self.linked.address(Label::Routines)..self.linked.address(Label::RoutinesEnd);
        let stack = state.memory.locate(&self.d, rsp.wrapping_sub(128), 128, state.cr3);
        let stack = stack.filter(|_| !routines.contains(&state.rip));
        let below = stack.map(|place| {
            let cells = &state.memory.regions[place.region].cells;
            cells[place.index..place.index + place.size].to_vec()
        });
        (registers, below.unwrap_or_default())
    }

    /// An NMI that waits comes as soon as none is blocked.
    fn waiting(&mut self) {
        while self.pending > 0 && !self.state.nmi_blocked {
            self.pending -= 1;
            self.nested(vector::NMI, &[]);
        }
    }

    /// `number` arrives, at a boundary of its entry the first of the `others`, and so on, and
    /// whatever waits as soon as it can. Ring 0 is then where it was. How many boundaries it had.
    fn nested(&mut self, number: u8, others: &[(u8, usize)]) -> usize {
        let before = self.kept();
        self.deliver(number, None);
        let mut boundaries = 0;
        let mut is_over = false;
        while !is_over {
            self.waiting();
            if let [(other, at), inner @ ..] = others
                && *at == boundaries
            {
                self.nested(*other, inner);
                self.waiting();
            }
            is_over = self.is_return();
            boundaries += 1;
            assert!(boundaries < 2000, "an endless loop");
            assert!(!self.step(), "ring 0 goes on");
        }
        assert_eq!(self.kept(), before, "what {number} has interrupted");
        boundaries
    }

    fn begin(&mut self, start: Start) {
        self.hooks = 0;
        let user = self.model.selectors;
        let running = (PerCpu::tss_extra.bytes() + TssExtra::host_rsp.bytes()) as i64;
        let flags = (PerCpu::tss_extra.bytes() + TssExtra::switch_flags.bytes()) as i64;
        if !matches!(start, Start::Enter(..)) {
            // Of the entry that has led here: the callee-saved registers, and the way back.
            self.write(region::PER_CPU, running, HOST_STACK - SAVED as u64);
            self.state.cr3 = UMOD_CR3;
            self.state.set(Gpr::Rsp, 0xDEAD_0000);
            (self.state.gs_base, self.state.inactive_gs_base) = (GUEST_GS, PER_CPU);
            (self.state.cpl, self.state.rip) = (3, 0x4000_3000);
            self.state.cs = user.user_cs().into();
            self.state.ss = user.user_ds().into();
            self.state.flags = Flags::new(&self.d, RFlags::GUEST_FIXED.bits() | RFlags::CF.bits());
            // No CPU has the upper half yet, and nothing decides that it has not.
            self.state.msrs.spec_ctrl = GUEST_SPEC_CTRL | 1 << 1;
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
                // Intel's CPUs have no SYSCALL in 32-bit code, but emulators go there all the same.
                let lstar = self.state.msrs.lstar;
                if entry == SyscallKind::Compatibility {
                    self.state.msrs.lstar = self.state.msrs.cstar;
                }
                self.state.syscall(&self.d, &self.model, SyscallKind::Long).unwrap();
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

    fn copy(&self) -> Self {
        Self {
            d: Concrete::default(),
            model: self.model,
            linked: self.linked.clone(),
            program: self.program.clone(),
            state: self.state.clone(),
            executed: BTreeSet::new(),
            hooks: 0,
            pending: 0,
        }
    }

    /// From `start` to the end, with the first of `events` at a boundary of it, the next one at one
    /// of that one's, and so on. One more NMI waits from there on.
    fn run_nested(&self, start: Start, events: &[(u8, usize)]) -> Self {
        let mut rig = self.copy();
        rig.begin(start);
        for boundary in 0.. {
            if let [(number, at), inner @ ..] = events
                && *at == boundary
            {
                rig.pending = 1;
                rig.nested(*number, inner);
            }
            rig.waiting();
            if rig.step() {
                return rig;
            }
        }
        unreachable!("a run has an end")
    }

    /// From `start` to the end, with `interruption` at a boundary; how many there were, and the
    /// end.
    fn run(&self, start: Start, at: usize, interruption: Interruption) -> (usize, Self) {
        let mut rig = self.copy();
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
            let rip = rig.state.rip;
            if rig.program.contains(rip) && rig.is_iretq(rip) {
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
            // What lies on a stack below what is left there is nobody's.
            let start = match index {
                region::SP0 => STACK - size_of::<PtRegs>(),
                region::HOST => STACK - SAVED,
                region::IST.. => STACK,
                _ => 0,
            };
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
                state.msrs.spec_ctrl,
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
        ("SYSCALL in umod", syscall(0x4000_3000, umod, SyscallKind::Long)),
        ("ERETU", syscall(RETU, smod, SyscallKind::Long)),
        ("SYSCALL in smod", syscall(0x4000_3000, smod, SyscallKind::Long)),
        (
            "an inhibited SYSCALL",
            syscall(0x4000_3000, umod | SwitchFlags::IRQ_WIN, SyscallKind::Long),
        ),
        ("a 32-bit SYSCALL", syscall(0x4000_3000, umod, SyscallKind::Compatibility)),
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
        interrupted_anywhere(name);
    }
}

/// And row 29, within the mitigations too.
#[test]
fn whatever_comes_between_two_mitigations_the_end_is_the_same() {
    for name in ["intel-4level+ibrs+rsb+bhb+verw", "amd-4level+ibrs+ibpb+rsblite"] {
        interrupted_anywhere(name);
    }
}

fn interrupted_anywhere(name: &str) {
    let mut rig = Rig::new(&name.parse().unwrap());
    let starts = starts(&mut rig);
    // An NMI of the host's own, to see how long its entry is.
    let (_, mut in_host) = rig.run(Start::Handler, usize::MAX, Interruption::Nothing);
    let inner = in_host.interrupt(vector::NMI, None);
    let mut executed = BTreeSet::new();
    for (what, start) in starts {
        let (boundaries, through) = rig.run(start, usize::MAX, Interruption::Nothing);
        executed.extend(through.executed.iter().copied());
        let expected = through.end();
        let mut hooks = 0;
        let nmi = (0..inner).map(Interruption::Nested);
        let once = [vector::NMI, vector::MC, vector::DB].map(Interruption::Once);
        let twice = [vector::NMI, vector::MC].map(Interruption::Twice);
        for at in 0..boundaries {
            // Within an NMI it does not matter what it has interrupted: a few will do.
            let is_chosen = at % boundaries.div_ceil(4) == 3;
            let nested = if is_chosen { nmi.clone() } else { (0..0).map(Interruption::Nested) };
            for interruption in once.into_iter().chain(twice).chain(nested) {
                let (_, interrupted) = rig.run(start, at, interruption);
                assert!(interrupted.end() == expected, "{name}: {what}: {interruption:?} at {at}");
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
        // The history's branches jump over a NOP each.
        let is_filler = matches!(instruction.mnemonic(), Mnemonic::Int3 | Mnemonic::Nop);
        let is_fatal = fatal.iter().any(|range| range.contains(&next));
        assert!(is_filler || is_fatal || executed.contains(&next), "{next:#x}: {instruction}");
        next = instruction.next_ip();
    }
}

/// Row 11: after an NMI of a guest's, others wait for the host; after any other event, none does.
#[test]
fn a_second_nmi_during_the_exit_of_the_first_waits_for_the_host() {
    let mut rig = Rig::new(&Variant::REFERENCE);
    for (what, start) in starts(&mut rig) {
        let is_nmi = matches!(start, Start::Event(vector::NMI));
        // Neither of these interrupts its own kind.
        let other = if matches!(start, Start::Event(vector::MC)) { vector::DB } else { vector::MC };
        let (boundaries, through) = rig.run(start, usize::MAX, Interruption::Nothing);
        assert_eq!(through.state.nmi_blocked, is_nmi, "{what}");
        for at in 0..boundaries {
            let waiting = rig.run_nested(start, &[(other, at)]);
            assert_eq!(waiting.pending, is_nmi.into(), "{what}: at {at}");
            assert_eq!(waiting.state.nmi_blocked, is_nmi, "{what}: at {at}");
        }
    }
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

/// What an NMI, and a guest's NMI, are interrupted by, and where: at each boundary of its entry,
/// its hook and its return. Behind it another one waits, that comes as soon as it can.
fn nests(rig: &mut Rig) -> Vec<(Start, Vec<(u8, usize)>)> {
    let starts = starts(rig);
    let start = |name| starts.iter().find(|(known, _)| *known == name).unwrap().1;
    let ring_0 = [("a page fault", 9), ("SYSCALL in umod", 4)];
    let in_host = rig.copy().tap(|rig| rig.begin(Start::Handler)).nested(vector::NMI, &[]);
    let mut nests = Vec::new();
    for (number, other) in [(vector::MC, vector::DB), (vector::DB, vector::MC)] {
        for (name, at) in ring_0 {
            for inner in 0..in_host {
                nests.push((start(name), vec![(vector::NMI, at), (number, inner)]));
                // And that by the other, at some of its boundaries: the last are its return.
                for innermost in [0, 1, 7, inner % 50, 8 + inner % 13] {
                    let events = vec![(vector::NMI, at), (number, inner), (other, innermost)];
                    nests.push((start(name), events));
                }
            }
        }
        let (boundaries, _) = rig.run(start("an NMI"), usize::MAX, Interruption::Nothing);
        for at in 0..boundaries {
            nests.push((start("an NMI"), vec![(number, at)]));
            for inner in 0..16 {
                nests.push((start("an NMI"), vec![(number, at), (other, inner)]));
            }
        }
    }
    nests
}

trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for Rig {}

/// Row 39: nothing within an NMI ends the blocking of the next one but the NMI's own last IRETQ.
#[test]
fn what_interrupts_an_nmi_leaves_the_next_one_blocked() {
    for name in ["intel-4level", "intel-4level+ibrs+rsb+bhb+verw", "intel-la57-ibt"] {
        let mut rig = Rig::new(&name.parse().unwrap());
        let nests = nests(&mut rig);
        assert!(nests.len() > 1000);
        let mut more = 0;
        for (start, events) in nests {
            let (_, through) = rig.run(start, usize::MAX, Interruption::Nothing);
            let nested = rig.run_nested(start, &events);
            assert!(nested.end() == through.end(), "{name}: {start:?}: {events:?}");
            // In ring 0 both NMIs have a hook. That of a guest has none, and others wait for the
            // host, unless they are due only after the end.
            let is_guests = matches!(start, Start::Event(vector::NMI));
            let is_waiting = nested.pending == 1 && nested.state.nmi_blocked;
            assert!(
                nested.pending == 0 || is_guests && is_waiting,
                "{name}: {start:?}: {events:?}"
            );
            assert_eq!(nested.state.nmi_blocked, is_guests, "{name}: {start:?}: {events:?}");
            let nmis = if is_guests { 0 } else { 2 };
            assert!(nested.hooks >= nmis, "{name}: {start:?}: {events:?}");
            more += nested.hooks - nmis;
        }
        // Some machine checks were due only after the end of the code that they interrupt.
        assert!(more > 500, "{name}: {more} machine checks");
    }
}

/// The same with a #MC and a #DB that return by IRETQ wherever they come from, as they once did.
#[test]
fn an_iretq_within_an_nmi_is_noticed() {
    let mut rig = Rig::new(&Variant::REFERENCE);
    let nests = nests(&mut rig);
    // The jumps to the other way.
    let resume = rig.linked.address(Label::ResumeRing0);
    let mut at = resume;
    while !rig.is_iretq(at) {
        let jump = rig.program.instruction(at);
        if jump.is_jcc_short() {
            rig.program.patch(at, &[0x90, 0x90]);
        }
        at = jump.next_ip();
    }
    let is_wrong = |(start, events): &(Start, Vec<(u8, usize)>)| {
        let (_, through) = rig.run(*start, usize::MAX, Interruption::Nothing);
        let run = std::panic::AssertUnwindSafe(|| rig.run_nested(*start, events).end());
        std::panic::catch_unwind(run).map_or(true, |end| end != through.end())
    };
    let within_nmi = nests.iter().filter(|(start, _)| !matches!(start, Start::Event(_)));
    let wrong = within_nmi.filter(|nest| is_wrong(nest)).count();
    assert!(wrong > 100, "{wrong} of {}", nests.len());
    // A guest's, too, whose frame is still on the NMIs' stack.
    let guests = nests.iter().filter(|(start, _)| matches!(start, Start::Event(_)));
    let wrong = guests.filter(|nest| is_wrong(nest)).count();
    assert!(wrong > 10, "{wrong} of {}", nests.len());
}
