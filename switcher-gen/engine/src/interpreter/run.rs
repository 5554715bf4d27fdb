//! From one ring to the other.

use super::bytes;
use super::guest::{Cause, Space};
use super::{Error, HOST_STACK, IST_STACK, Interpreter, LANDING, region};
use crate::scenario::{
    Crossing, Emulated, Failure, NO_ERROR_CODE, Record, ScenarioEnd, Setup, WayIn, WayOut,
    right_root,
};
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::asm::Label;
use switcher_gen::layout::{
    AsmLayout, IretFrame, Mode, OrigAx, PerCpu, PtRegs, Pvcs, Revision, Tss, TssExtra,
};
use switcher_model::SyscallKind;
use switcher_model::program::Operation;
use switcher_model::{Arrival, Fault, Flags, Gate, Gpr, Step, Stuck};

/// What belongs to one run.
#[derive(Debug, Default)]
pub(super) struct RunState {
    pub(super) instructions: u64,
    pub(super) cr2: Option<u64>,
    pub(super) dr6: Option<u64>,
    count: bool,
    /// The PVCS and smod's RSP as they were before the run.
    pvcs: Pvcs,
    smod_rsp: u64,
    way_in: Option<WayIn>,
    /// Where the exit frame is to be.
    frame_at: u64,
    system_calls: u64,
}

/// Where control went from the switcher.
enum Left {
    ToGuest,
    ToHost,
}

/// What the host has in the registers that a callee must preserve.
const CALLEE_SAVED: [(&str, Gpr, u64); 6] = [
    ("RBX", Gpr::Rbx, 0xB0B0_0000_0000_0003),
    ("RBP", Gpr::Rbp, 0xB0B0_0000_0000_0005),
    ("R12", Gpr::R12, 0xB0B0_0000_0000_000C),
    ("R13", Gpr::R13, 0xB0B0_0000_0000_000D),
    ("R14", Gpr::R14, 0xB0B0_0000_0000_000E),
    ("R15", Gpr::R15, 0xB0B0_0000_0000_000F),
];

/// What must be gone when a guest has exited: the guest could steer speculation with it.
const CLEARED: [(&str, Gpr); 8] = [
    ("RCX", Gpr::Rcx),
    ("RDX", Gpr::Rdx),
    ("RSI", Gpr::Rsi),
    ("RDI", Gpr::Rdi),
    ("R8", Gpr::R8),
    ("R9", Gpr::R9),
    ("R10", Gpr::R10),
    ("R11", Gpr::R11),
];

const FRAME: u64 = size_of::<PtRegs>() as u64;

impl Interpreter {
    /// Enters the guest as the host would, and comes back when the guest has exited.
    ///
    /// # Errors
    /// If the switcher did what no switcher may, or if the guest did what is not modelled.
    pub fn run(&mut self, setup: &Setup) -> Result<ScenarioEnd, Error> {
        self.prepare(setup)?;
        let end = self.go();
        // However it ended, ring 0's memory is to be where the next run looks for it.
        self.leave_space();
        end?;
        self.finish()
    }

    fn prepare(&mut self, setup: &Setup) -> Result<(), Error> {
        let gs_base = setup.gs_base;
        if !self.model.paging.is_canonical(gs_base) {
            return Err(Error::GsBase { address: gs_base });
        }
        let selectors = self.model.selectors;
        let revision = self.revision();
        let regions = &mut self.state.memory.regions;
        let per_cpu = &mut regions[region::PER_CPU].cells;
        let (tss, extra) = per_cpu.split_at_mut(PerCpu::tss_extra.bytes());
        bytes::put_tss(&mut tss[PerCpu::tss.bytes()..], self.places.sp0, IST_STACK);
        bytes::put_extra(&setup.extra, extra);
        bytes::put_pvcs(&setup.pvcs, revision, &mut regions[region::PVCS].cells);
        let host_cr3 = setup.extra.host_cr3.bits();
        let host = &mut regions[region::HOST];
        host.root = Some(host_cr3);
        host.write(&self.d, -8, 8, LANDING);

        self.watch.start(setup.extra);
        self.run = RunState {
            count: setup.count,
            pvcs: setup.pvcs,
            smod_rsp: setup.extra.smod_rsp,
            ..RunState::default()
        };
        let state = &mut self.state;
        // Whatever a host may have in them.
        state.gpr = std::array::from_fn(|n| 0x4057_0000_0000_0000 | n as u64);
        for (_, register, value) in CALLEE_SAVED {
            state.set(register, value);
        }
        state.set(Gpr::Rsp, HOST_STACK - 8);
        state.flags = Flags::new(&self.d, RFlags::FIXED.bits());
        (state.cs, state.ss) = (selectors.kernel_cs().into(), selectors.kernel_ds().into());
        state.cpl = 0;
        state.gs_base = self.host_gs;
        state.inactive_gs_base = gs_base;
        state.cr3 = host_cr3;
        state.pkru = setup.pkru.into();
        self.put_frame(&setup.frame, region::FRAME);
        self.go_into_switcher(WayIn::Enter, Label::EnterGuest);
        Ok(())
    }

