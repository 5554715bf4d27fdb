//! NMIs and machine checks at every instruction of the switcher, and NMIs all the time while it
//! switches (spec/hazards.md, rows 8 to 11).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw_cases::{Expected, Setup, World, place};
use hw_platform::memory::{self, Flags, Frame, MapError, PAGE};
use hw_platform::percpu::{self, Stack};
use hw_platform::{events, exit, hooks, smp};
use switcher_runtime::switcher_gen::GateDescriptor;
use switcher_runtime::switcher_gen::arch::{RFlags, Vendor, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::{IstTop, PerCpu, PtRegs, Tss};
use switcher_runtime::{DescriptorTablePointer, Exit, Mode};

use crate::host::{Ended, PROBE, SYSCALL, setup};
use crate::world::{BareMetal, checked_call};

/// Where the breakpoint is.
static BREAKPOINT: AtomicU64 = AtomicU64::new(0);
/// The IDT under which the switcher is called.
static IDT: AtomicU64 = AtomicU64::new(0);

/// The switcher's IDT with some gates changed, on a page that guests' roots map.
pub(crate) struct IdtCopy {
    page: Frame,
}

impl IdtCopy {
    /// Makes it the one that [`load`](Self::load) loads.
    pub(crate) fn new(
        world: &mut BareMetal<'_>,
        change: impl FnOnce(&mut [GateDescriptor; 256]),
    ) -> Result<Self, String> {
        let mut gates = world.cpu().switcher().linked().idt();
        change(&mut gates);
        let mut copy = Self { page: Frame::new().map_err(|why| format!("an IDT: {why}"))? };
        for (vector, gate) in (0..).zip(&gates) {
            copy.set(vector, gate);
        }
        world.map_in_both(copy.page.address(), Some(Flags::empty())).map_err(mapping)?;
        IDT.store(copy.page.address(), Ordering::Relaxed);
        Ok(copy)
    }

    fn set(&mut self, vector: u8, gate: &GateDescriptor) {
        let at = size_of::<GateDescriptor>() * usize::from(vector);
        self.page.write(at, &gate.low.to_le_bytes());
        self.page.write(at + 8, &gate.high.to_le_bytes());
    }

    /// A gate of the copy there is.
    fn place(vector: u8) -> *mut GateDescriptor {
        let at = size_of::<GateDescriptor>() * usize::from(vector);
        core::ptr::with_exposed_provenance_mut(IDT.load(Ordering::Relaxed) as usize + at)
    }

    /// Reads a gate of the copy there is.
    ///
    /// # Safety
    /// There is one.
    pub(crate) unsafe fn gate(vector: u8) -> GateDescriptor {
        // SAFETY: the copy's page is in the identity map, and nothing has a reference into it.
        unsafe { Self::place(vector).read_volatile() }
    }

    /// Changes a gate of the copy there is.
    ///
    /// # Safety
    /// There is one, and `gate` leads to an entry for `vector`.
    pub(crate) unsafe fn set_gate(vector: u8, gate: GateDescriptor) {
        // SAFETY: as for reading; the CPU reads it when an event comes.
        unsafe { Self::place(vector).write_volatile(gate) }
    }

    /// Loads it, until the runtime loads the host's when the call has returned.
    ///
    /// # Safety
    /// There is a copy, and this is in a call of `enter_with`.
    pub(crate) unsafe fn load() {
        let base = IDT.load(Ordering::Relaxed);
        let Ok(pointer) = DescriptorTablePointer::new(base, 4095, memory::paging()) else {
            exit::fatal(format_args!("a copy of the IDT at {base:#x}"))
        };
        // SAFETY: but for some gates, whose makers vouch for them, this is the switcher's own
        // table, which is loaded here.
        unsafe { pointer.load_idt() }
    }

    /// Gives the page back.
    pub(crate) fn free(self, world: &mut BareMetal<'_>) -> Result<(), String> {
        world.map_in_both(self.page.address(), None).map_err(mapping)
    }
}

pub(crate) fn mapping(why: MapError) -> String {
    format!("a page in both roots: {why}")
}

/// Puts the breakpoint where it is wanted, or nowhere, and forgets what DR6 says of the last one.
pub(crate) fn set_breakpoint(enabled: bool) {
    /// DR7: breakpoint 0, on execution. And nothing.
    const ENABLED: u64 = 1 << 10 | 1;
    const DISABLED: u64 = 1 << 10;
    const DR6_CLEAR: u64 = 0xFFFF_0FF0;
    let at = BREAKPOINT.load(Ordering::Relaxed);
    let control = if enabled { ENABLED } else { DISABLED };
    // SAFETY: the breakpoint is in the switcher, which comes back from what happens there.
    unsafe {
        asm!(
            "mov dr0, {at}",
            "mov dr6, {clear}",
            "mov dr7, {control}",
            at = in(reg) at,
            clear = in(reg) DR6_CLEAR,
            control = in(reg) control,
        );
    }
}

/// The call that `enter_with` leaves to the host, under the copy of the IDT.
///
/// # Safety
/// As for `checked_call`. There is an [`IdtCopy`].
unsafe fn call_under_copy(entry: u64) -> *mut PtRegs {
    // SAFETY: as the caller says.
    unsafe { IdtCopy::load() };
    // SAFETY: as the caller says.
    unsafe { checked_call(entry) }
}

/// The same with an instruction breakpoint in the switcher. Its #DB takes the entry and the stack
/// of an NMI or a machine check; the hook sets RF, so that the instruction is executed then, and is
/// met again if the path comes by again.
///
/// # Safety
/// As for [`call_under_copy`].
unsafe fn call_with_breakpoint(entry: u64) -> *mut PtRegs {
    hooks::set_resuming(true);
    set_breakpoint(true);
    // SAFETY: as the caller says. The switcher comes back from what happens at the breakpoint.
    let frame = unsafe { call_under_copy(entry) };
    set_breakpoint(false);
    hooks::set_resuming(false);
    frame
}

/// What comes in front of an instruction.
pub(crate) struct Interruption {
    /// For messages.
    pub(crate) name: &'static str,
    /// Runs a guest with a breakpoint at which it comes.
    pub(crate) call: unsafe fn(u64) -> *mut PtRegs,
    /// How many there have been, or what has become of one.
    pub(crate) count: fn() -> Result<u64, String>,
    /// Whether it is the breakpoint itself that is taken for it: then it comes each time that the
    /// path comes by, and exactly there.
    pub(crate) is_breakpoint: bool,
}

/// A breakpoint that is taken for an NMI or a machine check.
const fn taken_for(name: &'static str) -> Interruption {
    Interruption {
        name,
        call: call_with_breakpoint,
        count: || Ok(hooks::hooked_nmis() + hooks::hooked_machine_checks()),
        is_breakpoint: true,
    }
}

/// A way through the switcher, from the host's call to its return.
#[derive(Clone)]
pub(crate) struct Path {
    name: &'static str,
    setup: Setup,
    /// What may come of it.
    expected: [Expected; 2],
    /// Where it comes by, and how often at least.
    by: &'static [(Label, u64)],
    /// An instruction that it executes, and how often at least: each variant has its own SYSRETQs.
    executes: (&'static [u8], u64),
    /// How many instructions there are in it at least.
    least: u64,
    /// Where they are, once they have been met: then nobody looks elsewhere again.
    met: Vec<u64>,
}

const SYSRETQ: &[u8] = &[0x48, 0x0F, 0x07];
pub(crate) const IRETQ: &[u8] = &[0x48, 0xCF];
/// No entry and exit together have fewer instructions.
const LEAST: u64 = 80;

impl Path {
    fn new(
        name: &'static str,
        setup: Setup,
        expected: Expected,
        by: &'static [(Label, u64)],
        sysretqs: u64,
    ) -> Self {
        let executes = (SYSRETQ, sysretqs);
        let expected = [expected.clone(), expected];
        Self { name, setup, expected, by, executes, least: LEAST, met: Vec::new() }
    }

    /// The same with RSP of both modes.
    fn with_rsp(&self, rsp: u64) -> Self {
        let mut path = self.clone();
        let Setup { regs, pvcs, smod_rsp, .. } = &mut path.setup;
        (regs.rsp, pvcs.rsp, *smod_rsp) = (rsp, rsp, rsp);
        for Expected { regs, pvcs, smod_rsp, .. } in &mut path.expected {
            (regs.rsp, pvcs.rsp, *smod_rsp) = (rsp, rsp, rsp);
        }
        path
    }

    /// A short one that ends an event in ring 0 by IRETQ.
    pub(crate) fn of_event(
        name: &'static str,
        setup: Setup,
        expected: Expected,
        by: &'static [(Label, u64)],
    ) -> Self {
        /// No event's handling has fewer instructions.
        const LEAST: u64 = 25;
        let executes = (IRETQ, 1);
        Self { executes, least: LEAST, ..Self::new(name, setup, expected, by, 0) }
    }
}

/// Every path that there is without a fault of the switcher's.
pub(crate) fn paths(world: &BareMetal<'_>) -> [Path; 7] {
    /// What the stub for 32-bit SYSCALL answers.
    const ENOSYS: u64 = -38_i32 as u32 as u64;

    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(8);
    let fixed = RFlags::GUEST_FIXED.bits();

    let to_smod =
        setup(world, &mut rng, Mode::Umod, SYSCALL).with(Mode::Smod, place::SMOD_ENTRY, PROBE);
    let in_smod = Expected::to_smod(&to_smod, &platform, place::UMOD_CODE);

    let mut eretu = || {
        let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
            .with(Mode::Smod, place::ERETU, SYSCALL)
            .with(Mode::Umod, place::UMOD_CODE, PROBE);
        setup.pvcs.eflags = fixed as u32;
        setup
    };
    let by_iretq = eretu();
    let mut by_sysretq = eretu();
    (by_sysretq.pvcs.rcx, by_sysretq.pvcs.r11) = (by_sysretq.pvcs.rip, fixed);
    let umod_by_iretq = Expected::to_umod(&by_iretq, &platform);
    let umod_by_sysretq = Expected::to_umod(&by_sysretq, &platform);

    let hypercall = setup(world, &mut rng, Mode::Smod, SYSCALL);
    let to_host = Expected::syscall_exit(&hypercall, place::UMOD_CODE);

    let mut entered = setup(world, &mut rng, Mode::Umod, PROBE);
    entered.regs.eflags = fixed;
    (entered.regs.rcx, entered.regs.r11) = (entered.regs.rip, fixed);
    let probed = Expected::unchanged(&entered, Expected::UD);

    let mut refused = setup(world, &mut rng, Mode::Umod, PROBE);
    refused.regs.rip = 1 << 63;
    let faulted = Expected::unchanged(&refused, Expected::general_protection(0));

    let mut compat = Setup::random(&mut rng, &platform, Mode::Umod).with(
        Mode::Umod,
        place::TEXT32,
        &[SYSCALL, PROBE].concat(),
    );
    let regs = &mut compat.regs;
    (regs.cs, regs.rip) = (platform.selectors.user32_cs().into(), place::TEXT32);
    for register in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.rsp,
    ] {
        *register &= u64::from(u32::MAX);
    }
    let shut = Expected::unchanged(&compat, Expected::UD);
    let mut answered = shut.clone();
    answered.regs.rax = ENOSYS;
    answered.regs.rip += SYSCALL.len() as u64;
    answered.regs.rcx = answered.regs.rip;
    answered.regs.r11 = answered.regs.eflags;
    // Intel has no SYSCALL in 32-bit mode; QEMU's interpreter has it under either name.
    let shut = if platform.vendor == Vendor::Intel { shut } else { answered.clone() };

    use Label::{EnterGuest, ExitSyscall, Iretq, ReturnFromGuest, Syscall64};
    [
        Path::new(
            "umod's SYSCALL",
            to_smod,
            in_smod,
            &[(EnterGuest, 1), (Syscall64, 1), (ReturnFromGuest, 1)],
            1,
        ),
        Path::new("ERETU by IRETQ", by_iretq, umod_by_iretq, &[(Syscall64, 1), (Iretq, 2)], 0),
        Path::new("ERETU by SYSRETQ", by_sysretq, umod_by_sysretq, &[(Syscall64, 1)], 1),
        Path::new("a hypercall", hypercall, to_host, &[(Syscall64, 1), (ExitSyscall, 1)], 0),
        Path::new("an entry by SYSRETQ", entered, probed, &[(ReturnFromGuest, 1)], 1),
        Path::new("an entry that IRETQ refuses", refused, faulted, &[(Iretq, 1)], 0),
        Path {
            name: "a 32-bit SYSCALL",
            setup: compat,
            expected: [shut, answered],
            by: &[(EnterGuest, 1), (ReturnFromGuest, 1)],
            executes: (SYSRETQ, 0),
            least: LEAST,
            met: Vec::new(),
        },
    ]
}

/// In front of every instruction of every path, each time that the path comes by it: an NMI or a
/// machine check, as far as the switcher can tell. What becomes of the guest and of the host is
/// what does without.
pub(crate) fn at_every_boundary(world: &mut BareMetal<'_>, paths: &mut [Path], event: u8) -> Ended {
    let interruption = taken_for(if event == vector::NMI { "an NMI" } else { "a machine check" });
    let copy = IdtCopy::new(world, |gates| {
        gates[usize::from(vector::DB)] = gates[usize::from(event)];
    })?;
    let ended = paths.iter_mut().map(|path| boundaries(world, path, &interruption)).sum::<Ended>();
    let ended = ended.and_then(|count| Ok(count + in_the_guest(world, event)?));
    copy.free(world)?;
    ended
}

/// The same in front of a guest's instruction: it is the guest's exit.
fn in_the_guest(world: &mut BareMetal<'_>, event: u8) -> Ended {
    let exit = if event == vector::NMI { Exit::Nmi } else { Exit::MachineCheck };
    let mut rng = fastrand::Rng::with_seed(9);
    for mode in [Mode::Smod, Mode::Umod] {
        let mut setup = setup(world, &mut rng, mode, PROBE);
        setup.breakpoint = Some(setup.regs.rip);
        // SAFETY: `call_under_copy` does what `checked_call` does; there is a copy.
        let outcome = unsafe { world.run_by(&setup, call_under_copy) };
        set_breakpoint(false);
        let outcome = outcome.map_err(|why| format!("in {mode:?}: {why:?}"))?;
        let compared = Expected::unchanged(&setup, exit).compare(&setup, &outcome);
        compared.map_err(|why| format!("in {mode:?}: {}", why.0))?;
    }
    Ok(2)
}

/// The same for one path; the result is how many there have been.
pub(crate) fn boundaries(
    world: &mut BareMetal<'_>,
    path: &mut Path,
    interruption: &Interruption,
) -> Ended {
    let Interruption { name, call, count, is_breakpoint } = *interruption;
    let switcher = world.cpu().switcher();
    let base = switcher.base();
    let stubs = switcher.address(Label::EventStubs);
    hooks::set_no_rf_from(switcher.address(Label::RoutinesEnd));
    // All code that does something, the stubs of the two exceptions that end these guests, and an
    // NMI's.
    let stub = |vector| {
        let at = base + u64::from(switcher.image().gate(vector).offset);
        at..at + 8
    };
    let all =
        (base..stubs).chain(stub(vector::UD)).chain(stub(vector::GP)).chain(stub(vector::NMI));
    // Without any, first: nothing is at address 0.
    let addresses: Vec<_> = match &path.met[..] {
        [] => [0].into_iter().chain(all).collect(),
        met => met.to_vec(),
    };
    let by = path.by.iter().map(|(label, times)| (switcher.address(*label), *times));
    let by: Vec<_> = by.collect();
    let (executed, times) = path.executes;
    let code = switcher.linked().bytes().windows(executed.len());
    let executed_at: Vec<_> =
        (base..).zip(code).filter_map(|(at, code)| (code == executed).then_some(at)).collect();

    let same = |world: &mut BareMetal<'_>, at: u64| {
        // SAFETY: `call` does what `checked_call` does; there is a copy of the IDT.
        let outcome = unsafe { world.run_by(&path.setup, call) };
        let outcome = outcome.map_err(|why| format!("{}: {why:?}", path.name))?;
        let [expected, other] = &path.expected;
        let compared = expected.compare(&path.setup, &outcome);
        compared
            .or_else(|_| other.compare(&path.setup, &outcome))
            .map_err(|why| format!("{}, {name} at {at:#x}: {}", path.name, why.0))
    };

    let mut met = Vec::new();
    let mut all = 0;
    let mut found = 0;
    let mut executed = 0;
    for at in addresses {
        BREAKPOINT.store(at, Ordering::Relaxed);
        let before = count()?;
        same(world, at)?;
        let here = count().map_err(|why| format!("{}, at {at:#x}: {why}", path.name))? - before;
        if is_breakpoint && here != 0 && hooks::last_interrupted() != at {
            let got = hooks::last_interrupted();
            return Err(format!("{}: the hook saw {got:#x}, not {at:#x}", path.name));
        }
        if let Some((_, least)) = by.iter().find(|(label, _)| *label == at) {
            // Sent from a breakpoint, it comes when that is met first.
            let least = if is_breakpoint { *least } else { 1 };
            if here < least {
                return Err(format!("{}: {name} came {here} times at {at:#x}", path.name));
            }
            found += 1;
        }
        if here != 0 || at == 0 {
            met.push(at);
        }
        all += here;
        executed += if executed_at.contains(&at) { here } else { 0 };
    }
    if executed < times {
        return Err(format!("{}: {name} came {executed} times at its return", path.name));
    }
    if all < path.least {
        return Err(format!("{}: {name} came only {all} times", path.name));
    }
    if found != by.len() {
        return Err(format!("{}: {found} of {} places are in the code", path.name, by.len()));
    }
    path.met = met;
    Ok(all)
}

