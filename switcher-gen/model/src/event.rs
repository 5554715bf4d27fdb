//! Exceptions, interrupts and NMIs, as the CPU delivers them in 64-bit mode (Intel SDM vol. 3, 6.12
//! and 6.14; AMD APM vol. 2, 8.9).

use super::domain::Domain;
use super::operation::Gpr;
use super::state::{CpuModel, State};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::Tss;

/// Where an event leads: the parts of its IDT entry that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate<W> {
    /// The handler, in the host's 64-bit code segment.
    pub handler: W,
    /// The number of the stack in the IST, 1 to 7; 0 if the event uses none of them.
    pub ist: u8,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<W> {
    /// The error code, if the event has one.
    pub error_code: Option<W>,
    /// Whether the instruction at RIP is executed again afterwards: a fault. Its frame has RF set,
    /// so that a breakpoint on the instruction does not hit once more.
    pub is_fault: bool,
    /// Whether it is an NMI. Other NMIs then wait until an IRET is executed.
    pub is_nmi: bool,
}

/// Memory that the CPU needs to deliver an event is not there; a CPU would deliver a double fault.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("an event cannot be delivered: no stack, or no TSS")]
pub struct Undeliverable;

impl<D: Domain> State<D> {
    /// Delivers an event through an interrupt gate. `tss` is the address of the task state segment.
    ///
    /// # Errors
    /// If TSS or stack are not in memory. The state is then as it was, stack cells excepted.
    pub fn deliver(
        &mut self,
        d: &D,
        model: &CpuModel,
        tss: D::Word,
        gate: Gate<D::Word>,
        arrival: Arrival<D::Word>,
    ) -> Result<(), Undeliverable> {
        let from_guest = self.cpl != 0;
        // IST 1 to 7 lie one after the other.
        let slot = match gate.ist {
            0 if from_guest => Some(Tss::sp0.bytes()),
            0 => None,
            ist => Some(Tss::ist1.bytes() + 8 * (usize::from(ist) - 1)),
        };
        let stack = match slot {
            Some(offset) => self.read(d, d.plus(tss, offset as i64))?,
            None => self.get(Gpr::Rsp),
        };
        // In 64-bit mode the stack is aligned first, and SS and RSP are pushed in any case.
        let mut rsp = self.aligned(d, stack);
        let resume = if arrival.is_fault { RFlags::RF.bits() } else { 0 };
        let rflags = d.or(self.rflags(d), d.word(resume));
        let frame = [self.ss, self.get(Gpr::Rsp), rflags, self.cs, self.rip];
        for word in frame.into_iter().chain(arrival.error_code) {
            rsp = d.plus(rsp, -8);
            let place = self.memory.locate(d, rsp, 8, self.cr3).ok_or(Undeliverable)?;
            self.memory.store(d, place, word);
        }
        self.set(Gpr::Rsp, rsp);
        self.cs = d.word(model.selectors.kernel_cs().into());
        if from_guest {
            // A change of the privilege level leaves SS null.
            self.ss = d.word(0);
        }
        self.cpl = 0;
        let cleared = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM | RFlags::IF;
        self.flags.replace(d, cleared.bits(), d.word(0));
        self.rip = gate.handler;
        if arrival.is_nmi {
            self.nmi_blocked = d.bit(true);
        }
        Ok(())
    }

    /// `address` down to a multiple of 16. If the top of a stack is aligned already, its address
    /// need not be known.
    fn aligned(&self, d: &D, address: D::Word) -> D::Word {
        let regions = self.memory.regions.iter();
        let mut tops = regions.filter(|r| d.known(d.mask(r.base, 0xF)) == Some(0));
        let below = tops.find_map(|top| Some((top.base, d.distance(address, top.base)?)));
        match below {
            Some((top, distance)) => d.plus(top, distance & !0xF),
            None => d.mask(address, !0xF),
        }
    }

    fn read(&self, d: &D, address: D::Word) -> Result<D::Word, Undeliverable> {
        let place = self.memory.locate(d, address, 8, self.cr3).ok_or(Undeliverable)?;
        Ok(self.memory.load(d, place))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CR4, Concrete, EFER, Flags, Memory, Msrs, Region, RegionName};
    use super::*;
    use switcher_gen::Variant;

    const TSS: u64 = 0x1000;
    const SP0: u64 = 0x2000;
    const IST2: u64 = 0x3000;

