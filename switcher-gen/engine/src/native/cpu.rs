//! What ring 0 has and user mode lacks: this CPU with an inactive GS base, CR3, SS and SYSCALL
//! target of its own. The few instructions that fault at CPL 3 because they are about these are
//! emulated by the model of the CPU (`ring_0`).
//!
//! [`Cpu::trap`] is called for every signal. It is in one of three places: with the *host* before
//! and after the call of `switcher_enter_guest`, in the *switcher*, or in the *guest*. What the
//! switcher must never do in ring 0 (spec/switcher.md) is checked at every one of these calls, and
//! ends the run as a [`Failure`].

use std::ffi::c_int;
use std::sync::atomic::{AtomicU8, Ordering};

use super::memory::{CodePages, Data, GuestCode, PAGE};
use super::registers::Regs;
use super::ring_0::{Checks, Ring0};
use super::thread::{self, SYSCALLS_PASS, SYSCALLS_TRAP};
use crate::scenario::{
    Crossing, Failure, NO_ERROR_CODE, Record, WayIn, WayOut, may_iret, right_root,
};
use switcher_gen::arch::{PagingMode, RFlags, Vendor, vector};
use switcher_gen::asm::{Label, Window};
use switcher_gen::layout::{IretFrame, Mode, OrigAx, PerCpu, Placement, PtRegs, Pvcs, TssExtra};
use switcher_gen::{Image, LinkedImage};
use switcher_model::Step;
use switcher_model::program::Operation;

/// How a guest's SYSCALL is kept from this machine's own kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interception {
    /// The kernel turns it into SIGSYS: Syscall User Dispatch.
    UserDispatch,
    /// Guests are single-stepped, and their SYSCALLs emulated before they are executed. For
    /// kernels without Syscall User Dispatch. A guest that pushes its flags sees TF.
    Stepping,
}

/// What is counted and allowed in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) count: bool,
    pub(super) traps: u64,
}

/// Instructions with which a guest would call this machine's own kernel.
#[derive(Clone, Copy)]
enum SystemCall {
    Syscall,
    Int80,
}

/// The length of either instruction.
const SYSTEM_CALL_LEN: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Switcher,
    Guest,
}

/// The host as it was when it called `enter`, and where in `enter` it goes on.
#[derive(Clone, Copy, Default)]
struct Host {
    rsp: u64,
    eflags: u64,
    gs_base: u64,
    /// The return address of the call of `switcher_enter_guest`.
    landing: u64,
    /// The address at which `enter` cleans up.
    end: u64,
}

/// What the host has in the registers that a callee must preserve.
const CALLEE_SAVED: [(&str, c_int, u64); 6] = [
    ("RBX", libc::REG_RBX, 0xB0B0_0000_0000_0003),
    ("RBP", libc::REG_RBP, 0xB0B0_0000_0000_0005),
    ("R12", libc::REG_R12, 0xB0B0_0000_0000_000C),
    ("R13", libc::REG_R13, 0xB0B0_0000_0000_000D),
    ("R14", libc::REG_R14, 0xB0B0_0000_0000_000E),
    ("R15", libc::REG_R15, 0xB0B0_0000_0000_000F),
];

/// The registers that must be clear when a guest has exited, because the guest could steer
/// speculation with them.
const CLEARED: [(&str, c_int); 8] = [
    ("RCX", libc::REG_RCX),
    ("RDX", libc::REG_RDX),
    ("RSI", libc::REG_RSI),
    ("RDI", libc::REG_RDI),
    ("R8", libc::REG_R8),
    ("R9", libc::REG_R9),
    ("R10", libc::REG_R10),
    ("R11", libc::REG_R11),
];

const DB: u32 = vector::DB as u32;
const NP: u32 = vector::NP as u32;
const SS: u32 = vector::SS as u32;
const GP: u32 = vector::GP as u32;
const PF: u32 = vector::PF as u32;

/// One CPU with everything a switcher refers to, and the state of a run.
pub(super) struct Cpu {
    image: Image,
    ring_0: Ring0,
    pub(super) memory: Memory,
    pub(super) interception: Interception,
    /// The mode this CPU is in, whatever mode the image is for.
    pub(super) real_paging: PagingMode,
    /// Read by the kernel at every SYSCALL.
    selector: AtomicU8,

