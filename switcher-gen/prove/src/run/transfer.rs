//! What must hold where control goes to a guest, and of what is loaded into CR3 on the way.

use crate::goal::Goals;
use iced_x86::{Mnemonic, Register};
use switcher_model::Observer;

use crate::obligation;
use crate::run::end::End;
use crate::run::origins::is_a_leak;
use crate::run::watch::{Observed, Watch};
use crate::theorem::Theorem;
use switcher_gen::arch::{RFlags, Vendor};
use switcher_gen::layout::SwitchFlags;
use switcher_model::{Domain, Effect, Gpr, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    pub(crate) fn cr3(&mut self, d: &D, goals: &mut Goals<D>, value: D::Word) {
        let roots = &self.start.block;
        let peers = d.either(d.eq(value, roots.smod_cr3), d.eq(value, roots.umod_cr3));
        let others = d.either(d.eq(value, roots.host_cr3), d.eq(value, roots.enter_cr3));
        let restored = self.start.interrupted_root.map_or(d.bit(false), |root| d.eq(value, root));
        let restored = d.either(restored, d.eq(value, self.start.root));
        let others = d.either(others, restored);
        let unprepared = d.any(roots.switch_flags, SwitchFlags::NO_DS_CR3.bits());
        // Slots may hold the same value: what counts is that there is a reason to load it.
        let prepared = d.either(others, d.not(unprepared));
        goals.of(obligation::CR3_OPERAND, d.either(peers, others), "CR3", value);
        goals.of(obligation::CR3_PREPARED, prepared, "CR3", value);
    }

    pub(crate) fn sysretq(&mut self, d: &D, goals: &mut Goals<D>, state: &Machine<D>) {
        let model = self.entry.target.model();
        let canonical = model.is_canonical(d, state.get(Gpr::Rcx));
        goals.of(obligation::SYSRETQ_CANONICAL, canonical, "RCX", state.get(Gpr::Rcx));
        let traced = d.any(state.get(Gpr::R11), RFlags::NOT_BY_SYSRET.bits());
        goals.of(obligation::SYSRETQ_RF_TF, d.not(traced), "R11", state.get(Gpr::R11));
        self.flags(d, goals, state.get(Gpr::R11));
        self.verw(d, goals);
        if model.vendor == Vendor::Amd {
            goals.of(obligation::SYSRETQ_SS, d.any(state.ss, 0xFFFC), "SS", state.ss);
        }
        // 32-bit code's stub leaves the guest's RSP where it is.
        if self.entry.theorem != Theorem::SyscallCompat {
            goals.add(obligation::ADJACENT, d.bit(self.rsp_was_loaded_last()), "RSP");
        }
    }

    /// Whether the instruction right before the present one, in the code and on the path, has
    /// loaded RSP. This looks at the code and at no value: RSP may have held anything before.
    fn rsp_was_loaded_last(&self) -> bool {
        let [.., before, at] = *self.trace.as_slice() else { return false };
        let instruction = self.entry.target.program.instruction(before);
        let loads = instruction.op_count() > 0
            && instruction.op0_register() == Register::RSP
            && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop);
        // A move of RSP to itself loads nothing.
        let is_new = instruction.op1_register() != Register::RSP;
        loads && is_new && instruction.next_ip() == at
    }

    /// A descriptor is read: which line of its table that was, a cache tells.
    pub(crate) fn descriptor(&self, d: &D, goals: &mut Goals<D>, selector: D::Word) {
        let is_free = d.bit(!is_a_leak(d, selector));
        goals.add(obligation::DESCRIPTORS, is_free, "selector");
    }

    pub(crate) fn iretq(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        [_, cs, flags, _, ss]: [D::Word; 5],
    ) {
        for selector in [cs, ss] {
            self.descriptor(d, goals, d.truncate(selector, 2));
        }
        let at = self.trace.last().copied();
        if self.entry.theorem.is_of_events() {
            // An event's IRETQ leads to ring 0: for a guest there is another way.
            let kernel = self.entry.target.model().selectors.kernel_cs();
            goals.of(obligation::IRETQ_RING_0, d.is(cs, kernel.into()), "CS", cs);
            self.verw(d, goals);
            self.blocking.end();
            return;
        }
        // Who looks for its fault where nothing says where it is, is not judged.
        let target = self.entry.target;
        if target.iretq.is_some() || target.gates.is_some() {
            let is_known = at.is_some() && at == target.iretq;
            goals.add(obligation::IRETQ_LABEL, d.bit(is_known), "RIP");
        }
        let nested = state.flags.other(d, RFlags::NT);
        goals.add(obligation::IRETQ_NT, d.not(nested), "RFLAGS");
        let ring_3 = |selector| d.is(d.mask(selector, 3), 3);
        goals.of(obligation::IRETQ_RING_3, ring_3(cs), "CS", cs);
        goals.of(obligation::IRETQ_RING_3, ring_3(ss), "SS", ss);
        self.flags(d, goals, flags);
        self.verw(d, goals);
        self.blocking.frame_of_iretq(d, self.entry, goals, state);
    }

    /// Flags that a guest is about to have.
    fn flags(&self, d: &D, goals: &mut Goals<D>, flags: D::Word) {
        let forbidden = d.any(flags, !RFlags::GUEST_ALLOWED.bits());
        let fixed = RFlags::GUEST_FIXED.bits();
        let forced = d.is(d.mask(flags, fixed), fixed);
        goals.of(obligation::GUEST_FLAGS, d.both(d.not(forbidden), forced), "RFLAGS", flags);
    }
}

/// The IRETQ to a guest. Whether it faults depends on the CPU and on the frame: it is the frame
/// that must be right.
pub(crate) fn iretq<D: Domain>(
    d: &D,
    machine: &mut Machine<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    at: u64,
) -> End<D::Word> {
    Observed { watch, goals }.observe(d, machine, Effect::Execute(at));
    let rsp = machine.get(Gpr::Rsp);
    let mut frame = [rsp; 5];
    for (slot, word) in frame.iter_mut().enumerate() {
        let address = d.plus(rsp, 8 * slot as i64);
        let Some(place) = machine.memory.locate(d, address, 8, machine.cr3) else {
            let text = format!(
                "the IRETQ at {at:#x} takes its frame from memory that is not the switcher's"
            );
            let values = Some((address, address));
            return End::Broken { obligation: obligation::MEMORY, text, about: "address", values };
        };
        watch.mapped(d, goals, machine, place.region);
        *word = machine.memory.load(d, place);
    }
    Observed { watch, goals }.observe(d, machine, Effect::Iretq(frame));
    machine.arrive(d, frame);
    End::Guest { by_sysretq: false }
}