    /// A guest with the flags `rflags`.
    fn guest(rflags: u64) -> State<Concrete> {
        let d = Concrete::default();
        let mut tss = Region::new(RegionName::Tss, TSS, 0, vec![0; size_of::<Tss>()]);
        tss.write(&d, Tss::sp0.bytes() as i64, 8, SP0);
        tss.write(&d, Tss::ist2.bytes() as i64, 8, IST2 + 8);
        let stack = |base| Region::new(RegionName::Stack, base, -64, vec![0; 80]);
        let memory = Memory { regions: vec![tss, stack(SP0), stack(IST2)], racing: false };
        let mut gpr = [0; 16];
        gpr[Gpr::Rsp as usize] = 0xDEAD;
        State {
            gpr,
            rip: 0x4000_1234,
            flags: Flags::new(&d, rflags),
            cs: 0x33,
            ss: 0x2B,
            cpl: 3,
            gs_base: 7,
            inactive_gs_base: 8,
            fs_base: 0,
            cr3: 9,
            cr4: CR4,
            pkru: 0,
            nmi_blocked: false,
            msrs: Msrs { star: 0, lstar: 0, cstar: 0, sfmask: 0, spec_ctrl: 0, efer: EFER },
            memory,
        }
    }

    fn deliver(state: &mut State<Concrete>, ist: u8, arrival: Arrival<u64>) {
        let model = CpuModel::from(&Variant::REFERENCE);
        let gate = Gate { handler: 0xFFFF_8000_0000_0000, ist };
        state.deliver(&Concrete::default(), &model, TSS, gate, arrival).unwrap();
    }

    fn stack(state: &State<Concrete>, region: usize, at: i64) -> u64 {
        state.memory.regions[region].read(&Concrete::default(), at, 8)
    }

    #[test]
    fn a_guests_fault_lands_on_sp0_with_its_error_code() {
        let flags = (RFlags::GUEST_FIXED | RFlags::TF | RFlags::NT | RFlags::DF).bits();
        let mut state = guest(flags);
        deliver(&mut state, 0, Arrival { error_code: Some(0x14), is_fault: true, is_nmi: false });
        assert_eq!(state.get(Gpr::Rsp), SP0 - 48);
        let pushed = [-48, -40, -32, -24, -16, -8].map(|at| stack(&state, 1, at));
        let rflags = flags | RFlags::RF.bits();
        assert_eq!(pushed, [0x14, 0x4000_1234, 0x33, rflags, 0xDEAD, 0x2B]);
        assert_eq!((state.cs, state.ss, state.cpl), (0x10, 0, 0));
        // The gate is an interrupt gate. It leaves DF, GS and CR3 to the handler.
        assert_eq!(state.rflags(&Concrete::default()), (RFlags::FIXED | RFlags::DF).bits());
        assert_eq!((state.gs_base, state.cr3, state.rip), (7, 9, 0xFFFF_8000_0000_0000));
    }

    #[test]
    fn an_ist_stack_is_taken_whatever_rsp_is_and_aligned() {
        let mut state = guest(RFlags::GUEST_FIXED.bits());
        (state.cpl, state.cs, state.ss) = (0, 0x10, 0x18);
        deliver(&mut state, 2, Arrival { error_code: None, is_fault: false, is_nmi: true });
        assert!(state.nmi_blocked);
        assert_eq!(state.get(Gpr::Rsp), IST2 - 40);
        assert_eq!(stack(&state, 2, -16), 0xDEAD);
        // Within ring 0, SS stays.
        assert_eq!(state.ss, 0x18);
        assert_eq!(stack(&state, 2, -24), RFlags::GUEST_FIXED.bits());
    }

    #[test]
    fn without_a_stack_nothing_is_delivered() {
        let mut state = guest(RFlags::GUEST_FIXED.bits());
        let model = CpuModel::from(&Variant::REFERENCE);
        let gate = Gate { handler: 1, ist: 3 };
        let arrival = Arrival { error_code: None, is_fault: false, is_nmi: true };
        let delivered = state.deliver(&Concrete::default(), &model, TSS, gate, arrival);
        assert_eq!(delivered, Err(Undeliverable));
        assert_eq!((state.rip, state.cpl, state.get(Gpr::Rsp)), (0x4000_1234, 3, 0xDEAD));
        assert!(!state.nmi_blocked);
    }
}
