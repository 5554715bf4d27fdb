//! What the tour of the command line shows of a variant: round trips at full speed, and how many
//! instructions each path executes.

use super::Error;
use super::cpu::Interception;
use super::machine::Machine;
use crate::scenario::{Crossing, Emulated, SYSCALL_LEN, ScenarioEnd, Setup, WayIn, WayOut};
use switcher_gen::layout::{Mode, PtRegs, SwitchFlags};
use switcher_gen::{Variant, program};
use switcher_prove::cost;

/// Round trips from umod to smod and back that [`tour`] does.
const ROUND_TRIPS: u64 = 10_000;

const SYSCALL: &[u8] = program!(; syscall);
/// In umod: SYSCALL as often as RBX says, then UD2.
const SYSCALLS: &[u8] = program!(; again: ; syscall ; sub rbx, 1 ; jnz BYTE <again ; ud2);
/// Where in smod's page there is a SYSCALL that is not ERETU.
const HYPERCALL: usize = 0x100;
/// Bytes of UD2.
const UD2_LEN: u64 = 2;
/// Vector of UD2.
const UD: u32 = 6;

/// How many instructions a path executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathCount {
    /// Where the path begins and where it ends.
    pub name: &'static str,
    /// The same for [`cost`].
    pub kind: &'static str,
    /// Executed instructions of the switcher: see [`Crossing::executed`].
    pub executed: u64,
    /// How many instructions the kernel's switcher of 2024 executes on the path.
    pub kernel_2024: u64,
}

/// What a [`tour`] did.
#[derive(Clone, Debug)]
pub struct TourReport {
    /// Round trips at full speed, all registers checked at their end.
    pub round_trips: u64,
    /// What was emulated meanwhile; everything else was executed by this CPU.
    pub emulated: Emulated,
    /// How SYSCALLs were kept from this machine's kernel.
    pub interception: Interception,
    /// The paths, counted by stepping.
    pub paths: Vec<PathCount>,
}

impl TourReport {
    /// What ran natively and what was emulated, in a few lines for a reader.
    #[must_use]
    pub fn ran(&self) -> String {
        let Emulated { syscall, swapgs, mov_cr3, sysretq, mov_ss, wrmsr, iretq } = self.emulated;
        let how = match self.interception {
            Interception::UserDispatch => "Syscall User Dispatch",
            Interception::Stepping => "single-stepping",
        };
        let mut text = format!(
            "{} round trips umod -> smod -> umod of the emitted bytes on this CPU in user mode.\n\
             Natively: every instruction but those that fault at CPL 3. Emulated in the fault \
             handler: {swapgs} SWAPGS, {mov_cr3} MOV CR3, {sysretq} SYSRETQ",
            self.round_trips,
        );
        for (count, name) in [(mov_ss, "MOV SS"), (wrmsr, "WRMSR"), (iretq, "IRETQ")] {
            if count != 0 {
                text += &format!(", {count} {name}");
            }
        }
        text += &format!(".\n{syscall} guest SYSCALLs kept from Linux by {how}.");
        text
    }
}

/// Runs `variant` on this CPU: round trips at full speed, then each path once, counted.
///
/// # Errors
/// If this machine cannot run it, or if the switcher does not do what it must.
pub fn tour(variant: &Variant) -> Result<TourReport, Error> {
    let mut machine = Machine::new(variant)?;
    machine.load(Mode::Smod, 0, SYSCALL)?;
    machine.load(Mode::Smod, HYPERCALL, SYSCALL)?;
    machine.load(Mode::Umod, 0, SYSCALLS)?;
    let emulated = round_trips(&mut machine)?;
    let paths = PATHS.iter().map(|path| path.count(&mut machine)).collect::<Result<_, _>>()?;
    Ok(TourReport {
        round_trips: ROUND_TRIPS,
        emulated,
        interception: machine.interception(),
        paths,
    })
}

