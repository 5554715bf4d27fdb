//! What runs have executed, as a shape that other code can be held against.

use crate::entry::Entry;
use std::collections::BTreeSet;

use iced_x86::{FlowControl, Mnemonic};

use crate::run::Run;
use crate::shared::key::{as_a_rule, asks_for_more, is_predicted, of_branches};
use crate::target::Target;
use crate::target::looks::{Looks, looks};
use switcher_gen::mitigations::{Bhb, Mitigations, Rsb};
use switcher_model::Domain;
use switcher_model::program::Operation;

/// What runs have executed.
#[derive(Debug, Default)]
pub(crate) struct Executed {
    at: BTreeSet<u64>,
    /// Branches that have to stay in their cache line.
    lines: BTreeSet<u64>,
    /// Where a run has gone, and not only an arm that it has not taken.
    taken: BTreeSet<u64>,
    /// Whether an arm makes something of two addresses of the code.
    have_met: bool,
    /// Whether some run makes more of an address than [`TraceShape`] can tell.
    is_of_place: bool,
}

impl Executed {
    /// Adds what `run` has executed.
    pub(crate) fn add<D: Domain>(&mut self, entry: Entry<'_>, run: &Run<D>) {
        let Entry { target, theorem, .. } = entry;
        self.at.extend(run.trace.iter().chain(&run.untaken.at));
        self.lines.extend(&run.lines);
        self.taken.extend(&run.trace);
        self.have_met |= run.untaken.have_met;
        // A RET in code that has none as a rule is asked for mitigations that [`judged`] leaves
        // out, of this variant or of another that would get its proof.
        const EVERY: Mitigations = Mitigations {
            ibrs: true,
            ibpb: true,
            untrain: true,
            rsb: Rsb::Full,
            bhb: Bhb::Long,
            verw: true,
        };
        let is_masked = of_branches(as_a_rule(EVERY, theorem)) != of_branches(EVERY);
        let is_asked = |at: &u64| {
            let to = target.program.instruction(*at).near_branch_target();
            is_predicted(target, *at) || to != 0 && target.returns.contains(&to)
        };
        let is_indirect = |at: &u64| target.is_indirect(*at);
        // The code does not tell whether a RET stays in its line.
        let is_open = |at: &u64| target.around(*at).stays_in_line.is_none();
        let mut all = run.trace.iter().chain(&run.untaken.at);
        let asks_more = is_masked && all.clone().any(is_asked);
        let kind =
            |at: &u64| target.program.at(*at).and_then(Result::ok).map(|op| (op.kind, op.next));
        let is_named = |address| {
            let mut named = run.trace.iter().map(|at| target.program.instruction(*at));
            named.any(|i| i.is_ip_rel_memory_operand() && i.ip_rel_memory_address() == address)
        };
        let goes_on = |&[from, to]: &[u64; 2]| match kind(&from) {
            // It leads to the return address of a call, or the run says that it is not movable.
            Some((Operation::Return(_), _)) => true,
            Some((Operation::Iretq, _)) => is_named(to),
            // A REP goes on where it is.
            Some((_, next)) => {
                to == next || to == from || successors(entry, from).contains(&Some(to))
            }
            None => false,
        };
        self.is_of_place = self.is_of_place
            || !run.is_movable
            || asks_more
            || run.lines.iter().any(is_open)
            || all.any(is_indirect)
            || asks_for_more(entry, run)
            || run.reads_code
            || run.untaken.of_place
            || !run.trace.array_windows().all(goes_on);
    }
}

/// Where an instruction leads: to the next one, and to the address that it names. A RET, an IRETQ
/// and a jump through a register lead to a value.
fn successors(entry: Entry<'_>, at: u64) -> [Option<u64>; 2] {
    let target = entry.target;
    let i = target.program.instruction(at);
    let next = Some(i.next_ip());
    match i.flow_control() {
        FlowControl::Next => {
            [next, i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address())]
        }
        FlowControl::ConditionalBranch | FlowControl::Call => [next, Some(i.near_branch_target())],
        FlowControl::UnconditionalBranch => [None, Some(i.near_branch_target())],
        FlowControl::Interrupt if i.mnemonic() == Mnemonic::Int => {
            [None, entry.gate(i.immediate8()).map(|gate| gate.address)]
        }
        _ => [None, None],
    }
}