    fn go(&mut self) -> Result<(), Error> {
        loop {
            match self.switcher()? {
                Left::ToHost => return Ok(()),
                Left::ToGuest => self.guest()?,
            }
        }
    }

    /// One more instruction.
    pub(super) fn tick(&mut self) -> Result<(), Error> {
        if self.run.instructions >= self.limit {
            return Err(Error::Endless { instructions: self.limit });
        }
        self.run.instructions += 1;
        Ok(())
    }

    fn revision(&self) -> Revision {
        self.image.variant().revision()
    }

    // In the switcher.

    fn address(&self, label: Label) -> u64 {
        self.places.switcher + u64::from(self.image.offset(label))
    }

    fn offset(&self, rip: u64) -> u64 {
        rip.wrapping_sub(self.places.switcher)
    }

    fn go_into_switcher(&mut self, way_in: WayIn, at: Label) {
        self.state.rip = self.address(at);
        self.run.way_in = Some(way_in);
        self.watch.executed = 0;
    }

    fn switcher(&mut self) -> Result<Left, Error> {
        loop {
            self.tick()?;
            let rip = self.state.rip;
            let step = self.state.step(&self.d, &self.model, &self.switcher, &mut self.watch);
            if let Some(failure) = self.watch.failure.take() {
                return Err(failure.into());
            }
            match step {
                Ok(Step::Next) => {}
                Ok(Step::Guest { by_sysretq }) => {
                    if by_sysretq && !self.watch.by_sysretq {
                        self.check_sysretl()?;
                    }
                    let way_out = if by_sysretq { WayOut::Sysretq } else { WayOut::Iretq };
                    self.cross(way_out)?;
                    self.enter_space();
                    return Ok(Left::ToGuest);
                }
                Ok(Step::Left) => {
                    self.returned()?;
                    return Ok(Left::ToHost);
                }
                Ok(Step::Fault(fault)) => self.ring_0_fault(rip, fault)?,
                Ok(Step::Halted) => return Err(Error::Halted { offset: self.offset(rip) }),
                Err(Stuck::Wild { address, size, .. }) => {
                    return Err(self.wild(rip, address, size).into());
                }
                Err(stuck) => return Err(stuck.into()),
            }
        }
    }

    /// An access to memory that ring 0 does not have.
    fn wild(&self, rip: u64, address: u64, size: usize) -> Failure {
        let last = address.wrapping_add(size as u64 - 1);
        let paging = self.model.paging;
        let is_address = paging.is_canonical(address) && paging.is_canonical(last);
        // #SS, for the stack, is as fatal.
        let vector = if is_address { vector::PF } else { vector::GP };
        let address = if is_address { address } else { 0 };
        Failure::Fault { vector: vector.into(), offset: self.offset(rip), address }
    }

    /// A guest's fault although it is the switcher that was interrupted, or a fatal one.
    fn ring_0_fault(&mut self, rip: u64, fault: Fault<u64>) -> Result<(), Error> {
        let of_iretq = matches!(fault.vector, vector::NP | vector::SS | vector::GP);
        if rip != self.address(Label::Iretq) || !of_iretq {
            // INT3 and INT have been executed when they trap.
            let rip = match self.switcher.at(rip) {
                Some(Ok(op)) if op.is_trap(&fault) => op.next,
                _ => rip,
            };
            let (vector, offset) = (fault.vector.into(), self.offset(rip));
            return Err(Failure::Fault { vector, offset, address: 0 }.into());
        }
        self.cross(WayOut::Iretq)?;
        // The frame that IRETQ refused says what the guest's state is.
        let rsp = self.state.get(Gpr::Rsp);
        let mut frame = [0; 5];
        for (slot, word) in frame.iter_mut().enumerate() {
            let address = rsp.wrapping_add(8 * slot as u64);
            // IRETQ has read it.
            if let Some(place) = self.state.memory.locate(&self.d, address, 8, self.state.cr3) {
                *word = self.state.memory.load(&self.d, place);
            }
        }
        let [rip, cs, eflags, rsp, ss] = frame;
        let error_code = fault.error_code.map(|code| code as u32);
        self.handler(fault.vector, error_code, IretFrame { rip, cs, eflags, rsp, ss });
        Ok(())
    }

