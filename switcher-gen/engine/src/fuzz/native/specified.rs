//! A whole scenario by the specification alone: [`spec`]'s routines one after the other, and
//! between them guests whose programs are too short to need a CPU.

use std::fmt;

use crate::fuzz::Class;
use crate::scenario::{NO_ERROR_CODE, Places, SYSCALL_LEN, ScenarioEnd, Setup, WayIn, WayOut};
use switcher_gen::Variant;
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::layout::{Mode, OrigAx, PtRegs, Pvcs, SwitchFlags, TssExtra};
use switcher_model::Concrete;
use switcher_spec as spec;
use switcher_spec::{Caller, ExitFrame, Guest, Host, Registers, Return, State};

/// What a guest's page has at every even address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Syscall,
    Ud2,
    Int3,
    Cli,
}

/// Bytes of a [`Slot`], and of a SYSCALL.
pub(super) const SLOT_LEN: u64 = SYSCALL_LEN;
/// How many a page has.
pub(super) const SLOTS: usize = Places::CODE_LEN / SLOT_LEN as usize;

impl Slot {
    pub(super) const fn bytes(self) -> [u8; SLOT_LEN as usize] {
        match self {
            Self::Syscall => [0x0F, 0x05],
            Self::Ud2 => [0x0F, 0x0B],
            Self::Int3 => [0xCC, 0xCC],
            Self::Cli => [0xFA, 0x90],
        }
    }
}

/// The code of both modes.
#[derive(Debug)]
pub(super) struct GuestSlots {
    pub(super) smod: Vec<Slot>,
    pub(super) umod: Vec<Slot>,
}

impl GuestSlots {
    pub(super) const fn of(&self, mode: Mode) -> &Vec<Slot> {
        match mode {
            Mode::Smod => &self.smod,
            Mode::Umod => &self.umod,
        }
    }
}

/// What must be the same, whatever ran the scenario.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) frame: PtRegs,
    pub(super) cr2: Option<u64>,
    pub(super) gs_base: u64,
    /// In the order of [`EXTRA`].
    pub(super) extra: [u64; EXTRA.len()],
    pub(super) pvcs: Pvcs,
    /// The first of them.
    pub(super) crossings: Vec<(WayIn, WayOut)>,
    pub(super) crossings_total: u64,
    /// The first of them.
    pub(super) cr3_loads: Vec<u64>,
    pub(super) cr3_loads_total: u64,
    pub(super) system_calls: u64,
    pub(super) sysretqs: u64,
}

/// The fields of [`TssExtra`].
pub(super) const EXTRA: [&str; 11] = [
    "host_cr3",
    "host_rsp",
    "enter_cr3",
    "switch_flags",
    "smod_cr3",
    "umod_cr3",
    "pvcs",
    "retu_rip",
    "smod_entry",
    "smod_gsbase",
    "smod_rsp",
];

fn extra_fields(extra: &TssExtra) -> [u64; EXTRA.len()] {
    [
        extra.host_cr3.bits(),
        extra.host_rsp,
        extra.enter_cr3.bits(),
        extra.switch_flags.bits(),
        extra.smod_cr3.bits(),
        extra.umod_cr3.bits(),
        extra.pvcs,
        extra.retu_rip,
        extra.smod_entry,
        extra.smod_gsbase,
        extra.smod_rsp,
    ]
}

/// How many crossings and CR3 loads an [`ScenarioEnd`] has at most.
const KEPT: usize = 256;

/// Vector of INT3.
const BREAKPOINT: u8 = 3;
const PF: u32 = vector::PF as u32;
/// A page fault's error code: the page is there. Of the upper half, this machine's kernel says so
/// whatever is there.
const PRESENT: u32 = 1;
/// A page fault's error code: an instruction of CPL 3 was to be fetched.
const FETCH_BY_USER: u32 = 1 << 4 | 1 << 2;

impl From<&ScenarioEnd> for Facts {
    fn from(outcome: &ScenarioEnd) -> Self {
        let mut frame = outcome.frame;
        if frame.orig_ax.reason == PF {
            frame.orig_ax.error_code &= !PRESENT;
        }
        let crossings = outcome.crossings.iter().map(|one| (one.way_in, one.way_out));
        Self {
            frame,
            cr2: outcome.cr2,
            gs_base: outcome.gs_base,
            extra: extra_fields(&outcome.extra),
            pvcs: outcome.pvcs,
            crossings: crossings.collect(),
            crossings_total: outcome.crossings_total,
            cr3_loads: outcome.cr3_loads.clone(),
            cr3_loads_total: outcome.emulated.mov_cr3,
            system_calls: outcome.emulated.syscall,
            sysretqs: outcome.emulated.sysretq,
        }
    }
}