/// What of the host's memory no event and no SYSCALL writes to, as bytes.
fn untouched_memory() -> Vec<u8> {
    let block = percpu::block(0).addr();
    let sp2 = block + PerCpu::tss.bytes() + Tss::sp2.bytes();
    let tops = [Stack::DoubleFault, Stack::Nmi, Stack::Debug, Stack::MachineCheck].map(|stack| {
        let top = stack.top(0) as usize;
        top..top + size_of::<IstTop>()
    });
    let unused = [Stack::DoubleFault, Stack::MachineCheck].map(|stack| {
        let top = stack.top(0) as usize;
        top - PAGE as usize..top
    });
    // The TSS but for the switcher's scratch.
    let tss = [block..sp2, sp2 + 8..block + size_of::<Tss>()];
    let ranges = tss.into_iter().chain(tops).chain(unused);
    // SAFETY: a block and stacks of statics, which nothing has a reference into.
    let read = |at: usize| unsafe { core::ptr::with_exposed_provenance::<u8>(at).read_volatile() };
    ranges.flatten().map(read).collect()
}

/// NMIs at every instruction of the paths that return by SYSRETQ, while RSP is an address of the
/// host's wherever a guest can choose it: no decision rests on RSP, none comes between its load and
/// SYSRETQ, and nothing is pushed there (rows 10 and 23).
pub(crate) fn boundaries_with_host_rsp(world: &mut BareMetal<'_>, paths: &[Path]) -> Ended {
    let before = untouched_memory();
    let copy = IdtCopy::new(world, |gates| {
        gates[usize::from(vector::DB)] = gates[usize::from(vector::NMI)];
    })?;
    let paths = paths.iter().filter(|path| path.executes.1 != 0);
    let interruption = taken_for("an NMI");
    let rsp = Stack::Nmi.top(0);
    let ended = paths.map(|path| boundaries(world, &mut path.with_rsp(rsp), &interruption));
    let ended = ended.sum::<Ended>();
    copy.free(world)?;
    unless_touched(&before, ended?)
}