    /// SYSRETL gives a guest the flags that it had.
    fn check_sysretl(&self) -> Result<(), Failure> {
        let r11 = self.state.get(Gpr::R11);
        let allowed = RFlags::GUEST_ALLOWED | RFlags::GUEST_FIXED;
        if r11 & !allowed.bits() != 0 || r11 & RFlags::IF.bits() == 0 {
            return Err(Failure::SysretFlags { r11 });
        }
        if self.watch.null_ss(self.state.ss) { Err(Failure::NullSs) } else { Ok(()) }
    }

    // Between the switcher and the guest.

    /// Control leaves the switcher, and everything must be as it has to be outside.
    fn cross(&mut self, way_out: WayOut) -> Result<(), Failure> {
        let way_in = self.run.way_in.unwrap_or(WayIn::Enter);
        if way_out != WayOut::Host {
            let extra = self.watch.extra_now(&self.state.memory.regions[region::PER_CPU]);
            let cr3 = self.state.cr3;
            if right_root(way_in, &extra).map(|root| root.bits()) != Some(cr3) {
                return Err(Failure::Root { flags: extra.switch_flags.bits(), cr3 });
            }
            let inactive = self.state.inactive_gs_base;
            if inactive != self.host_gs {
                return Err(Failure::Swapgs { inactive });
            }
        }
        let executed = self.watch.executed - u64::from(way_out == WayOut::Iretq);
        let executed = if self.run.count { executed } else { 0 };
        self.watch.record.crossed(Crossing { way_in, way_out, executed });
        Ok(())
    }

    /// At CPL 3, what is reached is what the loaded root maps.
    fn enter_space(&mut self) {
        let root = self.state.cr3 & ROOT;
        let extra = &self.watch.extra;
        let roots = [(Mode::Smod, extra.smod_cr3), (Mode::Umod, extra.umod_cr3)];
        let entered = roots.into_iter().find(|(_, cr3)| cr3.root() == root);
        self.inside = entered.map(|(mode, _)| mode as usize);
        self.swap_memory();
    }

    /// In ring 0, or at the end, it is ring 0's.
    fn leave_space(&mut self) {
        self.swap_memory();
        self.inside = None;
    }

    fn swap_memory(&mut self) {
        if let Some(Space { memory, .. }) = self.inside.map(|mode| &mut self.spaces[mode]) {
            std::mem::swap(memory, &mut self.state.memory);
        }
    }

    /// SYSCALL has been executed.
    pub(super) fn system_call(&mut self, entry: SyscallKind) -> Result<(), Error> {
        self.leave_space();
        let selectors = self.model.selectors;
        // Whatever lies below sp0 is an earlier frame's. Nothing of it may be taken for granted, so
        // it has nothing that could be used.
        let (cs, ss) = (selectors.kernel_cs().into(), selectors.kernel_ds().into());
        self.put_frame(&PtRegs { cs, ss, ..PtRegs::ZERO }, region::FRAME);
        self.run.system_calls += 1;
        let per_cpu = &self.state.memory.regions[region::PER_CPU];
        let flags = self.watch.extra_now(per_cpu).switch_flags;
        match entry {
            SyscallKind::Long => self.go_into_switcher(WayIn::Syscall(flags), Label::Syscall64),
            SyscallKind::Compatibility => {
                self.go_into_switcher(WayIn::SyscallCompat(flags), Label::SyscallCompat);
            }
        }
        Ok(())
    }