/// What the specification says of a scenario, and what is particular about it.
#[derive(Debug)]
pub(super) struct Specified {
    pub(super) facts: Facts,
    pub(super) path: SwitcherPath,
    pub(super) class: Class,
    pub(super) round_trips: u64,
}

/// The ways taken through the switcher, each once, in the order in which they were first taken, and
/// the reason of the exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwitcherPath {
    /// The steps from the last to the first, five bits each; zero stands for no step.
    steps: u64,
    reason: u32,
}

const STEP_BITS: u32 = 5;
const STEP: u64 = (1 << STEP_BITS) - 1;
const WAYS_IN: [&str; 6] =
    ["enter", "umod", "smod", "umod (inhibited)", "smod (inhibited)", "event"];
const WAYS_OUT: [&str; 3] = ["SYSRETQ", "IRETQ", "host"];

impl SwitcherPath {
    fn cross(&mut self, way_in: WayIn, way_out: WayOut) {
        let from = match way_in {
            WayIn::Enter => 0,
            WayIn::Syscall(flags) | WayIn::SyscallCompat(flags) => {
                let mode = if flags.contains(SwitchFlags::UMOD) { 1 } else { 2 };
                let inhibited = flags.intersects(!SwitchFlags::MODE_TOGGLE);
                mode + if inhibited { 2 } else { 0 }
            }
            WayIn::Event => 5,
        };
        let step = 1 + from * WAYS_OUT.len() as u64 + way_out as u64;
        if !self.steps().any(|taken| taken == step) {
            self.steps = self.steps << STEP_BITS | step;
        }
    }

    /// From the last to the first.
    fn steps(self) -> impl Iterator<Item = u64> {
        let all = (0..u64::BITS).step_by(STEP_BITS as usize);
        all.map(move |by| self.steps >> by & STEP).take_while(|step| *step != 0)
    }
}

impl fmt::Display for SwitcherPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps: Vec<_> = self.steps().map(|step| step as usize - 1).collect();
        steps.reverse();
        for step in steps {
            let (from, to) = (WAYS_IN[step / WAYS_OUT.len()], WAYS_OUT[step % WAYS_OUT.len()]);
            write!(f, "{from} -> {to}, ")?;
        }
        write!(f, "reason {}", self.reason)
    }
}

/// What a host has fixed, and where everything is.
#[derive(Debug)]
pub(super) struct Specification {
    host: Host,
    places: Places,
    pub(super) code: GuestSlots,
}

/// What a guest does next.
enum Next {
    /// RIP is the address after it.
    Syscall,
    /// RIP and RFLAGS are what the CPU pushes.
    Event { vector: u8, error_code: u32, cr2: Option<u64> },
}

impl Next {
    const fn event(vector: u8) -> Self {
        Self::Event { vector, error_code: NO_ERROR_CODE, cr2: None }
    }

    const fn protection(error_code: u32) -> Self {
        Self::Event { vector: vector::GP, error_code, cr2: None }
    }
}

impl Specification {
    pub(super) fn new(variant: &Variant, places: Places, code: GuestSlots) -> Self {
        let (config, selectors) = (variant.config(), variant.selectors());
        let host = Host {
            paging: config.paging,
            selectors,
            revision: config.policy.revision,
            ibrs: config.mitigations.ibrs,
            pku: config.pku,
        };
        Self { host, places, code }
    }

