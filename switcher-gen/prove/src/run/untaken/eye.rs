//! Who watches an arm, and answers what no path knows.

use crate::goal::Goals;
use crate::obligation;
use crate::obligation::Obligation;
use crate::run::arms::memory::{Lies, Strayed, is_partly_within};
use crate::run::arms::origin_set::Origins;
use crate::run::arms::points::{is_counted, origins};
use crate::run::origins::{
    is_a_leak, is_of_hosts_stack, is_of_mixed_memory, is_steered, steers_the_host,
};
use crate::run::watch::Watch;
use switcher_model::program::{MemoryOperand, Op, Operand, Operation, Segment};
use switcher_model::{
    Access, Domain, Effect, Elsewhere, Gpr, Held, Observer, Origin, Place, Region, RegionName,
    State as Machine,
};

/// Sees of an arm what mitigations are judged by, says what memory holds there, and whether
/// something is told by where its loads, stores and jumps go.
pub(crate) struct Eye<'a, 'b, D: Domain> {
    pub(crate) watch: &'a mut Watch<'b, D>,
    pub(crate) goals: &'a mut Goals<D>,
    /// The instruction.
    pub(crate) op: Op,
    /// Whether nothing may be read but the frame that is returned to.
    pub(crate) is_last: bool,
    /// Whether what the instruction reads is that frame, wherever it lies.
    pub(crate) is_frame: bool,
    pub(crate) told: &'a mut Vec<D::Word>,
    pub(crate) strayed: &'a mut Strayed,
    /// Whether the arm is broken, so that there is no need to go on.
    pub(crate) is_over: bool,
    /// The conditions by which the instruction has settled where it leads.
    pub(crate) settled_by: Vec<D::Word>,
    /// How many of the values that the instruction combines say where the code lies.
    pub(crate) places: usize,
}

impl<'a, 'b, D: Domain> Eye<'a, 'b, D> {
    /// Who watches `op`, which is neither too late nor a frame's.
    pub(crate) fn new(
        op: Op,
        (watch, goals): (&'a mut Watch<'b, D>, &'a mut Goals<D>),
        (told, strayed): (&'a mut Vec<D::Word>, &'a mut Strayed),
    ) -> Self {
        let (is_last, is_frame, is_over) = (false, false, false);
        let (settled_by, places) = (Vec::new(), 0);
        Self { watch, goals, op, is_last, is_frame, told, strayed, is_over, settled_by, places }
    }
}

impl<D: Domain> Eye<'_, '_, D> {
    fn broken(&mut self, d: &D, obligation: Obligation, about: &'static str) {
        self.goals.broken(d, obligation, about, None);
        self.is_over = true;
    }

    /// What is stored to where a guest may load it, or to where the host may and takes it for its
    /// own. The host's stack is named in the place of host_rsp, and nowhere else.
    fn leaves(&mut self, d: &D, value: D::Word, to: [bool; 2], is_host_rsp: bool) {
        let [to_guest, to_host] = to;
        let is_mixed = is_of_mixed_memory(d, self.watch.entry.target, value);
        let is_address = is_mixed || !is_host_rsp && is_of_hosts_stack(d, value);
        self.strayed.tells |= to_guest && is_a_leak(d, value);
        self.strayed.steers |= to_host && (is_address || steers_the_host(d, value));
    }

    /// Where what is stored comes from, if it is not known any more where it lies then. Where code
    /// is linked for one address, a number may be one of its places.
    fn origins(&self, d: &D, state: &Machine<D>, value: D::Word) -> Origins {
        let from = origins(d, state, value);
        let program = &self.watch.entry.target.program;
        let is_place = program.is_fixed()
            && from.is_within(Origins::CODE)
            && d.known(value).is_none_or(|number| program.contains(number));
        if is_place { from.with(Origin::Place) } else { from }
    }

    /// Whether where the instruction leads is what it loads.
    fn is_transfer(&self) -> bool {
        matches!(self.op.kind, Operation::Jump | Operation::Call) || self.op.is_return()
    }

    fn is_string(&self) -> bool {
        matches!(self.op.kind, Operation::StoreString { .. } | Operation::CopyString { .. })
    }

    /// Whether the address that the instruction accesses is counted from RSP, and not below it but
    /// for what it pushes.
    fn is_by_rsp(&self) -> bool {
        let memory =
            [self.op.first, self.op.second].into_iter().find_map(|operand| match operand {
                Operand::Memory(memory) => Some(memory),
                _ => None,
            });
        let Some(memory) = memory else { return true };
        let is_above = memory.displacement.cast_signed() >= 0 && memory.index.is_none();
        memory.segment == Segment::Flat && memory.base == Some(Gpr::Rsp as usize) && is_above
    }

