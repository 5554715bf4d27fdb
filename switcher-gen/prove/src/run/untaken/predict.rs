//! Where an arm begins: what predictors may make of the jumps, calls and RETs of a path.

use std::collections::BTreeSet;
use std::rc::Rc;

use iced_x86::OpKind;

use crate::run::arms::memory::{Lies, Strayed};
use crate::run::arms::origin_set::Origins;
use crate::run::arms::{Arms, Indirect, Jump, SoFar, copy};
use crate::run::barriers::Barriers;
use crate::run::watch::Watch;
use crate::target::Target;
use switcher_model::program::{Op, Operation};
use switcher_model::{Domain, Flags, Gpr, Origin, State as Machine};

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
            self.name(d, &mut arms, at);
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
        let leads_to_thunk = || self.is_thunk(program.instruction(at).near_branch_target());
        let release = match op.kind {
            Operation::Return(release) => Some(release),
            Operation::Jump | Operation::JumpIf(_) if leads_to_thunk() => Some(0),
            _ => None,
        };
        if let Some(release) = release {
            self.predict_return(d, arms, (state, barriers, so_far), release, at);
        } else if op.is_indirect() {
            let real = state.leads_to(d, op);
            let is_code = |to: &u64| {
                matches!(program.at(*to), Some(Ok(_))) && program.check_entered(*to).is_ok()
            };
            let code = |word| d.code_at(word).filter(is_code);
            let only = real.and_then(code);
            let others = real.map(|word| d.alternatives(word)).unwrap_or_default();
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
            let (is_jump, state) = (op.kind == Operation::Jump, Rc::new(state));
            let jump = Indirect { at, is_jump, only, state, barriers, so_far };
            let named = self.entry.named().iter().chain(&arms.named).copied();
            let all: BTreeSet<u64> = others.into_iter().filter_map(code).chain(named).collect();
            for to in all {
                self.lead_to(d, arms, &jump, to);
            }
            arms.indirect.push(jump);
        }
    }

    /// A RET, or a jump to the host's thunk, may be predicted to return from the latest call.
    pub(crate) fn predict_return(
        &self,
        d: &D,
        arms: &mut Arms<D>,
        (state, barriers, so_far): (&Machine<D>, &Barriers, SoFar),
        release: u16,
        at: u64,
    ) {
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
    }

    /// Whether the host's return thunk is at `at`.
    pub(crate) fn is_thunk(&self, at: u64) -> bool {
        let [_, thunk] = self.entry.target.returns;
        thunk != 0 && at == thunk
    }

    /// The jump or call may be predicted to lead to this place.
    fn lead_to(&self, d: &D, arms: &mut Arms<D>, jump: &Indirect<D>, to: u64) {
        if jump.only != Some(to) {
            let mut barriers = jump.barriers.clone();
            if jump.is_jump {
                barriers.branch(jump.at, Some(to));
            }
            self.go_later(d, arms, to, &jump.state, &barriers, jump.so_far);
        }
    }

    /// An arm, or the path, has executed the instruction at `at`. Jumps through a register or
    /// memory may be predicted to lead wherever it names, too: those that there were already.
    pub(crate) fn name(&self, d: &D, arms: &mut Arms<D>, at: u64) {
        for to in self.entry.target.named_at(at) {
            if self.entry.named().contains(&to) || !arms.named.insert(to) {
                continue;
            }
            let jumps = std::mem::take(&mut arms.indirect);
            for jump in &jumps {
                self.lead_to(d, arms, jump, to);
            }
            arms.indirect = jumps;
        }
    }

    /// What calls have left in the return stack buffer, each of which a RET that the code does not
    /// execute will use up: nothing is known of what that has in registers and memory. `within`
    /// calls are returned from by what is called now.
    pub(crate) fn leave(
        &self,
        d: &D,
        arms: &mut Arms<D>,
        (state, barriers): (&Machine<D>, &Barriers),
        within: usize,
    ) {
        for (to, barriers) in barriers.left(within) {
            let any = || d.any_of("found", 8, &[Origin::Found]);
            let mut state = copy(state);
            Gpr::ALL.into_iter().for_each(|register| state.set(register, any()));
            state.flags = Flags::new(d, any());
            state.fs_base = any();
            state.gs_base = self.start.host_gs;
            let mut strayed = Strayed::default();
            strayed.store(d, &mut state, Lies::Elsewhere, Origins::NONE.with(Origin::Found), false);
            let so_far = SoFar { strayed, overwritten: 0 };
            self.go_later(d, arms, to, &state, &barriers, so_far);
        }
    }
}