/// NMIs all the time while RSP is such an address: none is lost, either.
pub(crate) fn flood_with_host_rsp(world: &mut BareMetal<'static>) -> Ended {
    let block = percpu::block(0).addr() as u64;
    let stack = Stack::Nmi.top(0);
    let addresses = [
        stack,
        // In the middle of an NMI's frame, of the TSS, and of what the switcher knows of the guest.
        stack - 24,
        block + 0x60,
        block + 0xC0,
        Stack::MachineCheck.top(0),
        Stack::Sp0.top(0),
        world.pvcs_address() + 0x80,
    ];
    let before = untouched_memory();
    let flooded = flood(world, addresses.len() as u64, 10_000, &addresses)?;
    unless_touched(&before, flooded)
}

fn unless_touched(before: &[u8], entered: u64) -> Ended {
    if untouched_memory() == before {
        Ok(entered)
    } else {
        Err("the host's memory has changed".into())
    }
}

/// NMIs from another CPU, one as soon as the last has been handled, during direct switches: each of
/// them arrives, and nothing of the guest changes. RSP is one of `rsps`, if there are any.
/// `entries` guests make `rounds` round trips each, of two switches, between which nothing but an
/// NMI is an exit.
pub(crate) fn flood(
    world: &mut BareMetal<'static>,
    entries: u64,
    rounds: u64,
    rsps: &[u64],
) -> Ended {
    /// How long the sender looks for what it has sent.
    const PATIENCE: u64 = 2_000_000_000;
    /// And how long it then waits: an emulator that runs the CPUs in turn would otherwise never let
    /// the guest get from one NMI to the next instruction.
    const PAUSE: u64 = 20_000;
    /// 1: SYSCALL; DEC RBX; JNZ 1b; UD2.
    const LOOP: &[u8] = &[0x0F, 0x05, 0x48, 0xFF, 0xCB, 0x75, 0xF9, 0x0F, 0x0B];

    static STOP: AtomicBool = AtomicBool::new(false);
    static SENT: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicBool = AtomicBool::new(false);
    /// NMIs that ended a guest's run. The others are counted in events.rs.
    static EXITS: AtomicU64 = AtomicU64::new(0);

    let received = || EXITS.load(Ordering::Acquire) + events::nmis();
    let before = received();
    let hooked_before = hooks::hooked_nmis();
    let exits_before = EXITS.load(Ordering::Acquire);
    let sent_before = SENT.load(Ordering::Acquire);
    STOP.store(false, Ordering::Release);
    let send = move || {
        let received = || EXITS.load(Ordering::Acquire) + events::nmis();
        while !STOP.load(Ordering::Acquire) {
            let last = received();
            smp::send_nmi(0);
            SENT.fetch_add(1, Ordering::AcqRel);
            let mut patience = PATIENCE;
            while received() == last {
                core::hint::spin_loop();
                patience -= 1;
                if patience == 0 {
                    LOST.store(true, Ordering::Release);
                    return;
                }
            }
            for _ in 0..PAUSE {
                core::hint::spin_loop();
            }
        }
    };
    smp::start(1, Box::new(send)).map_err(|why| format!("{why}"))?;
    let result = switch_under_nmis(world, LOOP, entries, rounds, rsps, &EXITS);
    STOP.store(true, Ordering::Release);
    smp::wait(1);
    let (sent, got) = (SENT.load(Ordering::Acquire) - sent_before, received() - before);
    result?;
    let hooked = hooks::hooked_nmis() - hooked_before;
    let exits = EXITS.load(Ordering::Acquire) - exits_before;
    if LOST.load(Ordering::Acquire) || sent != got {
        return Err(format!("{sent} NMIs were sent and {got} arrived"));
    }
    if hooked == 0 || exits == 0 {
        return Err(format!("of {sent} NMIs {hooked} came to the switcher and {exits} to a guest"));
    }
    Ok(2 * entries * rounds)
}