    /// An event of the guest at CPL 3.
    pub(super) fn event(
        &mut self,
        vector: u8,
        error_code: Option<u32>,
        cause: Cause,
    ) -> Result<(), Error> {
        self.leave_space();
        // #DB, NMI, #DF and #MC have a stack of their own
        // (spec/switcher.md, "Events from the guest").
        let ist = u8::from(has_own_stack(vector));
        // The handler itself is not emitted code: see `handler`.
        let gate = Gate { handler: 0, ist };
        let arrival = Arrival {
            error_code: error_code.map(u64::from),
            is_fault: cause == Cause::Fault,
            // An IRET of its handler's has ended the blocking.
            is_nmi: false,
        };
        let tss = self.places.per_cpu + PerCpu::tss.bytes() as u64;
        self.state.deliver(&self.d, &self.model, tss, gate, arrival)?;
        let stack = &self.state.memory.regions[if ist == 0 { region::FRAME } else { region::IST }];
        let cells = stack.cells.len() - size_of::<IretFrame>();
        let frame = bytes::get_iret_frame(&stack.cells[cells..]);
        self.handler(vector, error_code, frame);
        Ok(())
    }

    /// What the CPU and a host's handler do with an event of a guest: frame, GS, exit.
    fn handler(&mut self, vector: u8, error_code: Option<u32>, frame: IretFrame) {
        let IretFrame { rip, cs, eflags, rsp, ss } = frame;
        let register = |register| self.state.get(register);
        let orig_ax =
            OrigAx { error_code: error_code.unwrap_or(NO_ERROR_CODE), reason: vector.into() };
        let frame = PtRegs {
            r15: register(Gpr::R15),
            r14: register(Gpr::R14),
            r13: register(Gpr::R13),
            r12: register(Gpr::R12),
            rbp: register(Gpr::Rbp),
            rbx: register(Gpr::Rbx),
            r11: register(Gpr::R11),
            r10: register(Gpr::R10),
            r9: register(Gpr::R9),
            r8: register(Gpr::R8),
            rax: register(Gpr::Rax),
            rcx: register(Gpr::Rcx),
            rdx: register(Gpr::Rdx),
            rsi: register(Gpr::Rsi),
            rdi: register(Gpr::Rdi),
            orig_ax,
            rip,
            cs,
            eflags,
            rsp,
            ss,
        };
        let stack = if has_own_stack(vector) { region::IST } else { region::FRAME };
        self.put_frame(&frame, stack);
        let state = &mut self.state;
        std::mem::swap(&mut state.gs_base, &mut state.inactive_gs_base);
        state.set(Gpr::Rsp, self.run.frame_at);
        // Interrupt gates.
        let cleared = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM | RFlags::IF;
        state.flags.replace(&self.d, cleared.bits(), 0);
        self.go_into_switcher(WayIn::Event, Label::ReturnFromGuest);
    }

    /// Writes a frame at the end of a stack, where it will be looked for at the exit.
    fn put_frame(&mut self, frame: &PtRegs, stack: usize) {
        let stack = &mut self.state.memory.regions[stack];
        self.run.frame_at = stack.base - FRAME;
        let cells = stack.cells.len() - size_of::<PtRegs>();
        bytes::put_frame(frame, &mut stack.cells[cells..]);
    }

    // Back in the host.

    /// The call of `switcher_enter_guest` has returned.
    fn returned(&mut self) -> Result<(), Failure> {
        let state = &self.state;
        if state.rip != LANDING {
            return Err(Failure::Astray { rip: state.rip });
        }
        let selectors = self.model.selectors;
        let extra = self.watch.extra_now(&state.memory.regions[region::PER_CPU]);
        let unwanted =
            RFlags::DF | RFlags::AC | RFlags::NT | RFlags::IOPL | RFlags::TF | RFlags::IF;
        let others = [
            ("RSP", state.get(Gpr::Rsp), HOST_STACK),
            ("RAX", state.get(Gpr::Rax), self.run.frame_at),
            ("GS base", state.gs_base, self.host_gs),
            ("DF, AC, NT, IOPL", state.rflags(&self.d) & unwanted.bits(), 0),
            ("CS", state.cs, selectors.kernel_cs().into()),
            ("CR3", state.cr3, extra.host_cr3.bits()),
            ("host_rsp", extra.host_rsp, 0),
        ];
        let preserved =
            CALLEE_SAVED.map(|(name, register, value)| (name, state.get(register), value));
        let cleared = CLEARED.map(|(name, register)| (name, state.get(register), 0));
        for (register, value, expected) in others.into_iter().chain(preserved).chain(cleared) {
            if value != expected {
                return Err(Failure::HostRegister { register, value, expected });
            }
        }
        if self.watch.null_ss(state.ss) {
            return Err(Failure::NullSs);
        }
        self.cross(WayOut::Host)
    }