    limits: Limits,
    place: Place,
    host: Host,
    inactive_gs: u64,
    cr3: u64,
    /// SS as ring 0 would have it: user mode's does not change.
    ss: u16,
    way_in: WayIn,
    executed: u64,
    /// Whether the run has been stepped up to the IRETQ, which itself is not stepped.
    leaving: bool,
    /// The guest's own TF, while it is stepped by us.
    guest_tf: bool,
    record: Record,
    cr2: Option<u64>,
    failure: Option<Failure>,
}

/// The memory of a [`Cpu`].
pub(super) struct Memory {
    pub(super) code: CodePages,
    pub(super) guest: GuestCode,
    pub(super) per_cpu: Data<PerCpu>,
    /// The frame that ends at sp0.
    pub(super) frame: Data<PtRegs>,
    pub(super) pvcs: Data<Pvcs>,
}

impl Cpu {
    /// A CPU for `image`, which is linked and loaded in `memory.code`.
    pub(super) fn new(
        image: Image,
        linked: &LinkedImage,
        memory: Memory,
        interception: Interception,
        real_paging: PagingMode,
    ) -> Self {
        let ring_0 = Ring0::new(&image, memory.code.address(), linked.bytes());
        Self {
            image,
            ring_0,
            memory,
            interception,
            real_paging,
            selector: AtomicU8::new(SYSCALLS_PASS),
            limits: Limits { count: false, traps: 0 },
            place: Place::Host,
            host: Host::default(),
            inactive_gs: 0,
            cr3: 0,
            ss: 0,
            way_in: WayIn::Enter,
            executed: 0,
            leaving: false,
            guest_tf: false,
            record: Record::new(),
            cr2: None,
            failure: None,
        }
    }

    pub(super) const fn image(&self) -> &Image {
        &self.image
    }

    /// Changes the code, to break it on purpose. Returns false if the bytes are not within it.
    #[cfg(test)]
    pub(super) fn overwrite(&mut self, offset: usize, bytes: &[u8]) -> std::io::Result<bool> {
        let loaded = self.memory.code.load(offset, bytes)?;
        if loaded {
            self.ring_0.patch(self.memory.code.address() + offset as u64, bytes);
        }
        Ok(loaded)
    }

    pub(super) const fn selector(&self) -> &AtomicU8 {
        &self.selector
    }

    /// Whether a guest's SYSCALL is to become SIGSYS.
    pub(super) fn uses_dispatch(&self) -> bool {
        self.interception == Interception::UserDispatch
    }

    /// The host's GS base: where per-CPU code does not use it, somewhere else than its block.
    fn host_gs(&self) -> u64 {
        match self.image.variant().placement() {
            Placement::Gs => self.memory.per_cpu.address(),
            Placement::PerCpu => self.memory.code.address(),
        }
    }

    /// Where host stacks for guests begin.
    pub(super) fn sp0(&self) -> u64 {
        self.memory.frame.address() + size_of::<PtRegs>() as u64
    }

    /// Prepares a run in which the guest's GS base is `guest_gs`, which must be canonical.
    pub(super) fn prepare(&mut self, guest_gs: u64, limits: Limits) {
        self.limits = limits;
        self.place = Place::Host;
        self.inactive_gs = guest_gs;
        self.cr3 = self.memory.per_cpu.read().tss_extra.host_cr3.bits();
        self.ss = self.image.variant().selectors().kernel_ds();
        self.record = Record::new();
        self.cr2 = None;
        self.failure = None;
    }

    /// CR2, if a page fault of the guest ended the run.
    pub(super) const fn cr2(&self) -> Option<u64> {
        self.cr2
    }