/// Runs guests that make system calls, each until it has made all of them.
fn switch_under_nmis(
    world: &mut BareMetal<'_>,
    code: &[u8],
    entries: u64,
    rounds: u64,
    rsps: &[u64],
    exits: &AtomicU64,
) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(10);
    for entry in 0..entries {
        let mut setup =
            setup(world, &mut rng, Mode::Umod, code).with(Mode::Smod, place::ERETU, SYSCALL);
        setup.smod_entry = place::ERETU;
        setup.regs.eflags = RFlags::GUEST_FIXED.bits();
        setup.regs.rbx = rounds;
        if !rsps.is_empty() {
            setup.regs.rsp = rsps[entry as usize % rsps.len()];
            setup.smod_rsp = rsps[(entry as usize + 1) % rsps.len()];
        }
        let first = setup.clone();
        loop {
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            let wrong = |what| Err(format!("entry {entry}: {what}: {outcome:x?}"));
            let (got, was) = (outcome.regs, first.regs);
            if outcome.host.without_arithmetic() != hw_cases::HostAfter::IN_ORDER {
                return wrong("the host is not in order");
            }
            // What neither SYSCALL nor the loop changes.
            let kept = |regs: &PtRegs| {
                [
                    regs.rax, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
                    regs.r12, regs.r13, regs.r14, regs.r15, regs.cs, regs.ss,
                ]
            };
            if kept(&got) != kept(&was) || got.rbx > setup.regs.rbx {
                return wrong("a register has changed");
            }
            match outcome.exit {
                Exit::Nmi => {
                    exits.fetch_add(1, Ordering::AcqRel);
                    setup.mode = outcome.mode;
                    setup.regs = got;
                    setup.gs_base = outcome.gs_base;
                    setup.pkru = outcome.pkru;
                    setup.pvcs = outcome.pvcs;
                    setup.smod_rsp = outcome.smod_rsp;
                }
                exit if exit == Expected::UD => {
                    let at = place::UMOD_CODE + code.len() as u64 - 2;
                    let gs_kept = outcome.gs_base == first.gs_base;
                    let pkru_kept = outcome.pkru == first.pkru;
                    if outcome.mode == Mode::Umod
                        && got.rip == at
                        && got.rbx == 0
                        && gs_kept
                        && pkru_kept
                        && got.rsp == was.rsp
                    {
                        break;
                    }
                    return wrong("another end than the loop's");
                }
                _ => return wrong("an exit that nothing leads to"),
            }
        }
    }
    Ok(())
}