/// Instructions that were executed, wherever they lie, and which of them follow which.
#[derive(Debug)]
pub(crate) struct TraceShape {
    /// Where it begins: one for each stub that is executed.
    first: Vec<usize>,
    instructions: Vec<(Looks, [Option<usize>; 2])>,
    /// For each of them, whether it does not matter what address it makes a value: no path executes
    /// it, and an arm neither goes there nor makes anything of two such values. That it is one of
    /// the code's may matter.
    free: Vec<bool>,
    /// Where an arm makes something of two addresses of the code: those that become values besides
    /// what instructions name.
    met: Option<Met>,
}

/// Addresses of the code that it can make values without naming them.
#[derive(Debug, PartialEq, Eq)]
struct Met {
    /// What calls and INTs push, by the number of the instruction.
    pushed: Vec<Option<u64>>,
    /// What MSRs hold, and what the hardware pushes.
    entries: [Option<u64>; 3],
}

impl Met {
    /// Those of a target, of instructions at these addresses.
    fn of(target: &Target, at: impl Iterator<Item = u64>) -> Self {
        let pushed = |at| {
            let i = target.program.instruction(at);
            matches!(i.flow_control(), FlowControl::Call | FlowControl::Interrupt)
                .then(|| i.next_ip())
        };
        let entries = [Some(target.syscall_64), target.syscall_compat, target.iretq];
        Self { pushed: at.map(pushed).collect(), entries }
    }
}

/// What an instruction looks like without the address that LEA makes a value.
fn without_value(target: &Target, at: u64, looks: Looks) -> Looks {
    let is_lea = target.program.instruction(at).mnemonic() == Mnemonic::Lea;
    Looks { value: looks.value.filter(|_| !is_lea), ..looks }
}

impl TraceShape {
    pub(crate) fn new(entry: Entry<'_>, executed: &Executed) -> Option<Self> {
        let target = entry.target;
        let at: Vec<u64> = executed.at.iter().copied().collect();
        let number = |address: u64| at.binary_search(&address).ok();
        let follow = |at: u64| successors(entry, at).map(|to| to.and_then(number));
        let is_free = |at: &u64| !executed.taken.contains(at) && !executed.have_met;
        let free = at.iter().map(is_free).collect();
        let looks = |at: u64| {
            let looks = looks(target, at, executed.lines.contains(&at));
            if is_free(&at) { without_value(target, at, looks) } else { looks }
        };
        let instructions = at.iter().map(|at| (looks(*at), follow(*at))).collect();
        let first = entry.addresses().iter().map(|at| number(*at)).collect::<Option<_>>()?;
        let met = executed.have_met.then(|| Met::of(target, at.iter().copied()));
        let shape = Self { first, instructions, free, met };
        // An instruction might be executed that nothing leads to: then it is not found.
        (!executed.is_of_place && shape.is_of(entry)).then_some(shape)
    }

    /// Whether the code from `entry` on is of this shape.
    pub(crate) fn is_of(&self, entry: Entry<'_>) -> bool {
        let (target, entries) = (entry.target, entry.addresses());
        if self.first.len() != entries.len() {
            return false;
        }
        let mut places = vec![None; self.instructions.len()];
        let mut ahead: Vec<_> = self.first.iter().copied().zip(entries.iter().copied()).collect();
        for (number, at) in &ahead {
            places[*number] = Some(*at);
        }
        while let Some((number, at)) = ahead.pop() {
            let (expected, follow) = &self.instructions[number];
            let in_line = expected.around.stays_in_line.is_some();
            if !target.program.contains(at) {
                return false;
            }
            let looks = looks(target, at, in_line);
            let is_free = self.free[number];
            let looks = if is_free { without_value(target, at, looks) } else { looks };
            if looks != *expected {
                return false;
            }
            for (number, to) in follow.iter().zip(successors(entry, at)) {
                let Some(number) = *number else { continue };
                let Some(to) = to else { return false };
                match places[number] {
                    Some(known) if known != to => return false,
                    Some(_) => {}
                    None => {
                        places[number] = Some(to);
                        ahead.push((number, to));
                    }
                }
            }
        }
        let Some(places) = places.into_iter().collect::<Option<Vec<u64>>>() else { return false };
        self.met.as_ref().is_none_or(|met| *met == Met::of(target, places.into_iter()))
    }
}
