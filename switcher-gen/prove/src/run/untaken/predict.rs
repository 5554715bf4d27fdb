//! Where an arm begins: what predictors may make of the jumps, calls and RETs of a path.

use std::collections::BTreeSet;
use std::rc::Rc;

use iced_x86::{Mnemonic, OpKind};

use crate::run::arms::memory::Strayed;
use crate::run::arms::{Arms, Jump, SoFar, copy};
use crate::run::barriers::Barriers;
use crate::run::watch::Watch;
use crate::target::Target;
use switcher_model::program::{Op, Operation};
use switcher_model::{Domain, Gpr, State as Machine};

pub(crate) fn arms_of(target: &Target, at: u64) -> [u64; 2] {
    let jump = target.program.instruction(at);
    [jump.next_ip(), jump.near_branch_target()]
}

impl<D: Domain> Watch<'_, D> {
    /// The path executes the instruction at `at` next: arms may begin there.
    pub(crate) fn pass(&mut self, d: &D, state: &Machine<D>, at: u64) {
        let Some(mut arms) = self.arms.take() else { return };
        self.close(d, &mut arms, Some(at));
        if let Some(Ok(op)) = self.entry.target.program.at(at) {
            let is_last = self.barriers.overwritten;
            let overwritten = if is_last { arms.verws } else { 0 };
            let so_far = SoFar { strayed: Strayed::default(), overwritten };
            // The CPU may take any round for the last one.
            if op.repeats() && d.known(state.get(Gpr::Rcx)) != Some(0) {
                self.go_later(d, &mut arms, op.next, state, &self.barriers, so_far);
            }
            if let Some(condition) = state.jumps_if(d, op.kind) {
                let [next, to] = arms_of(self.entry.target, at);
                // The condition of a loop that has a known count is a number.
                let holds = d.known(d.number(condition));
                let counted = matches!(op.kind, Operation::Loop(_)).then(|| {
                    let mut counted = copy(state);
                    counted.count_down(d, op.kind);
                    counted
                });
                let state = counted.as_ref().unwrap_or(state);
                arms.told.extend([condition, d.not(condition)].map(|bit| d.number(bit)));
                match holds {
                    Some(holds) => {
                        let other = if holds == 0 { to } else { next };
                        self.go_later(d, &mut arms, other, state, &self.barriers, so_far);
                    }
                    None => {
                        let (state, barriers) = (Rc::new(copy(state)), self.barriers.clone());
                        arms.open = Some(Jump { arms: [next, to], state, barriers, so_far });
                    }
                }
            }
            let is_in_memory =
                || self.entry.target.program.instruction(at).op0_kind() == OpKind::Memory;
            arms.verws += usize::from(op.kind == Operation::Verw && is_in_memory());
            self.predict(d, &mut arms, (state, &self.barriers, so_far), op, at);
        }
        self.arms = Some(arms);
    }

    /// The path has gone on at `taken`, or has left the code.
    pub(crate) fn close(&self, d: &D, arms: &mut Arms<D>, taken: Option<u64>) {
        let Some(Jump { arms: [next, to], state, barriers, so_far }) = arms.open.take() else {
            return;
        };
        let is_next =
            taken == Some(next) || taken.is_none() && self.entry.target.program.contains(to);
        let to = if is_next { to } else { next };
        self.go_later(d, arms, to, &state, &barriers, so_far);
    }

    /// The RET or the jump through a register or memory at `at` may be predicted to lead elsewhere
    /// in the code.
    pub(crate) fn predict(
        &self,
        d: &D,
        arms: &mut Arms<D>,
        (state, barriers, so_far): (&Machine<D>, &Barriers, SoFar),
        op: &Op,
        at: u64,
    ) {
        let program = &self.entry.target.program;
        let [_, thunk] = self.entry.target.returns;
        let is_thunk = || thunk != 0 && program.instruction(at).near_branch_target() == thunk;
        let release = match op.kind {
            Operation::Return(release) => Some(release),
            Operation::Jump if is_thunk() => Some(0),
            _ => None,
        };
        if let Some(release) = release {
            let Some(to) = barriers.prediction() else { return };
            let rsp = state.get(Gpr::Rsp);
            let place = state.memory.locate(d, rsp, 8, state.cr3);
            let real = place.and_then(|place| d.code_at(state.memory.load(d, place)));
            if real != Some(to) {
                let (mut state, mut barriers) = (copy(state), barriers.clone());
                state.set(Gpr::Rsp, d.plus(rsp, 8 + i64::from(release)));
                barriers.returned();
                barriers.branch(at, None);
                self.go_later(d, arms, to, &state, &barriers, so_far);
            }
        } else if op.is_indirect() {
            let real = state.leads_to(d, op);
            let code = |word| d.code_at(word).filter(|to| matches!(program.at(*to), Some(Ok(_))));
            let only = real.and_then(code);
            let others = real.map(|word| d.alternatives(word)).unwrap_or_default();
            let named = self.named().into_iter();
            let targets: BTreeSet<u64> = others.into_iter().filter_map(code).chain(named).collect();
            let mut state = copy(state);
            let mut barriers = barriers.clone();
            barriers.poison();
            if op.kind == Operation::Call {
                let rsp = d.plus(state.get(Gpr::Rsp), -8);
                if let Some(place) = state.memory.locate(d, rsp, 8, state.cr3) {
                    state.memory.store(d, place, d.code(op.next));
                }
                state.set(Gpr::Rsp, rsp);
                barriers.called(op.next, self.entry.target.around(at).fills);
            }
            for to in targets.into_iter().filter(|to| only != Some(*to)) {
                let mut barriers = barriers.clone();
                if op.kind == Operation::Jump {
                    barriers.branch(at, Some(to));
                }
                self.go_later(d, arms, to, &state, &barriers, so_far);
            }
        }
    }

    /// The places in the code whose address the theorem's code makes a value.
    fn named(&self) -> BTreeSet<u64> {
        let program = &self.entry.target.program;
        let mut reached: BTreeSet<u64> = self.entry.reached().collect();
        reached.extend(&self.trace);
        let named = reached.into_iter().filter_map(|at| {
            let instruction = program.instruction(at);
            let is_lea = instruction.mnemonic() == Mnemonic::Lea;
            if is_lea && instruction.is_ip_rel_memory_operand() {
                return Some(instruction.ip_rel_memory_address());
            }
            let is_number = matches!(
                instruction.try_op_kind(1),
                Ok(OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64)
            );
            (program.is_fixed() && is_number).then(|| instruction.immediate(1))
        });
        named.filter(|to| matches!(program.at(*to), Some(Ok(_)))).collect()
    }
}