    /// Everything that a run has left.
    fn finish(&mut self) -> Result<ScenarioEnd, Error> {
        let regions = &self.state.memory.regions;
        let per_cpu = &regions[region::PER_CPU].cells;
        let mut extra = self.watch.extra_now(&regions[region::PER_CPU]);
        let mut untouched = vec![0; per_cpu.len()];
        bytes::put_tss(
            &mut untouched[PerCpu::tss.bytes()..PerCpu::tss_extra.bytes()],
            self.places.sp0,
            IST_STACK,
        );
        bytes::put_extra(&extra, &mut untouched[PerCpu::tss_extra.bytes()..]);
        // The switcher's scratch.
        let sp2 = PerCpu::tss.bytes() + Tss::sp2.bytes();
        untouched[sp2..sp2 + 8].copy_from_slice(&per_cpu[sp2..sp2 + 8]);
        if let Some(offset) = (0..untouched.len()).find(|at| untouched[*at] != per_cpu[*at]) {
            return Err(Error::HostMemory { region: regions[region::PER_CPU].name.name(), offset });
        }
        if self.revision() == Revision::V2026 {
            // Scratch, too: no guest has anything there.
            extra.smod_rsp = self.run.smod_rsp;
        }
        let cells = &regions[region::PVCS].cells;
        let pvcs =
            bytes::get_whole_pvcs(cells, self.revision(), &self.run.pvcs).map_err(|offset| {
                Error::HostMemory { region: regions[region::PVCS].name.name(), offset }
            })?;

        let stack =
            if self.run.frame_at + FRAME == IST_STACK { region::IST } else { region::FRAME };
        let cells = &regions[stack].cells;
        let frame = bytes::get_frame(&cells[cells.len() - size_of::<PtRegs>()..]);
        let cr2 = self.run.cr2.filter(|_| frame.orig_ax.reason == u32::from(vector::PF));
        let emulated = self.emulated();
        let record = std::mem::replace(&mut self.watch.record, Record::new());
        Ok(ScenarioEnd {
            frame,
            cr2,
            dr6: self.run.dr6.filter(|_| frame.orig_ax.reason == u32::from(vector::DB)),
            gs_base: self.state.inactive_gs_base,
            // RDPKRU's 32 bits.
            pkru: self.state.pkru as u32,
            extra,
            pvcs,
            crossings: record.crossings,
            crossings_total: record.crossings_total,
            cr3_loads: record.cr3_loads,
            emulated: Emulated { mov_cr3: record.emulated.mov_cr3, ..emulated },
            traps: 0,
        })
    }

    /// How often the switcher executed what CPL 3 would refuse.
    fn emulated(&self) -> Emulated {
        let mut emulated = Emulated { syscall: self.run.system_calls, ..Emulated::default() };
        for (offset, hits) in self.watch.hits.iter().enumerate().filter(|(_, hits)| **hits > 0) {
            let address = self.places.switcher + offset as u64;
            let Some(Ok(op)) = self.switcher.at(address) else { continue };
            match op.kind {
                Operation::SwapGs => emulated.swapgs += hits,
                Operation::Sysretq | Operation::Sysretl => emulated.sysretq += hits,
                Operation::WriteSs => emulated.mov_ss += hits,
                Operation::WriteMsr => emulated.wrmsr += hits,
                Operation::Iretq => emulated.iretq += hits,
                _ => {}
            }
        }
        emulated
    }
}

/// The root's address in CR3.
const ROOT: u64 = (1 << 52) - (1 << 12);

// The block is laid out by hand.
const _: () = assert!(
    PerCpu::tss.bytes() == 0
        && Tss::LAYOUT.size <= PerCpu::tss_extra.bytes()
        && TssExtra::LAYOUT.size == PerCpu::LAYOUT.size - PerCpu::tss_extra.bytes()
);

/// Whether a host handles events of this vector on a stack of the IST: #DB, NMI, #DF and #MC
/// (spec/switcher.md, "Events from the guest").
const fn has_own_stack(vector: u8) -> bool {
    matches!(vector, 1 | 2 | 8 | 18)
}