    /// An access to where nothing is said to be, and where that is. `None` if it is broken.
    fn judged(&mut self, d: &D, state: &Machine<D>, at: Elsewhere<D::Word>) -> Option<Lies> {
        let address = at.address;
        let lies = Lies::new(d, state, address);
        let bases = [state.gs_base, state.inactive_gs_base];
        // Numbers may be close by chance.
        let is_term = d.mentions(address, |_| true);
        let by_gs = |base| {
            let is_near = |address| {
                let distance = d.sub(address, base);
                let known = d.known(distance).map(u64::cast_signed);
                known.is_some_and(|at| i32::try_from(at).is_ok()) || is_counted(d, distance)
            };
            is_term && d.alternatives(address).into_iter().any(is_near)
        };
        if lies == Lies::Elsewhere && (at.gs || bases.into_iter().any(by_gs)) {
            self.broken(d, obligation::SWAPGS_FENCED, "GS base");
            return None;
        }
        // A call's own address, on a stack: how far down that goes is for paths to show.
        let is_call = self.op.kind == Operation::Call && !self.op.is_indirect();
        let is_call = is_call && matches!(lies, Lies::Beside(_));
        let is_told = lies == Lies::Elsewhere && is_a_leak(d, address);
        // A string makes many accesses, of which one is judged.
        if is_told || self.is_string() || self.is_transfer() && !is_call {
            self.broken(d, obligation::UNTAKEN_MEMORY, "address");
            return None;
        }
        self.watch.reads_code |= lies.is_code(state);
        if !is_call {
            self.watch.has_read(d, self.goals, self.is_last && !self.is_frame);
            self.watch.barriers.overwritten &= self.is_frame;
        }
        Some(lies)
    }
}

/// How many of the values that `op` combines in registers say where the code lies.
pub(crate) fn places<D: Domain>(d: &D, state: &Machine<D>, op: &Op) -> usize {
    let mut registers: Vec<usize> = Vec::new();
    let mut words = Vec::new();
    let mut of_address = |memory: MemoryOperand| {
        registers.extend(memory.base);
        registers.extend(memory.index.map(|(index, _)| index));
        match memory.segment {
            Segment::Flat => {}
            Segment::Fs => words.push(state.fs_base),
            Segment::Gs => words.push(state.gs_base),
        }
        if memory.is_code && (memory.base.is_some() || memory.index.is_some()) {
            words.push(d.code(0));
        }
    };
    let operands = [op.first, op.second];
    operands.into_iter().for_each(|operand| {
        if let Operand::Memory(memory) = operand {
            of_address(memory);
        }
    });
    if combines(op.kind) {
        registers.extend(operands.into_iter().filter_map(|operand| match operand {
            Operand::Gpr { index, .. } | Operand::High { index } => Some(index),
            _ => None,
        }));
    }
    registers.sort_unstable();
    registers.dedup();
    words.extend(registers.into_iter().map(|register| state.gpr[register]));
    words.into_iter().filter(|word| is_of_place(d, *word)).count()
}

fn is_of_place<D: Domain>(d: &D, word: D::Word) -> bool {
    d.mentions(word, |origin| origin == Origin::Place)
}

/// Whether `op` makes RSP something that is not counted from it.
pub(crate) fn sets_rsp(op: &Op) -> bool {
    let is_rsp =
        |operand| matches!(operand, Operand::Gpr { index, .. } if index == Gpr::Rsp as usize);
    let is_moved =
        matches!(op.kind, Operation::Add | Operation::Sub | Operation::Inc | Operation::Dec)
            && (op.second == Operand::None || matches!(op.second, Operand::Immediate(_)));
    let is_read =
        matches!(op.kind, Operation::Cmp | Operation::Test | Operation::Push | Operation::Bt);
    (is_rsp(op.first) && !is_moved && !is_read) || op.kind == Operation::Xchg && is_rsp(op.second)
}

/// Whether an operation makes one value of two.
const fn combines(kind: Operation) -> bool {
    !matches!(
        kind,
        Operation::Mov
            | Operation::MovIf(_)
            | Operation::MovZeroExtended
            | Operation::MovSignExtended
            | Operation::Xchg
            | Operation::Push
            | Operation::Pop
            | Operation::Call
            | Operation::Return(_)
    )
}

impl<D: Domain> Observer<D> for Eye<'_, '_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        self.watch.held(what)
    }

    /// CPUs differ in what they have, and in when an instruction that faults ends those after it.
    fn asks(&self) -> bool {
        false
    }

    fn found(&mut self, d: &D, state: &Machine<D>, at: Elsewhere<D::Word>) -> Option<D::Word> {
        let lies = self.judged(d, state, at)?;
        let is_partly = is_partly_within(d, state, at.address, at.size);
        let from = self.strayed.load(d, state, lies, is_partly);
        Some(d.any_of("found", at.size, &from.list()))
    }

    fn left(
        &mut self,
        d: &D,
        state: &mut Machine<D>,
        at: Elsewhere<D::Word>,
        value: D::Word,
    ) -> bool {
        let Some(lies) = self.judged(d, state, at) else { return false };
        let is_partly = is_partly_within(d, state, at.address, at.size);
        let from = self.origins(d, state, value);
        self.strayed.store(d, state, lies, from, is_partly);
        let is_shared = |region: &Region<D>| region.name == RegionName::Pvcs;
        // Nobody loads what lies below a stack before it has stored there.
        let is_below = |region: &Region<D>| {
            let distance = d.distance(at.address, region.base);
            region.name.is_stack() && distance.is_some_and(|distance| distance < region.start)
        };
        let is_the_hosts = |region: &Region<D>| !is_shared(region) && !is_below(region);
        let to = [lies.is_one_of(state, is_shared), lies.is_one_of(state, is_the_hosts)];
        self.leaves(d, value, to, false);
        true
    }

    fn loaded(&mut self, d: &D, state: &Machine<D>, place: Place, value: D::Word) -> D::Word {
        let is_by_rsp = self.is_by_rsp();
        let among_calls = self.strayed.is_among_calls(place, is_by_rsp);
        let Some(from) = self.strayed.amended(place, is_by_rsp, origins(d, state, value)) else {
            return value;
        };
        if !self.is_transfer() {
            return d.any_of("strayed", place.size, &from.list());
        }
        // A number is nowhere to go to, if it is not a place of the code.
        if among_calls || self.strayed.is_open(place.region) {
            self.broken(d, obligation::UNTAKEN_TARGET, "RIP");
        }
        value
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Effect<D::Word>) {
        let is_string = self.is_string();
        let (watch, goals) = (&mut *self.watch, &mut *self.goals);
        match event {
            Effect::Depends(condition) => {
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
            }
            // Which way a string goes.
            Effect::Decided(condition) if is_string => self.settled_by.push(condition),
            // Each of the conditions is one by which a jump goes.
            Effect::Decided(_) => {
                let conditions = d.settled_by(state.rip);
                self.settled_by.extend(conditions.into_iter().map(|bit| d.number(bit)));
            }
            Effect::Access(access) => self.access(d, state, &access),
            Effect::ReadMsr(_) => {
                watch.barriers.overwritten = false;
                watch.has_read(d, goals, self.is_last);
            }
            Effect::WriteMsr { number, value } => watch.barrier(d, goals, number, value),
            Effect::Descriptor { selector, by_return } => {
                watch.barriers.overwritten &= by_return;
                if is_a_leak(d, selector) {
                    self.broken(d, obligation::UNTAKEN_MEMORY, "selector");
                }
            }
            Effect::Verw => watch.barriers.overwritten = true,
            Effect::Branch(branch) => watch.branch(d, goals, state, branch),
            Effect::Fence(fence) => watch.barriers.fence(fence),
            // That it goes there is what an arm is; the rest is said of each access.
            Effect::Execute(_)
            | Effect::Needs { .. }
            | Effect::LoadCr3(_)
            | Effect::WriteGsBase(_)
            | Effect::SwapGs
            | Effect::Sysretq
            | Effect::Iretq(_) => {}
        }
    }
}