    /// What came of a run: the guest's GS base and the record.
    pub(super) fn finish(&mut self) -> Result<(u64, Record), Failure> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok((self.inactive_gs, std::mem::replace(&mut self.record, Record::new()))),
        }
    }

    /// A signal of the thread that this machine runs on.
    pub(super) fn trap(&mut self, signal: c_int, regs: &mut Regs<'_>) {
        let outcome = match self.place {
            Place::Host => self.begin(regs),
            Place::Switcher | Place::Guest => self.dispatch(signal, regs),
        };
        if let Err(failure) = outcome {
            self.failure = Some(failure);
            self.end(regs);
        }
    }

    /// At the first UD2 of `enter`: calls `switcher_enter_guest`.
    fn begin(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        self.host = Host {
            rsp: regs.get(libc::REG_RSP),
            eflags: regs.eflags(),
            gs_base: thread::gs_base(),
            landing: regs.get(libc::REG_RAX),
            end: regs.get(libc::REG_RDX),
        };
        // SAFETY: an address of mapped memory is canonical.
        unsafe { thread::set_gs_base(self.host_gs()) };
        for (_, register, value) in CALLEE_SAVED {
            regs.set(register, value);
        }
        self.selector.store(SYSCALLS_TRAP, Ordering::Relaxed);
        self.go_into_switcher(WayIn::Enter, Label::EnterGuest, regs)
    }

    /// Leaves emitted code for the end of `enter`.
    fn end(&mut self, regs: &mut Regs<'_>) {
        self.selector.store(SYSCALLS_PASS, Ordering::Relaxed);
        self.place = Place::Host;
        // SAFETY: it was the active GS base, so it is canonical.
        unsafe { thread::set_gs_base(self.host.gs_base) };
        regs.set(libc::REG_RSP, self.rsp_after_return());
        regs.go_on(self.host.end, self.host.eflags, false);
    }

    /// RSP when the call of `switcher_enter_guest` has returned.
    const fn rsp_after_return(&self) -> u64 {
        self.host.rsp + size_of::<u64>() as u64
    }

    fn dispatch(&mut self, signal: c_int, regs: &mut Regs<'_>) -> Result<(), Failure> {
        self.record.traps += 1;
        if self.record.traps > self.limits.traps {
            return Err(Failure::Endless { traps: self.limits.traps });
        }
        let rip = regs.rip();
        let stepped = signal == libc::SIGTRAP && regs.vector() == DB;
        if self.place == Place::Switcher {
            self.executed += u64::from(stepped && self.limits.count && !self.leaving);
            if rip == self.host.landing {
                return self.returned(regs);
            }
            if self.memory.code.contains(rip) {
                return self.in_switcher(stepped, regs);
            }
            // Only an IRETQ leaves the switcher without a trap. If the run is stepped, the IRETQ
            // has been noticed before.
            if self.stepping() && !self.leaving {
                return Err(Failure::Astray { rip });
            }
            self.iretq()?;
        } else if self.memory.code.contains(rip) {
            return Err(Failure::Astray { rip });
        }
        self.in_guest(signal, stepped, regs)
    }

    /// Whether the switcher is executed one instruction at a time.
    fn stepping(&self) -> bool {
        self.limits.count || self.interception == Interception::Stepping
    }

    fn address(&self, label: Label) -> u64 {
        self.memory.code.address() + u64::from(self.image.offset(label))
    }

    fn offset(&self, rip: u64) -> u64 {
        rip.wrapping_sub(self.memory.code.address())
    }

    // In the switcher.

    fn go_into_switcher(
        &mut self,
        way_in: WayIn,
        at: Label,
        regs: &mut Regs<'_>,
    ) -> Result<(), Failure> {
        self.place = Place::Switcher;
        self.way_in = way_in;
        self.executed = 0;
        self.leaving = false;
        regs.go_on(self.address(at), regs.eflags(), self.stepping());
        self.check_windows(regs)?;
        self.emulate_what_would_fault(regs)
    }

    fn in_switcher(&mut self, stepped: bool, regs: &mut Regs<'_>) -> Result<(), Failure> {
        let rip = regs.rip();
        self.check_windows(regs)?;
        if rip == self.address(Label::Iretq) {
            if stepped {
                return self.at_iretq(regs);
            }
            if matches!(regs.vector(), NP | SS | GP) {
                return self.iretq_faulted(regs);
            }
        }
        if stepped {
            regs.go_on(rip, regs.eflags(), true);
            return Ok(());
        }
        if regs.vector() == GP {
            return self.emulate(regs);
        }
        Err(self.fault(regs))
    }

    fn fault(&self, regs: &Regs<'_>) -> Failure {
        let vector = regs.vector();
        let address = if vector == PF { regs.get(libc::REG_CR2) } else { 0 };
        Failure::Fault { vector, offset: self.offset(regs.rip()), address }
    }

    /// The windows must be right about the state in which the instruction at RIP will run.
    fn check_windows(&self, regs: &Regs<'_>) -> Result<(), Failure> {
        let offset = self.offset(regs.rip());
        let is_in = |window| u32::try_from(offset).is_ok_and(|at| self.image.is_in(window, at));
        let rsp = regs.get(libc::REG_RSP);
        // Before the frame is reached, RSP is on the stack of `enter`, less than a page away. A
        // guest's RSP may point to either stack, so inside the window it says nothing.
        let on_host_stack = self.memory.frame.has_stack_pointer(rsp)
            || self.rsp_after_return().wrapping_sub(rsp) < PAGE as u64;
        if !on_host_stack && !is_in(Window::UnsafeStack) {
            return Err(Failure::Window { window: Window::UnsafeStack, offset });
        }
        let on_guest_root = self.cr3 != self.memory.per_cpu.read().tss_extra.host_cr3.bits();
        if on_guest_root != is_in(Window::GuestRoot) {
            return Err(Failure::Window { window: Window::GuestRoot, offset });
        }
        Ok(())
    }

    /// Does what the instruction at RIP does in ring 0, which has faulted at CPL 3.
    fn emulate(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        self.emulate_one(regs)?;
        self.emulate_what_would_fault(regs)
    }

    /// Emulates the instructions at RIP that are sure to fault, before they do. This saves a signal
    /// for each.
    fn emulate_what_would_fault(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        while self.place == Place::Switcher && self.ring_0.always_faults_in_ring_3(regs.rip()) {
            self.emulate_one(regs)?;
        }
        Ok(())
    }

    /// One step of the model, on these registers and without memory. What it does to GS, CR3 and SS
    /// is done to this CPU's as well, unless no switcher may do it.
    fn emulate_one(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        let refused = Failure::Fault { vector: GP, offset: self.offset(regs.rip()), address: 0 };
        let Some(kind) = self.ring_0.emulated(regs.rip()) else { return Err(refused) };
        let mut checks = Checks {
            extra: self.memory.per_cpu.read().tss_extra,
            pcid: self.image.variant().pcid(),
            paging: self.paging(),
            null_ss: self.sysret_keeps_ss() && self.ss == 0,
            failure: None,
        };
        let active = thread::gs_base();
        let step =
            self.ring_0.step(regs, [active, self.inactive_gs], self.cr3, self.ss, &mut checks);
        if let Some(failure) = checks.failure {
            return Err(failure);
        }
        let (Ok(Step::Next | Step::Guest { .. }), state) = (step, &self.ring_0.state) else {
            return Err(refused);
        };
        let rip = state.rip;
        self.executed += u64::from(self.limits.count);
        match kind {
            Operation::SwapGs => {
                let (active, inactive) = (state.gs_base, state.inactive_gs_base);
                // SAFETY: SWAPGS has made the inactive one active. `prepare` wants a canonical one,
                // and later ones were active GS bases.
                unsafe { thread::set_gs_base(active) };
                self.inactive_gs = inactive;
                self.record.emulated.swapgs += 1;
            }
            Operation::WriteCr3 => {
                self.cr3 = state.cr3;
                self.loaded_cr3(&checks.extra);
            }
            // SPEC_CTRL is kept in the model and has no effect on this CPU.
            Operation::WriteMsr => self.record.emulated.wrmsr += 1,
            Operation::WriteSs => {
                // Ring 0 may have a null SS, but no switcher may load one.
                if state.ss != u64::from(self.image.variant().selectors().kernel_ds()) {
                    return Err(refused);
                }
                self.ss = state.ss as u16;
                self.record.emulated.mov_ss += 1;
            }
            Operation::Sysretq => {
                let eflags = state.rflags(&self.ring_0.d);
                self.record.emulated.sysretq += 1;
                self.cross(WayOut::Sysretq)?;
                return self.arrive(rip, eflags, regs);
            }
            // WRGSBASE, which is executed here and has faulted: the address is canonical in the
            // image's paging mode, but not in this CPU's.
            _ => return Err(Failure::NotOnThisCpu { address: state.gs_base }),
        }
        regs.go_on(rip, regs.eflags(), self.stepping());
        self.check_windows(regs)
    }

    fn paging(&self) -> PagingMode {
        self.image.variant().paging()
    }

    /// Whether SYSRETQ hands SS's attributes on to the guest.
    fn sysret_keeps_ss(&self) -> bool {
        self.image.variant().vendor() == Vendor::Amd
    }

    fn swapgs(&mut self) {
        let active = thread::gs_base();
        // SAFETY: `prepare` wants a canonical one, and later ones were active GS bases.
        unsafe { thread::set_gs_base(self.inactive_gs) };
        self.inactive_gs = active;
    }

    /// MOV CR3 has been emulated: each mode has its own code at the same address.
    fn loaded_cr3(&mut self, extra: &TssExtra) {
        for (mode, root) in [(Mode::Smod, extra.smod_cr3), (Mode::Umod, extra.umod_cr3)] {
            if root.bits() == self.cr3 {
                self.memory.guest.show(mode);
            }
        }
        self.record.loaded_cr3(self.cr3);
    }

    // At the IRETQ to a guest, which runs natively unless guests are stepped.

    /// The run has been stepped up to the IRETQ. It is executed without TF, because the flags that
    /// it loads are the guest's.
    fn at_iretq(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        if self.interception == Interception::UserDispatch {
            self.leaving = true;
            regs.go_on(regs.rip(), regs.eflags(), false);
            return Ok(());
        }
        self.iretq()?;
        self.record.emulated.iretq += 1;
        let frame = self.memory.frame.read();
        regs.set(libc::REG_RSP, frame.rsp);
        regs.set_selectors(frame.cs, frame.ss);
        self.arrive(frame.rip, frame.eflags, regs)
    }

    /// Checks that ring 0 may execute IRETQ with this frame. At CPL 3, IRETQ would ignore what is
    /// wrong with it.
    fn iretq(&mut self) -> Result<(), Failure> {
        let PtRegs { cs, eflags, .. } = self.memory.frame.read();
        if !may_iret(cs, eflags) {
            return Err(Failure::IretFrame { cs, eflags });
        }
        self.cross(WayOut::Iretq)
    }

    /// A guest's fault although it is the switcher that was interrupted: the frame that IRETQ
    /// refused says what the guest's state is.
    fn iretq_faulted(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        self.iretq()?;
        let PtRegs { rip, cs, eflags, rsp, ss, .. } = self.memory.frame.read();
        let error_code = regs.get(libc::REG_ERR) as u32;
        self.event(regs.vector(), error_code, IretFrame { rip, cs, eflags, rsp, ss }, regs)
    }

    // Between the switcher and the guest.

    /// Control leaves the switcher. Checks that everything is as it must be outside of it.
    fn cross(&mut self, way_out: WayOut) -> Result<(), Failure> {
        if way_out != WayOut::Host {
            let extra = self.memory.per_cpu.read().tss_extra;
            let root = right_root(self.way_in, &extra);
            if root.map(|root| root.bits()) != Some(self.cr3) {
                let flags = extra.switch_flags.bits();
                return Err(Failure::Root { flags, cr3: self.cr3 });
            }
            if self.inactive_gs != self.host_gs() {
                return Err(Failure::Swapgs { inactive: self.inactive_gs });
            }
            self.place = Place::Guest;
        }
        let Self { way_in, executed, .. } = *self;
        self.record.crossed(Crossing { way_in, way_out, executed });
        Ok(())
    }

    /// In the guest, before its first instruction.
    fn arrive(&mut self, rip: u64, eflags: u64, regs: &mut Regs<'_>) -> Result<(), Failure> {
        match self.interception {
            Interception::UserDispatch => {
                regs.go_on(rip, eflags, eflags & RFlags::TF.bits() != 0);
                Ok(())
            }
            Interception::Stepping => {
                self.guest_tf = eflags & RFlags::TF.bits() != 0;
                regs.go_on(rip, eflags, true);
                self.look_for_system_call(regs)
            }
        }
    }

    /// Lets the SYSCALL land in the switcher. RIP in `regs` is the address after it.
    fn syscall(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        let eflags = regs.eflags();
        regs.set(libc::REG_RCX, regs.rip());
        regs.set(libc::REG_R11, eflags);
        // User mode cannot turn interrupts off, so IF stays set and means nothing.
        let cleared = RFlags::SYSCALL_CLEARS.difference(RFlags::IF).bits();
        regs.go_on(regs.rip(), eflags & !cleared, false);
        let selectors = self.image.variant().selectors();
        self.ss = selectors.kernel_ds();
        // An earlier frame lies below sp0. No switcher may rely on it, so it is overwritten with
        // values that would fail.
        let (cs, ss) = (selectors.kernel_cs().into(), selectors.kernel_ds().into());
        self.memory.frame.write(PtRegs { cs, ss, ..PtRegs::ZERO });
        self.record.emulated.syscall += 1;
        let flags = self.memory.per_cpu.read().tss_extra.switch_flags;
        self.go_into_switcher(WayIn::Syscall(flags), Label::Syscall64, regs)
    }

    /// What a host's handler does with an event of a guest: frame, GS, exit.
    fn event(
        &mut self,
        vector: u32,
        error_code: u32,
        frame: IretFrame,
        regs: &mut Regs<'_>,
    ) -> Result<(), Failure> {
        let IretFrame { rip, cs, eflags, rsp, ss } = frame;
        if self.paging().is_canonical(rip) != self.real_paging.is_canonical(rip) {
            return Err(Failure::NotOnThisCpu { address: rip });
        }
        self.cr2 = (vector == PF).then(|| regs.get(libc::REG_CR2));
        let orig_ax = OrigAx { error_code, reason: vector };
        self.memory.frame.write(PtRegs { orig_ax, rip, cs, eflags, rsp, ss, ..regs.general() });
        self.swapgs();
        self.ss = 0;
        // The guest may have been in 32-bit code.
        let selectors = self.image.variant().selectors();
        regs.set_selectors(selectors.user_cs().into(), selectors.user_ds().into());
        regs.set(libc::REG_RSP, self.memory.frame.address());
        let cleared = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM;
        regs.go_on(regs.rip(), regs.eflags() & !cleared.bits(), false);
        self.go_into_switcher(WayIn::Event, Label::ReturnFromGuest, regs)
    }

    // In the guest.

    fn in_guest(
        &mut self,
        signal: c_int,
        stepped: bool,
        regs: &mut Regs<'_>,
    ) -> Result<(), Failure> {
        if self.interception == Interception::Stepping {
            if stepped && !self.guest_tf {
                return self.look_for_system_call(regs);
            }
            regs.go_on(regs.rip(), regs.eflags(), self.guest_tf);
        }
        if signal == libc::SIGSYS {
            // The kernel has rolled back everything but RIP, which is past the instruction.
            let rip = regs.rip();
            let call = self.system_call_at(rip.wrapping_sub(SYSTEM_CALL_LEN));
            return self.system_call(call.ok_or(Failure::OtherSystemCall { rip })?, regs);
        }
        let vector = regs.vector();
        let has_error_code = u8::try_from(vector).is_ok_and(vector::pushes_error_code);
        let error_code =
            if has_error_code { regs.get(libc::REG_ERR) as u32 } else { NO_ERROR_CODE };
        self.event(vector, error_code, regs.iret_frame(), regs)
    }

    /// The system call at `address`, if a guest has one there.
    fn system_call_at(&self, address: u64) -> Option<SystemCall> {
        match self.memory.guest.at(address) {
            [0x0F, 0x05, ..] => Some(SystemCall::Syscall),
            [0xCD, 0x80, ..] => Some(SystemCall::Int80),
            _ => None,
        }
    }

    /// Before each instruction of a guest that is stepped: a system call must not be executed.
    fn look_for_system_call(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        let rip = regs.rip();
        let Some(call) = self.system_call_at(rip) else {
            regs.go_on(rip, regs.eflags(), true);
            return Ok(());
        };
        // RF is for this instruction: SYSCALL does not save it.
        let eflags = regs.eflags() & !RFlags::RF.bits();
        regs.go_on(rip + SYSTEM_CALL_LEN, eflags, self.guest_tf);
        self.system_call(call, regs)
    }

    fn system_call(&mut self, call: SystemCall, regs: &mut Regs<'_>) -> Result<(), Failure> {
        match call {
            SystemCall::Syscall => self.syscall(regs),
            SystemCall::Int80 => Err(Failure::OtherSystemCall { rip: regs.rip() }),
        }
    }

    // Back in the host.

    /// The call of `switcher_enter_guest` has returned.
    fn returned(&mut self, regs: &mut Regs<'_>) -> Result<(), Failure> {
        let extra = self.memory.per_cpu.read().tss_extra;
        let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::IOPL;
        let others = [
            ("RSP", regs.get(libc::REG_RSP), self.rsp_after_return()),
            ("RAX", regs.get(libc::REG_RAX), self.memory.frame.address()),
            ("GS base", thread::gs_base(), self.host_gs()),
            ("DF, AC, NT, IOPL", regs.eflags() & unwanted.bits(), 0),
            ("CR3", self.cr3, extra.host_cr3.bits()),
            ("host_rsp", extra.host_rsp, 0),
        ];
        let preserved =
            CALLEE_SAVED.map(|(name, register, value)| (name, regs.get(register), value));
        let cleared = CLEARED.map(|(name, register)| (name, regs.get(register), 0));
        for (register, value, expected) in others.into_iter().chain(preserved).chain(cleared) {
            if value != expected {
                return Err(Failure::HostRegister { register, value, expected });
            }
        }
        if self.sysret_keeps_ss() && self.ss == 0 {
            return Err(Failure::NullSs);
        }
        self.cross(WayOut::Host)?;
        self.end(regs);
        Ok(())
    }
}