    /// The whole scenario. It has an end: umod, which alone is returned to after its SYSCALLs,
    /// gets to the end of its page.
    pub(super) fn run(&self, setup: &Setup) -> Specified {
        let d = Concrete::default();
        let frame_at = self.places.sp0 - size_of::<PtRegs>() as u64;
        let mut state = state(setup);
        let frame = guest(&setup.frame, setup.gs_base);
        let mut run = Running::default();
        let mut way_in = WayIn::Enter;
        let mut cr2 = None;
        run.class = Class::of(self.host.paging, frame.rip, frame.rflags);
        let mut outcome = spec::enter_guest(&d, &self.host, &frame, &mut state);
        loop {
            run.load_cr3(state.root);
            let by = match outcome {
                spec::Outcome::Guest(by) => by,
                spec::Outcome::Host(exit) => {
                    run.cross(way_in, WayOut::Host);
                    // Both routines that exit write it.
                    let frame = exit.frame.unwrap_or(ExitFrame { guest: frame, orig_ax: 0 });
                    return run.finish(&frame, cr2, &state, setup);
                }
            };
            run.cross(way_in, if by == Return::Sysretq { WayOut::Sysretq } else { WayOut::Iretq });
            match self.execute(by, &mut state.guest, mode(state.tss_extra.switch_flags)) {
                Next::Syscall => {
                    let flags = state.tss_extra.switch_flags;
                    way_in = WayIn::Syscall(SwitchFlags::from_bits_retain(flags));
                    run.system_calls += 1;
                    let asked = (state.pvcs.rip, state.pvcs.eflags);
                    outcome = spec::syscall_64(&d, &self.host, &CALLER, frame_at, &mut state);
                    if matches!(outcome, spec::Outcome::Guest(_)) && mode(flags) == Mode::Smod {
                        run.class = Class::of(self.host.paging, asked.0, asked.1);
                        run.round_trips += u64::from(run.in_smod_by_syscall);
                    }
                    run.in_smod_by_syscall = mode(flags) == Mode::Umod;
                }
                Next::Event { vector, error_code, cr2: address } => {
                    way_in = WayIn::Event;
                    cr2 = address;
                    let orig_ax = u64::from(vector) << 32 | u64::from(error_code);
                    let frame = ExitFrame { guest: state.guest, orig_ax };
                    let frame = Some(frame);
                    outcome = spec::return_from_guest(
                        &d, &self.host, &CALLER, frame, frame_at, &mut state,
                    );
                }
            }
        }
    }

    /// What the CPU comes to when it has returned to this guest.
    fn execute(&self, by: Return, guest: &mut Guest<u64>, mode: Mode) -> Next {
        let s = self.host.selectors;
        if by == Return::Iretq {
            // A fault of IRETQ is one of the instruction before: RF is as it was.
            let without_rpl = |selector: u64| selector as u32 & 0xFFFC;
            if guest.cs != u64::from(s.user_cs()) {
                return Next::protection(without_rpl(guest.cs));
            }
            if guest.ss != u64::from(s.user_ds()) {
                return Next::protection(without_rpl(guest.ss));
            }
            if !self.host.paging.is_canonical(guest.rip) {
                return Next::protection(0);
            }
        }
        let offset = guest.rip.wrapping_sub(self.places.code(mode).start);
        let slot = self.code.of(mode).get((offset / SLOT_LEN) as usize);
        let fault = guest.rflags | RFlags::RF.bits();
        match slot {
            Some(Slot::Syscall) => {
                guest.rip += SYSCALL_LEN;
                Next::Syscall
            }
            Some(Slot::Int3) => {
                guest.rip += 1;
                guest.rflags &= !RFlags::RF.bits();
                Next::event(BREAKPOINT)
            }
            Some(Slot::Ud2) => {
                guest.rflags = fault;
                Next::event(vector::UD)
            }
            Some(Slot::Cli) => {
                guest.rflags = fault;
                Next::protection(0)
            }
            None => {
                guest.rflags = fault;
                let (vector, error_code) = (vector::PF, FETCH_BY_USER);
                Next::Event { vector, error_code, cr2: Some(guest.rip) }
            }
        }
    }
}

/// Whose turn it is.
pub(super) fn mode(switch_flags: u64) -> Mode {
    let umod = SwitchFlags::from_bits_retain(switch_flags).contains(SwitchFlags::UMOD);
    if umod { Mode::Umod } else { Mode::Smod }
}

/// What a host has in its registers is the switcher's to restore and the engines' to check.
const CALLER: Caller<u64> =
    Caller { rbx: 0, rbp: 0, r12: 0, r13: 0, r14: 0, r15: 0, rsp: 0, rip: 0 };

/// What has happened so far.
#[derive(Default)]
struct Running {
    crossings: Vec<(WayIn, WayOut)>,
    crossings_total: u64,
    cr3_loads: Vec<u64>,
    cr3_loads_total: u64,
    system_calls: u64,
    sysretqs: u64,
    path: SwitcherPath,
    class: Class,
    in_smod_by_syscall: bool,
    round_trips: u64,
}

impl Running {
    fn cross(&mut self, way_in: WayIn, way_out: WayOut) {
        self.path.cross(way_in, way_out);
        self.crossings_total += 1;
        self.sysretqs += u64::from(way_out == WayOut::Sysretq);
        if self.crossings.len() < KEPT {
            self.crossings.push((way_in, way_out));
        }
    }

    fn load_cr3(&mut self, value: u64) {
        self.cr3_loads_total += 1;
        if self.cr3_loads.len() < KEPT {
            self.cr3_loads.push(value);
        }
    }