impl<D: Domain> Eye<'_, '_, D> {
    fn access(&mut self, d: &D, state: &Machine<D>, access: &Access<D::Word>) {
        let (watch, goals) = (&mut *self.watch, &mut *self.goals);
        let region = &state.memory.regions[access.place.region];
        let name = region.name;
        let is_frame = watch.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
        watch.barriers.overwritten &= is_frame;
        watch.has_read(d, goals, self.is_last && !is_frame);
        watch.reads_code |= name == RegionName::Code;
        if let Some((at, size)) = watch.own_flags(d, state, access) {
            watch.decisions.read_flags(access.value, at, size);
        }
        if watch.is_own_host_rsp(state, access) {
            let is_zero = d.is(access.value, 0);
            self.told.extend([is_zero, d.not(is_zero)].map(|bit| d.number(bit)));
        }
        if access.gs {
            let ours = d.eq(state.gs_base, watch.start.host_gs);
            goals.add(obligation::SWAPGS_FENCED, ours, "GS base");
        }
        if access.store {
            let is_by_rsp = self.is_by_rsp();
            let from = self.origins(d, state, access.value);
            self.strayed.stored(access.place, is_by_rsp, from);
            let is_shared = region.name == RegionName::Pvcs;
            let is_allowed = self.watch.may_store(region, access.place);
            // Of what routines store to the block, the host trusts all but the guest's RSP.
            let is_of_block = name == RegionName::TssExtra;
            let is_trusted = is_of_block && !self.watch.is_smod_rsp(state, access);
            let is_hosts = !is_allowed || is_trusted;
            let is_host_rsp = self.watch.is_host_rsp(state, access);
            self.leaves(d, access.value, [is_shared, !is_shared && is_hosts], is_host_rsp);
        }
        if !access.store && combines(self.op.kind) {
            self.places += usize::from(is_of_place(d, access.value));
        }
    }
}
