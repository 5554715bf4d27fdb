//! Memory on an arm: what an access finds that goes to where no path goes.

use iced_x86::OpKind;

use crate::run::untaken::join::CHUNK;
use switcher_model::program::{Op, Operation};
use switcher_model::{ARITHMETIC, Domain, Flags, Gpr, State as Machine};

/// How far beyond a region an address is still one of it: the memory there is the host's.
pub(crate) const NEAR: i64 = 4096;

/// What a load finds where the path loads nothing.
pub(crate) fn found<D: Domain>(d: &D) -> D::Word {
    let found = d.undefined("what only speculation finds", &[]);
    d.select(found, d.word(u64::MAX), d.word(0))
}

/// A store has gone to where a guest says: that may be anywhere, and a later load may find what was
/// stored.
pub(crate) fn forget_memory<D: Domain>(d: &D, machine: &mut Machine<D>) {
    for region in machine.memory.regions.iter_mut().filter(|region| !region.is_code) {
        for chunk in region.cells.chunks_mut(CHUNK) {
            d.store(chunk, found(d));
        }
    }
}

/// The instruction has accessed memory of which nothing is known: `value` is what it finds.
pub(crate) fn skip<D: Domain>(
    d: &D,
    machine: &mut Machine<D>,
    op: &Op,
    instruction: &iced_x86::Instruction,
    value: D::Word,
) {
    machine.rip = d.code(op.next);
    let rsp = machine.get(Gpr::Rsp);
    match op.kind {
        Operation::Push | Operation::PushFlags => machine.set(Gpr::Rsp, d.plus(rsp, -8)),
        Operation::Pop | Operation::PopFlags => machine.set(Gpr::Rsp, d.plus(rsp, 8)),
        _ => {}
    }
    let only_reads = matches!(
        op.kind,
        Operation::Cmp | Operation::Test | Operation::Bt | Operation::Push | Operation::Verw
    );
    let is_register = |n| instruction.op_count() > n && instruction.op_kind(n) == OpKind::Register;
    for n in 0..2 {
        let is_written = n == 0 || matches!(op.kind, Operation::Xchg | Operation::ExchangeAdd);
        if is_written && !only_reads && is_register(n) && instruction.op_register(n).is_gpr() {
            machine.gpr[instruction.op_register(n).full_register().number()] = value;
        }
    }
    if op.kind == Operation::CompareExchange {
        machine.set(Gpr::Rax, value);
    }
    if !matches!(
        op.kind,
        Operation::Mov | Operation::Push | Operation::Pop | Operation::PushFlags | Operation::Verw
    ) {
        let bit = d.mask(value, 1);
        let set = (0..64).filter(|bit| ARITHMETIC >> bit & 1 != 0);
        let kept = d.mask(machine.rflags(d), !ARITHMETIC);
        let flags = set.fold(kept, |flags, at| d.or(flags, d.shl(bit, at)));
        machine.flags = Flags::new(d, flags);
    }
}