    fn finish(
        mut self,
        frame: &ExitFrame<u64>,
        cr2: Option<u64>,
        state: &State<Concrete>,
        setup: &Setup,
    ) -> Specified {
        let frame = pt_regs(frame);
        self.path.reason = frame.orig_ax.reason;
        let facts = Facts {
            frame,
            cr2,
            gs_base: state.guest.gs_base,
            extra: extra_of(&state.tss_extra),
            pvcs: pvcs(&state.pvcs, &setup.pvcs),
            crossings: self.crossings,
            crossings_total: self.crossings_total,
            cr3_loads: self.cr3_loads,
            cr3_loads_total: self.cr3_loads_total,
            system_calls: self.system_calls,
            sysretqs: self.sysretqs,
        };
        let Self { path, class, round_trips, .. } = self;
        Specified { facts, path, class, round_trips }
    }
}

// The specification's structs and the host's.

fn guest(frame: &PtRegs, gs_base: u64) -> Guest<u64> {
    Guest {
        registers: Registers {
            rax: frame.rax,
            rcx: frame.rcx,
            rdx: frame.rdx,
            rbx: frame.rbx,
            rsp: frame.rsp,
            rbp: frame.rbp,
            rsi: frame.rsi,
            rdi: frame.rdi,
            r8: frame.r8,
            r9: frame.r9,
            r10: frame.r10,
            r11: frame.r11,
            r12: frame.r12,
            r13: frame.r13,
            r14: frame.r14,
            r15: frame.r15,
        },
        rip: frame.rip,
        rflags: frame.eflags,
        cs: frame.cs,
        ss: frame.ss,
        gs_base,
    }
}

fn pt_regs(frame: &ExitFrame<u64>) -> PtRegs {
    let ExitFrame { guest: Guest { registers: r, rip, rflags, cs, ss, gs_base: _ }, orig_ax } =
        *frame;
    PtRegs {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        rbp: r.rbp,
        rbx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        rax: r.rax,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        orig_ax: OrigAx { error_code: orig_ax as u32, reason: (orig_ax >> 32) as u32 },
        rip,
        cs,
        eflags: rflags,
        rsp: r.rsp,
        ss,
    }
}

/// Before the host's call.
fn state(setup: &Setup) -> State<Concrete> {
    let Setup { extra, pvcs, .. } = setup;
    State {
        // Only its GS base is in the CPU already.
        guest: guest(&PtRegs::ZERO, setup.gs_base),
        root: extra.host_cr3.bits(),
        spec_ctrl: 0,
        pkru: 0,
        tss_extra: spec::TssExtra {
            host_cr3: extra.host_cr3.bits(),
            host_rsp: extra.host_rsp,
            enter_cr3: extra.enter_cr3.bits(),
            switch_flags: extra.switch_flags.bits(),
            smod_cr3: extra.smod_cr3.bits(),
            umod_cr3: extra.umod_cr3.bits(),
            pvcs: extra.pvcs,
            retu_rip: extra.retu_rip,
            smod_entry: extra.smod_entry,
            smod_gsbase: extra.smod_gsbase,
            smod_rsp: extra.smod_rsp,
            host_spec_ctrl: extra.host_spec_ctrl.into(),
            guest_spec_ctrl: extra.guest_spec_ctrl.into(),
            smod_pkru: extra.smod_pkru.into(),
            pku_on: 1,
        },
        pvcs: spec::Pvcs {
            user_cs: pvcs.user_cs.into(),
            user_ss: pvcs.user_ss.into(),
            user_gsbase: pvcs.user_gsbase,
            eflags: pvcs.eflags.into(),
            pkru: pvcs.pkru.into(),
            rip: pvcs.rip,
            rsp: pvcs.rsp,
            rcx: pvcs.rcx,
            r11: pvcs.r11,
        },
    }
}

const fn extra_of(extra: &spec::TssExtra<u64>) -> [u64; EXTRA.len()] {
    [
        extra.host_cr3,
        extra.host_rsp,
        extra.enter_cr3,
        extra.switch_flags,
        extra.smod_cr3,
        extra.umod_cr3,
        extra.pvcs,
        extra.retu_rip,
        extra.smod_entry,
        extra.smod_gsbase,
        extra.smod_rsp,
    ]
}

/// What the switcher does not use stays as it was.
const fn pvcs(pvcs: &spec::Pvcs<u64>, before: &Pvcs) -> Pvcs {
    let mut after = *before;
    after.user_cs = pvcs.user_cs as u16;
    after.user_ss = pvcs.user_ss as u16;
    after.user_gsbase = pvcs.user_gsbase;
    after.eflags = pvcs.eflags as u32;
    after.rip = pvcs.rip;
    after.rsp = pvcs.rsp;
    after.rcx = pvcs.rcx;
    after.r11 = pvcs.r11;
    after
}