/// [`ROUND_TRIPS`] at full speed, at whose end umod must have its registers.
fn round_trips(machine: &mut Machine) -> Result<Emulated, Error> {
    let mut setup = machine.setup(Mode::Umod);
    // Distinct, and nothing that the switcher has in its registers.
    let general = |n: u64| 0x0123_4567_89AB_CDEF ^ n << 60;
    setup.frame = PtRegs {
        rax: general(0),
        rbx: ROUND_TRIPS,
        rdx: general(2),
        rsi: general(3),
        rdi: general(4),
        rbp: general(5),
        r8: general(6),
        r9: general(7),
        r10: general(8),
        r12: general(9),
        r13: general(10),
        r14: general(11),
        r15: general(12),
        rsp: general(13),
        ..setup.frame
    };
    setup.traps = u64::MAX;
    let outcome = machine.run(&setup)?;
    let PtRegs { eflags, r11, orig_ax, .. } = outcome.frame;
    let ud2 = setup.frame.rip + SYSCALLS.len() as u64 - UD2_LEN;
    let after_syscall = setup.frame.rip + SYSCALL_LEN;
    // The last SUB has set the flags, which R11 has from before it.
    let expected =
        PtRegs { rbx: 0, rip: ud2, rcx: after_syscall, eflags, r11, orig_ax, ..setup.frame };
    if orig_ax.reason != UD || outcome.frame != expected {
        return Err(unexpected("round trips", &outcome));
    }
    Ok(outcome.emulated)
}

fn unexpected(run: &'static str, outcome: &ScenarioEnd) -> Error {
    let PtRegs { rip, orig_ax, .. } = outcome.frame;
    Error::Unexpected { run, rip, reason: orig_ax.reason }
}

/// A path to be counted: how to get onto it, and how it begins and ends.
struct CountedPath {
    name: &'static str,
    kind: &'static str,
    enter: Mode,
    prepare: fn(&mut Setup),
    begins: WayIn,
    ends: WayOut,
}

const IN_UMOD: WayIn = WayIn::Syscall(SwitchFlags::UMOD);
const IN_SMOD: WayIn = WayIn::Syscall(SwitchFlags::SMOD);
const INHIBITED: WayIn = WayIn::Syscall(SwitchFlags::UMOD.union(SwitchFlags::NO_DS_CR3));

const PATHS: [CountedPath; 6] = [
    CountedPath {
        name: "SYSCALL in umod to smod's first instruction",
        kind: "SYSCALL in umod -> smod",
        enter: Mode::Umod,
        prepare: |_| {},
        begins: IN_UMOD,
        ends: WayOut::Sysretq,
    },
    CountedPath {
        name: "ERETU to umod's first instruction, by SYSRETQ",
        kind: "ERETU -> umod by SYSRETQ",
        enter: Mode::Umod,
        prepare: |_| {},
        begins: IN_SMOD,
        ends: WayOut::Sysretq,
    },
    CountedPath {
        name: "ERETU up to the IRETQ, as RCX differs from RIP",
        kind: "ERETU -> umod by IRETQ (RCX differs)",
        enter: Mode::Smod,
        prepare: |setup| setup.pvcs.rcx = !setup.pvcs.rip,
        begins: IN_SMOD,
        ends: WayOut::Iretq,
    },
    CountedPath {
        name: "SYSCALL in smod to the return in the host",
        kind: "SYSCALL in smod -> host",
        enter: Mode::Smod,
        prepare: |setup| {
            setup.frame.rip += HYPERCALL as u64;
            setup.frame.rcx = setup.frame.rip;
        },
        begins: IN_SMOD,
        ends: WayOut::Host,
    },
    CountedPath {
        name: "SYSCALL in umod to the return in the host, inhibited",
        kind: "SYSCALL -> host (inhibited)",
        enter: Mode::Umod,
        prepare: |setup| setup.extra.switch_flags |= SwitchFlags::NO_DS_CR3,
        begins: INHIBITED,
        ends: WayOut::Host,
    },
    CountedPath {
        name: "call of switcher_enter_guest to the guest, by SYSRETQ",
        kind: "enter -> guest by SYSRETQ",
        enter: Mode::Umod,
        prepare: |_| {},
        begins: WayIn::Enter,
        ends: WayOut::Sysretq,
    },
];

impl CountedPath {
    fn count(&self, machine: &mut Machine) -> Result<PathCount, Error> {
        let mut setup = Setup { count: true, ..machine.setup(self.enter) };
        setup.frame.rbx = 1;
        (self.prepare)(&mut setup);
        let outcome = machine.run(&setup)?;
        let is_it = |c: &&Crossing| c.way_in == self.begins && c.way_out == self.ends;
        let crossing = outcome.crossings.iter().find(is_it);
        let executed = crossing.ok_or_else(|| unexpected(self.name, &outcome))?.executed;
        let kernel_2024 = cost::kernel_2024(self.kind).unwrap_or_default();
        Ok(PathCount { name: self.name, kind: self.kind, executed, kernel_2024 })
    }
}
