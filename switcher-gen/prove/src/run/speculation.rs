//! What must hold of an instruction because of what a CPU may do beside executing it: see
//! `barriers.rs`.

use crate::goal::Goals;
use crate::obligation;
use crate::run::barriers::AtReturn;
use crate::run::instruction::is_on_a_stack;
use crate::run::watch::Watch;
use crate::theorem::Theorem;
use switcher_gen::arch::Msr;
use switcher_model::program::Operation;
use switcher_model::{Branch, Domain, Gpr, Origin, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    /// What must hold of an instruction because of what a CPU may do beside executing it.
    pub(crate) fn speculation(&mut self, d: &D, goals: &mut Goals<D>, state: &Machine<D>, at: u64) {
        if self.barriers.overwritten {
            // RSP points to the frame that is returned to.
            let mut others = Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp);
            let is_hosts = |register| d.mentions(state.get(register), Origin::is_the_hosts);
            self.barriers.overwritten = !others.any(is_hosts);
        }
        let Some(Ok(op)) = self.entry.target.program.at(at) else { return };
        if op.wants_trap() {
            let is_trapped = self.entry.target.around(at).trap.is_some();
            goals.add(obligation::TRAPPED, d.bit(is_trapped), "the next instruction");
        }
        let mitigations = self.entry.target.setting.variant.mitigations();
        // The CPUs that need the upper half are among those that need the history overwritten.
        if mitigations.bhb.is_on() && op.is_predicted() {
            let is_there = self.entry.target.around(at).is_upper;
            goals.add(obligation::UPPER_HALF, d.bit(is_there == Some(true)), "address");
        }
        if op.is_indirect() {
            let holds = match self.entry.theorem {
                // The branch may as well be the host's, as long as it is restricted like the
                // host's.
                Theorem::EnterGuest => d.eq(state.msrs.spec_ctrl, self.start.spec_ctrl),
                _ => {
                    let done = d.bit(self.barriers.is_safe_to_branch(mitigations));
                    d.both(done, self.is_restricted(d, state))
                }
            };
            goals.add(obligation::INDIRECT_FIRST, holds, "branch");
            self.barriers.poison();
        }
    }

    /// Whether SPEC_CTRL has been made the host's, if that is switched.
    fn is_restricted(&self, d: &D, state: &Machine<D>) -> D::Bit {
        if !self.entry.target.setting.variant.mitigations().ibrs {
            return d.bit(true);
        }
        let is_hosts = d.eq(state.msrs.spec_ctrl, self.start.block.host_spec_ctrl);
        d.both(d.bit(self.barriers.restricted), is_hosts)
    }

    /// WRMSR, on a path or on an arm that no path takes: if it writes PRED_CMD, that must be an
    /// IBPB. Other bits empty less.
    pub(crate) fn barrier(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        number: Option<u64>,
        value: D::Word,
    ) {
        if number == Some(Msr::PredCmd.address().into()) {
            goals.add(obligation::IBPB_FIRST, d.test(value, 0), "PRED_CMD");
        }
        self.barriers.msr(number);
    }

    pub(crate) fn branch(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        branch: Branch,
    ) {
        let op = self.trace.last().and_then(|at| self.entry.target.program.at(*at));
        let is_far = matches!(op, Some(Ok(op)) if matches!(op.kind, Operation::ReturnFar(_)));
        // No CPU predicts a far RET, and where it resumes interrupted code, it needs no mitigation.
        // Where it is used for an exit, it leads to the host, which wants an exit's mitigations all
        // the same.
        let is_resuming = is_far && self.entry.theorem.keeps_blocking();
        let is_to_handler = is_far && self.entry.theorem.hands_on();
        let at = self.trace.last().copied().unwrap_or_default();
        let to = d.code_at(state.rip);
        match branch {
            Branch::Return if is_resuming => self.verw(d, goals),
            Branch::Return if is_to_handler => {}
            Branch::Return => {
                // It leads to the return address of a call of the routine's own, or to the caller.
                let is_own = self.barriers.is_predicted(to);
                self.at_return(d, goals, state, is_own, false, 0);
                self.barriers.returned();
                self.barriers.branch(at, None);
            }
            Branch::Jump => {
                self.barriers.branch(at, to);
                // Where a jump leads to the host, the next RET is the host's, and is predicted by
                // what a guest has left, as an exit's own would be.
                let target = self.entry.target;
                let is_own = |to| target.program.contains(to) || target.of_host(to).is_some();
                if !to.is_some_and(is_own) {
                    self.at_return(d, goals, state, false, true, 0);
                }
            }
            Branch::Counted => {}
            Branch::Call => {
                let next = self.entry.target.program.instruction(at).next_ip();
                self.barriers.called(next, self.entry.target.around(at).fills);
            }
        }
    }

    /// A RET of the host's uses up what a call has left in the return stack buffer.
    pub(crate) fn returned(&mut self) {
        self.barriers.returned();
    }

    /// Whether a RET to `to` is predicted by the call that it returns from.
    pub(crate) fn is_predicted(&self, to: Option<u64>) -> bool {
        self.barriers.is_predicted(to)
    }

    /// What must hold at a RET: one of the routine's own (`is_own`), that of an exit, or the first
    /// of a hook, `within` as many calls. RETs of the host's are those of its thunk (`is_thunks`).
    pub(crate) fn at_return(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        is_own: bool,
        is_thunks: bool,
        within: usize,
    ) {
        // Code of the host's has run, and what predicts its RETs is its own.
        if self.has_hosts_code_run {
            return;
        }
        let mitigations = self.entry.target.setting.variant.mitigations();
        let AtReturn { emptied, untrained, filled, history } =
            self.barriers.at_return(mitigations, is_own, is_thunks, within);
        if mitigations.ibrs {
            let holds = self.is_restricted(d, state);
            goals.add(obligation::IBRS_FIRST, holds, "SPEC_CTRL");
        }
        goals.add(obligation::IBPB_FIRST, d.bit(emptied), "PRED_CMD");
        goals.add(obligation::UNTRAINED, d.bit(untrained), "RIP");
        goals.add(obligation::RSB_FILLED, d.bit(filled), "calls");
        goals.add(obligation::BHB_CLEARED, d.bit(history), "branches");
    }

    /// The host untrains returns: for that it needs its own root, its GS base and a stack.
    pub(crate) fn untrain(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        [root, gs_base]: [D::Word; 2],
    ) {
        self.barriers.untrained = true;
        goals.add(obligation::UNTRAINED, d.eq(state.cr3, root), "CR3");
        goals.add(obligation::UNTRAINED, d.eq(state.gs_base, gs_base), "GS base");
        goals.add(obligation::UNTRAINED, is_on_a_stack(d, state), "RSP");
    }

    /// VERW must come last where an entry gets to the guest, or an event with a hook to what it has
    /// interrupted: that may be an entry that has executed its own VERW.
    pub(crate) fn verw(&mut self, d: &D, goals: &mut Goals<D>) {
        let wanted = self.entry.target.setting.variant.mitigations().verw;
        if wanted && (self.entry.theorem == Theorem::EnterGuest || self.entry.theorem.has_hook()) {
            goals.add(obligation::VERW_LAST, d.bit(self.barriers.overwritten), "VERW");
        }
    }
}
